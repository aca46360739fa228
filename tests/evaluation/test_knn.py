"""kNN against votes counted by hand and against a plain loop."""

import json
import math

import numpy as np
import pytest

from peregrine.evaluation import knn, streamed
from peregrine.evaluation.knn import knn_classify

# Cosines with (1, 0): 1, 0.5, 0.5, -1. Lengths differ to tell cosine from Euclidean distance.
TRAIN = np.array([[9.0, 0.0], [0.5, math.sqrt(0.75)], [1.0, -math.sqrt(3.0)], [-0.1, 0.0]])
LABELS = np.array([4, 7, 7, 4])


def predicts(label, train=TRAIN, labels=LABELS, query=(1.0, 0.0), **protocol):
    protocol = {"k": 3, "temperature": 1.0} | protocol
    return knn_classify(train, labels, [query], [label], **protocol)["accuracy"] == 1.0


def test_votes_by_hand():
    # T = 1: class 4 has e^1 = 2.72, class 7 has 2 e^0.5 = 3.30.
    assert predicts(7) and not predicts(4)
    # T = 0.5: e^2 = 7.39 against 2 e = 5.44. The change is at T = 1 / (2 ln 2) = 0.7213.
    assert predicts(4, temperature=0.5)
    assert predicts(4, temperature=0.7212) and predicts(7, temperature=0.7215)
    assert predicts(4, k=1)
    # With all four, e^1 + e^-1 = 3.09 is still less than 3.30.
    assert predicts(7, k=4) and predicts(7, k=400)


def test_the_vote_survives_a_tiny_temperature():
    # exp(1 / T) and exp(0.5 / T) would both overflow, and the tie would go to class 4.
    assert predicts(7, labels=np.array([7, 4, 4, 7]), temperature=1e-4)


def test_ties_go_to_the_earlier_sample_and_the_smaller_label():
    same = np.tile([[3.0, 1.0]], (4, 1))
    assert predicts(9, train=same, labels=np.array([9, 2, 2, 2]), k=1)
    assert predicts(2, train=same, labels=np.array([2, 9, 9, 9]), k=1)
    # k = 3 takes the first three: two against one; the last does not vote.
    assert predicts(9, train=same, labels=np.array([9, 2, 9, 2]), k=3)
    assert predicts(2, train=same, labels=np.array([9, 2, 9, 2]), k=4)
    # Only the places left after the nearer sample are filled in order.
    mixed = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert predicts(5, train=mixed, labels=np.array([5, 5, 8, 8]), k=3, temperature=10.0)


def test_equal_votes_go_to_the_smaller_label_whatever_their_rounding():
    # n samples at cosine 1/2 against one at 1 with T = 1 / (2 ln n): n e^(1/2T) = e^(1/T) = n^2.
    for n in (2, 3, 5, 7):
        train = np.concatenate([[[1.0, 0.0]], np.tile([[0.5, math.sqrt(0.75)]], (n, 1))])
        for one, many in ((4, 7), (7, 4)):
            labels = np.array([one] + [many] * n)
            temperature = 1 / (2 * math.log(n))
            assert predicts(4, train=train, labels=labels, k=n + 1, temperature=temperature)


def test_zero_vectors_have_no_direction():
    result = knn_classify(
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [3, 1, 1], [[0.0, 0.0]], [3], k=1, temperature=0.07
    )
    assert result["accuracy"] == 1.0  # cosine 0 with all: the first sample
    assert (result["zero_train"], result["zero_test"]) == (1, 1)
    # A zero training vector is nearer than an opposite one, farther than a similar one.
    train, labels = [[0.0, 0.0], [-1.0, 0.0], [1.0, 1.0]], np.array([1, 2, 3])
    assert predicts(3, train=train, labels=labels, k=1)
    assert predicts(1, train=train[:2], labels=labels[:2], k=1)


