"""Tables of a study, one line per cell: our number with its interval, its gain, the published one.

All numbers are in the unit of the metric (accuracies and scores as shares), also published ones
printed in percent, so that one rule decides every cell; percent is a matter of printing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from peregrine.config.load import Project, read_yaml, resolve
from peregrine.config.models import Scale
from peregrine.config.study import Column, Study, Table
from peregrine.errors import UserError
from peregrine.frozen import NOT_AVAILABLE
from peregrine.reporting.published import Cells, Published
from peregrine.reporting.records import ONLINE_PROBE, Evidence
from peregrine.reporting.statistics import Estimate, cell_verdict, estimate, paired

DIGITS = 6
"""Decimals of every number in tables and claims: far below any interval, above platform noise."""

PAPER = "paper"
"""The one scale whose cells may be said to reproduce a published number, where it lays nothing over
the run that the study declares."""


PRESETS = "presets.yaml"


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
    published_chance: float | None
    published_source: str
    verdict: str
    remark: str


def check_table(study: Study, table: Table, published: Cells) -> None:
    """Raises UserError where a table names a published cell that does not exist."""
    where = f"study {study.name}: table {table.id}"
    columns = [column.published for column in table.columns if column.published]
    if len({bool(columns), bool(table.published), bool(table.published_rows)}) > 1:
        raise UserError(f"{where}: published, published_rows and a column's published go together")
    for row in table.published_rows.values():
        for column in columns:
            if (table.published, row, column) not in published:
                raise UserError(
                    f"{where}: no published cell ({table.published}, {row}, {column})"
                    f" in config/published/{study.name}.csv"
                )


def overlaid(project: Project, study: Study, config: Path) -> frozenset[str]:
    """Rows of scale `paper` whose run is not the one that the study declares; else none."""
    if project.scale.name != PAPER:
        return frozenset()
    bare = Scale(name=PAPER, description="", seeds=(0,))
    declared = {cell.row: cell.id for cell in resolve(study, bare, read_yaml(config / PRESETS))}
    cells = project.of(study.name)
    return frozenset(row for row, cell in cells.items() if cell.id != declared.get(row))


def table_cells(table: Table, evidence: Evidence) -> list[TableCell]:
    """Every cell, in the order of rows and columns, rounded to six decimals."""
    return [_cell(table, row, column, evidence) for row in table.rows for column in table.columns]


def _cell(table: Table, row: str, column: Column, evidence: Evidence) -> TableCell:
    records = evidence.records
    known = evidence.published.get(
        (table.published or "", table.published_rows.get(row, ""), column.published or "")
    )
    values = records.values(row, column.metric, column.reading)
    ours, gain = estimate(list(values.values())), Estimate(0)
    missing, failed = records.counts(row, column.metric, values)
    baseline = table.baseline.get(row, "")
    if baseline:
        others = records.values(baseline, column.metric, column.reading)
        gain = estimate(list(paired(values, others).values()))
    not_available = records.not_available(row, column.metric, column.reading)
    verdict, bias = _verdict(table, row, values, known, evidence, failed)
    remarks = list(_remarks(row, column.metric, values, evidence))
    if not_available and not records.mixed(row):
        verdict, bias, remarks = NOT_AVAILABLE, None, []
    if bias is not None:
        remarks.append(f"smallest bias these seeds would have shown: {bias:.3g}")
    if known is not None and known.remark:
        remarks.append(known.remark)
    if known is not None and known.value is not None and table.other_setup:
        remarks.append(table.other_setup)
    return TableCell(
        table=table.id,
        row=row,
        label=evidence.study.rows[row].label,
        column=column.label,
        metric=column.metric,
        reading=column.reading,
        protocol="online" if column.metric == ONLINE_PROBE else evidence.protocol,
        run=evidence.cells[row].id if row in evidence.cells else "",
        code=_shared(run.code for run in records.seeds(row)),
        data=_shared(run.data for run in records.seeds(row)),
        seeds=ours.n,
        missing=missing,
        failed=failed,
        mean=rounded(ours.mean),
        sd=rounded(ours.sd),
        low=rounded(ours.low),
        high=rounded(ours.high),
        baseline=baseline,
        gain=rounded(gain.mean),
        gain_low=rounded(gain.low),
        gain_high=rounded(gain.high),
        published=rounded(known.share(known.value)) if known else None,
        published_sd=rounded(known.share(known.sd)) if known else None,
        published_n=known.n if known else None,
        published_chance=rounded(known.chance) if known else None,
        published_source=known.source if known else "",
        verdict=verdict,
        remark="; ".join(remarks),
    )


def _verdict(
    table: Table,
    row: str,
    values: Mapping[int, float],
    known: Published | None,
    evidence: Evidence,
    failed: int,
) -> tuple[str, float | None]:
    """Text of the cell's verdict, and the smallest bias it could have shown where that counts."""
    if evidence.records.mixed(row):
        return "mixed", None
    if known is None or known.value is None:
        return "", None
    found = cell_verdict(
        list(values.values()),
        known.share(known.value),
        half_width=known.half_width,
        n=known.n or 1,
        same_setup=_as_declared(row, evidence) and not table.other_setup,
        assumed=table.assumed,
        failed=failed,
    )
    return str(found), found.detectable


def _as_declared(row: str, evidence: Evidence) -> bool:
    return evidence.scale == PAPER and row not in evidence.overlaid


def _remarks(
    row: str, metric: str, values: Mapping[int, float], evidence: Evidence
) -> Iterable[str]:
    seeds = evidence.records.seeds(row)
    missing, failed = evidence.records.counts(row, metric, values)
    recorded = sum(run.failed and run.seed in values for run in seeds)
    stale = sum(run.status == "stale" for run in seeds if run.seed not in values)
    unmeasured = len(seeds) - len(values) - missing - (failed - recorded)
    if not seeds:
        yield f"not run at scale {evidence.scale}"
    if evidence.records.mixed(row):
        yield "mixed, not averaged, see runs.csv"
    elif unmeasured == len(seeds) > 0:
        why = evidence.unplanned(metric)
        yield f"not run: {why}" if why else "not measured"
    elif unmeasured:
        yield f"{unmeasured} of {len(seeds)} seeds without this metric"
    if failed > recorded:
        others = ": the mean is of the others" if values else ""
        yield f"{failed - recorded} of {len(seeds)} seeds failed{others}"
    if missing > stale:
        yield f"{missing - stale} of {len(seeds)} seeds missing"
    if stale:
        yield f"{stale} of {len(seeds)} seeds stale, see runs.csv"
    if recorded:
        yield f"{recorded} of {len(seeds)} seeds collapsed and were evaluated as they ended"
    if row in evidence.overlaid:
        yield "the scale changes this run, so it reproduces nothing"
    if any("older code" in run.detail for run in seeds):
        yield "older code, see runs.csv"
    for name in ("device", "torch"):
        kinds = sorted({getattr(run, name) for run in seeds if run.seed in values})
        if len(kinds) > 1:
            yield f"seeds differ in {name}: {', '.join(kinds)}"


def _shared(names: Iterable[str]) -> str:
    """The one name that all seeds share, 'mixed' if they do not, empty if there is none."""
    found = sorted({name for name in names if name})
    return found[0] if len(found) == 1 else "mixed" if found else ""


def rounded(number: float | None) -> float | None:
    """To the stated decimals, without a negative zero."""
    return None if number is None else round(float(number), DIGITS) + 0.0
