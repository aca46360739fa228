"""Cosines of random codes against enumeration."""

import itertools
import math

import numpy as np
import pytest

from peregrine.theory.codes import measure_codes, random_codes


def test_moments_of_the_cosine_by_enumeration():
    """All pairs of sign vectors with f = 3: the moments behind the standard errors."""
    f = 3
    vectors = np.array(list(itertools.product([-1, 1], repeat=f)))
    cosines = (vectors @ vectors.T / f).ravel()
    assert cosines.mean() == 0
    assert (cosines**2).mean() == pytest.approx(1 / f, rel=1e-12)
    assert (cosines**2).var() == pytest.approx((2 * f - 2) / f**3, rel=1e-12)


def test_measured_over_all_pairs(tiny):
    sizes = tiny(code_widths=[5, 40], code_count=12)
    found = {(f, metric): value for f, _, metric, value in measure_codes(sizes)}
    for f in (5, 40):
        signs = random_codes(f, 12, "codes", f).numpy()
        assert set(np.unique(signs)) == {-1, 1}
        cosines = [a @ b / f for a, b in itertools.combinations(signs.T, 2)]
        assert len(cosines) == 66
        mean, variance = np.mean(cosines), np.mean(np.square(cosines))
        assert found[f, "cosine_mean"] == pytest.approx(mean, rel=1e-10)
        assert found[f, "cosine_variance"] == pytest.approx(variance, rel=1e-10)
        assert found[f, "cosine_mean_z"] == pytest.approx(mean / math.sqrt(1 / f / 66), rel=1e-10)
        error = math.sqrt((2 * f - 2) / f**3 / 66)
        assert found[f, "cosine_variance_z"] == pytest.approx((variance - 1 / f) / error, rel=1e-9)
