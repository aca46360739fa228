"""What training costs on one GPU, in one call of less than nine minutes.

    PYTHONPATH=src python benchmarks/gpu.py --record FOLDER (--data FOLDER | --synthetic)
        [--device cuda] [--slices views falcon-compiled ...] [--quick]

Slices run one after the other, each in a process and within a budget of its own; FOLDER/gpu.json is
written after each, and a slice that it has for the same device and torch is not run again. A slice
that fails leaves its last line and the next one follows. --quick takes tiny nets and a few steps,
to see that every slice works. FOLDER of --data has CIFAR-10 in the official binary layout. Besides
torch, torchvision and numpy it needs pydantic, PyYAML, safetensors and tqdm.

    views               two-view samples/s at 32 px, batches of 64, 256 and 1024
    r18-*               ResNet-18, two views, batch 256 (Barlow Twins, Adam)
    falcon-*            FALCON's released recipe: ResNet-18 with a stem padding of 2, batch 64,
                        c = 16384
    *-eager, *-compiled ms a step of the whole loop and s an epoch of 50,000 images; `views_ms` of
                        them are views made alone
    agreement           20 steps of falcon-*, compiled against eager and eager against itself:
                        largest relative difference of a loss
    seeds               ResNet-8 of width 128, batch 64: 2, 4 and 8 processes on the device against
                        one, and weights stacked in one (seeds_together.py)
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from record import facts, shape, write
from seeds_together import compare

from peregrine.config.load import build_run, read_yaml
from peregrine.config.models import DatasetSpec, Run, SourceSpec
from peregrine.data.prepare import Prepared, load, prepare
from peregrine.data.views import make_views
from peregrine.files import read_json
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.device import set_precision
from peregrine.pretrain.trainer import Trainer
from peregrine.streams import generator

CONFIG = Path(__file__).parents[1] / "config"
EPOCH = 50_000
BUDGETS = {
    "views": 40,
    "falcon-eager": 45,
    "falcon-compiled": 100,
    "r18-eager": 45,
    "r18-compiled": 90,
    "agreement": 75,
    "seeds": 110,
}
"""Seconds of each slice, its process's start and compiling included; 505 in all."""
RECIPES = {
    "falcon": {
        "method": {"preset": "falcon-released", "codes": 16384, "embedding": 2048},
        "backbone": {"name": "resnet18", "stem_padding": 2},
        "batch_size": 64,
    },
    "r18": {
        "method": {"preset": "barlow-twins"},
        "backbone": {"name": "resnet18"},
        "batch_size": 256,
    },
}
TINY = {
    "falcon": {
        "method": {"preset": "falcon-released", "codes": 64, "embedding": 16},
        "backbone": {"name": "resnet8", "width": 8},
        "batch_size": 16,
    },
    "r18": {
        "method": {"preset": "barlow-twins", "projector_hidden": 16, "embedding": 16},
        "backbone": {"name": "resnet8", "width": 8},
        "batch_size": 32,
    },
}


def settings(name: str, given: Namespace) -> Run:
    presets = read_yaml(CONFIG / "presets.yaml")
    recipe = (TINY if given.quick else RECIPES)[name]
    options = dict(recipe["method"])
    method = presets["methods"][options.pop("preset")] | options
    common = {
        "dataset": {"name": "cifar10"},
        "views": presets["views"]["asymmetric"],
        "epochs": 1000,
        "precision": "float32" if given.device == "cpu" else "bfloat16",
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 1e-4, "warmup_epochs": 10},
    }
    return build_run([common, recipe | {"method": method}], name)


def images(given: Namespace) -> Prepared:
    """CIFAR-10, or noise of its shape."""
    if given.data:
        folder = Path(tempfile.gettempdir()) / f"peregrine-benchmark-{os.getuid()}"
        path = folder / "cifar10.safetensors"
        if not path.exists():
            prepare("cifar10", folder, SourceSpec(folder=given.data, accept_unverified=True))
        return load(path, DatasetSpec(name="cifar10"))
    n, random = 512 if given.quick else EPOCH, np.random.default_rng(0)
    arrays = {"train": random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)}
    labels = {"train": random.integers(0, 10, n)}
    names = tuple(map(str, range(10)))
    return Prepared(arrays, labels, (0.5,) * 3, (0.25,) * 3, {"train": "noise"}, names)


def wait(given: Namespace) -> None:
    if given.device != "cpu":
        torch.cuda.synchronize()


def median_ms(step, count: int, given: Namespace) -> float:
    """Median over 7 blocks of `count` calls, of the ms of a call; the first block is left out."""
    times = []
    for _ in range(3 if given.quick else 8):
        wait(given)
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait(given)
        times.append(1000 * (time.perf_counter() - began) / count)
    return statistics.median(times[1:])


# Slices ------------------------------------------------------------------------------------------


def views(given: Namespace) -> dict[str, float]:
    data, out = images(given), {}
    run = settings("falcon", given)
    for batch in (16, 32) if given.quick else (64, 256, 1024):
        ms = views_ms(data, run, batch, given)
        out[f"samples_per_second_{batch}"] = 1000 * batch / ms
    return out


