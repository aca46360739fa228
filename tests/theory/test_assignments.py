"""Constructions and minima of free assignments against formulas minimised in one variable."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from peregrine.theory.assignments import constructed, measure_assignments, terms
from peregrine.theory.minimise import minimise

EPS = 1e-12


def loss(logits, prior="forward", beta=1.0):
    return float(sum(terms(logits, prior, beta)))


def shared_equally(s, n, c, beta=1.0):
    """Forward loss where every sample has 1 - s on one code and s evenly on c/n - 1 others."""
    rest = c // n - 1
    entropy = -(1 - s) * math.log(1 - s) - s * math.log(s / rest)
    prior = -(n * math.log((1 - s) / n) + (c - n) * math.log(s / (n * rest))) / c
    return beta * entropy + prior


def carried(k, n, c, beta=1.0):
    """Forward loss where k samples spread over all codes that the n - k others leave."""
    m = (c - n + k) / k
    prior = -((n - k) * math.log(1 / n) + k * m * math.log(1 / (n * m))) / c
    return beta * k / n * math.log(m) + prior


@pytest.mark.parametrize("kind", ["one_hot", "spread", "equal_share", "carriers"])
def test_constructions_are_probabilities_with_disjoint_supports(kind):
    n, c, eps = 4, 24, 1e-3
    p = constructed(kind, n, c, eps, carriers=2).exp()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(n).double())
    used = p > 1.5 * eps
    assert used.sum(dim=0).max() == 1
    assert (
        used.sum(dim=1).tolist()
        == {
            "one_hot": [1, 1, 1, 1],
            "spread": [6, 6, 6, 6],
            "equal_share": [6, 6, 6, 6],
            "carriers": [11, 11, 1, 1],  # 24 - 2 codes for two samples
        }[kind]
    )
    assert float((p[~used] - eps).abs().max()) < 1e-15 if kind != "spread" else True


def test_constructions_cost_what_the_formulas_say():
    n, c = 8, 512
    for k in (1, 2, 3, 7):
        found = loss(constructed("carriers", n, c, EPS, carriers=k))
        assert found == pytest.approx(carried(k, n, c), abs=5e-3)  # parts differ by one code
    assert loss(constructed("carriers", n, c, EPS, carriers=2), beta=3.0) == pytest.approx(
        carried(2, n, c, 3.0), abs=1e-6
    )
    assert loss(constructed("equal_share", n, c, EPS)) == pytest.approx(
        shared_equally(0.5, n, c), abs=1e-6
    )
    for kind in ("one_hot", "spread", "equal_share"):
        assert loss(constructed(kind, n, c, EPS), "reverse") == pytest.approx(
            math.log(64), abs=1e-6
        )


def test_equal_shares_are_a_local_minimum_and_carriers_a_lower_one():
    n, c = 8, 512
    best = minimize_scalar(lambda s: shared_equally(s, n, c), bounds=(0.01, 0.9), method="bounded")
    few = min(range(1, 8), key=lambda k: carried(k, n, c))
    assert carried(few, n, c) < best.fun - 0.05
    draws = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(n, c, generator=draws, dtype=torch.float64)
    for kind, expected in (("equal_share", best.fun), ("carriers", carried(few, n, c))):
        start = constructed(kind, n, c, 1e-8, few) + noise
        found = minimise(lambda x: sum(terms(x, "forward", 1.0)), start, 400, 1e-8)
        assert found.converged
        assert found.loss == pytest.approx(expected, abs=2e-3)
    off = 1 - found.point.softmax(dim=1).amax(dim=1)
    assert int((off > 0.5).sum()) == few


def test_what_is_measured(tiny):
    sizes = tiny(betas=[1.0, 2.0], large_starts=2)
    lines = list(measure_assignments(sizes))
    table = {line[:-1]: line[-1] for line in lines}
    assert len(table) == len(lines)

    def value(start, metric, prior="forward", c=64, beta=1.0, stage="minimised"):
        return table[prior, 4, c, beta, start, stage, metric]

    one, spread = (value(s, "loss", stage="constructed") for s in ("one_hot", "spread"))
    same = value("both", "equal_at_beta", stage="constructed")
    # eps is tiny: entropy 0 or ln 16, prior by 4 of 64 codes in use, or all.
    assert one == pytest.approx((4 * math.log(4) - 60 * math.log(1e-8)) / 64, abs=1e-4)
    assert spread == pytest.approx(math.log(16) + math.log(64), abs=1e-4)
    assert same == pytest.approx((one - math.log(64)) / math.log(16), abs=1e-4)
    for c in (8, 16, 64):
        starts = ("equal_share", "carriers", "random-0")
        reached = [value(start, "loss", c=c) for start in starts]
        if c == 64:
            reached.append(value("random-1", "loss"))
        else:
            reached += [value(start, "loss", c=c) for start in ("one_hot", "spread")]
        assert value("lowest", "loss", c=c) == min(reached)
        assert value("lowest", "excess", "reverse", c=c) == pytest.approx(0, abs=1e-4)
        assert value("lowest", "loss", "reverse", c=c) == pytest.approx(math.log(c / 4), abs=1e-4)
    assert value("equal_share", "off_share_mean", beta=2.0) < value("equal_share", "off_share_mean")
    assert ("forward", 4, 16, 2.0, "lowest", "minimised", "loss") not in table
