"""Pictures of the diagnostics: mixture entropies, H^T H and H H^T. No numbers are computed here."""

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from peregrine.config.study import Figure
from peregrine.reporting.canvas import draw_lines, legend, new_canvas
from peregrine.reporting.styles import Styles

ACROSS = 5
"""Matrices that stand side by side at the width of the text."""


def draw_mixture(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    """Lines over the number of components, chance levels dotted."""
    canvas, grid = _over_sizes(figure, marks, styles, "components of the mixture")
    grid[0][0].set_ylabel("entropy in nats")
    return canvas


def draw_queue(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    """Lines over the length of a queue, chance levels dotted."""
    return _over_sizes(figure, marks, styles, "newest features searched")[0]


def _over_sizes(
    figure: Figure, marks: pd.DataFrame, styles: Styles, label: str
) -> tuple[Canvas, list[list[Axes]]]:
    """A column of axes a panel, lines over what `label` says, on a logarithmic axis."""
    canvas, grid = new_canvas(1, len(figure.panels), 3.2)
    for ax, panel in zip(grid[0], figure.panels, strict=True):
        mine = marks[marks["panel"] == panel.label]
        draw_lines(ax, mine, styles)
        for _, level in mine[mine["kind"] == "level"].groupby("label", sort=False):
            ax.plot(level["x"], level["value"], ":", color="black", lw=1.2, label=panel.level_label)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(mine["x"]))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.set_title(panel.label)
        ax.set_xlabel(label)
    legend(canvas, grid[0])
    return canvas, grid


def draw_matrices(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    """One column a row of the study, one line a panel; classes are parted by thin lines."""
    labels = list(marks["label"].unique())
    blocks, lines = -(-len(labels) // ACROSS), len(figure.panels)
    canvas, grid = new_canvas(blocks * lines, ACROSS, 0.3 + blocks * (0.3 + 1.15 * lines))
    canvas.set_layout_engine("compressed")  # made for axes of a fixed aspect
    for ax in (ax for line in grid for ax in line):
        ax.set_axis_off()
    for place, label in enumerate(labels):
        block, column = divmod(place, ACROSS)
        for line, panel in enumerate(figure.panels):
            ax = grid[block * lines + line][column]
            mine = marks[(marks["label"] == label) & (marks["panel"] == panel.label)]
            cells, classes = (mine[mine["kind"] == kind] for kind in ("seed", "class"))
            values = cells.pivot(index="y", columns="x", values="value")
            ax.set_axis_on()
            shown = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.grid(False)
            ax.set_xticks([])
            ax.set_yticks([])
            ends = classes[classes["value"].diff().fillna(0) != 0]["x"]
            for end in ends:
                ax.axhline(end - 0.5, color="black", lw=0.3)
                ax.axvline(end - 0.5, color="black", lw=0.3)
            if line == 0:
                ax.set_title(textwrap.fill(label.replace(" = ", "\u00a0=\u00a0"), 18), fontsize=7.5)
            if column == 0:
                ax.set_ylabel(panel.label.replace("^T", "\u1d40"))
    bar = canvas.colorbar(
        shown, ax=[ax for line in grid for ax in line], shrink=0.5 / blocks, aspect=25
    )
    bar.outline.set_linewidth(0.6)
    bar.set_label("correlation, cosine")
    return canvas
