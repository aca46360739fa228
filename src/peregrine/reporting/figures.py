"""Figures of a study: first the numbers that are plotted, then the drawing of exactly those.

Every kind of figure is a function from collected results to `Mark`s. The marks are rounded, written
to figures/data/{id}.csv and handed to `peregrine.reporting.drawing`, which computes nothing: what
the file says is what the picture shows. Files are byte-stable.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from peregrine import files
from peregrine.config.load import Cell, Project
from peregrine.config.models import Figure, Panel, Study
from peregrine.errors import UserError
from peregrine.reporting.drawing import render
from peregrine.reporting.evaluations import verify
from peregrine.reporting.records import Records, from_csv
from peregrine.reporting.statistics import estimate, paired

DIGITS = 6
"""Significant digits of the plotted numbers: more than a picture shows, fewer than rounding has."""

ROUNDING = 1e-12
"""Shares of variance below it are not drawn: float32 rounding of features alone makes (2^-23)^2 of
their mean square, which is up to a hundred times their variance where directions hardly differ."""


SPECTRUM_SUM = "spectrum_sha256"
"""Key of a collapse evaluation: the sum of the spectrum.csv that was written with it."""


class Mark(NamedTuple):
    """One thing in a picture: a seed's dot or line, a mean with its interval, a reference line."""

    panel: str
    group: str
    label: str
    x: float | str
    kind: str  # seed, mean, level, baseline, untrained
    seed: int | str
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Source:
    """Where a figure's numbers come from."""

    cells: dict[str, Cell]
    records: Records
    runs: Path
    seeds: tuple[int, ...]
    protocol: str

    def values(self, row: str, panel: Panel, metric: str | None = None) -> dict[int, float]:
        """Seed -> value, in percent where the panel is."""
        found = self.records.values(row, metric or panel.metric, panel.reading)
        scale = 100.0 if panel.percent else 1.0
        return {seed: scale * value for seed, value in sorted(found.items())}

    def curves(self, row: str, name: str) -> dict[int, pd.DataFrame]:
        """Seed -> the CSV file `name` of that seed's run; none for a row of mixed seeds."""
        if self.records.mixed(row):
            return {}
        states = {run.seed: run.status for run in self.records.seeds(row)}
        out = {}
        for seed in self.seeds:
            place = self.runs / self.cells[row].id / f"seed-{seed}"
            if states.get(seed) != "stale" and (place / name).is_file():
                self._verify(place, name)
                out[seed] = _read_curve(place / name)
        return out

    def _verify(self, place: Path, name: str) -> None:
        """A curve against the sum that its step has recorded."""
        reading, _, curve = name.rpartition("/")
        if not reading:
            record = place / "outcome.json"
            sums = files.read_json(record)["files"] if record.is_file() else {}
            checksum, step = sums.get(curve), "pretrain"
        else:
            record = place / reading / f"collapse-{self.protocol}.json"
            checksum = files.read_json(record).get(SPECTRUM_SUM) if record.is_file() else None
            step = "diagnose"
        if checksum is not None:
            verify(place / name, checksum, step)


def pictures(figure: str) -> tuple[str, str, str]:
    """The files of a figure, as collected.json names them."""
    return (f"figures/{figure}.svg", f"figures/{figure}.png", f"figures/data/{figure}.csv")


def draw_figures(project: Project, study: str, results: Path) -> list[Path]:
    """Write figures/{id}.svg, .png and data/{id}.csv of every figure of a study.

    Args:
        project: the configuration.
        study: a name in it.
        results: the results folder; {scale}/{study}/ in it must hold metrics.csv and runs.csv.

    Returns:
        The paths of all of them.

    Raises:
        UserError: a file is missing, changed or damaged.
    """
    plan, folder = project.study(study), results / project.scale.name / study
    scale = project.scale
    source = Source(
        project.of(study), from_csv(folder), results / "runs", scale.seeds, scale.protocol
    )
    known = {figure.id for figure in plan.figures}
    for path in (folder / "figures").rglob("*"):  # of a figure that the study has no longer
        if path.suffix in (".svg", ".png", ".csv") and path.stem not in known:
            path.unlink()
    for figure in plan.figures:
        marks = [_rounded(mark) for mark in MARKS[figure.kind](figure, source)]
        frame = pd.DataFrame(marks, columns=Mark._fields)
        # A row has one colour in all figures of its study.
        frame.attrs["rows"] = [row.label for row in plan.rows.values()]
        files.write_csv(folder / "figures" / "data" / f"{figure.id}.csv", Mark._fields, marks)
        for suffix, data in render(figure, frame, _notes(figure, plan, source, frame)).items():
            files.write_bytes(folder / "figures" / f"{figure.id}.{suffix}", data)
    return [folder / name for figure in plan.figures for name in pictures(figure.id)]


def _read_curve(path: Path) -> pd.DataFrame:
    """A curve's file: its index columns in place, no line twice, all else numbers."""
    keys = ["layer", "index"] if path.name == "spectrum.csv" else ["epoch"]
    try:
        table = pd.read_csv(path)
        if table.duplicated(keys).any():
            raise ValueError(f"a line with the same {' and '.join(keys)} stands twice")
        rest = [name for name in table if name != "layer"]
        table[rest] = table[rest].apply(pd.to_numeric)
        table[keys[-1]] = table[keys[-1]].astype(int)
        if keys[0] == "layer":
            table["value"] = table["value"].astype(float)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); delete it and rerun its step") from None
    return table


