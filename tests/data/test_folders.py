"""Image folders: what is found and refused, and that packing keeps every pixel."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_folders import SIZES, entry, write
from PIL import Image
from safetensors.numpy import load_file

from peregrine.config.models import DatasetSpec, SourceSpec
from peregrine.data import acquire, folders
from peregrine.data.prepare import load, prepare
from peregrine.data.sources import SOURCES
from peregrine.errors import UserError
from peregrine.files import read_json

CLASSES = SOURCES["imagenette"].classes


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(SOURCES, "imagenette", entry())


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(raw folder, path of the prepared file); short sides above 16 px are reduced."""
    root = tmp_path_factory.mktemp("folders")
    raw = write(root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "imagenette", entry())
        return raw, prepare("imagenette", root / "data", SourceSpec(folder=str(raw)), threads=3)


def by_pillow(path):
    """[h, w, 3] of a file, with the short side at 16 px, where it was larger."""
    with Image.open(path) as image:
        w, h = image.size
        if min(w, h) > 16:
            image = image.resize(
                (16, h * 16 // w) if w < h else (w * 16 // h, 16), Image.Resampling.BICUBIC
            )
        return np.asarray(image)


def test_every_image_is_stored_as_pillow_decodes_it(packed):
    raw, path = packed
    data = load(path)
    wanted, labels = [], []
    for label, name in enumerate(CLASSES):
        for file in sorted((raw / "train" / name).iterdir()):
            wanted.append(by_pillow(file))
            labels.append(label)
    images = data.images["train"]
    assert data.labels["train"].tolist() == labels and len(images) == 50
    for pixels, h, w, image in zip(images.images(), images.heights, images.widths, wanted):
        np.testing.assert_array_equal(pixels.reshape(h, 3, w).transpose(0, 2, 1), image)
    assert {(h, w) for h, w in zip(images.heights, images.widths)} == {
        (16, 24), (24, 16), (16, 16), (37, 16), (9, 50)
    }  # fmt: skip
    everything = np.concatenate([image.reshape(-1, 3) for image in wanted]) / 255
    assert data.mean == pytest.approx(everything.mean(axis=0), abs=1e-6)
    assert data.sd == pytest.approx(everything.std(axis=0), abs=1e-6)
    assert data.unverified == () and len(SIZES) == 5


def test_the_file_is_plain_safetensors_and_the_same_each_time(packed, tmp_path, registered):
    raw, path = packed
    arrays = load_file(path)
    starts = arrays["test_starts"]
    assert starts[0] == 0 and (np.diff(starts) > 0).all() and len(starts) == 20
    assert len(arrays["test_pixels"]) % 8 == 0
    again = prepare("imagenette", tmp_path, SourceSpec(folder=str(raw)), threads=1)
    assert again.read_bytes() == path.read_bytes()
    assert again.with_suffix(".json").read_bytes() == path.with_suffix(".json").read_bytes()
    record = read_json(again.with_suffix(".json"))
    assert (record["shape"], record["short_side"]) == ([3, "h", "w"], 16)


def test_a_part_is_the_part_of_its_images(packed):
    whole, part = load(packed[1]), load(packed[1], DatasetSpec(name="x", train_per_class=2))
    images = part.images["train"]
    assert np.bincount(part.labels["train"]).tolist() == [2] * 10
    known = {pixels.tobytes() for pixels in whole.images["train"].images()}
    assert {pixels.tobytes() for pixels in images.images()} < known and len(images) == 20
    assert part.sums["train"] != whole.sums["train"] and part.sums["test"] == whole.sums["test"]


@pytest.mark.parametrize("tensor", ["pixels", "starts", "heights", "labels"])
def test_a_changed_byte_is_noticed(packed, tmp_path, tensor):
    data = bytearray(packed[1].read_bytes())
    piece = load_file(packed[1])[f"train_{tensor}"].tobytes()
    data[bytes(data).index(piece)] ^= 1
    (tmp_path / "imagenette.safetensors").write_bytes(data)
    (tmp_path / "imagenette.json").write_bytes(packed[1].with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match="imagenette.safetensors.* run prepare again"):
        load(tmp_path / "imagenette.safetensors")


def refused(root, words, **spec):
    with pytest.raises(UserError, match=words) as error:
        prepare("imagenette", root / "data", SourceSpec(folder=str(root / "raw"), **spec))
    assert "\n" not in str(error.value)
    assert not list((root / "data").glob("*"))
    assert not list((root / "data").glob(".tmp*"))


def test_folders_that_are_wrong_or_missing_are_named(tmp_path, registered):
    (tmp_path / "raw").mkdir()
    refused(tmp_path, r"raw has no folder train/ .* sources\.imagenette\.folder")
    raw = write(tmp_path / "raw")
    gone = raw / "val" / CLASSES[3]
    gone.rename(tmp_path / "aside")
    refused(tmp_path, f"val lacks 1 of the 10 classes of imagenette, among them {CLASSES[3]}")
    (tmp_path / "aside").rename(gone)
    (raw / "train" / "dogs").mkdir()
    refused(tmp_path, "train/dogs is no class of imagenette, nor of ImageNet")
    (raw / "train" / "dogs").rmdir()
    (raw / "train" / "n01558993").mkdir()  # a class of ImageNet that is none of these ten
    (raw / "train" / ".cache").mkdir()
    for file in (raw / "val" / CLASSES[0]).iterdir():
        file.unlink()
    refused(tmp_path, f"{CLASSES[0]} has no image")


def test_missing_images_are_accepted_only_where_that_is_said(tmp_path, registered):
    raw = write(tmp_path / "raw")
    next((raw / "val" / CLASSES[0]).iterdir()).unlink()
    refused(tmp_path, "19 test images instead of 20; .*sources.imagenette.accept_unverified")
    spec = SourceSpec(folder=str(raw), accept_unverified=True)
    data = load(prepare("imagenette", tmp_path / "data", spec))
    assert data.unverified == ("19 test images instead of 20",)
    with pytest.raises(UserError, match="not the official one: 19 test images"):
        list(acquire.check("imagenette", entry(), SourceSpec(), raw, tmp_path / "data"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "no image"])
def test_an_image_that_does_not_decode_is_named(tmp_path, registered, damage):
    raw = write(tmp_path / "raw")
    [file, *_] = sorted((raw / "train" / CLASSES[5]).iterdir())
    content = file.read_bytes()
    file.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b""}.get(damage, b"x" * 9)
    )
    refused(tmp_path, f"{file.name} is no whole image .*; replace it", accept_unverified=True)


