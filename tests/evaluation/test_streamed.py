"""Features in blocks: optimality of the fit, and the results of all rows at once."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from peregrine.evaluation import streamed
from peregrine.evaluation.linear import few_label_probe, label_share_probe, linear_probe
from peregrine.evaluation.logistic import Logistic
from peregrine.evaluation.streamed import nearest, standardised

COMMON = {"c_grid": [0.001, 0.1, 10.0], "split_seed": 0, "max_iter": 2000}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 10 to 40 rows of the data below, the last one smaller, on the CPU."""
    monkeypatch.setattr(streamed, "VALUES", 400)
    monkeypatch.setattr(streamed, "pick_device", lambda: torch.device("cpu"))


def overlapping(classes, seed=0):
    """480 + 240 samples in 10 dimensions, off-centre, of unequal scale, one column constant."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(720) % classes)
    x = (rng.normal(size=(classes, 10))[y] + rng.normal(size=(720, 10))) * np.logspace(-1, 2, 10)
    x = (x + 5).astype(np.float32)
    x[:, 3] = 7.1
    return x[:480], y[:480], x[480:], y[480:]


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_fit_is_stationary_and_that_of_scikit_learn(classes):
    train_x, train_y, test_x, _ = overlapping(classes)
    model = Logistic(0.1, tol=1e-8, max_iter=5000)
    model.fit(standardised(train_x, test_x)[0], train_y)
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    x = scaler.transform(train_x.astype(np.float64))
    x[:, 3] = 0
    # Gradient of the mean cross-entropy plus |W|^2 / (2 C n), written out: 0 at the minimum.
    weights, intercept = model.weights[:, :-1], model.weights[:, -1]
    scores = x @ weights.T + intercept
    if classes == 2:
        scores = np.column_stack([np.zeros(480), scores])
    off = (softmax(scores, axis=1) - np.eye(classes)[train_y])[:, -len(weights) :]
    np.testing.assert_allclose(off.T @ x / 480 + weights / (0.1 * 480), 0, atol=1e-7)
    np.testing.assert_allclose(off.mean(0), 0, atol=1e-7)
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(x, train_y)
    np.testing.assert_allclose(weights, plain.coef_, atol=1e-5)
    # Of several classes the intercepts have a common shift that no score feels.
    shift = intercept - plain.intercept_
    np.testing.assert_allclose(shift - shift.mean() * (classes > 2), 0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 8])
def test_every_probe_is_that_of_all_rows_at_once(classes):
    data = overlapping(classes)
    for probe, own in (
        (linear_probe, {"validation_share": 0.25}),
        (few_label_probe, {"labels_per_class": 6, "draws": 2}),
        (label_share_probe, {"share": 0.1, "draws": 2}),
    ):
        expected = probe(*data, **COMMON, **own, streamed_above=480)
        found = probe(*data, **COMMON, **own, streamed_above=479)
        if probe is linear_probe:
            assert (expected.pop("streamed"), found.pop("streamed")) == (False, True)
            assert ("top5_accuracy" in found) == (classes > 5)
            assert 1.5 / classes < found["accuracy"] < 1
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value), key
        assert found["converged"] is found["converged_path"] is True


def test_an_optimiser_that_stops_early_says_so():
    data = overlapping(3)
    rows, _ = standardised(data[0], data[2])
    assert not Logistic(tol=1e-5, max_iter=1).fit(rows, data[1]).converged
    result = linear_probe(*data, **COMMON | {"max_iter": 1}, validation_share=0.5, streamed_above=9)
    assert result["converged"] is result["converged_path"] is False


def test_a_warm_start_begins_where_the_last_fit_ended():
    data = overlapping(3)
    rows, _ = standardised(data[0], data[2])
    model = Logistic(tol=1e-8, max_iter=5000, warm_start=True).fit(rows, data[1])
    found = model.weights.copy()
    model.max_iter = 1
    assert model.fit(rows, data[1]).converged  # a cold one would have to go all the way
    np.testing.assert_allclose(model.weights, found, atol=1e-6)


def test_rows_of_rows_are_read_in_their_order():
    x = np.arange(60, dtype=np.float32).reshape(20, 3) ** 2
    rows, _ = standardised(x, x)
    part = rows[np.array([19, 3, 3, 7])][np.array([True, False, True, True])]
    expected = StandardScaler().fit_transform(x.astype(np.float64))[[19, 3, 7]]
    np.testing.assert_allclose(part.block(slice(0, 9)), expected, rtol=1e-12)


def test_values_that_are_not_finite_are_refused_by_their_place():
    train_x, train_y, test_x, test_y = overlapping(3)
    bad = train_x.copy()
    bad[77, 4] = np.nan
    with pytest.raises(ValueError, match="train features: .* row 77, column 4"):
        linear_probe(bad, train_y, test_x, test_y, **COMMON, validation_share=0.5, streamed_above=9)
    with pytest.raises(ValueError, match="test features: 9 columns, but 10"):
        linear_probe(
            train_x, train_y, test_x[:, 1:], test_y, **COMMON, validation_share=0.5,
            streamed_above=9,
        )  # fmt: skip
    with pytest.raises(ValueError, match="non-empty matrix"):
        standardised(train_x[0], test_x)


@pytest.mark.parametrize("k", [1, 7, 600])
def test_neighbours_are_those_of_a_full_sort(k):
    train_x, _, test_x, _ = overlapping(4)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train_x, test_x)]
    cosine = unit[1].astype(float) @ unit[0].astype(float).T
    expected = np.sort(np.argsort(-cosine, axis=1)[:, :k], axis=1)
    seen = 0
    for part, near, rows in nearest(train_x, test_x, k):
        assert part.start == seen
        np.testing.assert_array_equal(rows, expected[part])
        np.testing.assert_allclose(near, np.take_along_axis(cosine[part], rows, 1), atol=1e-6)
        seen += len(rows)
    assert seen == 240
