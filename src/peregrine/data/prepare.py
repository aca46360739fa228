"""Raw data set -> one verified uint8 file that stays on the device while a run trains."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.config.models import DatasetSpec, SourceSpec
from peregrine.data.acquire import acquire, images_of
from peregrine.data.packed import Packed, packed_sum, read_packed, write_packed
from peregrine.data.sources import Split, source
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors, write_json, write_tensors

SPLITS = ("train", "test")
CHUNK = 1000
"""Images counted at a time."""
DEFAULT = SourceSpec()


@dataclass(frozen=True)
class Prepared:
    """A data set as every later step sees it.

    Attributes:
        images: by split, uint8 [n, c, h, w], or packed where their sizes differ.
        labels: by split, int64 [n].
        mean, sd: per channel of all training images in [0, 1], also where a subset is used.
        sums: by split, SHA-256 of the images and labels that are here.
        classes: names in label order.
        unverified: raw files that were used although their digests are not the official ones.
    """

    images: dict[str, np.ndarray | Packed]
    labels: dict[str, np.ndarray]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    sums: dict[str, str]
    classes: tuple[str, ...]
    unverified: tuple[str, ...] = ()


def prepare(
    name: str,
    folder: Path,
    spec: SourceSpec = DEFAULT,
    store: Path | None = None,
    threads: int | None = None,
) -> Path:
    """Write {folder}/{name}.safetensors and {name}.json, always of the whole data set.

    Args:
        name: of the data set.
        folder: of prepared data.
        spec: where its raw files are and what is allowed.
        store: the common folder of raw files; {folder}/../raw by default.
        threads: that decode image folders; as many as there are cores by default.

    Returns:
        The path of the first.

    Raises:
        UserError: no such data set, or its files cannot be had or used.
    """
    origin = source(name)
    store = store or folder.parent / "raw"
    path = folder / f"{name}.safetensors"
    if origin.folders:
        files, unverified = images_of(name, origin, spec, store)
        decode, threads = origin.folders.decode, threads or os.cpu_count() or 1
        counts = write_packed(path, files, decode, threads, name)
        splits = read_packed(path, SPLITS)
        digests, shape = {}, [len(counts["train"]), "h", "w"]
        more: dict[str, Any] = {"packed": True, "short_side": origin.folders.short_side}
        seen = counts["train"]
    else:
        acquired = acquire(name, origin, spec, store)
        splits, digests, unverified = acquired.splits, acquired.digests, acquired.unverified
        for split in SPLITS:
            _check(name, split, splits[split], len(origin.classes))
        arrays = {}
        for split in SPLITS:
            arrays[f"{split}_images"] = splits[split].images
            arrays[f"{split}_labels"] = splits[split].labels
        write_tensors(path, arrays, name=name)
        shape, more = list(splits["train"].images.shape[1:]), {}
        seen = _counts(splits["train"].images)
    mean, sd = _mean_and_sd(seen)
    verified = origin.verified
    if unverified:
        verified += f", except {', '.join(unverified)}: accepted as not the official file"
    record = {
        "name": name,
        "title": origin.title,
        "licence": origin.licence,
        "verified": verified,
        "unverified": list(unverified),
        "files": digests,
        "classes": list(origin.classes),
        "counts": {split: len(splits[split].labels) for split in SPLITS},
        "shape": shape,
        "mean": [round(value, 6) for value in mean],
        "sd": [round(value, 6) for value in sd],
        "sums": {split: split_sum(splits[split]) for split in SPLITS},
        **more,
    }
    write_json(path.with_suffix(".json"), record)
    return path


def load(path: Path, spec: DatasetSpec | None = None) -> Prepared:
    """Read a prepared data set and verify every split against its recorded sum.

    Args:
        path: the .safetensors file, whose record stands beside it.
        spec: which part of it to use; the whole by default.

    Raises:
        UserError: missing, damaged, or too few images of a class for `spec`.
    """
    record = read_json(path.with_suffix(".json"))
    if record.get("packed"):
        splits = read_packed(path, SPLITS)
    else:
        names = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
        arrays, _ = read_tensors(path, names, verify=False)
        splits = {s: Split(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in SPLITS}
    for name, split in splits.items():
        _check(path.stem, name, split, len(record["classes"]))
        if split_sum(split) != record["sums"][name]:
            raise UserError(f"{path}: {name} fails its checksum; delete it and run prepare again")
    sums = record["sums"]
    if spec and (spec.train_per_class or spec.validation_per_class or spec.imbalance > 1):
        splits = _part(splits, spec, record["classes"])
        sums = {name: split_sum(split) for name, split in splits.items()}
    return Prepared(
        images={name: split.images for name, split in splits.items()},
        labels={name: split.labels for name, split in splits.items()},
        mean=tuple(record["mean"]),
        sd=tuple(record["sd"]),
        sums=sums,
        classes=tuple(record["classes"]),
        unverified=tuple(record.get("unverified", ())),
    )


def _part(splits: dict[str, Split], spec: DatasetSpec, classes: Sequence[str]) -> dict[str, Split]:
    """The subset for training, and the held-out images in place of the test set.

    Every training image has its place in one fixed order. Of each class, the first images are held
    out and the last ones trained on, so neither choice depends on how many the other takes. With
    an imbalance the first class has train_per_class images, or as many as every class has.
    """
    from peregrine.streams import stream_seed  # torch, which only training and extraction have

    train, held = splits["train"], spec.validation_per_class or 0
    order = [stream_seed(0, "data/part", step=index) for index in range(len(train.labels))]
    ranked = np.argsort(order)
    sizes: list[int] = [0] * len(classes)  # 0: all that are not held out
    if spec.train_per_class or spec.imbalance > 1:
        fewest = int(np.bincount(train.labels, minlength=len(classes)).min())
        largest = spec.train_per_class or max(fewest - held, 0)
        sizes = spec.class_sizes(largest, len(classes))
        if largest and not sizes[-1]:
            raise UserError(
                f"data set {spec.name}: imbalance {spec.imbalance:g} leaves class '{classes[-1]}'"
                f" none of {largest:,} training images; choose a smaller one"
            )
    used, kept = [], []
    for label, (name, size) in enumerate(zip(classes, sizes, strict=True)):
        of_class = ranked[train.labels[ranked] == label]
        wanted = held + max(size, 1)
        if len(of_class) < wanted:
            raise UserError(
                f"data set {spec.name}: class '{name}' has {len(of_class):,} training images, and"
                f" train_per_class and validation_per_class ask for {wanted:,}; ask for fewer"
            )
        kept.append(of_class[:held])
        used.append(of_class[-size:] if size else of_class[held:])
    rows = np.sort(np.concatenate(used))
    out = {**splits, "train": Split(train.images[rows], train.labels[rows])}
    if held:
        rows = np.sort(np.concatenate(kept))
        out["test"] = Split(train.images[rows], train.labels[rows])
    return out


def split_sum(split: Split) -> str:
    """SHA-256 of a split's shape, pixels and labels."""
    if isinstance(split.images, Packed):
        return packed_sum(split)
    digest = hashlib.sha256(f"{split.images.shape}".encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    return digest.hexdigest()


def _counts(images: np.ndarray) -> np.ndarray:
    """How often each of the 256 values occurs in each channel, [c, 256]."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for channel, count in enumerate(counts):
            pixels = images[start : start + CHUNK, channel].ravel()
            count += np.bincount(pixels, minlength=256)
    return counts


def _mean_and_sd(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Per channel on the [0, 1] scale."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    sd = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), sd.tolist()


def _check(name: str, split: str, data: Split, classes: int) -> None:
    images, labels = data.images, data.labels
    packed = isinstance(images, Packed)  # whose reader has looked at their sizes
    if not packed and (images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels)):
        raise UserError(f"data set {name}, {split}: images must be uint8 [n, c, h, w], n labels")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"data set {name}, {split}: labels must lie in 0..{classes - 1}")
