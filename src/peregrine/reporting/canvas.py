"""What all pictures share: size, fonts, the look of a seed and of a mean."""

from collections.abc import Iterable

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from peregrine.reporting.styles import Styles

WIDTH = 6.7  # inches: the text width of the PDF, so fonts appear at their true size
DOT = {"ls": "", "marker": ".", "alpha": 0.7, "ms": 4.5, "mew": 0}
MEAN = {"ls": "-", "lw": 1.2, "ms": 5, "mfc": "white", "mew": 1.2, "capsize": 2.5}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "peregrine",
    "svg.fonttype": "path",
    "path.simplify": False,
}


def new_canvas(rows: int, columns: int, height: float, **shared) -> tuple[Canvas, list[list[Axes]]]:
    """An empty picture of a height in inches, and its axes row by row."""
    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False, **shared)
    for ax in axes.flat:
        sns.despine(ax=ax)
    return canvas, axes.tolist()


def legend(canvas: Canvas, axes: list[Axes], first: Iterable[str] = ()) -> None:
    """One legend above all axes, each label once, those of `first` in front, lines balanced."""
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = list(first)
    labels = sorted(handles, key=lambda label: order.index(label) if label in order else len(order))
    most = max(1, int(125 / (max(map(len, labels)) + 8)))  # characters that fit side by side
    columns = -(-len(labels) // -(-len(labels) // most))
    canvas.legend(
        [handles[label] for label in labels], labels, loc="outside upper center", ncols=columns
    )


def draw_lines(ax: Axes, marks: pd.DataFrame, styles: Styles) -> None:
    """Thin lines for seeds, a thick one for their mean, in the look of each row."""
    for label, (colour, dash) in styles.rows.items():
        own = marks[marks["label"] == label]
        for _, curve in own[own["kind"] == "seed"].groupby("seed"):
            ax.plot(curve["x"], curve["value"], color=colour, lw=0.6, alpha=0.45)
        mean = own[own["kind"] == "mean"]
        if not mean.empty:
            ax.plot(mean["x"], mean["value"], ls=dash, color=colour, lw=1.6, label=label)
