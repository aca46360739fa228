"""Collapse statistics against numbers derived by hand."""

import itertools
import json

import numpy as np
import pytest

from peregrine.diagnostics import collapse

LN2 = np.log(2.0)


def with_singular_values(values, n, d, mean=0.0, seed=0):
    """[n, d] whose column-centred part has exactly these singular values."""
    rng = np.random.default_rng(seed)
    r = len(values)
    # Columns orthogonal to the vector of ones are untouched by centring.
    left = np.linalg.qr(np.column_stack([np.ones(n), rng.normal(size=(n, r))]))[0][:, 1:]
    right = np.linalg.qr(rng.normal(size=(d, r)))[0]
    return left @ np.diag(values) @ right.T + mean


def test_spectrum_returns_the_singular_values_of_the_centred_matrix():
    x = with_singular_values([5.0, 2.0, 1.0], n=40, d=6, mean=np.arange(6.0))
    np.testing.assert_allclose(collapse.spectrum(x), [5, 2, 1, 0, 0, 0], atol=1e-12)
    assert collapse.spectrum(x.T).shape == (6,)
    assert collapse.spectrum(x.astype(np.float32)).dtype == np.float64


def test_spectrum_keeps_the_small_tail_that_a_gram_matrix_would_lose():
    x = with_singular_values([1.0, 1e-6, 1e-11], n=30, d=3)
    np.testing.assert_allclose(collapse.spectrum(x), [1.0, 1e-6, 1e-11], rtol=1e-3)


def test_ranks_of_known_singular_values():
    # p = 1/2, 1/4, 1/4: entropy 1.5 ln 2. Variances 4, 1, 1: 6^2 / 18 = 2.
    x = with_singular_values([2.0, 1.0, 1.0], n=30, d=8, mean=7.0)
    assert collapse.effective_rank(x) == pytest.approx(2**1.5, rel=1e-9)
    assert collapse.participation_ratio(x) == pytest.approx(2.0, rel=1e-9)
    flat = with_singular_values([3.0] * 5, n=30, d=8)
    assert collapse.effective_rank(flat) == pytest.approx(5.0, rel=1e-9)
    assert collapse.participation_ratio(flat) == pytest.approx(5.0, rel=1e-9)
    assert collapse.effective_rank(1e-3 * x) == pytest.approx(2**1.5, rel=1e-9)


def test_rankme_is_of_the_uncentred_matrix_with_eps():
    p = np.array([0.5, 0.25, 0.25]) + 1e-7
    assert collapse.rankme(np.diag([2.0, 1.0, 1.0])) == pytest.approx(
        np.exp(-(p * np.log(p)).sum()), rel=1e-12
    )
    # Orthonormal rows: 4 equal singular values; centring takes one of them away.
    rows = np.eye(4, 9)
    assert collapse.rankme(rows) == pytest.approx(4.0, rel=1e-5)
    assert collapse.effective_rank(rows) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_a_constant_matrix_is_collapsed_in_every_statistic(value, dtype):
    x = np.full((50, 7), value, dtype=dtype) * np.arange(1, 8, dtype=dtype)
    assert not collapse.spectrum(x).any()
    assert collapse.effective_rank(x) == 0.0
    assert collapse.participation_ratio(x) == 0.0
    assert collapse.feature_sd(x) < 1e-12
    assert collapse.rankme(x) == (0.0 if value == 0.0 else pytest.approx(1.0, abs=1e-4))
    assert collapse.intracluster_variance(x, np.arange(50) % 5) == 0.0
    assert collapse.collapse_report(x, x)["embeddings/constant"] == 1


def test_float32_rounding_around_a_constant_is_no_rank():
    rng = np.random.default_rng(0)
    constant = rng.uniform(1, 2, size=64)
    # Isotropic rounding noise: unguarded it reads as full rank and as spread-out clusters.
    noise = rng.uniform(-1, 1, size=(200, 64)) * 2.0**-24 * np.abs(constant)
    x = constant + noise
    assert np.linalg.matrix_rank(x - x.mean(0), tol=0) == 64
    assert collapse.effective_rank(x) == 0.0
    assert collapse.participation_ratio(x) == 0.0
    assert collapse.intracluster_variance(x, np.arange(200) % 10) == 0.0
    # A variation a thousand times above rounding is real, however small.
    assert collapse.effective_rank(constant + 1000 * noise) > 55
    assert collapse.intracluster_variance(constant + 1000 * noise, np.arange(200) % 10) > 0.9


def test_rank_never_exceeds_what_n_allows():
    x = np.random.default_rng(0).normal(size=(10, 64))
    report = collapse.collapse_report(x, None)
    assert report["features/rankme_ceiling"] == 10
    assert report["features/effective_rank_ceiling"] == 9
    assert 8.5 < report["features/effective_rank"] <= 9
    assert 9.5 < report["features/rankme"] <= 10.001


