"""Figures: the plotted numbers are derived here by hand; pictures are compared as bytes."""

import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from peregrine.config.load import load
from peregrine.config.study import Figure
from peregrine.errors import UserError
from peregrine.reporting import drawing, figures
from peregrine.reporting import marks as marks_module
from peregrine.reporting.figures import draw_figures
from peregrine.reporting.styles import Styles

ROOT = Path(__file__).parents[2]
T975 = 4.302652729911275  # of 2 degrees of freedom


def marks(world, figure: str, **wanted: str) -> list[dict[str, str]]:
    path = world.folder / "figures" / "data" / f"{figure}.csv"
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    return [line for line in lines if all(line[key] == value for key, value in wanted.items())]


def number(world, figure: str, column: str = "value", **wanted: str) -> float:
    [line] = marks(world, figure, **wanted)
    return float(line[column])


@pytest.fixture
def notes(monkeypatch):
    """What each figure says in small print, by figure; nothing is drawn."""
    said = {}

    def record(figure, frame, styles, lines):
        said[figure.id] = lines
        return {}

    monkeypatch.setattr(figures, "render", record)
    return said


def test_a_metric_over_an_option_shows_seeds_mean_and_interval(collected):
    c16 = {"panel": "linear probe, %", "label": "Toy, c = 16"}
    assert [float(line["value"]) for line in marks(collected, "sizes", kind="seed", **c16)] == [
        89.9,
        90.0,
        90.1,
    ]
    half = T975 * 0.1 / math.sqrt(3)
    assert number(collected, "sizes", "x", kind="mean", **c16) == 16
    assert number(collected, "sizes", kind="mean", **c16) == pytest.approx(90, rel=1e-6)
    assert number(collected, "sizes", "low", kind="mean", **c16) == pytest.approx(90 - half, 1e-5)
    assert number(collected, "sizes", "high", kind="mean", **c16) == pytest.approx(90 + half, 1e-5)
    untrained = {"kind": "untrained", "panel": "linear probe, %"}
    assert number(collected, "sizes", **untrained) == pytest.approx(51)
    levels = marks(collected, "sizes", kind="level", label="chance level")
    assert {(line["x"], line["value"]) for line in levels} == {
        ("16.0", "0.1"),
        ("64.0", "0.1"),
        ("256.0", "0.1"),
    }


def test_rows_whose_seeds_differ_in_code_are_not_drawn(collected):
    for figure in ("sizes", "rows", "training"):
        assert marks(collected, figure, label="Toy, c = 16")
        assert not marks(collected, figure, label="Toy <mixed> & odd")


def test_gains_are_paired_by_seed(collected):
    gains = marks(collected, "gain", kind="seed", label="Toy, c = 256")
    # Seed 0 of the row is missing: 0.90 - 0.900 and 0.931 - 0.901, in points.
    assert [(g["seed"], float(g["value"])) for g in gains] == [("1", 0.0), ("2", 3.0)]
    assert number(collected, "gain", kind="mean", label="Toy, c = 256") == pytest.approx(1.5)


def test_an_interaction_is_a_gain_minus_the_gain_of_its_control():
    """Gains .3 .2 .4 minus .1 .1 .2, seed by seed; a row whose control is not run is not drawn."""
    series = {
        "a": [0.1, 0.2, 0.3],
        "b": [0.4, 0.4, 0.7],
        "c": [0.2, 0.2, 0.1],
        "d": [0.3, 0.3, 0.3],
    }
    cells = {row: SimpleNamespace(row=row, label=row.upper()) for row in series}
    source = SimpleNamespace(cells=cells, values=lambda row, panel: dict(enumerate(series[row])))
    figure = Figure(
        id="x", kind="gain", title="", caption="", groups={"all": ["b", "d"]},
        panels=[{"metric": "linear/accuracy", "label": "p"}],
        baseline={"b": "a", "d": "c"}, control={"b": "d", "d": "absent"},
    )  # fmt: skip
    drawn = list(figures._gain(figure, source))
    assert {mark.label for mark in drawn} == {"B"}
    seeds = [mark.value for mark in drawn if mark.kind == "seed"]
    assert seeds == pytest.approx([0.2, 0.1, 0.2])
    with pytest.raises(ValidationError, match="control goes with gain only"):
        Figure(**figure.model_dump() | {"kind": "metric_by_row"})


def test_the_baseline_of_a_row_is_the_mean_of_its_own(collected):
    assert number(collected, "rows", kind="baseline", label="Toy, c = 64") == pytest.approx(90)