def reference(train, labels, test, k, temperature):
    """The rule in a plain loop, on integers' cosines rounded so that ties are ties."""
    winners = []
    for query in test:
        cosines = [
            round(float(query @ t) / (np.linalg.norm(query) * np.linalg.norm(t)), 12) for t in train
        ]
        near = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[:k]
        votes = {}
        for i in near:
            votes[labels[i]] = votes.get(labels[i], 0.0) + math.exp(cosines[i] / temperature)
        best = max(votes.values())
        winners.append(min(c for c, v in votes.items() if v > best * (1 - 1e-9)))
    return np.array(winners)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_a_plain_loop_whatever_the_chunk(k):
    rng = np.random.default_rng(0)
    # Small integers give many exact duplicates of direction, so most queries meet ties.
    train, test = rng.integers(1, 4, (120, 3)), rng.integers(1, 4, (60, 3))
    labels = rng.integers(0, 6, 120)
    expected = reference(train, labels, test, k, 0.07)
    for chunk in (1, 7, 256):
        result = knn_classify(train, labels, test, expected, k=k, temperature=0.07, chunk=chunk)
        assert result["accuracy"] == 1.0, chunk


@pytest.mark.parametrize("k", [1, 5, 20])
def test_in_blocks_too(k, monkeypatch):
    """With as many ties for the last places as are looked at."""
    monkeypatch.setattr(streamed, "VALUES", 150)
    rng = np.random.default_rng(0)
    directions = rng.integers(1, 9, (30, 3))
    train, test = np.tile(directions, (4, 1)), rng.integers(1, 9, (60, 3))
    labels = rng.integers(0, 6, 120)
    expected = reference(train, labels, test, k, 0.07)
    result = knn_classify(train, labels, test, expected, k=k, temperature=0.07, streamed_above=119)
    assert result["accuracy"] == 1.0


@pytest.mark.parametrize("most", [knn.MOST, 0])  # candidates only, and all in float64
def test_candidates_hold_the_nearest_with_their_ties(most, monkeypatch):
    """900 rows, the last 100 of them copies of the first 100, so that many places are tied."""
    monkeypatch.setattr(knn, "MOST", most)
    rng = np.random.default_rng(0)
    train = rng.normal(size=(900, 6)).astype(np.float32)
    train[800:] = train[:100]
    test = np.concatenate([train[:50] * 3, rng.normal(size=(250, 6)).astype(np.float32)])
    unit = [
        x.astype(float) / np.linalg.norm(x.astype(float), axis=1)[:, None] for x in (train, test)
    ]
    cosine = unit[1] @ unit[0].T
    kth = np.sort(cosine, axis=1)[:, -5]
    seen = 0
    for part, near, rows in knn._all(train, test, 5, 64):
        assert (near.shape[1] == 900) == (most == 0)
        for i, (values, places) in enumerate(zip(near, rows), part.start):
            found = places[np.isfinite(values)]
            assert set(np.flatnonzero(cosine[i] >= kth[i] - 1e-12)) <= set(found)
            assert (np.diff(found) > 0).all()  # in their order: the earlier of a tie comes first
            np.testing.assert_allclose(values[np.isfinite(values)], cosine[i][found], atol=1e-14)
        seen += len(near)
    assert seen == 300


def test_result_is_complete():
    result = knn_classify(TRAIN, LABELS, TRAIN, [4, 7, 7, 7], k=1, temperature=0.1)
    assert result == {
        "accuracy": 0.75,
        "standard_error": pytest.approx(math.sqrt(0.75 * 0.25 / 4)),
        "k": 1,
        "k_asked": 1,
        "temperature": 0.1,
        "n_train": 4,
        "n_test": 4,
        "zero_train": 0,
        "zero_test": 0,
    }
    json.dumps(result)
    capped = knn_classify(TRAIN, LABELS, TRAIN, LABELS, k=20, temperature=0.1)
    assert (capped["k"], capped["k_asked"]) == (4, 20)


def test_refuses_nonsense():
    bad = TRAIN.copy()
    bad[3, 1] = np.inf
    good = {"train_x": TRAIN, "train_y": LABELS, "test_x": TRAIN, "test_y": LABELS}
    for change, words in [
        ({"train_x": bad}, r"train features: 1 of 8 values .* row 3, column 1"),
        ({"test_x": bad}, r"test features: 1 of 8 values"),
        ({"test_x": TRAIN[:, :1]}, "test features: 1 columns, but 2"),
        ({"train_y": LABELS[:3]}, "train labels: 3 entries for 4 rows"),
        ({"k": 0}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
    ]:
        with pytest.raises(ValueError, match=words):
            knn_classify(**({"k": 1, "temperature": 0.1} | good | change))
