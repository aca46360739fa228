"""The table of how each row was trained: from resolved runs, and the same numbers as training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peregrine import files
from peregrine.config.load import Cell, load
from peregrine.config.models import Run
from peregrine.reporting.report import report
from peregrine.reporting.stands_in import stands_in
from peregrine.reporting.trained import UNKNOWN, images, steps, trained, views_by_name

CONFIG = Path(__file__).parents[2] / "config"
NOWHERE = Path("no-such-folder")
BOTH = ("falcon", "feature_augmentation")


def project(scale: str):
    return load(CONFIG, scale=scale, studies=BOTH)


def by_label(table: dict) -> dict[str, dict[str, str]]:
    return {
        row["label"]: dict(zip(table["columns"], row["cells"], strict=True))
        for row in table["rows"]
        if not row["same_as"]
    }


def test_the_cpu_scale_of_falcon_shows_batches_steps_rates_and_codes():
    """10,000 images: 156 whole batches of 64 or 39 of 256, 20 epochs; rates x batch / 256."""
    table = trained(project("cpu").of("falcon"), CONFIG, NOWHERE)
    rows = by_label(table)
    shown = ("batch", "steps", "learning rate", "codes c", "embedding", "EMA start", "views")
    assert tuple(table["columns"]) == ("run", *shown)
    assert [rows["FALCON, c = 16384"][key] for key in shown] == [
        "64", f"{156 * 20:,}", f"{2e-4 / 4:g}", "16384", "32", UNKNOWN, "asymmetric",
    ]  # fmt: skip
    assert [rows["DINO"][key] for key in shown] == [
        "256", f"{39 * 20:,}", "0.001", "4096", "64", "0.97", "asymmetric",
    ]  # fmt: skip
    assert [rows["SwAV"][key] for key in shown] == [
        "256", "780", "0.0005", "3000", "64", UNKNOWN, "symmetric",
    ]  # fmt: skip
    assert rows["Barlow Twins"]["codes c"] == UNKNOWN
    assert table["shared"] == (
        "ResNet-8, width 32; CIFAR-10, 10,000 images \u00d7 20 epochs; optimiser Adam;"
        " weight decay 0.0001"
    )
    assert table["untrained"] == "untrained net"


def test_rows_that_share_a_run_are_marked_and_no_other():
    cells = project("cpu").of("falcon")
    table = trained(cells, CONFIG, NOWHERE)
    same = {row["label"]: row["same_as"] for row in table["rows"] if row["same_as"]}
    assert same == {
        "FALCON, L2, forward, one-sided": "FALCON, c = 16384",
        "FALCON, tanh, reverse, symmetric": "FALCON as released, c = 16384",
    }
    assert len(table["rows"]) == len(cells) - 1
    runs = [row["run"] for row in by_label(table).values()]
    assert len(set(runs)) == len(runs) == len(cells) - 3
    assert cells["dino"].id.endswith(by_label(table)["DINO"]["run"])


def test_rows_of_the_other_study_differ_in_few_things():
    table = trained(project("cpu").of("feature_augmentation"), CONFIG, NOWHERE)
    assert table["columns"] == ["run", "optimiser", "learning rate", "EMA start", "views"]
    assert "batch 256; steps 390" in table["shared"]
    rows = by_label(table)
    weak = rows["BYOL, weak views"]
    assert (weak["EMA start"], weak["views"]) == ("0.97", "weak-weak")
    assert (weak["optimiser"], weak["learning rate"]) == ("Adam", "0.002")
    assert rows["InfoNCE"]["EMA start"] == UNKNOWN
    # The control of the free loss has four times the rate of the rows beside it.
    for form, rate in (("mean", "0.1"), ("free loss", "0.1"), ("mean, learning rate x 4", "0.4")):
        row = rows[f"BYOL, NN, K = 4, {form}"]
        assert (row["optimiser"], row["learning rate"]) == ("SGD", rate)


def test_paper_scale_shows_nets_data_optimisers_and_accumulation():
    rows = by_label(trained(project("paper").of("falcon"), CONFIG, NOWHERE))
    svhn = rows["Self-Classifier, SVHN"]
    assert svhn["images \u00d7 epochs"] == "SVHN, 73,257 \u00d7 100"
    assert svhn["steps"] == f"{73_257 // 256 * 100:,}"
    assert (svhn["optimiser"], svhn["weight decay"]) == ("LARS", "1e-06")
    assert rows["SwAV, ResNet-18, CIFAR-10"]["backbone"] == "ResNet-18"
    assert rows["DINO"]["EMA start"] == "0.9995"
    rows = by_label(trained(project("paper").of("feature_augmentation"), CONFIG, NOWHERE))
    cut = rows["BYOL, batch 512, as 4 x 128, cached"]
    assert (cut["batch"], cut["steps"]) == ("512 as 4 \u00d7 128, cached", f"{97 * 100:,}")
    assert cut["learning rate"] == f"{1e-3 * 2:g}"


def test_the_box_on_what_stands_in_has_the_momentum_of_dinos_teacher():
    """It is .9995 in the released code; without an option `target`, an EMA is always used."""
    cpu = project("cpu")
    facts = {what: rest for what, *rest in stands_in(cpu, cpu.study("falcon"), CONFIG)}
    assert facts["EMA at the start"] == ["0.9995", "0.97"]
    byol = {what: rest for what, *rest in stands_in(cpu, cpu.study("feature_augmentation"), CONFIG)}
    assert byol["EMA at the start"] == ["0.99", "0.97"]


def run(**over) -> Run:
    data = {"name": "cifar10"} | over.pop("dataset", {})
    given = {"method": {"name": "falcon"}, "views": [{}], "epochs": 3, "batch_size": 64}
    return Run(**given | over, dataset=data)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ({}, 50_000),
        ({"train_per_class": 1000}, 10_000),
        ({"validation_per_class": 500}, 45_000),
        ({"train_per_class": 4500, "validation_per_class": 500}, 45_000),
        # 5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50: config/studies/falcon.yaml
        ({"imbalance": 100}, 12_406),
        ({"name": "svhn"}, 73_257),
        ({"name": "svhn", "imbalance": 10}, None),  # its smallest class is not known here
        ({"name": "nobody-knows"}, None),
    ],
)
def test_images_of_a_run(data, count):
    of = run(dataset=data)
    assert images(of, NOWHERE) == count
    assert steps(of, count) == (None if count is None else count // 64 * 3)


def test_images_of_a_data_set_that_is_only_known_once_prepared(tmp_path, monkeypatch):
    from peregrine.data.sources import SOURCES

    monkeypatch.setitem(SOURCES, "stripes", SOURCES["digits"])
    assert images(run(dataset={"name": "stripes"}), tmp_path) is None
    files.write_json(tmp_path / "data" / "stripes.json", {"counts": {"train": 600}})
    assert images(run(dataset={"name": "stripes"}), tmp_path) == 600


def test_views_are_named_by_what_they_are_and_described_where_no_preset_is_like_them():
    presets = views_by_name(CONFIG)
    assert len(set(presets.values())) == len(presets)  # so that a name says which
    own = run(views=[{"count": 2, "size": 24}, {"size": 12}])
    cells = {
        "a": Cell("toy", "a", "A", own, "x-1"),
        "b": Cell("toy", "b", "B", run(views=presets["symmetric"]), "x-2"),
    }
    rows = by_label(trained(cells, CONFIG, NOWHERE))
    assert rows["A"]["views"] == "2 of 24 px, 1 of 12 px"
    assert rows["B"]["views"] == "symmetric"


def test_one_row_has_nothing_to_differ_in_and_none_nothing_to_say():
    one = {"a": Cell("toy", "a", "A", run(), "x-1")}
    table = trained(one, CONFIG, NOWHERE)
    assert (table["columns"], table["rows"][0]["cells"]) == (["run"], ["1"])
    assert table["shared"].startswith("ResNet-8, width 128; CIFAR-10, 50,000 images")
    twice = trained(one | {"b": replace(one["a"], row="b", label="B")}, CONFIG, NOWHERE)
    assert [(row["cells"], row["same_as"]) for row in twice["rows"]] == [(["1"], ""), ([], "A")]
    untrained = {"a": replace(one["a"], run=run(epochs=0))}
    table = trained(untrained, CONFIG, NOWHERE)
    assert table == {"shared": "", "columns": ["run"], "rows": [], "untrained": "A"}


def test_it_stands_in_every_form_of_the_report(collected, tmp_path):
    report(collected.project, "toy", collected.results, tmp_path, collected.config)
    made = tmp_path / "paper"
    printed = json.loads((made / "toy.json").read_text())["printed"]["trained"]
    assert printed["columns"] == ["run", "codes c"]
    assert {row["label"]: row["cells"][1] for row in printed["rows"]} == {
        "Toy, c = 16": "16", "Toy, c = 64": "64", "Toy, c = 256": "256", "Toy <mixed> & odd": "32",
    }  # fmt: skip
    page = (made / "toy.html").read_text()
    assert "How each row was trained" in page and f"For all rows: {printed['shared']}." in page
    assert "1 of 32 px" in printed["shared"]