def test_a_spectrum_is_a_share_of_the_variance(collected):
    lines = marks(collected, "spectrum", panel="embeddings", label="Toy, c = 16")
    # Squares of 1, 1/2, 1/4, 1/8 over their sum 85/64, whatever the scale of a seed.
    for seed in ("0", "1", "2", ""):
        shares = [float(line["value"]) for line in lines if line["seed"] == seed][:4]
        assert shares == pytest.approx([64 / 85, 16 / 85, 4 / 85, 1 / 85], rel=1e-5)
    assert [line["value"] for line in lines if line["kind"] == "level"] == ["0.25"]
    features = marks(collected, "spectrum", panel="features", label="Toy, c = 16", kind="mean")
    assert [line["x"] for line in features] == ["1", "2", "3", "4"]  # the fifth is rounding


def test_a_released_spectrum_is_drawn_as_it_is(collected):
    lines = marks(collected, "readings", panel="released", label="Toy, c = 256", kind="mean")
    # Squares of 2 and 1/2; the third is float32 rounding of the first.
    assert [(line["x"], line["value"]) for line in lines] == [("1", "4.0"), ("2", "0.25")]
    assert not marks(collected, "readings", panel="released", kind="level")
    assert marks(collected, "readings", panel="ours", kind="level")


def test_mixtures_are_drawn_over_their_components(collected):
    lines = marks(collected, "mixtures", panel="relative", label="Toy, c = 16", kind="mean")
    found = [(line["x"], float(line["value"])) for line in lines]
    assert found == [("10", pytest.approx(-0.9)), ("20", pytest.approx(-1.8))]
    levels = marks(collected, "mixtures", kind="level", label="Toy, c = 16")
    assert [(line["x"], line["value"]) for line in levels] == [("10", "-0.125")]
    lines = marks(collected, "mixtures", panel="released", kind="seed")
    assert {(line["label"], line["value"]) for line in lines} == {("Toy, c = 64", "-11000.0")}


def test_matrices_are_those_of_the_first_seed_that_has_them(collected):
    cells = marks(collected, "matrices", panel="H^T H", kind="seed", label="Toy, c = 256")
    assert {cell["seed"] for cell in cells} == {"1"}  # seed 0 never began
    assert len(cells) == 9
    assert {cell["value"] for cell in cells if cell["x"] == cell["y"]} == {"0.875"}
    assert {cell["value"] for cell in cells if cell["x"] != cell["y"]} == {"-0.125"}
    classes = marks(collected, "matrices", kind="class", label="Toy, c = 16")
    assert [(c["panel"], c["value"]) for c in classes] == [
        ("H H^T", value) for value in ("7.0", "7.0", "8.0", "9.0")
    ]
    assert not marks(collected, "matrices", label="Toy <mixed> & odd")


def test_a_map_colours_ten_classes_and_the_ten_most_used_codes(collected):
    points = marks(collected, "map", panel="by class", kind="seed", label="Toy, c = 16")
    assert [(p["x"], p["y"], p["value"]) for p in points[2:5]] == [
        ("1.0", "-1.0", "1.0"),
        ("1.0", "-1.0", "1.0"),
        ("2.0", "-2.0", "2.0"),
    ]
    assert [p["value"] for p in points[18:]] == ["9.0", "9.0", *4 * ["-1.0"]]
    [share] = marks(collected, "map", panel="by class", kind="share", label="Toy, c = 16")
    assert share["value"] == "75.0"
    codes = marks(collected, "map", panel="by code", kind="seed", label="Toy, c = 256")
    assert {code["seed"] for code in codes} == {"1"}  # seed 0 never began
    # 41 has three images, all others one: then the nine smallest, 40 and 42 to 49.
    assert [c["value"] for c in codes] == [
        *("0.0", "1.0", "0.0"),
        *(f"{k}.0" for k in range(2, 10)),
        *12 * ["-1.0"],
        "0.0",
    ]
    assert not marks(collected, "map", panel="by code", label="Toy, c = 16")
    assert not marks(collected, "map", label="Toy <mixed> & odd")


def test_what_has_no_released_reading_is_said(collected, notes):
    draw_figures(collected.project, "toy", collected.results)
    assert notes["mixtures"][-1] == "No released reading: Toy, c = 16."
    assert notes["readings"][-1] == "No released reading: Toy, c = 16."
    assert not [line for line in notes["sizes"] if "reading" in line]
    # Matrices are of one seed, so that only a row without any is named.
    assert [line[:19] for line in notes["matrices"]] == ["Toy <mixed> & odd: "]


def test_a_history_has_a_line_per_seed_and_their_mean(collected):
    lines = marks(collected, "training", label="Toy, c = 256", x="2")
    assert {(line["kind"], line["seed"]): float(line["value"]) for line in lines} == {
        ("seed", "1"): pytest.approx(85),
        ("seed", "2"): pytest.approx(88.1),
        ("mean", ""): pytest.approx(86.55),
    }


