"""How collapsed is a representation? Pure functions of arrays: numpy and scipy only.

Four kinds of collapse, each with the statistics that show it:

| collapse       | what happens                      | statistics                                |
|----------------|-----------------------------------|-------------------------------------------|
| representation | all samples on one point          | `feature_sd` -> 0, `effective_rank` = 0   |
| dimensional    | few directions carry the variance | `effective_rank`, `rankme` far below d    |
| cluster        | few codes are used                | `cluster_usage`: entropies, dead codes    |
| intracluster   | members of a cluster on one point | `intracluster_variance` -> 0              |

Every number goes with its ceiling (or floor), because n samples span at most n directions (n - 1
once centred) and occupy at most n codes: without the ceiling a small sample reads as a collapse.
The opposite error is caught too: what float32 rounding alone can scatter around a constant counts
as no variance, since noise is isotropic and would read as full rank. Thresholds are not decided
here; a study declares them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svd
from scipy.special import entr

FLOAT32_STEP = 2.0**-23
"""Relative step of float32: twice the error of rounding to it. Variation below it is rounding."""

RANKME_EPS = 1e-7
"""Added to every normalised singular value by RankMe (Garrido et al. 2023, for float32 data)."""

SOFT_SUM_TOLERANCE = 1e-3
"""How far a mean soft assignment may sum from 1: float32 softmax sums stay far inside."""


def finite_matrix(x: ArrayLike, name: str) -> NDArray[np.float64]:
    """`x` [n, d] as float64. ValueError (one line) if not a non-empty matrix of finite numbers."""
    matrix = np.asarray(x)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name}: expected a non-empty matrix [n, d], got shape {matrix.shape}")
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        bad = matrix.size - np.count_nonzero(finite)
        raise ValueError(
            f"{name}: {bad} of {matrix.size} values are not finite "
            f"(the first at row {row}, column {column})"
        )
    return matrix.astype(np.float64)


def label_vector(y: ArrayLike, name: str, n: int | None = None) -> NDArray[np.int64]:
    """`y` [n] as int64. ValueError (one line) if not a non-empty vector of n integers."""
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected a non-empty vector of integers, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if n is not None and len(labels) != n:
        raise ValueError(f"{name}: {len(labels)} entries for {n} rows")
    return labels.astype(np.int64)


def unit_rows(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of `x` [n, d] scaled to Euclidean length 1; a zero row has no direction and stays 0."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`x` [n, d] minus its column means, exactly 0 for a constant."""
    # The first row is taken off before the mean: the mean of equal numbers is rounded, so a
    # constant matrix would keep a residue, and with it a rank.
    shifted = x - x[0]
    return shifted - shifted.mean(axis=0)


def rounding_floor(x: NDArray[np.float64]) -> float:
    """Frobenius norm of the largest change that rounding `x` to float32 can make."""
    # Rounding x to float32 moves it by a matrix of Frobenius norm <= FLOAT32_STEP / 2 * |x|, which
    # bounds every singular value that rounding alone can create.
    return FLOAT32_STEP * float(np.linalg.norm(x))


def _entropy(weights: NDArray) -> float:
    """Entropy in nats of non-negative weights with a positive sum; 0 log 0 = 0."""
    return float(entr(weights / weights.sum()).sum())


def _effective_rank(singular: NDArray[np.float64], floor: float) -> float:
    kept = singular[singular > floor]
    return float(np.exp(_entropy(kept))) if kept.size else 0.0


def _participation_ratio(singular: NDArray[np.float64], floor: float) -> float:
    kept = singular[singular > floor]
    if not kept.size:
        return 0.0
    variances = (kept / kept[0]) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum())


def spectrum(x: ArrayLike) -> NDArray[np.float64]:
    """Singular values [min(n, d)] of the column-centred `x` [n, d], descending, in units of `x`.

    Not divided by sqrt(n). From the matrix itself: the Gram matrix would square the condition
    number and lose everything below 1e-8 of the largest value, the very tail the spectra show.
    Raises ValueError on values that are not finite.
    """
    return svd(centred(finite_matrix(x, "x")), compute_uv=False, check_finite=False)


def feature_sd(x: ArrayLike) -> float:
    """Spread of the directions of `x` [n, d]: sqrt(d) * root mean square over coordinates of the
    standard deviation (divisor n) of the L2-normalised rows.

    0: all rows point the same way (representation collapse). The ceiling is 1, reached when the
    unit rows average to zero, as isotropic directions do; equal to sqrt(1 - |mean unit row|^2) if
    no row is zero. The statistic of SimSiam (Chen and He 2021), scaled by sqrt(d).
    Blind to dimensional collapse: u and -u alone reach 1. Raises ValueError on non-finite values.
    """
    rows = centred(unit_rows(finite_matrix(x, "x")))
    return float(np.sqrt((rows**2).sum() / len(rows)))


