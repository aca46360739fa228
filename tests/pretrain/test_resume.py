"""Stopped, killed, started again: the same bytes as a run that nobody disturbed."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.numpy import load_file

from peregrine import files
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors, write_tensors
from peregrine.pretrain import checkpoint, loop
from peregrine.pretrain.loop import Interrupted, pretrain
from peregrine.pretrain.trainer import Trainer

CPU = torch.device("cpu")
RESULTS = ("backbone.safetensors", "method.safetensors", "history.csv", "outcome.json", "run.yaml")
LAST = "resume/last.safetensors"
PREVIOUS = "resume/previous.safetensors"
STEPS = 4  # a tiny run: 96 images, batch 24


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def contents(folder):
    """All files but the count of attempts."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "attempts")
    return {path: path.read_bytes() for path in files}


def position(folder):
    return json.loads(read_tensors(folder / LAST)[1]["position"])


@pytest.fixture
def undisturbed(tiny_data, tmp_path):
    """What a run leaves behind when nothing happens."""

    def train(run):
        pretrain(run, 0, tiny_data, tmp_path / "undisturbed", CPU)
        return results(tmp_path / "undisturbed")

    return train


@pytest.fixture
def after_step(monkeypatch):
    """`after_step(n, action)` calls `action` after the n-th optimiser step from now on."""
    plan, real = {}, Trainer.step

    def step(self, *arguments):
        out = real(self, *arguments)
        plan["count"] += 1
        if plan["count"] == plan["at"]:
            plan["action"]()
        return out

    def set_plan(n, action):
        plan.update(count=0, at=n, action=action)
        monkeypatch.setattr(Trainer, "step", step)

    return set_plan


@pytest.fixture(autouse=True)
def signals_of_the_caller():
    """A SIGTERM that the loop does not take fails the test; afterwards the old handler is back."""

    def untaken(*_):
        raise AssertionError("nobody took the signal")

    before = signal.signal(signal.SIGTERM, untaken)
    yield
    assert signal.signal(signal.SIGTERM, before) is untaken


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


DICTIONARIES = {
    "learned": {"dictionary": "learned"},
    "hybrid": {"dictionary": "hybrid"},
    "hadamard": {"dictionary": "hadamard"},
    # 48 embeddings a step: a step over the end of the memory, full in the second epoch's first.
    "kmeans": {"dictionary": "kmeans", "kmeans_memory": 200, "refit_epochs": 1},
    "kmeans in parts": {"dictionary": "kmeans", "kmeans_memory": 200, "chunk": 24},
    "prior": {"prior_frequencies": [5, 3, 1]},
}


@pytest.mark.parametrize("options", DICTIONARIES.values(), ids=DICTIONARIES)
def test_stopped_with_every_dictionary(
    options, tiny_run, tiny_data, undisturbed, after_step, tmp_path
):
    run = tiny_run(method=options)
    expected = undisturbed(run)
    folder = tmp_path / "stopped"
    for steps in (STEPS, 1, 2):  # at the end of an epoch, after its first step, and later
        after_step(steps, terminate)
        with pytest.raises(Interrupted, match="15"):
            pretrain(run, 0, tiny_data, folder, CPU)
    pretrain(run, 0, tiny_data, folder, CPU)
    assert results(folder) == expected
    if options.get("dictionary") == "kmeans":
        assert load_file(folder / "method.safetensors")["head.fitted"] == 3  # the last epoch


