"""What a scale has to show: a table or figure of which it runs no row is left out of a report.

Whatever is left out is still collected; the report names it. This follows from the configuration
alone: a row that is run here but has no result yet is shown as such.
"""

from collections.abc import Iterable, Mapping, Sequence

from peregrine.config.load import Cell
from peregrine.config.study import Figure, Table
from peregrine.frozen import EXTRA
from peregrine.reporting.published import Cells
from peregrine.reporting.records import unplanned
from peregrine.reporting.words import prose

Rows = Mapping[str, Cell]
"""The rows that are run at a scale."""

Titled = Table | Figure


def measured(metrics: Iterable[str], cells: Rows) -> dict[str, Cell]:
    """The rows that are to have all `metrics`: of extra evaluations those that were asked for."""
    extra = {metric.partition("/")[0] for metric in metrics} & set(EXTRA)
    if not extra:
        return dict(cells)
    return {row: cell for row, cell in cells.items() if extra <= set(cell.evaluations)}


def shows_table(table: Table, cells: Rows, published: Cells) -> bool:
    """Whether a row is run that is more than a baseline, or published numbers stand beside one."""
    if any(
        _own(table.rows, table.baseline, measured([column.metric], cells))
        for column in table.columns
    ):
        return True
    printed = {
        (name, row)
        for (name, row, _), cell in published.items()
        if name == table.published and cell.value is not None
    }
    known = any((table.published, row) in printed for row in table.published_rows.values())
    return known and any(row in cells for row in table.rows)


def shows_figure(figure: Figure, cells: Rows) -> bool:
    """Likewise; over an option, two of its values must be run: one point shows no course."""
    metrics = [panel.metric for panel in figure.panels]
    own = _own(figure.rows, figure.baseline, measured(metrics, cells))
    if figure.option:
        return len({cells[row].option(figure.option) for row in own}) > 1
    return bool(own)


def shown_tables(tables: Sequence[Table], cells: Rows, published: Cells) -> list[Table]:
    """Those to show, without one whose every number of ours an earlier one shows."""
    shown: list[Table] = []
    for table in filter(lambda each: shows_table(each, cells, published), tables):
        if table.published or not any(_printed(table, cells) <= _printed(t, cells) for t in shown):
            shown.append(table)
    return shown


def _printed(table: Table, cells: Rows) -> set[tuple]:
    return {
        (row, table.baseline.get(row), column.metric, column.reading)
        for row in table.rows
        for column in table.columns
        if row in cells
    }


def shown_figures(figures: Sequence[Figure], cells: Rows) -> list[Figure]:
    """Those to show, without one that an earlier one of its kind repeats, rows and panels."""
    shown: list[Figure] = []
    for figure in filter(lambda each: shows_figure(each, cells), figures):
        alike = [each for each in shown if _way(each) == _way(figure)]
        if not any(_drawn(figure, cells) <= _drawn(each, cells) for each in alike):
            shown.append(figure)
    return shown


def _way(figure: Figure) -> tuple:
    return figure.kind, figure.option, figure.control


def _drawn(figure: Figure, cells: Rows) -> set[tuple]:
    return {
        (row, figure.baseline.get(row), panel.metric, panel.reading)
        for row in figure.rows
        for panel in figure.panels
        if row in cells
    }


def _own(rows: Iterable[str], baseline: Mapping[str, str], cells: Rows) -> list[str]:
    """Those of `rows` that are run and are not there only to be compared with.

    Only compared with: an untrained net, and the baseline of others that has none itself.
    """
    only = set(baseline.values()) - set(baseline)
    return [row for row in rows if row in cells and row not in only and cells[row].run.epochs]


def unplanned_all(metrics: Sequence[str], cells: Rows) -> str:
    """Why no row is to have any of the metrics; empty where one is to have one."""
    reasons = [unplanned(metric, cells.values()) for metric in metrics]
    return reasons[0] if all(reasons) else ""


def left_out(every: Sequence[Titled], shown: Sequence[Titled], scale: str, cells: Rows) -> str:
    """A sentence on what was left out for each reason; empty if nothing was."""
    out: dict[str, list[str]] = {}
    for each in every:
        if each not in shown:
            parts = each.columns if isinstance(each, Table) else each.panels
            why = unplanned_all([part.metric for part in parts], cells)
            if (
                isinstance(each, Figure)
                and each.kind == "sensitivity"
                and shows_figure(each, cells)
            ):
                why = why or f"because no variation of scale {scale} has a value for them yet"
            why = why or f"because scale {scale} runs too few of their rows"
            out.setdefault(why, []).append(prose(each.title))
    return " ".join(f"Left out, {why}: {'; '.join(each)}." for why, each in out.items())
