"""H^T H, H H^T and a map as small pictures: numpy only. What the figures draw is what is stored."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peregrine.diagnostics.collapse import centred, finite_matrix, label_vector, unit_rows
from peregrine.diagnostics.geometry import correlations

COORDINATES = 48
"""Most coordinates of a picture of H^T H: evenly spaced ones of wider layers."""

CLASSES, IMAGES = 10, 5
"""A picture of H H^T shows the first test images of the first classes, so many of each."""

DIGITS = 3
"""Decimals of every stored value: finer than any colour scale shows."""


def correlation_picture(x: ArrayLike) -> NDArray[np.float32]:
    """Correlations [m, m] of at most 48 coordinates of `x` [n, d], to three decimals."""
    matrix = finite_matrix(x, "x")
    d = matrix.shape[1]
    picks = np.arange(min(d, COORDINATES)) * d // min(d, COORDINATES)
    return _short(correlations(matrix[:, picks]))


def shown(labels: ArrayLike, codes: ArrayLike | None) -> NDArray[np.int64]:
    """Rows of the picture of H H^T: by class, and within a class by code where there are codes."""
    labels = label_vector(labels, "labels")
    picks = []
    for label in np.unique(labels)[:CLASSES]:
        members = np.flatnonzero(labels == label)[:IMAGES]
        if codes is not None:
            members = members[np.argsort(np.asarray(codes)[members], kind="stable")]
        picks.append(members)
    return np.concatenate(picks)


def similarity_picture(x: ArrayLike, picks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosines [m, m] of the rows `picks` [m] of `x` [n, d], to three decimals."""
    rows = unit_rows(finite_matrix(x, "x")[picks])
    return _short(rows @ rows.T)


def plane(
    x: ArrayLike, picks: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """First two principal coordinates [m, 2] of the unit rows `picks` [m] of `x` [n, d], and the
    share [2] of their variance along each; three decimals.

    In units of the rows' length, which is 1, and centred. The largest coordinate of each axis is
    positive, because a principal axis has no sign of its own; where nothing varies, all are 0.
    """
    rows = centred(unit_rows(finite_matrix(x, "x")[picks]))
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    points = np.zeros((len(rows), 2))
    kept = min(2, len(singular))
    points[:, :kept] = left[:, :kept] * singular[:kept]
    points *= np.where(points.max(axis=0) < -points.min(axis=0), -1.0, 1.0)
    share = np.zeros(2)
    share[:kept] = singular[:kept] ** 2 / max((singular**2).sum(), np.finfo(float).tiny)
    return _short(points), _short(share)


def _short(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.round(values, DIGITS) + 0.0).astype(np.float32)
