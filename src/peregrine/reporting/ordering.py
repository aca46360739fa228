"""How far the order of a table's rows is that of the paper's: Kendall's tau-b, a column at a time.

An order can be held against a published one where levels cannot: no verdict is made of it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from peregrine import files
from peregrine.config.study import Column, Table
from peregrine.reporting.records import Evidence
from peregrine.reporting.statistics import kendall, kendall_bootstrap, kendall_p
from peregrine.reporting.tables import rounded
from peregrine.reporting.words import fixed

ORDERS = "ordering.csv"
ROWS = 4
"""Fewest rows that have an order worth a number: of 3 rows tau-b has 4 values."""
P_ROWS = 5
"""Fewest rows with a p: of 4 rows the best p is 2 / 4!, .083."""


class Ordering(NamedTuple):
    """A line of ordering.csv: the rows of a column with a published number and one here.

    p is empty below 5 rows, the interval where the rows have not the same seeds, or one seed only.
    """

    table: str
    column: str
    metric: str
    reading: str
    rows: int
    tau: float
    p: float | None
    seeds: int | None
    low: float | None
    high: float | None


def write_orderings(tables: Iterable[Table], evidence: Evidence, folder: Path) -> list[Path]:
    """Write ordering.csv of a study and return its path; nothing where no column has an order."""
    path = folder / ORDERS
    lines = [
        line
        for table in tables
        for column in table.columns
        if (line := ordering(table, column, evidence)) is not None
    ]
    if not lines:
        path.unlink(missing_ok=True)
        return []
    files.write_csv(path, Ordering._fields, lines)
    return [path]


def ordering(table: Table, column: Column, evidence: Evidence) -> Ordering | None:
    """The line of a column; None below 4 rows, or where all of them have one number."""
    published, values = [], []
    for row in table.rows:
        known = evidence.published.get(
            (table.published or "", table.published_rows.get(row, ""), column.published or "")
        )
        ours = evidence.records.values(row, column.metric, column.reading)
        if known is not None and known.value is not None and ours:
            published.append(rounded(known.share(known.value)))
            values.append(ours)
    means = [mean_of(ours.values()) for ours in values]
    tau = agreement(published, means)
    if tau is None:
        return None
    seeds = sorted(values[0])
    low = high = None
    if len(seeds) > 1 and all(sorted(ours) == seeds for ours in values):
        by_seed = np.array([[ours[seed] for ours in values] for seed in seeds])
        low, high = kendall_bootstrap(published, by_seed)
    return Ordering(
        table=table.id,
        column=column.label,
        metric=column.metric,
        reading=column.reading,
        rows=len(values),
        tau=rounded(tau),
        p=rounded(kendall_p(published, means)) if len(values) >= P_ROWS else None,
        seeds=None if low is None else len(seeds),
        low=rounded(low),
        high=rounded(high),
    )


def agreement(one: Sequence[float], other: Sequence[float]) -> float | None:
    """tau-b of two numbers a row; None below 4 rows, or where one side is constant."""
    if len(one) < ROWS:
        return None
    tau = kendall(one, other)
    return None if math.isnan(tau) else tau


def mean_of(values: Iterable[float]) -> float:
    """At the decimals that tables state: rounding must not break a tie."""
    return rounded(np.mean(list(values)))


def printed_ordering(lines: Sequence[Mapping[str, str]], *, other_setup: bool) -> str:
    """Lines of ordering.csv of one table as a sentence; empty without any.

    Args:
        other_setup: whether a cell of the table says so.
    """
    if not lines:
        return ""
    text = "; ".join(f"{line['column']} {_said(line)}" for line in lines)
    caveat = " The published order is of another set-up." if other_setup else ""
    return f"Order of rows, beside the published one: {text}.{caveat}"


def _said(line: Mapping[str, str]) -> str:
    return f"{fixed(float(line['tau']), 2)} ({', '.join(_details(line))})"


def _details(line: Mapping[str, str]) -> Iterator[str]:
    yield f"{line['rows']} rows"
    if line["low"]:
        ends = f"{fixed(float(line['low']), 2)} to {fixed(float(line['high']), 2)}"
        yield f"{ends} over {line['seeds']} seeds"
    if line["p"]:
        p = float(line["p"])
        yield "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
