"""The loop: what is trained, with which rates, on which images, and how a run ends."""

import csv
import json
import math
import random

import numpy as np
import pytest
import torch

from peregrine.config.fingerprint import fingerprint, parts
from peregrine.config.identity import run_id
from peregrine.data.views import make_views
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors, sha256
from peregrine.methods.base import Progress
from peregrine.methods.build import build_method
from peregrine.pretrain import trainer
from peregrine.pretrain.loop import pretrain
from peregrine.pretrain.monitor import monitors
from peregrine.pretrain.trainer import Trainer
from peregrine.streams import generator

CPU = torch.device("cpu")
STEPS = 4  # 96 images, batch 24


def history(folder):
    return list(csv.DictReader((folder / "history.csv").open()))


def weights(folder, name="backbone"):
    return read_tensors(folder / f"{name}.safetensors")[0]


@pytest.fixture
def steps(monkeypatch):
    """What every optimiser step saw and gave: (rows, progress, learning rates, terms)."""
    seen, real = [], Trainer.step

    def step(self, rows, images, now, index):
        out = real(self, rows, images, now, index)
        rates = [group["lr"] for o in self.optimizers().values() for group in o.param_groups]
        seen.append((rows.tolist(), now, rates, {k: float(v) for k, v in out.items()}))
        return out

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def test_learning_rates_are_those_of_the_schedule(tiny_run, tiny_data, steps, tmp_path, capsys):
    """Base .016 * 24 / 256 = .0015 after 1.5 epochs = 6 of 16 steps, from 3e-5; then the cosine:
    step 7, 11, 15 are 1, 5, 9 tenths of its way."""
    options = {"lr": 0.016, "warmup_epochs": 1.5, "warmup_start": 3e-5}
    run = tiny_run(optimizer=options, probe={"lr": 0.32})
    pretrain(run, 0, tiny_data, tmp_path, CPU)
    warm_up = [3e-5 + 0.00147 * step / 6 for step in range(6)]
    tenths = [1, 0.97552826, 0.9045085, 0.79389263, 0.6545085, 0.5, 0.3454915, 0.20610737]
    expected = warm_up + [0.0015 * share for share in (*tenths, 0.0954915, 0.02447174)]
    assert [rates[0] for _, _, rates, _ in steps] == pytest.approx(expected, rel=1e-6)
    # The probe has the same schedule with a peak of its own: .32 * 24 / 256 = .03.
    assert [rates[1] for _, _, rates, _ in steps][6:] == pytest.approx(
        [rate * 20 for rate in expected[6:]], rel=1e-6
    )
    last = [float(row["lr"]) for row in history(tmp_path)]
    assert last == pytest.approx([expected[3], expected[7], expected[11], expected[15]], rel=1e-6)
    assert "effective learning rate 0.0015 (lr 0.016 x batch 24 / 256)" in capsys.readouterr().out
    assert read_json(tmp_path / "manifest.json")["effective_lr"] == pytest.approx(0.0015)


