"""What a scale detects, and with which rows: config/detection.yaml, config.yaml and a study."""

from pathlib import Path

import pytest
import yaml

from peregrine.config.detection import Detection
from peregrine.config.load import load
from peregrine.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"
DATA = {"title": "t", "licence": "l", "classes": ["cat"], "train": ["a"], "test": ["b"]}
C4 = {
    "data": "cats",
    "head": "c4",
    "short_sides": [64],
    "long_side": 96,
    "anchors": [16],
    "iterations": 10,
    "batch_size": 2,
    "lr": 0.01,
    "warmup": 1,
}


@pytest.fixture
def folder(tiny_config):
    """A scale that names detection c4 on cats, whose folder is known, for row first."""
    change(tiny_config, "detection.yaml", data={"cats": DATA}, detections={"c4": C4})
    change(tiny_config, "scales/tiny.yaml", detection="c4")
    change(tiny_config, "studies/one.yaml", evaluations={"detection": ["first"]})
    change(tiny_config, "config.yaml", detection_data={"cats": "~/cats"})
    return tiny_config


def change(folder, name, **more):
    path = folder / name
    found = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump(found | more, sort_keys=False))


def asked(folder):
    return {row: cell.evaluations for row, cell in load(folder).of("one").items()}


def test_a_detection_is_planned_where_its_data_are_known(folder):
    project = load(folder)
    assert project.detection.name == "c4"
    assert project.detection.folder == Path.home() / "cats"
    assert project.detection.chosen.data.classes == ("cat",)
    assert asked(folder) == {"first": ("detection",), "nan": ()}


@pytest.mark.parametrize(
    ("name", "more"),
    [("config.yaml", {"detection_data": {}}), ("scales/tiny.yaml", {"detection": None})],
)
def test_without_data_or_a_name_nothing_is_planned(folder, name, more):
    change(folder, name, **more)
    assert load(folder).detection is None
    assert asked(folder) == {"first": (), "nan": ()}


def test_without_both_the_file_is_not_even_read(folder):
    change(folder, "config.yaml", detection_data={})
    change(folder, "scales/tiny.yaml", detection=None)
    (folder / "detection.yaml").unlink()
    assert load(folder).detection is None


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("config.yaml", {"detection_data": {"dogs": "d"}}, "names 'dogs'"),
        (
            "config.yaml",
            {"detection_data": {"cats": "~nobody-here/d"}},
            "detection_data: ~nobody-here/d: nobody of that name",
        ),
        ("scales/tiny.yaml", {"detection": "c5"}, "detection 'c5' is not in"),
        ("detection.yaml", {"detections": {"c4": C4 | {"data": "dogs"}}}, "data 'dogs' is none"),
        ("detection.yaml", {"detections": {"c4": C4 | {"long_side": 32}}}, "long_side is shorter"),
        ("detection.yaml", {"detections": {"c4": C4 | {"speed": 1}}}, "speed"),
        ("detection.yaml", {"data": {"cats": DATA | {"classes": ["a", "a"]}}}, "'a' stands twice"),
        (
            "detection.yaml",
            {"detections": {"c4": C4 | {"head": "fpn", "anchors": [8, 16, 32, 64, 128]}}},
            "row first: no fpn detector on resnet8, only on resnet18, resnet50",
        ),
    ],
)
def test_one_line_names_the_place(folder, name, more, message):
    change(folder, name, **more)
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_five_anchors_for_five_maps():
    with pytest.raises(ValueError, match="fpn has 5 maps"):
        Detection(**C4 | {"head": "fpn"})


def test_every_shipped_detection_can_be_planned_and_none_is_by_default():
    found = yaml.safe_load((CONFIG / "detection.yaml").read_text())
    assert load(CONFIG).detection is None
    for scale in ("demo", "cpu", "paper"):
        places = dict.fromkeys(found["data"], "somewhere")
        project = load(CONFIG, scale=scale, detection_data=places)
        assert project.detection.chosen.data.title
        rows = [cell for cell in project.cells if "detection" in cell.evaluations]
        assert {cell.row for cell in rows} >= {"untrained", "byol"}
