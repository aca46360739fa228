"""Claim A1 can fail: FALCON broken on purpose, trained on real digits, judged by the claim's own
tests and thresholds.

What to expect is derived, not captured. Without its prior term the loss is 0 at every one-hot
assignment that two views share, a few codes for all images among them, and nothing asks for more:
cluster collapse. BatchNorm still gives every coordinate of a batch variance 1, so images cannot all
fall on one point. Without BatchNorm the untrained net's features share one direction, and so the
code: where all p_i are one p, the prior's gradient to the scores, (p - 1/c) / n, is the same for
every image, so it moves all of them and parts none.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from peregrine.config.load import build_run, load, read_yaml
from peregrine.config.models import DatasetSpec
from peregrine.data import prepare
from peregrine.diagnostics.collapse import collapse_report
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.trainer import Trainer
from peregrine.reporting.claims import judge
from peregrine.reporting.records import Evidence, Measurement, Records, SeedRun

CONFIG = Path(__file__).parents[2] / "config"
PART = {"name": "digits", "train_per_class": 30}
CODES, SEEDS = 64, (0, 1, 2)
FORMS = {
    "healthy": {},
    "no-prior": {"prior_weight": 0.0},
    "no-batch-norm": {"batch_norm": False},
}
EPOCHS = {"healthy": 30, "no-prior": 60, "no-batch-norm": 10}  # of 9 steps
KINDS = ("representation", "dimensional", "cluster", "intracluster")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = prepare.prepare("digits", tmp_path_factory.mktemp("digits"))
    return prepare.load(path, DatasetSpec(**PART))


def trained(form, seed, data):
    """The collapse report of the test set."""
    layer = {
        "dataset": PART,
        "backbone": {"name": "resnet8", "width": 8},
        "method": {"name": "falcon", "codes": CODES, "embedding": 16} | FORMS[form],
        "views": read_yaml(CONFIG / "presets.yaml")["views"]["digits"],
        "batch_size": 32,
        "epochs": EPOCHS[form],
        "on_collapse": "record",
        "optimizer": {"lr": 0.05, "weight_decay": 1e-4, "warmup_epochs": 1},
    }
    run = build_run([layer], form)
    trainer, at = Trainer(run, seed, data, torch.device("cpu")), Position("", seed, "", {})
    for at.epoch in range(run.epochs):
        for _ in trainer.epoch(at, {}):
            pass
    trainer.method.eval()
    with torch.no_grad():
        images = torch.from_numpy(data.images["test"]) / 255
        seen = trainer.method.describe(trainer.normalised(images))
    codes = seen.scores.argmax(1).numpy()
    return collapse_report(seen.features.numpy(), seen.embeddings.numpy(), codes, None, CODES)


@pytest.fixture(scope="module")
def reports(digits):
    return {(form, seed): trained(form, seed, digits) for form in FORMS for seed in SEEDS}


@pytest.fixture(scope="module")
def verdicts(reports):
    """(form, kind of collapse) -> verdict of claim A1's test that there is none."""
    project = load(CONFIG)
    study = project.studies["falcon"]
    (claim,) = [each for each in study.claims if each.id == "A1"]
    tests = [test for test in claim.tests if "falcon-c4096" in test.rows]
    assert [kind in test.label for kind, test in zip(KINDS, tests, strict=True)] == [True] * 4
    out = {}
    for form in FORMS:
        measured = [
            Measurement("falcon", form, form, form, seed, "corrected", "standard", name, value)
            for seed in SEEDS
            for name, value in (
                (f"collapse/{key}", value) for key, value in reports[form, seed].items()
            )
        ]
        runs = [SeedRun(form, form, form, s, "finished", 30, "", "", "cpu", "", "") for s in SEEDS]
        cells = {form: SimpleNamespace(id=form, label=form)}
        found = Evidence(study, cells, Records(measured, runs), {}, "digits", "standard")
        # Each by itself: the correction for many tests asks for more than three tiny runs have.
        for kind, test in zip(KINDS, tests, strict=True):
            asked = test.model_copy(update={"rows": (form,)})
            (result,) = judge(claim.model_copy(update={"tests": (asked,)}), found)["tests"]
            out[form, kind] = result["verdict"]
    return out


def test_a_healthy_falcon_is_not_contradicted(verdicts):
    assert "contradicted" not in {verdicts["healthy", kind] for kind in KINDS}


def test_without_its_prior_the_images_gather_on_few_codes(verdicts, reports):
    assert verdicts["no-prior", "cluster"] == "contradicted"
    assert verdicts["no-prior", "representation"] != "contradicted"  # BatchNorm prevents it
    for seed in SEEDS:
        broken, whole = (reports[form, seed]["codes/occupied"] for form in ("no-prior", "healthy"))
        assert broken < whole / 2


def test_without_batch_norm_all_images_share_one_code(verdicts, reports):
    assert verdicts["no-batch-norm", "cluster"] == "contradicted"
    assert [reports["no-batch-norm", seed]["codes/occupied"] for seed in SEEDS] == [1, 1, 1]
    assert [reports["no-batch-norm", seed]["codes/usage_entropy"] for seed in SEEDS] == [0, 0, 0]
