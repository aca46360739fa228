"""GEDI without its generative term: its loss against loops in float64 and at known points."""

import math

import numpy as np
import pytest
import torch
from derivations import distance, draw, projected, softmax
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.gedi import Gedi, Options, gedi_loss

N, INPUTS, CODES, BETA = 5, 4, 6, 0.1
NOW = Progress(seed=0, epoch=0, step=0, total_steps=1)


def terms64(a, b, prior=0.5, weight=0.5):
    """(prior, invariance) of logits that are divided by T already."""
    p1, p2 = softmax(a, 1), softmax(b, 1)
    n, c = p1.shape
    uniform = -sum(np.log(sum(p1[i, j] for i in range(n)) / n) for j in range(c))
    crossed = -sum(p2[i, j] * np.log(p1[i, j]) for i in range(n) for j in range(c)) / n
    return prior * uniform, weight * BETA * crossed


@pytest.mark.parametrize("term", ["prior", "invariance"])
def test_value_and_gradient_of_each_term_equal_the_derivation(term):
    pair = [draw(N, CODES, seed=v) for v in range(2)]
    which = ["prior", "invariance"].index(term)

    def ours(a, b):
        return gedi_loss(a, b, beta=BETA)[term] + 0 * b.sum()  # the prior is of view 1 only

    value, gradient = distance(ours, lambda a, b: terms64(a, b)[which], *pair)
    assert value < 1e-6
    assert gradient < 1e-6
    slips = [
        lambda a, b: 2 * terms64(a, b)[which],
        lambda a, b: 0.5 * terms64(a, b)[which],
        lambda a, b: terms64(2 * a, 2 * b)[which],  # the temperature
        lambda a, b: terms64(b, a)[which],  # the other direction
    ]
    if term == "prior":
        slips.append(lambda a, b: terms64(a, b)[0] / CODES)  # a mean over classes
    for slip in slips:
        value, gradient = distance(ours, slip, *pair)
        assert value > 1e-3
        assert gradient > 1e-3


def test_known_points():
    even = torch.zeros(8, CODES).double()
    terms = gedi_loss(even, even, beta=BETA)
    assert float(terms["prior"]) == pytest.approx(0.5 * CODES * math.log(CODES))
    assert float(terms["invariance"]) == pytest.approx(0.05 * math.log(CODES))


def test_classes_that_underflow_for_a_whole_batch_stay_finite():
    a, b = (torch.from_numpy(draw(8, CODES, seed=v)).float() * 1e3 for v in range(2))
    a[:, 0] -= 1e4
    assert not torch.isfinite(torch.log(torch.softmax(a, 1).mean(0))).all()
    a.requires_grad_()
    sum(gedi_loss(a, b, beta=BETA).values()).backward()
    assert torch.isfinite(a.grad).all()
    assert float(abs(a.grad).max()) > 0


class Plain(nn.Module):
    features = INPUTS

    def forward(self, x):
        return x.flatten(1)


def test_the_method_divides_logits_by_the_temperature_and_embeds_after_the_relu():
    torch.manual_seed(0)
    method = Gedi(Plain(), Options(codes=CODES, embedding=7), Setting(N, 100, 0))
    given = [draw(N, INPUTS, seed=v) for v in range(2)]
    online = [torch.from_numpy(each).float() for each in given]
    terms = method.losses(Encoded(online, []), NOW)
    layers = [projected(method.head, each) for each in given]
    expected = terms64(*(logits / 0.1 for _, logits in layers))
    assert [float(x.detach()) for x in terms.values()] == pytest.approx(expected, rel=1e-5)
    corrected, released = (method.describe(online[0], reading) for reading in method.readings)
    assert abs(corrected.embeddings.detach().numpy() - layers[0][0]).max() < 1e-5
    assert abs(corrected.scores.detach().numpy() - layers[0][1] / 0.1).max() < 1e-4
    assert torch.equal(corrected.scores, released.scores)
    assert torch.equal(corrected.embeddings, released.embeddings)
