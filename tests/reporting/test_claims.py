"""Verdicts of claims from constructed seeds: every kind of test, every verdict, every reason."""

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from peregrine.config.load import Cell, build_run
from peregrine.config.study import Claim, Study
from peregrine.config.study import Test as Declared
from peregrine.errors import UserError
from peregrine.reporting.claims import judge
from peregrine.reporting.document_claims import printed_claim
from peregrine.reporting.records import Evidence, Measurement, Records, SeedRun

CODES = {"a": 16, "b": 256, "c": 4096, "d": 16384}
T975 = 4.302652729911275


def make_cell(row: str) -> Cell:
    method = {"name": "falcon", "codes": CODES[row]}
    run = build_run([{"dataset": {"name": "toy"}, "views": [{}], "method": method}], row)
    return Cell("toy", row, row.upper(), run, f"run-{row}")


CELLS = {row: make_cell(row) for row in "abc"}  # d is of another scale


def evidence(values: dict[str, dict], status: dict[tuple[str, int], str] | None = None) -> Evidence:
    """values: row -> metric -> list over seeds, None where that seed has left nothing."""
    measurements, runs = [], []
    for row in CELLS:
        metrics = values.get(row, {})
        for metric, series in metrics.items():
            for seed, value in enumerate(series):
                if value is not None:
                    key = ("toy", row, row, f"run-{row}", seed, "corrected", "std", metric)
                    measurements.append(Measurement(*key, value))
        for seed in range(3):
            state = (status or {}).get((row, seed), "finished" if metrics else "missing")
            runs.append(
                SeedRun(row, row, f"run-{row}", seed, state, 3, "code", "data", "cpu", "2", "")
            )
    study = Study(
        name="toy", title="T", paper="P", summary="S", defaults={},
        rows={row: {"label": row.upper()} for row in CODES},
        tables=(), figures=(), claims=(), assumptions=(),
    )  # fmt: skip
    return Evidence(study, CELLS, Records(measurements, runs), {}, "demo", "std")


def claim(*tests: dict, not_run: str = "", any_test: bool = False) -> Claim:
    return Claim(id="X", statement="S", tests=tests, not_run=not_run, any_test=any_test)


def asked(kind: str, rows="a", against="", **over) -> dict:
    given = {"kind": kind, "metric": "m", "label": kind, "rows": tuple(rows)}
    return given | {"against": tuple(against)} | over


def found(tests, values, **over) -> dict:
    return judge(claim(*tests, **over), evidence(values))


HIGH, LOW, WIDE = [0.59, 0.60, 0.61], [0.01, 0.02, 0.03], [0.1, 0.6, 0.8]


@pytest.mark.parametrize(
    ("kind", "series", "verdict"),
    [
        ("above", HIGH, "supported"),
        ("above", LOW, "contradicted"),
        ("above", WIDE, "undecided"),
        ("below", LOW, "supported"),
        ("below", HIGH, "contradicted"),
        ("below", WIDE, "undecided"),
    ],
)
def test_thresholds(kind, series, verdict):
    result = found([asked(kind, threshold=0.3)], {"a": {"m": series}})
    assert result["verdict"] == f"{verdict} @demo"
    assert result["tests"][0]["verdict"] == verdict


def test_numbers_of_a_test_by_hand():
    result = found([asked("above", threshold=0.5)], {"a": {"m": HIGH}})
    (test,) = result["tests"]
    # mean .6, sd .01, error .01 / sqrt 3; with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    t = 0.1 / (0.01 / math.sqrt(3))
    assert test["effect"] == 0.6
    assert test["interval"] == pytest.approx(
        [0.6 - T975 * 0.01 / math.sqrt(3), 0.6 + T975 * 0.01 / math.sqrt(3)], abs=1e-6
    )
    assert test["p"] == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-6)
    assert (test["seeds"], test["missing"], test["failed"], test["threshold"]) == (3, 0, 0, 0.5)
    assert (test["label"], test["evidence"]) == ("above: A", ["a"])
    assert (result["effect"], result["interval"]) == (test["effect"], test["interval"])


