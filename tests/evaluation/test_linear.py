"""Linear probes: hand-made cases, an independent scikit-learn pipeline, and leakage."""

import inspect
import json
import math
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peregrine.evaluation import linear
from peregrine.evaluation.linear import few_label_probe, label_share_probe, linear_probe
from peregrine.evaluation.logistic import Dense, Logistic

GRID = [0.001, 0.01, 0.1, 1.0, 10.0]
FULL = {"c_grid": GRID, "validation_share": 0.25, "split_seed": 0, "max_iter": 2000}
FULL |= {"streamed_above": 1000}
FEW = {"c_grid": GRID, "labels_per_class": 5, "draws": 3, "split_seed": 0, "max_iter": 2000}
FEW |= {"streamed_above": 1000}


@pytest.fixture(scope="module")
def blobs():
    """Overlapping classes: 8 of them in 10 dimensions, off-centre and of unequal scale."""
    rng = np.random.default_rng(0)
    centres = 0.7 * rng.normal(size=(8, 10))
    y = rng.permutation(np.arange(800) % 8)
    x = (centres[y] + rng.normal(size=(800, 10))) * np.logspace(-1, 2, 10) + 5.0
    x = x.astype(np.float32)
    return x[:400], y[:400], x[400:], y[400:]


def separable(n_rare, n_common):
    """One feature, +1 for the rare class 3 and -1 for the common class 8."""
    y = np.array([3] * n_rare + [8] * n_common)
    return np.where(y == 3, 1.0, -1.0)[:, None], y


def test_probe_equals_a_plain_scikit_learn_pipeline(blobs):
    train_x, train_y, test_x, test_y = blobs
    result = linear_probe(*blobs, **FULL)
    plain = make_pipeline(
        StandardScaler(), LogisticRegression(C=result["c"], tol=1e-6, max_iter=5000)
    ).fit(train_x.astype(np.float64), train_y)
    assert result["accuracy"] == pytest.approx(plain.score(test_x, test_y), abs=1e-9)
    best = np.argsort(plain.predict_proba(test_x), axis=1)[:, -5:]
    assert result["top5_accuracy"] == pytest.approx(
        (best == test_y[:, None]).any(1).mean(), abs=1e-9
    )
    assert result["standard_error"] == pytest.approx(
        math.sqrt(result["accuracy"] * (1 - result["accuracy"]) / 400)
    )
    assert result["converged"] is True and result["converged_path"] is True
    assert (result["n_train"], result["n_validation"], result["n_test"]) == (400, 100, 400)
    assert result["classes"] == 8
    assert 0.5 < result["accuracy"] < result["top5_accuracy"] < 1.0
    assert json.loads(json.dumps(result)) == result


def test_the_strength_is_chosen_by_held_out_accuracy():
    # At C -> 0 only the unpenalised intercept is left: every sample falls to the common class.
    x, y = separable(20, 80)
    result = linear_probe(x, y, x, y, **FULL | {"c_grid": [1e-7, 1e3, 1e-6]})
    assert result["c_grid"] == [1e-7, 1e-6, 1e3]
    assert result["validation_accuracy"] == [0.8, 0.8, 1.0]
    assert (result["c"], result["c_at_edge"], result["accuracy"]) == (1e3, 1, 1.0)
    inside = linear_probe(x, y, x, y, **FULL | {"c_grid": [1e-7, 1.0, 1e3]})
    assert (inside["c"], inside["c_at_edge"]) == (1.0, 0)
    single = linear_probe(x, y, x, y, **FULL | {"c_grid": [1e-7]})
    assert (single["c"], single["c_at_edge"], single["accuracy"]) == (1e-7, 0, 0.8)


def test_a_tie_goes_to_the_stronger_regularisation():
    x, y = separable(50, 50)
    full = linear_probe(x, y, x, y, **FULL)
    assert full["validation_accuracy"] == [1.0] * len(GRID)
    assert (full["c"], full["c_at_edge"]) == (GRID[0], -1)
    few = few_label_probe(x, y, x, y, **FEW)
    assert (few["c_draws"], few["c_at_edge_draws"]) == ([GRID[0]] * 3, [-1] * 3)


def test_collapsed_features_score_the_class_frequencies():
    # Without information the intercepts are the log frequencies: 6 classes of 30, 25, ..., 5.
    counts = np.array([30, 25, 20, 15, 10, 5])
    train_y = np.repeat(np.arange(6), counts)
    test_y = np.repeat(np.arange(6), [4, 2, 1, 1, 1, 11])
    x = np.full((len(train_y), 3), 0.1, dtype=np.float32)
    result = linear_probe(x, train_y, x[: len(test_y)], test_y, **FULL | {"validation_share": 0.2})
    assert result["accuracy"] == 4 / 20
    assert result["top5_accuracy"] == 9 / 20
    assert "top5_accuracy" not in linear_probe(*separable(9, 9), *separable(9, 9), **FULL)


