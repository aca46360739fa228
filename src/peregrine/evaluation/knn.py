"""Weighted nearest-neighbour classification of frozen features. Numpy only."""

import numpy as np
from numpy.typing import ArrayLike

from peregrine.diagnostics.collapse import finite_matrix, label_vector, unit_rows

SIMILARITY_TIE = 1e-10
"""Cosines this close count as equal. A matrix product gives equal vectors cosines that differ in
the last bits with their position, so exact comparison would let the chunk size break ties."""

VOTE_TIE = 1e-9
"""Votes this close, relative to the largest, count as equal; same reason."""


def knn_classify(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    k: int,
    temperature: float,
    chunk: int = 256,
) -> dict[str, float | int]:
    """kNN accuracy: the k training samples of largest cosine vote exp(cosine / temperature) each
    for their class (Wu et al. 2018, arXiv 1805.01978).

    train_x [n, f], test_x [m, f]: features; train_y [n], test_y [m]: integers; `chunk`: test rows
    at a time, a matter of memory that changes no result. Ties: of equally near samples the earlier
    ones are neighbours, of equal votes the smallest label wins. A zero vector has cosine 0 to all.

    Returns "accuracy" (share of the test set), "standard_error" (binomial), "k" (used: at most n),
    "k_asked", "temperature", "n_train", "n_test", "zero_train", "zero_test" (zero vectors).
    Raises ValueError on non-finite features, shapes that disagree, k, chunk or temperature <= 0.
    """
    train = unit_rows(finite_matrix(train_x, "train features"))
    test = unit_rows(finite_matrix(test_x, "test features"))
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"test features: {test.shape[1]} columns, but {train.shape[1]} in training"
        )
    classes, votes_for = np.unique(
        label_vector(train_y, "train labels", len(train)), return_inverse=True
    )
    test_y = label_vector(test_y, "test labels", len(test))
    if k < 1 or chunk < 1 or not temperature > 0:
        raise ValueError(
            f"k, chunk and temperature must be positive, got {k}, {chunk} and {temperature}"
        )
    used = min(int(k), len(train))

    hits = 0
    for start in range(0, len(test), chunk):
        cosine = test[start : start + chunk] @ train.T
        nearest = np.argpartition(cosine, len(train) - used, axis=1)[:, len(train) - used :]
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
        np.add.at(votes, (np.arange(len(near))[:, None], votes_for[nearest]), weight)
        winner = (votes >= votes.max(axis=1, keepdims=True) * (1.0 - VOTE_TIE)).argmax(axis=1)
        hits += int(np.count_nonzero(classes[winner] == test_y[start : start + chunk]))

    accuracy = hits / len(test)
    return {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1.0 - accuracy) / len(test))),
        "k": used,
        "k_asked": int(k),
        "temperature": float(temperature),
        "n_train": len(train),
        "n_test": len(test),
        "zero_train": int(np.count_nonzero(~train.any(axis=1))),
        "zero_test": int(np.count_nonzero(~test.any(axis=1))),
    }