def test_a_ceiling_divides_first():
    values = {"a": {"m": [8.0, 9.0, 10.0], "top": [10.0, 10.0, 10.0]}}
    result = found([asked("above", ceiling="top", threshold=0.5)], values)
    assert result["tests"][0]["effect"] == 0.9
    values["a"]["top"] = [0.0, 0.0, 0.0]
    result = found([asked("above", ceiling="top", threshold=0.5)], values)
    assert result["verdict"] == "not run @demo"
    assert "its ceiling top is 0" in result["reason"]


def test_every_row_is_judged_by_itself():
    values = {"a": {"m": HIGH}, "b": {"m": LOW}}
    result = found([asked("above", "ab", threshold=0.3)], values)
    assert [test["label"] for test in result["tests"]] == ["above: A", "above: B"]
    assert [test["verdict"] for test in result["tests"]] == ["supported", "contradicted"]
    assert result["verdict"] == "mixed @demo"
    assert result["evidence"] == ["a", "b"]


@pytest.mark.parametrize(
    ("series", "verdict"), [((HIGH, HIGH), "undecided"), ((HIGH, LOW), "mixed")]
)
def test_rows_that_the_scale_lacks_rule_out_support(series, verdict):
    values = {"a": {"m": series[0]}, "b": {"m": series[1]}}
    result = found([asked("above", "abd", threshold=0.3)], values)
    assert result["tests"][0]["verdict"] == "supported"
    assert result["verdict"] == f"{verdict} @demo"
    assert "not run at scale demo: d" in result["reason"]


def test_a_test_of_other_data_leaves_the_verdict_to_the_others():
    """No row of it is run; rows that are run and have no number do count."""
    elsewhere = asked("difference", "d", "d", label="elsewhere")
    result = found([asked("above", threshold=0.3), elsewhere], {"a": {"m": HIGH}})
    assert [test["verdict"] for test in result["tests"]] == ["supported", "not run"]
    assert result["verdict"] == "supported @demo"
    assert "elsewhere: not run at scale demo" in result["reason"]
    partly = asked("difference", "b", "d")
    result = found([asked("above", threshold=0.3), partly], {"a": {"m": HIGH}, "b": {"m": HIGH}})
    assert result["verdict"] == "undecided @demo"
    result = found([asked("above", threshold=0.3), asked("above", "b")], {"a": {"m": HIGH}})
    assert result["verdict"] == "undecided @demo"
    assert found([elsewhere], {"a": {"m": HIGH}})["verdict"] == "not run @demo"


def test_a_threshold_without_any_row_is_not_run():
    result = found([asked("above", "d", threshold=0.3)], {"a": {"m": HIGH}})
    assert result["verdict"] == "not run @demo"
    assert "not run at scale demo" in result["reason"]


def test_a_test_names_the_rows_without_which_nothing_is_tested():
    """Not those whose absence leaves something to test, nor rows that are run without a value."""
    values = {row: {"m": HIGH} for row in "ab"}
    tests = [
        asked("above", "dd"),
        asked("above", "ad"),
        asked("above", "c"),
        asked("difference", "ba", "da"),
        asked("trend", "abd", option="method.codes"),
        asked("trend", "ab", option="method.codes"),
        asked("trend", "abcd", option="method.codes"),
    ]
    found_tests = found(tests, values)["tests"]
    assert [t["lacking"] for t in found_tests] == [["d"], [], [], ["d"], ["d"], [], []]
    assert [t["verdict"] for t in found_tests].count("not run") == 6


