"""Scales like this one: shown beside it, never averaged with it, compared seed by seed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from small_world import STUDY, World

from peregrine import files
from peregrine.config.load import load, resolve
from peregrine.errors import UserError
from peregrine.reporting.document import document, read_study
from peregrine.reporting.document_sensitivity import printed_sensitivity
from peregrine.reporting.figures import pictures
from peregrine.reporting.report import report
from peregrine.reporting.sensitivity import coverage, is_another, side

FIGURE = {
    "id": "choices",
    "kind": "sensitivity",
    "title": "Choices",
    "caption": "One at a time.",
    "groups": {"all": ["small", "large"]},
    "panels": [{"metric": "linear/accuracy", "label": "linear, %", "percent": True}],
}
OTHER_SIDE = {0: (0.7, 0.5), 1: (0.71, 0.51), 2: (0.72, 0.52)}
"""Accuracy of small and of large: the effect is -.2 on every seed, where it is .2 at `mini`."""


@pytest.fixture
def world(tmp_path, fixed_code):
    """`mini`, where large beats small by .2 on every seed; two scales like it, nothing trained."""
    made = World(tmp_path)
    path = made.config / "studies" / "toy.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"figures": [FIGURE]}, sort_keys=False))
    made.project = load(made.config)
    variations(made)
    return made


def variations(made):
    for name, what, times in (
        ("mini-long", "twice the epochs", {"epochs": 2}),
        ("mini-fast", "twice the rate", {"optimizer.lr": 2}),
    ):
        scale = {"name": name, "like": "mini", "description": what, "times": times}
        (made.config / "scales" / f"{name}.yaml").write_text(yaml.safe_dump(scale))


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


def stated(folder):
    return json.loads((folder / "sensitivity.json").read_text())


def beside(folder, name="mini-fast"):
    (test,) = stated(folder)["claims"][0]["tests"]
    return test["variations"][name]


def printed(world):
    folder = collected(world)
    study = world.project.study("toy")
    return document(world.project, study, read_study(folder), world.config)["printed"]


def sentence(world):
    (claim,) = printed(world)["sensitivity"]["claims"]
    return claim["sentence"]


def test_without_such_scales_there_is_no_figure_and_no_file(world):
    for name in ("mini-long", "mini-fast"):
        (world.config / "scales" / f"{name}.yaml").unlink()
    folder = collected(world)
    assert world.project.study("toy").figures == ()
    assert not (folder / "sensitivity.csv").exists()
    assert not (folder / "sensitivity.json").exists()


def test_before_a_variation_has_a_value_nothing_is_printed_but_that(world, tmp_path, monkeypatch):
    made = printed(world)
    assert "sensitivity" not in made and made["figures"] == []
    assert made["left_out"]["figures"] == (
        "Left out, because no variation of scale mini has a value for them yet: Choices."
    )
    monkeypatch.chdir(Path(__file__).parents[2])
    report(world.project, "toy", world.results, tmp_path / "reports", world.config)
    page = (tmp_path / "reports/mini/toy.html").read_text()
    assert "undocumented choices are worth" not in page
    there(world, "mini-fast", {0: (0.6, 0.5)})
    made = printed(world)
    assert "sensitivity" in made and [figure["title"] for figure in made["figures"]] == ["Choices"]


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


def only(world, row, **options):
    """mini-fast changes `row` alone."""
    scale = {"name": "mini-fast", "like": "mini", "description": "twice the rate"}
    scale |= {"studies": {"toy": {"row": {row: options}}}}
    (world.config / "scales" / "mini-fast.yaml").write_text(yaml.safe_dump(scale))


def test_a_row_that_a_choice_leaves_as_it_is_is_not_drawn_again(world):
    only(world, "large", optimizer={"lr": 0.002})
    there(world, "mini-fast", {seed: (0.5 + seed / 100, 0.6) for seed in range(3)})
    folder = collected(world)
    assert set(pd.read_csv(folder / "sensitivity.csv")["row"]) == {"large"}
    drawn = pd.read_csv(folder / pictures("choices")[2])
    places = drawn[drawn["kind"] == "mean"].groupby("label")["x"].agg(list).to_dict()
    assert places == {
        "small, c = 16": ["as chosen"],
        "large, c = 4096": ["as chosen", "twice the rate"],
    }
    (_, fast) = sorted(stated(folder)["variations"], key=lambda each: each["name"] == "mini-fast")
    assert list(fast["rows"]) == ["large"] and fast["same"] == {"small": "small, c = 16"}
    left = "Left as it is, so not compared: small, c = 16"
    both = stated(folder)["variations"]
    assert f"{left} (twice the rate)." in coverage(both) and f"{left}." in coverage([fast])
    assert coverage([fast], ["large"]) == []
    # The test has a changed row, and counts.
    assert beside(folder)["change"]["effect"] == pytest.approx(0.6 - 0.51 - 0.2)


def untrained(study, scale, **over):
    data = study.model_dump(mode="json")
    data["rows"]["small"]["run"] = {"epochs": 0, "method": {"codes": 16}}
    plan = type(study).model_validate(data)
    run = {**over}
    return {c.row: c for c in resolve(plan, scale.model_copy(update={"run": run}), {})}


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"optimizer": {"lr": 0.5}}, False),
        ({"batch_size": 64}, False),
        ({"views": [{"brightness": 0.8}, {"role": "target"}]}, False),
        ({"views": [{"size": 40}]}, True),
        ({"backbone": {"width": 16}}, True),
        ({"method": {"embedding": 16}}, True),
        ({"dataset": {"name": "toy", "train_per_class": 5}}, True),
        ({"epochs": 1}, True),
    ],
)
def test_an_untrained_net_is_another_where_the_choice_made_it(world, change, another):
    """Its id has the rate, but no rate has touched it."""
    study, scale = world.project.study("toy"), world.project.scale
    here, there = untrained(study, scale), untrained(study, scale, **change)
    if "epochs" in change:
        there = untrained(study, scale)
        run = there["small"].run.model_copy(update=change)
        there = {
            "small": replace(there["small"], run=run, id="trained"),
            **{"large": here["large"]},
        }
    else:
        assert here["small"].id != there["small"].id and here["large"].id != there["large"].id
        assert is_another(here["large"], there["large"])  # trained, so by its id alone
    assert is_another(here["small"], there["small"]) == another
    assert not is_another(here["small"], here["small"])


def test_the_variations_of_cpu_leave_as_they_are_what_they_leave(monkeypatch):
    """No training, no rate, batch, view or epoch; SwAV has symmetric views already."""
    root = Path(__file__).parents[2] / "config"
    base = load(root, scale="cpu")
    same = {}
    for name in base.variations:
        for study in base.studies:
            here, there = base.of(study), load(root, scale=name).of(study)
            same[name, study] = [r for r in there if not is_another(here[r], there[r])]
    assert {key for key, rows in same.items() if not rows} == {
        *((name, "feature_augmentation") for name in base.variations),
        ("cpu-half-width", "falcon"),
        ("cpu-double-width", "falcon"),
    }
    assert same["cpu-symmetric-views", "falcon"] == ["untrained", "swav"]
    for name in ("cpu-half-rate", "cpu-double-batch", "cpu-double-epochs", "cpu-weak-views"):
        assert same[name, "falcon"] == ["untrained"]


def test_a_change_is_paired_over_the_seeds_that_both_have(world):
    """.2 on each seed here; .4 and .39 there, so +.2 and +.19: mean .195, sd .01 / sqrt 2."""
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    found = beside(collected(world), "mini-long")
    assert found["values"] == {"0": 0.4, "1": 0.39} and found["effect"] == pytest.approx(0.395)
    # t(.975, 1) = tan(.475 pi) = 12.7062; half-width t sd / sqrt 2 = t .005.
    half = math.tan(0.475 * math.pi) * 0.005
    change = found["change"]
    assert (change["effect"], change["seeds"]) == (pytest.approx(0.195), 2)
    assert change["interval"] == pytest.approx([0.195 - half, 0.195 + half], abs=2e-6)
    assert (found["turned"], found["apart"]) == (False, True)
    # On 0, 1 and 2 here the effect is .2 exactly, there its interval holds neither 0 nor more.
    assert found["clear"]


def test_what_turns_is_named_with_both_sizes_and_what_cannot_be_told(world):
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    assert sentence(world) == (
        "Supported here: of 1 test that supports it 1 was repeated, and none changes sides."
        " 1 of 1 test with a number here was repeated under 1 variation: 1 comparison of 2 shared"
        " seeds, no effect changes sides. The interval of every change leaves 0 out; the largest is"
        " +19.50 points, large against small, with twice the epochs."
    )
    # One seed has no interval: -.1 there, .2 here.
    there(world, "mini-fast", {0: (0.6, 0.5)})
    assert sentence(world) == (
        "Supported here: of 1 test that supports it 1 was repeated, and 1 changes sides."
        " 1 of 1 test with a number here was repeated under 2 variations: 2 comparisons of 1 to 2"
        " shared seeds, 1 changes sides, which 1 seed cannot tell (?): large against small (+20.00"
        " points here on these seeds; \u221210.00? with twice the rate). 1 of 2 changes cannot be"
        " told from 0 by these seeds; the largest is \u221230.00 points, large against small, with"
        " twice the rate."
    )
    there(world, "mini-fast", OTHER_SIDE)
    said = sentence(world)
    assert (
        "1 changes sides: large against small (+20.00 points here on these seeds; \u221220.00"
        in said
    )
    assert "within noise" not in json.dumps(printed(world))


def test_an_effect_that_nearly_goes_is_a_change_and_not_a_side_kept(world):
    """+20 points to +.1 on average, over seeds .1 apart: no other side, but the change is said."""
    there(world, "mini-fast", {0: (0.5, 0.4), 1: (0.5, 0.501), 2: (0.5, 0.602)})
    found = beside(collected(world))
    assert (found["effect"], found["change"]["effect"]) == (0.001, -0.199)
    assert not found["turned"] and not found["clear"]
    # sd .101; t(.975, 2) = 4.30265: -.199 +- .2509 holds 0.
    assert found["change"]["interval"] == pytest.approx([-0.4499, 0.0519], abs=1e-4)
    assert not found["apart"]
    said = sentence(world)
    assert "1 of 1 change cannot be told from 0 by these seeds; the largest is \u221219.90" in said
    assert "keep" not in said


def test_the_table_has_effect_and_change_of_every_variation(world):
    there(world, "mini-fast", {0: (0.6, 0.5)})
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    section = printed(world)["sensitivity"]
    (part,) = section["claims"][0]["parts"]
    assert part["columns"] == ["twice the rate", "twice the epochs"]
    (row,) = part["rows"]
    assert (row["label"], row["here"]) == ("large against small", "+20.00 points")
    fast, long = row["cells"]
    change = "\u0394 \u221230.00, 1 seed"
    assert fast == {"effect": "\u221210.00?", "change": change, "turned": True}
    # 12.7062 * .5 points; two of the three seeds that the scale asks for.
    change = "\u0394 +19.50 \u00b1 6.35, 2 seeds"
    assert long == {"effect": "+39.50", "change": change, "turned": False}
    assert section["idle"].startswith("Whether T2 depend on them is not known: no test of them")


def test_more_variations_than_fit_stand_in_parts():
    before = {"effect": 0.2, "interval": None, "seeds": 2}
    test = {"label": "a - b", "metric": "kmeans/ami", "kind": "difference", "threshold": 0.0}
    change = {"effect": 0.1, "interval": [0.0, 0.2], "seeds": 2}
    it = {"effect": 0.3, "interval": None, "seeds": 2, "change": change, "as_chosen": before}
    it |= {"turned": False, "apart": False, "clear": False}
    names = [f"v{i}" for i in range(7)]
    test |= {"effect": 0.2, "seeds": 2, "variations": dict.fromkeys(names[1:], it)}
    rows = {"x": {"label": "x", "valued": [0, 1], "lost": []}}
    each = [
        {"name": n, "description": f"{n}!", "seeds": [0, 1], "rows": rows, "same": {}}
        for n in names
    ]
    claims = [{"id": "A", "measured": 3, "tests": [test], "lost": []}]
    judged = [{"id": "A", "verdict": "undecided @mini", "tests": []}]
    made = printed_sensitivity({"variations": each, "claims": claims, "orders": []}, judged)
    parts = made["claims"][0]["parts"]
    assert [part["columns"] for part in parts] == [["v1!", "v2!", "v3!", "v4!", "v5!"], ["v6!"]]
    assert parts[1]["rows"][0]["label"] == "a \u2013 b"
    assert parts[1]["rows"][0]["cells"][0]["change"] == "\u0394 +0.100 \u00b1 0.100"
    said = made["claims"][0]["sentence"]
    assert said.startswith("1 of 3 tests with a number here was repeated under 6 variations: 6")
    assert "6 of 6 changes cannot be told" in said


def test_of_many_that_turn_the_told_ones_come_first():
    def test(label, told):
        change = {"effect": -0.3, "interval": [-0.4, -0.2] if told else None, "seeds": 1 + told}
        it = {"effect": -0.1, "interval": None, "seeds": 1 + told, "change": change}
        it["as_chosen"] = {"effect": 0.2, "interval": None, "seeds": 1 + told}
        it |= {"turned": True, "apart": told, "clear": told}
        given = {"label": label, "metric": "kmeans/ami", "kind": "difference", "threshold": 0.0}
        return given | {"effect": 0.2, "seeds": 2, "variations": {"v": it}}

    rows = {"x": {"label": "x", "valued": [0], "lost": []}}
    each = {"name": "v", "description": "V", "seeds": [0, 1], "rows": rows, "same": {}}
    tests = [test(label, label == "e") for label in "abcde"]
    claim = {"id": "A", "measured": 5, "tests": tests, "lost": []}
    found = {"variations": [each], "claims": [claim], "orders": []}
    claims = [{"id": "A", "verdict": "undecided @mini", "tests": []}]
    (made,) = printed_sensitivity(found, claims)["claims"]
    assert (
        "5 change sides, which in 4 of these 1 seed cannot tell (?): e (+0.200 here on these seeds;"
        " \u22120.100 with V); a (+0.200 here on these seeds; \u22120.100? with V); b (+0.200 here"
        " on these seeds; \u22120.100? with V); and 2 more tests, bold below."
    ) in made["sentence"]


def test_first_it_says_whether_what_decides_the_verdict_changes_sides():
    def test(label, *turned):
        change = {"effect": -0.3, "interval": None, "seeds": 1}
        it = {"effect": -0.1, "interval": None, "seeds": 1, "change": change}
        it["as_chosen"] = {"effect": 0.2, "interval": None, "seeds": 1}
        there = {f"v{i}": it | {"turned": t, "apart": 0, "clear": 0} for i, t in enumerate(turned)}
        given = {"label": label, "metric": "kmeans/ami", "kind": "difference", "threshold": 0.0}
        return given | {"effect": 0.2, "seeds": 1, "variations": there}

    rows = {"x": {"label": "x", "valued": [0], "lost": []}}
    each = [
        {"name": v, "description": v, "seeds": [0], "rows": rows, "same": {}} for v in ("v0", "v1")
    ]
    verdicts = dict.fromkeys("abe", "supported") | {"c": "contradicted", "d": "undecided"}
    tests = [{"label": k, "metric": "kmeans/ami", "verdict": v} for k, v in verdicts.items()]
    # `e` was not repeated, `d` decides nothing.
    told = [test("a", False, True), test("b", False, False), test("c", False), test("d", True)]

    def sentence_of(told):
        claim = {"id": "A", "measured": 5, "tests": told, "lost": []}
        found = {"variations": each, "claims": [claim], "orders": []}
        claims = [{"id": "A", "verdict": "mixed @mini", "tests": tests}]
        return printed_sensitivity(found, claims)["claims"][0]["sentence"]

    supporting = "Mixed here: of 3 tests that support it 2 were repeated, and 1 changes sides;"
    assert sentence_of(told).startswith(
        f"{supporting} of 1 test that contradicts it 1 was repeated, and none changes sides. 4 of 5"
    )
    del told[2]  # `c`
    assert sentence_of(told).startswith(
        f"{supporting} of 1 test that contradicts it none was repeated. 3 of 5"
    )


@pytest.mark.parametrize(
    ("metric", "kind", "threshold", "effect", "where"),
    [
        ("kmeans/ami", "difference", 0.0, 0.1, 1),
        ("kmeans/ami", "difference", 0.0, 0.0004, 0),  # prints as +0.000
        ("linear/accuracy", "difference", 0.0, 0.0004, 1),  # as +0.04 points
        ("linear/accuracy", "difference", 0.0, 0.00004, 0),
        ("kmeans/ami", "difference", -0.005, -0.006, -1),
        ("kmeans/ami", "below", 0.1, 0.05, -1),
        ("kmeans/ami", "equivalent", 0.005, -0.004, 1),
        ("kmeans/ami", "equivalent", 0.005, -0.006, -1),
    ],
)
def test_sides_of_a_threshold(metric, kind, threshold, effect, where):
    assert side(SimpleNamespace(metric=metric, kind=kind, threshold=threshold), effect) == where


def test_sides_are_those_of_the_seeds_that_both_have(world):
    """Here +.2 on two seeds and -.1 on the one that was repeated; there -.3 on that one."""
    world.seed("large", 0, 0.4)
    there(world, "mini-fast", {0: (0.6, 0.3)})
    found = beside(collected(world))
    small = {name: found["as_chosen"][name] for name in ("effect", "seeds")}
    assert small == {"effect": -0.1, "seeds": 1}
    assert found["change"]["effect"] == pytest.approx(-0.2) and not found["turned"]
    assert stated(collected(world))["claims"][0]["tests"][0]["effect"] == pytest.approx(0.1)
    (part,) = printed(world)["sensitivity"]["claims"][0]["parts"]
    assert part["rows"][0]["here"] == "+10.00 points"
    assert part["rows"][0]["shared"] == "1 seed: \u221210.00"
    there(world, "mini-fast", {0: (0.3, 0.6)})
    assert beside(collected(world))["turned"]
    assert "large against small (\u221210.00 points here on these seeds; +30.00? with" in sentence(
        world
    )


def test_what_the_choice_does_not_concern_does_not_count(world):
    """A scale that changes nothing has the very runs of this one."""
    for name in ("mini-long", "mini-fast"):
        path = world.config / "scales" / f"{name}.yaml"
        path.write_text(path.read_text().partition("times")[0])
    assert "sensitivity" not in printed(world)
    assert stated(collected(world))["claims"][0]["tests"] == []


def fail(world, scale, row, seed, status="collapsed"):
    here, world.project = world.project, load(world.config, scale=scale)
    world.ended(row, seed, status)
    world.project = here


def test_seeds_that_fail_there_are_named_and_whether_they_count(world):
    there(world, "mini-fast", OTHER_SIDE)
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    fail(world, "mini-long", "large", 1)
    # It left its evaluations, so it is in the effect, as a collapsed seed is everywhere.
    assert beside(collected(world), "mini-long")["values"] == {"0": 0.4, "1": 0.39}
    assert sentence(world).endswith(
        "Failed seeds, counted as they ended where they left a value:"
        " large, c = 4096, with twice the epochs (1)."
    )
    here, world.project = world.project, load(world.config, scale="mini-long")
    world.drop("large", 1)
    world.outcome("large", 1, "nan")
    world.project = here
    assert beside(collected(world), "mini-long")["values"] == {"0": 0.4}
    assert sentence(world).endswith(
        "Failed seeds, in no number: large, c = 4096, with twice the epochs (1)."
    )


def test_mixed_seeds_are_in_no_number(world):
    there(world, "mini-fast", OTHER_SIDE)
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    here, world.project = world.project, load(world.config, scale="mini-long")
    world.manifest("large", 1, code="then")
    world.project = here
    (test,) = stated(collected(world))["claims"][0]["tests"]
    assert list(test["variations"]) == ["mini-fast"]
    assert sentence(world).endswith(
        "Mixed seeds, in no number: large, c = 4096, with twice the epochs."
    )


def test_missing_seeds_of_variations_are_said_in_report_and_figure(world):
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    said = printed(world)["sensitivity"]["coverage"]
    # Three seeds of two rows; of each the last is not there.
    assert said == [
        "No result yet with twice the rate.",
        "Of every row seed 2 missing: twice the epochs.",
    ]
    picture = (collected(world) / pictures("choices")[0]).read_text()
    for word in ("No result yet with twice the rate.", "Of every row seed 2 missing: twice the"):
        assert word in picture
    # A seed that the scale itself lacks is not made up for by one of a variation.
    world.drop("small", 0)
    assert (
        "As chosen, small, c = 16: 2 of 3 seeds"
        in (collected(world) / pictures("choices")[0]).read_text()
    )


def test_an_effect_of_nothing_but_rounding_is_on_no_side(world, tmp_path, monkeypatch):
    """.4328 - .4265 + .4460 - .4523 is 0 but for the last bits; the notebook sees six decimals."""
    there(world, "mini-fast", {0: (0.4265, 0.4328), 1: (0.4523, 0.4460)})
    found = beside(collected(world))
    assert (found["effect"], found["turned"], found["clear"]) == (0, False, False)
    monkeypatch.chdir(Path(__file__).parents[2])
    report(world.project, "toy", world.results, tmp_path / "reports", world.config)


@pytest.fixture
def four_rows(world):
    """At mini small < mid < wide < large; with twice the rate mid is above wide and large."""
    rows = {
        **STUDY["rows"],
        "mid": {"label": "mid", "run": {"method": {"codes": 64}}},
        "wide": {"label": "wide", "run": {"method": {"codes": 256}}},
    }
    figure = FIGURE | {"groups": {"all": ["small", "large", "mid", "wide"]}}
    path = world.config / "studies" / "toy.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"rows": rows, "figures": [figure]}, sort_keys=False))
    world.project = load(world.config)
    world.seed("mid", 0, 0.6)
    world.seed("wide", 0, 0.65)
    world.project = load(world.config, scale="mini-fast")
    for row, value in {"small": 0.5, "mid": 0.7, "wide": 0.6, "large": 0.65}.items():
        world.seed(row, 0, value)
    world.seed("mid", 1, 0.1)  # no such seed at mini, so it does not count
    return world


def test_the_order_of_rows_beside_that_as_chosen(four_rows):
    """2 of 6 pairs turn: (4 - 2) / 6. Without a row there are three, which have no order."""
    (order,) = stated(collected(four_rows))["orders"]
    assert order["variations"] == {"mini-fast": {"rows": 4, "tau": 0.333333}}
    assert printed(four_rows)["sensitivity"]["orders"] == [
        "Order of rows by linear, %, beside that as chosen, over the seeds that both have"
        " (Kendall's tau-b, 1 the same): 0.33 with twice the rate (4 rows)."
    ]
    four_rows.drop("wide", 0)
    assert stated(collected(four_rows))["orders"] == []


def test_the_notebook_recomputes_the_order(four_rows, tmp_path, monkeypatch):
    folder = collected(four_rows)
    monkeypatch.chdir(Path(__file__).parents[2])
    where = four_rows.project, "toy", four_rows.results, tmp_path / "reports", four_rows.config
    report(*where)
    forged = stated(folder)
    forged["orders"][0]["variations"]["mini-fast"]["tau"] = 0.5
    (folder / "sensitivity.json").write_text(json.dumps(forged))
    record = json.loads((folder / "collected.json").read_text())
    record["files"]["sensitivity.json"] = files.sha256(folder / "sensitivity.json")
    files.write_json(folder / "collected.json", record)
    with pytest.raises(UserError, match="order of rows, linear, %, mini-fast: 0.33"):
        report(*where)


def test_two_scales_of_one_description_are_refused(world):
    for name in ("mini-long", "mini-fast"):
        path = world.config / "scales" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"description": "d"}))
    with pytest.raises(UserError, match="mini-fast and mini-long have one description"):
        collected(world)


def test_the_report_says_so_and_the_notebook_recomputes_it(world, tmp_path, monkeypatch):
    there(world, "mini-fast", OTHER_SIDE)
    there(world, "mini-long", {0: (0.4, 0.8), 1: (0.42, 0.81)})
    collected(world)
    monkeypatch.chdir(Path(__file__).parents[2])
    report(world.project, "toy", world.results, tmp_path / "reports", world.config)
    page = (tmp_path / "reports/mini/toy.html").read_text()
    assert "What the undocumented choices are worth" in page
    assert "2 comparisons: all as sensitivity.json says" in page
    assert (tmp_path / "reports/mini/toy.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("turned",), False, "turned is False, not True"),
        (("apart",), False, "apart is False, not True"),
        (("effect",), -0.3, "the effect is not that of its seeds"),
        (("change", "effect"), -0.3, "another change"),
        (("values", "0"), -0.3, "the effect is not that of its seeds"),
    ],
)
def test_a_forged_number_stops_the_notebook(world, tmp_path, monkeypatch, key, value, said):
    there(world, "mini-fast", OTHER_SIDE)
    folder = collected(world)
    forged = stated(folder)
    place = forged["claims"][0]["tests"][0]["variations"]["mini-fast"]
    for name in key[:-1]:
        place = place[name]
    assert place[key[-1]] != value
    place[key[-1]] = value
    (folder / "sensitivity.json").write_text(json.dumps(forged))
    record = json.loads((folder / "collected.json").read_text())
    record["files"]["sensitivity.json"] = files.sha256(folder / "sensitivity.json")
    files.write_json(folder / "collected.json", record)
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError, match=said):
        report(world.project, "toy", world.results, tmp_path / "reports", world.config)