def views_ms(data: Prepared, run: Run, batch: int, given: Namespace) -> float:
    pictures = torch.from_numpy(data.images["train"][:batch]).to(given.device)
    draws = generator(0, "views")

    def step() -> None:
        make_views(pictures, run.views, draws, mean=data.mean, std=data.sd)

    return median_ms(step, 2 if given.quick else 40, given)


def trainer(name: str, compiled: bool, given: Namespace) -> Trainer:
    os.environ["PEREGRINE_COMPILE"] = str(int(compiled))
    run, device = settings(name, given), torch.device(given.device)
    set_precision(device, run.precision)
    out = Trainer(run, 0, images(given), device)
    if out.compiled is not compiled:
        raise RuntimeError("the backbone could not be compiled here")
    return out


def epoch(name: str, compiled: bool, given: Namespace) -> dict[str, float]:
    """Steps of the loop itself; compiling and the first steps are timed apart."""
    began = time.perf_counter()
    own = trainer(name, compiled, given)
    batch = own.run.batch_size
    at, sums = Position("", 0, "", {}), {}
    steps = own.epoch(at, sums)
    for _ in range(2 if given.quick else 12):
        next(steps)
    wait(given)
    start = time.perf_counter() - began
    count = 2 if given.quick else min(60, (own.steps - 13) // 8)
    ms = median_ms(lambda: next(steps), count, given)
    out = {
        "start_seconds": start,
        "step_ms": ms,
        "epoch_seconds": ms * (EPOCH // batch) / 1000,
        "samples_per_second": 1000 * batch / ms,
        "compiled": compiled,
        **shape(own.run),
        "views_ms": views_ms(images(given), own.run, batch, given),
    }
    if given.device != "cpu":
        out["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        out["launches_per_step"] = launches(lambda: next(steps))
    return out


def launches(step, count: int = 4) -> float:
    """Kernels, copies and graphs that the host starts in a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    starts = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync")
    return sum(each.count for each in seen.key_averages() if each.key.startswith(starts)) / count


def agreement(given: Namespace) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for kind in ("eager", "again", "compiled"):
        own = trainer("falcon", kind == "compiled", given)
        sums: dict[str, torch.Tensor] = {}
        totals = [0.0]
        for done in own.epoch(Position("", 0, "", {}), sums):
            totals.append(float(sums["loss"]))
            if done == 20:
                break
        found[kind] = np.diff(totals).tolist()
    base = np.array(found["eager"])
    return {
        kind: float(np.max(np.abs(np.array(found[kind]) - base) / np.abs(base)))
        for kind in ("compiled", "again")
    } | {"steps": len(base), "first_loss": base[0], "last_loss": base[-1]}


def seeds(given: Namespace) -> dict[str, dict]:
    counts, width, batch = ([2], 8, 8) if given.quick else ([2, 4, 8], 128, 64)
    asked = Namespace(
        device=given.device, seeds=counts, width=width, batch=batch,
        repeats=2 if given.quick else 3, seconds=0.2 if given.quick else 1.5,
    )  # fmt: skip
    return compare(asked)


def measured(name: str, given: Namespace) -> dict:
    if name in ("views", "agreement", "seeds"):
        return {"views": views, "agreement": agreement, "seeds": seeds}[name](given)
    recipe, kind = name.rsplit("-", 1)
    return epoch(recipe, kind == "compiled", given)


# Slices in processes of their own ----------------------------------------------------------------


def apart(name: str, budget: float) -> dict:
    """The slice in a process that ends, with all that it started, when its budget is spent."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        text, _ = child.communicate(timeout=budget)
    except subprocess.TimeoutExpired:
        text = f"not done in {budget:g} s"
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    lines = text.strip().splitlines() or ["it said nothing"]
    for line in reversed(lines):
        if line.startswith("{"):
            return json.loads(line)
    return {"error": lines[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slices", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if bool(given.data) == given.synthetic:
        parser.error("name the folder of CIFAR-10 by --data, or take --synthetic")
    if given.only:
        print(json.dumps(measured(given.only, given)))
        return
    path, machine = given.record / "gpu.json", facts(given.device)
    same = {key: machine[key] for key in ("device", "versions")} | {"quick": given.quick}
    asked = {"images": "cifar10" if given.data else "noise", "quick": given.quick}
    known = read_json(path) if path.exists() else {"settings": {}, "results": {}}
    was = {key: (known | known["settings"]).get(key) for key in same}
    results = known["results"] if was == same else {}
    for name in given.slices:
        if "error" not in results.get(name, {"error": ""}):
            continue
        began = time.perf_counter()
        if given.quick and given.device == "cpu":
            compiled = name.endswith("compiled") or name == "agreement"
            skipped = {"error": "not compiled in a quick look on a CPU"}
            results[name] = skipped if compiled else measured(name, given)
        else:
            results[name] = apart(name, BUDGETS[name])
        write(path, machine, asked, results)
        hidden = ("backbone", "channels", "views", "method")
        shown = {key: value for key, value in results[name].items() if key not in hidden}
        print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(shown)}", flush=True)


if __name__ == "__main__":
    main()