def test_constant_columns_change_nothing(blobs):
    train_x, train_y, test_x, test_y = blobs
    rng = np.random.default_rng(1)

    def widened(x, in_training):
        constant = np.tile(np.float32([0.0, 0.1, 12345.678]), (len(x), 1))
        # The last differs in its last bit only: float32 rounding, no feature.
        noise = np.float32(12345.678) + np.float32(0.0009765625) * rng.integers(0, 2, len(x))
        if not in_training:
            constant += rng.normal(size=constant.shape).astype(np.float32)
        return np.column_stack([x, constant, noise.astype(np.float32)])

    wide = widened(train_x, True), train_y, widened(test_x, False), test_y
    for probe, protocol in ((linear_probe, FULL), (few_label_probe, FEW)):
        expected = probe(*blobs, **protocol)
        for key, value in probe(*wide, **protocol).items():
            assert value == pytest.approx(expected[key]), key


@pytest.mark.parametrize(("probe", "protocol"), [(linear_probe, FULL), (few_label_probe, FEW)])
def test_nothing_is_learnt_from_the_test_set(blobs, probe, protocol):
    train_x, train_y, test_x, test_y = blobs
    whole = probe(*blobs, **protocol)
    shuffled = np.random.default_rng(2).permutation(test_y)
    other = probe(train_x, train_y, test_x, shuffled, **protocol)
    for key in whole:
        if not key.startswith(("accuracy", "top5")) and key != "standard_error":
            assert other[key] == whole[key], key
    assert other["accuracy"] < 0.3 < whole["accuracy"]
    # A test sample is judged on its own: two unlike halves give the same verdicts as the whole.
    order = np.argsort(test_x[:, 0])
    halves = [
        probe(train_x, train_y, test_x[part], test_y[part], **protocol)["accuracy"]
        for part in (order[:100], order[100:])
    ]
    assert 0.25 * halves[0] + 0.75 * halves[1] == pytest.approx(whole["accuracy"], abs=1e-12)


def test_few_labels_see_no_label_outside_their_subset(blobs):
    train_x, train_y, test_x, test_y = blobs
    protocol = FEW | {"draws": 1}
    whole = few_label_probe(*blobs, **protocol)
    # The documented draw: per class in sorted order, the head of a permutation by (seed, draw).
    rng = np.random.default_rng([0, 0])
    drawn = np.concatenate([rng.permutation(np.flatnonzero(train_y == c))[:5] for c in range(8)])
    rest = np.setdiff1d(np.arange(400), drawn)
    # Shuffling the features of all others keeps their statistics and makes their labels wrong.
    scrambled = train_x.copy()
    scrambled[rest] = train_x[np.random.default_rng(3).permutation(rest)]
    assert few_label_probe(scrambled, train_y, test_x, test_y, **protocol) == whole
    # The statistics of the unlabelled do count: standardisation is over all of them.
    stretched = train_x.copy()
    stretched[rest] = 5.0 + (stretched[rest] - 5.0) * np.logspace(2, -2, 10, dtype=np.float32)
    assert few_label_probe(stretched, train_y, test_x, test_y, **protocol) != whole


def test_few_labels_equal_cross_validation_written_out(blobs):
    train_x, train_y, test_x, test_y = blobs
    result = few_label_probe(*blobs, **FEW)
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    for draw in range(3):
        rng = np.random.default_rng([0, draw])
        drawn = np.concatenate(
            [rng.permutation(np.flatnonzero(train_y == c))[:5] for c in range(8)]
        )
        x, y = scaler.transform(train_x[drawn].astype(np.float64)), train_y[drawn]
        fold = np.arange(40) % 5  # five labels a class, one in each fold

        def model(c):
            return LogisticRegression(C=c, tol=1e-6, max_iter=5000)

        scores = [
            sum(
                (
                    model(c).fit(x[fold != f], y[fold != f]).predict(x[fold == f]) == y[fold == f]
                ).sum()
                for f in range(5)
            )
            for c in GRID
        ]
        best = GRID[int(np.argmax(scores))]
        assert result["c_draws"][draw] == best
        expected = model(best).fit(x, y).score(scaler.transform(test_x.astype(np.float64)), test_y)
        assert result["accuracy_draws"][draw] == pytest.approx(expected, abs=1e-9)
    assert len(set(result["accuracy_draws"])) > 1  # the draws differ
    assert result["accuracy"] == pytest.approx(sum(result["accuracy_draws"]) / 3)
    assert result["accuracy_sd"] == pytest.approx(np.std(result["accuracy_draws"], ddof=1))
    assert (result["n_train"], result["n_pool"], result["folds"]) == (40, 400, 5)
    assert json.loads(json.dumps(result)) == result


def test_a_draw_does_not_depend_on_how_many_are_made(blobs):
    three = few_label_probe(*blobs, **FEW)
    one = few_label_probe(*blobs, **FEW | {"draws": 1})
    assert one["accuracy_draws"] == three["accuracy_draws"][:1]
    assert "accuracy_sd" not in one
    other = few_label_probe(*blobs, **FEW | {"split_seed": 1})
    assert other["accuracy_draws"] != three["accuracy_draws"]