def test_differences_are_paired_by_seed():
    # Spread over seeds .5, but every seed gains .09, .10 or .11.
    base, better = [0.1, 0.6, 0.9], [0.19, 0.70, 1.01]
    result = found([asked("difference", "b", "a")], {"a": {"m": base}, "b": {"m": better}})
    assert (result["verdict"], result["effect"]) == ("supported @demo", 0.1)
    result = found([asked("difference", "a", "b")], {"a": {"m": base}, "b": {"m": better}})
    assert (result["verdict"], result["effect"]) == ("contradicted @demo", -0.1)
    for order in ("ab", "ba"):
        values = {"a": {"m": base}, "b": {"m": better}}
        result = found([asked("differs", order[0], order[1])], values)
        assert result["verdict"] == "supported @demo"


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([-0.001, 0.0, 0.001], 0.005, "supported"),
        ([-0.021, -0.020, -0.019], 0.005, "contradicted"),  # beyond it on the lower side
        ([0.019, 0.020, 0.021], 0.005, "contradicted"),
        ([-0.05, 0.0, 0.06], 0.005, "undecided"),  # a mean near 0 shows nothing by itself
        ([0.002, 0.002, 0.002], 0.005, "supported"),
    ],
)
def test_equality_has_to_be_shown(differences, margin, verdict):
    base = [0.5, 0.6, 0.7]
    values = {"a": {"m": base}, "b": {"m": [x + d for x, d in zip(base, differences, strict=True)]}}
    test = asked("equivalent", "b", "a", threshold=margin)
    result = found([test], values)
    assert result["verdict"] == f"{verdict} @demo"
    assert ("equal rows to be equal within" in result["reason"]) == (verdict == "undecided")
    # Half of the two-sided p against the nearer end: t = (margin - |mean|) sqrt(3) / sd.
    if verdict == "supported" and differences[0] != differences[1]:
        t = 0.005 * math.sqrt(3) / 0.001
        p = 0.5 * (1 - t / math.sqrt(t * t + 2))  # Student's law with 2 degrees of freedom
        assert result["tests"][0]["p"] == pytest.approx(p, abs=1e-6)
    with pytest.raises(ValidationError, match="above 0"):
        claim(test | {"threshold": 0.0})


def test_pairs_are_pooled_within_a_seed():
    values = {"a": {"m": [0.0] * 3}, "b": {"m": [0.1, 0.2, 0.3]}, "c": {"m": [0.3, 0.2, 0.1]}}
    result = found([asked("difference", "bc", "aa")], values)
    assert (result["effect"], result["interval"]) == (0.2, [0.2, 0.2])


def test_interaction_is_a_difference_of_gains():
    values = {
        "a": {"m": [0.1, 0.2, 0.4]},
        "b": {"m": [0.2, 0.3, 0.5]},
        "c": {"m": [0.5, 0.61, 0.8]},
    }
    test = asked("interaction", "c", "b", control=("b",), control_against=("a",))
    result = found([test], values)  # gains .30 .31 .30 minus .1
    assert result["effect"] == pytest.approx(0.203333, abs=1e-6)
    assert result["verdict"] == "supported @demo"


def test_trend_is_the_slope_per_tenfold_of_each_seed():
    steps = {row: math.log10(CODES[row]) for row in "abc"}
    values = {row: {"m": [s * x for s in (0.09, 0.10, 0.11)]} for row, x in steps.items()}
    result = found([asked("trend", "abcd", option="method.codes")], values)
    assert result["effect"] == pytest.approx(0.1)
    assert result["tests"][0]["verdict"] == "supported"
    assert result["verdict"] == "undecided @demo"
    assert "not run at scale demo: d" in result["reason"]
    result = found([asked("trend", "abc", option="method.codes")], values)
    assert result["verdict"] == "supported @demo"
    means = [[CODES[row], pytest.approx(0.1 * x, abs=1e-6)] for row, x in steps.items()]
    assert result["tests"][0]["levels"] == sorted(means, key=lambda level: level[0])
    falling = {row: {"m": values[other]["m"]} for row, other in zip("abc", "cba", strict=True)}
    result = found([asked("trend", "abc", option="method.codes")], falling)
    assert result["verdict"] == "contradicted @demo"


def test_two_values_are_no_trend():
    result = found([asked("trend", "abd", option="method.codes")], {"a": {"m": HIGH}})
    assert result["verdict"] == "not run @demo"
    assert "a trend needs 3 values of method.codes" in result["reason"]


def test_a_trend_over_no_number_or_over_equal_ones_is_refused():
    with pytest.raises(UserError, match="is not a number"):
        found([asked("trend", "abc", option="method.norm")], {})
    with pytest.raises(UserError, match="different positive values"):
        found([asked("trend", "abc", option="method.embedding")], {})


