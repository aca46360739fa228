"""Weighted nearest-neighbour classification of frozen features. Numpy; torch above a size."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peregrine.diagnostics.collapse import FLOAT32_STEP, finite_matrix, label_vector, unit_rows

SIMILARITY_TIE = 1e-10
"""Cosines this close count as equal. A matrix product gives equal vectors cosines that differ in
the last bits with their position, so exact comparison would let the chunk size break ties."""

VOTE_TIE = 1e-9
"""Votes this close, relative to the largest, count as equal; same reason."""

SPARE = 12
"""Neighbours looked at beyond k where features stream: so many may be tied for the last places."""

GROUPS, MOST = 32, 8
"""Times k: groups of training rows whose maxima bound the k-th largest cosine, and candidates above
which a block of test rows is settled in float64 as a whole."""


def knn_classify(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    k: int,
    temperature: float,
    streamed_above: int | None = None,
    chunk: int = 256,
) -> dict[str, float | int]:
    """kNN accuracy: the k training samples of largest cosine vote exp(cosine / temperature) each
    for their class (Wu et al. 2018, arXiv 1805.01978).

    train_x [n, f], test_x [m, f]: features; train_y [n], test_y [m]: integers; `chunk`: test rows
    at a time, `streamed_above`: training rows above which features are read in blocks; matters of
    memory that change no result, unless more than SPARE samples are tied for the last places. Ties:
    of equally near samples the earlier ones are neighbours, of equal votes the smallest label wins.
    A zero vector has cosine 0 to all.

    Returns "accuracy" (share of the test set), "standard_error" (binomial), "k" (used: at most n),
    "k_asked", "temperature", "n_train", "n_test", "zero_train", "zero_test" (zero vectors).
    Raises ValueError on non-finite features, shapes that disagree, k, chunk or temperature <= 0.
    """
    if np.shape(train_x)[1:] != np.shape(test_x)[1:]:
        raise ValueError(
            f"test features: {np.shape(test_x)[1]} columns, but {np.shape(train_x)[1]} in training"
        )
    train_y = label_vector(train_y, "train labels", len(train_x))
    classes, votes_for = np.unique(train_y, return_inverse=True)
    test_y = label_vector(test_y, "test labels", len(test_x))
    if k < 1 or chunk < 1 or not temperature > 0:
        raise ValueError(
            f"k, chunk and temperature must be positive, got {k}, {chunk} and {temperature}"
        )
    n, used, hits = len(train_x), min(int(k), len(train_x)), 0
    if streamed_above is not None and n > streamed_above:
        from peregrine.evaluation.streamed import nearest as in_blocks  # torch, only where needed

        near_by = in_blocks(train_x, test_x, used + SPARE)
    else:
        near_by = _all(train_x, test_x, used, chunk)
    for part, cosine, rows in near_by:
        nearest = np.argpartition(cosine, -used, axis=1)[:, -used:]
        last = np.take_along_axis(cosine, nearest, axis=1).min(axis=1)
        # argpartition picks any of those tied for the last places; these rows are settled by hand.
        near_enough = np.count_nonzero(cosine >= (last - SIMILARITY_TIE)[:, None], axis=1)
        for row in np.flatnonzero(near_enough > used):
            nearer = np.flatnonzero(cosine[row] > last[row] + SIMILARITY_TIE)
            tied = np.flatnonzero(np.abs(cosine[row] - last[row]) <= SIMILARITY_TIE)
            nearest[row] = np.concatenate([nearer, tied[: used - len(nearer)]])
        near = np.take_along_axis(cosine, nearest, axis=1)
        # A common factor per row does not move the vote and keeps exp finite.
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        votes = np.zeros((len(near), len(classes)))
        voters = votes_for[np.take_along_axis(rows, nearest, axis=1)]
        np.add.at(votes, (np.arange(len(near))[:, None], voters), weight)
        winner = (votes >= votes.max(axis=1, keepdims=True) * (1.0 - VOTE_TIE)).argmax(axis=1)
        hits += int(np.count_nonzero(classes[winner] == test_y[part]))

    accuracy = hits / len(test_y)
    return {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1.0 - accuracy) / len(test_y))),
        "k": used,
        "k_asked": int(k),
        "temperature": float(temperature),
        "n_train": n,
        "n_test": len(test_y),
        "zero_train": int(np.count_nonzero(~np.any(train_x, axis=1))),
        "zero_test": int(np.count_nonzero(~np.any(test_x, axis=1))),
    }


def _all(
    train_x: ArrayLike, test_x: ArrayLike, k: int, chunk: int
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.int64]]]:
    """Candidates for the k nearest: (part, cosines [m, w], their rows [m, w]), ties included.

    Who may be one is seen in float32, a third of the time; their cosines are of float64. Rows with
    fewer candidates than others end in cosines of -inf.
    """
    train = unit_rows(finite_matrix(train_x, "train features"))
    test = unit_rows(finite_matrix(test_x, "test features"))
    near, n = train.astype(np.float32), len(train)
    # Cosines of float32 are off by at most half of this, and so is what they are held against.
    margin = np.float32((train.shape[1] + 2) * FLOAT32_STEP)
    groups = min(n, GROUPS * k)
    size = n // groups
    for start in range(0, len(test), chunk):
        part = slice(start, start + chunk)
        rough = test[part].astype(np.float32) @ near.T
        # The k-th of the groups' maxima cannot be above the k-th of all.
        heads = rough[:, : groups * size].reshape(-1, size, groups).max(axis=1)
        least = np.partition(heads, -k, axis=1)[:, [-k]] - margin
        rows, columns = np.nonzero(rough >= least)
        counts = np.bincount(rows)
        if counts.max() > MOST * k:  # a collapse, or few rows: all are candidates
            cosine = test[part] @ train.T
            yield part, cosine, np.broadcast_to(np.arange(n), cosine.shape)
            continue
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        cosine = np.full((len(rough), counts.max()), -np.inf)
        cosine[rows, places] = np.einsum("ij,ij->i", test[part][rows], train[columns])
        candidates = np.zeros(cosine.shape, np.int64)
        candidates[rows, places] = columns
        yield part, cosine, candidates
