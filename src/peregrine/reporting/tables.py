"""Tables of a study, one line per cell: our number with its interval, its gain, the published one.

A table is computed from the records and config/published alone. All numbers are in the unit of the
metric (accuracies and scores as shares), also published ones printed in percent, so that one rule
decides every cell; percent is a matter of printing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from peregrine.config.load import Cell
from peregrine.config.models import Column, Study, Table
from peregrine.errors import UserError
from peregrine.reporting.records import Records, SeedRun, read_csv
from peregrine.reporting.statistics import Estimate, cell_verdict, estimate, paired

DIGITS = 6
"""Decimals of every number in tables and claims: far below any interval, above platform noise."""

PAPER = "paper"
"""The one scale whose cells may be said to reproduce a published number."""

UNITS = {"1": 1.0, "%": 0.01}
"""Unit of a published number -> factor to the metric's own unit."""


class Published(NamedTuple):
    """A line of config/published/<study>.csv; an empty value is a cell known without its number."""

    cell: str
    table: str
    row: str
    column: str
    metric: str
    unit: str
    decimals: int
    value: float | None
    sd: float | None
    n: int | None
    source: str
    remark: str

    @property
    def half_width(self) -> float:
        """Half of the last printed digit, in the metric's unit."""
        return 0.5 * 10.0**-self.decimals * UNITS[self.unit]

    def share(self, number: float | None) -> float | None:
        """A number of this cell in the metric's unit."""
        return None if number is None else number * UNITS[self.unit]


class TableCell(NamedTuple):
    """A line of tables/{id}.csv. Empty: undefined, or nothing to say."""

    table: str
    row: str
    label: str
    column: str
    metric: str
    reading: str
    protocol: str
    run: str
    code: str
    data: str
    seeds: int
    missing: int
    failed: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    baseline: str
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    published: float | None
    published_sd: float | None
    published_n: int | None
    published_source: str
    verdict: str
    remark: str


Numbers = Mapping[tuple[str, str, str], Published]


def read_published(path: Path) -> dict[tuple[str, str, str], Published]:
    """Published cells by (table, row, column).

    Raises:
        UserError: a missing file, another header, a number that is none, a cell that stands twice.
    """
    out: dict[tuple[str, str, str], Published] = {}
    names: set[str] = set()
    for number, line in enumerate(read_csv(path, Published._fields), start=2):
        try:
            found = Published(
                **line
                | {
                    "decimals": int(line["decimals"]),
                    "value": float(line["value"]) if line["value"] else None,
                    "sd": float(line["sd"]) if line["sd"] else None,
                    "n": int(line["n"]) if line["n"] else None,
                }
            )
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        key = (found.table, found.row, found.column)
        if key in out or found.cell in names:
            raise UserError(f"{path}: line {number}: cell '{found.cell}' stands twice")
        if found.unit not in UNITS or not found.source or found.value is None and not found.remark:
            raise UserError(
                f"{path}: line {number}: a cell needs a unit ({' or '.join(UNITS)}), a source,"
                " and a value or a remark that says why there is none"
            )
        out[key] = found
        names.add(found.cell)
    return out


def check_table(study: Study, table: Table, published: Numbers) -> None:
    """Raises UserError where a table names a row or a published cell that does not exist."""
    where = f"study {study.name}: table {table.id}"
    for row in (*table.rows, *table.baseline, *table.baseline.values(), *table.published_rows):
        if row not in study.rows:
            raise UserError(f"{where}: row '{row}' is not a row of the study")
    columns = [column.published for column in table.columns if column.published]
    if bool(columns) != bool(table.published) or bool(columns) != bool(table.published_rows):
        raise UserError(f"{where}: 'published' of table, rows and columns go together")
    for row in table.published_rows.values():
        for column in columns:
            if (table.published, row, column) not in published:
                raise UserError(
                    f"{where}: no published cell ({table.published}, {row}, {column})"
                    f" in config/published/{study.name}.csv"
                )


def table_cells(
    study: Study,
    table: Table,
    cells: Mapping[str, Cell],
    records: Records,
    published: Numbers,
    *,
    scale: str,
    protocol: str,
) -> list[TableCell]:
    """Every cell of a table, in the order of its rows and columns, rounded to six decimals.

    Args:
        cells: the rows that are run at this scale; the table's other rows are 'not run'.
        records: what was measured.
        published: as `read_published` gives it.
        scale, protocol: their names.
    """
    out = []
    for row in table.rows:
        for column in table.columns:
            known = published.get(
                (table.published or "", table.published_rows.get(row, ""), column.published or "")
            )
            label = study.rows[row].label
            place = (table.id, row, label, column.label, column.metric, column.reading)
            cell = cells.get(row)
            out.append(_cell(place, table, column, cell, records, known, scale, protocol))
    return out


