"""Pictures of marks: matplotlib and seaborn only, no numbers are computed here. Byte-stable.

Agg, the DejaVu fonts that matplotlib brings, glyphs as paths, salted ids and no dates: the same
marks give the same bytes on every machine with the same lock.
"""

import io
import textwrap
from collections.abc import Callable
from itertools import cycle

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from peregrine.config.study import Figure, Panel
from peregrine.reporting.canvas import DOT, MEAN, STYLE, WIDTH, draw_lines, legend, new_canvas
from peregrine.reporting.drawing_diagnostics import draw_matrices, draw_mixture, draw_queue
from peregrine.reporting.drawing_sensitivity import draw_sensitivity
from peregrine.reporting.map import draw_map
from peregrine.reporting.styles import GREY, Styles

LINE = 0.11
"""Height of a line of small print, inches."""


def render(
    figure: Figure, marks: pd.DataFrame, styles: Styles, notes: list[str]
) -> dict[str, bytes]:
    """{"svg": bytes, "png": bytes} of a figure's marks, with `notes` below in small print."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user must not change the bytes
        mpl.rcParams.update({**sns.axes_style("ticks"), **STYLE})
        if (marks["kind"] == "seed").any():
            canvas = DRAW[figure.kind](figure, marks, styles)
        else:
            canvas = _nothing()
        if notes:
            text = "\n".join(textwrap.fill(note, 120) for note in notes)
            canvas.supxlabel(text, fontsize=6.5, color=GREY, x=0.01, ha="left")
            # Two lines fit; the room for more is added, or it would be taken from the axes.
            more = max(0, text.count("\n") - 1)
            canvas.set_figheight(canvas.get_figheight() + LINE * more)
        out = {}
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", None)):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, dpi=200, metadata=metadata or {"Software": None})
            out[suffix] = _in_256_colours(buffer) if suffix == "png" else buffer.getvalue()
    return out


def _in_256_colours(png: io.BytesIO) -> bytes:
    """The picture with a palette: a third of the bytes, and pages and notebooks hold it too.

    What is lost are shades of edges and of crossing lines, by less than a tenth of the scale.
    """
    shades = Image.open(png).convert("RGB")
    few = shades.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _nothing() -> Canvas:
    canvas = Canvas(figsize=(WIDTH, 1.4), layout="constrained")
    ax = canvas.subplots()
    ax.set_axis_off()
    ax.text(0.5, 0.5, "No finished run for this figure.", ha="center", va="center", color=GREY)
    return canvas


def _over_option(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    columns = min(3, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    canvas, grid = new_canvas(rows, columns, 0.7 + 1.8 * rows)
    axes = [ax for line in grid for ax in line]
    ticks = sorted({float(x) for x in marks.loc[marks["kind"] == "seed", "x"]})
    shapes = dict(zip(figure.groups, cycle("os^D")))
    for ax, panel in zip(axes, figure.panels, strict=False):
        mine = marks[marks["panel"] == panel.label]
        for place, group in enumerate(figure.groups):
            # Groups that share a value of the option stand side by side, seeds left of their mean.
            shift = 1.8**place
            own = mine[mine["group"] == group]
            dots, mean = own[own["kind"] == "seed"], own[own["kind"] == "mean"].sort_values("x")
            if not mean.empty:
                colour = styles.group(group)
                ax.plot(dots["x"] * shift / 1.3, dots["value"], **DOT, color=colour)
                ax.errorbar(
                    mean["x"] * shift,
                    mean["value"],
                    _arms(mean),
                    **MEAN,
                    marker=shapes[group],
                    color=colour,
                    label=group,
                )
        for label, level in mine[mine["kind"] == "level"].groupby("label"):
            level = level.drop_duplicates("x").sort_values("x")
            ax.plot(level["x"], level["value"], ":", color="black", lw=1.2, label=label)
        for _, mark in mine[mine["kind"] == "untrained"].iterrows():
            if mark["x"] == "":
                ax.axhline(mark["value"], color=GREY, ls="--", lw=1, label=mark["label"])
            else:
                at = f"{mark['label']} (at its own {figure.option_symbol})"
                ax.plot(mark["x"], mark["value"], "X", color=GREY, ms=6, mec="white", label=at)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if ticks[-1] >= 1e4:  # five digits beside four do not fit
            ax.tick_params(axis="x", labelsize=6)
        ax.set_xlim(ticks[0] / 2, ticks[-1] * 3)
        ax.set_title(panel.label)
        _within_percent(panel, ax.get_ylim, ax.set_ylim)
    for ax in axes[len(figure.panels) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(figure.panels) - columns) : len(figure.panels)]:
        ax.set_xlabel(figure.option_label)
    legend(canvas, axes, figure.groups)
    return canvas


def _within_percent(panel: Panel, get: Callable, put: Callable) -> None:
    """No axis past 100 %: an interval of few seeds may reach further, an accuracy cannot."""
    if panel.percent and get()[1] > 100.5:
        put(get()[0], 100.5)


def _arms(mean: pd.DataFrame) -> list[pd.Series] | None:
    if mean["low"].isna().all():
        return None
    return [(mean["value"] - mean["low"]).fillna(0), (mean["high"] - mean["value"]).fillna(0)]


def _by_row(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    listed = marks[marks["kind"] == "mean"].drop_duplicates("label")
    names = {label: place for place, label in enumerate(listed["label"])}
    gain = figure.kind == "gain"
    height = 1.0 + (0.40 if gain else 0.31) * len(names)
    canvas, grid = new_canvas(1, len(figure.panels), height, sharey=True)
    for ax, panel in zip(grid[0], figure.panels, strict=True):
        mine = marks[marks["panel"] == panel.label]
        for group in figure.groups:
            colour, own = styles.group(group), mine[mine["group"] == group]
            if own.empty:  # a legend names what is drawn
                continue
            own = own.assign(y=own["label"].map(names))
            dots, mean, base = (own[own["kind"] == kind] for kind in ("seed", "mean", "baseline"))
            ax.plot(dots["value"], dots["y"] - 0.22, **DOT, color=colour)  # above their mean
            ax.errorbar(
                mean["value"],
                mean["y"],
                xerr=_arms(mean),
                **MEAN | {"ls": ""},
                marker="o",
                color=colour,
                label=group,
            )
            if not base.empty:
                low, high = base["y"] - 0.42, base["y"] + 0.42
                label = "mean of the row's own baseline"
                ax.vlines(base["value"], low, high, color="0.3", lw=2, alpha=0.5, label=label)
        for _, line in mine[mine["kind"] == "untrained"].iterrows():
            ax.axvline(line["value"], color=GREY, ls="--", lw=1, label=line["label"])
        if gain:
            ax.axvline(0, color="black", lw=0.8)
            ax.set_xlabel(f"gain: {panel.label.replace('in %', 'in points')}")
        else:
            ax.set_xlabel(panel.label)
            _within_percent(panel, ax.get_xlim, ax.set_xlim)
    base = dict(zip(listed["label"], listed["x"], strict=True))
    ticks = [f"{name}\n{base[name]}" if base[name] else name for name in names]
    grid[0][0].set_yticks(range(len(names)), ticks)
    grid[0][0].set_ylim(len(names) - 0.4, -0.6)
    for ax in grid[0][1:]:
        ax.tick_params(left=False)
    legend(canvas, grid[0], figure.groups)
    return canvas


def _history(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    groups = [name for name in figure.groups if (marks["group"] == name).any()]
    if len(groups) == 1:  # one group: its panels fill a grid of two columns
        columns = min(2, len(figure.panels))
        rows = -(-len(figure.panels) // columns)
        places = [(groups[0], panel) for panel in figure.panels]
    else:
        columns, rows = len(groups), len(figure.panels)
        places = [(group, panel) for panel in figure.panels for group in groups]
    canvas, grid = new_canvas(rows, columns, 0.7 + 1.75 * rows, sharex=True)
    axes = [ax for line in grid for ax in line]
    for index, (ax, (group, panel)) in enumerate(zip(axes, places, strict=False)):
        mine = marks[(marks["group"] == group) & (marks["panel"] == panel.label)]
        draw_lines(ax, mine, styles)
        for value in sorted(set(mine.loc[mine["kind"] == "level", "value"])):
            ax.axhline(value, color="black", ls=":", lw=1.2, label=panel.level_label)
        parts = panel.label.replace(", ", ",\n").splitlines()
        ax.set_ylabel("\n".join(textwrap.fill(part, 22) for part in parts))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(groups) > 1:
            if index % columns:
                ax.sharey(axes[index - 1])
                ax.set_ylabel("")
            if index < columns:
                ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), title=group)
        if index >= len(places) - columns:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
    for ax in axes[len(places) :]:
        ax.set_axis_off()
    if len(groups) == 1:
        legend(canvas, axes)
    return canvas


def _spectrum(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    one_unit = len({panel.reading for panel in figure.panels}) == 1
    canvas, grid = new_canvas(1, len(figure.panels), 3.2, sharey=one_unit)
    for ax, panel in zip(grid[0], figure.panels, strict=True):
        mine = marks[marks["panel"] == panel.label]
        draw_lines(ax, mine, styles)
        for value in sorted(set(mine.loc[mine["kind"] == "level", "value"])):
            ax.axhline(value, color="black", ls=":", lw=1.2, label="isotropic")
        ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_title(panel.label)
        ax.set_xlabel("principal direction")
        if panel.reading == "released":
            ax.set_ylabel("singular value of H\u1d40H / n")
        elif not one_unit or panel is figure.panels[0]:
            ax.set_ylabel("share of the variance")
    legend(canvas, grid[0])
    return canvas


def _label_share(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    canvas, grid = new_canvas(1, len(figure.panels), 3.2)
    for ax, panel in zip(grid[0], figure.panels, strict=True):
        mine = marks[marks["panel"] == panel.label]
        draw_lines(ax, mine, styles)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(mine["x"].astype(float)))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel("labels that the probe sees, %")
        ax.set_ylabel(panel.label)
        _within_percent(panel, ax.get_ylim, ax.set_ylim)
    legend(canvas, grid[0])
    return canvas


DRAW = {
    "metric_over_option": _over_option,
    "metric_by_row": _by_row,
    "gain": _by_row,
    "history": _history,
    "queue": draw_queue,
    "spectrum": _spectrum,
    "mixture": draw_mixture,
    "matrices": draw_matrices,
    "map": draw_map,
    "label_share": _label_share,
    "sensitivity": draw_sensitivity,
}