def test_feature_sd_by_hand():
    # Unit rows e_1..e_n average to a vector of length 1/sqrt(n).
    for n in (2, 4, 25):
        assert collapse.feature_sd(np.eye(n)) == pytest.approx(np.sqrt(1 - 1 / n), rel=1e-12)
    assert collapse.feature_sd([[1.0, 0], [-1, 0]]) == pytest.approx(1.0, rel=1e-12)
    # The length of a row says nothing; only its direction counts.
    assert collapse.feature_sd([[2.0, 0], [0, 300]]) == pytest.approx(np.sqrt(0.5), rel=1e-12)
    isotropic = np.random.default_rng(0).normal(size=(4000, 16))
    # |mean of n random unit vectors|^2 is 1/n on average.
    assert collapse.feature_sd(isotropic) == pytest.approx(1.0, abs=1e-3)


def test_intracluster_variance_by_hand():
    e1, e2 = [1.0, 0.0], [0.0, 1.0]
    assert collapse.intracluster_variance([e1, e1, e2, e2], [5, 5, 9, 9]) == 0.0
    assert collapse.intracluster_variance([e1, e1, e2, e2], [5, 9, 5, 9]) == pytest.approx(1.0)
    # Mean (3/4, 1/4): total 3 * 1/8 + 9/8 = 3/2; within: 0 and 2 * 1/2.
    x = np.array([e1, e1, e1, e2]) * np.array([[1.0], [4.0], [0.5], [20.0]])
    assert collapse.intracluster_variance(x, [0, 0, 1, 1]) == pytest.approx(2 / 3, rel=1e-12)
    # Clusters weigh by size: group {e1, e1, e2} has within 4/3, group {e1} none.
    assert collapse.intracluster_variance(x, [0, 0, 1, 0]) == pytest.approx(8 / 9, rel=1e-12)


def test_intracluster_chance_level_is_the_mean_over_all_groupings():
    x = np.random.default_rng(0).normal(size=(6, 3))
    labels = [0, 0, 0, 1, 1, 2]
    ratios = [collapse.intracluster_variance(x, p) for p in set(itertools.permutations(labels))]
    report = collapse.collapse_report(x, None, labels=np.array(labels))
    assert report["features/intraclass_variance_chance"] == pytest.approx(np.mean(ratios), rel=1e-9)
    assert report["features/intraclass_variance_chance"] == 3 / 5
    assert report["features/intraclass_variance_groups"] == 3


def test_cluster_usage_by_hand_with_fewer_samples_than_codes():
    usage = collapse.cluster_usage([0, 0, 1, 2], None, 8)
    assert usage["usage_entropy"] == pytest.approx(1.5 * LN2, rel=1e-12)
    assert usage["usage_entropy_ceiling"] == pytest.approx(2 * LN2, rel=1e-12)  # log 4, not log 8
    assert usage["usage_entropy_ratio"] == pytest.approx(0.75, rel=1e-12)
    assert (usage["occupied"], usage["occupied_ceiling"]) == (3, 4)
    assert (usage["dead"], usage["dead_floor"]) == (5, 4)
    assert (usage["dead_share"], usage["dead_share_floor"]) == (5 / 8, 4 / 8)
    assert usage["occupied_random"] == pytest.approx(8 * (1 - (7 / 8) ** 4), rel=1e-12)
    assert (usage["n"], usage["c"]) == (4, 8)
    assert not any(key.startswith("soft") for key in usage)


def test_cluster_usage_at_its_extremes_and_under_renaming():
    even = collapse.cluster_usage(np.arange(12) % 3, None, 3)
    assert even["usage_entropy"] == pytest.approx(even["usage_entropy_ceiling"], rel=1e-12)
    assert (even["dead"], even["dead_floor"]) == (0, 0)
    one = collapse.cluster_usage([2] * 12, None, 3)
    assert (one["usage_entropy"], one["occupied"], one["dead"]) == (0.0, 1, 2)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 20, 50) ** 2 // 20
    renamed = rng.permutation(20)[codes]
    assert collapse.cluster_usage(codes, None, 20) == pytest.approx(
        collapse.cluster_usage(renamed, None, 20), rel=1e-12
    )
    # Two samples on two codes: 1 or 2 occupied with probability 1/2 each.
    two = collapse.cluster_usage([0, 1], None, 2)
    assert two["occupied_random"] == pytest.approx(1.5, rel=1e-12)


