"""Shape of a representation beyond collapse: decay of its spectrum, correlation of its coordinates,
blocks of its similarity matrix, alignment of views and uniformity. Numpy and scipy only.

| statistic        | perfect                                | collapsed | chance                |
|------------------|----------------------------------------|-----------|-----------------------|
| `alpha_req`      | near 1 (Agrawal et al. 2022); 0: flat  | large     | -                     |
| `offdiagonal`    | 0: H^T H is diagonal                   | 1         | 1 / (n - 1)           |
| `contrast`       | 1: H H^T is 1 in its blocks, 0 outside | 0         | 0                     |
| `alignment`      | 0: views of an image coincide          | 0         | unmatched views       |
| `uniformity`     | that of the uniform sphere             | 0         | -                     |

Alignment alone is perfect for a constant; the pairs of it are therefore always read beside its
chance level, and beside uniformity.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import hyp0f1

from peregrine.diagnostics.collapse import (
    FLOAT32_STEP,
    centred,
    finite_matrix,
    label_vector,
    rounding_floor,
    unit_rows,
)

ALPHA_RANKS = (4, 100)
"""First and last principal direction of the fit of alpha-ReQ. The paper gives no range; these are
the ranks that its released code fits (np.arange(3, 100) from 0), where so many vary."""

ALPHA_POINTS = 3
"""A slope through fewer points is no finding."""

HEAT = 2.0
"""t of the Gaussian potential exp(-t |u - v|^2) behind uniformity (Wang and Isola 2020)."""

ROWS = 1000
"""Rows of a similarity matrix made at a time."""


def alpha_req(singular: NDArray[np.float64], floor: float) -> tuple[float | None, int]:
    """(alpha, points of its fit): variance along principal direction j falls like j^-alpha.

    alpha-ReQ (Agrawal et al. 2022, arXiv 2202.05808): least squares of ln(variance) on ln j with
    weights 1/j (the released code's), over ranks 4 to 100 as far as singular values exceed `floor`.
    None with fewer than three such directions, so also for a constant: no decay is defined there.

    singular: descending singular values of the centred matrix, as `spectrum` gives them.
    """
    first, last = ALPHA_RANKS
    values = singular[first - 1 : last]
    values = values[values > floor]
    if len(values) < ALPHA_POINTS:
        return None, len(values)
    rank = np.arange(first, first + len(values), dtype=float)
    weights = 1 / rank
    x, y = np.log(rank), 2 * np.log(values)
    x = x - np.average(x, weights=weights)
    return float(-(weights * x * y).sum() / (weights * x**2).sum()), len(values)


def correlations(x: ArrayLike) -> NDArray[np.float64]:
    """Correlations [d, d] of the coordinates of `x` [n, d]: H^T H, centred and normalised.

    A coordinate that does not vary (to float32 rounding) says nothing that another one does not
    say: it counts as wholly correlated, 1 with every other. Raises ValueError if not finite.
    """
    matrix = finite_matrix(x, "x")
    columns = centred(matrix)
    length = np.linalg.norm(columns, axis=0)
    varies = length > FLOAT32_STEP * np.linalg.norm(matrix, axis=0)
    unit = columns / np.where(varies, length, 1.0)
    out = unit.T @ unit
    out[~varies] = 1.0
    out[:, ~varies] = 1.0
    np.fill_diagonal(out, 1.0)
    return out


def offdiagonal(x: ArrayLike) -> float | None:
    """Mean squared correlation of two different coordinates of `x` [n, d].

    0: decorrelated; 1: every coordinate the same, or constant. Independent coordinates give
    1 / (n - 1) by chance. None for d = 1. Raises ValueError on values that are not finite.
    """
    squares = correlations(x) ** 2
    d = len(squares)
    return float((squares.sum() - d) / (d * (d - 1))) if d > 1 else None


def contrast(x: ArrayLike, groups: ArrayLike) -> float | None:
    """Mean cosine of rows of `x` [n, d] in the same group minus that of rows in different groups.

    How far H H^T of the unit rows, sorted by `groups` [n] (integers), is block diagonal: 1 where
    groups are points at right angles, 0 for a constant and on average for groups without meaning;
    at most 1 + 1 / (k - 1), for k points that repel each other. None where no two rows share a
    group, or all do. Raises ValueError on non-finite values or groups of another length.
    """
    rows = unit_rows(finite_matrix(x, "x"))
    n = len(rows)
    _, member, size = np.unique(
        label_vector(groups, "groups", n), return_inverse=True, return_counts=True
    )
    within_pairs = float((size * (size - 1.0)).sum())
    between_pairs = n * (n - 1.0) - within_pairs
    if not within_pairs or not between_pairs:
        return None
    sums = np.zeros((len(size), rows.shape[1]))
    np.add.at(sums, member, rows)
    own = (rows**2).sum()
    same = (sums**2).sum()
    every = (rows.sum(axis=0) ** 2).sum()
    return float((same - own) / within_pairs - (every - same) / between_pairs)


def alignment(a: ArrayLike, b: ArrayLike) -> tuple[float, float | None]:
    """(mean squared distance of two views of an image, the same of two images), unit rows.

    Wang and Isola 2020 (arXiv 2005.10242), exponent 2: between 0 and 4, 2 for directions that have
    nothing to do with each other. The second number is its chance level, over all pairs of a view
    in `a` and the other view, in `b`, of another image; None for one image. `a`, `b`: [n, d].
    Raises ValueError on non-finite values or shapes that differ.
    """
    a, b = unit_rows(finite_matrix(a, "a")), unit_rows(finite_matrix(b, "b"))
    if a.shape != b.shape:
        raise ValueError(f"b: shape {b.shape}, but a has {a.shape}")
    n = len(a)
    matched = float(((a - b) ** 2).sum())
    if n == 1:
        return matched, None
    lengths = n * float((a**2).sum() + (b**2).sum())
    every = lengths - 2 * float(a.sum(axis=0) @ b.sum(axis=0))
    return matched / n, (every - matched) / (n * (n - 1))


def uniformity(x: ArrayLike) -> float | None:
    """ln of the mean of exp(-2 |u - v|^2) over pairs of different unit rows of `x` [n, d].

    Wang and Isola 2020, t = 2: 0 where all point the same way; `uniformity_floor` for the uniform
    sphere. None for one row. Raises ValueError on values that are not finite.
    """
    rows = unit_rows(finite_matrix(x, "x"))
    n = len(rows)
    if n == 1:
        return None
    squares, total = (rows**2).sum(axis=1), 0.0
    for start in range(0, n, ROWS):
        part = slice(start, start + ROWS)
        distance = squares[part, None] + squares - 2 * rows[part] @ rows.T
        total += float(np.exp(-HEAT * np.maximum(distance, 0.0)).sum())
    return math.log((total - n) / (n * (n - 1)))


def uniformity_floor(d: int) -> float:
    """Uniformity of independent uniform directions in d dimensions, the least there is.

    ln E exp(-2 t (1 - u_1)) = -2 t + ln 0F1(; d/2; t^2), t = 2; -4 for infinite d.
    """
    return float(-2 * HEAT + np.log(hyp0f1(d / 2, HEAT**2)))


def geometry_report(
    x: ArrayLike,
    singular: NDArray[np.float64],
    *,
    labels: ArrayLike | None = None,
    codes: ArrayLike | None = None,
    views: ArrayLike | None = None,
) -> dict[str, float | int | None]:
    """All statistics of this module for one layer, None where one is not defined.

    x [n, d] and its `spectrum`; labels and codes [n] or None; views [2, m, d], two augmented views
    of m images, or None. Keys: "alpha_req", "alpha_req_points"; "offdiagonal" with "_chance"
    1 / (n - 1) and, with codes, "_codes" = 1 / (m - 1), what m random codes in use give (theory: sd
    1 / sqrt(c)); "class_contrast", "code_contrast"; with views "alignment" with "_chance",
    "uniformity" (mean of both views, as in the paper) with "_floor". Raises ValueError on
    non-finite values.
    """
    matrix = finite_matrix(x, "x")
    n, d = matrix.shape
    alpha, points = alpha_req(singular, rounding_floor(matrix))
    report: dict[str, float | int | None] = {
        "alpha_req": alpha,
        "alpha_req_points": points,
        "offdiagonal": offdiagonal(matrix),
        "offdiagonal_chance": 1 / (n - 1) if n > 1 else None,
    }
    if labels is not None:
        report["class_contrast"] = contrast(matrix, labels)
    if codes is not None:
        used = len(np.unique(codes))
        report["offdiagonal_codes"] = 1 / (used - 1) if used > 1 else None
        report["code_contrast"] = contrast(matrix, codes)
    if views is not None:
        first, second = views
        report["alignment"], report["alignment_chance"] = alignment(first, second)
        spread = [uniformity(view) for view in (first, second)]
        report["uniformity"] = None if None in spread else sum(spread) / 2
        report["uniformity_floor"] = uniformity_floor(d)
    return report
