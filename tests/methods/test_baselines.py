"""The baselines of paper A as runs: stopped and resumed, in bfloat16, through the command line."""

import math

import pytest
import torch
import yaml

from peregrine.config.check import HISTORY
from peregrine.config.load import load
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors
from peregrine.methods.build import build_method
from peregrine.pretrain import checkpoint
from peregrine.pretrain.trainer import Trainer

CPU = torch.device("cpu")
VIEW = {"count": 2, "size": 8, "crop_scale": [0.5, 1.0], "flip": 0.0, "jitter": 0.5}
LOCAL = {**VIEW, "role": "local", "size": 4, "crop_scale": [0.2, 0.5]}
HEAD = {"projector_hidden": 16, "embedding": 8}
# A tiny run has 4 steps of 24 images an epoch: the queue fills in the first one, and prototypes
# are freed at the start of the second.
SWAV = {"name": "swav", "codes": 12, **HEAD, "queue": 60, "queue_epoch": 0, "frozen_epochs": 1}
DINO = {"name": "dino", "codes": 12, **HEAD, "ema_start": 0.9, "frozen_epochs": 1}
RUNS = {
    "swav": {"method": SWAV},
    "swav, multi-crop": {"method": {**SWAV, "local_views": 2}, "views": [LOCAL, VIEW]},
    "dino": {"method": DINO},
    "dino, multi-crop": {
        "method": {**DINO, "local_views": 2, "evaluate": "teacher"},
        "views": [VIEW, LOCAL],
    },
    "self_classifier": {"method": {"name": "self_classifier", "codes": 12, **HEAD}},
    "gedi": {"method": {"name": "gedi", "codes": 12, "embedding": 8}},
    "vicreg": {"method": {"name": "vicreg", **HEAD}},
}
PLAIN = [name for name in RUNS if "multi" not in name]


def train(trainer, at, epochs, save_at=None, folder=None):
    """Train on from `at`, saving a checkpoint after that many steps; the loss of every step."""
    losses, real = [], trainer.step

    def step(*arguments):
        out = real(*arguments)
        losses.append(float(out["loss"]))
        return out

    trainer.step = step
    while at.epoch < epochs:
        for done in trainer.epoch(at, {}):
            if len(losses) == save_at:
                moment = checkpoint.Position("run", 0, "code", {}, at.epoch, done)
                checkpoint.save(folder, moment, trainer.modules(), trainer.optimizers())
        at.epoch, at.step = at.epoch + 1, 0
    return losses


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_takes_the_same_steps(name, tiny_run, tiny_data, tmp_path):
    run = tiny_run(epochs=2, **RUNS[name])
    start = checkpoint.Position("run", 0, "code", {})
    for stopped_after in (3, 5):  # while prototypes are frozen, and later
        one = Trainer(run, 0, tiny_data, CPU)
        losses = train(one, checkpoint.Position("run", 0, "code", {}), 2, stopped_after, tmp_path)
        other = Trainer(run, 0, tiny_data, CPU)
        at = checkpoint.restore(tmp_path, start, other.modules(), other.optimizers())
        assert (at.epoch, at.step) == divmod(stopped_after, 4)
        assert train(other, at, 2) == losses[stopped_after:]
        ours, theirs = (each.method.state_dict() for each in (one, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert len(set(losses)) == 8


@pytest.mark.parametrize("name", PLAIN)
def test_training_in_bfloat16_stays_near_float32(name, tiny_run, tiny_data):
    results = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(tiny_run(epochs=1, precision=precision, **RUNS[name]), 0, tiny_data, CPU)
        for parameter in trainer.method.backbone.parameters():
            parameter.data.mul_(2)  # features far apart, so that the loss depends on them
        results.append(train(trainer, checkpoint.Position("run", 0, "code", {}), 1))
    assert results[0] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_trained_and_described_through_the_command_line(name, cli, tiny_config):
    study = tiny_config / "studies/one.yaml"
    data = yaml.safe_load(study.read_text())
    data["rows"] = {"it": {"label": "it", "run": {"on_collapse": "record", **RUNS[name]}}}
    study.write_text(yaml.safe_dump(data))
    project = load(tiny_config)
    cell = project.of("one")["it"]
    for step in ("pretrain", "extract"):
        code, _, error = cli(step, "--run", cell.id, "--seed", 0)
        assert code == 0, error
    folder = tiny_config.parent / "results" / "runs" / cell.id / "seed-0"
    assert read_json(folder / "outcome.json")["epoch"] == 2
    names = (folder / "history.csv").read_text().splitlines()[0].split(",")
    assert set(names) - {"epoch"} <= HISTORY
    assert len(set(names) - HISTORY) == 1
    arrays, facts = read_tensors(folder / "corrected/features.safetensors")
    codes = cell.run.method.get("codes", 0)
    assert facts["codes"] == str(codes)
    for key in ("test_features", "test_embeddings"):
        assert arrays[key].shape == (32, 8)
        assert math.isfinite(arrays[key].sum())
        assert arrays[key].std(0).max() > 0
    assert ("test_codes" in arrays) == bool(codes)
    if codes:
        assert arrays["test_usage"].shape == (codes,)
        assert arrays["test_usage"].sum() == pytest.approx(1)


def test_local_views_and_the_option_must_agree(tiny_run):
    views = [VIEW, LOCAL]
    for method, given, words in [
        ({**DINO, "local_views": 2}, [VIEW, VIEW], "takes 2 local views, `views` has 0"),
        ({**SWAV, "local_views": 0}, views, "takes 2 views, `views` makes 4"),
        ({**SWAV, "local_views": 1}, [VIEW, {**LOCAL, "count": 1, "role": "source"}], "has 0"),
        (None, [{**VIEW, "count": 1}, {**LOCAL, "count": 1}], "takes 0 local views"),  # FALCON
    ]:
        run = tiny_run(views=given, **({"method": method} if method else {}))
        with pytest.raises(UserError, match=words) as caught:
            build_method(run, 0, channels=1, train_images=96)
        assert "\n" not in str(caught.value)