def test_check_says_what_is_there_and_writes_nothing(tmp_path):
    raw = write(tmp_path / "raw")
    lines = list(acquire.check("imagenette", entry(), SourceSpec(folder=str(raw)), raw, tmp_path))
    assert "  train: 50 images of 10 classes" in lines and "  test: 20 images" in lines[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_class_lists_are_the_known_ones():
    assert len(folders.IMAGENET) == 1000 and len(folders.IMAGENET100) == 100
    for names in (folders.IMAGENET, folders.IMAGENET100, folders.IMAGENETTE):
        assert list(names) == sorted(set(names))
    assert set(folders.IMAGENET100) | set(folders.IMAGENETTE) <= set(folders.IMAGENET)
    # First and last of ILSVRC-2012 (tench, toilet tissue), and where CMC's own order begins.
    assert (folders.IMAGENET[0], folders.IMAGENET[-1]) == ("n01440764", "n15075141")
    assert {"n02869837", "n01749939", "n02488291"} <= set(folders.IMAGENET100)


def test_cmyk_and_grey_files_become_rgb(tmp_path):
    for mode in ("CMYK", "L", "P"):
        path = tmp_path / f"{mode}.{'png' if mode == 'P' else 'jpg'}"
        Image.new("RGB", (30, 20), (10, 200, 90)).convert(mode).save(path)
        image, counts = folders.Folders({}, 10).decode(path)
        assert image.shape == (10, 3, 15) and counts.sum(axis=1).tolist() == [150] * 3


REAL = os.environ.get("PEREGRINE_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="PEREGRINE_TEST_DATA names no folder")
def test_the_real_images_are_read(tmp_path):
    places = [Path(REAL) / name for name in ("imagenette", "imagenette112")]
    place = next(filter(Path.is_dir, places), None)
    if place is None:
        pytest.skip(f"{REAL} has no imagenette")
    spec = SourceSpec(folder=str(place), accept_unverified=True)
    data = load(prepare("imagenette", tmp_path, spec))
    for split, part in folders.PARTS.items():
        counts = [len(list((place / part / name).iterdir())) for name in CLASSES]
        assert np.bincount(data.labels[split]).tolist() == counts
    # Photographs: ImageNet's usual mean and sd, to what ten classes may differ from it.
    assert data.mean == pytest.approx([0.485, 0.456, 0.406], abs=0.05)
    assert data.sd == pytest.approx([0.229, 0.224, 0.225], abs=0.08)
