"""Looks of rows: told apart by readers with and without a colour deficiency, in every figure."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from peregrine.config.load import load
from peregrine.reporting.styles import GREY, LINES, RAMPS, styles

ROOT = Path(__file__).parents[2]
# Machado, Oliveira, Fernandes 2009, severity 1: what is seen of linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
APART = 10.0
"""CIELAB distance; about 2 is just noticed side by side."""


def lab(colour: str, seen: str = "normal") -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as one kind of reader sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SEEN[seen]) @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_measure_itself():
    assert lab("white") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # the textbook's red


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_rows_of_a_configured_figure_are_told_apart(scale):
    project = load(ROOT / "config", scale=scale)
    compared = 0
    for name, study in project.studies.items():
        cells = project.of(name)
        looks = styles(study, cells).rows
        for figure in study.figures:
            drawn = [
                looks[study.rows[row].label]
                for rows in figure.groups.values()
                for row in rows
                if row in cells and figure.kind in LINES
            ]
            assert len(set(drawn)) == len(drawn), figure.id
            for (a, _), (b, _) in combinations(drawn, 2):
                if a == b:
                    continue  # more rows than colours: told apart by the dash
                compared += 1
                for seen in SEEN:
                    assert np.linalg.norm(lab(a, seen) - lab(b, seen)) > APART, (figure.id, a, b)
    assert compared > 50


@pytest.mark.parametrize("seen", SEEN)
def test_lightness_falls_along_a_ramp_whoever_looks(seen):
    for ramp in RAMPS:
        lightness = [lab(colour, seen)[0] for colour in ramp]
        assert all(a - b > APART for a, b in pairwise(lightness))
        assert lightness[0] < 90  # lines on white


def test_a_group_has_one_hue_and_its_rows_are_shades_of_it(collected):
    study, cells = collected.project.study("toy"), collected.project.of("toy")
    found = styles(study, cells)
    assert list(found.groups) == ["published", "other", "elsewhere"]
    assert found.group("published") == RAMPS[0][1] == found.group("all")  # alone in its figure
    assert list(found.rows) == [
        "untrained net",
        "Toy, c = 16",
        "Toy, c = 64",
        "Toy, c = 256",
        "Toy <mixed> & odd",
    ]
    shades = [found.rows[f"Toy, c = {c}"][0] for c in (16, 64, 256)]
    assert shades == [*RAMPS[0]]
    assert found.rows["Toy <mixed> & odd"][0] == RAMPS[1][1]  # the only one of its group
    assert found.rows["untrained net"][0] == GREY
    dashes = [found.rows[f"Toy, c = {c}"][1] for c in (16, 64, 256)]
    assert len(set(map(str, dashes))) == 3


def test_rows_of_no_group_have_colours_of_their_own(collected):
    """And no look is given twice, however many there are."""
    study = collected.project.study("toy")
    one = study.figures[4]  # a spectrum with a single group
    rows = tuple(f"r{i}" for i in range(20))
    labels = {row: study.rows["c16"].model_copy(update={"label": row}) for row in rows}
    figure = one.model_copy(update={"groups": {"all": rows}})
    study = study.model_copy(update={"rows": labels, "figures": (figure,)})
    cells = dict.fromkeys(rows, collected.project.of("toy")["c16"])
    looks = styles(study, cells).rows
    assert list(looks) == list(rows)
    assert len(set(map(str, looks.values()))) == len(rows)
    assert len({colour for colour, _ in looks.values()}) == 7
