"""Clustering scores against formulas worked out by hand."""

import json
import warnings
from math import comb, lgamma, log, log1p
from pathlib import Path

import numpy as np
import pytest

from peregrine.config.load import read_yaml
from peregrine.evaluation.clustering import cluster_scores, kmeans_clusters

PROTOCOLS = Path(__file__).parents[2] / "config" / "protocols.yaml"


def entropy(*shares):
    return -sum(p * log(p) for p in shares if p > 0)


def test_a_perfect_clustering_under_other_names():
    scores = cluster_scores([0, 0, 1, 1, 2, 2], [7, 7, -3, -3, 900, 900], permutations=5, seed=0)
    for key in ("nmi", "ami", "ari", "accuracy", "accuracy_ceiling"):
        assert scores[key] == pytest.approx(1.0, abs=1e-12), key
    assert (scores["n"], scores["k"], scores["classes"], scores["permutations"]) == (6, 3, 3, 5)
    assert json.loads(json.dumps(scores)) == scores


def test_a_known_confusion():
    # Contingency [[3, 1], [1, 3]].
    labels, assignment = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0]
    scores = cluster_scores(labels, assignment, permutations=400, seed=0)
    information = log(2) - entropy(3 / 4, 1 / 4)
    assert scores["nmi"] == pytest.approx(information / log(2), rel=1e-9)
    assert scores["accuracy"] == 0.75
    # Pairs together: 6 in both; 12 in each; 12 * 12 / 28 by chance.
    assert scores["ari"] == pytest.approx((6 - 144 / 28) / (12 - 144 / 28), rel=1e-9)

    # Under permutation the table is [[j, 4-j], [4-j, j]] with hypergeometric j.
    weight = np.array([comb(4, j) ** 2 / comb(8, 4) for j in range(5)])
    values = np.array([log(2) - entropy(j / 4, 1 - j / 4) for j in range(5)])
    expected = (weight * values).sum()
    assert scores["ami"] == pytest.approx((information - expected) / (log(2) - expected), rel=1e-9)
    sd = np.sqrt((weight * (values - expected) ** 2).sum()) / log(2)
    assert scores["nmi_chance"] == pytest.approx(expected / log(2), abs=4 * sd / 20)
    assert scores["nmi_chance_sd"] == pytest.approx(sd, rel=0.3)


def test_nmi_is_arithmetic_and_unmapped_clusters_count_as_wrong():
    # Two classes, each split 3 : 1 into pure clusters: I = ln 2, below the entropy of the clusters.
    labels, assignment = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 2, 2, 2, 3]
    shares = entropy(3 / 8, 1 / 8, 3 / 8, 1 / 8)
    scores = cluster_scores(labels, assignment, permutations=1, seed=0)
    assert scores["nmi"] == pytest.approx(log(2) / ((log(2) + shares) / 2), rel=1e-9)
    assert scores["accuracy"] == scores["accuracy_ceiling"] == 6 / 8
    # Fewer clusters than classes: the table is rectangular the other way.
    scores = cluster_scores([0, 0, 1, 1, 2], [1, 1, 0, 0, 0], permutations=1, seed=0)
    assert scores["accuracy"] == 4 / 5
    assert scores["accuracy_ceiling"] == 1.0


def test_one_cluster_for_all_scores_nothing():
    scores = cluster_scores([0, 0, 0, 1], [4, 4, 4, 4], permutations=3, seed=0)
    assert (scores["nmi"], scores["ami"], scores["ari"]) == (0.0, 0.0, 0.0)
    assert (scores["accuracy"], scores["k"], scores["nmi_chance"]) == (0.75, 1, 0.0)


CIFAR10, CIFAR100 = [1000] * 10, [100] * 100
SVHN = [1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595]  # test set, digits 0 to 9


def expected_nmi(sizes, c):
    """NMI of uniform random codes out of c with classes of these sizes, from expected entropies.

    A code's count among m images is Binomial(m, 1/c), so with X of that law the entropy of the
    codes is log n - (c/n) E[X log X] at m = n, and that of classes and codes together the same
    with the sum over the classes in place of one term.
    """
    n = sum(sizes)

    def x_log_x(m):
        k = np.arange(1, min(m, 400) + 1)  # far above every mean here, 78 at most
        logs = [
            lgamma(m + 1) - lgamma(x + 1) - lgamma(m - x + 1) + (m - x) * log1p(-1 / c) for x in k
        ]
        return (np.exp(np.array(logs) - k * log(c)) * k * np.log(k)).sum()

    codes = log(n) - c / n * x_log_x(n)
    both = log(n) - c / n * sum(map(x_log_x, sizes))
    classes = entropy(*(m / n for m in sizes))
    return 2 * (classes + codes - both) / (classes + codes)


