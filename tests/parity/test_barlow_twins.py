"""Barlow Twins against loops in float64, and against lightly."""

import math

import pytest
import torch
from by_hand import batch_norm, furthest, slopes
from lightly.loss import BarlowTwinsLoss
from torch import nn

from peregrine.data.views import ViewGroup, Views
from peregrine.methods.barlow_twins import BarlowTwins, Options, barlow_twins_loss
from peregrine.methods.base import Progress, Setting

N, WIDTH, INPUTS, HIDDEN = 7, 5, 4, 6
LAMBDA, SCALE = 0.0051, 0.1


def pair(width=WIDTH, seed=0):
    draws = torch.Generator().manual_seed(seed)
    za = torch.randn(N, width, generator=draws, dtype=torch.float64) * 3 + 1
    zb = 0.5 * za + torch.randn(N, width, generator=draws, dtype=torch.float64)
    return [za.requires_grad_(), zb.detach().requires_grad_()]


def derive(za, zb, off_diagonal=LAMBDA, scale=SCALE, divisor=N):
    """(invariance, redundancy): correlation of coordinate j of one view with k of the other."""
    n, width = za.shape
    columns = []
    for z in (za, zb):
        standard = []
        for j in range(width):
            mean = sum(z[i, j] for i in range(n)) / n
            variance = sum((z[i, j] - mean) ** 2 for i in range(n)) / n
            standard.append([(z[i, j] - mean) / torch.sqrt(variance + 1e-5) for i in range(n)])
        columns.append(standard)
    invariance = redundancy = 0.0
    for j in range(width):
        for k in range(width):
            c = sum(columns[0][j][i] * columns[1][k][i] for i in range(n)) / divisor
            if j == k:
                invariance = invariance + (1 - c) ** 2
            else:
                redundancy = redundancy + c**2
    return scale * invariance, scale * off_diagonal * redundancy


@pytest.mark.parametrize("width", [WIDTH, 2 * N, 20])  # beyond 2 N by way of Gram matrices
def test_value_and_gradient_equal_the_derivation(width):
    z = pair(width)
    terms = barlow_twins_loss(*z, off_diagonal=LAMBDA, scale=SCALE)
    expected = derive(*z)
    assert list(terms) == ["invariance", "redundancy"]
    assert furthest(terms.values(), expected) < 1e-12
    for value, wanted in zip(terms.values(), expected, strict=True):
        assert furthest(slopes(value, z), slopes(wanted, z)) < 1e-12
        assert float(slopes(wanted, z)[0].abs().max()) > 1e-5


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_factor_of_two_is_seen(factor):
    z = pair()
    terms = list(barlow_twins_loss(*z, off_diagonal=LAMBDA, scale=SCALE).values())
    for slip in ({"scale": factor * SCALE}, {"divisor": factor * N}):
        wrong = derive(*z, **slip)
        assert furthest(terms, wrong) > 1e-3
        assert furthest(slopes(sum(terms), z), slopes(sum(wrong), z)) > 1e-3
    # lambda is small: its slip shows in the redundancy term alone, where it is the whole.
    wrong = derive(*z, off_diagonal=factor * LAMBDA)
    assert wrong[1].item() == pytest.approx(factor * terms[1].item(), rel=1e-9)
    assert terms[1].item() > 1e-3
    assert furthest(slopes(terms[1], z), slopes(wrong[1], z)) > 1e-5


def test_known_numbers():
    """Equal views of two orthogonal coordinates +-1: C = I / (1 + 1e-5), the loss 0 but for that.
    One coordinate twice: C is all ones, so 2 lambda of redundancy, whatever the scale of z."""
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    terms = barlow_twins_loss(z, z, off_diagonal=0.5)
    assert float(terms["invariance"]) == pytest.approx(2 * (1e-5 / 1.00001) ** 2, rel=1e-6)
    assert float(terms["redundancy"]) == pytest.approx(0, abs=1e-12)
    twice = 100 * z[:, :1].expand(4, 2)
    assert float(barlow_twins_loss(twice, twice, off_diagonal=0.5)["redundancy"]) == pytest.approx(
        0.5 * 2, rel=1e-6
    )
    assert float(barlow_twins_loss(z, -z)["invariance"]) == pytest.approx(2 * 4, rel=1e-4)
    with pytest.raises(ValueError, match="embeddings must be two"):
        barlow_twins_loss(z, z[:2])


