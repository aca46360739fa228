"""The fit against scikit-learn at its convergence, and the stationarity of its result."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from peregrine.evaluation import logistic
from peregrine.evaluation.linear import TOLERANCE, linear_probe
from peregrine.evaluation.logistic import Dense, Logistic, standardised

GRID = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]


def digits():
    """Real and correlated: 1,797 images of 64 pixels, three of which are the same in all."""
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def correlated(classes=6, n=900, width=40, seed=0):
    """Gaussians whose variances fall by the square of the index, cut at zero as by a ReLU."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n + 600) % classes)
    sd = 1 / np.arange(1, width + 1)
    x = (rng.normal(size=(classes, width))[y] + 2 * rng.normal(size=(n + 600, width))) * sd
    x = np.maximum(x @ np.linalg.qr(rng.normal(size=(width, width)))[0] + 0.3, 0)
    x = x.astype(np.float32)
    return x[:n], y[:n], x[n:], y[n:]


def gradient(x, y, weights, C):
    """Of the mean cross-entropy plus |W|^2 / (2 C n), written out in float64."""
    scores = np.exp(x @ weights[:, :-1].T + weights[:, -1])
    off = scores / scores.sum(1, keepdims=True) - np.eye(len(weights))[y]
    return np.column_stack([off.T @ x / len(x) + weights[:, :-1] / (C * len(x)), off.mean(0)])


@pytest.mark.parametrize("data", [digits, correlated])
def test_the_probe_chooses_and_scores_as_scikit_learn_at_its_convergence(data):
    from sklearn.model_selection import train_test_split

    train_x, train_y, test_x, test_y = data()
    found = linear_probe(
        train_x, train_y, test_x, test_y,
        c_grid=GRID, validation_share=0.2, split_seed=0, max_iter=1000, streamed_above=10**6,
    )  # fmt: skip
    scaler = StandardScaler().fit(train_x.astype(float))
    x, test = scaler.transform(train_x.astype(float)), scaler.transform(test_x.astype(float))
    fit, held = train_test_split(np.arange(len(x)), test_size=0.2, stratify=train_y, random_state=0)

    def plain(C, rows):
        return LogisticRegression(C=C, tol=1e-7, max_iter=20_000).fit(x[rows], train_y[rows])

    scores = [plain(C, fit).score(x[held], train_y[held]) for C in GRID]
    np.testing.assert_allclose(found["validation_accuracy"], scores, atol=1.01 / len(held))
    assert found["c"] == GRID[int(np.argmax(scores))]
    expected = plain(found["c"], slice(None)).score(test, test_y)
    assert abs(found["accuracy"] - expected) <= 0.001
    assert found["converged"] is found["converged_path"] is True


@pytest.mark.parametrize("C", [0.001, 1.0, 100.0])
@pytest.mark.parametrize("n", [900, 30])  # more rows than features, and fewer
def test_the_gradient_vanishes_in_the_features_own_coordinates(C, n):
    train_x, y, test_x, _ = correlated()
    x = standardised(train_x, test_x)[0][np.arange(n)]
    model = Logistic(C, tol=TOLERANCE, max_iter=1000).fit(x, y[:n])
    assert model.converged
    left = gradient(x.values.astype(float), y[:n], model.weights, C)
    assert abs(left).max() < 1.1 * TOLERANCE  # float32 may be off by some of it


def test_float64_goes_on_where_float32_cannot():
    train_x, y, test_x, _ = correlated()
    x = standardised(train_x, test_x)[0]
    model = Logistic(1.0, tol=1e-7, max_iter=1000).fit(x, y)
    assert model.converged
    assert abs(gradient(x.values.astype(float), y, model.weights, 1.0)).max() < 1.01e-7