@pytest.mark.parametrize(
    ("method", "optimizer", "precision"),
    [
        ("falcon", "adam", "float32"),
        ("falcon", "sgd", "float32"),
        ("two_branch", "adam", "float32"),
        ("two_branch", "sgd", "bfloat16"),
        ("two_branch", "adamw", "float32"),
        ("falcon", "lars", "float32"),
        ("falcon, neighbours", "adam", "float32"),
        ("swav, neighbours", "adam", "bfloat16"),
    ],
)
def test_stopped_mid_epoch_and_at_its_end(
    method, optimizer, precision, tiny_run, tiny_data, undisturbed, after_step, tmp_path
):
    groups = {"exclude_bias_and_norm": optimizer in ("adamw", "lars")}
    run = tiny_run(method, optimizer={"name": optimizer, **groups}, precision=precision)
    expected = undisturbed(run)
    folder = tmp_path / "stopped"
    stops = ((STEPS + 2, (1, 2)), (2, (2, 0)), (1, (2, 1)), (STEPS - 1 + STEPS, (4, 0)))
    for steps, place in stops:
        after_step(steps, terminate)
        with pytest.raises(Interrupted, match="15"):
            pretrain(run, 0, tiny_data, folder, CPU)
        assert (position(folder)["epoch"], position(folder)["step"]) == place
        assert not (folder / "outcome.json").exists()
    pretrain(run, 0, tiny_data, folder, CPU)  # nothing is left to train, only to write
    assert results(folder) == expected
    assert read_json(folder / "manifest.json")["attempts"] == 5
    # And once more, as Snakemake does after a kill before it made its own record.
    pretrain(run, 0, tiny_data, folder, CPU)
    assert results(folder) == expected


def test_stopped_while_results_are_written(tiny_run, tiny_data, undisturbed, monkeypatch, tmp_path):
    """Too late for this seed; but whoever asked must not see the next one begin."""
    run = tiny_run(epochs=1)
    expected = undisturbed(run)
    real = loop.write_results
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_results", lambda *arguments: (terminate(), real(*arguments)))
        with pytest.raises(Interrupted, match="results are written"):
            pretrain(run, 0, tiny_data, tmp_path / "stopped", CPU)
    assert results(tmp_path / "stopped") == expected


class Killed(BaseException):
    """A kill: nothing after it runs, not even an `except Exception`."""


def test_killed_before_every_write_to_disk(tiny_run, tiny_data, undisturbed, monkeypatch, tmp_path):
    """Each fsync and each rename of a run is the last thing that one attempt does."""
    run = tiny_run(epochs=2, batch_size=48)
    expected = undisturbed(run)
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    left = 0

    def counted(name):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return real[name](*arguments)

        return call

    for moment in range(1, 100):
        folder, left = tmp_path / str(moment), moment
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(files.os, name, counted(name))
            try:
                pretrain(run, 0, tiny_data, folder, CPU)
                break
            except Killed:
                pass
        pretrain(run, 0, tiny_data, folder, CPU)
        assert results(folder) == expected
        assert not list(folder.rglob(".tmp-*"))
    # 3 calls a file: attempts, 2 checkpoints and 7 results; 1 to keep the first checkpoint.
    assert moment == 3 * 10 + 1 + 1


DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
import torch._dynamo  # which the first optimiser step would import, in every child again
from peregrine.config.load import build_run, read_yaml
from peregrine.data.prepare import load
from peregrine.errors import UserError
from peregrine.pretrain.loop import pretrain

run, data, folder, seed, kills = sys.argv[1:]
run, data, folder = build_run([read_yaml(Path(run))], run), load(Path(data)), Path(folder)
torch.manual_seed(99), random.seed(99), np.random.seed(99)
moments = random.Random(int(seed))
watched = [folder / "resume" / "attempts", folder / "resume" / "last.safetensors"]