def rankme(x: ArrayLike) -> float:
    """RankMe of `x` [n, d]: exp(-sum p log p), p = singular values / their sum + 1e-7.

    Of the UNCENTRED matrix, as in Garrido et al. 2023 (arXiv 2210.02885); ceiling min(n, d), which
    the added eps can overstep by about 1e-7 * min(n, d) of its value. A constant matrix that
    is not zero has RankMe 1, a zero matrix 0 by definition here: read it beside `effective_rank`.
    Raises ValueError on values that are not finite.
    """
    singular = svd(finite_matrix(x, "x"), compute_uv=False, check_finite=False)
    if singular[0] == 0.0:
        return 0.0
    return float(np.exp(entr(singular / singular.sum() + RANKME_EPS).sum()))


def effective_rank(x: ArrayLike) -> float:
    """Effective rank (Roy and Vetterli 2007) of the CENTRED `x` [n, d]: exp of the entropy of the
    normalised singular values; ceiling min(n - 1, d).

    Exactly 0 where nothing varies, that is where no singular value exceeds what rounding `x` to
    float32 can create; values under that floor are left out. Raises ValueError on values that are
    not finite.
    """
    matrix = finite_matrix(x, "x")
    return _effective_rank(spectrum(matrix), rounding_floor(matrix))


def participation_ratio(x: ArrayLike) -> float:
    """(sum of variances)^2 / sum of squared variances along the principal axes of `x` [n, d].

    Centred, ceiling min(n - 1, d), 0 where nothing varies (floor as in `effective_rank`). Weighs
    the leading directions more than the effective rank. Raises ValueError on non-finite values.
    """
    matrix = finite_matrix(x, "x")
    return _participation_ratio(spectrum(matrix), rounding_floor(matrix))


def intracluster_variance(x: ArrayLike, labels: ArrayLike) -> float:
    """Share of the variance of the L2-normalised rows of `x` [n, d] that lies within clusters.

    Sum of squared distances to the own cluster's mean / to the overall mean, in [0, 1]; clusters
    are the distinct values of `labels` [n] (integers), weighed by their size. 0: every cluster on
    one point. Labels without meaning give (n - k) / (n - 1) for k occupied clusters on average,
    so a large k lowers it by itself. 0 also where nothing varies (to float32 rounding): a constant
    must not read as spread out. Raises ValueError on non-finite values or labels of another length.
    """
    rows = unit_rows(finite_matrix(x, "x"))
    _, member, size = np.unique(
        label_vector(labels, "labels", len(rows)), return_inverse=True, return_counts=True
    )
    rows = centred(rows)
    total = (rows**2).sum()
    if total <= len(rows) * FLOAT32_STEP**2:
        return 0.0
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    means = np.add.reduceat(rows[order], starts, axis=0) / size[:, None]
    return float(((rows - means[member]) ** 2).sum() / total)


def cluster_usage(codes: ArrayLike | None, mean_soft: ArrayLike | None, c: int) -> dict:
    """How evenly the c codes of a dictionary are used. Entropies in nats.

    codes: [n] integers in [0, c), the hard assignment, or None. mean_soft: [c], the mean of the
    soft assignments over samples, or None. Returns "c" and, with `codes`: "n"; "usage_entropy"
    with "_ceiling" log(min(n, c)) and "_ratio" to it; "occupied" with "_ceiling" min(n, c) and
    "_random", the expectation under uniformly random codes c (1 - (1 - 1/c)^n); "dead" (codes
    never chosen) with "_floor" max(0, c - n), and both again as "dead_share", of c. With
    `mean_soft`: "soft_entropy" with "_ceiling" log(c) and "_ratio". Raises ValueError on
    c < 2, n < 2, codes out of range, and on a mean_soft that is no distribution.
    """
    if c < 2:
        raise ValueError(f"c: a dictionary needs at least 2 codes, got {c}")
    report: dict[str, float | int] = {"c": int(c)}
    if codes is not None:
        codes = label_vector(codes, "codes")
        n = len(codes)
        if n < 2:
            raise ValueError("codes: at least 2 samples are needed, got 1")
        if codes.min() < 0 or codes.max() >= c:
            raise ValueError(f"codes: must lie in [0, {c}), got {codes.min()} to {codes.max()}")
        counts = np.bincount(codes, minlength=c)
        occupied, possible = int(np.count_nonzero(counts)), min(n, c)
        entropy, ceiling = _entropy(counts), float(np.log(possible))
        report |= {
            "n": n,
            "usage_entropy": entropy,
            "usage_entropy_ceiling": ceiling,
            "usage_entropy_ratio": entropy / ceiling,
            "occupied": occupied,
            "occupied_ceiling": possible,
            "occupied_random": float(-c * np.expm1(n * np.log1p(-1.0 / c))),
            "dead": c - occupied,
            "dead_floor": c - possible,
            "dead_share": (c - occupied) / c,
            "dead_share_floor": (c - possible) / c,
        }
    if mean_soft is not None:
        soft = np.asarray(mean_soft, dtype=np.float64)
        if soft.shape != (c,):
            raise ValueError(f"mean_soft: expected shape ({c},), got {soft.shape}")
        if not np.isfinite(soft).all():
            raise ValueError("mean_soft: contains values that are not finite")
        if soft.min() < 0 or abs(soft.sum() - 1.0) > SOFT_SUM_TOLERANCE:
            raise ValueError(
                f"mean_soft: expected a distribution, got minimum {soft.min():.3g} "
                f"and sum {soft.sum():.6g}"
            )
        entropy, ceiling = _entropy(soft), float(np.log(c))
        report |= {
            "soft_entropy": entropy,
            "soft_entropy_ceiling": ceiling,
            "soft_entropy_ratio": entropy / ceiling,
        }
    return report


