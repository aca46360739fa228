"""Intervals, tests and cell verdicts over a handful of seeds. Numpy and scipy only.

Everything is small-sample: t intervals, pairs of equal seeds, exact permutations. Values are in
the unit of their metric; accuracies and scores are shares (0 to 1). How often each rule errs is
simulated in tests/reporting/test_statistics.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

ALPHA = 0.05
"""Error rate of every interval and test."""

EPS = 0.005
"""Largest difference from a published share that counts as none: half a percentage point. For a
metric printed in percent and for one printed from 0 to 1 it is the same number."""

POWER = 0.8
"""Chance of being found that makes an effect one that 'these seeds could have shown'."""

EXACT_ITEMS = 8
"""Kendall's permutations are enumerated up to this many items (8! = 40,320), sampled above."""

SAMPLED_PERMUTATIONS = 99_999


@dataclass(frozen=True)
class Estimate:
    """Mean over n seeds, standard deviation (divisor n - 1) and t interval; None if undefined."""

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: ArrayLike, level: float = 1 - ALPHA) -> Estimate:
    """Mean and t interval of `values` [k]; one value has a mean only, none has nothing."""
    data = np.asarray(values, dtype=float)
    k = len(data)
    if k == 0:
        return Estimate(0)
    mean = float(data.mean())
    if k == 1:
        return Estimate(1, mean)
    sd = float(data.std(ddof=1))
    half = _quantile(level, k) * sd / math.sqrt(k)
    return Estimate(k, mean, sd, mean - half, mean + half)


def prediction_half_width(sd: float, k: int, n: int = 1, level: float = 1 - ALPHA) -> float:
    """Half-width around the mean of k seeds in which the mean of n other ones is expected.

    t(k - 1) * sd * sqrt(1/k + 1/n), sd from our k seeds: the published one is hardly ever known.
    """
    return _quantile(level, k) * sd * math.sqrt(1 / k + 1 / n)


def _quantile(level: float, k: int) -> float:
    return float(stats.t.ppf((1 + level) / 2, k - 1))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """a - b of every seed that both have, by seed. Of two results of it: their interaction."""
    return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def pooled(parts: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean over `parts`, seed by seed, of the seeds that all of them have."""
    shared = set.intersection(*(set(part) for part in parts))
    return {seed: float(np.mean([part[seed] for part in parts])) for seed in sorted(shared)}


def p_value(values: ArrayLike, null: float = 0.0) -> float:
    """Two-sided p of a one-sample t test of `values` [k >= 2] against `null`."""
    data = np.asarray(values, dtype=float)
    error = data.std(ddof=1) / math.sqrt(len(data))
    distance = abs(float(data.mean()) - null)
    if error == 0:  # equal values: certain, unless they equal the null
        return 0.0 if distance else 1.0
    return float(2 * stats.t.sf(distance / error, len(data) - 1))


def equivalence_p(values: ArrayLike, margin: float) -> float:
    """p of the hypothesis that the mean of `values` [k >= 2] lies within +-margin, or beyond it.

    Mean inside: two one-sided tests (Schuirmann 1987), the larger p, that of the nearer end. Mean
    outside: the two-sided p against that end, as of any other threshold.
    """
    mean = float(np.mean(values))
    p = p_value(values, math.copysign(margin, mean))
    return p / 2 if abs(mean) < margin else p


def equal_within(sd: float, k: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest margin within which two one-sided tests over k seeds find no effect, with `power`.

    In the unit of `sd`, for a true mean of 0, where they find |mean| + t s / sqrt(k) < margin.
    """
    share = (np.arange(2000) + 0.5) / 2000
    s = np.sqrt(stats.chi2.ppf(share, k - 1) / (k - 1))  # of the sample, as a share of sd
    bound = float(stats.t.ppf(1 - alpha, k - 1)) * s

    def lacking(margin: float) -> float:
        return float(2 * stats.norm.cdf(np.maximum(margin - bound, 0)).mean() - 1) - power

    return optimize.brentq(lacking, 0.0, bound.max() + 10) * sd / math.sqrt(k)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the given order."""
    m, running, out = len(p_values), 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, (m - rank) * p_values[index])
        out[index] = min(1.0, running)
    return out


def detectable(sd: float, k: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true effect that a two-sided t test at `alpha` over k seeds finds with `power`.

    In the unit of `sd`, from the noncentral t distribution with k - 1 degrees of freedom.
    """
    critical = float(stats.t.ppf(1 - alpha / 2, k - 1))
    shift = optimize.brentq(
        lambda delta: stats.nct.sf(critical, k - 1, delta) - power, 0.0, 4 * critical + 10
    )
    return float(shift) * sd / math.sqrt(k)


def sd_range(k: int, level: float = 1 - ALPHA) -> tuple[float, float]:
    """Interval of the true over the measured standard deviation of k >= 2 normal values."""
    ends = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], k - 1)
    return tuple(float(math.sqrt((k - 1) / end)) for end in ends)


def log_slopes(series: Mapping[float, Mapping[int, float]]) -> dict[int, float]:
    """Least-squares slope per tenfold increase of the option, for each seed that has every level.

    series: option value (> 0) -> seed -> metric, at least two levels. Each seed is its own block:
    a t interval over these slopes needs no model of how seeds differ.
    """
    levels = sorted(series)
    x = np.log10(levels)
    x = x - x.mean()
    shared = set.intersection(*(set(series[level]) for level in levels))
    return {
        seed: float(x @ [series[level][seed] for level in levels] / (x @ x))
        for seed in sorted(shared)
    }


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b of two orderings [m], 1 the same, -1 the reverse; NaN where one is constant.

    Raises ValueError on lengths that differ or on fewer than 2 items.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"expected two vectors of one length >= 2, got {a.shape} and {b.shape}")
    return float(stats.kendalltau(a, b).statistic)