def test_soft_entropy_by_hand():
    soft = collapse.cluster_usage(None, [0.5, 0.25, 0.25, 0.0], 4)
    assert soft["soft_entropy"] == pytest.approx(1.5 * LN2, rel=1e-12)
    assert soft["soft_entropy_ceiling"] == pytest.approx(2 * LN2, rel=1e-12)
    assert soft["soft_entropy_ratio"] == pytest.approx(0.75, rel=1e-12)
    assert collapse.cluster_usage(None, [0.0, 1.0], 2)["soft_entropy"] == 0.0
    # Float32 sums are off by a little; entropy is that of the normalised vector.
    off = collapse.cluster_usage(None, np.full(4, 0.2501), 4)
    assert off["soft_entropy_ratio"] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("codes", "soft", "c", "words"),
    [
        ([0, 4], None, 4, r"codes: must lie in \[0, 4\)"),
        ([-1, 0], None, 4, "codes: must lie"),
        ([0.5, 1.0], None, 4, "codes: expected a non-empty vector of integers"),
        ([1], None, 4, "codes: at least 2 samples"),
        (None, [0.5, 0.5], 4, "mean_soft: expected shape"),
        (None, [0.5, 0.5, 0.5, 0.0], 4, "mean_soft: expected a distribution"),
        (None, [1.5, -0.5], 2, "mean_soft: expected a distribution"),
        (None, [np.nan, 1.0], 2, "mean_soft: contains values"),
        ([0, 0], None, 1, "c: a dictionary needs at least 2 codes"),
    ],
)
def test_cluster_usage_refuses_nonsense(codes, soft, c, words):
    with pytest.raises(ValueError, match=words):
        collapse.cluster_usage(codes, soft, c)


def test_report_holds_every_layer_with_its_own_ceilings():
    rng = np.random.default_rng(0)
    features = with_singular_values([1.0] * 3, n=60, d=8, mean=2.0)
    embeddings = rng.normal(size=(60, 100)).astype(np.float32)
    labels, codes = np.arange(60) % 10, np.arange(60) % 4
    report = collapse.collapse_report(features, embeddings, codes, np.full(16, 1 / 16), 16, labels)
    assert json.loads(json.dumps(report)) == report
    assert report["features/effective_rank"] == pytest.approx(3.0, rel=1e-9)
    assert report["features/effective_rank"] == pytest.approx(collapse.effective_rank(features))
    assert report["features/effective_rank_ceiling"] == 8
    assert report["embeddings/effective_rank_ceiling"] == 59
    assert report["embeddings/rankme"] == pytest.approx(collapse.rankme(embeddings), rel=1e-12)
    assert report["features/feature_sd"] == pytest.approx(collapse.feature_sd(features))
    assert report["features/participation_ratio"] == pytest.approx(3.0, rel=1e-9)
    assert (report["features/n"], report["features/d"], report["embeddings/d"]) == (60, 8, 100)
    assert report["features/constant"] == 0
    assert report["codes/usage_entropy"] == pytest.approx(2 * LN2, rel=1e-12)
    assert report["codes/soft_entropy_ratio"] == pytest.approx(1.0, rel=1e-12)
    # Classes and codes are different groupings.
    for key, groups, k in (("intraclass", labels, 10), ("intracluster", codes, 4)):
        assert report[f"embeddings/{key}_variance"] == pytest.approx(
            collapse.intracluster_variance(embeddings, groups), rel=1e-12
        )
        assert report[f"embeddings/{key}_variance_chance"] == (60 - k) / 59
    without = collapse.collapse_report(features, None)
    assert set(without) == {k for k in report if k.startswith("features/") and "intra" not in k}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_in_one_line(bad):
    x = np.ones((4, 3))
    x[2, 1] = bad
    single = [
        collapse.spectrum,
        collapse.feature_sd,
        collapse.rankme,
        collapse.effective_rank,
        collapse.participation_ratio,
        lambda x: collapse.intracluster_variance(x, [0, 0, 1, 1]),
        lambda x: collapse.collapse_report(np.ones((4, 2)), x),
    ]
    for function in single:
        with pytest.raises(ValueError, match=r"1 of 12 values .* row 2, column 1") as error:
            function(x)
        assert "\n" not in str(error.value)


def test_report_refuses_lengths_that_differ():
    x = np.random.default_rng(0).normal(size=(6, 3))
    for arguments, words in [
        ((x, x[:5]), "embeddings: 5 rows for 6"),
        ((x, None, np.zeros(5, int), None, 4), "codes: 5 entries for 6 rows"),
        ((x, None, None, None, None, np.zeros(7, int)), "labels: 7 entries for 6 rows"),
        ((x, None, np.zeros(6, int)), "c: the size of the dictionary"),
    ]:
        with pytest.raises(ValueError, match=words):
            collapse.collapse_report(*arguments)
