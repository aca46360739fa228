"""Detection in reports: bound to its protocol and images, drawn, left out aloud."""

import base64
import json
from io import BytesIO

import pytest
import yaml
from PIL import Image
from small_world import PARTS, STUDY, World

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.identity import digest
from peregrine.config.load import load
from peregrine.errors import UserError
from peregrine.reporting.scope import left_out, shows_figure, shows_table

DATA = {"title": "t", "licence": "l", "classes": ["cat"], "train": ["a"], "test": ["b"]}
C4 = {"data": "cats", "head": "c4", "short_sides": [64], "long_side": 96, "anchors": [16]}
C4 |= {"iterations": 10, "batch_size": 2, "lr": 0.01, "warmup": 1}
TABLE = {
    "id": "detection",
    "title": "Detection",
    "rows": ["small", "large"],
    "columns": [{"metric": "detection/AP", "label": "AP"}],
}
FIGURE = {
    "id": "boxes",
    "kind": "detections",
    "title": "Boxes",
    "caption": "c",
    "groups": {"g": ["large", "small"]},
    "panels": [{"metric": "detection/AP", "label": "boxes"}],
}
TEST = STUDY["claims"][0]["tests"][0] | {"metric": "detection/AP"}


@pytest.fixture(autouse=True)
def code(monkeypatch):
    monkeypatch.setattr(fingerprint, "fingerprint", lambda step, method=None: "now")
    monkeypatch.setattr(fingerprint, "parts", lambda step, method=None: PARTS)


@pytest.fixture
def world(tmp_path) -> World:
    world = World(tmp_path)
    study = STUDY | {
        "evaluations": {"detection": ["small", "large"]},
        "tables": [TABLE],
        "figures": [FIGURE],
        "claims": [{"id": "B7", "statement": "s", "tests": [TEST]}],
    }
    for name, data in {
        "studies/toy": study,
        "detection": {"data": {"cats": DATA}, "detections": {"c4": C4}},
        "scales/mini": {"name": "mini", "description": "d", "seeds": [0, 1, 2], "detection": "c4"},
    }.items():
        (world.config / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    world.project = load(world.config)
    return world


def configured(world):
    path = world.config / "config.yaml"
    data = yaml.safe_load(path.read_text()) | {"detection_data": {"cats": "cats"}}
    path.write_text(yaml.safe_dump(data))
    world.project = load(world.config)


def detected(world, row, seed, ap, images="i", **made):
    """A detection and its picture of 4 x 2 px."""
    picture = BytesIO()
    Image.new("RGB", (4, 2), (seed, 0, 0)).save(picture, "PNG")
    path = world.folder(row, seed) / "corrected" / "detection-standard.json"
    files.write_bytes(path.with_suffix(".png"), picture.getvalue())
    own = {"protocol": digest(world.project.detection.chosen), "images": images} | made
    facts = world.facts(row, seed, "detection", **own)
    facts["provenance"].pop("extract")
    if ap is None:
        files.write_json(path, facts | {"diverged_at": 7})
        return
    shown = {"image": "b1", "objects": [[1, 0, 0, 9, 9]], "found": [[1, 1, 0, 9, 8]]}
    more = {"AP": ap, "shown": [shown | {"scores": [0.75]}]}
    more["picture_sha256"] = files.sha256(path.with_suffix(".png"))
    files.write_json(path, facts | more)


def test_without_data_nothing_is_awaited_and_the_report_says_why(world):
    assert world.states("small") == [("finished", "")] * 3
    line = next(each for each in world.lines("tables/detection.csv") if each["row"] == "small")
    assert (line["mean"], line["remark"]) == ("", "not run: no detection data configured")
    claim = json.loads((world.results / "mini/toy/claims.json").read_text())[0]
    assert claim["verdict"] == "not run @mini"
    assert claim["tests"][0]["remark"] == "no detection data configured"
    study, cells = world.project.study("toy"), world.project.of("toy")
    assert not shows_table(study.tables[0], cells, {})
    assert not shows_figure(study.figures[0], cells)
    told = left_out(study.tables, [], "mini", cells)
    assert told == "Left out, no detection data configured: Detection."


def test_with_data_numbers_are_read_and_bound(world):
    configured(world)
    for row, level in (("small", 0.25), ("large", 0.5)):
        for seed in range(3):
            detected(world, row, seed, level + 0.125 * seed)
    assert world.states("small") == [("finished", "")] * 3
    lines = {each["row"]: each for each in world.lines("tables/detection.csv")}
    assert (lines["small"]["mean"], lines["large"]["mean"]) == ("0.375", "0.625")
    cells = world.project.of("toy")
    assert shows_table(world.project.study("toy").tables[0], cells, {})
    detected(world, "small", 1, 0.5, protocol="0")
    status, detail = world.states("small")[1]
    assert status == "stale" and "another protocol 'standard', rerun detect" in detail
    detected(world, "small", 1, 0.5, images="others")
    assert world.states("small")[0] == (
        "mixed",
        "seeds differ in images of corrected/detection",
    )


def test_a_fine_tuning_that_diverged_is_a_failed_seed(world):
    configured(world)
    for row, level in (("small", 0.25), ("large", 0.5)):
        for seed in range(3):
            detected(world, row, seed, None if (row, seed) == ("large", 1) else level + seed / 1000)
    line = next(each for each in world.lines("tables/detection.csv") if each["row"] == "large")
    assert (line["seeds"], line["failed"]) == ("2", "1")
    assert line["remark"] == "1 of 3 seeds failed: the mean is of the others"
    claim = json.loads((world.results / "mini/toy/claims.json").read_text())[0]
    assert (claim["tests"][0]["seeds"], claim["tests"][0]["failed"]) == (2, 1)
    assert claim["verdict"] == "undecided @mini"


def test_the_picture_of_the_first_row_and_its_boxes(world):
    configured(world)
    detected(world, "large", 1, 0.5)
    detected(world, "small", 0, 0.5)
    folder = world.results / "mini" / "toy" / "figures"
    lines = world.lines("figures/data/boxes.csv")
    assert [(each["kind"], each["seed"], each["value"]) for each in lines] == [
        ("object", "1", ""),
        ("seed", "1", "0.75"),
    ]
    assert [lines[1][key] for key in ("image", "place", "x1", "y2")] == ["b1", "1", "1", "8"]
    png = (folder / "boxes.png").read_bytes()
    assert Image.open(BytesIO(png)).getpixel((0, 0)) == (1, 0, 0)  # of seed 1
    svg = (folder / "boxes.svg").read_text()
    assert 'width="4" height="2"' in svg and base64.b64encode(png).decode() in svg


def test_without_a_picture_the_figure_says_so(world):
    configured(world)
    assert world.lines("figures/data/boxes.csv") == []
    assert (world.results / "mini/toy/figures/boxes.png").stat().st_size > 1000


def test_rows_fine_tuned_on_different_images_are_refused(world):
    configured(world)
    for row, images in (("small", "i"), ("large", "i")):
        for seed in range(3):
            detected(world, row, seed, 0.4, images=images)
    world.collect()
    for seed in range(3):
        detected(world, "large", seed, 0.4, images="j")
    with pytest.raises(UserError, match="were fine-tuned on different images"):
        world.collect()
