"""Maps of embeddings in their first two principal directions, coloured by class or by code."""

import textwrap
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from peregrine.config.load import Cell
from peregrine.config.study import Figure, Panel
from peregrine.reporting.canvas import new_canvas
from peregrine.reporting.drawing_diagnostics import ACROSS
from peregrine.reporting.marks import Pixel, Source
from peregrine.reporting.styles import GREY, Styles

COLOURS = 10
"""Classes or codes that get a colour; the points of all others are grey."""

OTHERS = -1.0
"""Value of a point without a colour of its own."""


def map_pixels(present: Iterable[tuple[Panel, str, Cell]], source: Source) -> Iterator[Pixel]:
    """A point per image, its value the place of its class or code among those with a colour.

    Classes by number, codes by how many of the drawn images they have, the smaller one first where
    equal. A row whose method has no codes has no points in a panel of codes.
    """
    for panel, _, cell in present:
        seed, arrays = source.matrices(cell.row) or (None, {})
        groups = arrays.get("map_labels" if panel.metric == "class" else "map_codes")
        if groups is None:
            continue
        known, sizes = np.unique(groups, return_counts=True)
        order = known if panel.metric == "class" else known[np.argsort(-sizes, kind="stable")]
        place = {group: float(k) for k, group in enumerate(order[:COLOURS].tolist())}
        for (x, y), group in zip(arrays["map_points"].tolist(), groups.tolist(), strict=True):
            value = place.get(group, OTHERS)
            yield Pixel(panel.label, cell.label, "seed", seed, x, y, value)
        share = 100 * float(arrays["map_share"].sum())
        yield Pixel(panel.label, cell.label, "share", seed, "", "", share)


def draw_map(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    """One column a row of the study, one line a panel; each row on its own scale."""
    labels = list(marks["label"].unique())
    across = min(ACROSS, len(labels))
    blocks, lines = -(-len(labels) // across), len(figure.panels)
    canvas, grid = new_canvas(blocks * lines, across, 0.3 + 1.45 * blocks * lines)
    colours = sns.color_palette("tab10", COLOURS)
    for ax in (ax for line in grid for ax in line):
        ax.set_axis_off()
    for place, label in enumerate(labels):
        block, column = divmod(place, across)
        for line, panel in enumerate(figure.panels):
            ax = grid[block * lines + line][column]
            mine = marks[(marks["label"] == label) & (marks["panel"] == panel.label)]
            points, share = mine[mine["kind"] == "seed"], mine[mine["kind"] == "share"]
            if line == 0:
                ax.set_title(textwrap.fill(label, 18), fontsize=7.5)
            if points.empty:
                ax.text(0.5, 0.5, "no codes", ha="center", va="center", color=GREY)
                continue
            ax.set_axis_on()
            for value, own in points.groupby("value"):  # grey first, below the colours
                colour = "0.8" if value == OTHERS else colours[int(value)]
                ax.plot(own["x"], own["y"], ls="", marker=".", ms=2.5, mew=0, color=colour)
            half = max(1.05 * points[["x", "y"]].abs().to_numpy(dtype=float).max(), 0.01)
            ax.set_xlim(-half, half)
            ax.set_ylim(-half, half)
            ax.set_aspect("equal")
            ax.grid(False)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(3, symmetric=True))
            ax.tick_params(labelsize=6, length=2)
            if line == 0:
                ax.set_xlabel(f"{share['value'].iloc[0]:.0f} % of the variance", fontsize=6.5)
            if column == 0:
                ax.set_ylabel(panel.label)
    return canvas