def _layer_report(
    x: ArrayLike,
    name: str,
    labels: ArrayLike | None,
    codes: ArrayLike | None,
    singular: NDArray[np.float64] | None,
) -> dict[str, float | int]:
    matrix = finite_matrix(x, name)
    n, d = matrix.shape
    singular = spectrum(matrix) if singular is None else singular
    floor = rounding_floor(matrix)
    rank = _effective_rank(singular, floor)
    report: dict[str, float | int] = {
        "n": n,
        "d": d,
        "constant": int(rank == 0.0),
        "feature_sd": feature_sd(matrix),
        "feature_sd_ceiling": 1.0,
        "rankme": rankme(matrix),
        "rankme_ceiling": min(n, d),
        "effective_rank": rank,
        "effective_rank_ceiling": min(n - 1, d),
        "participation_ratio": _participation_ratio(singular, floor),
        "participation_ratio_ceiling": min(n - 1, d),
    }
    for key, groups in (("intraclass_variance", labels), ("intracluster_variance", codes)):
        if groups is not None:
            members = label_vector(groups, "labels" if groups is labels else "codes", n)
            k = len(np.unique(members))
            report[key] = intracluster_variance(matrix, members)
            report[f"{key}_ceiling"] = 1.0
            # Where the ratio lands if the grouping means nothing; n = 1 has no spread at all.
            report[f"{key}_chance"] = (n - k) / (n - 1) if n > 1 else 0.0
            report[f"{key}_groups"] = k
    return {f"{name}/{key}": value for key, value in report.items()}


def collapse_report(
    features: ArrayLike,
    embeddings: ArrayLike | None,
    codes: ArrayLike | None = None,
    mean_soft: ArrayLike | None = None,
    c: int | None = None,
    labels: ArrayLike | None = None,
    spectra: Mapping[str, NDArray[np.float64]] | None = None,
) -> dict[str, float | int]:
    """All statistics of this module for backbone features and embeddings of the same n samples.

    features [n, f]; embeddings [n, d] or None; codes [n], mean_soft [c] and c as in
    `cluster_usage`, None for a method without scores; labels [n] of the classes or None; spectra:
    the `spectrum` of each layer where it is known. Returns a flat dictionary. Per layer
    ("features/", "embeddings/"): "n", "d", "constant" (1: nothing varies), "feature_sd", "rankme",
    "effective_rank", "participation_ratio", each with "_ceiling"; with labels
    "intraclass_variance", with codes "intracluster_variance", each with "_ceiling", "_chance"
    (expected for a meaningless grouping) and "_groups" (occupied). With c: the keys of
    `cluster_usage` under "codes/". Raises ValueError on non-finite values, on lengths that differ,
    and on codes or mean_soft without c.
    """
    if c is None and (codes is not None or mean_soft is not None):
        raise ValueError("c: the size of the dictionary is needed with codes or mean_soft")
    if embeddings is not None and len(embeddings) != len(features):
        raise ValueError(f"embeddings: {len(embeddings)} rows for {len(features)} of features")
    spectra = spectra or {}
    report = _layer_report(features, "features", labels, codes, spectra.get("features"))
    if embeddings is not None:
        report |= _layer_report(embeddings, "embeddings", labels, codes, spectra.get("embeddings"))
    if codes is not None or mean_soft is not None:
        usage = cluster_usage(codes, mean_soft, c)
        report |= {f"codes/{key}": value for key, value in usage.items()}
    return report
