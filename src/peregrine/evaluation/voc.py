"""Images with boxes in the layout of PASCAL VOC: JPEGImages, Annotations, ImageSets/Main. No torch.

Nothing is passed over in silence: what is left out of the annotations is counted.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.ElementTree import fromstring
from PIL import Image

from peregrine.config.detection import BoxData
from peregrine.errors import UserError, refusal

NARROWEST = 16
"""Longest side over the shortest: resized to the smallest long_side, a pixel is still left."""

COUNTED = (
    *("images", "images_without_objects", "dropped_images"),
    *("objects", "difficult", "zero_area", "unknown_class", "cut_at_the_edge"),
)


@dataclass(frozen=True)
class Example:
    """An image and its objects.

    Attributes:
        name: as the lists have it, with the year where the list has one.
        boxes: float32 [m, 4], x1, y1, x2, y2 in px from the upper left corner of the image.
        labels: int64 [m], 1 for the first class; 0 is the detector's background.
        difficult: bool [m], objects that count neither way in the test.
    """

    name: str
    image: Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    def pixels(self, mode: str = "RGB") -> np.ndarray:
        """uint8 [h, w, 3], or [h, w] in mode L.

        Raises:
            UserError: no image that Pillow decodes whole.
        """
        try:
            with Image.open(self.image, formats=("JPEG", "PNG")) as opened:
                return np.asarray(opened.convert(mode))
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            raise UserError(f"{self.image} is no whole image ({error}); replace it") from None


@dataclass
class Part:
    """Training or test images, what was counted, and the sum of all their files."""

    examples: list[Example] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    unknown: Counter[str] = field(default_factory=Counter)
    sum: str = ""


def read(folder: Path, data: BoxData) -> tuple[Part, Part]:
    """(train, test) of a data set.

    Raises:
        UserError: a file is missing or unreadable, an image stands in both parts, or `drop` names
            one that is in none.
    """
    listed = {part: list(_listed(folder, getattr(data, part))) for part in ("train", "test")}
    names = {part: {name for name, _ in found} for part, found in listed.items()}
    twins = sorted(names["train"] & names["test"])
    if twins:
        raise UserError(f"{folder}: image {twins[0]} is in train and in test; drop it from one")
    lost = sorted(set(data.drop) - names["train"] - names["test"])
    if lost:
        raise UserError(f"{folder}: drop names image '{lost[0]}', which is in none of the lists")
    parts = _part(listed["train"], data), _part(listed["test"], data)
    _has_classes(folder, data, parts)
    return parts


def _has_classes(folder: Path, data: BoxData, parts: tuple[Part, Part]) -> None:
    """Refuse class names that are not the annotations': their objects would just be left out."""
    there = [{label for each in part.examples for label in each.labels.tolist()} for part in parts]
    unknown = sorted({kind for part in parts for kind in part.unknown})
    for label, kind in enumerate(data.classes, 1):
        if unknown and not any(label in labels for labels in there):
            raise UserError(
                f"{folder}: no object is of class '{kind}', but some are of"
                f" {', '.join(map(repr, unknown[:8]))}; correct classes in detection.yaml"
            )
    for name, labels in zip(("train", "test"), there, strict=True):
        if not labels:
            raise UserError(f"{folder}: no image of {name} has an object; choose other lists")


def _listed(folder: Path, lists: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name, tree that has its files) of every image of some lists; each once."""
    seen: set[str] = set()
    for each in lists:
        year, _, name = each.rpartition("/")
        tree = folder / year
        path = tree / "ImageSets" / "Main" / f"{name}.txt"
        # Some editors begin a text with a mark, which would be taken for a part of the first name.
        text = _bytes(path).decode("utf-8-sig", "replace")
        lines = [line.split() for line in text.splitlines()]
        if not any(lines):
            raise UserError(f"{path} lists no image")
        for image in (line[0] for line in lines if line):
            full = f"{year}/{image}" if year else image
            if full in seen:
                raise UserError(f"{path}: image {image} is listed twice; remove one")
            if Path(image).name != image or not image.isprintable():
                raise UserError(f"{path}: {image!r} is no name of an image")
            seen.add(full)
            yield full, tree


def _part(listed: list[tuple[str, Path]], data: BoxData) -> Part:
    out, digest = Part(), hashlib.sha256()
    for name, tree in listed:
        if name in data.drop:
            out.counts["dropped_images"] += 1
            continue
        path = tree / "Annotations" / f"{Path(name).name}.xml"
        text = _bytes(path)
        example = _example(name, tree, path, text, data, out)
        digest.update(f"{name} {len(text)}\n".encode() + text)
        digest.update(hashlib.sha256(_bytes(example.image)).digest())
        out.examples.append(example)
    if not out.examples:
        raise UserError("drop leaves no image of a list; drop fewer")
    out.counts["images"] = len(out.examples)
    out.counts["images_without_objects"] = sum(not len(each.labels) for each in out.examples)
    out.counts["objects"] = sum(len(each.labels) for each in out.examples)
    out.counts["difficult"] = sum(int(each.difficult.sum()) for each in out.examples)
    out.sum = digest.hexdigest()
    return out


def _example(name: str, tree: Path, path: Path, text: bytes, data: BoxData, out: Part) -> Example:
    """An annotation; what it has but should not is counted in `out`."""
    try:
        # No document type: entities could name other files, or grow without bound.
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:  # LookupError: no such encoding
        raise UserError(f"{path} is no annotation ({error}); replace it") from None
    image = tree / "JPEGImages" / f"{Path(name).name}.jpg"
    try:
        with Image.open(image, formats=("JPEG", "PNG")) as opened:
            width, height = opened.size  # of the header; the annotation's own may be wrong
    except OSError as error:
        raise UserError(f"{image} cannot be read: {refusal(error)}") from None
    except Exception as error:  # more pixels, or longer notes, than Pillow takes
        raise UserError(f"{image} is no image that can be used ({error}); replace it") from None
    if max(width, height) > NARROWEST * min(width, height):
        raise UserError(
            f"{image} is {width} x {height} px, too narrow for a detector; name it under drop"
        )
    boxes, labels, difficult = [], [], []
    for thing in root.iter("object"):
        kind = (thing.findtext("name") or "").strip()
        box = _box(thing, path)
        # First and last pixel, counted from 1: as edges, the box begins one pixel before.
        edges = np.clip(box - [1, 1, 0, 0], 0, [width, height, width, height])
        if kind not in data.classes:
            out.counts["unknown_class"] += 1
            out.unknown[kind] += 1
        elif (box[2:] <= box[:2]).any() or (edges[2:] <= edges[:2]).any():
            out.counts["zero_area"] += 1
        else:
            out.counts["cut_at_the_edge"] += bool((edges != box - [1, 1, 0, 0]).any())
            boxes.append(edges)
            labels.append(data.classes.index(kind) + 1)
            difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    return Example(
        name,
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def _box(thing: Element, path: Path) -> np.ndarray:
    """xmin, ymin, xmax, ymax as written."""
    try:
        found = [float(thing.findtext(f"bndbox/{key}") or "") for key in EDGES]
        if not np.isfinite(found).all():
            raise ValueError("a number that is not finite")
    except ValueError:
        raise UserError(f"{path}: an object lacks one of {', '.join(EDGES)}; mend it") from None
    return np.array(found)


EDGES = ("xmin", "ymin", "xmax", "ymax")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; detection_data in config.yaml must name the folder that has it"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {refusal(error)}") from None