def test_shares_of_the_labels_lead_to_the_probe_with_all(collected):
    lines = marks(collected, "labels", label="Toy, c = 16")
    found = {(line["seed"], line["x"]): float(line["value"]) for line in lines}
    assert [found["", x] for x in ("1", "10", "100")] == pytest.approx([40, 65, 90])
    assert [found["0", x] for x in ("1", "10", "100")] == pytest.approx([39.9, 64.9, 89.9])
    assert {line["label"] for line in marks(collected, "labels")} == {"Toy, c = 16"}


def test_what_is_missing_is_said_below_the_picture(collected, notes):
    draw_figures(collected.project, "toy", collected.results)
    assert notes["rows"] == [
        "Toy, c = 64: 2 of 3 seeds (seed 2 nan)",
        "Toy, c = 256: 2 of 3 seeds (seed 0 missing)",
        "Toy <mixed> & odd: 0 of 3 seeds (seeds 0, 1, 2 mixed)",
    ]
    assert notes["sizes"][-1] == "Not run at this scale: Toy, c = 1024."
    assert notes["spectrum"] == []


def test_an_untrained_net_misses_no_history(collected):
    project = collected.project
    plan = project.study("toy")
    figure = next(each for each in plan.figures if each.id == "training")
    figure = figure.model_copy(update={"groups": {"all": ["untrained"]}})
    source = figures.Source(
        project.of("toy"), figures.from_csv(collected.folder), collected.results / "runs",
        project.scale.seeds, project.scale.protocol,
    )  # fmt: skip
    nothing = figures.pd.DataFrame(columns=figures.Mark._fields)
    assert figures._notes(figure, plan, source, nothing) == []


@pytest.fixture
def by_row(collected, monkeypatch):
    """(figure, marks, styles) of the figure `rows`, whose group `other` has no row to draw."""
    given = {}
    monkeypatch.setattr(figures, "render", lambda *all_: given.update({all_[0].id: all_[:3]}) or {})
    draw_figures(collected.project, "toy", collected.results)
    return given["rows"]


def test_a_legend_names_only_what_is_drawn(by_row):
    [legend] = drawing._by_row(*by_row).legends
    named = [text.get_text() for text in legend.get_texts()]
    assert "published" in named and "other" not in named


@pytest.mark.filterwarnings("error:constrained_layout")
def test_small_print_takes_no_room_from_the_axes(by_row):
    """One row is finished, and ten lines say so: 8 lines of .11 in more, at 200 px an inch."""
    figure, marks, styles = by_row
    one = marks[marks["label"] == marks["label"].iloc[0]]
    heights = [
        int.from_bytes(drawing.render(figure, one, styles, ["Note."] * lines)["png"][20:24], "big")
        for lines in (2, 10)
    ]
    assert heights[1] - heights[0] == pytest.approx(8 * 0.11 * 200, abs=2)


