"""The layout of PASCAL VOC: what is read, what is counted, and what is refused in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from boxes import write_image, write_list

from peregrine.config.detection import BoxData
from peregrine.errors import UserError
from peregrine.evaluation.voc import read

ROOT = Path(__file__).parents[2]


def data(**more):
    given = {"title": "t", "licence": "l", "classes": ["cat", "dog"], "train": ["a"], "test": ["b"]}
    return BoxData(**given | more)


@pytest.fixture
def tree(tmp_path):
    write_image(tmp_path, "one", [("cat", 0, 1, 1, 10, 20), ("dog", 1, 5, 6, 48, 32)])
    write_image(tmp_path, "none", [])
    write_image(tmp_path, "three", [("dog", 0, 2, 2, 4, 4)])
    write_list(tmp_path, "a", ["one", "none"])
    write_list(tmp_path, "b", ["three"])
    return tmp_path


def test_boxes_are_edges_from_zero(tree):
    train, test = read(tree, data())
    assert [each.name for each in train.examples] == ["one", "none"]
    one, none = train.examples
    # Pixels 1 to 10 of a row are the first ten: from edge 0 to edge 10.
    assert one.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 48, 32]]
    assert (one.labels.tolist(), one.difficult.tolist()) == ([1, 2], [False, True])
    assert none.boxes.shape == (0, 4) and none.labels.shape == (0,)
    pixels = one.pixels()
    assert pixels.shape == (32, 48, 3) and one.pixels("L").shape == (32, 48)
    assert pixels[:20, :10].min() > 150 > 90 > pixels[:3, 20:].max()
    counts = {"images": 2, "images_without_objects": 1, "objects": 2, "difficult": 1}
    assert {key: train.counts[key] for key in counts} == counts
    assert test.counts["objects"] == 1


def test_what_is_left_out_is_counted(tree):
    objects = [
        ("cat", 0, 7, 7, 7, 9),  # no width
        ("cat", 0, 9, 9, 5, 12),  # turned round
        ("cat", 0, 60, 5, 70, 9),  # outside of the image
        ("fox", 0, 1, 1, 9, 9),
        ("fox", 0, 2, 2, 2, 2),
        ("dog", 0, 40, 20, 60, 40),  # over the edge
    ]
    write_image(tree, "three", objects)
    _, test = read(tree, data())
    counts = test.counts
    assert (counts["zero_area"], counts["unknown_class"], counts["cut_at_the_edge"]) == (3, 2, 1)
    assert test.unknown == {"fox": 2}
    assert test.examples[0].boxes.tolist() == [[39, 19, 48, 32]]


def test_dropped_images_and_several_years(tree, tmp_path):
    for year in ("VOC2007", "VOC2012"):
        write_image(tmp_path / year, "one", [("cat", 0, 1, 1, 9, 9)])
        write_image(tmp_path / year, "two", [])
        write_list(tmp_path / year, "all", ["one", "two"])
    both = data(train=["VOC2007/all", "VOC2012/all"], drop=["VOC2012/two"])
    train, _ = read(tmp_path, both)
    assert [each.name for each in train.examples] == ["VOC2007/one", "VOC2007/two", "VOC2012/one"]
    assert train.counts["dropped_images"] == 1
    assert train.examples[2].image.parts[-3:] == ("VOC2012", "JPEGImages", "one.jpg")


def test_the_sum_is_of_every_file_that_counts(tree):
    sums = [part.sum for part in read(tree, data())]
    assert [part.sum for part in read(tree, data())] == sums
    write_image(tree, "three", [("dog", 0, 2, 2, 4, 4)], size=(48, 33))
    assert read(tree, data())[0].sum == sums[0]
    assert read(tree, data())[1].sum != sums[1]


BOMB = """<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: write_list(t, "b", ["one"]), "image one is in train and in test"),
        (lambda t: write_list(t, "b", ["three", "three"]), "image three is listed twice"),
        (lambda t: write_list(t, "b", ["../one"]), "'../one' is no name of an image"),
        (lambda t: write_list(t, "b", ["th\0ree"]), r"'th\x00ree' is no name of an image"),
        (lambda t: write_list(t, "b", [""]), "b.txt lists no image"),
        (lambda t: (t / "ImageSets/Main/b.txt").unlink(), "b.txt does not exist; detection_data"),
        (lambda t: (t / "Annotations/three.xml").write_text("<a>"), "three.xml is no annotation"),
        (lambda t: (t / "Annotations/three.xml").write_text(BOMB), "three.xml is no annotation"),
        (
            lambda t: (t / "Annotations/three.xml").write_text(
                '<?xml version="1.0" encoding="x"?>'
            ),
            "three.xml is no annotation (unknown encoding: x)",
        ),
        (lambda t: (t / "JPEGImages/three.jpg").unlink(), "three.jpg cannot be read"),
        (lambda t: (t / "JPEGImages/three.jpg").write_bytes(b"GIF"), "three.jpg cannot be read"),
        (lambda t: write_image(t, "three", [], size=(99, 6)), "is 99 x 6 px, too narrow for a det"),
        (
            lambda t: write_image(t, "three", [], text="<a><object/></a>"),
            "three.xml: an object lacks one of xmin, ymin, xmax, ymax",
        ),
    ],
)
def test_one_line_names_the_file(tree, spoil, message):
    spoil(tree)
    with pytest.raises(UserError) as error:
        read(tree, data())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mark_at_the_start_of_a_list_is_no_part_of_a_name(tree):
    path = tree / "ImageSets" / "Main" / "b.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(tree, data())[1].examples[0].name == "three"


