"""Order of rows beside the published one: hand-computed, on constructed records."""

import ast
import csv
import math
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from peregrine.config.study import Column, Study, Table
from peregrine.reporting.document import document, read_study
from peregrine.reporting.ordering import Ordering, ordering, printed_ordering, write_orderings
from peregrine.reporting.published import Published
from peregrine.reporting.records import Evidence, Measurement, Records
from peregrine.reporting.statistics import kendall_bootstrap, kendall_p

ROOT = Path(__file__).parents[2]
COLUMN = Column(metric="linear/accuracy", label="linear", published="acc")


def evidence(known: dict[str, float | None], ours: dict[str, dict[int, float]]):
    """A table of the rows of `ours`, published as `known` says, and what is measured of them."""
    study = Study(
        name="toy", title="T", paper="P", summary="S", defaults={},
        rows={row: {"label": row} for row in ours},
        tables=(), figures=(), claims=(), assumptions=(),
    )  # fmt: skip
    measured = [
        Measurement("toy", row, row, f"run-{row}", s, "corrected", "std", "linear/accuracy", v)
        for row, values in ours.items()
        for s, v in values.items()
    ]
    published = {
        ("1", row, "acc"): Published(
            row, "1", row, "acc", "linear/accuracy", "%", 1, value, None, None, "src", "why"
        )
        for row, value in known.items()
    }
    cells = {row: SimpleNamespace(id=f"run-{row}") for row in ours}
    table = Table(
        id="one", title="T", rows=tuple(ours), columns=(COLUMN,), published="1",
        published_rows={row: row for row in known},
    )  # fmt: skip
    return table, Evidence(study, cells, Records(measured, []), published, "demo", "std")


def of(known, ours) -> Ordering | None:
    table, found = evidence(known, ours)
    return ordering(table, COLUMN, found)


def test_one_pair_of_ten_reversed():
    known = dict(zip("abcde", (10.0, 20.0, 30.0, 40.0, 50.0), strict=True))
    ours = {row: {0: value} for row, value in zip("abcde", (0.1, 0.2, 0.3, 0.5, 0.4), strict=True)}
    found = of(known, ours)
    assert (found.table, found.column, found.rows) == ("one", "linear", 5)
    assert found.tau == pytest.approx(0.8)  # (9 - 1) / 10
    # 1 order without a reversed pair, 4 with one, and as many from the other end: 10 / 5!.
    assert found.p == pytest.approx(10 / 120, abs=1e-6)
    assert (found.seeds, found.low, found.high) == (None, None, None)  # one seed has no interval


def test_rows_without_a_published_number_or_one_here_do_not_count():
    known = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "unknown": None, "absent": 6.0}
    ours = {row: {0: 0.1 * place} for place, row in enumerate("abcd", start=1)}
    found = of(known, ours | {"unknown": {0: 0.9}, "absent": {}, "ours": {0: 0.0}})
    assert (found.rows, found.tau) == (4, 1.0)
    assert found.p is None  # 2 / 4! at best
    assert of({**known, "d": None}, ours) is None  # three rows
    assert of(known, {row: {0: 0.5} for row in "abcd"}) is None  # no order here


def test_means_over_seeds_and_their_interval():
    """Seed 0 has the published order, seed 1 the reverse, twice as steep: the mean is reversed."""
    known = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    ours = {row: {0: 0.1 * k, 1: 0.9 - 0.2 * k} for k, row in enumerate("abcd")}
    found = of(known, ours)
    # Drawn with replacement, one seed in two comes twice: both of its orders are reached.
    assert (found.tau, found.seeds, found.low, found.high) == (-1.0, 2, -1.0, 1.0)
    del ours["d"][1]  # its mean is .3 now, above the others' at most .45: c .4, d .3
    found = of(known, ours)
    assert (found.seeds, found.low) == (None, None)
    # Means a .45, b .4, c .35, d .3: reversed still.
    assert found.tau == -1.0


def test_in_words():
    line = {"column": "linear, %", "rows": "5", "tau": "0.8", "p": "0.083333"}
    line |= {"seeds": "3", "low": "-0.2", "high": "1.0"}
    assert printed_ordering([line], other_setup=False) == (
        "Order of rows, beside the published one: linear, % 0.80 (5 rows, \u22120.20 to 1.00 over 3"
        " seeds, p = 0.083)."
    )
    bare = line | {"p": "", "seeds": "", "low": "", "high": ""}
    assert printed_ordering([bare, line | {"p": "0.0002"}], other_setup=True).endswith(
        "0.80 (5 rows); linear, % 0.80 (5 rows, \u22120.20 to 1.00 over 3 seeds, p < 0.001). The"
        " published order is of another set-up."
    )
    assert printed_ordering([], other_setup=True) == ""


def test_the_file_goes_with_its_last_line(tmp_path):
    known = {row: float(k) for k, row in enumerate("abcd")}
    table, found = evidence(known, {row: {0: k / 10} for k, row in enumerate("abcd")})
    (path,) = write_orderings([table], found, tmp_path)
    assert path.read_text().splitlines()[1] == "one,linear,linear/accuracy,corrected,4,1.0,,,,"
    assert write_orderings([], found, tmp_path) == [] and not path.exists()


def test_a_report_prints_it(collected):
    """Of the world's rows, `mixed` has no mean; published .51 .9 .9 .9 and, few, .51 .9 .9 .5."""
    with (collected.folder / "ordering.csv").open() as stream:
        linear, few = csv.DictReader(stream)
    # Ours .51 .9 .8805 .9155 (rows of unlike seeds): 3 of 6 pairs are not tied, all 3 agree.
    assert float(linear["tau"]) == pytest.approx(3 / math.sqrt(3 * 6), abs=1e-6)
    # Ours rise untrained, c64, c16, c256, and c256 is last there: its 3 pairs are against, 2 agree.
    assert float(few["tau"]) == pytest.approx((2 - 3) / math.sqrt(5 * 6), abs=1e-6)
    assert {line["rows"] for line in (linear, few)} == {"4"}
    assert {line["p"] + line["low"] for line in (linear, few)} == {""}
    project, study = collected.project, collected.project.study("toy")
    made = document(project, study, read_study(collected.folder), collected.config)
    assert [table["ordering"] for table in made["printed"]["tables"]] == [
        "Order of rows, beside the published one: linear 0.71 (4 rows); few \u22120.18 (4 rows).",
        *("", ""),
    ]


@pytest.mark.parametrize("rows", [5, 9])
def test_the_notebook_computes_the_same(rows):
    """Ties on both sides; more rows than are enumerated."""
    source = ast.parse((ROOT / "workflow/notebooks/study.py").read_text(encoding="utf-8"))
    names = ("order_p", "order_interval")
    functions = [n for n in source.body if isinstance(n, ast.FunctionDef) and n.name in names]
    notebook = {"np": np, "stats": stats, "permutations": permutations, "ALPHA": 0.05}
    exec(compile(ast.Module(functions, []), "study.py", "exec"), notebook)
    x = np.array([1.0, 2.0, 2.0, 5.0, 4.0, 6.0, 3.0, 7.0, 9.0])[:rows]
    seeds = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2]])[:, :rows] / 10
    assert notebook["order_p"](x, seeds[0]) == kendall_p(x, seeds[0])
    assert tuple(notebook["order_interval"](x, seeds)) == kendall_bootstrap(x, seeds)
