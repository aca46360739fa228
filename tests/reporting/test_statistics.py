"""Numbers by hand and by brute force, and how often the rules err when the truth is known."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from peregrine.reporting import statistics
from peregrine.reporting.statistics import (
    cell_verdict,
    detectable,
    equal_within,
    equivalence_p,
    estimate,
    holm,
    kendall,
    kendall_bootstrap,
    kendall_p,
    log_slopes,
    p_value,
    paired,
    pooled,
    prediction_half_width,
)

T975, T95 = 4.302652729911275, 2.919985580353726  # quantiles of t with 2 degrees of freedom
DRAWS = 4000
ERROR = 4 * math.sqrt(0.05 * 0.95 / DRAWS)  # four standard errors of a simulated 5 %


def three(mean: float, sd: float) -> list[float]:
    """Three values with exactly this mean and standard deviation."""
    return [mean - sd, mean, mean + sd]


def test_interval_by_hand():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - T975 / math.sqrt(3))
    assert found.high == pytest.approx(2 + T975 / math.sqrt(3))


def test_one_value_has_a_mean_only_and_none_nothing():
    assert estimate([0.7]) == statistics.Estimate(1, 0.7)
    assert estimate([]) == statistics.Estimate(0)


@pytest.mark.parametrize("k", [3, 5, 10])
def test_the_interval_covers_the_truth_95_times_in_100(k):
    draws = np.random.default_rng(k).normal(size=(DRAWS, k))
    found = [estimate(row) for row in draws]
    assert np.mean([f.low <= 0 <= f.high for f in found]) == pytest.approx(0.95, abs=ERROR)


@pytest.mark.parametrize("k", [2, 5])
def test_the_true_standard_deviation_is_in_its_range_95_times_in_100(k):
    low, high = statistics.sd_range(k)
    measured = np.random.default_rng(k).normal(size=(DRAWS, k)).std(axis=1, ddof=1)
    inside = (low * measured <= 1) & (high * measured >= 1)
    assert np.mean(inside) == pytest.approx(0.95, abs=ERROR)
    assert np.mean(low * measured > 1) == pytest.approx(0.025, abs=ERROR)


@pytest.mark.parametrize(("k", "n"), [(3, 1), (5, 1), (10, 1), (5, 4)])
def test_the_prediction_interval_misses_5_times_in_100(k, n):
    rng = np.random.default_rng(k + n)
    ours, theirs = rng.normal(size=(DRAWS, k)), rng.normal(size=(DRAWS, n)).mean(axis=1)
    half = np.array([prediction_half_width(sd, k, n) for sd in ours.std(axis=1, ddof=1)])
    assert np.mean(abs(ours.mean(axis=1) - theirs) > half) == pytest.approx(0.05, abs=ERROR)


def test_paired_differences_use_the_seeds_that_both_have():
    a, b = {0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.5, 2: 0.6, 3: 0.1}
    assert paired(a, b) == pytest.approx({1: 0.3, 2: 0.1})
    assert list(paired({2: 1.0, 1: 1.0}, {1: 0.0, 2: 0.0})) == [1, 2]


def test_interaction_is_a_difference_of_paired_differences():
    gain, other = {0: 0.3, 1: 0.5}, {0: 0.1, 1: 0.1}
    assert paired(gain, other) == pytest.approx({0: 0.2, 1: 0.4})


def test_pooling_averages_within_a_seed():
    assert pooled([{0: 1.0, 1: 2.0}, {0: 3.0, 1: 6.0, 2: 9.0}]) == {0: 2.0, 1: 4.0}


def test_p_value_by_hand():
    # With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2), and t = 2 sqrt(3).
    assert p_value([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14))
    assert p_value([1.0, 2.0, 3.0], null=2.0) == pytest.approx(1.0)


def test_equal_values_are_certain():
    assert p_value([0.5, 0.5, 0.5]) == 0.0
    assert p_value([0.5, 0.5, 0.5], null=0.5) == 1.0


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("k", "alpha"), [(3, 0.05), (5, 0.05), (3, 0.05 / 8)])
def test_a_detectable_effect_is_found_4_times_in_5(k, alpha):
    draws = np.random.default_rng(1).normal(detectable(2.0, k, alpha=alpha), 2.0, (20_000, k))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(k))
    assert np.mean(t > stats.t.ppf(1 - alpha / 2, k - 1)) == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize(("k", "alpha"), [(3, 0.05), (5, 0.05), (5, 0.0125)])
def test_equality_is_found_4_times_in_5_within_that_margin(k, alpha):
    margin = equal_within(2.0, k, alpha=alpha)
    draws = np.random.default_rng(2).normal(0.0, 2.0, (20_000, k))
    high = stats.t.ppf(1 - alpha, k - 1) * draws.std(axis=1, ddof=1) / math.sqrt(k)
    assert np.mean(abs(draws.mean(axis=1)) + high < margin) == pytest.approx(0.8, abs=0.01)
    few = draws[:200]
    found = [equivalence_p(row, margin) < alpha and abs(row.mean()) < margin for row in few]
    assert found == list((abs(draws.mean(axis=1)) + high < margin)[:200])


@pytest.mark.parametrize("side", [-1, 1])
def test_rows_that_differ_by_the_margin_are_found_equal_5_times_in_100(side):
    draws = np.random.default_rng(3).normal(side * 1.0, 0.3, (4_000, 5))
    equal = [equivalence_p(row, 1.0) < 0.05 and abs(row.mean()) < 1.0 for row in draws]
    assert np.mean(equal) == pytest.approx(0.05, abs=0.01)
    beyond = [equivalence_p(row, 1.0) < 0.05 and abs(row.mean()) > 1.0 for row in draws]
    assert np.mean(beyond) <= 0.05


def test_log_slope_is_per_tenfold():
    line = {10.0: {0: 1.0, 1: 5.0}, 100.0: {0: 3.0, 1: 5.0}, 1000.0: {0: 5.0, 1: 5.0, 2: 1.0}}
    assert log_slopes(line) == pytest.approx({0: 2.0, 1: 0.0})
    # x = 0, 1, 3 decades: slope = sum (x - 4/3) y / sum (x - 4/3)^2 = (5/3) / (42/9)
    assert log_slopes({1.0: {0: 0.0}, 10.0: {0: 0.0}, 1000.0: {0: 1.0}})[0] == pytest.approx(5 / 14)


@pytest.mark.parametrize("y", [[1, 3, 2, 4], [1, 1, 2, 3], [2, 2, 1, 1]])
@pytest.mark.parametrize("x", [[1, 2, 3, 4], [1, 2, 2, 3]])
def test_kendall_p_is_the_share_of_permutations(x, y):
    tau, p = kendall(x, y), kendall_p(x, y)
    every = [abs(stats.kendalltau(x, list(order)).statistic) for order in permutations(y)]
    assert p == pytest.approx(np.mean(np.array(every) >= abs(tau) - 1e-9))


def test_kendall_of_a_perfect_order():
    best = [1, 2, 3, 4, 5], [10, 20, 30, 40, 50]
    assert (kendall(*best), kendall_p(*best)) == (pytest.approx(1), pytest.approx(2 / 120))
    assert math.isnan(kendall([1, 2, 3], [5, 5, 5]))
    # 6 pairs, 3 of them tied on one side; the other 3 agree: 3 / sqrt(3 * 6).
    assert kendall([1, 2, 2, 2], [1, 3, 2, 4]) == pytest.approx(1 / math.sqrt(2))
    with pytest.raises(ValueError, match="one length"):
        kendall([1, 2], [1, 2, 3])


def test_kendall_above_the_exact_size_agrees_with_the_exact_law():
    y = [2, 1, 3, 4, 6, 5, 9, 7, 8, 10]
    exact = stats.kendalltau(range(10), y, method="exact")
    assert kendall_p(range(10), y) == pytest.approx(exact.pvalue, abs=1e-4)
    weak = [5, 1, 8, 2, 9, 3, 10, 7, 4, 6]
    exact = stats.kendalltau(range(10), weak, method="exact")
    assert kendall_p(range(10), weak) == pytest.approx(exact.pvalue, abs=0.007)


def test_bootstrap_over_seeds():
    certain = np.array([[1.0, 2.0, 3.0], [1.1, 2.1, 3.1]])
    assert kendall_bootstrap([1, 2, 3], certain, draws=50) == (1.0, 1.0)
    # One seed of two reverses the order: drawn twice it decides, so both ends are reached.
    split = np.array([[1.0, 2.0, 3.0], [6.0, 4.0, 2.0]])
    assert kendall_bootstrap([1, 2, 3], split, draws=200) == (-1.0, 1.0)
    # Means that differ by rounding alone are tied: (.1 + .2 + .3) / 3 and (.3 + .2 + .1) / 3.
    tied = np.array([[0.1, 0.3, 0.9], [0.2, 0.2, 0.9], [0.3, 0.1, 0.9]])
    # Of 27 draws 10 have more of seed 2 (tau 1/3), 7 as much of 0 and 2 (tied: 2 / sqrt 6), 10 more
    # of seed 0 (tau 1).
    assert kendall_bootstrap([1, 2, 3], tied) == (pytest.approx(1 / 3), 1.0)
    middle = pytest.approx(2 / math.sqrt(6))
    assert kendall_bootstrap([1, 2, 3], tied, level=0.1) == (middle, middle)


# With 3 seeds: 90 % with published noise 3.372 sd, 90 % of our mean 1.686 sd, 95 % prediction
# 4.968 sd + .0005; tolerance .005 + .0005.
@pytest.mark.parametrize(
    ("difference", "sd", "verdict"),
    [
        (0.0035, 0.0005, "reproduced"),  # .0035 + .0017 < .0055
        (0.0046, 0.0005, "reproduced (printed value)"),  # .0046 + .0017 > .0055 > .0046 + .0008
        (-0.0040, 0.0005, "reproduced (printed value)"),
        (0.0030, 0.0020, "consistent"),  # .0030 + .0034 > .0055, prediction .0104
        (0.0056, 0.0010, "above published"),  # prediction .0055
        (-0.0056, 0.0010, "below published"),
        (0.0054, 0.0005, "inconclusive"),  # outside the prediction .0030, yet within tolerance
        (0.0080, 0.0030, "inconclusive"),  # inside the prediction .0154, yet beyond tolerance
    ],
)
def test_cell_verdicts_in_order(difference, sd, verdict):
    found = cell_verdict(three(0.7 + difference, sd), 0.7, half_width=0.0005)
    assert str(found) == verdict
    assert (found.detectable is not None) == (verdict == "consistent")


def test_the_prediction_is_widened_by_rounding():
    values = three(0.7 + 0.0062, 0.0012)  # prediction .00596 without, .00646 with the half-width
    assert cell_verdict(values, 0.7).agreement == "above published"
    assert cell_verdict(values, 0.7, half_width=0.0005).agreement == "inconclusive"


def test_more_published_runs_reproduce_sooner():
    values = three(0.7 + 0.0040, 0.0005)
    assert cell_verdict(values, 0.7, half_width=0.0005, n=10).agreement == "reproduced"


def test_set_up_comes_before_numbers_and_nothing_before_both():
    values = three(0.7, 0.0001)
    assert str(cell_verdict([], 0.7)) == "not run"
    assert str(cell_verdict([], 0.7, failed=3)) == "failed"
    assert str(cell_verdict([], 0.7, failed=3, same_setup=False)) == "failed"
    assert str(cell_verdict([], 0.7, same_setup=False)) == "not run"
    assert str(cell_verdict(values, 0.7, same_setup=False, assumed=True)) == "other set-up"
    assert str(cell_verdict(values, 0.7, assumed=True)) == "reproduced under declared assumptions"
    assert str(cell_verdict(values[:1], 0.7)) == "inconclusive"
    assert str(cell_verdict(values, 0.7, failed=1)) == "inconclusive"


def test_consistent_prints_the_bias_that_it_would_have_caught():
    rng, k, sd = np.random.default_rng(3), 5, 0.006
    values = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * sd / math.sqrt(0.625) + 0.7
    found = cell_verdict(values, 0.7)
    assert found.agreement == "consistent"
    ours = rng.normal(0.7 + found.detectable, sd, (20_000, k))
    theirs = rng.normal(0.7, sd, 20_000)
    half = stats.t.ppf(0.975, k - 1) * ours.std(axis=1, ddof=1) * math.sqrt(1 / k + 1)
    assert np.mean(ours.mean(axis=1) - theirs > half) == pytest.approx(0.8, abs=0.012)


def rates(monkeypatch, bias: float, k: int, published_noise: bool) -> dict[str, float]:
    monkeypatch.setattr(statistics, "detectable", lambda *args, **kwargs: 0.0)  # slow, not needed
    rng, draws = np.random.default_rng(k), 1500
    ours = rng.normal(0.7 + bias, 0.003, (draws, k))
    theirs = rng.normal(0.7, 0.003 * published_noise, draws)
    found = [cell_verdict(a, b).agreement for a, b in zip(ours, theirs, strict=True)]
    return {name: found.count(name) / draws for name in set(found)}


@pytest.mark.parametrize("k", [3, 10])
def test_a_perfect_reproduction_is_called_off_at_most_5_times_in_100(monkeypatch, k):
    found = rates(monkeypatch, 0.0, k, published_noise=True)
    assert found.get("above published", 0) + found.get("below published", 0) <= 0.06


@pytest.mark.parametrize("k", [3, 10])
def test_a_bias_at_the_tolerance_is_called_reproduced_at_most_5_times_in_100(monkeypatch, k):
    found = rates(monkeypatch, 0.005, k, published_noise=False)
    assert found.get("reproduced", 0) + found.get("reproduced (printed value)", 0) <= 0.065
    assert rates(monkeypatch, 0.03, k, published_noise=True)["above published"] > 0.9