def test_a_contrast_with_a_part_missing_is_not_run():
    result = found([asked("difference", "ba", "dd")], {"a": {"m": HIGH}, "b": {"m": HIGH}})
    assert result["verdict"] == "not run @demo"
    assert "not run at scale demo: d" in result["reason"]


def test_tests_of_a_claim_are_corrected_together():
    # t = .1 / (sd / sqrt 3) = 5: p .0377 alone, .0755 for both of two such tests.
    sd = 0.1 * math.sqrt(3) / 5
    series = [0.1 - sd, 0.1, 0.1 + sd]
    alone = found([asked("above")], {"a": {"m": series}})
    assert alone["verdict"] == "supported @demo"
    both = found([asked("above", "ab")], {"a": {"m": series}, "b": {"m": series}})
    assert both["verdict"] == "undecided @demo"
    p = 1 - 5 / math.sqrt(27)
    assert [test["p"] for test in both["tests"]] == pytest.approx([2 * p, 2 * p], abs=1e-6)
    # The power is that of the stricter level, so more tests need a larger effect.
    assert both["tests"][0]["detectable"] > alone["tests"][0]["detectable"]


def test_every_look_asks_as_much_as_another_test():
    sd = 0.1 * math.sqrt(3) / 5
    values = {"a": {"m": [0.1 - sd, 0.1, 0.1 + sd]}}  # p .0377
    once = judge(claim(asked("above")), evidence(values))
    twice = judge(claim(asked("above")), replace(evidence(values), looks=2))
    assert (once["verdict"], twice["verdict"]) == ("supported @demo", "undecided @demo")
    assert twice["tests"][0]["p"] == pytest.approx(2 * (1 - 5 / math.sqrt(27)), abs=1e-6)
    assert twice["tests"][0]["interval"] == once["tests"][0]["interval"]
    both = found([asked("above", "ab")], values | {"b": values["a"]})
    assert twice["tests"][0]["detectable"] == both["tests"][0]["detectable"]
    wide = replace(evidence({"a": {"m": WIDE}}), looks=9)
    assert judge(claim(asked("above", threshold=0.3)), wide)["tests"][0]["p"] == 1.0


def test_undecided_says_what_would_have_been_seen():
    result = found([asked("above", threshold=0.3)], {"a": {"m": WIDE}})
    shown = result["tests"][0]["detectable"]
    assert shown > 1  # 3.26 standard deviations of .36
    assert f"3 seeds would have shown an effect of {shown:.3g} with 80% power" in result["reason"]


@pytest.mark.parametrize(
    ("series", "verdict"),
    [
        ((HIGH, HIGH), "supported"),
        ((HIGH, WIDE), "undecided"),
        ((HIGH, LOW), "mixed"),
        ((LOW, WIDE), "contradicted"),
        ((HIGH, [None] * 3), "undecided"),
        (([None] * 3, [None] * 3), "not run"),
    ],
)
def test_verdicts_combine(series, verdict):
    values = {"a": {"m": series[0]}, "b": {"m": series[1]}}
    tests = [asked("above", "a", threshold=0.3), asked("above", "b", threshold=0.3)]
    assert found(tests, values)["verdict"] == f"{verdict} @demo"


@pytest.mark.parametrize(
    ("series", "verdict"),
    [
        ((HIGH, LOW), "supported"),
        ((HIGH, WIDE), "supported"),
        ((WIDE, LOW), "undecided"),
        ((LOW, LOW), "contradicted"),
        ((LOW, [None] * 3), "undecided"),
        ((HIGH, [None] * 3), "supported"),
        (([None] * 3, [None] * 3), "not run"),
    ],
)
def test_one_row_may_be_enough(series, verdict):
    values = {"a": {"m": series[0]}, "b": {"m": series[1]}}
    tests = [asked("above", "ab", threshold=0.3, any_row=True)]
    assert found(tests, values)["verdict"] == f"{verdict} @demo"
    # Beside another test it counts once.
    beside = [asked("above", "c", threshold=0.3), *tests, asked("above", "c", threshold=0.2)]
    combined = {"contradicted": "mixed", "not run": "undecided"}.get(verdict, verdict)
    assert found(beside, values | {"c": {"m": HIGH}})["verdict"] == f"{combined} @demo"


