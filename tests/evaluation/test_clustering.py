"""Clustering scores against formulas worked out by hand."""

import json
import warnings
from math import comb, log

import numpy as np
import pytest

from peregrine.evaluation.clustering import cluster_scores, kmeans_clusters


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


@pytest.mark.parametrize(
    ("c", "published"), [(128, 0.016), (2048, 0.186), (4096, 0.259), (16384, 0.352)]
)
def test_chance_level_of_random_codes_on_ten_balanced_classes(c, published):
    """The table of falcon.md, section 2: NMI of codes that know nothing about 10,000 images."""
    labels = np.repeat(np.arange(10), 1000)
    codes = np.random.default_rng(c).integers(0, c, 10_000)
    scores = cluster_scores(labels, codes, permutations=20, seed=0)
    assert scores["nmi_chance"] == pytest.approx(published, abs=0.003)
    assert scores["nmi"] == pytest.approx(scores["nmi_chance"], abs=0.005)
    assert scores["ami"] == pytest.approx(0.0, abs=0.01)
    assert scores["ari"] == pytest.approx(0.0, abs=0.01)
    assert scores["k"] == pytest.approx(c * (1 - (1 - 1 / c) ** 10_000), abs=150)


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