def _cell(
    place: tuple[str, ...],
    table: Table,
    column: Column,
    cell: Cell | None,
    records: Records,
    known: Published | None,
    scale: str,
    protocol: str,
) -> TableCell:
    row = place[1]
    values = records.values(row, column.metric, column.reading)
    seeds = records.seeds(row) if cell else []
    missing, failed = records.counts(row, values)
    ours = estimate(list(values.values()))
    baseline = table.baseline.get(row, "")
    gain = Estimate(0)
    if baseline:
        other = records.values(baseline, column.metric, column.reading)
        gain = estimate(list(paired(values, other).values()))
    verdict, bias = _verdict(row, table, values, failed, records, known, scale)
    remarks = [*_remarks(row, values, seeds, missing, failed, records)]
    if bias is not None:
        remarks.append(f"smallest bias these seeds would show: {bias:.3g}")
    if known is not None:
        remarks += [known.remark] if known.remark else []
        remarks += [table.other_setup] if table.other_setup and known.value is not None else []
    return TableCell(
        *place,
        "online" if column.metric.startswith("online_probe/") else protocol,
        cell.id if cell else "",
        _one(run.code for run in seeds),
        _one(run.data for run in seeds),
        ours.n,
        missing,
        failed,
        *(rounded(x) for x in (ours.mean, ours.sd, ours.low, ours.high)),
        baseline,
        *(rounded(x) for x in (gain.mean, gain.low, gain.high)),
        rounded(known.share(known.value)) if known else None,
        rounded(known.share(known.sd)) if known else None,
        known.n if known else None,
        known.source if known else "",
        verdict,
        "; ".join(remarks),
    )


def _verdict(
    row: str,
    table: Table,
    values: Mapping[int, float],
    failed: int,
    records: Records,
    known: Published | None,
    scale: str,
) -> tuple[str, float | None]:
    """Text of the cell's verdict and the smallest bias it could have shown, where that counts."""
    if records.mixed(row):
        return "mixed", None
    if known is None or known.value is None:
        return "", None
    found = cell_verdict(
        list(values.values()),
        known.share(known.value),
        half_width=known.half_width,
        n=known.n or 1,
        same_setup=scale == PAPER and not table.other_setup,
        assumed=table.assumed,
    )
    if failed and found.agreement not in ("other set-up", "not run"):
        # A mean of the seeds that survived is not the mean that was published.
        return "inconclusive" + (" under declared assumptions" if table.assumed else ""), None
    return str(found), found.detectable


def _remarks(
    row: str,
    values: Mapping[int, float],
    seeds: Sequence[SeedRun],
    missing: int,
    failed: int,
    records: Records,
) -> list[str]:
    total, out = len(seeds), []
    if records.mixed(row):
        details = {run.detail for run in seeds if run.status == "mixed"}
        return [f"mixed, not averaged: {'; '.join(sorted(details))}"]
    if failed:
        out.append(f"{failed} of {total} seeds failed: the mean is of the others")
    if missing:
        out.append(f"{missing} of {total} seeds missing")
    if seeds and not values and missing + failed < total:
        out.append("not measured")
    recorded = sum(run.failed and run.seed in values for run in seeds)
    if recorded:
        out.append(f"{recorded} of {total} seeds collapsed and were evaluated as they ended")
    if any("older code" in run.detail for run in seeds):
        out.append("older code, see runs.csv")
    for name in ("device", "torch"):
        kinds = sorted({getattr(run, name) for run in seeds if run.seed in values})
        if len(kinds) > 1:
            out.append(f"seeds differ in {name}: {', '.join(kinds)}")
    return out


def _one(names) -> str:
    """The one name that all seeds share, 'mixed' if they do not."""
    found = sorted({name for name in names if name})
    return found[0] if len(found) == 1 else "mixed" if found else ""


def rounded(number: float | None) -> float | None:
    """To the stated decimals, without a negative zero."""
    return None if number is None else round(float(number), DIGITS) + 0.0
