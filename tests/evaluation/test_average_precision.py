"""Average precision against cases worked out by hand, and against pycocotools."""

import numpy as np
import pytest

from peregrine.evaluation.average_precision import Found, Truth, average_precision, iou


def truth(*boxes, difficult=(), label=1):
    hard = np.isin(np.arange(len(boxes)), difficult)
    return Truth(np.array(boxes, float).reshape(-1, 4), np.full(len(boxes), label), hard)


def found(*scored, label=1):
    """(score, box) of each detection."""
    boxes = np.array([box for _, box in scored], float).reshape(-1, 4)
    return Found(boxes, np.full(len(scored), label), np.array([score for score, _ in scored]))


def scores(truths, detections, classes=("cell",)):
    return average_precision(truths, detections, classes)


def test_overlap():
    a = [[0, 0, 10, 10], [20, 20, 30, 40]]
    b = [[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 10], [20, 30, 30, 40]]
    # 25 of 100 + 100 - 25; edges that only touch; 100 of 200.
    assert iou(a, b) == pytest.approx(np.array([[1, 1 / 7, 0, 0], [0, 0, 0, 0.5]]))


def test_two_objects_three_detections():
    """Best first: a hit, a miss, a hit with IoU 31/50 = .62, so below threshold .65."""
    objects = truth([0, 0, 50, 50], [100, 100, 150, 150])
    seen = found((0.7, [100, 100, 150, 131]), (0.9, [0, 0, 50, 50]), (0.8, [300, 300, 350, 350]))
    # Precision 1 up to recall 1/2, 2/3 up to 1: of COCO's levels 51 and 50, of VOC's 6 and 5.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    got = scores([objects], [seen])
    assert got["AP50"] == pytest.approx(both, abs=1e-12)
    assert got["AP75"] == pytest.approx(one, abs=1e-12)
    assert got["AP"] == pytest.approx((3 * both + 7 * one) / 10, abs=1e-12)
    assert got["AP07"] == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-12)
    assert got["per_class"] == {"cell": got["AP50"]}


def test_a_taken_object_leaves_the_next_best_to_coco_only():
    objects = truth([0, 0, 10, 10], [0, 0, 10, 8])
    # Both overlap the first object most; the second one has IoU 8 / 9.5 with the second object.
    seen = found((0.9, [0, 0, 10, 10]), (0.8, [0, 0, 10, 9.5]))
    got = scores([objects], [seen])
    assert got["AP50"] == 1
    assert got["AP07"] == pytest.approx(6 / 11)
    # IoU .842: the second object is found at the seven thresholds up to .80.
    assert got["AP"] == pytest.approx((7 + 3 * 51 / 101) / 10)


def test_difficult_objects_count_neither_way():
    objects = truth([0, 0, 10, 10], [50, 50, 60, 60], difficult=[1])
    seen = found((0.9, [50, 50, 60, 60]), (0.8, [0, 0, 10, 10]))
    got = scores([objects], [seen])
    assert (got["AP"], got["AP07"]) == (1, 1)  # else half of the precision, or of the recall
    missed = scores([objects], [found((0.8, [0, 0, 10, 10]))])
    assert (missed["AP"], missed["AP07"]) == (1, 1)
    # A second detection of a difficult object: VOC ignores it, for COCO the object is taken.
    twice = scores([objects], [found(*[(0.9, [50, 50, 60, 60])] * 2, (0.8, [0, 0, 10, 10]))])
    assert twice["AP07"] == 1
    assert twice["AP50"] == pytest.approx(0.5)


def test_a_hundred_detections_of_an_image_count_for_coco():
    far = [(0.5, [200 + k, 200, 210 + k, 210]) for k in range(100)]
    seen = found(*far, (0.4, [0, 0, 10, 10]))
    got = scores([truth([0, 0, 10, 10])], [seen])
    assert got["AP"] == 0
    assert got["AP07"] == pytest.approx(1 / 101)


def test_classes_and_images_are_kept_apart():
    truths = [truth([0, 0, 10, 10]), truth([0, 0, 10, 10], label=2), truth()]
    seen = [found((0.9, [0, 0, 10, 10]), label=2), found((0.8, [0, 0, 10, 10]), label=2), found()]
    got = scores(truths, seen, ("a", "b", "never"))
    # b: a miss, then the hit, so precision 1/2 at every level; a: nothing found.
    assert got["per_class"] == {"a": 0, "b": 0.5, "never": None}
    assert got["AP50"] == got["AP07"] == 0.25
    assert scores([truth()], [found()])["AP"] is None
    with pytest.raises(ValueError, match="2 images, but detections of 1"):
        scores(truths[:2], seen[:1])


def jittered(seed, images=12, classes=3):
    """Objects with jittered, missed, doubled and chance detections; integers, scores with ties."""
    random = np.random.default_rng(seed)

    def anywhere(count, least, most):
        corner = random.integers(0, 80, (count, 2))
        return np.concatenate([corner, corner + random.integers(least, most, (count, 2))], axis=1)

    truths, detections = [], []
    for _ in range(images):
        m = int(random.integers(0, 7))
        boxes = anywhere(m, 8, 40).astype(float)
        labels = random.integers(1, classes + 1, m)
        difficult = random.random(m) < 0.2
        near = boxes + random.integers(-4, 5, boxes.shape)
        chance = anywhere(4, 5, 30)
        again = boxes[: m // 2] + random.integers(-2, 3, (m // 2, 4))
        seen = np.concatenate([near, again, chance])
        kinds = np.concatenate([labels, labels[: m // 2], random.integers(1, classes + 1, 4)])
        score = random.integers(1, 20, len(seen)) / 20
        kept = random.random(len(seen)) < 0.85
        truths.append(Truth(boxes, labels, difficult))
        detections.append(Found(seen[kept], kinds[kept], score[kept]))
    return truths, detections


# COCOeval of pycocotools 2.0.11 on the same boxes, difficult ones with an area outside of its
# range, which is how it knows objects to be ignored that are no crowds. Over 300 such cases the
# largest difference was 2.3e-16.
COCOEVAL = [
    [0.17943130579814023, 0.3665331173315843, 0.08945919385914153],
    [0.15233714851299493, 0.3287059663795735, 0.11353849670681351],
    [0.1546484326303779, 0.3457390381895333, 0.10559222588925558],
]


@pytest.mark.parametrize("seed", range(3))
def test_as_pycocotools(seed):
    got = average_precision(*jittered(seed), ("a", "b", "c"))
    assert [got[key] for key in ("AP", "AP50", "AP75")] == pytest.approx(COCOEVAL[seed], abs=1e-12)