def test_a_row_that_is_not_run_might_have_been_the_one():
    test = asked("above", "abd", threshold=0.3, any_row=True)
    values = {"a": {"m": LOW}, "b": {"m": LOW}}
    assert found([test], values)["verdict"] == "undecided @demo"
    # One is enough, whatever the row that is not run would have shown.
    assert found([test], {"a": {"m": LOW}, "b": {"m": HIGH}})["verdict"] == "supported @demo"


@pytest.mark.parametrize(
    ("series", "verdict"),
    [
        ((HIGH, WIDE), "supported"),
        ((HIGH, LOW), "supported"),
        ((WIDE, LOW), "undecided"),
        ((LOW, LOW), "contradicted"),
        ((HIGH, [None] * 3), "supported"),
        ((LOW, [None] * 3), "contradicted"),
        (([None] * 3, [None] * 3), "not run"),
    ],
)
def test_one_test_may_be_enough_for_a_claim(series, verdict):
    values = {"a": {"m": series[0]}, "b": {"m": series[1]}}
    tests = [asked("above", each, threshold=0.3) for each in "ab"]
    result = found(tests, values, any_test=True)
    assert result["verdict"] == f"{verdict} @demo"
    assert result["barred"] == ""
    # What has no test is not shown by another part.
    result = found(tests, values, any_test=True, not_run="the other half has no rows")
    assert result["verdict"].partition(" @")[0] == verdict.replace("supported", "undecided")


def test_votes_are_counted_by_test_and_what_rules_out_support_is_said():
    values = {"a": {"m": HIGH}, "b": {"m": LOW}}
    either = asked("above", "ab", threshold=0.3, any_row=True)
    result = found([either, asked("above", "ab", threshold=0.3)], values)
    assert result["votes"] == {"contradicted": 1, "supported": 2}
    assert (result["barred"], result["interim"]) == ("", False)
    partly = asked("difference", "a", "d")
    result = found([either, partly, partly], values)
    assert result["votes"] == {"not run": 2, "supported": 1}
    assert result["barred"] == "2 of its tests lack rows here"
    assert found([either, partly], values)["barred"] == "1 of its tests lacks rows here"
    assert found([partly], values, not_run="no")["barred"] == "a part of it has no test"
    # A row of any that would do bars nothing, but no refutation of it is complete.
    test = asked("above", "abd", threshold=0.3, any_row=True)
    result = found([test], values)
    assert result["barred"] == ""
    assert "that no row does it cannot be shown here" in result["reason"]


def test_a_verdict_without_all_planned_seeds_is_interim():
    values = {"a": {"m": HIGH[:2]}}
    result = judge(claim(asked("above")), evidence(values, {("a", 2): "missing"}))
    assert result["interim"] is True
    result = judge(claim(asked("above")), evidence(values, {("a", 2): "collapsed"}))
    assert result["interim"] is False  # it will not come


def test_a_report_calls_a_verdict_interim_and_never_one_that_was_not_run():
    labels = {"a": "A"}
    measured = judge(claim(asked("above")), evidence({"a": {"m": HIGH[:2]}}, {("a", 2): "missing"}))
    assert "interim" in printed_claim(measured, "", labels)["state"]
    without = judge(claim(asked("above")), evidence({"a": {"m": []}}, {("a", 2): "missing"}))
    assert (without["verdict"], without["interim"]) == ("not run @demo", True)
    assert printed_claim(without, "", labels)["state"] == ""


def test_a_report_says_which_rows_count_once():
    values = {"a": {"m": LOW}, "b": {"m": LOW}, "c": {"m": HIGH}}
    tests = [asked("above", "c", threshold=0.3), asked("above", "ab", threshold=0.3, any_row=True)]
    printed = printed_claim(found(tests, values), "", {})
    assert "one where one is enough: 1 contradicted, 1 supported" in printed["state"]
    notes = [test["note"] for test in printed["tests"]]
    assert ["one such row is enough" in note for note in notes] == [False, True, True]


