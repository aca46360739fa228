"""Noise, mix, interpolate, extrapolate and their K samples against their definitions in
feature-augmentation.md, section 2: closed forms of the drawn weights, brute force for the rest."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from peregrine.methods.base import Progress
from peregrine.methods.feature_augmentation import (
    FeatureQueue,
    beta,
    extrapolate,
    interpolate,
    mask,
    mix,
    noise,
)

QUEUE = FeatureQueue(40, 6, seed=3)


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(step, seed=0, epoch=0):
    return Progress(seed, epoch, step, 100).generator(torch.device("cpu"))


OPERATORS = {
    "mask": lambda z, draws, k: mask(z, 0.3, draws, k),
    "noise": lambda z, draws, k: noise(z, 0.5, draws, k),
    "mix": lambda z, draws, k: mix(z, 1.0, draws, k),
    "mix, a = 0.7": lambda z, draws, k: mix(z, 0.7, draws, k),
    "interpolate": lambda z, draws, k: interpolate(z, QUEUE, draws, k),
    "extrapolate": lambda z, draws, k: extrapolate(z, rows(*z.shape, seed=8), draws, k),
}


def unit(x):
    return x / math.sqrt(float((x * x).sum()))


# What all have in common -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_makes_k_different_unit_vectors_whatever_the_length_of_z(name):
    z = rows(9, 6)
    out = OPERATORS[name](z, at(0), 4)
    assert out.shape == (4, 9, 6)
    assert torch.allclose(out.norm(dim=-1), torch.ones(4, 9, dtype=out.dtype), atol=1e-6)
    for a in range(4):
        for b in range(a):
            # Of a masked row two samples may coincide, of all rows together they do not.
            assert float((out[a] - out[b]).abs().max()) > 1e-2
    lengths = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(OPERATORS[name](z * lengths, at(0), 4), out, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_draws_come_from_the_step_alone(name):
    z, operator = rows(9, 6), OPERATORS[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = operator(z, at(5), 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(operator(z, at(5), 2), first)
    for other in (at(6), at(5, seed=1), at(5, epoch=1)):
        assert float((operator(z, other, 2) - first).abs().max()) > 1e-2
    draws = at(5)  # the second view of a step has draws of its own
    assert not torch.equal(operator(z, draws, 2), operator(z, draws, 2))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_gradient_is_that_of_fixed_draws(name):
    """Central differences; the spread of the batch, neighbours and the other view are held."""
    z, weights, h = rows(4, 6), rows(12, 6, seed=9).view(3, 4, 6), 1e-5
    leaf = z.clone().requires_grad_()
    (OPERATORS[name](leaf, at(1), 3) * weights).sum().backward()
    sd = unit_rows(z).std(dim=0, correction=0)
    for i, j in ((0, 0), (1, 3), (3, 5)):
        ends = []
        for sign in (1, -1):
            x = z.clone()
            x[i, j] += sign * h
            if name == "noise":  # its sd is a constant: undo its change
                drawn = torch.randn((3, 4, 6), generator=at(1))
                out = unit_rows(unit_rows(x) + 0.5 * sd * drawn)
            else:
                out = OPERATORS[name](x, at(1), 3)
            ends.append(float((out * weights).sum()))
        assert float(leaf.grad[i, j]) == pytest.approx((ends[0] - ends[1]) / 2 / h, abs=1e-6)


def unit_rows(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


# Noise -------------------------------------------------------------------------------------------


def test_noise_has_the_asked_share_of_the_spread_of_each_coordinate():
    """Rows near one axis: a coordinate over the first is, to first order, itself plus its noise."""
    n, share = 20_000, 0.1
    spread = torch.tensor([0.0, 0.01, 0.03, 0.05], dtype=torch.float64)
    z = torch.tensor([1.0, 0.02, 0.0, -0.01], dtype=torch.float64) + spread * rows(n, 4)
    out = noise(z * 7, share, at(0))[0]
    added = out[:, 1:] / out[:, :1] - z[:, 1:] / z[:, :1]
    for sd, column in zip(spread[1:], added.T, strict=True):
        # sd of the estimate: 1 / sqrt(2 n) = 0.5 %; what the first order leaves out: 0.5 %.
        assert float(column.std()) == pytest.approx(share * float(sd), rel=0.03)
        assert abs(float(column.mean())) < 5 * share * float(sd) / math.sqrt(n)
        assert stats.kstest(column.numpy() / float(column.std()), "norm").pvalue > 1e-4


def test_equal_rows_have_no_spread_and_get_no_noise():
    z = torch.ones(5, 3, dtype=torch.float64)
    assert torch.allclose(noise(z, 0.5, at(0)), z / math.sqrt(3), atol=1e-7)


# Mix ---------------------------------------------------------------------------------------------

# Mean of max(b, 1 - b) = 1/2 + E|b - 1/2| for b of Beta(a, a): 1/4 more for the uniform, 3/16 for
# 6 b (1 - b), and 1/pi for the arcsine law.
LARGER = {1.0: 0.75, 2.0: 0.6875, 0.5: 0.5 + 1 / math.pi}


@pytest.mark.parametrize("alpha", LARGER)
def test_mix_keeps_the_larger_part_and_takes_another_row(alpha):
    n, k = 8, 2500
    z = torch.eye(n, dtype=torch.float64) * torch.arange(1, n + 1)[:, None]  # orthogonal rows
    out = mix(z, alpha, at(0), k)
    own = out[:, torch.arange(n), torch.arange(n)]
    others = out.clone()
    others[:, torch.arange(n), torch.arange(n)] = 0
    assert int((others != 0).sum(-1).max()) == 1  # one partner, never the row itself
    # out = (w e_i + (1 - w) e_j) / length, so the coordinates stand like the weights.
    weight = own / (own + others.sum(-1))
    assert float(weight.min()) >= 0.5
    assert float(weight.max()) <= 1
    assert float(weight.mean()) == pytest.approx(LARGER[alpha], abs=5 * 0.18 / math.sqrt(n * k))
    # Every other row is the partner equally often: 56 ordered pairs, chi-square.
    pairs = torch.zeros(n, n)
    for i in range(n):
        pairs[i] = (others[:, i] != 0).sum(0)
    counts = pairs[~torch.eye(n, dtype=torch.bool)].numpy()
    assert stats.chisquare(counts, np.full(56, counts.sum() / 56)).pvalue > 1e-4


def test_mix_is_the_convex_mixture_of_unit_rows():
    z, k = rows(5, 3) * 4, 50
    out = mix(z, 1.0, at(2), k)
    for sample in out:
        for i in range(5):
            # Some w in [1/2, 1] and some other row explain it.
            misfits = []
            for j in set(range(5)) - {i}:
                u, v = unit(z[i]), unit(z[j])
                # The part of the sample across u is (1 - w) times that of v, before normalising.
                across = sample[i] - (sample[i] @ u) * u
                side = v - (v @ u) * u
                ratio = (across @ side) / (side @ side)  # (1 - w) / length
                kept = (sample[i] @ u) - ratio * (v @ u)  # w / length
                w = kept / (kept + ratio)
                if 0.5 - 1e-6 <= float(w) <= 1:
                    misfits.append(float((unit(w * u + (1 - w) * v) - sample[i]).abs().max()))
            assert min(misfits) < 1e-6


@pytest.mark.parametrize("a", [1.0, 2.0, 0.5, 3.7])
def test_beta_has_its_distribution(a):
    drawn = beta(a, (20_000,), at(3)).double().numpy()
    assert stats.kstest(drawn, stats.beta(a, a).cdf).pvalue > 1e-3
    # A neighbouring shape is told apart by the same test.
    assert stats.kstest(drawn, stats.beta(1.25 * a, 1.25 * a).cdf).pvalue < 1e-3
    assert beta(a, (2, 3, 1), at(3)).shape == (2, 3, 1)
    assert beta(a, (2,), at(3)).dtype == torch.float32


# Interpolate and extrapolate ---------------------------------------------------------------------


def test_interpolate_goes_up_to_half_way_to_the_nearest_neighbour():
    queue = FeatureQueue(2, 3, seed=0)
    queue.push(torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]]))
    z = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64).expand(400, 3)
    out = interpolate(z, queue, at(0), 10).reshape(-1, 3)
    assert float(out[:, 2].abs().max()) == 0
    # ((1 - w) + 0.6 w, 0.8 w) up to length: second over first is 0.8 w / (1 - 0.4 w).
    ratio = out[:, 1] / out[:, 0]
    w = (ratio / (0.8 + 0.4 * ratio)).numpy()
    assert w.min() >= -1e-6
    assert w.max() < 0.5
    assert stats.kstest(w, stats.uniform(0, 0.5).cdf).pvalue > 1e-3


def test_extrapolate_leaves_the_other_view_behind():
    z = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(400, 2)
    other = torch.tensor([[0.0, 5.0]], dtype=torch.float64).expand(400, 2).clone().requires_grad_()
    leaf = z.clone().requires_grad_()
    out = extrapolate(leaf, other, at(0), 10)
    # (lambda, 1 - lambda) up to length, whose sum is 1 / length.
    weight = (out[..., 0] / out.sum(-1)).detach().flatten().numpy()
    assert weight.min() > 1
    assert weight.max() < 2
    assert stats.kstest(weight - 1, stats.beta(2, 2).cdf).pvalue > 1e-3
    out[..., 1].sum().backward()
    assert other.grad is None  # a constant, as a neighbour is
    assert float(leaf.grad.abs().max()) > 1e-3


def test_samples_of_a_row_are_independent_of_one_another():
    """Correlation of the first two samples' weights over 4,000 rows, sd 1 / sqrt(4000)."""
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4000, 2)
    other = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(4000, 2)
    out = extrapolate(z, other, at(0), 2)
    weight = out[..., 0] / out.sum(-1)
    assert abs(float(torch.corrcoef(weight)[0, 1])) < 5 / math.sqrt(4000)