def _rows(figure: Figure) -> Iterator[str]:
    for rows in figure.groups.values():
        yield from rows
    if figure.untrained:
        yield figure.untrained


def _rounded(mark: Mark) -> Mark:
    def short(number):
        return float(f"{number:.{DIGITS}g}") if isinstance(number, float) else number

    return Mark(*map(short, mark))


def _mean(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; the interval is NaN for a single one."""
    found = estimate(list(values))
    if found.low is None:
        return found.mean, math.nan, math.nan
    return found.mean, found.low, found.high


def _seeds_and_mean(
    panel: Panel, group: str, label: str, x: float | str, values: dict[int, float]
) -> Iterator[Mark]:
    for seed, value in values.items():
        yield Mark(panel.label, group, label, x, "seed", seed, value)
    if values:
        yield Mark(panel.label, group, label, x, "mean", "", *_mean(values.values()))


def _present(figure: Figure, source: Source) -> Iterator[tuple[Panel, str, Cell]]:
    """Panels x rows that are run at this scale."""
    for panel in figure.panels:
        for group, rows in figure.groups.items():
            for row in rows:
                if row in source.cells:
                    yield panel, group, source.cells[row]


def _untrained(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel in figure.panels if figure.untrained in source.cells else ():
        values = source.values(figure.untrained, panel)
        if values:
            cell, mean = source.cells[figure.untrained], _mean(values.values())[0]
            x = cell.option(figure.option) if panel.untrained_at_option else ""
            yield Mark(panel.label, "", cell.label, x, "untrained", "", mean)


def _over_option(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        x = cell.option(figure.option)
        yield from _seeds_and_mean(panel, group, cell.label, x, source.values(cell.row, panel))
        level = source.values(cell.row, panel, panel.level) if panel.level else {}
        if level:
            mean = _mean(level.values())[0]
            yield Mark(panel.label, group, panel.level_label, x, "level", "", mean)
    yield from _untrained(figure, source)


def _by_row(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        yield from _seeds_and_mean(panel, group, cell.label, "", source.values(cell.row, panel))
        base = source.cells.get(figure.baseline.get(cell.row, ""))
        values = source.values(base.row, panel) if base else {}
        if values:
            mean = _mean(values.values())[0]
            yield Mark(panel.label, group, cell.label, base.label, "baseline", "", mean)
    yield from _untrained(figure, source)


def _gain(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        base = source.cells.get(figure.baseline.get(cell.row, ""))
        if base is None:
            continue
        gains = paired(source.values(cell.row, panel), source.values(base.row, panel))
        yield from _seeds_and_mean(panel, group, cell.label, f"over {base.label}", gains)


def _history(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        scale, curves = 100.0 if panel.percent else 1.0, {}
        for seed, table in source.curves(cell.row, "history.csv").items():
            if panel.metric in table:
                curves[seed] = scale * table.set_index("epoch")[panel.metric]
        yield from _curves(panel, group, cell.label, curves, np.mean)


def _spectrum(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        curves = {}
        for seed, table in source.curves(cell.row, f"{panel.reading}/spectrum.csv").items():
            values = table[table["layer"] == panel.metric].set_index("index")["value"] ** 2
            if values.sum() > 0:
                share = values / values.sum()
                share = share[share > ROUNDING]
                curves[seed] = share.set_axis(share.index - values.index.min() + 1)
                width = len(values)
        yield from _curves(panel, group, cell.label, curves, _geometric_mean)
        if curves:
            yield Mark(panel.label, group, cell.label, "", "level", "", 1 / width)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _curves(
    panel: Panel,
    group: str,
    label: str,
    curves: dict[int, pd.Series],
    centre: Callable[[np.ndarray], float],
) -> Iterator[Mark]:
    """A line per seed, and their centre wherever all of them have a point."""
    for seed, curve in curves.items():
        for x, value in curve.items():
            yield Mark(panel.label, group, label, int(x), "seed", seed, float(value))
    if curves:
        together = pd.concat(curves, axis=1).dropna()
        for x, values in together.iterrows():
            centred = float(centre(values.to_numpy()))
            yield Mark(panel.label, group, label, int(x), "mean", "", centred)


MARKS: dict[str, Callable[[Figure, Source], Iterator[Mark]]] = {
    "metric_over_option": _over_option,
    "metric_by_row": _by_row,
    "gain": _gain,
    "history": _history,
    "spectrum": _spectrum,
}


def _notes(figure: Figure, study: Study, source: Source, frame: pd.DataFrame) -> list[str]:
    """What is not in the picture: seeds that are missing or failed, rows that the scale lacks."""
    status = {(run.row, run.seed): run.status for run in source.records.runs}
    notes, absent, total = [], [], len(source.seeds)
    for row in dict.fromkeys(_rows(figure)):
        label = study.rows[row].label
        if row not in source.cells:
            absent.append(label)
            continue
        if row == figure.untrained:
            shown = {seed for panel in figure.panels for seed in source.values(row, panel)}
        else:
            mine = frame[(frame["label"] == label) & (frame["kind"] == "seed")]
            shown = {int(seed) for seed in mine["seed"]}
        lost = [seed for seed in source.seeds if seed not in shown]
        if lost:
            why = ", ".join(f"seed {seed}: {status.get((row, seed), 'missing')}" for seed in lost)
            notes.append(f"{label}: {total - len(lost)} of {total} seeds ({why})")
    if absent:
        notes.append(f"Not run at this scale: {'; '.join(absent)}.")
    return notes
