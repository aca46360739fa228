"""Raw data set -> one verified uint8 file that stays on the device while a run trains."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peregrine.data.sources import Split, source
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors, write_json, write_tensors

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Prepared:
    """A data set as every later step sees it.

    Attributes:
        images: by split, uint8 [n, c, h, w].
        labels: by split, int64 [n].
        mean, sd: per channel of the training images in [0, 1].
        sums: by split, SHA-256 of images and labels.
        classes: names in label order.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    sums: dict[str, str]
    classes: tuple[str, ...]


def prepare(name: str, folder: Path) -> Path:
    """Write {folder}/{name}.safetensors and {name}.json; returns the first."""
    origin = source(name)
    splits = origin.load()
    for split in SPLITS:
        _check(name, split, splits[split], len(origin.classes))
    train = splits["train"].images.astype(np.float64) / 255
    record = {
        "name": name,
        "title": origin.title,
        "licence": origin.licence,
        "verified": origin.verified,
        "classes": list(origin.classes),
        "counts": {split: len(splits[split].labels) for split in SPLITS},
        "shape": list(splits["train"].images.shape[1:]),
        "mean": [round(float(value), 6) for value in train.mean(axis=(0, 2, 3))],
        "sd": [round(float(value), 6) for value in train.std(axis=(0, 2, 3))],
        "sums": {split: split_sum(splits[split]) for split in SPLITS},
    }
    arrays = {}
    for split in SPLITS:
        arrays[f"{split}_images"] = splits[split].images
        arrays[f"{split}_labels"] = splits[split].labels
    path = folder / f"{name}.safetensors"
    write_tensors(path, arrays, name=name)
    write_json(path.with_suffix(".json"), record)
    return path


def load(path: Path) -> Prepared:
    """Read a prepared data set and verify every split against its recorded sum."""
    record = read_json(path.with_suffix(".json"))
    names = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    arrays, _ = read_tensors(path, names, verify=False)
    splits = {s: Split(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in SPLITS}
    for name, split in splits.items():
        _check(path.stem, name, split, len(record["classes"]))
        if split_sum(split) != record["sums"][name]:
            raise UserError(f"{path}: {name} fails its checksum; delete it and run prepare again")
    return Prepared(
        images={name: split.images for name, split in splits.items()},
        labels={name: split.labels for name, split in splits.items()},
        mean=tuple(record["mean"]),
        sd=tuple(record["sd"]),
        sums=record["sums"],
        classes=tuple(record["classes"]),
    )


def split_sum(split: Split) -> str:
    """SHA-256 of a split's shape, pixels and labels."""
    digest = hashlib.sha256(f"{split.images.shape}".encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    return digest.hexdigest()


def _check(name: str, split: str, data: Split, classes: int) -> None:
    images, labels = data.images, data.labels
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise UserError(f"data set {name}, {split}: images must be uint8 [n, c, h, w], n labels")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"data set {name}, {split}: labels must lie in 0..{classes - 1}")