@pytest.mark.parametrize(
    ("grid", "middle"), [([1.0], 1.0), ([10.0, 0.1, 1.0], 1.0), ([0.1, 1.0, 10.0, 100.0], 1.0)]
)
def test_one_label_per_class_takes_the_middle_of_the_grid(blobs, grid, middle):
    result = few_label_probe(*blobs, **FEW | {"labels_per_class": 1, "c_grid": grid})
    assert result["c_draws"] == [middle] * 3
    assert (result["folds"], result["c_at_edge_draws"]) == (0, [0] * 3)
    assert 1 / 8 < result["accuracy"] < 1.0


@pytest.mark.parametrize(("labels", "folds"), [(2, 2), (4, 4), (7, 5)])
def test_folds_follow_the_labels(blobs, labels, folds):
    result = few_label_probe(*blobs, **FEW | {"labels_per_class": labels, "draws": 1})
    assert (result["folds"], result["n_train"]) == (folds, 8 * labels)


def test_warm_starts_reach_what_cold_starts_reach(blobs):
    train_x, train_y, *_ = blobs
    x = StandardScaler().fit_transform(train_x.astype(np.float64))
    fit, held = slice(0, 300), slice(300, 400)
    model = Logistic(tol=linear.TOLERANCE, max_iter=2000, warm_start=True)
    parts = Dense(x[fit]), train_y[fit], Dense(x[held]), train_y[held]
    hits, converged = linear._path(model, *parts, GRID)
    cold = [
        LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(x[fit], train_y[fit]) for c in GRID
    ]
    assert converged
    assert hits.tolist() == [(m.predict(x[held]) == train_y[held]).sum() for m in cold]


def test_an_optimiser_that_stops_early_is_a_flag_and_not_a_warning(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for probe, protocol in ((linear_probe, FULL), (few_label_probe, FEW)):
            result = probe(*blobs, **protocol | {"max_iter": 2})
            assert result["converged"] is False
            assert result["converged_path"] is False


@pytest.mark.parametrize("probe", [linear_probe, few_label_probe])
def test_refuses_nonsense_in_one_line(blobs, probe):
    train_x, train_y, test_x, test_y = blobs
    bad = train_x.copy()
    bad[3, 2] = np.nan
    good = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    good |= FULL if probe is linear_probe else FEW
    for change, words in [
        ({"train_x": bad}, r"train features: 1 of 4000 values .* row 3, column 2"),
        ({"test_x": np.full_like(test_x, -np.inf)}, "test features: 4000 of 4000 values"),
        ({"test_x": test_x[:, :4]}, "test features: 4 columns, but 10 in training"),
        ({"train_y": train_y[:-1]}, "train labels: 399 entries for 400 rows"),
        ({"train_y": train_y * 1.0}, "train labels: expected a non-empty vector of integers"),
        ({"train_y": train_y * 0}, "train labels: at least 2 classes are needed"),
        ({"test_y": test_y + 1}, "test labels: class 8 does not occur"),
        ({"c_grid": []}, "c_grid: expected positive"),
        ({"c_grid": [1.0, 0.0]}, "c_grid: expected positive"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            probe(**good | change)
        assert "\n" not in str(error.value)


def test_few_labels_refuse_a_class_that_is_too_small():
    x, y = separable(4, 30)
    with pytest.raises(ValueError, match="5 labels per class asked for, but class 3 has 4"):
        few_label_probe(x, y, x, y, **FEW)
    with pytest.raises(ValueError, match="at least 1 each"):
        few_label_probe(x, y, x, y, **FEW | {"draws": 0})


def test_protocol_has_no_hidden_defaults():
    for probe in (linear_probe, few_label_probe):
        knobs = list(inspect.signature(probe).parameters.values())[4:]
        assert all(k.kind is k.KEYWORD_ONLY and k.default is k.empty for k in knobs)


def test_a_share_of_the_labels_is_drawn_class_by_class_and_never_none(blobs):
    """5 of 40 labels a class are the 5 of the few-label probe, to the last bit."""
    train_x, train_y, test_x, test_y = blobs
    even = np.concatenate([np.flatnonzero(train_y == c)[:40] for c in range(8)])
    data = train_x[even], train_y[even], test_x, test_y
    common = {key: value for key, value in FEW.items() if key != "labels_per_class"}
    assert label_share_probe(*data, share=0.125, **common) == few_label_probe(*data, **FEW)
    # 1 % of 40 rounds to none and becomes one, of 260 to three: no fold can hold each class out.
    x, y = separable(40, 260)
    result = label_share_probe(x, y, x, y, share=0.01, **common)
    assert (result["n_train"], result["labels_per_class"], result["folds"]) == (4, 1, 0)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="inside .0, 1."):
            label_share_probe(x, y, x, y, share=wrong, **common)
