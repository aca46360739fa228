"""Entropy of Gaussian mixtures fitted to a representation: numpy and scipy only.

How far below a Gaussian cloud of the same covariance does a representation lie? A mixture of k
Gaussians with diagonal covariances is fitted, and its entropy taken. The more the images lie in
tight clusters, the lower it is; a mixture with many components fits chance too, so that the same
fit to a sample of an isotropic Gaussian stands beside it.

EM is written out here because scikit-learn's takes three times as long at demo scale, and its
import as long as all other diagnostics of a run; tests hold each step against it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr
from threadpoolctl import threadpool_limits

from peregrine.diagnostics.collapse import centred, finite_matrix, rounding_floor

VARIANCE_FLOOR = 1e-6
"""Added to every variance of a component, as in the released code (scikit-learn's reg_covar)."""

TOLERANCE = 1e-3
"""EM ends when the log-likelihood of an image rises by less, in nats per dimension."""

STEPS = 100
"""EM ends at the latest after so many steps."""

EMPTY = 1e-12
"""Images that a component has at least, so that one without any divides nothing by zero."""

GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)
"""Entropy of a normal distribution of variance 1, in nats: the most that variance 1 allows."""


def fitting(sizes: Sequence[int], n: int) -> list[int]:
    """The numbers of components with at least three images each: fewer have no variance to fit."""
    return [k for k in sizes if 3 * k <= n]


def sampled(n: int, most: int, seed: int) -> NDArray[np.int64] | slice:
    """A fixed random sample of `most` of n rows, in order; all of them where they are no more."""
    if n <= most:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def mixture_entropies(x: NDArray[np.float64], sizes: Sequence[int], seed: int) -> dict[int, float]:
    """Number k of components -> entropy in nats of k diagonal Gaussians fitted to `x` [n, d] by EM.

    By the chain rule, H = sum_k w_k H_k + I: entropies of the components, H_k = 1/2 sum_j
    ln(2 pi e var_kj), plus what an image tells about its component, I = H(w) - mean entropy of the
    responsibilities, between 0 and ln k. Exact for k = 1 and for clusters that do not overlap. On
    one thread, so that equal input gives equal bytes; a size says the same whatever the others.
    """
    with threadpool_limits(1):
        draws = np.random.default_rng(seed)
        return {k: _fitted(x, k, nearest) for k, nearest in _starts(x, sizes, draws)}


def _fitted(x: NDArray[np.float64], k: int, nearest: NDArray[np.int64]) -> float:
    """Entropy of the mixture at which EM arrives from the clusters `nearest` [n], in [0, k)."""
    shares = np.zeros((len(x), k))
    shares[np.arange(len(x)), nearest] = 1.0
    before = -np.inf
    for _ in range(STEPS):
        weights, means, variances = maximise(x, shares)
        shares, now = responsibilities(x, weights, means, variances)
        if now - before < TOLERANCE * x.shape[1]:
            break
        before = now
    within = weights @ (GAUSSIAN + 0.5 * np.log(variances)).sum(axis=1)
    return float(within + entr(weights).sum() - entr(shares).sum(axis=1).mean())


