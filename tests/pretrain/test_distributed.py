"""Two processes against one: losses, gradients, statistics, whole trainings, stops and errors.

Run by torchrun, this file is also the program of the processes (see the end).
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import yaml

from peregrine.cli import main
from peregrine.config.load import build_run
from peregrine.config.load import load as project_at
from peregrine.data.prepare import load
from peregrine.files import read_json, read_tensors, write_json, write_tensors
from peregrine.methods.registry import METHODS
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.distributed import ALONE, join
from peregrine.pretrain.loop import pretrain
from peregrine.pretrain.trainer import Trainer
from peregrine.reporting.status import held

CPU = torch.device("cpu")
VIEWS = {"count": 2, "size": 8, "crop_scale": [0.5, 1.0], "jitter": 0.5}
MLP = {"projector_hidden": 16, "embedding": 8}
FALCON = {"name": "falcon", "codes": 64, "embedding": 8}
BRANCHES = {"name": "two_branch", **MLP, "predictor_hidden": 16, "queue": 50}
EMA = {"target": "ema", "placement": "parallel", "criterion": "squared"}
BATCH_NORM = {"backbone": {"name": "resnet18"}}
IN_PARTS = {"mode": "cached", "steps": 4}
CASES = {
    "falcon": {"method": FALCON},
    "falcon, k-means": {
        "method": {**FALCON, "dictionary": "kmeans", "kmeans_memory": 200, "refit_epochs": 1}
    },
    "falcon, neighbours": {"method": {**FALCON, "operator": "nn", "samples": 2, "memory": 50}},
    "ema, neighbours": {"method": {**BRANCHES, **EMA, "operator": "nn"}},
    "simclr": {"method": {**BRANCHES, "criterion": "nt_xent"}},
    "mixed, moco": {
        "method": {
            **{**BRANCHES, "criterion": "infonce_queue", "target": "ema"},
            **{"placement": "parallel", "operator": "mix"},
        }
    },
    "barlow": {"method": {"name": "barlow_twins", **MLP}},
    "vicreg": {"method": {"name": "vicreg", **MLP}},
    "swav": {"method": {"name": "swav", "codes": 12, **MLP, "queue": 60, "frozen_epochs": 0}},
    "dino": {
        "method": {"name": "dino", "codes": 12, **MLP, "local_views": 1},
        "views": [VIEWS, {**VIEWS, "count": 1, "size": 6, "role": "local"}],
    },
    "self-classifier": {"method": {"name": "self_classifier", "codes": 12, **MLP}},
    "gedi": {"method": {"name": "gedi", "codes": 12, "embedding": 16}},
    "in parts": {"method": {**BRANCHES, **EMA, "operator": "noise"}, "accumulate": IN_PARTS},
    "randaugment": {"method": FALCON, "views": [{**VIEWS, "randaugment": 2}]},
    "bfloat16": {"method": FALCON, "precision": "bfloat16"},
    "ghost batches": {
        "method": {**BRANCHES, **EMA, "operator": "nn"},
        "accumulate": {"mode": "cached", "steps": 2},
        "batch_size": 8,
        **BATCH_NORM,
    },
    # Four images a part: with two, BatchNorm of a 1 x 1 map is a sign, and rounding grows.
    "ghost batches in parts": {
        "method": {**BRANCHES, "criterion": "cosine", "placement": "none+predictor"},
        "accumulate": IN_PARTS,
        "batch_size": 16,
        **BATCH_NORM,
    },
    "drop path": {
        "method": FALCON,
        "views": [{**VIEWS, "size": 16}],
        "backbone": {"name": "vit_small", "drop_path": 0.5},
        "accumulate": {"mode": "cached", "steps": 2},
        "batch_size": 4,
    },
}


def run_of(case):
    layer = {
        "dataset": {"name": "digits"},
        "backbone": {"width": 8},
        "views": [VIEWS],
        "batch_size": 24,
        "epochs": 4,
        # Rates at which rounding stays what it is: Adam would make a step of it.
        "optimizer": {"name": "sgd", "lr": 0.02, "warmup_epochs": 0},
    }
    return build_run([layer, CASES[case]], case)


def two_steps(case, data, world=ALONE):
    """Terms and gradients of the first step and, after the second, terms, weights and buffers."""
    trainer = Trainer(run_of(case), 0, data, CPU, world)
    sums, out = {}, {}
    for step in trainer.epoch(Position("", 0, "", {}), sums):
        out |= {f"{step}/terms/{name}": value.clone() for name, value in sums.items()}
        if step == 1:
            named = trainer.method.named_parameters()
            out |= {f"gradient/{n}": p.grad.clone() for n, p in named if p.grad is not None}
        else:
            break
    world.level(trainer.modules().values())  # every kind of buffer can be sent
    for name, module in trainer.modules().items():
        out |= {f"state/{name}/{key}": value for key, value in module.state_dict().items()}
    return {name: value.detach().numpy() for name, value in out.items()}


def started(arguments):
    """Two processes of this file's `program`, begun; they meet at a free port of this machine."""
    return begun(
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", __file__, *arguments]
    )