def written(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # also while the last checkpoint becomes the previous one
        return 0

def wait(path):
    before, deadline = written(path), time.monotonic() + 20
    while written(path) == before and time.monotonic() < deadline:
        time.sleep(0.001)

for kill in range(int(kills)):
    child = os.fork()
    if not child:
        pretrain(run, 0, data, folder, torch.device("cpu"))
        os._exit(0)
    # Some epochs are written, then at any moment of the next: while it trains or writes.
    for path in watched[:1] + watched[1:] * moments.randrange(3):
        wait(path)
    if kill == 0:
        second = os.fork()
        if not second:
            try:
                pretrain(run, 0, data, folder, torch.device("cpu"))
            except UserError as error:
                print("REFUSED", error, flush=True)
            os._exit(0)
        os.waitpid(second, 0)
    time.sleep(moments.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    print("KILLED", os.waitpid(child, 0)[1], flush=True)
pretrain(run, 0, data, folder, torch.device("cpu"))
print("NUMBERS", torch.initial_seed(), flush=True)
"""


@pytest.mark.parametrize(("method", "optimizer"), [("falcon", "sgd"), ("two_branch", "adam")])
def test_killed_at_random_moments(
    method, optimizer, tiny_run, tiny_data_path, undisturbed, tmp_path, pytestconfig
):
    """Five SIGKILLs in another process, under another hash seed and other global random numbers;
    while the first child lives, a second one is refused."""
    run = tiny_run(method, optimizer={"name": optimizer}, epochs=40)
    expected = undisturbed(run)
    folder = tmp_path / "killed"
    arguments = (tmp_path / "undisturbed/run.yaml", tiny_data_path, folder, 5, 5)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath / "src"), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("KILLED 9") == 5, done.stdout
    assert done.stdout.count("REFUSED") == 1
    assert "is being trained by another process" in done.stdout
    assert "NUMBERS 99" in done.stdout
    starts = [line for line in done.stdout.splitlines() if "effective learning rate" in line]
    begun = [int(line.split("epoch ")[1].split()[0]) for line in starts]
    assert begun == sorted(begun)
    assert 0 < begun[-1] < 40, "no kill fell into the training"
    assert results(folder) == expected


def test_a_held_folder_is_refused_and_left_alone(tiny_run, tiny_data, tmp_path):
    with (
        checkpoint.exclusive(tmp_path),
        pytest.raises(UserError, match="trained by another process"),
    ):
        pretrain(tiny_run(), 0, tiny_data, tmp_path, CPU)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["lock"]
    pretrain(tiny_run(epochs=1), 0, tiny_data, tmp_path, CPU)


@pytest.mark.parametrize("change", ["code", "data", "fields"])
def test_a_checkpoint_of_older_code_or_other_data_starts_afresh(
    change, tiny_run, tiny_data, undisturbed, after_step, monkeypatch, tmp_path, capsys
):
    run = tiny_run()
    expected = undisturbed(run)
    folder = tmp_path / "older"
    after_step(STEPS + 2, terminate)
    with monkeypatch.context() as patch:
        older = tiny_data
        if change == "data":
            images = {name: 255 - x for name, x in tiny_data.images.items()}
            sums = {**tiny_data.sums, "test": "other"}
            older = dataclasses.replace(tiny_data, images=images, sums=sums)
        else:
            patch.setattr(loop, "fingerprint", lambda *_: "older")
        with pytest.raises(Interrupted):
            pretrain(run, 0, older, folder, CPU)
    if change == "fields":  # older code may have kept other facts
        arrays, metadata = read_tensors(folder / LAST)
        facts = json.loads(metadata["position"]) | {"forgotten": 1}
        del facts["sums"]
        write_tensors(folder / LAST, arrays, position=json.dumps(facts))
    capsys.readouterr()
    pretrain(run, 0, tiny_data, folder, CPU)
    assert "older code or other data; starting again" in capsys.readouterr().out
    assert results(folder) == expected


@pytest.mark.parametrize("other", ["run", "seed"])
def test_a_checkpoint_of_another_run_is_refused_and_kept(other, tiny_run, tiny_data, tmp_path):
    pretrain(tiny_run(epochs=1), 0, tiny_data, tmp_path, CPU)
    before = contents(tmp_path)
    run, seed = (tiny_run(epochs=2), 0) if other == "run" else (tiny_run(epochs=1), 1)
    with pytest.raises(UserError, match=r"is a checkpoint of run digits-.*, seed 0; remove it$"):
        pretrain(run, seed, tiny_data, tmp_path, CPU)
    assert contents(tmp_path) == before


DAMAGE = {
    "a flipped bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut in half": lambda data: data[: len(data) // 2],
    "cut in its header": lambda data: data[:100],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "missing": None,  # killed between two renames
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("method", ["falcon", "two_branch"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    method, damage, tiny_run, tiny_data, undisturbed, after_step, tmp_path, capsys
):
    run = tiny_run(method)
    expected = undisturbed(run)
    folder = tmp_path / "damaged"
    after_step(2 * STEPS + 1, terminate)
    with pytest.raises(Interrupted):
        pretrain(run, 0, tiny_data, folder, CPU)
    assert (position(folder)["epoch"], position(folder)["step"]) == (2, 1)
    path = folder / LAST
    if DAMAGE[damage]:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    else:
        path.unlink()
    capsys.readouterr()
    # It was saved at the end of the second epoch; stopped at once, it is the last one again.
    after_step(1, terminate)
    with pytest.raises(Interrupted):
        pretrain(run, 0, tiny_data, folder, CPU)
    said = capsys.readouterr().out
    assert "epoch 2 of" in said
    assert ("last.safetensors" in said and "going on from the one before it" in said) == bool(
        DAMAGE[damage]
    )
    pretrain(run, 0, tiny_data, folder, CPU)
    assert results(folder) == expected


def test_two_damaged_checkpoints_are_refused_and_kept(tiny_run, tiny_data, tmp_path):
    pretrain(tiny_run(epochs=2), 0, tiny_data, tmp_path, CPU)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"nothing")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"last.safetensors is damaged .*; delete it and rerun"):
        pretrain(tiny_run(epochs=2), 0, tiny_data, tmp_path, CPU)
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_leaves_a_checkpoint_to_go_on_from(
    tiny_run, tiny_data, undisturbed, monkeypatch, tmp_path
):
    """Every write after the first n fails for want of space, whatever it was about to write."""
    run = tiny_run(epochs=2, batch_size=48)
    expected = undisturbed(run)
    real, left = os.fsync, 0

    def full(number):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number)

    for writes in range(100):
        folder, left = tmp_path / str(writes), writes
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            try:
                pretrain(run, 0, tiny_data, folder, CPU)
                break
            except UserError as error:
                assert "No space left on device; free some space" in str(error)
            except OSError as error:  # the folder's own fsync, which main() turns into a line
                assert error.errno == errno.ENOSPC
        assert not list(folder.rglob(".tmp-*"))
        pretrain(run, 0, tiny_data, folder, CPU)
        assert results(folder) == expected
    assert writes == 2 * 10  # 2 calls a file


def test_a_damaged_checkpoint_is_refused_and_kept(tiny_run, tiny_data, tmp_path):
    pretrain(tiny_run(epochs=1), 0, tiny_data, tmp_path, CPU)
    path = tmp_path / LAST
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="last.safetensors fails its checksum"):
        pretrain(tiny_run(epochs=1), 0, tiny_data, tmp_path, CPU)
    assert path.read_bytes() == damaged


def test_a_checkpoint_holds_all_that_counts(tiny_run, tiny_data, tmp_path):
    """Both optimisers' moments, moving average, queue, probe; and 0-d counters as such."""
    pretrain(tiny_run("two_branch", epochs=1), 0, tiny_data, tmp_path, CPU)
    kept = load_file(tmp_path / LAST)
    assert kept["optimizer/0/step"].shape == ()
    assert kept["optimizer/0/step"] == STEPS
    assert kept["probe_optimizer/0/step"] == STEPS
    assert kept["method/queue.position"] == STEPS * 24 % 50
    assert abs(kept["probe_optimizer/1/exp_avg"]).max() > 0
    assert any(name.startswith("method/target.") for name in kept)
    assert (kept["probe/weight"] != 0).any()
    weights, moments = kept["method/backbone.blocks.1.conv1.weight"], kept["optimizer/6/exp_avg_sq"]
    assert weights.shape == moments.shape


def test_moments_are_laid_out_like_their_weights(tiny_run, tiny_data, tmp_path):
    """Fused optimisers pair weight and moment by their place in memory, whatever the strides."""
    run = tiny_run(epochs=1)
    pretrain(run, 0, tiny_data, tmp_path, CPU)
    trainer = Trainer(run, 0, tiny_data, CPU)
    start = checkpoint.Position(**{**position(tmp_path), "epoch": 0, "history": []})
    at = checkpoint.restore(tmp_path, start, trainer.modules(), trainer.optimizers())
    assert at.epoch == 1
    channels_last = 0
    for weight, state in trainer.optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].stride() == weight.stride()
        channels_last += not weight.is_contiguous()
    assert channels_last, "no weight puts the layout to the test"


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    """A temporary file carries its writer's process id, so no later write would replace it."""
    (tmp_path / "resume").mkdir()
    for place in (tmp_path, tmp_path / "resume"):
        (place / ".tmp-1-last.safetensors").write_bytes(b"half")
    with checkpoint.exclusive(tmp_path):
        assert not list(tmp_path.rglob(".tmp-*"))