def test_a_claim_with_an_untested_part_is_never_supported():
    result = found([asked("above")], {"a": {"m": HIGH}}, not_run="the other half has no rows")
    assert result["tests"][0]["verdict"] == "supported"
    assert result["verdict"] == "undecided @demo"
    assert result["reason"] == "the other half has no rows"
    assert result["effect"] == 0.6
    result = found([asked("above", threshold=0.3)], {"a": {"m": LOW}}, not_run="the other half")
    assert result["verdict"] == "contradicted @demo"


def test_a_claim_without_tests_is_not_run_and_says_why():
    result = found([], {}, not_run="no baseline")
    assert (result["verdict"], result["reason"]) == ("not run @demo", "no baseline")
    assert (result["tests"], result["effect"], result["evidence"]) == ([], None, [])


def test_failed_seeds_leave_no_conclusion():
    values, status = {"a": {"m": [0.59, 0.60, None]}}, {("a", 2): "nan"}
    result = judge(claim(asked("above", threshold=0.3)), evidence(values, status))
    assert result["verdict"] == "undecided @demo"
    assert result["tests"][0]["failed"] == 1
    assert "seeds failed: 1" in result["reason"]
    strict = asked("above", threshold=0.3, on_failure="contradicted")
    assert judge(claim(strict), evidence(values, status))["verdict"] == "contradicted @demo"
    nothing = {"a": {"m": [None, None, None]}}
    every = {("a", seed): "collapsed" for seed in range(3)}
    assert judge(claim(strict), evidence(nothing, every))["verdict"] == "contradicted @demo"


def test_a_collapsed_seed_that_left_its_value_is_a_failed_one():
    values, status = {"a": {"m": HIGH}}, {("a", 2): "collapsed"}
    result = judge(claim(asked("above", threshold=0.3)), evidence(values, status))
    assert result["verdict"] == "undecided @demo"
    assert (result["tests"][0]["seeds"], result["tests"][0]["failed"]) == (3, 1)
    strict = asked("above", threshold=0.3, on_failure="contradicted")
    assert judge(claim(strict), evidence(values, status))["verdict"] == "contradicted @demo"


def test_a_collapse_can_be_what_a_test_asks_for():
    below = asked("below", threshold=0.1, on_failure="as measured")
    values, status = {"a": {"m": [0.01, 0.02, 0.01]}}, {("a", 2): "collapsed"}
    result = judge(claim(below), evidence(values, status))
    assert result["verdict"] == "supported @demo"
    assert (result["tests"][0]["seeds"], result["tests"][0]["failed"]) == (3, 1)
    assert "seeds failed: 1, those with a value counted as they ended" in result["reason"]
    without = {"a": {"m": [0.01, 0.02, None]}}
    assert judge(claim(below), evidence(without, status))["verdict"] == "undecided @demo"


def test_missing_seeds_are_counted_and_mixed_ones_not_used():
    values = {"a": {"m": [0.59, 0.60, None]}}
    result = judge(claim(asked("above")), evidence(values, {("a", 2): "missing"}))
    assert (result["tests"][0]["seeds"], result["tests"][0]["missing"]) == (2, 1)
    assert "seeds missing: 1" in result["reason"]
    mixed = {("a", seed): "mixed" for seed in range(3)}
    result = judge(claim(asked("above")), evidence({"a": {"m": HIGH}}, mixed))
    assert result["verdict"] == "not run @demo"
    assert "mixed seeds, not averaged: a" in result["reason"]


def test_one_seed_decides_nothing():
    result = judge(claim(asked("above")), evidence({"a": {"m": [0.6]}}))
    assert result["verdict"] == "undecided @demo"
    assert "one seed has no interval" in result["reason"]


@pytest.mark.parametrize(
    "wrong",
    [
        asked("difference", "ab", "a"),
        asked("above", "a", "b"),
        asked("trend", "abc"),
        asked("above", "a", option="method.codes"),
        asked("interaction", "a", "b"),
        asked("difference", "a", "b", control=("a",), control_against=("b",)),
        asked("above", ""),
        asked("difference", "a", "b", any_row=True),
    ],
)
def test_tests_that_are_not_whole_are_refused(wrong):
    with pytest.raises(ValidationError):
        Declared(**wrong)


def test_a_claim_needs_tests_or_a_reason():
    with pytest.raises(ValidationError, match="say why in not_run"):
        Claim(id="X", statement="S")
