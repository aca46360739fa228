"""Mixture entropies against closed forms, and each step of EM against scikit-learn."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from peregrine.diagnostics import mixture, released

GAUSSIAN = 0.5 * np.log(2 * np.pi * np.e)


def mixture_entropy(x, k, seed):
    return mixture.mixture_entropies(x, [k], seed)[k]


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def rotation(d, seed=1):
    return np.linalg.qr(normal(d, d, seed))[0]


def pair(at, spread, n, d):
    """n points around `at`: along every axis half of them at + spread, half at - spread."""
    signs = np.where((np.arange(n)[:, None] >> np.arange(d)) % 2, 1.0, -1.0)
    return at + spread * signs


@pytest.fixture(scope="module")
def fitted():
    """(x, scikit-learn's mixture of 4 components after three steps, ours after as many)."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(90, 3)) + 2 * draw.integers(3, size=(90, 1))
    shares = np.eye(4)[next(mixture._starts(x, [4], draw))[1]]
    weights, means, variances = mixture.maximise(x, shares)
    model = GaussianMixture(
        4,
        covariance_type="diag",
        reg_covar=1e-6,
        max_iter=3,
        tol=0,
        weights_init=weights,
        means_init=means,
        precisions_init=1 / variances,
    )
    with pytest.warns(match="did not converge"):
        model.fit(x)
    for _ in range(3):
        weights, means, variances = mixture.maximise(
            x, mixture.responsibilities(x, weights, means, variances)[0]
        )
    return x, model, (weights, means, variances)


def test_every_step_is_that_of_scikit_learn(fitted):
    x, model, (weights, means, variances) = fitted
    np.testing.assert_allclose(weights, model.weights_, rtol=1e-9)
    np.testing.assert_allclose(means, model.means_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variances, model.covariances_, rtol=1e-9)
    shares, likelihood = mixture.responsibilities(x, weights, means, variances)
    np.testing.assert_allclose(shares, model.predict_proba(x), rtol=1e-8, atol=1e-12)
    assert likelihood == pytest.approx(model.score(x), rel=1e-12)


def test_it_starts_at_rows_that_lie_apart():
    x = np.repeat([[0.0, 0], [50, 0], [0, 50]], [1, 80, 2], axis=0)
    for seed in range(5):
        (_, two), (_, three) = mixture._starts(x, [2, 3], np.random.default_rng(seed))
        assert sorted(np.bincount(three)) == [1, 2, 80]
        assert len(np.bincount(two)) == 2
        assert (two[three < 2] == three[three < 2]).all()  # the third took rows from them
    # More components than distinct rows: the spare ones stay empty, and nothing breaks.
    assert np.isfinite(mixture_entropy(x, 5, 0))


def test_one_component_is_the_gaussian_of_the_same_variances():
    x = normal(200, 3) * [1.0, 2.0, 0.0] + 5
    variances = np.array([x[:, 0].var(), x[:, 1].var(), 0.0]) + 1e-6
    expected = 0.5 * np.log(2 * np.pi * np.e * variances).sum()
    assert mixture_entropy(x, 1, 0) == pytest.approx(expected, rel=1e-9)
    assert mixture.gaussian_entropy(variances - 1e-6) == pytest.approx(expected, rel=1e-12)


def test_clusters_apart_add_the_entropy_of_their_weights():
    """Shares 1/4 and 3/4 of variance s^2 in each of three dimensions, far apart."""
    x = np.concatenate([pair(-100, 0.5, 16, 3), pair(100, 0.5, 48, 3)])
    share = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = share + 3 * (GAUSSIAN + 0.5 * np.log(0.25 + 1e-6))
    assert mixture_entropy(x, 2, 0) == pytest.approx(expected, rel=1e-9)


def test_two_components_on_one_place_are_one():
    """What overlaps is not counted twice: the bound sum w (H_k - ln w_k) would add ln 2."""
    x = pair(0.0, 1.0, 8, 3)
    half = np.full((8, 2), 0.5)
    model = mixture.maximise(x, half)
    shares, _ = mixture.responsibilities(x, *model)
    np.testing.assert_allclose(shares, half)
    within = model[0] @ (GAUSSIAN + 0.5 * np.log(model[2])).sum(axis=1)
    assert within == pytest.approx(3 * (GAUSSIAN + 0.5 * np.log(1 + 1e-6)))
    assert mixture_entropy(normal(3000, 2), 2, 0) == pytest.approx(2 * GAUSSIAN, abs=0.05)


def report(x, sizes=(1, 2, 5), sample=10_000):
    return mixture.mixture_report(x, sizes, sample=sample, seed=0)


def test_a_correlated_gaussian_is_no_cluster():
    """In principal axes one component is the Gaussian of the same covariance, however rotated."""
    x = normal(4000, 6) * np.arange(1, 7.0) @ rotation(6) + 3
    found = report(x)
    assert found["mixture_relative_k1"] == pytest.approx(0, abs=1e-6)
    assert found["mixture_chance_k1"] == pytest.approx(0, abs=1e-6)
    assert found["mixture_relative_k5"] == pytest.approx(found["mixture_chance_k5"], abs=0.005)
    assert found["mixture_rank"] == 6
    # Of total variance 6; variances 1, 4, ... 36 sum to 91.
    entropy = GAUSSIAN + 0.5 * np.log(np.arange(1, 7.0) ** 2 * 6 / 91).mean()
    assert found["gaussian_entropy"] == pytest.approx(entropy, abs=0.02)
    assert found["mixture_entropy_k1"] == pytest.approx(found["gaussian_entropy"], abs=1e-6)
    assert found["mixture_entropy_ceiling"] == pytest.approx(GAUSSIAN)


def test_clusters_lie_below_a_gaussian_and_scale_says_nothing():
    """Two points 2 apart on one axis: variance 1 there, s^2 on the others."""
    s = 0.1
    x = np.column_stack([np.repeat([-1.0, 1.0], 32), pair(0, s, 64, 2)])
    found = report(x, (2,))
    unit = 3 / (1 + 2 * s**2)  # total variance 3
    # One axis: ln 2 + GAUSSIAN + ln(1e-6) / 2, against GAUSSIAN + ln(unit) / 2.
    expected = (np.log(2) + 0.5 * np.log(1e-6) - 0.5 * np.log(unit + 1e-6)) / 3
    assert found["mixture_relative_k2"] == pytest.approx(expected, rel=1e-6)
    again = report(1e-4 * x @ rotation(3) + 7, (2,))
    assert again["mixture_relative_k2"] == pytest.approx(expected, rel=1e-3)


def test_dimensional_collapse_shows_in_the_gaussian_and_not_as_clusters():
    x = normal(500, 1) @ np.ones((1, 4))
    found = report(x)
    assert found["mixture_rank"] == 1
    expected = GAUSSIAN + (0.5 * np.log(4) + 1.5 * np.log(1e-6)) / 4
    assert found["gaussian_entropy"] == pytest.approx(expected, rel=1e-6)
    assert found["mixture_relative_k1"] == pytest.approx(0, abs=1e-6)
    assert -0.05 < found["mixture_relative_k5"] <= 0


def test_degenerate_input():
    for x in (np.full((40, 3), 0.1), np.ones((1, 3)), np.zeros((40, 3))):
        assert set(report(x)) == {"mixture_n", "mixture_skipped"}
    assert report(np.ones((1, 3)))["mixture_skipped"] == [1, 2, 5]
    wide = report(normal(14, 50), (1, 4, 5))  # n < d: 13 directions
    assert wide["mixture_rank"] == 13
    assert wide["mixture_skipped"] == [5]
    assert wide["mixture_relative_k1"] == pytest.approx(0, abs=1e-9)
    assert "mixture_relative_k5" not in wide
    x = normal(4, 3)
    x[1, 2] = np.nan
    for refusing in (report, lambda x: released_report(x), released.released_spectrum):
        with pytest.raises(ValueError, match="row 1, column 2"):
            refusing(x)


def test_a_larger_sample_is_cut_and_the_same_again():
    x = normal(300, 4)
    found = report(x, (3,), sample=90)
    assert found["mixture_n"] == 90
    assert found == report(x, (3,), sample=90)
    picks = mixture.sampled(300, 90, 0)
    assert len(set(picks.tolist())) == 90
    assert report(x[picks], (3,)) == found
    assert found["mixture_relative_k3"] != report(x, (3,))["mixture_relative_k3"]


# --- the released reading ------------------------------------------------------------------------


def released_report(x, sizes=(2,), codes=None, sample=10_000):
    codes = np.zeros(len(x), int) if codes is None else codes
    return released.released_report(x, codes, 8, sizes, sample=sample, seed=0)


def test_a_padded_column_adds_a_constant(monkeypatch):
    """falcon.md, section 2: -5.49 nats each, -10538 of SwAV's -10658; per real dimension -0.93,
    and -1.25 of DINO's 256."""
    assert released.PADDING == pytest.approx(-5.49, abs=0.005)
    swav, dino = 1920 * released.PADDING, 1792 * released.PADDING
    assert swav == pytest.approx(-10538, abs=1)
    assert (-10658 - swav) / 128 == pytest.approx(-0.93, abs=0.01)
    assert (-10156 - dino) / 256 == pytest.approx(-1.25, abs=0.01)
    monkeypatch.setattr(mixture, "TOLERANCE", -1.0)  # both take all steps
    x = np.random.default_rng(0).uniform(size=(60, 4))
    padded = np.column_stack([x, np.zeros((60, 9))])
    expected = mixture_entropy(x, 3, 0) + 9 * released.PADDING
    assert mixture_entropy(padded, 3, 0) == pytest.approx(expected, rel=1e-9)


def test_the_released_entropy_is_of_the_scaled_and_padded_matrix():
    # Values -2 to 6 become 0 to 1: clusters at 0 and 3/4 of the first, 1/2 and 1 of the second.
    x = np.repeat([[-2.0, 2.0], [4.0, 6.0]], [10, 30], axis=0)
    found = released_report(x)
    share = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert found["embeddings/mixture_padding"] == pytest.approx(2046 * released.PADDING)
    assert found["embeddings/mixture_entropy_k2"] == pytest.approx(share + 2048 * released.PADDING)
    again = released_report(5 * x - 3)
    assert again["embeddings/mixture_entropy_k2"] == pytest.approx(share + 2048 * released.PADDING)
    np.testing.assert_allclose(released.min_max(x)[[0, 39]], [[0, 0.5], [0.75, 1]])
    wide = released_report(normal(30, 2100))
    assert wide["embeddings/mixture_padding"] == 0
    assert (found["codes/occupied"], found["codes/c"]) == (1, 8)
    assert released_report(x, (2, 13, 14))["embeddings/mixture_skipped"] == [14]
    assert released_report(np.ones((40, 2))).keys() >= {"embeddings/n", "codes/dead"}
    assert "embeddings/mixture_entropy_k2" not in released_report(np.ones((40, 2)))


def test_the_released_spectrum_is_not_centred():
    x = np.array([[0.0, 0.5], [1.0, 0.5], [0.0, 0.5], [1.0, 0.5]])
    # H^T H / n = [[1/2, 1/4], [1/4, 1/4]]: eigenvalues (3 +- sqrt 5) / 8.
    expected = (3 + np.array([1, -1]) * np.sqrt(5)) / 8
    np.testing.assert_allclose(released.released_spectrum(x) ** 2, expected)
    np.testing.assert_allclose(released.released_spectrum(9 * x - 4) ** 2, expected)
    assert released.released_spectrum(np.ones((5, 2))).size == 0
    assert released.released_spectrum(normal(3, 7)).shape == (3,)


@pytest.mark.parametrize(("width", "published"), [(128, 3.4), (256, 4.2), (2048, 6.3)])
def test_the_first_published_value_is_the_mean_alone(width, published):
    """SwAV, DINO and CPLearn: embeddings of both signs have mean 1/2 after scaling."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(60, width)) ** 3
    first = released.released_spectrum(x)[0] ** 2
    assert np.log(first) == pytest.approx(published, abs=0.2)
    assert np.log(width / 4) == pytest.approx(published, abs=0.1)
