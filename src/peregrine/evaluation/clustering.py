"""Agreement of a clustering with the classes, and k-means clusters of frozen features.

NMI is biased upward when clusters are not few against samples: uniform random codes out of 16,384
reach 0.35 on the 10,000 test images of CIFAR-10. So it never comes without its chance level, and
AMI and ARI, both 0 by chance, stand beside it. Numpy, scipy and scikit-learn only.
"""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix
from threadpoolctl import threadpool_limits

from peregrine.diagnostics.collapse import finite_matrix, label_vector, unit_rows


def cluster_scores(
    labels: ArrayLike, assignment: ArrayLike, *, permutations: int, seed: int
) -> dict[str, float | int]:
    """Agreement of `assignment` [n] with `labels` [n], both integers of any range.

    Returns "nmi" (arithmetic mean of the entropies) with "nmi_chance" and "nmi_chance_sd", mean and
    standard deviation (divisor `permutations`) over random permutations of the assignment, which
    keep the sizes of classes and clusters; "ami", "ari"; "accuracy" under the best one-to-one map
    of clusters to classes (Hungarian; clusters beyond the number of classes stay unmapped and count
    as wrong) with "accuracy_ceiling", the share that the largest clusters can hold; "n", "k"
    (occupied clusters), "classes", "permutations".
    Raises ValueError on vectors that are no integers or differ in length, and permutations < 1.
    """
    labels = label_vector(labels, "labels")
    assignment = label_vector(assignment, "assignment", len(labels))
    if permutations < 1:
        raise ValueError(f"permutations: a chance level needs at least 1, got {permutations}")
    generator = np.random.default_rng(seed)
    chance = [
        normalized_mutual_info_score(labels, generator.permutation(assignment))
        for _ in range(permutations)
    ]
    table = contingency_matrix(labels, assignment)
    rows, columns = linear_sum_assignment(table, maximize=True)
    largest = np.sort(table.sum(axis=0))[::-1][: len(table)]
    return {
        "nmi": float(normalized_mutual_info_score(labels, assignment)),
        "nmi_chance": float(np.mean(chance)),
        "nmi_chance_sd": float(np.std(chance)),
        "ami": float(adjusted_mutual_info_score(labels, assignment)),
        "ari": float(adjusted_rand_score(labels, assignment)),
        "accuracy": float(table[rows, columns].sum() / len(labels)),
        "accuracy_ceiling": float(largest.sum() / len(labels)),
        "n": len(labels),
        "k": table.shape[1],
        "classes": table.shape[0],
        "permutations": int(permutations),
    }


def kmeans_clusters(x: ArrayLike, *, k: int, restarts: int, seed: int) -> NDArray[np.int32]:
    """Cluster indices [n] of `x` [n, f] by k-means (k-means++ starts) on the L2-normalised rows.

    Best of `restarts` by inertia, all from one seed. On one thread: the order in which threads add
    up their centres would otherwise change the result from run to run. Features with fewer than k
    distinct directions give fewer clusters. Elkan's bounds spare distances and change no step of
    Lloyd's. Raises ValueError on non-finite values and on k > n.
    """
    rows = unit_rows(finite_matrix(x, "features"))
    if not 1 <= k <= len(rows):
        raise ValueError(f"k: expected 1 to {len(rows)} clusters for {len(rows)} rows, got {k}")
    model = KMeans(n_clusters=k, n_init=restarts, random_state=seed, algorithm="elkan")
    with threadpool_limits(1), warnings.catch_warnings():
        # Too few distinct directions: a collapse, reported by "k" of `cluster_scores`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(rows)
