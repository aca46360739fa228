"""Cells of a table from constructed records, and the checks of published files."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from peregrine.config.study import Column, Study, Table
from peregrine.errors import UserError
from peregrine.reporting.published import Published, read_published
from peregrine.reporting.records import Evidence, Measurement, Records, SeedRun
from peregrine.reporting.tables import TableCell, check_table, rounded, table_cells

T975 = 4.302652729911275
HEADER = ",".join(Published._fields[:-2])  # without those on codes, see test_chance.py


def study() -> Study:
    rows = {"base": {"label": "Base"}, "ours": {"label": "Ours"}, "big": {"label": "Big"}}
    return Study(
        name="toy", title="T", paper="P", summary="S", defaults={}, rows=rows,
        tables=(), figures=(), claims=(), assumptions=(),
    )  # fmt: skip


def column(**over) -> Column:
    return Column(**{"metric": "linear/accuracy", "label": "linear", "published": "acc"} | over)


def table(**over) -> Table:
    given = {
        "id": "one",
        "title": "T",
        "rows": ("base", "ours", "big"),
        "columns": (column(),),
        "baseline": {"ours": "base"},
        "published": "1",
        "published_rows": {"ours": "OURS", "big": "BIG"},
    }
    return Table(**given | over)


def published(row: str, value: float | None, **over) -> Published:
    base = Published(row, "1", row, "acc", "linear/accuracy", "%", 1, value, None, None, "src", "")
    return base._replace(**over)


def seed_run(row: str, seed: int, status: str = "finished", **over) -> SeedRun:
    run = SeedRun(row, row, f"run-{row}", seed, status, 3, "code", "data", "cpu", "2", "")
    return run._replace(**over)


def measured(row: str, *values: float) -> list[Measurement]:
    return [
        Measurement("toy", row, row, f"run-{row}", s, "corrected", "std", "linear/accuracy", v)
        for s, v in enumerate(values)
    ]


def evidence(measurements, runs, *, scale="paper", known=()) -> Evidence:
    cells = {row: SimpleNamespace(id=f"run-{row}") for row in ("base", "ours")}
    cells_known = {(p.table, p.row, p.column): p for p in known}
    return Evidence(study(), cells, Records(measurements, runs), cells_known, scale, "std")


def cell(found: Evidence, row: str = "ours", **over) -> TableCell:
    (only,) = [each for each in table_cells(table(**over), found) if each.row == row]
    return only


def usual(**over) -> Evidence:
    runs = [seed_run(row, seed) for row in ("base", "ours") for seed in range(3)]
    values = measured("base", 0.5, 0.6, 0.7) + measured("ours", 0.6, 0.8, 1.0)
    return evidence(values, runs, **over)


def test_mean_interval_and_paired_gain_by_hand():
    found = cell(usual())
    assert (found.run, found.code, found.data, found.seeds) == ("run-ours", "code", "data", 3)
    assert (found.mean, found.sd) == (0.8, 0.2)
    assert found.high == pytest.approx(0.8 + T975 * 0.2 / 3**0.5, abs=5e-7)
    # differences .1 .2 .3: mean .2, sd .1
    assert (found.baseline, found.gain) == ("base", 0.2)
    assert found.gain_low == pytest.approx(0.2 - T975 * 0.1 / 3**0.5, abs=5e-7)
    assert cell(usual(), "base").gain is None


def test_gain_pairs_seeds_and_not_means():
    runs = [seed_run(row, seed) for row in ("base", "ours") for seed in range(3)]
    found = cell(evidence(measured("base", 0.5, 0.6) + measured("ours", 0.6, 0.7, 0.2), runs))
    assert (found.seeds, found.gain) == (3, 0.1)


def test_published_percent_is_held_against_shares():
    found = cell(usual(known=[published("OURS", 80.0), published("BIG", 90.0)]))
    assert (found.published, found.published_source, found.verdict) == (0.8, "src", "consistent")
    assert "smallest bias these seeds would have shown: 1.31" in found.remark
    runs = [seed_run("ours", seed) for seed in range(3)]
    close = measured("ours", 0.7995, 0.8, 0.8005)
    assert cell(evidence(close, runs, known=[published("OURS", 80.0)])).verdict == "reproduced"
    # .0054 apart: inside .005 only with the half of the printed digit, .0005
    edge = measured("ours", 0.80539, 0.8054, 0.80541)
    assert cell(evidence(edge, runs, known=[published("OURS", 80.0)])).verdict == "reproduced"
    far = cell(evidence(close, runs, known=[published("OURS", 70.9, remark="data unknown")]))
    assert (far.verdict, far.remark) == ("above published", "data unknown")


def test_only_paper_scale_is_judged():
    known = [published("OURS", 80.0), published("BIG", 90.0)]
    assert cell(usual(scale="demo", known=known)).verdict == "other set-up"
    elsewhere = cell(usual(known=known), other_setup="on ImageNet")
    assert (elsewhere.verdict, elsewhere.remark) == ("other set-up", "on ImageNet")
    assumed = cell(usual(known=known), assumed=True)
    assert assumed.verdict == "consistent under declared assumptions"


def test_a_row_that_is_not_run_still_shows_what_was_published():
    found = cell(
        usual(scale="demo", known=[published("OURS", 80.0), published("BIG", 90.0)]), "big"
    )
    assert (found.run, found.seeds, found.mean, found.published) == ("", 0, None, 0.9)
    assert (found.verdict, found.remark) == ("not run", "not run at scale demo")


def test_a_published_cell_without_number_has_no_verdict():
    found = cell(usual(known=[published("OURS", None, remark="not available")]))
    assert (found.published, found.verdict, found.remark) == (None, "", "not available")


def test_missing_and_failed_seeds_are_counted():
    runs = [seed_run("ours", 0), seed_run("ours", 1, "nan"), seed_run("ours", 2, "missing")]
    found = cell(evidence(measured("ours", 0.8), runs, known=[published("OURS", 80.0)]))
    assert (found.seeds, found.missing, found.failed, found.mean) == (1, 1, 1, 0.8)
    assert found.low is None
    assert found.verdict == "inconclusive"
    assert "1 of 3 seeds failed: the mean is of the others" in found.remark
    assert "1 of 3 seeds missing" in found.remark


def test_survivors_are_no_reproduction():
    runs = [seed_run("ours", seed) for seed in range(3)] + [seed_run("ours", 3, "collapsed")]
    close = measured("ours", 0.7995, 0.8, 0.8005)
    found = cell(evidence(close, runs, known=[published("OURS", 80.0)]))
    assert (found.failed, found.verdict) == (1, "inconclusive")


def test_a_row_that_failed_altogether_was_run():
    runs = [seed_run("ours", seed, "nan") for seed in range(3)]
    for scale in ("paper", "demo"):
        found = cell(evidence([], runs, scale=scale, known=[published("OURS", 80.0)]))
        assert (found.verdict, found.remark) == ("failed", "3 of 3 seeds failed")


def test_a_mean_with_a_collapsed_seed_reproduces_nothing():
    runs = [seed_run("ours", seed) for seed in range(2)] + [seed_run("ours", 2, "collapsed")]
    close = measured("ours", 0.7995, 0.8, 0.8005)
    found = cell(evidence(close, runs, known=[published("OURS", 80.0)]))
    assert (found.seeds, found.failed, found.verdict) == (3, 1, "inconclusive")


def test_a_run_that_the_scale_changes_reproduces_nothing():
    runs = [seed_run("ours", seed) for seed in range(3)]
    close = measured("ours", 0.7995, 0.8, 0.8005)
    known = evidence(close, runs, known=[published("OURS", 80.0)])
    assert cell(known).verdict == "reproduced"
    found = cell(replace(known, overlaid=frozenset({"ours"})))
    assert found.verdict == "other set-up"
    assert "the scale changes this run" in found.remark


def test_a_collapsed_seed_that_was_evaluated_counts_and_is_named():
    runs = [seed_run("ours", 0), seed_run("ours", 1, "collapsed")]
    found = cell(evidence(measured("ours", 0.8, 0.1), runs))
    assert (found.seeds, found.failed, found.mean) == (2, 1, 0.45)
    assert found.remark == "1 of 2 seeds collapsed and were evaluated as they ended"


def test_mixed_seeds_are_not_averaged():
    runs = [seed_run("ours", 0, "mixed"), seed_run("ours", 1, "mixed", code="other")]
    found = cell(evidence(measured("ours", 0.8, 0.7), runs, known=[published("OURS", 80.0)]))
    assert (found.mean, found.gain, found.seeds) == (None, None, 0)
    assert (found.verdict, found.code, found.data) == ("mixed", "mixed", "data")
    assert "mixed" in found.remark


def test_what_a_method_has_not_is_not_missing():
    runs = [seed_run("ours", seed) for seed in range(2)]
    found = cell(evidence([], runs))
    assert (found.seeds, found.missing, found.remark) == (0, 0, "not measured")
    found = cell(evidence(measured("ours", 0.8), runs))
    assert found.remark == "1 of 2 seeds without this metric"


def test_other_devices_and_older_code_are_remarked():
    runs = [seed_run("ours", 0), seed_run("ours", 1, device="cuda", detail="older code, these: x")]
    found = cell(evidence(measured("ours", 0.8, 0.7), runs))
    assert found.remark == "older code, see runs.csv; seeds differ in device: cpu, cuda"
    assert found.mean == 0.75


def test_the_online_probe_has_a_protocol_of_its_own():
    online = column(metric="online_probe/accuracy", reading="released", published=None)
    first, second, *_ = table_cells(table(columns=(column(label="a"), online)), usual())
    assert (first.protocol, first.reading) == ("std", "corrected")
    assert (second.protocol, second.reading) == ("online", "released")


def test_rounding_has_no_negative_zero():
    assert str(rounded(-1e-9)) == "0.0"
    assert rounded(1 / 3) == 0.333333
    assert rounded(None) is None


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"published_rows": {"ours": "NOBODY"}}, "no published cell (1, NOBODY, acc)"),
        ({"published_rows": {}}, "go together"),
        ({"published": None}, "go together"),
    ],
)
def test_a_table_that_names_what_does_not_exist_is_refused(over, message):
    known = {("1", name, "acc"): published(name, 1.0) for name in ("OURS", "BIG")}
    check_table(study(), table(), known)
    with pytest.raises(UserError) as error:
        check_table(study(), table(**over), known)
    assert message in str(error.value)


def write(path, *lines: str):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def test_published_numbers_are_read(tmp_path):
    path = write(
        tmp_path / "p.csv",
        't/a,1,A,acc,linear/accuracy,%,1,70.9,0.2,3,"paper, Table 1",',
        "t/b,1,B,acc,linear/accuracy,1,2,,,,paper,not available",
    )
    found = read_published(path)
    first = found["1", "A", "acc"]
    assert (first.value, first.sd, first.n, first.source) == (70.9, 0.2, 3, "paper, Table 1")
    assert (first.share(first.value), first.half_width) == pytest.approx((0.709, 0.0005))
    assert found["1", "B", "acc"].value is None
    assert found["1", "B", "acc"].half_width == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t/a,1,A,acc,m,%,1,seventy,,,paper,", "line 2: could not convert"),
        ("t/a,1,A,acc,m,%,1,nan,,,paper,", "line 2: 'nan' is not a finite number"),
        ("t/a,1,A,acc,m,%,7,7,,,paper,", "line 2: decimals 7 is not between 0 and 6"),
        ("t/a,1,A,acc,m,%,-1,7,,,paper,", "line 2: decimals -1 is not between 0 and 6"),
        ("t/a,1,A,acc,m,%,1,7,-0.1,,paper,", "line 2: sd -0.1 is negative"),
        ("t/a,1,A,acc,m,%,1,7,,0,paper,", "line 2: n 0 is less than one run"),
        ("t/a,1,A,acc,m,points,1,7,,,paper,", "line 2: unit 'points'"),
        ("t/a,1,A,acc,m,%,1,7,,,,", "line 2: a source is needed"),
        ("t/a,1,A,acc,m,%,1,,,,paper,", "a remark on why not"),
        ("t/a,1,A,acc,m,%,1,7,,,paper,,extra", "line 2 has not 12 cells"),
        ("t/a,1,A,acc,m,%,1,7,,,paper,\nt/b,1,A,acc,m,%,1,8,,,paper,", "line 3: cell 't/b' stands"),
        ("t/a,1,A,acc,m,%,1,7,,,paper,\nt/a,1,B,acc,m,%,1,8,,,paper,", "line 3: cell 't/a' stands"),
    ],
)
def test_bad_published_lines_are_refused_by_line(tmp_path, line, message):
    with pytest.raises(UserError) as error:
        read_published(write(tmp_path / "p.csv", line))
    assert message in str(error.value)


def test_a_missing_or_foreign_published_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_published(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="the first line must be cell,table"):
        read_published(tmp_path / "p.csv")


def test_evidence_is_all_that_a_table_depends_on():
    found = usual(known=[published("OURS", 80.0)])
    again = replace(found, records=Records(found.records.measurements[::-1], found.records.runs))
    assert table_cells(table(), again) == table_cells(table(), found)