@pytest.mark.parametrize(
    ("sizes", "c", "reference"),
    [
        (CIFAR10, 128, 0.016),
        (CIFAR10, 2048, 0.186),
        (CIFAR10, 4096, 0.259),
        (CIFAR10, 16384, 0.352),
        (SVHN, 16384, 0.263),
        (CIFAR100, 16384, 0.630),
    ],
)
def test_random_codes_in_place_of_a_method_score_chance(sizes, c, reference):
    """The italic row of falcon.md, section 2, and its derivation, by the standard protocol."""
    protocol = read_yaml(PROTOCOLS)["standard"]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    n = len(labels)
    codes = np.random.default_rng(c).integers(0, c, n)
    scores = cluster_scores(
        labels, codes, permutations=protocol["chance_permutations"], seed=protocol["split_seed"]
    )
    expected = expected_nmi(sizes, c)
    # The reference is one draw of codes, three decimals of it: four of its sd, and the rounding.
    sd = scores["nmi_chance_sd"]
    assert sd < 0.002
    assert expected == pytest.approx(reference, abs=4 * sd + 0.0005)
    assert scores["nmi_chance"] == pytest.approx(expected, abs=0.0005 + 4 * sd / 20**0.5)
    assert scores["nmi"] == pytest.approx(scores["nmi_chance"], abs=4 * sd)
    assert scores["ami"] == pytest.approx(0.0, abs=0.005)
    assert scores["ari"] == pytest.approx(0.0, abs=0.001)
    occupied = c * (1 - (1 - 1 / c) ** n)
    assert scores["k"] == pytest.approx(occupied, abs=4 * occupied**0.5)


def test_chance_level_belongs_to_the_seed():
    rng = np.random.default_rng(0)
    labels, codes = rng.integers(0, 5, 200), rng.integers(0, 50, 200)
    first, again, other = (cluster_scores(labels, codes, permutations=3, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["nmi_chance"] != other["nmi_chance"]
    assert first["nmi"] == other["nmi"]


@pytest.mark.parametrize(
    ("labels", "assignment", "permutations", "words"),
    [
        ([0, 1], [0, 1, 1], 2, "assignment: 3 entries for 2 rows"),
        ([0, 1], [0.0, 1.0], 2, "assignment: expected a non-empty vector of integers"),
        ([0, 1], [0, 1], 0, "permutations: a chance level needs at least 1"),
    ],
)
def test_cluster_scores_refuses_nonsense(labels, assignment, permutations, words):
    with pytest.raises(ValueError, match=words):
        cluster_scores(labels, assignment, permutations=permutations, seed=0)


def test_kmeans_sees_directions_not_lengths():
    # By Euclidean distance the two long vectors would each be a cluster of their own.
    x = np.array([[1, 0.01], [1, 0.0], [900, 1], [0.0, 1], [0.01, 1], [2, 1000]], dtype=np.float32)
    clusters = kmeans_clusters(x, k=2, restarts=3, seed=0)
    assert clusters.shape == (6,)
    assert len(set(clusters[:3])) == len(set(clusters[3:])) == 1
    assert clusters[0] != clusters[3]


def test_kmeans_repeats_for_a_seed():
    x = np.random.default_rng(0).normal(size=(300, 5))
    first, again, other = (kmeans_clusters(x, k=8, restarts=1, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_kmeans_keeps_the_best_of_its_restarts():
    x = np.random.default_rng(0).normal(size=(300, 5))
    units = x / np.linalg.norm(x, axis=1, keepdims=True)

    def inertia(restarts):
        clusters = kmeans_clusters(x, k=8, restarts=restarts, seed=0)
        groups = [units[clusters == c] for c in range(8)]
        return sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups)

    assert inertia(20) < inertia(1)


def test_kmeans_of_a_collapse_is_one_quiet_cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(kmeans_clusters(np.ones((20, 4)), k=3, restarts=2, seed=0)) == {0}


def test_kmeans_refuses_nonsense():
    with pytest.raises(ValueError, match="k: expected 1 to 3 clusters"):
        kmeans_clusters(np.eye(3), k=4, restarts=1, seed=0)
    with pytest.raises(ValueError, match=r"features: 1 of 4 values .* row 1, column 0"):
        kmeans_clusters([[0.0, 1.0], [np.nan, 1.0]], k=1, restarts=1, seed=0)