def test_the_curvature_is_the_mean_hessian_of_the_classes():
    train_x, y, test_x, _ = correlated(width=5)
    x = standardised(train_x, test_x)[0]
    weights = np.random.default_rng(1).normal(size=(6, 6))
    step, expected = 1e-5, np.zeros((6, 6))
    for label in range(6):
        for j in range(6):
            both = []
            for sign in (1, -1):
                moved = weights.copy()
                moved[label, j] += sign * step
                # Without a penalty: C so large that it does not count.
                both.append(gradient(x.values.astype(float), y, moved, 1e12)[label])
            expected[j] += (both[0] - both[1]) / (2 * step) / 6
    np.testing.assert_allclose(x.curvature(weights, 6), expected, atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    train_x, y, test_x, _ = correlated()
    whole = standardised(train_x, test_x)
    fitted = Logistic(0.1, tol=1e-8, max_iter=1000).fit(whole[0], y)
    monkeypatch.setattr(logistic, "BLOCK", 7)
    blocks = standardised(train_x, test_x)
    np.testing.assert_allclose(blocks[0].values, whole[0].values, rtol=1e-5, atol=1e-6)
    other = Logistic(0.1, tol=1e-8, max_iter=1000).fit(blocks[0], y)
    np.testing.assert_allclose(other.weights, fitted.weights, atol=1e-5)
    np.testing.assert_array_equal(other.predict(blocks[1]), fitted.predict(whole[1]))


def test_the_number_of_threads_changes_no_bit():
    train_x, y, test_x, _ = correlated(n=5000, width=60)
    x = standardised(train_x, test_x)[0]
    weights = []
    for threads in (1, 3):
        with threadpool_limits(threads):
            weights.append(Logistic(1.0, tol=TOLERANCE, max_iter=1000).fit(x, y).weights)
    np.testing.assert_array_equal(*weights)


def test_features_that_repeat_each_other_are_no_obstacle():
    train_x, y, test_x, _ = correlated()
    wide = [np.tile(x, (1, 2)) for x in (train_x, test_x)]
    x = standardised(*wide)[0]
    model = Logistic(10.0, tol=1e-7, max_iter=1000).fit(x, y)
    assert model.converged
    # The penalty halves in effect: the weights of both copies are equal and add up.
    np.testing.assert_allclose(model.weights[:, :40], model.weights[:, 40:80], atol=1e-4)
    single = Logistic(20.0, tol=1e-7, max_iter=1000).fit(standardised(train_x, test_x)[0], y)
    loss = [
        fit.weights[:, :-1] @ rows.values.T.astype(float) + fit.weights[:, -1:]
        for fit, rows in ((model, x), (single, standardised(train_x, test_x)[0]))
    ]
    np.testing.assert_allclose(loss[0], loss[1], atol=1e-3)


def test_dense_rows_are_a_matrix():
    rows = Dense(np.arange(12, dtype=np.float32).reshape(4, 3))
    assert len(rows) == 4 and rows.width == 3
    np.testing.assert_array_equal(rows[np.array([2, 0])].values, [[6, 7, 8], [0, 1, 2]])
    same, basis = rows.compact()
    assert same is rows and basis is None
    inner, basis = rows[np.array([1, 3])].compact()
    np.testing.assert_allclose(inner.values @ basis.T, rows.values[[1, 3]], atol=1e-12)
    assert inner.values.shape == (2, 2)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_a_collapse_to_one_direction_is_fitted(spread):
    """All features are copies of one, to float32's last bits: curvatures are singular there."""
    rng = np.random.default_rng(0)
    y = np.arange(3000) % 3
    x = (rng.normal(size=3000) + y)[:, None] + spread * rng.normal(size=(3000, 300))
    rows, _ = standardised(x.astype(np.float32), x[:9].astype(np.float32))
    for C in (0.001, 1.0, 100.0):
        model = Logistic(C, tol=TOLERANCE, max_iter=1000).fit(rows, y)
        assert model.converged
        left = gradient(rows.values.astype(float), y, model.weights, C)
        assert abs(left).max() < 1.1 * TOLERANCE


def test_a_curvature_that_rounding_made_indefinite_is_lifted():
    curvature = np.diag([1.0, 1.0, -3e-4])
    factor = logistic._factor(curvature)
    # The mean of the diagonal is 2/3 (nearly): lifted by its 1e-6-fold, tenfold until positive.
    lift = 1e-3 * np.trace(curvature) / 3
    np.testing.assert_allclose(factor @ factor.T, curvature + lift * np.eye(3), rtol=1e-9)
