"""Scales like this one: shown beside it, never averaged with it, judged test by test."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_world import STUDY, World

from peregrine.config.load import load
from peregrine.errors import UserError
from peregrine.reporting.document import document, read_study
from peregrine.reporting.figures import pictures
from peregrine.reporting.report import report

FIGURE = {
    "id": "choices",
    "kind": "sensitivity",
    "title": "Choices",
    "caption": "One at a time.",
    "groups": {"all": ["small", "large"]},
    "panels": [{"metric": "linear/accuracy", "label": "linear, %", "percent": True}],
}
NOT_LOOKED_AT = (
    "Not looked at: no test of it has all of its rows at a variation, trained and changed."
)
OTHER_SIDE = {0: (0.7, 0.5), 1: (0.71, 0.51), 2: (0.72, 0.52)}


@pytest.fixture
def world(tmp_path, fixed_code):
    """`mini`, where large beats small by .2 on every seed; two scales like it, nothing trained."""
    made = World(tmp_path)
    path = made.config / "studies" / "toy.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"figures": [FIGURE]}, sort_keys=False))
    made.project = load(made.config)
    for name, what, times in (
        ("mini-long", "twice the epochs", {"epochs": 2}),
        ("mini-fast", "twice the rate", {"optimizer.lr": 2}),
    ):
        scale = {"name": name, "like": "mini", "description": what, "times": times}
        (made.config / "scales" / f"{name}.yaml").write_text(yaml.safe_dump(scale))
    return made


def there(world, scale, accuracies):
    """Seed -> (accuracy of small, of large) at another scale."""
    here, world.project = world.project, load(world.config, scale=scale)
    for seed, values in accuracies.items():
        for row, value in zip(("small", "large"), values, strict=True):
            world.seed(row, seed, value)
    world.project = here


def collected(world):
    world.project = load(world.config)
    return world.collect()


def sentence(folder, claim=0):
    return json.loads((folder / "sensitivity.json").read_text())[claim]["sentence"]


def test_without_such_scales_there_is_no_figure_and_no_file(world):
    for name in ("mini-long", "mini-fast"):
        (world.config / "scales" / f"{name}.yaml").unlink()
    folder = collected(world)
    assert world.project.study("toy").figures == ()
    assert not (folder / "sensitivity.csv").exists()
    assert not (folder / "sensitivity.json").exists()


def test_values_of_each_scale_stand_apart(world):
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.82)})
    folder = collected(world)
    lines = pd.read_csv(folder / "sensitivity.csv")
    assert set(lines["variation"]) == {"mini-long"}
    assert list(lines["value"]) == [0.4, 0.42, 0.8, 0.82]
    drawn = pd.read_csv(folder / pictures("choices")[2])
    means = drawn[drawn["kind"] == "mean"].set_index(["label", "x"])["value"]
    assert means["small, c = 16", "as chosen"] == pytest.approx(51)
    assert means["small, c = 16", "twice the epochs"] == pytest.approx(41)
    assert means["large, c = 4096", "twice the epochs"] == pytest.approx(81)
    assert len(means) == 4
    measured = pd.read_csv(folder / "metrics.csv")
    assert (measured["metric"] == "linear/accuracy").sum() == 6  # of the scale alone


def test_a_test_keeps_its_side_or_turns(world):
    folder = collected(world)
    assert sentence(folder) == NOT_LOOKED_AT
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    assert sentence(collected(world)) == (
        "1 of its 1 tests measured here were repeated under 1 variation. All keep their side."
    )
    # One seed has no interval, so nothing is clear.
    there(world, "mini-fast", {0: (0.6, 0.5)})
    assert sentence(collected(world)) == (
        "1 of its 1 tests measured here were repeated under 2 variations."
        " Turned, within noise: large against small (twice the rate)."
    )
    there(world, "mini-fast", OTHER_SIDE)
    assert "Clearly turned: large against small (twice the rate)." in sentence(collected(world))
    assert sentence(folder, 1) == NOT_LOOKED_AT
    (found,) = json.loads((folder / "sensitivity.json").read_text())[0]["tests"]
    assert found["effect"] == pytest.approx(0.2)
    assert found["variations"]["mini-fast"]["effect"] == pytest.approx(-0.2)
    assert found["variations"]["mini-long"]["seeds"] == 2


def test_what_the_choice_does_not_concern_does_not_count(world):
    """A scale that changes nothing has the very runs of this one."""
    for name in ("mini-long", "mini-fast"):
        path = world.config / "scales" / f"{name}.yaml"
        path.write_text(path.read_text().partition("times")[0])
    assert sentence(collected(world)) == NOT_LOOKED_AT


def test_seeds_that_fail_there_are_named(world):
    there(world, "mini-fast", OTHER_SIDE)
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    here, world.project = world.project, load(world.config, scale="mini-long")
    world.ended("large", 1, "nan")
    world.project = here
    said = sentence(collected(world))
    assert said.endswith("Failed or mixed seeds under: twice the epochs (large, c = 4096).")


def test_an_effect_of_nothing_but_rounding_is_on_no_side(world, tmp_path, monkeypatch):
    """.4328 - .4265 + .4460 - .4523 is 0 but for the last bits; the notebook sees six decimals."""
    there(world, "mini-fast", {0: (0.4265, 0.4328), 1: (0.4523, 0.4460)})
    folder = collected(world)
    (found,) = json.loads((folder / "sensitivity.json").read_text())[0]["tests"]
    assert found["variations"]["mini-fast"]["effect"] == 0
    assert found["variations"]["mini-fast"]["turned"] == "other side"
    monkeypatch.chdir(Path(__file__).parents[2])
    report(world.project, "toy", world.results, tmp_path / "reports", world.config)


def test_two_scales_of_one_description_are_refused(world):
    for name in ("mini-long", "mini-fast"):
        path = world.config / "scales" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"description": "d"}))
    with pytest.raises(UserError, match="mini-fast and mini-long have one description"):
        collected(world)


def test_the_report_says_so_and_the_notebook_recomputes_it(world, tmp_path, monkeypatch):
    there(world, "mini-fast", OTHER_SIDE)
    folder = collected(world)
    study = world.project.study("toy")
    printed = document(world.project, study, read_study(folder), world.config)["printed"]
    assert [claim for claim, _ in printed["sensitivity"]] == ["T1", "T2"]
    monkeypatch.chdir(Path(__file__).parents[2])
    report(world.project, "toy", world.results, tmp_path / "reports", world.config)
    page = (tmp_path / "reports/mini/toy.html").read_text()
    assert "What the undocumented choices are worth" in page
    assert "1 effects: all where sensitivity.json says" in page


def test_a_forged_effect_stops_the_notebook(world, tmp_path, monkeypatch):
    there(world, "mini-fast", OTHER_SIDE)
    folder = collected(world)
    text = (folder / "sensitivity.json").read_text()
    (folder / "sensitivity.json").write_text(text.replace("clearly other side", "other side"))
    record = json.loads((folder / "collected.json").read_text())
    from peregrine import files

    record["files"]["sensitivity.json"] = files.sha256(folder / "sensitivity.json")
    files.write_json(folder / "collected.json", record)
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(Exception, match="other side"):
        report(world.project, "toy", world.results, tmp_path / "reports", world.config)
