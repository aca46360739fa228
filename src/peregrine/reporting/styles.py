"""One look for a row and one hue for a group in all figures of a study, told apart by anyone.

Rows of a group are shades of its hue, light to dark in the group's order, so a ramp shows an order
where there is one. Neighbours differ in dash too. The untrained net is grey.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice

import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap, to_hex

from peregrine.config.load import Cell
from peregrine.config.study import Study

GREY = "0.45"
DASHES = ("-", (0, (4, 1.3)), (0, (6, 1.2, 1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
RAMPS = (
    ("#7ed0c8", "#0173b2", "#0a1f55"),
    ("#f3b63f", "#d55e00", "#6b1d00"),
    ("#a6d96a", "#029e73", "#003b2c"),
    ("#efb3e6", "#cc78bc", "#5e1260"),
    ("#ecd9c3", "#ca9161", "#4f3214"),
)
"""Light, middle, dark: lightness falls along each. The middle, a colour of seaborn's palette
'colorblind', is that of the group itself."""
LINES = ("spectrum", "history", "mixture", "queue", "label_share", "sensitivity")
"""Kinds of figures that draw a line for each row."""

SHADES = 5
"""Of a hue that can be told apart, for people with a colour vision deficiency too."""

Look = tuple[str, str | tuple]
"""A colour and a dash, as matplotlib takes them."""


@dataclass(frozen=True)
class Styles:
    """How a study's figures look."""

    groups: Mapping[str, str]  # name of a group -> colour
    rows: Mapping[str, Look]  # label of a row that is drawn as a line -> its look

    def group(self, name: str) -> str:
        """The colour of a group; of one that stands alone in its figures, the first."""
        return self.groups.get(name, RAMPS[0][1])


def styles(study: Study, cells: Mapping[str, Cell]) -> Styles:
    """The look of each group, and of each row of `cells` that a figure draws as a line.

    Groups that stand beside others in a figure have a hue each. A row has that of the first such
    group that names it; a row of none has a colour of its own.
    """
    families: dict[str, dict[str, None]] = {}
    for figure in study.figures:
        for name, rows in figure.groups.items() if len(figure.groups) > 1 else ():
            families.setdefault(name, {}).update(dict.fromkeys(rows))
    lines = [figure for figure in study.figures if figure.kind in LINES]
    # In the order of the figures, so that the rows of one figure are neighbours in every cycle.
    named = dict.fromkeys(row for each in lines for row in each.rows)
    left = [row for row in named if row in cells]
    untrained = [row for row in left if not cells[row].run.epochs]

    looks = dict(zip(untrained, zip(cycle([GREY]), _dashes(1)), strict=False))
    hues = dict(zip(families, cycle(RAMPS), strict=False))
    for place, (name, rows) in enumerate(families.items()):
        mine = [row for row in rows if row in left and row not in looks]
        shades = _shades(hues[name], min(len(mine), SHADES))
        for i, row in enumerate(mine):  # likewise
            turn, shade = divmod(i, SHADES)
            looks[row] = shades[shade], DASHES[(place // len(RAMPS) + turn + i) % len(DASHES)]
    taken = {middle for _, middle, _ in hues.values()}
    # Without its last three: grey is taken, yellow too pale, and there is a blue already.
    palette = [to_hex(colour) for colour in sns.color_palette("colorblind")[:7]]
    free = [colour for colour in palette if colour not in taken]
    alone = [row for row in left if row not in looks]
    for place, row in enumerate(alone):  # every pair of a colour and a dash before one comes again
        turn, colour = divmod(place, len(free))
        looks[row] = free[colour], DASHES[(turn + colour) % len(DASHES)]
    return Styles(
        {name: middle for name, (_, middle, _) in hues.items()},
        {study.rows[row].label: looks[row] for row in study.rows if row in looks},
    )


def _dashes(first: int = 0) -> Iterable[str | tuple]:
    return islice(cycle(DASHES), first, None)


def _shades(ramp: tuple[str, str, str], count: int) -> list[str]:
    """`count` colours from light to dark; a single one is the middle."""
    between = LinearSegmentedColormap.from_list("ramp", ramp)
    return [to_hex(between(i / (count - 1) if count > 1 else 0.5)) for i in range(count)]