def begun(module_and_arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, module_and_arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process, seconds=300):
    """(exit code, stdout, stderr); whatever lives too long is killed with all its children."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tiny_data_path, tmp_path_factory):
    """Where both processes have left what they got, of all cases in one start."""
    folder = tmp_path_factory.mktemp("two")
    code, _, err = ended(started(["steps", tiny_data_path, folder]))
    assert code == 0, err[-3000:]
    return folder


def test_every_method_is_among_the_cases():
    assert {run_of(case).method["name"] for case in CASES} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(case, folder, tiny_data):
    expected = two_steps(case, tiny_data)
    found, _ = read_tensors(folder / f"{case}.safetensors")
    assert set(found) == set(expected)
    # 1e-5 but for gradients of biases: float32 sums over 3,000 positions.
    tolerance = 0.05 if case == "bfloat16" else 5e-5
    of_backbone, of_rest = "gradient/backbone", "gradient"
    largest = {
        part: max(float(abs(g).max()) for name, g in expected.items() if name.startswith(part))
        for part in (of_backbone, of_rest)
    }
    for name, value in expected.items():
        part = next((part for part in largest if name.startswith(part)), None)
        scale = largest[part] if part else max(float(abs(value).max()), 0.1)
        assert float(abs(found[name] - value).max()) <= tolerance * scale, name


def test_processes_are_equal_to_the_bit(folder):
    for rank in range(2):
        assert read_json(folder / f"said-{rank}.json")["unequal"] == []


def test_a_failure_of_one_process_ends_all(folder):
    """The one that failed by its error, the other without a word: `failures` below."""
    ends = [read_json(folder / f"said-{rank}.json")["ends"] for rank in range(2)]
    assert ends == [["own", "other"], ["other", "own"]]


def history(folder):
    return list(csv.DictReader((folder / "history.csv").open()))


def assert_same_results(folder, expected):
    for row, other in zip(history(folder), history(expected), strict=True):
        for key, value in other.items():
            assert float(row[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), key
    for name in ("backbone", "method"):
        weights, _ = read_tensors(folder / f"{name}.safetensors")
        for key, value in read_tensors(expected / f"{name}.safetensors")[0].items():
            np.testing.assert_allclose(weights[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.fixture
def project(tiny_config, tiny_run):
    """(run id, arguments of pretrain, its folder); two processes a run, four epochs of rows."""
    study = tiny_config / "studies" / "one.yaml"
    content = yaml.safe_load(study.read_text())
    content["defaults"] |= {
        "method": {**BRANCHES, **EMA, "operator": "nn"},
        "epochs": 4,
        "optimizer": {"name": "sgd", "lr": 0.02, "warmup_epochs": 1},
    }
    content["rows"] = {"first": {"label": "first"}}
    study.write_text(yaml.safe_dump(content))
    scale = tiny_config / "scales" / "tiny.yaml"
    scale.write_text(scale.read_text() + "processes_per_run: 2\n")
    run = next(iter(project_at(tiny_config).runs()))
    arguments = ["pretrain", "--run", run, "--seed", 0, "--config", tiny_config, "--device", "cpu"]
    return arguments, tiny_config.parent / "results" / "runs" / run / "seed-0"


@pytest.fixture
def alone(project, tiny_config, tiny_data, tmp_path):
    """The folder of the same seed, trained by one process."""
    (run,) = project_at(tiny_config).runs().values()
    pretrain(run, 0, tiny_data, tmp_path / "alone", CPU)
    return tmp_path / "alone"


def test_the_command_starts_the_processes_of_the_scale(project, alone):
    """Two processes write what one does, once, and say each line once."""
    arguments, folder = project
    process = begun(["peregrine", *arguments])
    code, out, err = ended(process)
    assert code == 0, err
    assert out.count("finished at epoch 4") == 1
    assert out.count("epoch 2/4") == 1
    assert_same_results(folder, alone)
    manifest = read_json(folder / "manifest.json")
    assert (manifest["processes"], manifest["attempts"]) == (2, 1)
    assert read_json(alone / "manifest.json")["processes"] == 1
    outcome = [read_json(each / "outcome.json") for each in (folder, alone)]
    assert outcome[0]["online_probe_accuracy"] == outcome[1]["online_probe_accuracy"]


def test_stopped_in_two_processes_and_gone_on_with_in_two_and_in_one(
    project, alone, tiny_config, tiny_data
):
    """The signal comes to process 1 alone, after 6 and after 4 of 16 steps."""
    arguments, folder = project
    for stop, reached in ((6, (1, 2)), (4, (2, 2))):
        code, _, err = ended(started(["stop", stop, *arguments]))
        assert code == 1, err  # torchrun's own
        assert "exitcode  : 75" in err
        assert err.count("stopped by signal 15; the checkpoint is written") == 1
        at = json.loads(read_tensors(folder / "resume/last.safetensors")[1]["position"])
        assert (at["epoch"], at["step"]) == reached
    (run,) = project_at(tiny_config).runs().values()
    pretrain(run, 0, tiny_data, folder, CPU)
    assert_same_results(folder, alone)


@pytest.fixture
def endless(project, tiny_config):
    """(the command at work on a training that would take hours, its folder)."""
    arguments, folder = project
    study = tiny_config / "studies" / "one.yaml"
    study.write_text(study.read_text().replace("epochs: 4", "epochs: 100000"))
    (run,) = project_at(tiny_config).runs()
    folder = folder.parents[1] / run / "seed-0"
    arguments[2] = run
    process = begun(["peregrine", *arguments])
    until = time.monotonic() + 60
    while not (folder / "resume/last.safetensors").exists() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, folder


def test_a_signal_to_the_command_is_exit_code_75(endless):
    process, _ = endless
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75, err
    assert err.count("stopped by signal 15; the checkpoint is written") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of it")
def test_a_killed_command_leaves_no_process_that_holds_the_run(endless):
    process, folder = endless
    process.kill()
    _, _, err = ended(process, 60)  # once no process has its end of the pipes
    assert err.count("stopped by signal 15; the checkpoint is written") == 1
    assert not held(folder / "resume/lock")


def failures(world):
    """How `main_first` ends here where process 0, then process 1, fails inside."""
    ends = []
    for failing in range(2):
        try:
            with world.main_first():
                if world.rank == failing:
                    raise ValueError
        except ValueError:
            ends.append("own")
        except SystemExit as end:
            ends.append("other" if end.code == 2 else "?")
    return ends


def program(what, *arguments):
    """What torchrun starts: all cases, or the command line with a signal to process 1."""
    if what == "steps":
        torch.set_num_threads(1)
        world, data, folder = join(), load(Path(arguments[0])), Path(arguments[1])
        unequal = []
        for case in CASES:
            taken = two_steps(case, data, world)
            digests = [crc32(value.tobytes()) for value in taken.values()]
            first, second = world.gathered([torch.tensor([digests])])[0].tolist()
            unequal += [f"{case}: {n}" for n, a, b in zip(taken, first, second) if a != b]
            if world.main:
                write_tensors(folder / f"{case}.safetensors", taken)
        said = {"ends": failures(world), "unequal": unequal}
        write_json(folder / f"said-{world.rank}.json", said)
        world.leave()
        return
    after, *arguments = arguments
    real, left = Trainer.step, [int(after)]

    def step(self, *given):
        out = real(self, *given)
        left[0] -= 1
        if self.world.rank == 1 and not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    Trainer.step = step
    sys.argv[1:] = arguments
    main()


if __name__ == "__main__":
    program(*sys.argv[1:])
