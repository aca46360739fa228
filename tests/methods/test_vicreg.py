"""VICReg: its three terms against loops in float64 and at known points."""

import numpy as np
import pytest
import torch
from derivations import distance, draw
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.vicreg import Options, VICReg, vicreg_loss

N, WIDTH = 6, 4
WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
TERMS = list(WEIGHTS)


def term64(name, a, b, per=1):
    n, d = a.shape
    if name == "invariance":
        return 25 * sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / n / d
    total = 0.0
    for z in (a, b):
        mean = z.sum(0) / n
        c = sum(np.outer(row - mean, row - mean) for row in z) / (n - per)
        if name == "variance":
            total += 25 * sum(max(0.0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d / 2
        else:
            total += sum(c[j, k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    return total


@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradient_of_each_term_equal_the_derivation(name):
    # Two coordinates vary by less than 1, so the hinge is open; two by more.
    pair = [draw(N, WIDTH, seed=v) * [0.3, 0.6, 2.0, 3.0] for v in range(2)]

    def ours(a, b):
        return vicreg_loss(a, b, **WEIGHTS)[name]

    value, gradient = distance(ours, lambda a, b: term64(name, a, b), *pair)
    assert value < 1e-6
    assert gradient < 1e-6
    slips = [lambda a, b: 2 * term64(name, a, b), lambda a, b: term64(name, a, b) / 2]
    if name != "invariance":
        slips.append(lambda a, b: term64(name, a, b, per=0))  # over n
    for slip in slips:
        value, gradient = distance(ours, slip, *pair)
        assert value > 1e-3
        assert gradient > 1e-3


def test_known_points():
    constant = torch.ones(N, WIDTH).double()
    terms = vicreg_loss(constant, constant, **WEIGHTS)
    assert float(terms["variance"]) == pytest.approx(25 * 0.99)  # 1 - sqrt(1e-4)
    assert float(terms["invariance"]) == float(terms["covariance"]) == 0
    # Two equal coordinates of variance 4/3: squared covariance 16/9, twice, over d = 2, two views.
    z = torch.tensor([[1.0, 1], [1, 1], [-1, -1], [-1, -1]]).double()
    terms = vicreg_loss(z, -z, **WEIGHTS)
    assert [float(x) for x in terms.values()] == pytest.approx([100, 0, 32 / 9])


class Plain(nn.Module):
    features = WIDTH

    def forward(self, x):
        return x.flatten(1)


def test_the_method_projects_by_three_layers():
    torch.manual_seed(0)
    options = Options(projector_hidden=7, embedding=5)
    method = VICReg(Plain(), options, Setting(N, 100, 0))
    online = [torch.from_numpy(draw(N, WIDTH, seed=v)).float() for v in range(2)]
    kinds = [type(module).__name__ for module in method.projector]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    z = [method.projector(each).detach().double().numpy() for each in online]
    terms = method.losses(Encoded(online, []), Progress(0, 0, 0, 1))
    assert list(terms) == TERMS
    for name, found in terms.items():
        assert float(found.detach()) == pytest.approx(term64(name, *z), rel=1e-4)
    seen = method.describe(online[0])
    assert seen.scores is None
    assert abs(seen.embeddings.detach().numpy() - z[0]).max() < 1e-6
    assert method.readings == ("corrected",)
