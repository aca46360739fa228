"""Evaluations are held against the weights, data, code and protocol that they name."""

import pytest
from small_world import PARTS, World

from peregrine import files
from peregrine.config import fingerprint


@pytest.fixture(autouse=True)
def code(monkeypatch):
    monkeypatch.setattr(fingerprint, "fingerprint", lambda step, method=None: "now")
    monkeypatch.setattr(fingerprint, "parts", lambda step, method=None: PARTS)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"provenance": {"weights": "0"}}, "is of other weights, rerun extract and evaluate"),
        ({"status": "collapsed"}, "is of other weights, rerun extract and evaluate"),
        ({"provenance": {"data": "0"}}, "is of other data, rerun extract and evaluate"),
        ({"provenance": {"protocol": "0"}}, "is of another protocol 'standard', rerun evaluate"),
    ],
)
def test_evaluations_of_something_else_are_stale_and_unused(world, change, why):
    world.edit("small", 1, "linear", **change)
    assert world.states("small") == [
        ("finished", ""),
        ("stale", f"stale: corrected/linear {why}"),
        ("finished", ""),
    ]
    cell = world.cell("small")
    assert (cell["seeds"], cell["missing"], cell["mean"]) == ("2", "1", "0.51")
    assert cell["remark"] == "1 of 3 seeds stale, see runs.csv"


def test_new_weights_make_every_evaluation_stale(world):
    world.outcome("small", 1, files=world.weights("small", 1, "trained again"))
    [_, (status, detail), _] = world.states("small")
    assert status == "stale"
    assert "corrected/collapse is of other weights, rerun extract and diagnose" in detail


def test_an_evaluation_without_provenance_is_stale(world):
    path = world.folder("small", 0) / "corrected" / "knn-standard.json"
    files.write_json(path, {"accuracy": 0.9})
    assert world.states("small")[0][1].startswith("stale: corrected/knn does not say what")


def test_a_reading_that_is_not_available_is_no_stale_one(world):
    def write(**over):
        facts = world.facts("small", 1, "clustering", **over) | {"status": "n/a"}
        files.write_json(world.folder("small", 1) / "released" / "clustering-standard.json", facts)

    write()
    assert world.states("small")[1] == ("finished", "")
    lines = [line for line in world.lines("runs.csv") if line["row"] == "small"]
    assert [line["not_available"] for line in lines] == ["", "released", ""]
    write(weights="0")
    status, detail = world.states("small")[1]
    assert status == "stale"
    assert detail.startswith("stale: released/clustering is of other weights")


def test_the_released_reading_is_measured_beside_the_corrected(world):
    for seed in range(3):
        facts = world.facts("small", seed, "clustering") | {"codes": {"nmi": 0.25 + seed}}
        path = world.folder("small", seed) / "released" / "clustering-standard.json"
        files.write_json(path, facts)
    found = [line for line in world.lines("metrics.csv") if line["metric"] == "codes/nmi"]
    assert [(line["reading"], line["value"]) for line in found] == [
        ("released", "0.25"),
        ("released", "1.25"),
        ("released", "2.25"),
    ]


def test_a_stale_seed_that_failed_stays_a_failed_one(world):
    world.outcome("small", 1, "nan")
    status, detail = world.states("small")[1]
    assert (status, detail[:10]) == ("stale", "nan; stale")
    cell = world.cell("small")
    assert (cell["seeds"], cell["missing"], cell["failed"]) == ("2", "0", "1")


@pytest.mark.parametrize(
    ("kind", "key", "step"),
    [("knn", "extract", "extract"), ("knn", "step", "evaluate"), ("collapse", "step", "diagnose")],
)
def test_older_code_of_an_evaluation_is_named_and_not_mixed_with_newer(world, kind, key, step):
    for seed in range(3):
        world.edit("small", seed, kind, {key: "before"})
    assert world.states("small") == [("older code", f"older code of {step}")] * 3
    world.edit("small", 1, kind, {key: "now"})
    states = world.states("small")
    assert [status for status, _ in states] == ["mixed"] * 3
    assert states[1][1] == f"seeds differ in {step} code of corrected/{kind}"


def test_extra_evaluations_are_read_and_awaited_where_the_study_asks_for_them(world):
    world.ask({"robustness": ["small"]})

    def write(row, seed, **over):
        facts = world.facts(row, seed, "robustness", **over)
        facts["provenance"] = {k: v for k, v in facts["provenance"].items() if k != "extract"}
        path = world.folder(row, seed) / "corrected" / "robustness-standard.json"
        files.write_json(path, facts | {"nn": {"changed": 0.25 + seed}})

    for seed in (0, 1):
        write("small", seed)
        write("large", seed)
    assert world.states("small")[1:] == [
        ("finished", ""),
        ("incomplete", "not evaluated: robustness"),
    ]
    assert world.states("large") == [("finished", "")] * 3
    found = [each for each in world.lines("metrics.csv") if "robustness" in each["metric"]]
    assert [(each["row"], each["metric"], each["value"]) for each in found] == [
        ("small", "robustness/nn/changed", "0.25"),
        ("small", "robustness/nn/changed", "1.25"),
    ]
    write("small", 0, weights="0")
    status, detail = world.states("small")[0]
    assert status == "stale"
    assert detail.startswith("stale: corrected/robustness is of other weights, rerun robustness")
    for seed in range(3):
        write("small", seed, step="before")
    assert world.states("small") == [("older code", "older code of robustness")] * 3
