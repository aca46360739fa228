"""Average precision of detected boxes, by the rules of COCO and of PASCAL VOC 2007. Numpy only.

Both give each class the mean, over levels of recall, of the best precision at that recall or above.
COCO takes 101 levels and a mean over IoU thresholds .50, .55, ..., .95; of an image's detections of
a class the best 100 count, and each takes the free object that it overlaps most (COCOeval of
pycocotools). VOC 2007 takes 11 levels at IoU .5, and a detection stands for the object that it
overlaps most, free or not (VOCevaldet.m of its development kit). Objects marked as difficult count
neither way in both: VOC's rule, which is COCO's for objects to be ignored.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_LEVELS = np.linspace(0, 1, 101)
VOC_LEVELS = np.arange(11) / 10
MOST = 100
"""Detections of a class that count in an image, by COCO's rules."""


class Truth(NamedTuple):
    """The objects of an image: boxes [m, 4] as x1, y1, x2, y2, labels [m], difficult [m]."""

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class Found(NamedTuple):
    """The detections of an image: boxes [m, 4], labels [m], scores [m]."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area of the intersection over that of the union, [n, m], of boxes [n, 4] and [m, 4]."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(min=0).prod(axis=-1)
    either = [(each[..., 2:] - each[..., :2]).prod(axis=-1) for each in (a, b)]
    return both / (either[0] + either[1] - both)


def average_precision(
    truths: Sequence[Truth], found: Sequence[Found], classes: Sequence[str]
) -> dict[str, float | None | Mapping[str, float | None]]:
    """AP, AP50, AP75 and AP07 as shares: means over the classes that have objects, else None.

    Label k + 1 is class k. `per_class` holds each class's AP50, and None where it has no object.

    Raises:
        ValueError: another number of images than of detections.
    """
    if len(truths) != len(found):
        raise ValueError(f"{len(truths)} images, but detections of {len(found)}")
    coco = [_coco(truths, found, k + 1) for k in range(len(classes))]  # [thresholds] or None
    voc = [_voc(truths, found, k + 1) for k in range(len(classes))]
    there = [each for each in coco if each is not None]

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if len(values) else None

    return {
        "AP": mean([each.mean() for each in there]),
        "AP50": mean([each[0] for each in there]),
        "AP75": mean([each[5] for each in there]),
        "AP07": mean([each for each in voc if each is not None]),
        "per_class": {
            name: None if each is None else float(each[0]) for name, each in zip(classes, coco)
        },
    }


def _of_class(truth: Truth, found: Found, label: int) -> tuple[np.ndarray, ...]:
    """(boxes of objects, whether difficult, boxes found, their scores), best detections first."""
    own, seen = truth.labels == label, found.labels == label
    scores = found.scores[seen]
    order = np.argsort(-scores, kind="stable")
    return truth.boxes[own], truth.difficult[own], found.boxes[seen][order], scores[order]


def _coco(truths: Sequence[Truth], found: Sequence[Found], label: int) -> np.ndarray | None:
    """AP of a class at each threshold; None where no object counts."""
    scores, hits, counted, objects = [], [], [], 0
    for each in zip(truths, found, strict=True):
        boxes, difficult, seen, score = _of_class(*each, label)
        objects += int((~difficult).sum())
        order = np.argsort(difficult, kind="stable")  # those that count are offered first
        overlaps = iou(seen[:MOST], boxes[order])
        taken = [_take(overlaps, difficult[order], limit) for limit in THRESHOLDS]
        hits.append(np.array([hit for hit, _ in taken]))
        counted.append(np.array([counts for _, counts in taken]))
        scores.append(score[:MOST])
    if not objects:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits, counted = (np.concatenate(each, axis=1)[:, order] for each in (hits, counted))
    return np.array(
        [
            _mean_precision(hit[counts], objects, COCO_LEVELS)
            for hit, counts in zip(hits, counted, strict=True)
        ]
    )


def _take(overlaps: np.ndarray, ignored: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """(hit, counts) of each detection: whether it takes an object, and whether it counts at all.

    Objects to ignore stand last and are taken only where no other one is left; of equal overlaps
    COCOeval takes the last.
    """
    hit = np.zeros(len(overlaps), bool)
    counts = np.ones(len(overlaps), bool)
    free = np.ones(overlaps.shape[1], bool)
    for i, row in enumerate(overlaps):
        for group in (~ignored, ignored):
            open_ = np.flatnonzero(free & group & (row >= min(limit, 1 - 1e-10)))
            if len(open_):
                best = open_[len(open_) - 1 - np.argmax(row[open_][::-1])]
                free[best] = False
                hit[i], counts[i] = not ignored[best], not ignored[best]
                break
    return hit, counts


def _voc(truths: Sequence[Truth], found: Sequence[Found], label: int) -> float | None:
    """AP of a class by the rules of 2007; None where no object counts."""
    scores, hits, counted, objects = [], [], [], 0
    for each in zip(truths, found, strict=True):
        boxes, difficult, seen, score = _of_class(*each, label)
        objects += int((~difficult).sum())
        overlaps = iou(seen, boxes)
        taken = np.zeros(len(boxes), bool)
        for row, value in zip(overlaps, score, strict=True):
            best = int(np.argmax(row)) if len(row) else -1
            near = best >= 0 and row[best] >= 0.5
            scores.append(value)
            counted.append(not (near and difficult[best]))
            hits.append(near and not difficult[best] and not taken[best])
            if near:
                taken[best] = True
    if not objects:
        return None
    order = np.argsort(-np.array(scores), kind="stable")
    hit, counts = np.array(hits, bool)[order], np.array(counted, bool)[order]
    return _mean_precision(hit[counts], objects, VOC_LEVELS)


def _mean_precision(hit: np.ndarray, objects: int, levels: np.ndarray) -> float:
    """Mean over levels of recall of the best precision at that recall or above.

    hit [m]: of detections that count, best first, whether each takes an object.
    """
    if not len(hit):
        return 0.0
    right = np.cumsum(hit)
    precision = right / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(right / objects, levels)
    return float(np.append(best, 0.0)[first].mean())