def test_an_image_of_more_pixels_than_pillow_takes_is_named(tree, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 48 * 32 // 2 - 1)
    with pytest.raises(UserError, match="one.jpg is no image that can be used"):
        read(tree, data())


def test_names_of_classes_must_be_those_of_the_annotations(tree):
    with pytest.raises(UserError, match="no object is of class 'Dog', but some are of 'dog'; corr"):
        read(tree, data(classes=["cat", "Dog"]))
    assert read(tree, data(classes=["cat", "dog", "fox"]))[0].counts["objects"] == 2
    write_list(tree, "b", ["none"])
    write_list(tree, "a", ["one"])
    with pytest.raises(UserError, match="no image of test has an object"):
        read(tree, data())


def test_a_name_to_drop_must_be_there(tree):
    with pytest.raises(UserError, match="drop names image 'four'"):
        read(tree, data(drop=["four"]))
    with pytest.raises(UserError, match="drop leaves no image"):
        read(tree, data(drop=["three"]))


def test_an_image_cut_short_is_named_when_it_is_decoded(tree):
    path = tree / "JPEGImages" / "three.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    example = read(tree, data())[1].examples[0]
    with pytest.raises(UserError, match="three.jpg is no whole image"):
        example.pixels()


@pytest.mark.skipif(
    not os.environ.get("PEREGRINE_TEST_DETECTION"),
    reason="PEREGRINE_TEST_DETECTION names no folder with BCCD",
)
def test_the_real_blood_cells():
    """Counts as `grep -c` finds them in the annotations; 8 of 72 test images are dropped."""
    found = yaml.safe_load((ROOT / "config/detection.yaml").read_text())["data"]["bccd"]
    train, test = read(Path(os.environ["PEREGRINE_TEST_DETECTION"]), BoxData(**found))
    assert (train.counts["images"], test.counts["images"]) == (292, 64)
    assert (train.counts["zero_area"], test.counts["dropped_images"]) == (2, 8)
    kinds = np.bincount(np.concatenate([each.labels for each in train.examples]))
    assert kinds.sum() == train.counts["objects"] and kinds[0] == 0
    assert kinds[1] > kinds[2] and train.counts["unknown_class"] == 0
