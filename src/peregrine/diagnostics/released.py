"""Spectrum and mixture entropy as the released code of FALCON takes them (falcon.md, section 2).

The embeddings are min-max scaled over the whole matrix and padded with zeros to 2048 columns.
Both numbers are dominated by that: a padded column adds -5.49 nats to the entropy, and what is
not centred shows as one large singular value. They stand here beside the corrected reading.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svd

from peregrine.diagnostics.collapse import cluster_usage, finite_matrix
from peregrine.diagnostics.mixture import fitting, gaussian_entropy, mixture_entropies, sampled

WIDTH = 2048
"""Columns to which the released code pads every method's embeddings."""

PADDING = gaussian_entropy(np.zeros(1))
"""Entropy of a padded column in nats: 1/2 ln(2 pi e 1e-6) = -5.49. Its variance is 1e-6 in every
component, so it moves neither the clusters nor the responsibilities, and is added at the end."""


def min_max(x: ArrayLike) -> NDArray[np.float64] | None:
    """`x` [n, d] scaled to [0, 1] by its least and largest element; None for a constant.

    Raises ValueError on values that are not finite.
    """
    matrix = finite_matrix(x, "x")
    low, high = matrix.min(), matrix.max()
    return (matrix - low) / (high - low) if high > low else None


def released_spectrum(x: ArrayLike) -> NDArray[np.float64]:
    """Singular values [min(n, d)] of the scaled, uncentred `x` [n, d] over sqrt(n), descending.

    Their squares are the singular values of H^T H / n, whose logarithm the release draws: the
    published curves begin where a mean of one half puts them, at ln(width / 4) ([derived]).
    Padding adds zeros, of which float32 makes the flat tails of the published curves. A constant
    has none. Raises ValueError on values that are not finite.
    """
    scaled = min_max(x)
    if scaled is None:
        return np.zeros(0)
    return svd(scaled, compute_uv=False, check_finite=False) / np.sqrt(len(scaled))


def released_report(
    embeddings: ArrayLike,
    codes: ArrayLike,
    c: int,
    sizes: Sequence[int],
    *,
    sample: int,
    seed: int,
) -> dict[str, float | int | list[int]]:
    """Mixture entropy of the embeddings and use of the codes in the released reading.

    embeddings [n, d], codes [n] in [0, c); sizes: numbers of components; sample, seed as in
    `mixture_report`. Entropies "embeddings/mixture_entropy_k{k}" are in nats over all 2048
    dimensions (d where that is more), of which "embeddings/mixture_padding" nats are the padding.
    Raises ValueError on values that are not finite.
    """
    n, d = finite_matrix(embeddings, "embeddings").shape
    scaled = min_max(embeddings)
    picks = sampled(n, sample, seed)
    used = min(n, sample)
    fit, padding = fitting(sizes, used), max(0, WIDTH - d) * PADDING
    report: dict[str, float | int | list[int]] = {
        "embeddings/n": n,
        "embeddings/d": d,
        "embeddings/mixture_n": used,
        "embeddings/mixture_skipped": [k for k in sizes if k not in fit],
        "embeddings/mixture_padding": padding,
    }
    if scaled is not None:
        for k, entropy in mixture_entropies(scaled[picks], fit, seed).items():
            report[f"embeddings/mixture_entropy_k{k}"] = entropy + padding
    return report | {f"codes/{k}": v for k, v in cluster_usage(codes, None, c).items()}