def kendall_p(x: ArrayLike, y: ArrayLike) -> float:
    """Two-sided p of tau-b: the share of permutations with one as far from 0, ties kept.

    Exact up to 8 items; above, (1 + hits) / (1 + draws) of 99,999 draws of a fixed generator. With
    m items it is never below 2 / m!, .083 with 4.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(a)
    first, second = np.triu_indices(n, 1)
    signs = np.sign(a[first] - a[second]).astype(np.int16)
    other = np.sign(b[:, None] - b[None, :]).astype(np.int16)
    observed = int(signs @ other[first, second])
    if n <= EXACT_ITEMS:
        orders = np.array(list(permutations(range(n))))
        extra = 0
    else:
        orders = np.random.default_rng(0).permuted(
            np.tile(np.arange(n), (SAMPLED_PERMUTATIONS, 1)), axis=1
        )
        extra = 1
    score = sum(  # pair by pair, so that memory stays at one number an order
        sign * other[orders[:, i], orders[:, j]].astype(np.int64)
        for i, j, sign in zip(first, second, signs, strict=True)
    )
    hits = np.count_nonzero(np.abs(score) >= abs(observed))
    return (hits + extra) / (len(orders) + extra)


def kendall_bootstrap(
    reference: ArrayLike,
    values: NDArray,
    *,
    draws: int = 2000,
    level: float = 1 - ALPHA,
    digits: int = 6,
) -> tuple[float, float]:
    """Percentile interval of tau-b between `reference` [m] and the mean of `values` [seeds, m].

    Seeds are drawn with replacement by a fixed generator. With three seeds there are ten different
    draws: a rough answer, and `kendall_p` says nothing about seeds at all. Means are compared at
    `digits` decimals: rounding must not break a tie.
    """
    k = len(values)
    drawn = np.sort(np.random.default_rng(0).integers(k, size=(draws, k)), axis=1)
    different, counts = np.unique(drawn, axis=0, return_counts=True)
    means = [values[seeds].mean(axis=0).round(digits) for seeds in different]
    taus = np.repeat([kendall(reference, mean) for mean in means], counts)
    low, high = np.nanquantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


Agreement = Literal[
    "reproduced",
    "reproduced (printed value)",
    "consistent",
    "above published",
    "below published",
    "inconclusive",
    "other set-up",
    "failed",
    "not run",
]


@dataclass(frozen=True)
class CellVerdict:
    """What a cell says about its published value, and the smallest bias it could have shown."""

    agreement: Agreement
    assumed: bool = False
    detectable: float | None = None

    def __str__(self) -> str:
        return self.agreement + (" under declared assumptions" if self.assumed else "")


def cell_verdict(
    values: ArrayLike,
    published: float,
    *,
    half_width: float = 0.0,
    n: int = 1,
    eps: float = EPS,
    same_setup: bool = True,
    assumed: bool = False,
    failed: int = 0,
) -> CellVerdict:
    """Does the mean of `values` [k], one a seed, reproduce `published`, the mean of n runs?

    In this order, with d the difference, tol = eps + half_width and our sd standing for both sides:
    reproduced: the 90 % interval of d, published noise included, lies within +-tol (two one-sided
    tests at 5 %); reproduced (printed value): the 90 % interval of our mean lies within tol of the
    printed number; consistent: inside the 95 % prediction interval and |d| <= tol, but power lacks
    (`detectable`: the smallest bias that this interval would have caught with 80 % power);
    above / below published: outside that interval and |d| > tol; else inconclusive.

    Args:
        values, published: in one unit, shares for accuracies.
        half_width: rounding half-width of the printed number; it also widens the prediction.
        n: runs behind the published number, 1 where unknown.
        eps: tolerance, declared before any result.
        same_setup: False where data, epochs or variant differ from the paper's.
        assumed: a setting of the cell is our own choice.
        failed: seeds that collapsed or ended in NaN, whether they left a value or not; the mean is
            then not of what was published, and the verdict is inconclusive, or failed where no
            seed has a value.
    """
    found = estimate(values, level=1 - 2 * ALPHA)
    if found.n == 0:
        return CellVerdict("failed" if failed else "not run")
    if not same_setup:
        return CellVerdict("other set-up")
    if found.n == 1 or failed:
        return CellVerdict("inconclusive", assumed)
    k, distance, tolerance = found.n, abs(found.mean - published), eps + half_width
    both_noisy = prediction_half_width(found.sd, k, n, level=1 - 2 * ALPHA)
    predicted = prediction_half_width(found.sd, k, n) + half_width
    if distance + both_noisy <= tolerance:
        return CellVerdict("reproduced", assumed)
    if distance + (found.high - found.mean) <= tolerance:
        return CellVerdict("reproduced (printed value)", assumed)
    if distance <= predicted and distance <= tolerance:
        # A difference of k seeds and n runs has the error sd sqrt(1/k + 1/n), not sd sqrt(1/k).
        bias = detectable(found.sd * math.sqrt(1 + k / n), k) + half_width
        return CellVerdict("consistent", assumed, bias)
    if distance > predicted and distance > tolerance:
        side = "above published" if found.mean > published else "below published"
        return CellVerdict(side, assumed)
    return CellVerdict("inconclusive", assumed)