def in_palette(pixels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """A picture [h, w, 3] as it is kept: itself, and its pixels."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    kept = Image.open(io.BytesIO(drawing._in_256_colours(png)))
    return kept, np.asarray(kept.convert("RGB"))


def test_a_picture_is_kept_in_256_colours_which_are_close_to_its_own():
    """One of 200 colours is itself; one of 4,096, three sheets of 16 x 256, is nowhere far off."""
    few = np.repeat(np.arange(200, dtype=np.uint8), 600).reshape(200, 200, 3)
    kept, pixels = in_palette(few)
    assert kept.mode == "P" and (pixels == few).all()
    x, y = np.meshgrid(np.arange(256), np.arange(0, 256, 16))
    many = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
    kept, pixels = in_palette(many)
    assert len(np.unique(many.reshape(-1, 3), axis=0)) == 4096
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(pixels.astype(int) - many).max() <= 32


def test_pictures_are_the_same_bytes_again_and_show_the_numbers(collected):
    folder = collected.folder / "figures"
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert sorted(before) == sorted(
        f"{name}.{end}"
        for name in (figure.id for figure in collected.project.study("toy").figures)
        for end in ("svg", "png")
    )
    assert all(b"<dc:date>" not in data and b"Software" not in data for data in before.values())
    draw_figures(collected.project, "toy", collected.results)
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    # Another number is another picture: the bytes are no constant.
    plan = collected.project.study("toy").figures[1]
    frame = figures.pd.DataFrame(
        [figures.Mark("linear probe, %", "published", "Toy", "", "seed", 0, 1.0)]
    )
    assert figures.render(plan, frame, Styles({}, {}), [])["svg"] != before["rows.svg"]


def test_the_configured_figures_draw_without_any_run(tmp_path, notes, fixed_code, monkeypatch):
    """Every figure of config/ names rows and options that exist, and says that nothing is there."""
    from peregrine.reporting.collect import collect

    record = figures.render
    monkeypatch.setattr(
        figures, "render", lambda *given: record(*given) or {"svg": b"", "png": b""}
    )
    project = load(ROOT / "config", scale="demo")
    kinds = set()
    for name, study in project.studies.items():
        kinds |= {figure.kind for figure in study.figures}
        notes.clear()
        collect(project, name, tmp_path, ROOT / "config")
        assert list(notes) == [figure.id for figure in study.figures]
        nothing = ("0 of 3 seeds", "Not run", "Not measured")
        assert not [line for line in notes.values() if not any(n in line[0] for n in nothing)]
    assert kinds == set(figures.MARKS) - {"sensitivity"}  # no scale is like demo


def test_a_figure_without_a_run_is_a_panel_that_says_so(collected):
    plan = collected.project.study("toy").figures[0]
    empty = figures.pd.DataFrame([], columns=figures.Mark._fields)
    with_note = figures.render(plan, empty, Styles({}, {}), ["Toy: 0 of 3 seeds"])
    assert with_note["png"].startswith(b"\x89PNG")
    assert with_note["svg"] != figures.render(plan, empty, Styles({}, {}), [])["svg"]


def test_a_figure_that_the_study_has_no_longer_goes(collected, notes):
    stale = [collected.folder / "figures" / name for name in ("old.svg", "data/old.csv")]
    for path in stale:
        path.write_text("")
    draw_figures(collected.project, "toy", collected.results)
    assert not any(path.exists() for path in stale)
    assert (collected.folder / "figures" / "gain.svg").is_file()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("history.csv", "pretrain"),
        ("corrected/spectrum.csv", "diagnose"),
        ("corrected/matrices.safetensors", "diagnose"),
    ],
)
def test_a_changed_curve_is_refused(collected, notes, name, step):
    path = collected.seed_folder("c16", 0) / name
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    try:
        with pytest.raises(UserError, match=rf"{name} is missing or was changed; rerun {step}"):
            draw_figures(collected.project, "toy", collected.results)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("history.csv", b'epoch,probe_accuracy\n1,"'),
        ("history.csv", b"\xff\xfe\x00"),
        ("history.csv", b""),
        ("history.csv", b"lr\n1\n"),
        ("history.csv", b"epoch,probe_accuracy\n1,much\n"),
        ("history.csv", b"epoch,probe_accuracy\n1,0.5\n1,0.6\n"),
        ("history.csv", b"epoch,probe_accuracy\n,0.5\n"),
        ("spectrum.csv", b"layer,index\nfeatures,0\n"),
        ("spectrum.csv", b"layer,index,value\nfeatures,0,large\n"),
    ],
)
def test_a_damaged_curve_is_refused(tmp_path, name, text):
    """Also where its sum was made to fit."""
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=rf"{name} is damaged \([^\n]+\); delete it") as error:
        marks_module.read_curve(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_curve_without_lines_is_whole(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,lr,loss\n")
    (tmp_path / "spectrum.csv").write_text("layer,index,value\n")
    assert marks_module.read_curve(tmp_path / "history.csv").empty
    assert marks_module.read_curve(tmp_path / "spectrum.csv").empty


def test_a_queue_is_drawn_over_its_lengths_in_the_last_epoch():
    """Two seeds, lengths 32 and 64: in percent, with chance beside them at each length."""
    history = {
        seed: figures.pd.DataFrame(
            {
                "epoch": [1, 2],
                "neighbour_chance": [0.1, 0.1],
                "neighbour_purity": [0.9, 0.9],
                "neighbour_purity_L64": [0.0, 0.5 + seed / 10],
                "neighbour_purity_L32": [0.0, 0.25],
            }
        )
        for seed in (0, 1)
    }
    cell = SimpleNamespace(row="r", label="Row")
    source = SimpleNamespace(cells={"r": cell}, curves=lambda row, name: history)
    panel = {"metric": "neighbour_purity", "label": "p", "percent": True}
    given = {"id": "q", "kind": "queue", "title": "T", "caption": "C", "groups": {"all": ["r"]}}
    plan = Figure(**given, panels=[panel | {"level": "neighbour_chance"}])
    found = list(figures.MARKS["queue"](plan, source))
    drawn = [(m.x, m.kind, m.seed, round(m.value, 9)) for m in found]
    assert drawn == [
        *[(32, "seed", 0, 25.0), (32, "seed", 1, 25.0), (32, "mean", "", 25.0)],
        (32, "level", "", 10.0),
        *[(64, "seed", 0, 50.0), (64, "seed", 1, 60.0), (64, "mean", "", 55.0)],
        (64, "level", "", 10.0),
    ]
    levels = [m for m in figures.MARKS["history"](
        plan.model_copy(update={"kind": "history"}), source) if m.kind == "level"]  # fmt: skip
    assert [(m.label, m.value) for m in levels] == [("Row", 10.0)]