@pytest.mark.parametrize("width", [3, 40])
def test_it_is_the_loss_of_lightly(width):
    """lightly standardises with F.batch_norm, so with the biased variance and 1e-5, and divides by
    n; its lambda is 5e-3 by default, given here. The scale .1 is the released code's addition."""
    z = pair(width)
    ours = sum(barlow_twins_loss(*z, off_diagonal=LAMBDA).values())
    theirs = BarlowTwinsLoss(lambda_param=LAMBDA)(*z)
    assert furthest([ours], [theirs]) < 1e-5
    assert furthest(slopes(ours, z), slopes(theirs, z)) < 1e-5
    scaled = sum(barlow_twins_loss(*z, off_diagonal=LAMBDA, scale=SCALE).values())
    assert scaled.item() == pytest.approx(0.1 * theirs.item(), rel=1e-9)
    other = BarlowTwinsLoss(lambda_param=2 * LAMBDA)(*z)
    assert furthest([ours], [other]) > 1e-3


def test_it_stays_in_float32_under_autocast():
    za, zb = (z.detach().float() for z in pair(40))
    expected = [float(x) for x in barlow_twins_loss(za.double(), zb.double()).values()]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [float(x) for x in barlow_twins_loss(za, zb).values()]
    assert rounded == pytest.approx(expected, rel=1e-5)


# The method --------------------------------------------------------------------------------------


class Plain(nn.Module):
    features = INPUTS

    def forward(self, x):
        return x.flatten(1)[:, :INPUTS]


@pytest.fixture
def method():
    options = Options(projector_hidden=HIDDEN, embedding=WIDTH)
    torch.manual_seed(0)
    made = BarlowTwins(Plain(), options, Setting(N, 100, 0)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return made


def images(seed=1):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(2, N, 1, 2, 2, generator=draws, dtype=torch.float64)


def layers(method, x):
    """(output of the second ReLU, output of the third Linear), batch statistics."""
    first, g1, b1, second, g2, b2, third, bias = method.projector.parameters()
    x = torch.relu(batch_norm(x @ first.T, g1, b1))
    x = torch.relu(batch_norm(x @ second.T, g2, b2))
    return x, x @ third.T + bias


def test_the_defaults_are_those_of_the_released_code():
    """falcon.md, section 3: head 2048-2048-2048, scale 0.1, lambda .0051."""
    o = Options()
    assert (o.projector_hidden, o.embedding, o.scale, o.off_diagonal) == (2048, 2048, 0.1, 0.0051)
    backbone = Plain()
    backbone.features = 512
    head = BarlowTwins(backbone, o, Setting(2, 2, 0)).projector
    shapes = [tuple(m.weight.shape) for m in head if isinstance(m, nn.Linear)]
    assert shapes == [(2048, 512), (2048, 2048), (2048, 2048)]
    kinds = [type(m).__name__ for m in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]


def test_the_method_hands_projections_and_options_to_the_loss(method):
    views = images()
    terms = method.losses(method.encode(Views([ViewGroup("source", views)])), Progress(0, 0, 0, 1))
    z = [layers(method, each.flatten(1))[1] for each in views]
    assert furthest(terms.values(), derive(*z)) < 1e-6  # projections pass through float32
    assert sum(terms.values()).item() > 1e-3


def test_the_two_readings(method):
    """falcon.md, section 4: released, the spectrum is that of the second hidden layer after ReLU
    and the argmax that of the raw output; corrected, the output is the embedding, no scores."""
    hidden, output = layers(method, images()[0].flatten(1))
    assert method.readings == ("corrected", "released")
    seen = method.describe(images()[0], "released")
    assert furthest([seen.embeddings, seen.scores], [hidden, output]) < 1e-9
    assert float(seen.embeddings.detach().min()) == 0
    seen = method.describe(images()[0])
    assert furthest([seen.features, seen.embeddings], [images()[0].flatten(1), output]) < 1e-9
    assert seen.scores is None
    assert math.prod(seen.embeddings.shape) == N * WIDTH