def test_every_epoch_has_its_own_order_of_all_images(tiny_run, tiny_data, steps, tmp_path):
    pretrain(tiny_run(batch_size=36, epochs=3), 0, tiny_data, tmp_path, CPU)
    assert len(steps) == 3 * 2  # 96 = 2 * 36 + 24: the rest is left out
    assert [(now.epoch, now.step, now.total_steps) for _, now, _, _ in steps] == [
        (step // 2, step, 6) for step in range(6)
    ]
    orders = [steps[2 * e][0] + steps[2 * e + 1][0] for e in range(3)]
    assert all(len(set(order)) == 72 for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert len(set().union(*orders)) > 72  # another remainder every time
    assert json.loads((tmp_path / "outcome.json").read_text())["step"] == 6


def test_history_holds_means_of_the_epoch(tiny_run, tiny_data, steps, tmp_path):
    run = tiny_run(epochs=2)
    pretrain(run, 0, tiny_data, tmp_path, CPU)
    rows = history(tmp_path)
    for epoch, row in enumerate(rows):
        assert row["epoch"] == str(epoch + 1)
        terms = [out for _, _, _, out in steps[epoch * STEPS : (epoch + 1) * STEPS]]
        for name in ("loss", "invariance", "prior", "probe_accuracy"):
            mean = np.mean([out[name] for out in terms])
            assert float(row[name]) == pytest.approx(mean, rel=1e-9)
        for out in terms:
            assert out["loss"] == pytest.approx(out["invariance"] + out["prior"], rel=1e-6)
    trained = Trainer(run, 0, tiny_data, CPU)
    state = {f"backbone.{k}": v for k, v in weights(tmp_path).items()} | weights(tmp_path, "method")
    trained.method.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    for name, value in monitors(trained.method, trained.watched).items():
        assert float(rows[-1][name]) == value


@pytest.mark.parametrize("method", ["falcon", "two_branch"])
def test_two_steps_by_hand(method, tiny_run, tiny_data, tmp_path):
    """w <- w - lr (gradient of the summed terms + decay w): two epochs of one batch, all images."""
    options = {"name": "sgd", "momentum": 0, "weight_decay": 0.1, "lr": 0.5, "warmup_epochs": 0}
    run = tiny_run(method, optimizer=options, batch_size=96, epochs=2)
    pretrain(run, 3, tiny_data, tmp_path, CPU)
    net = build_method(run, 3, channels=1, train_images=96).train()
    for epoch, rate in enumerate((0.5 * 96 / 256, 0.5 * 96 / 256 / 2)):  # cosine: 1, then 1/2
        order = torch.randperm(96, generator=generator(3, "order", epoch))
        views = make_views(
            torch.from_numpy(tiny_data.images["train"])[order],
            run.views,
            generator(3, "views", epoch, 0),
            mean=tiny_data.mean,
            std=tiny_data.sd,
        )
        views.rows = order  # which images are in the queue
        now = Progress(seed=3, epoch=epoch, step=epoch, total_steps=2)
        trained = [p for p in net.parameters() if p.requires_grad]
        terms = net.losses(net.encode(views), now).values()
        gradients = torch.autograd.grad(sum(terms), trained, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    parameter -= rate * (gradient + 0.1 * parameter)
        net.after_step(now)
    fresh = build_method(run, 3, channels=1, train_images=96).state_dict()
    state = {f"backbone.{k}": v for k, v in weights(tmp_path).items()} | weights(tmp_path, "method")
    assert set(state) == set(net.state_dict())
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    name = "backbone.blocks.0.conv1.weight"
    assert np.abs(state[name] - fresh[name].numpy()).max() > 1e-3


def test_the_online_probe_learns_and_teaches_nothing(tiny_run, tiny_data, tmp_path):
    run = tiny_run(epochs=12, probe={"lr": 0.3})
    outcome = pretrain(run, 0, tiny_data, tmp_path / "a", CPU)
    assert outcome["online_probe_accuracy"] > 0.9
    rows = [float(row["probe_accuracy"]) for row in history(tmp_path / "a")]
    assert rows[0] < 0.4 < 0.7 < rows[-1]  # on random crops; chance is .25
    outcome = pretrain(tiny_run(epochs=12, probe={"lr": 1e-9}), 0, tiny_data, tmp_path / "b", CPU)
    assert outcome["online_probe_accuracy"] < 0.6
    for name in ("backbone", "method"):
        one, other = weights(tmp_path / "a", name), weights(tmp_path / "b", name)
        assert all((one[key] == other[key]).all() for key in one)


def test_global_random_numbers_neither_count_nor_change(tiny_run, tiny_data, tmp_path):
    run, written = tiny_run("two_branch", epochs=2), set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        pretrain(run, 0, tiny_data, tmp_path / str(seed), CPU)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert (before[0] == after[0]).all()
        assert before[1:] == after[1:]
        written.add((tmp_path / str(seed) / "outcome.json").read_bytes())
    assert len(written) == 1
    pretrain(run, 1, tiny_data, tmp_path / "other", CPU)
    assert (tmp_path / "other/outcome.json").read_bytes() not in written


def test_seeds_and_methods_share_or_differ_in_their_initial_backbone(tiny_run, tiny_data, tmp_path):
    for method, seed in (("falcon", 0), ("two_branch", 0), ("falcon", 1)):
        run = tiny_run(method, epochs=0)
        outcome = pretrain(run, seed, tiny_data, tmp_path / f"{method}{seed}", CPU)
        assert (outcome["status"], outcome["epoch"], outcome["step"]) == ("finished", 0, 0)
        assert outcome["online_probe_accuracy"] is None  # the probe is untrained too
        assert (tmp_path / f"{method}{seed}/history.csv").read_text() == "epoch,lr,loss\n"
    name = "blocks.1.conv1.weight"
    first, same, other = (
        weights(tmp_path / each)[name] for each in ("falcon0", "two_branch0", "falcon1")
    )
    assert (first == same).all()
    assert (first != other).mean() > 0.99


def test_a_batch_larger_than_the_data_is_refused(tiny_run, tiny_data, tmp_path):
    with pytest.raises(UserError, match="batch_size 97 exceeds the 96 training images"):
        pretrain(tiny_run(batch_size=97), 0, tiny_data, tmp_path, CPU)
    pretrain(tiny_run(batch_size=97, epochs=0), 0, tiny_data, tmp_path, CPU)


def test_nan_ends_a_run_as_a_result(tiny_run, tiny_data, tmp_path):
    run = tiny_run(optimizer={"name": "sgd", "lr": 1e30})
    outcome = pretrain(run, 0, tiny_data, tmp_path, CPU)
    assert (outcome["status"], outcome["epoch"], outcome["step"]) == ("nan", 1, STEPS)
    assert outcome["online_probe_accuracy"] is None
    assert read_json(tmp_path / "outcome.json") == outcome
    rows = history(tmp_path)
    assert len(rows) == 1
    assert not all(math.isfinite(float(value)) for value in rows[0].values())
    before = (tmp_path / "outcome.json").read_bytes()
    pretrain(run, 0, tiny_data, tmp_path, CPU)  # from the checkpoint: the same verdict
    assert (tmp_path / "outcome.json").read_bytes() == before


def test_a_collapse_stops_or_is_recorded(tiny_run, tiny_data, tmp_path):
    """The floor lies above what this run reaches in epoch 2, and below epoch 1."""
    pretrain(tiny_run(), 0, tiny_data, tmp_path / "free", CPU)
    spread = [
        min(float(row["features_sd"]), float(row["embeddings_sd"]))
        for row in history(tmp_path / "free")
    ]
    assert read_json(tmp_path / "free/outcome.json")["status"] == "finished"
    run = tiny_run(collapse_floor=max(spread) + 1)
    stop = pretrain(run, 0, tiny_data, tmp_path / "stop", CPU)
    assert (stop["status"], stop["epoch"], stop["step"]) == ("collapsed", 1, STEPS)
    assert stop["detail"] == f"features sd {spread[0]:.4g} is below the floor {max(spread) + 1:g}"
    run = tiny_run(collapse_floor=max(spread) + 1, on_collapse="record")
    record = pretrain(run, 0, tiny_data, tmp_path / "record", CPU)
    assert (record["status"], record["epoch"]) == ("collapsed", 4)
    assert (tmp_path / "record/history.csv").read_bytes() == (
        tmp_path / "free/history.csv"
    ).read_bytes()
    # A floor that only the first epoch misses: stopped there, or forgiven at the end.
    between = (spread[0] + min(spread[1:])) / 2
    assert spread[0] < between < min(spread[1:])
    run = tiny_run(collapse_floor=between, on_collapse="record")
    assert pretrain(run, 0, tiny_data, tmp_path / "later", CPU)["status"] == "finished"


def test_a_run_that_does_collapse_is_caught(tiny_run, tiny_data, tmp_path):
    """A weight decay that takes the weights to 0, and so all images to one feature."""
    decay = {"name": "sgd", "weight_decay": 20, "warmup_epochs": 0}
    run = tiny_run(epochs=30, optimizer=decay)
    outcome = pretrain(run, 0, tiny_data, tmp_path, CPU)
    assert outcome["status"] == "collapsed"
    layers = ("features_sd", "embeddings_sd")
    spread = [min(float(row[layer]) for layer in layers) for row in history(tmp_path)]
    assert 1 < outcome["epoch"] == len(spread) < 30
    assert min(spread[:-1]) >= run.collapse_floor == 0.01 > spread[-1]


def test_bfloat16_trains_float32_weights(tiny_run, tiny_data, tmp_path):
    for precision in ("float32", "bfloat16"):
        pretrain(tiny_run(precision=precision, epochs=2), 0, tiny_data, tmp_path / precision, CPU)
    full, half = weights(tmp_path / "float32"), weights(tmp_path / "bfloat16")
    for name in full:
        assert half[name].dtype == np.float32
    name = "blocks.1.conv1.weight"
    assert 0 < np.abs(full[name] - half[name]).max() < 0.05
    loss = [float(history(tmp_path / p)[0]["loss"]) for p in ("float32", "bfloat16")]
    assert loss[0] == pytest.approx(loss[1], rel=0.05)
    assert loss[0] != loss[1]


def test_outcome_and_manifest_say_where_results_come_from(tiny_run, tiny_data, tmp_path):
    run = tiny_run(epochs=1)
    outcome = pretrain(run, 5, tiny_data, tmp_path, CPU)
    assert (outcome["run"], outcome["seed"]) == (run_id(run), 5)
    assert outcome["files"] == {name: sha256(tmp_path / name) for name in outcome["files"]}
    assert set(outcome["files"]) == {
        *("backbone.safetensors", "method.safetensors", "run.yaml", "history.csv")
    }
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["data"] == tiny_data.sums
    assert manifest["code"] == fingerprint("pretrain", "falcon")
    assert manifest["code_parts"] == parts("pretrain", "falcon")
    assert manifest["threads"] == torch.get_num_threads()
    assert (manifest["attempts"], manifest["accept_unverified"]) == (1, False)
    timing = list(csv.DictReader((tmp_path / "timing.csv").open()))
    assert float(timing[0]["samples_per_second"]) * float(timing[0]["seconds"]) == pytest.approx(96)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_neighbours_of_an_epoch_are_the_mean_over_evenly_spaced_steps(
    tiny_run, tiny_data, tmp_path, monkeypatch
):
    """16 steps of 6 images and a queue of 50: looks after steps 0, 2, 4, ..."""
    looks = []

    def seen(method, labels, chance):
        assert chance == 0.25  # four classes of 24 images
        assert (labels == torch.from_numpy(tiny_data.labels["train"])).all()
        looks.append(int(method.queue.position))
        return {"neighbour_purity": torch.tensor(float(len(looks)))}

    monkeypatch.setattr(trainer, "neighbour_monitors", seen)
    pretrain(tiny_run("two_branch", batch_size=6, epochs=2), 0, tiny_data, tmp_path, CPU)
    steps = [epoch * 16 + step for epoch in (0, 1) for step in range(0, 16, 2)]
    assert looks == [6 * (step + 1) % 50 for step in steps]
    found = [float(row["neighbour_purity"]) for row in history(tmp_path)]
    assert found == [4.5, 12.5]  # means of 1 to 8 and of 9 to 16


@pytest.mark.parametrize("accumulate", [{}, {"steps": 2}, {"steps": 3, "mode": "cached"}])
def test_the_queue_knows_the_images_of_the_last_steps(accumulate, tiny_run, tiny_data, tmp_path):
    run = tiny_run("two_branch", epochs=1, accumulate=accumulate)
    pretrain(run, 2, tiny_data, tmp_path, CPU)
    order = torch.randperm(96, generator=generator(2, "order", 0)).tolist()
    kept = {index % 50: image for index, image in enumerate(order)}  # 4 steps of 24, 50 places
    assert weights(tmp_path, "method")["queue.images"].tolist() == [kept[i] for i in range(50)]
    columns = set(history(tmp_path)[0])
    assert {"augmented_similarity", "neighbour_same_image", "neighbour_purity"} < columns
