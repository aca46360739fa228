"""Linear probes on frozen features: all labels, and few labels. Numpy; torch where features are
read in blocks (`streamed`), because there are so many or on a GPU, with the same objective.

Nothing is chosen with the test set: the regularisation C comes from a split of the training set
(all labels) or from cross-validation inside the labelled subset (few labels), where no other label
is touched. C is scikit-learn's: the inverse of the L2 penalty on a *sum* over samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split

from peregrine.diagnostics.collapse import finite_matrix, label_vector
from peregrine.evaluation.logistic import Logistic, standardised

TOLERANCE = 1e-5
"""Largest gradient component of the mean loss at which lbfgs stops. At scikit-learn's 1e-4 the weak
end of a C grid is stopped early: there the optimiser, not C, sets the strength, and a warm start
gives other probabilities than a cold one."""

MAX_FOLDS = 5


@dataclass(frozen=True)
class _Data:
    """What a probe learns from and is judged on.

    Attributes:
        train_x, test_x: standardised rows, `logistic.Dense` or `streamed.Rows`.
        train_y, test_y: indices into `classes`, which are the labels that occur in training.
        model: Logistic with the tolerance and steps of the protocol.
    """

    train_x: Any
    train_y: NDArray[np.int64]
    test_x: Any
    test_y: NDArray[np.int64]
    classes: NDArray[np.int64]
    model: Callable[..., Logistic]


def _data(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    streamed_above: int,
    max_iter: int,
) -> _Data:
    """Checked data; of more than `streamed_above` training rows the features stay in their file."""
    if len(train_x) > streamed_above:
        from peregrine.evaluation.streamed import standardised as change  # torch, only where needed
    else:
        change = standardised
        train_x = _finite(train_x, "train features")
        test_x = _finite(test_x, "test features")
    if np.shape(train_x)[1:] != np.shape(test_x)[1:]:
        raise ValueError(
            f"test features: {test_x.shape[1]} columns, but {train_x.shape[1]} in training"
        )
    train_y = label_vector(train_y, "train labels", len(train_x))
    test_y = label_vector(test_y, "test labels", len(test_x))
    classes, train_index = np.unique(train_y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train labels: at least 2 classes are needed, got only {classes[0]}")
    unknown = np.setdiff1d(test_y, classes)
    if unknown.size:
        raise ValueError(f"test labels: class {unknown[0]} does not occur in the training labels")
    train_x, test_x = change(train_x, test_x)
    model = partial(Logistic, tol=TOLERANCE, max_iter=max_iter)
    return _Data(train_x, train_index, test_x, np.searchsorted(classes, test_y), classes, model)


def _finite(x: ArrayLike, name: str) -> NDArray:
    """`x` as it is; ValueError as of `finite_matrix`, whose copy in float64 is not needed."""
    matrix = np.asarray(x)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        finite_matrix(matrix, name)
    return matrix


def _grid(c_grid: Sequence[float]) -> list[float]:
    grid = sorted({float(c) for c in c_grid})
    if not grid or not np.isfinite(grid).all() or grid[0] <= 0:
        raise ValueError(f"c_grid: expected positive finite numbers, got {list(c_grid)}")
    return grid


def _path(
    model: Logistic, fit_x: Any, fit_y: NDArray, held_x: Any, held_y: NDArray, grid: list[float]
) -> tuple[NDArray, bool]:
    """Held-out hits for every C of the ascending `grid`, and whether every fit converged.

    From strong to weak regularisation, each fit starting from the one before: the objective is
    strictly convex, so the start only saves iterations. `model` has warm_start on.
    """
    hits, converged = [], True
    for c in grid:
        model.C = c
        converged &= model.fit(fit_x, fit_y).converged
        hits.append(np.count_nonzero(model.predict(held_x) == held_y))
    return np.array(hits), converged


def _edge(chosen: int, grid: list[float]) -> int:
    """-1 at the smallest C of the grid, 1 at the largest, 0 inside it or if it has one value."""
    return int(chosen == len(grid) - 1) - int(chosen == 0)


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    c_grid: Sequence[float],
    validation_share: float,
    split_seed: int,
    max_iter: int,
    streamed_above: int,
) -> dict[str, float | int | list]:
    """Offline linear evaluation: multinomial logistic regression on standardised frozen features.

    train_x [n, f], test_x [m, f]: features; train_y [n], test_y [m]: integers. Standardised by the
    training mean and standard deviation. C: the best accuracy on a stratified share of the training
    set, the smaller C on a tie; then one fit from zero on all of it, which anyone can repeat with
    `LogisticRegression(C=c, tol=TOLERANCE)`. Of two classes the model is the binomial one. Of more
    than `streamed_above` training rows the same is minimised over blocks of rows.

    Returns "accuracy" and, above 5 classes, "top5_accuracy" (of the test set), "standard_error"
    (binomial, of accuracy), "c", "c_at_edge" (-1 smallest of the grid, 1 largest, else 0), "c_grid"
    with "validation_accuracy" (lists), "converged" (the last fit), "converged_path" (all fits that
    C was chosen from), "streamed" (in blocks), "n_train", "n_validation", "n_test", "classes".
    Raises ValueError on non-finite features, shapes that disagree, a class too rare to be split.
    """
    data = _data(train_x, train_y, test_x, test_y, streamed_above, max_iter)
    grid = _grid(c_grid)

    fit, held = map(
        np.sort,  # in the order of the file
        train_test_split(
            np.arange(len(data.train_y)),
            test_size=validation_share,
            stratify=data.train_y,
            random_state=split_seed,
        ),
    )
    parts = data.train_x[fit], data.train_y[fit], data.train_x[held], data.train_y[held]
    hits, converged_path = _path(data.model(warm_start=True), *parts, grid)
    chosen = int(np.argmax(hits))  # the first of equals: the smaller C

    model = data.model(C=grid[chosen]).fit(data.train_x, data.train_y)
    accuracy = float(np.mean(model.predict(data.test_x) == data.test_y))
    result = {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1.0 - accuracy) / len(data.test_y))),
        "c": grid[chosen],
        "c_at_edge": _edge(chosen, grid),
        "c_grid": grid,
        "validation_accuracy": (hits / len(held)).tolist(),
        "converged": model.converged,
        "converged_path": converged_path,
        "streamed": len(data.train_y) > streamed_above,
        "n_train": len(data.train_y),
        "n_validation": len(held),
        "n_test": len(data.test_y),
        "classes": len(data.classes),
    }
    if len(data.classes) > 5:
        top5 = model.order(data.test_x, 5) == data.test_y[:, None]
        result["top5_accuracy"] = float(np.mean(top5.any(axis=1)))
    return result


def few_label_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    labels_per_class: int,
    draws: int,
    c_grid: Sequence[float],
    split_seed: int,
    max_iter: int,
    streamed_above: int,
) -> dict[str, float | int | list]:
    """Linear evaluation with `labels_per_class` labels of each class, over `draws` random subsets.

    Arrays as in `linear_probe`; standardised by all training features, whose labels stay unused.
    Draw i is made by the generator of (split_seed, i) alone, and contains the same draw with fewer
    labels per class. C: stratified cross-validation inside the subset, min(labels_per_class, 5)
    folds, accuracy over all held-out samples, the smaller C on a tie; with one label per class
    there is nothing to validate on, and C is the middle of the grid (the lower of two middles).

    Returns "accuracy" (mean over draws), "accuracy_sd" (divisor draws - 1; absent for a single
    draw), "accuracy_draws", "c_draws", "c_at_edge_draws" (lists; -1, 0, 1 as in `linear_probe`),
    "converged" (every last fit), "converged_path" (every fit that C was chosen from),
    "labels_per_class" (of the class with the fewest), "draws", "folds" (0 without validation),
    "n_train" (labels used by a draw), "n_pool" (training samples), "n_test", "classes".
    Raises ValueError on non-finite features, shapes that disagree, a class with too few examples.
    """
    data = _data(train_x, train_y, test_x, test_y, streamed_above, max_iter)
    if labels_per_class < 1 or draws < 1:
        raise ValueError(
            f"labels_per_class and draws: at least 1 each, got {labels_per_class} and {draws}"
        )
    sizes = np.bincount(data.train_y)
    if sizes.min() < labels_per_class:
        raise ValueError(
            f"train labels: {labels_per_class} labels per class asked for, but class "
            f"{data.classes[sizes.argmin()]} has {sizes.min()} examples"
        )
    return _drawn(data, np.full_like(sizes, labels_per_class), draws, _grid(c_grid), split_seed)


def label_share_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    share: float,
    draws: int,
    c_grid: Sequence[float],
    split_seed: int,
    max_iter: int,
    streamed_above: int,
) -> dict[str, float | int | list]:
    """`few_label_probe` with a share of each class's labels, rounded, but at least one.

    So 1 % of 120 digits a class is one label, as is 1 % of 40: "n_train" says how many there were.
    """
    if not 0 < share < 1 or draws < 1:
        raise ValueError(f"share and draws: inside (0, 1) and at least 1, got {share} and {draws}")
    data = _data(train_x, train_y, test_x, test_y, streamed_above, max_iter)
    counts = np.maximum(1, np.rint(share * np.bincount(data.train_y))).astype(np.int64)
    return _drawn(data, counts, draws, _grid(c_grid), split_seed)


def _drawn(
    data: _Data, counts: NDArray[np.int64], draws: int, grid: list[float], split_seed: int
) -> dict[str, float | int | list]:
    """The probe with counts[j] labels of class j; see `few_label_probe`."""
    members = [np.flatnonzero(data.train_y == label) for label in range(len(data.classes))]
    folds = min(int(counts.min()), MAX_FOLDS) if counts.min() > 1 else 0
    # The position within the class decides the fold; the draw has put each class in random order.
    fold = np.concatenate([np.arange(count) for count in counts]) % max(folds, 1)
    accuracy, chosen_draws, converged, converged_path = [], [], True, True
    for draw in range(draws):
        generator = np.random.default_rng([split_seed, draw])
        subset = np.concatenate([generator.permutation(m)[:k] for m, k in zip(members, counts)])
        x, y = data.train_x[subset], data.train_y[subset]
        chosen = (len(grid) - 1) // 2
        if folds:
            hits = np.zeros(len(grid), dtype=np.int64)
            for held in (fold == f for f in range(folds)):
                model = data.model(warm_start=True)
                new, ok = _path(model, x[~held], y[~held], x[held], y[held], grid)
                hits, converged_path = hits + new, converged_path and ok
            chosen = int(np.argmax(hits))
        model = data.model(C=grid[chosen]).fit(x, y)
        converged &= model.converged
        accuracy.append(float(np.mean(model.predict(data.test_x) == data.test_y)))
        chosen_draws.append(chosen)

    result = {
        "accuracy": float(np.mean(accuracy)),
        "accuracy_draws": accuracy,
        "c_draws": [grid[chosen] for chosen in chosen_draws],
        "c_at_edge_draws": [_edge(chosen, grid) if folds else 0 for chosen in chosen_draws],
        "converged": converged,
        "converged_path": converged_path,
        "labels_per_class": int(counts.min()),
        "draws": int(draws),
        "folds": folds,
        "n_train": int(counts.sum()),
        "n_pool": len(data.train_y),
        "n_test": len(data.test_y),
        "classes": len(data.classes),
    }
    if draws > 1:
        result["accuracy_sd"] = float(np.std(accuracy, ddof=1))
    return result
