"""Rows side by side as a scale has them, and with one choice changed at a time."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure as Canvas

from peregrine.config.study import Figure
from peregrine.reporting.canvas import DOT, legend, new_canvas
from peregrine.reporting.marks import AS_CHOSEN
from peregrine.reporting.styles import Styles

SPREAD = 0.62
"""Of the room of a variation, how much the rows in it take."""


def draw_sensitivity(figure: Figure, marks: pd.DataFrame, styles: Styles) -> Canvas:
    """A panel below the other; across are the scale as chosen and its variations."""
    named = dict.fromkeys([AS_CHOSEN, *marks["x"]])  # first, also where it has no seed yet
    places = {name: place for place, name in enumerate(named)}
    labels = list(dict.fromkeys(marks["label"]))
    canvas, grid = new_canvas(len(figure.panels), 1, 1.2 + 1.9 * len(figure.panels), sharex=True)
    for (ax,), panel in zip(grid, figure.panels, strict=True):
        mine = marks[marks["panel"] == panel.label]
        for index, label in enumerate(labels):
            colour, _ = styles.rows[label]
            shift = SPREAD * (index / max(1, len(labels) - 1) - 0.5)
            own = mine[mine["label"] == label]
            at = own["x"].map(places) + shift
            dots, mean = own["kind"] == "seed", own["kind"] == "mean"
            ax.plot(at[dots], own["value"][dots], **DOT, color=colour)
            ax.plot(at[mean], own["value"][mean], "_", color=colour, ms=9, mew=1.8, label=label)
        ax.axvspan(-0.5, 0.5, color="0.95", zorder=0)
        ax.grid(axis="x", visible=False)
        ax.set_ylabel("\n".join(textwrap.wrap(panel.label, 26)))
        for place in range(len(places)):
            ax.axvline(place + 0.5, color="0.85", lw=0.6, zorder=0)
    last = grid[-1][0]
    names = ["\n".join(textwrap.wrap(name, 12)) for name in places]
    last.set_xticks(range(len(places)), names, fontsize=6.5)
    last.set_xlim(-0.5, len(places) - 0.5)
    legend(canvas, [line[0] for line in grid])
    return canvas
