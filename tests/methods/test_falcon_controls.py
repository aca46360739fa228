"""FALCON broken on purpose: what the options `prior_weight` and `batch_norm` change, and nothing
else. Formulas are those of falcon.md, section 1, written out here."""

import pytest
import torch
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.falcon import Falcon, Options, falcon_loss

N, F, WIDTH, CODES = 6, 4, 5, 9
NOW = Progress(seed=0, epoch=0, step=0, total_steps=1)


def method(**changes):
    backbone = nn.Identity()
    backbone.features = F
    torch.manual_seed(1)
    return Falcon(backbone, Options(codes=CODES, embedding=WIDTH, **changes), Setting(N, 50, 3))


def views():
    draws = torch.Generator().manual_seed(2)
    return [torch.randn(N, F, generator=draws).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_weight_multiplies_the_prior_term_alone(weight, chunk):
    built, z = method(prior_weight=weight, chunk=chunk), views()
    terms = built.losses(Encoded(z, []), NOW)
    first, second = (built.head.scores(built.head.embed(each)).double() for each in z)
    p, q = first.softmax(1), second.softmax(1)
    invariance = -(p * q.log()).sum(1).mean()
    prior = -p.mean(0).log().mean()
    torch.testing.assert_close(terms["invariance"].double(), invariance, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["prior"].double(), weight * prior, rtol=1e-5, atol=0)
    ours = torch.autograd.grad(sum(terms.values()), z)
    theirs = torch.autograd.grad(invariance + weight * prior, z)
    for a, b in zip(ours, theirs, strict=True):
        assert float(b.abs().max()) > 1e-2
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "tanh"])
def test_without_batch_norm_the_linear_layer_is_normalised_as_it_is(norm):
    head, z = method(batch_norm=False, norm=norm).head, views()[0]
    line = z @ head.linear.weight.T + head.linear.bias
    length = line.square().sum(1, keepdim=True).sqrt()
    expected = line.tanh() if norm == "tanh" else line / length * (WIDTH / N) ** 0.5
    torch.testing.assert_close(head.embed(z), expected)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias", "bits"}


def test_where_all_images_share_a_point_the_prior_parts_none_of_them():
    """Its gradient to the scores is (p - 1/c) / n in every row: all move together."""
    row = torch.randn(CODES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    scores = row.repeat(N, 1).requires_grad_()
    (slope,) = torch.autograd.grad(
        falcon_loss(scores, scores.detach(), prior="forward", symmetric=False)["prior"], scores
    )
    torch.testing.assert_close(slope, ((row.softmax(0) - 1 / CODES) / N).repeat(N, 1))
