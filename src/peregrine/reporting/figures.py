"""Figures of a study: first the numbers that are plotted, then the drawing of exactly those.

Every kind of figure is a function from collected results to `Mark`s. The marks are rounded, written
to figures/data/{id}.csv and handed to `peregrine.reporting.drawing`, which computes nothing: what
the file says is what the picture shows. Files are byte-stable.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from peregrine import files
from peregrine.config.load import Cell, Project
from peregrine.config.models import LABEL_SHARES
from peregrine.config.study import Figure, Panel, Study
from peregrine.frozen import EXTRA
from peregrine.reporting.drawing import render
from peregrine.reporting.map import map_pixels
from peregrine.reporting.marks import AS_CHOSEN, FIELDS, PIXELS, Box, Mark, Pixel, Source
from peregrine.reporting.photographs import boxes, sheet
from peregrine.reporting.records import from_csv
from peregrine.reporting.scope import measured
from peregrine.reporting.sensitivity import coverage, read_sensitivity
from peregrine.reporting.statistics import estimate, paired
from peregrine.reporting.styles import styles
from peregrine.reporting.words import listed, seeds_lost

DIGITS = 6
"""Significant digits of the plotted numbers: more than a picture shows, fewer than rounding has."""

ROUNDING = 1e-12
"""Shares of variance below it are not drawn: float32 rounding of features alone makes (2^-23)^2 of
their mean square, which is up to a hundred times their variance where directions hardly differ."""


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
    elsewhere, variations = read_sensitivity(folder)
    every = Source(
        project.of(study),
        from_csv(folder),
        results,
        scale.seeds,
        scale.protocol,
        tuple(elsewhere),
    )
    looks = styles(plan, every.cells)
    known = {figure.id for figure in plan.figures}
    for path in (folder / "figures").rglob("*"):  # of a figure that the study has no longer
        if path.suffix in (".svg", ".png", ".csv") and path.stem not in known:
            path.unlink()
    for figure in plan.figures:
        metrics = [panel.metric for panel in figure.panels]
        source = replace(every, cells=measured(metrics, every.cells))
        marks = [_rounded(mark) for mark in MARKS[figure.kind](figure, source)]
        fields = FIELDS.get(figure.kind, Mark._fields)
        frame = pd.DataFrame(marks, columns=fields)
        files.write_csv(folder / "figures" / "data" / f"{figure.id}.csv", fields, marks)
        notes = _notes(figure, plan, source, frame)
        if figure.kind == "sensitivity":
            notes += coverage(variations, _rows(figure))
        photographs = figure.kind == "detections" and sheet(figure, source)
        for suffix, data in (photographs or render(figure, frame, looks, notes)).items():
            files.write_bytes(folder / "figures" / f"{figure.id}.{suffix}", data)
    return [folder / name for figure in plan.figures for name in pictures(figure.id)]


def _rows(figure: Figure) -> Iterator[str]:
    yield from figure.rows
    if figure.untrained:
        yield figure.untrained


def _rounded(mark: Mark | Pixel | Box) -> Mark | Pixel | Box:
    def short(number):
        return float(f"{number:.{DIGITS}g}") if isinstance(number, float) else number

    return type(mark)(*map(short, mark))


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
    def gains(row: str, panel: Panel) -> dict[int, float]:
        base = figure.baseline[row]
        return paired(source.values(row, panel), source.values(base, panel))

    for panel, group, cell in _present(figure, source):
        base = source.cells.get(figure.baseline.get(cell.row, ""))
        control = source.cells.get(figure.control.get(cell.row, ""))
        if base is None or (control is None and cell.row in figure.control):
            continue
        found, over = gains(cell.row, panel), f"over {base.label}"
        if control is not None:
            found, over = paired(found, gains(control.row, panel)), f"minus that of {control.label}"
        yield from _seeds_and_mean(panel, group, cell.label, over, found)


def _history(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        scale, curves, levels = 100.0 if panel.percent else 1.0, {}, {}
        for seed, table in source.curves(cell.row, "history.csv").items():
            if panel.metric in table:
                curves[seed] = scale * table.set_index("epoch")[panel.metric]
            if panel.level in table:
                levels[cell.label] = scale * float(table[panel.level].iloc[-1])
        yield from _curves(panel, group, cell.label, curves, np.mean)
        for label, level in levels.items():
            yield Mark(panel.label, group, label, "", "level", "", level)


def _queue(figure: Figure, source: Source) -> Iterator[Mark]:
    """In the last epoch, over the number L of newest vectors: columns metric_L{L} of history."""
    for panel, group, cell in _present(figure, source):
        scale, level = 100.0 if panel.percent else 1.0, {}
        by_length: dict[int, dict[int, float]] = {}
        for seed, table in source.curves(cell.row, "history.csv").items():
            for name in table:
                stem, _, length = name.rpartition("_L")
                if stem == panel.metric and len(table):
                    by_length.setdefault(int(length), {})[seed] = scale * table[name].iloc[-1]
            if by_length and panel.level in table:
                level[seed] = scale * float(table[panel.level].iloc[-1])
        for length in sorted(by_length):
            yield from _seeds_and_mean(panel, group, cell.label, length, by_length[length])
            if level:
                mean = _mean(level.values())[0]
                yield Mark(panel.label, group, cell.label, length, "level", "", mean)


def _sensitivity(figure: Figure, source: Source) -> Iterator[Mark]:
    """Rows as chosen, then at each scale like this one those that are other runs there."""
    places = dict.fromkeys(each.description for each in source.elsewhere)
    for panel, group, cell in _present(figure, source):
        own = source.values(cell.row, panel)
        yield from _seeds_and_mean(panel, group, cell.label, AS_CHOSEN, own)
    for description in places:
        for panel, group, cell in _present(figure, source):
            scale, mine = 100.0 if panel.percent else 1.0, (cell.row, panel.metric, panel.reading)
            values = {
                each.seed: scale * each.value
                for each in source.elsewhere
                if (each.description, each.row, each.metric, each.reading) == (description, *mine)
            }
            yield from _seeds_and_mean(panel, group, cell.label, description, values)


def _spectrum(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        curves = {}
        for seed, table in source.curves(cell.row, f"{panel.reading}/spectrum.csv").items():
            values = table[table["layer"] == panel.metric].set_index("index")["value"] ** 2
            if values.sum() > 0:
                share = values / values.sum()
                drawn = (values if panel.reading == "released" else share)[share > ROUNDING]
                curves[seed] = drawn.set_axis(drawn.index - values.index.min() + 1)
                width = len(values)
        yield from _curves(panel, group, cell.label, curves, _geometric_mean)
        if curves and panel.reading != "released":
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


def _mixture(figure: Figure, source: Source) -> Iterator[Mark]:
    for panel, group, cell in _present(figure, source):
        for k in source.sizes(panel):
            values = source.values(cell.row, panel, f"{panel.metric}_k{k}")
            yield from _seeds_and_mean(panel, group, cell.label, k, values)
            level = source.values(cell.row, panel, f"{panel.level}_k{k}")
            if level:
                mean = _mean(level.values())[0]
                yield Mark(panel.label, group, cell.label, k, "level", "", mean)


def _label_share(figure: Figure, source: Source) -> Iterator[Mark]:
    """Over the labels that a probe sees, in percent; 100: the probe with all of them."""
    percents = [round(100 * share) for share in LABEL_SHARES]
    metrics = {percent: f"labels-{percent}/accuracy" for percent in percents}
    for panel, group, cell in _present(figure, source):
        curves: dict[int, pd.Series] = {}
        for percent, metric in {**metrics, 100: "linear/accuracy"}.items():
            for seed, value in source.values(cell.row, panel, metric).items():
                curves.setdefault(seed, pd.Series(dtype=float))[percent] = value
        yield from _curves(panel, group, cell.label, curves, np.mean)


def _matrices(figure: Figure, source: Source) -> Iterator[Pixel]:
    for panel, _, cell in _present(figure, source):
        found = source.matrices(cell.row)
        if found is None:
            continue
        seed, arrays = found
        for (y, x), value in np.ndenumerate(arrays[f"embeddings_{panel.metric}"]):
            yield Pixel(panel.label, cell.label, "seed", seed, x, y, float(value))
        for x, label in enumerate(arrays.get(f"{panel.metric}_labels", ())):
            yield Pixel(panel.label, cell.label, "class", seed, x, "", float(label))


MARKS: dict[str, Callable[[Figure, Source], Iterator[Mark]]] = {
    "metric_over_option": _over_option,
    "metric_by_row": _by_row,
    "gain": _gain,
    "history": _history,
    "queue": _queue,
    "spectrum": _spectrum,
    "mixture": _mixture,
    "matrices": _matrices,
    "detections": boxes,
    "sensitivity": _sensitivity,
    "label_share": _label_share,
    "map": lambda figure, source: map_pixels(_present(figure, source), source),
}


def _notes(figure: Figure, study: Study, source: Source, frame: pd.DataFrame) -> list[str]:
    """What is not in the picture: seeds that are missing or failed, rows that the scale lacks."""
    status = {(run.row, run.seed): run.status for run in source.records.runs}
    notes, absent, total = [], [], len(source.seeds)
    fewer: dict[str, list[str]] = {}
    for row in dict.fromkeys(_rows(figure)):
        label = study.rows[row].label
        if row not in source.cells:
            absent.append(label)
            continue
        if row == figure.untrained:
            shown = {seed for panel in figure.panels for seed in source.values(row, panel)}
        else:
            mine = frame[(frame["label"] == label) & (frame["kind"] == "seed")]
            if figure.kind == "sensitivity":
                mine = mine[mine["x"] == AS_CHOSEN]
            shown = {int(seed) for seed in mine["seed"]}
        lost = [seed for seed in source.seeds if seed not in shown]
        if figure.kind in PIXELS and shown:  # of one seed
            lost = []
        if figure.kind == "history" and source.cells[row].run.epochs == 0:
            lost = []  # an untrained net has no epochs to draw
        if lost:
            found = [(status.get((row, seed), "missing"), seed) for seed in lost]
            fewer.setdefault(
                f"{total - len(lost)} of {total} seeds ({seeds_lost(found)})", []
            ).append(label)
    where = f"{AS_CHOSEN.capitalize()}, " if figure.kind == "sensitivity" else ""
    notes += [f"{where}{'; '.join(labels)}: {what}" for what, labels in fewer.items()]
    lacking = {
        study.rows[run.row].label: panel.reading
        for panel in figure.panels
        for run in source.records.runs
        if run.row in _rows(figure) and panel.reading in run.not_available.split()
    }
    for reading in sorted(set(lacking.values())):
        labels = [label for label, lacks in lacking.items() if lacks == reading]
        notes.append(f"No {reading} reading: {'; '.join(labels)}.")
    if absent:
        extra = any(panel.metric.partition("/")[0] in EXTRA for panel in figure.panels)
        notes.append(f"Not {'measured' if extra else 'run'} at this scale: {listed(absent)}.")
    return notes
