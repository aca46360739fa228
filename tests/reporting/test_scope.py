"""What a report leaves out, by what the scale runs."""

from types import SimpleNamespace

import pytest

from peregrine.config.study import Figure, Table
from peregrine.reporting.published import Published
from peregrine.reporting.scope import (
    left_out,
    measured,
    shown_figures,
    shown_tables,
    shows_figure,
    shows_table,
)

PANELS = [{"metric": "m", "label": "m"}]
BASELINE = {"predictor": "plain", "mask": "predictor", "noise": "predictor"}


def run(*rows: str) -> dict:
    """Cells of a scale that has these rows; r30 has the option 0.3."""
    return {
        row: SimpleNamespace(
            run=SimpleNamespace(epochs=0 if row == "untrained" else 5),
            option=lambda _, row=row: int(row[1:]) / 100,
        )
        for row in rows
    }


def table(**more) -> Table:
    rows = ["untrained", "plain", "predictor", "mask", "noise"]
    given = {"id": "t", "title": "T", "rows": rows, "columns": PANELS, "baseline": BASELINE}
    return Table(**given | more)


def published(value: float | None) -> dict:
    line = Published("c", "1", "N", "m", "m", "1", 2, value, None, None, "src", "why")
    return {("1", "N", "m"): line, ("2", "N", "m"): line._replace(table="2", value=0.5)}


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([], False),
        (["untrained", "plain"], False),  # only compared with
        (["other"], False),
        (["untrained", "mask"], True),
        (["plain", "predictor"], True),  # a baseline with a gain of its own
    ],
)
def test_a_table_needs_a_row_that_is_more_than_a_baseline(rows, shown):
    assert shows_table(table(), run(*rows), {}) is shown


@pytest.mark.parametrize(
    ("rows", "value", "shown"),
    [(["untrained"], 0.9, True), ([], 0.9, False), (["untrained"], None, False)],
)
def test_or_published_numbers_beside_a_row_that_is_run(rows, value, shown):
    given = table(published="1", published_rows={"noise": "N"})
    assert shows_table(given, run(*rows), published(value)) is shown


def test_an_extra_evaluation_is_shown_where_a_row_is_to_have_it():
    cells = run("mask", "noise")
    extra = {"metric": "robustness/n", "label": "n"}
    given = figure("metric_by_row", ["mask", "noise"], panels=[extra])
    for asked, shown in ({}, False), ({"noise": ("robustness",)}, True):
        for row, cell in cells.items():
            cell.evaluations = asked.get(row, ("detection",))
        assert list(measured(["robustness/n"], cells)) == list(asked)
        assert list(measured(["linear/accuracy"], cells)) == ["mask", "noise"]
        assert shows_figure(given, cells) is shown
        assert shows_table(table(columns=[extra]), cells, {}) is shown
        assert shows_table(table(columns=[*PANELS, extra]), cells, {})


def figure(kind: str, rows: list[str], **more) -> Figure:
    given = {"id": "f", "kind": kind, "title": "F", "caption": "", "panels": PANELS}
    return Figure(**given | more, groups={"all": rows})


def test_a_figure_needs_a_row_that_is_more_than_a_baseline():
    lines = figure("spectrum", ["untrained", "mask"])
    assert [shows_figure(lines, run(*rows)) for rows in (["untrained"], ["mask"])] == [False, True]
    gains = figure("metric_by_row", ["plain", "mask"], baseline={"mask": "plain"})
    assert [shows_figure(gains, run(*rows)) for rows in (["plain"], ["mask"])] == [False, True]


def test_a_figure_over_an_option_needs_two_of_its_values():
    ratios = figure("metric_over_option", ["r10", "r30", "r030"], option="method.mask_ratio")
    assert not shows_figure(ratios, run("r30", "untrained"))
    assert not shows_figure(ratios, run("r30", "r030"))  # the same value in two forms
    assert shows_figure(ratios, run("r10", "r30"))


def test_what_is_left_out_is_named():
    every = [table(id="a", title="A - one"), table(id="b", title="B"), table(id="c", title="C")]
    assert left_out(every, every, "demo", {}) == ""
    assert left_out(every, every[1:2], "demo", {}) == (
        "Left out, because scale demo runs too few of their rows: A \u2013 one; C."
    )


def test_a_figure_that_repeats_an_earlier_one_is_left_out():
    """In the same kind and panels only; with one more row that is run it has something to add."""
    panels = [{"metric": "linear/accuracy", "label": "p"}]
    texts = {"title": "T", "caption": "C", "kind": "metric_by_row", "panels": panels}
    first = Figure(id="a", groups={"x": ["plain", "mask"]}, **texts)
    again = Figure(id="b", groups={"y": ["mask", "noise"]}, **texts)
    other = Figure(
        id="c",
        groups={"y": ["mask"]},
        **texts | {"panels": [{"metric": "few/accuracy", "label": "p"}]},
    )
    every = [first, again, other]
    assert shown_figures(every, run("plain", "mask")) == [first, other]
    assert shown_figures(every, run("plain", "mask", "noise")) == every
    assert shown_figures(every[::-1], run("plain", "mask")) == [other, again, first]


def test_a_figure_with_fewer_panels_of_the_same_rows_is_left_out_too():
    texts = {"title": "T", "caption": "C", "kind": "metric_by_row", "groups": {"x": ["mask"]}}
    panels = [{"metric": f"{name}/accuracy", "label": name} for name in ("linear", "few")]
    both = Figure(id="a", panels=panels, **texts)
    one = Figure(id="b", panels=panels[1:], **texts)
    assert shown_figures([both, one], run("mask")) == [both]
    assert shown_figures([one, both], run("mask")) == [one, both]


def test_a_table_that_repeats_an_earlier_one_is_left_out():
    """The same rows over the same baselines; published numbers are something to show."""
    first = table(id="a", rows=["plain", "mask", "noise"], baseline=BASELINE)
    again = table(id="b", rows=["plain", "mask"], baseline=BASELINE)
    other = table(id="c", rows=["plain", "mask"], baseline={"mask": "plain"})
    ran = run("plain", "mask", "noise")
    assert shown_tables([first, again, other], ran, {}) == [first, other]
    assert shown_tables([again, first], ran, {}) == [again, first]
    printed = table(id="d", rows=["mask"], baseline=BASELINE, published="1")
    assert shown_tables([first, printed], ran, {}) == [first, printed]
