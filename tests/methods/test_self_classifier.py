"""Self-Classifier: its loss against loops in float64, at known points, and where gradient flows."""

import math

import numpy as np
import pytest
import torch
from derivations import distance, draw, projected, softmax, unit
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.self_classifier import Options, SelfClassifier, self_classifier_loss

N, INPUTS, WIDTH, CODES = 5, 4, 3, 6
NOW = Progress(seed=0, epoch=0, step=0, total_steps=1)
TEMPERATURES = {"target_temperature": 0.05, "temperature": 0.1}


def one64(a, b, target_t, predicted_t, constant=1.0):
    """Target from a, prediction from b, by the written formulas."""
    n, c = a.shape
    target, p = softmax(a / target_t, 0), softmax(b / predicted_t, 1)
    total = 0.0
    for i in range(n):
        for j in range(c):
            share = target[i, j] / target[i].sum()
            total -= share * np.log(constant * n / c * p[i, j] / p[:, j].sum()) / n
    return total


def both64(a, b, target_t=0.05, predicted_t=0.1, factor=0.5, constant=1.0):
    given = (target_t, predicted_t, constant)
    return factor * (one64(a, b, *given) + one64(b, a, *given))


def test_value_and_gradient_equal_the_derivation():
    """The derivation's differences go through the target too: it is not detached."""
    pair = [draw(N, CODES, seed=v) / 4 for v in range(2)]

    def ours(a, b):
        return self_classifier_loss(a, b, **TEMPERATURES)

    value, gradient = distance(ours, both64, *pair)
    assert value < 1e-6
    assert gradient < 1e-6
    for slip in (
        {"target_t": 0.1},
        {"target_t": 0.025},
        {"predicted_t": 0.2},
        {"predicted_t": 0.05},
        {"factor": 1.0},
    ):
        value, gradient = distance(ours, lambda a, b, slip=slip: both64(a, b, **slip), *pair)
        assert value > 1e-3
        assert gradient > 1e-3
    # A factor beside the logarithm's argument has no gradient; the value tells.
    assert abs(both64(*pair, constant=2.0) - both64(*pair)) == pytest.approx(math.log(2))
    a, b = pair
    targets = [softmax(each / 0.05, 0) for each in pair]
    fixed = [each / each.sum(1, keepdims=True) for each in targets]

    def detached(a, b):
        total = 0.0
        for target, x in ((fixed[0], b), (fixed[1], a)):
            p = softmax(x / 0.1, 1)
            total -= (target * np.log(N / CODES * p / p.sum(0))).sum() / N / 2
        return total

    value, gradient = distance(ours, detached, a, b)
    assert value < 1e-6
    assert gradient > 1e-3


def test_known_points():
    def loss(scores):
        return float(self_classifier_loss(scores, scores.clone(), **TEMPERATURES))

    n, c = 12, 4
    even = torch.zeros(n, c).double()
    one_class = torch.tensor([[3.0, 0.0, 0.0, 0.0]]).double().repeat(n, 1)
    perfect = torch.eye(c).double().repeat(n // c, 1) * 9
    # Both kinds of collapse cost ln c, as much as knowing nothing; an even split costs nothing.
    assert loss(even) == pytest.approx(math.log(c))
    assert loss(one_class) == pytest.approx(math.log(c))
    assert loss(perfect) == pytest.approx(0.0, abs=1e-9)


def test_extreme_scores_stay_finite():
    a, b = (torch.from_numpy(draw(8, 5, seed=v)).float() * 1e4 for v in range(2))
    p = torch.softmax(a / 0.1, dim=1)
    assert torch.isinf(torch.log(p)).any()  # the hazard is there
    leaves = [a.requires_grad_(), b.requires_grad_()]
    loss = self_classifier_loss(*leaves, **TEMPERATURES)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(each.grad).all() for each in leaves)


class Plain(nn.Module):
    features = INPUTS

    def forward(self, x):
        return x.flatten(1)


def test_the_method_scores_unit_embeddings_against_unit_classes():
    torch.manual_seed(0)
    options = Options(codes=CODES, projector_hidden=7, embedding=WIDTH)
    method = SelfClassifier(Plain(), options, Setting(N, 100, 0))
    given = [draw(N, INPUTS, seed=v) for v in range(2)]
    online = [torch.from_numpy(each).float().requires_grad_() for each in given]
    loss = method.losses(Encoded(online, []), NOW)["classification"]
    z = [unit(projected(method.projector, each)[1]) for each in given]
    classes = unit(method.classes.weight.detach().double().numpy())
    scores = [each @ classes.T for each in z]
    assert float(loss.detach()) == pytest.approx(both64(*scores), rel=1e-5)
    loss.backward()
    assert all(float(abs(each.grad).max()) > 1e-3 for each in online)
    seen = method.describe(online[0])  # in training mode: the batch's own statistics
    assert abs(seen.embeddings.detach().numpy() - z[0]).max() < 1e-5
    assert abs(seen.scores.detach().numpy() - 10 * scores[0]).max() < 1e-4
    assert method.readings == ("corrected",)
