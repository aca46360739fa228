"""Pictures of the theory study, from its CSV files. Nothing is minimised or fitted here."""

import io
from collections.abc import Callable, Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from peregrine.reporting.canvas import STYLE, WIDTH
from peregrine.reporting.styles import GREY

Frames = Mapping[str, pd.DataFrame]
NAMES = {"l2": "L2", "tanh": "tanh"}


def draw(figure: str, frames: Frames) -> bytes:
    """One figure as SVG; byte-stable like those of `drawing`."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**sns.axes_style("ticks"), **STYLE})
        canvas = FIGURES[figure](frames)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _canvas(columns: int, height: float, width: float = WIDTH, **more) -> tuple[Canvas, list]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(1, columns, squeeze=False, **more)[0].tolist()
    for ax in axes:
        sns.despine(ax=ax)
    return canvas, axes


def _powers(ax, ticks) -> None:
    """A logarithmic x axis with ticks where there are points."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(map(float, set(ticks)))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _where(frame: pd.DataFrame, **wanted) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def _root_of_size(ax, x, label: str) -> None:
    x = np.array(sorted(set(x)), float)
    ax.plot(x, 1 / np.sqrt(x), ":", color="black", lw=1.2, label=label)
    ax.set_yscale("log")
    _powers(ax, x)


def _codes(frames: Frames) -> Canvas:
    canvas, (ax,) = _canvas(1, 2.2, 3.6)
    found = _where(frames["codes"], metric="cosine_variance")
    _root_of_size(ax, found["f"], "1/\u221af")
    ax.plot(
        found["f"], np.sqrt(found["value"]), "o", ms=4.5, color=_colour(0), label="random codes"
    )
    ax.set_xlabel("length f of the codes")
    ax.set_ylabel("rms cosine")
    ax.legend()
    return canvas


def _colour(place: int) -> tuple:
    return sns.color_palette("colorblind")[place]


def _assignments(frames: Frames) -> Canvas:
    frame = frames["assignments"]
    frame = _where(frame, prior="forward", c=frame["c"].max())
    canvas, (left, right) = _canvas(2, 2.6, width_ratios=(1.25, 1))
    labels = {
        "one_hot": "one code each",
        "spread": "spread",
        "equal_share": "equal shares",
        "carriers": "a few carriers",
        "random": "random",
    }
    at = _where(frame, beta=1.0, metric="loss")
    at = at.assign(kind=at["start"].str.replace(r"-\d+$", "", regex=True))
    kinds = [kind for kind in labels if (at["kind"] == kind).any()]
    for place, kind in enumerate(kinds):
        mine = at[at["kind"] == kind]
        built, reached = (_where(mine, stage=s)["value"] for s in ("constructed", "minimised"))
        if len(built) and len(reached):
            left.plot([built.iloc[0], reached.iloc[0]], [place] * 2, color="0.75", lw=1, zorder=1)
        first = {"label": "as built"} if place == 0 else {}
        left.plot(built, [place] * len(built), "o", mfc="white", mec=_colour(0), ms=5.5, **first)
        first = {"label": "minimised"} if kind == "equal_share" else {}
        left.plot(reached, [place] * len(reached), "o", color=_colour(0), ms=5.5, **first)
        for value in {round(value, 2) for value in (*built[:1], *reached[:1])}:
            left.annotate(
                f"{value:.2f}",
                (value, place),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
    left.set_yticks(range(len(kinds)), [labels[kind] for kind in kinds])
    left.set_ylim(len(kinds) - 0.5, -0.7)
    left.margins(x=0.12)
    left.set_xlabel("loss, forward form, beta = 1")
    left.legend(loc="lower right")
    for place, kind in enumerate(("equal_share", "carriers")):
        mine = _where(frame, start=kind, stage="minimised", metric="off_share_mean")
        mine = mine.sort_values("beta")
        right.plot(
            mine["beta"],
            mine["value"],
            "os"[place] + "-",
            ms=4.5,
            lw=1,
            color=_colour(2 + place),
            label=f"from {labels[kind]}",
        )
    same = _where(frame, metric="equal_at_beta")["value"].iloc[0]
    right.axvline(same, color="black", ls=":", lw=1.2, label=f"comparisons equal ({same:.3f})")
    right.set_ylim(0)
    right.set_xlabel("beta, the weight of the invariance")
    right.set_ylabel("mass off the own code")
    right.legend()
    return canvas


def _blocks(frames: Frames) -> Canvas:
    frame = _where(frames["cosines"], norm="l2", prior="forward")
    starts = {"aligned": "from the promised optimum", "random-0": "from a random start"}
    canvas, axes = _canvas(2, 3.1)
    for ax, (start, label) in zip(axes, starts.items(), strict=True):
        matrix = _where(frame, start=start).pivot(index="row", columns="column", values="value")
        picture = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        ax.set_title(label)
        ax.set_xlabel("sample")
        ax.grid(False)
    axes[0].set_ylabel("sample")
    canvas.colorbar(picture, ax=axes, shrink=0.85, label="cosine")
    return canvas


def _gram(frames: Frames) -> Canvas:
    frame = _where(frames["embeddings"], stage="blocks", metric="gram_off_sd")
    canvas, axes = _canvas(2, 2.5, sharey=True)
    for ax, norm in zip(axes, ("l2", "tanh"), strict=True):
        mine = _where(frame, norm=norm, prior="forward")
        _root_of_size(ax, mine["c"], "1/\u221ac")
        _points(ax, mine)
        ax.set_title(f"{NAMES[norm]}, forward form")
        ax.set_xlabel("number of codes c")
    axes[0].set_ylabel("rms off-diagonal entry")
    axes[1].legend()
    return canvas


def _points(ax, frame: pd.DataFrame) -> None:
    """Values over c: of the promised optimum as a line, of random starts as dots."""
    known = frame[frame["start"] == "aligned"].sort_values("c")
    ax.plot(
        known["c"],
        known["value"],
        "o-",
        ms=4.5,
        lw=1,
        color=_colour(0),
        label="from the promised optimum",
    )
    rest = frame[frame["start"] != "aligned"]
    ax.plot(
        rest["c"] * 1.08,
        rest["value"],
        "D",
        ms=3.5,
        color=_colour(3),
        mew=0,
        label="from random starts",
    )


def _few(frames: Frames) -> Canvas:
    free = _where(frames["assignments"], prior="forward", beta=1.0, metric="loss")
    found = _where(frames["embeddings"], stage="few", prior="forward", metric="excess")
    sizes = sorted(found["c"].unique())
    lowest = _where(free, start="lowest").set_index("c")["value"]
    canvas, axes = _canvas(2, 2.5, sharey=True)
    for ax, norm in zip(axes, ("l2", "tanh"), strict=True):
        for kind, label, mark in (
            ("one_hot", "assignment: one code each", "--"),
            ("spread", "assignment: spread", ":"),
        ):
            built = _where(free, start=kind, stage="constructed").set_index("c")["value"]
            ax.plot(sizes, (built - lowest)[sizes], mark, color=GREY, lw=1.2, label=label)
        _points(ax, _where(found, norm=norm))
        _powers(ax, sizes)
        ax.set_yscale("log")
        ax.set_title(f"{NAMES[norm]} embeddings")
        ax.set_xlabel("number of codes c")
    axes[0].set_ylabel("loss above the lowest\nfree assignment")
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=2)
    return canvas


FIGURES: dict[str, Callable[[Frames], Canvas]] = {
    "codes": _codes,
    "assignments": _assignments,
    "blocks": _blocks,
    "gram": _gram,
    "few": _few,
}
