"""`status` beside results made by hand: every state a seed can be in, and what comes next."""

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_world import PARTS, World

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.load import load
from peregrine.config.models import Config
from peregrine.errors import UserError
from peregrine.reporting.records import read_seed
from peregrine.reporting.status import (
    CHECKPOINT,
    LOCK,
    STATES,
    as_json,
    as_text,
    held,
    next_step,
    states,
)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three seeds of `small` and of `large`, all finished by today's code."""
    monkeypatch.setattr(fingerprint, "fingerprint", lambda step, method=None: "now")
    monkeypatch.setattr(fingerprint, "parts", lambda step, method=None: PARTS)
    return World(tmp_path)


def look(world):
    return states(world.project, ["toy"], world.results)


def of(world, row):
    return [(each.state, each.detail) for each in look(world) if each.row == row]


def empty(folder):
    """Remove what is in a seed folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def checkpoint(folder, epoch):
    position = json.dumps({"epoch": epoch})
    files.write_tensors(folder / CHECKPOINT, {"a": np.zeros(1)}, position=position)


def test_weights_are_seen_and_not_read(world):
    """Those of a campaign are many gigabytes; that `collect` reads them is its own test."""
    weights = world.folder("small", 0) / "backbone.safetensors"
    weights.write_text("changed")
    assert of(world, "small")[0] == ("done", "")
    weights.unlink()
    state, detail = of(world, "small")[0]
    assert state == "damaged" and detail == f"{weights} is missing; rerun pretrain"


def test_all_done_and_the_report_is_there(world):
    reports = str(world.results.parent / "reports")
    world.project = replace(world.project, config=Config(scale="mini", reports=reports))
    assert {each.state for each in look(world)} == {"done"}
    assert next_step(world.project, look(world), "mini") == "snakemake"
    assert next_step(world.project, look(world), "demo") == "snakemake --config scale=mini"
    page = world.results.parent / "reports/mini/index.html"
    files.write_text(page, "")
    assert next_step(world.project, look(world), "mini") == f"open {page}"
    world.ended("large", 2, "collapsed")  # a result too
    assert of(world, "large")[2] == ("failed", "collapsed: collapsed early")
    assert next_step(world.project, look(world), "mini") == f"open {page}"


def test_trained_but_not_evaluated(world):
    world.drop("small", 1, "knn", "collapse")
    assert of(world, "small")[1] == ("to evaluate", "not evaluated: knn, collapse")


def test_a_checkpoint_and_no_trainer(world):
    folder = world.folder("small", 2)
    empty(folder)
    assert of(world, "small")[2] == ("missing", "")
    checkpoint(folder, 3)
    # The study says nothing of epochs, so there are 100.
    assert of(world, "small")[2] == ("stopped", "epoch 3 of 100")
    (folder / CHECKPOINT).write_bytes(b"half")
    assert of(world, "small")[2] == ("stopped", "no checkpoint yet, 100 epochs to go")


def test_a_trainer_at_work_is_seen_and_not_disturbed(world):
    folder = world.folder("small", 2)
    empty(folder)
    checkpoint(folder, 7)
    assert not held(folder / LOCK)
    with (folder / LOCK).open("a") as trainer:
        fcntl.flock(trainer, fcntl.LOCK_EX)
        assert of(world, "small")[2] == ("running", "epoch 7 of 100")
        assert next_step(world.project, look(world), "mini").startswith("wait; logs stand in")
        (folder / CHECKPOINT).unlink()
        assert of(world, "small")[2] == ("running", "no checkpoint yet, 100 epochs to go")
    look(world)
    with (folder / LOCK).open("a") as trainer:
        fcntl.flock(trainer, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing was left locked


def test_older_stale_and_mixed(world):
    for seed in range(3):
        world.manifest("large", seed, code="before", code_parts=PARTS)
    assert [state for state, _ in of(world, "large")] == ["older code"] * 3
    world.edit("small", 0, "linear", {"weights": "others"})
    assert of(world, "small")[0][0] == "stale"
    world.manifest("small", 1, code="before", code_parts=PARTS)
    assert [state for state, _ in of(world, "small")] == ["mixed"] * 3


@pytest.mark.parametrize(
    ("here", "part", "named"),
    [
        ({"train": "abc", "test": "def"}, {}, ""),
        ({"train": "abc", "test": "other"}, {}, "test"),
        ({"train": "other", "test": "other"}, {}, "train and test"),
        # A part has another sum than the whole.
        ({"train": "other", "test": "def"}, {"train_per_class": 5}, ""),
        ({"train": "other", "test": "def"}, {"imbalance": 2.0}, ""),
        ({"train": "other", "test": "other"}, {"validation_per_class": 5}, ""),
    ],
)
def test_seeds_of_other_data_than_are_prepared_here(world, here, part, named):
    cell = world.project.of("toy")["small"]
    run = cell.run.model_copy(update={"dataset": cell.run.dataset.model_copy(update=part)})
    files.write_json(world.results / "data" / "toy.json", {"sums": here})
    seed, _, values = read_seed(world.folder("small", 0), replace(cell, run=run), 0, world.project)
    if not named:
        assert seed.status == "finished" and values
        return
    assert seed.status == "stale" and values == []
    assert f"trained on other {named} images than " in seed.detail
    assert "data/toy.json names, rerun pretrain" in seed.detail


def adopted(world, row, seed):
    """As `adopt` leaves it: in a place of its own, with the sums of its files."""
    here = world.folder(row, seed)
    there = world.results / "adopted" / here.parent.name / here.name
    there.parent.mkdir(parents=True, exist_ok=True)
    here.rename(there)
    found = [path for path in there.rglob("*") if path.is_file()]
    sums = {path.relative_to(there).as_posix(): files.sha256(path) for path in found}
    files.write_json(there / "adopted.json", {"files": sums})


def test_what_was_adopted_is_settled_since_no_rule_makes_it(world):
    reports = str(world.results.parent / "reports")
    world.project = replace(world.project, config=Config(scale="mini", reports=reports))
    page = world.results.parent / "reports/mini/index.html"
    files.write_text(page, "")
    for seed in range(3):
        world.manifest("large", seed, code="before", code_parts=PARTS)
    world.drop("small", 0, "knn")
    assert next_step(world.project, look(world), "mini") == "snakemake"
    for seed in range(3):
        adopted(world, "large", seed)
    assert [state for state, _ in of(world, "large")] == ["adopted"] * 3
    assert of(world, "large")[0][1].startswith("older code: adopted; older code, these modules")
    assert next_step(world.project, look(world), "mini") == "snakemake"  # makes small's knn
    adopted(world, "small", 0)
    adopted(world, "small", 1)
    assert of(world, "small") == [
        ("adopted", "incomplete: adopted; not evaluated: knn"),
        ("done", "adopted"),
        ("done", ""),
    ]
    assert next_step(world.project, look(world), "mini") == f"open {page}"
    # Mixed by what was adopted: only its own seed could be made again.
    for seed in (0, 1):
        path = world.results / "adopted" / world.folder("small", 0).parent.name / f"seed-{seed}"
        manifest = files.read_json(path / "manifest.json") | {"code": f"before {seed}"}
        files.write_json(path / "manifest.json", manifest)
        record = files.read_json(path / "adopted.json")
        record["files"]["manifest.json"] = files.sha256(path / "manifest.json")
        files.write_json(path / "adopted.json", record)
    assert [state for state, _ in of(world, "small")] == ["mixed"] * 3
    assert next_step(world.project, look(world), "mini") == "snakemake"
    adopted(world, "small", 2)
    assert next_step(world.project, look(world), "mini") == f"open {page}"


def test_damage_is_a_line_and_the_rest_is_read(world):
    path = world.folder("small", 1) / "outcome.json"
    path.write_text(path.read_text().replace("finished", "nan"))
    found = of(world, "small")
    assert [state for state, _ in found] == ["done", "damaged", "done"]
    assert "outcome.json was changed" in found[1][1] and "\n" not in found[1][1]
    text = as_text(world.project, look(world), next_step(world.project, look(world), "mini"))
    assert "damaged: toy, small, c = 16, seed 1: " in text
    assert "next: do what the lines on damaged files say, then snakemake" in text


def test_the_table_counts(world):
    empty(world.folder("small", 0))
    world.drop("large", 1)
    lines = as_text(world.project, look(world), "what").splitlines()
    head, small, large = lines[3:6]
    assert lines[:3] == ["scale mini, seeds 0 1 2", "", "toy"]
    assert head.split() == ["row", "label", "done", "to", "evaluate", "missing", "run"]
    ids = {row: cell.id for row, cell in world.project.of("toy").items()}
    assert [line.split()[0] for line in (small, large)] == ["small", "large"]
    assert small.split()[-4:] == ["2", ".", "1", ids["small"]]
    assert large.split()[-4:] == ["2", "1", ".", ids["large"]]
    # Numbers stand under the last letter of their heading.
    for name, number, line in (("done", "2", small), ("evaluate", "1", large)):
        assert line[head.index(name) + len(name) - 1] == number
    assert "6 seeds: 4 done, 1 to evaluate, 1 missing" in lines
    assert lines[-1] == "next: what"


def test_one_line_for_one_reason(world):
    for row in ("small", "large"):
        for seed in range(3):
            world.manifest(row, seed, code="before", code_parts=PARTS | {"peregrine.gone": "1"})
    text = as_text(world.project, look(world), "")
    assert text.count("peregrine.gone") == 1
    assert "older code: toy, small, c = 16, seed 0 1 2 and 1 more row: " in text


def test_json_says_the_same(world):
    world.drop("large", 1, "linear")
    answer = json.loads(as_json(world.project, look(world), "what"))
    assert answer["scale"] == "mini" and answer["next"] == "what"
    assert answer["totals"] == dict.fromkeys(STATES, 0) | {"done": 5, "to evaluate": 1}
    assert answer["seeds"][4] == {
        "study": "toy",
        "row": "large",
        "label": "large, c = 4096",
        "run": world.project.of("toy")["large"].id,
        "seed": 1,
        "state": "to evaluate",
        "detail": "not evaluated: linear",
    }


def test_an_unknown_study(world):
    with pytest.raises(UserError, match="'tooy' is not in config.yaml, or not at scale .*: toy"):
        states(world.project, ["tooy"], world.results)


def test_the_command_answers_at_once_without_torch(pytestconfig):
    """The bar is a second; here ten, for a machine that does other things as well."""
    code = """
import sys
from peregrine.cli import app
app(["status", "--json"], standalone_mode=False)
assert "torch" not in sys.modules
"""
    root = Path(pytestconfig.rootpath)
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert time.monotonic() - began < 10
    assert done.returncode == 0, done.stderr
    project = load(root / "config")
    expected = len(project.cells) * len(project.scale.seeds)
    assert sum(json.loads(done.stdout)["totals"].values()) == expected