def _starts(
    x: NDArray[np.float64], sizes: Sequence[int], draws: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(k, nearest [n] of k rows drawn by k-means++), by size: a larger one draws on."""
    nearest = np.zeros(len(x), dtype=np.int64)
    squares = (x**2).sum(axis=1)
    distance = np.full(len(x), np.inf)
    pick = int(draws.integers(len(x)))
    for j in range(max(sizes, default=0)):
        new = np.maximum(squares - 2 * x @ x[pick] + squares[pick], 0.0)
        nearest[new < distance] = j
        distance = np.minimum(distance, new)
        if j + 1 in sizes:
            yield j + 1, nearest.copy()
        mass = np.cumsum(distance)
        pick = min(int(np.searchsorted(mass, draws.random() * mass[-1], "right")), len(x) - 1)


def maximise(
    x: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(weights [k], means [k, d], variances [k, d]) of the components, given `shares` [n, k]."""
    weights = np.maximum(shares.sum(axis=0), EMPTY)
    means = shares.T @ x / weights[:, None]
    variances = np.maximum(shares.T @ x**2 / weights[:, None] - means**2, 0.0)
    return weights / weights.sum(), means, variances + VARIANCE_FLOOR


def responsibilities(
    x: NDArray[np.float64],
    weights: NDArray[np.float64],
    means: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float]:
    """(shares [n, k] of the components in every row, mean log-likelihood of a row in nats)."""
    logs = x @ (means / variances).T - 0.5 * x**2 @ (1 / variances).T
    logs += np.log(weights)
    logs -= 0.5 * (means**2 / variances + np.log(2 * math.pi * variances)).sum(axis=1)
    top = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(axis=1, keepdims=True)
    return shares / total, float((top + np.log(total)).mean())


@lru_cache(maxsize=8)
def _by_chance(n: int, rank: int, sizes: tuple[int, ...], seed: int) -> dict[int, float]:
    """Entropies relative to its own Gaussian, in nats, of a sample of an isotropic Gaussian."""
    x = np.random.default_rng([seed, n, rank]).standard_normal((n, rank))
    axes, variances = principal_axes(x)
    gaussian = gaussian_entropy(variances)
    return {k: entropy - gaussian for k, entropy in mixture_entropies(axes, sizes, seed).items()}


def gaussian_entropy(variances: NDArray[np.float64]) -> float:
    """Entropy in nats of independent normal coordinates with these variances (+ 1e-6)."""
    return float((GAUSSIAN + 0.5 * np.log(variances + VARIANCE_FLOOR)).sum())


def principal_axes(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(coordinates along the principal axes [n, d], their variances [d], largest first).

    Centred and multiplied by one number so that the total variance is d. Rotating makes the
    Gaussian of the same covariance a mixture of one component; standardising every coordinate
    would hide dimensional collapse. `x` must vary.
    """
    x = centred(x)
    x = x / np.sqrt((x**2).sum() / x.size)
    variances, axes = np.linalg.eigh(x.T @ x / len(x))
    return x @ axes[:, ::-1], np.maximum(variances[::-1], 0.0)


def mixture_report(
    x: ArrayLike, sizes: Sequence[int], *, sample: int, seed: int
) -> dict[str, float | int | list[int]]:
    """Entropy of mixtures of `x` [n, d] in the corrected reading, in nats per dimension.

    Centred, one scale for all coordinates (total variance d), the layer's own width, no padding.
    Returns "mixture_n" (images used: at most `sample`), "mixture_rank" (directions with more than
    1e-6 of the mean variance), "mixture_entropy_ceiling" = 1/2 ln(2 pi e), that of an isotropic
    Gaussian; "gaussian_entropy", of a Gaussian of the same covariance; and for every number k of
    components "mixture_entropy_k{k}", "mixture_relative_k{k}", the difference of the two - 0 for a
    Gaussian cloud, negative for clusters - and "mixture_chance_k{k}", the same for a sample of as
    many images from an isotropic Gaussian of that rank. "mixture_skipped" lists sizes above a third
    of the images. Where nothing varies (to float32 rounding) no entropy is defined, and none is
    there. Raises ValueError on values that are not finite.
    """
    x = finite_matrix(x, "x")
    rows = x[sampled(len(x), sample, seed)]
    n, d = rows.shape
    fit = fitting(sizes, n)
    report: dict[str, float | int | list[int]] = {
        "mixture_n": n,
        "mixture_skipped": [k for k in sizes if k not in fit],
    }
    if np.linalg.norm(centred(rows)) <= rounding_floor(rows):
        return report
    axes, variances = principal_axes(rows)
    kept = variances > VARIANCE_FLOOR
    rank = int(kept.sum())
    # A direction without variance adds the same to both entropies, whatever the mixture.
    flat = gaussian_entropy(variances[~kept])
    gaussian = gaussian_entropy(variances[kept])
    report |= {
        "mixture_rank": rank,
        "mixture_entropy_ceiling": GAUSSIAN,
        "gaussian_entropy": (gaussian + flat) / d,
    }
    chance = _by_chance(n, rank, tuple(fit), seed)
    for k, entropy in mixture_entropies(axes[:, kept], fit, seed).items():
        report |= {
            f"mixture_entropy_k{k}": (entropy + flat) / d,
            f"mixture_relative_k{k}": (entropy - gaussian) / d,
            f"mixture_chance_k{k}": chance[k] / d,
        }
    return report
