"""Training of one run in one process and in several: samples/s, and the price of a second process.

    PYTHONPATH=src python benchmarks/processes.py [--processes 1 2] [--backbone resnet8]
        [--width 32] [--size 32] [--batch 256] [--method falcon-released] [--precision float32]
        [--threads 1] [--device cpu] [--steps 12] [--repeats 5] [--record benchmarks/recorded]

Random uint8 images stand in for data. Each number of processes trains the same run `repeats` times,
in turns, each a start of torchrun; the first two steps do not count. Under load the processes'
own time is what to compare: `cpu` is that of all of them together for one image, beside one
process's the price of doing heads and draws in each. `waiting` is the share of wall time in which
the slowest process has no processor, which with enough cores is communication. A backbone with
BatchNorm gets accumulate: {mode: cached, steps: N} with N the largest number of processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from peregrine.config.load import build_run, read_yaml
from peregrine.data.prepare import Prepared
from peregrine.files import write_json
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.device import circumstances, set_precision
from peregrine.pretrain.distributed import join
from peregrine.pretrain.trainer import Trainer

PRESETS = Path(__file__).parents[1] / "config" / "presets.yaml"
WARM_UP = 2


def run_of(given: argparse.Namespace):
    presets = read_yaml(PRESETS)
    backbone = {"name": given.backbone}
    accumulate = {}
    if given.backbone == "resnet8":
        backbone["width"] = given.width
    elif given.backbone != "vit_small":
        accumulate = {"mode": "cached", "steps": max(given.processes)}
    return build_run(
        [
            {
                "dataset": {"name": "cifar10"},
                "backbone": backbone,
                "method": presets["methods"][given.method],
                "views": [{"count": 2, "size": given.size}],
                "batch_size": given.batch,
                "accumulate": accumulate,
                "precision": given.precision,
                "epochs": 1,
            }
        ],
        "benchmark",
    )


def train(given: argparse.Namespace) -> None:
    """What each process does; the main one prints a line of JSON."""
    torch.set_num_threads(given.threads)
    world = join()
    device = world.device(given.device)
    set_precision(device, given.precision)
    random, count = np.random.default_rng(0), (WARM_UP + given.steps) * given.batch
    images = random.integers(0, 256, (count, 3, given.size, given.size), np.uint8)
    splits = {"train": images, "test": images[:1]}
    labels = {name: np.zeros(len(each), np.int64) for name, each in splits.items()}
    data = Prepared(splits, labels, [0.5] * 3, [0.25] * 3, {}, ("a", "b"), ())
    trainer = Trainer(run_of(given), 0, data, device, world)
    for done in trainer.epoch(Position("", 0, "", {}), {}):
        if done == WARM_UP:
            _finish(device)
            world.wait()
            began, busy = time.perf_counter(), time.process_time()
    _finish(device)
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    own = torch.tensor([[wall, busy]], dtype=torch.float64)
    everyone = world.gathered([own])[0]
    said = {
        "samples_per_second": given.steps * given.batch / wall,
        "cpu": float(everyone[:, 1].sum()) / given.steps / given.batch,
        "waiting": 1 - float(everyone[:, 1].max()) / wall,
        "circumstances": circumstances(device),
    }
    if world.main:
        print(json.dumps(said), flush=True)
    world.leave()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(count: int) -> dict:
    """One start of `count` processes of this program."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--"]
    command = [sys.executable, *launcher, __file__, *sys.argv[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--method", default="falcon-released", help="of config/presets.yaml")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    if "RANK" in os.environ:
        train(given)
        return
    found: dict[int, list[dict]] = {count: [] for count in given.processes}
    for _ in range(given.repeats):
        for count in given.processes:
            found[count].append(measured(count))
    rows = {
        count: {
            key: statistics.median(each[key] for each in repeats)
            for key in ("samples_per_second", "cpu", "waiting")
        }
        for count, repeats in found.items()
    }
    one = rows[given.processes[0]]
    print("processes  samples/s  times  cpu ms/image  times  waiting")
    for count, row in rows.items():
        speed = row["samples_per_second"]
        print(
            f"{count:9}  {speed:9,.0f}  {speed / one['samples_per_second']:5.2f}"
            f"  {1000 * row['cpu']:12.3f}  {row['cpu'] / one['cpu']:5.2f}  {row['waiting']:7.0%}"
        )
    if given.record:
        settings = {key: value for key, value in vars(given).items() if key != "record"}
        facts = found[given.processes[0]][0]["circumstances"] | {"cores": os.cpu_count()}
        for each in (each for repeats in found.values() for each in repeats):
            del each["circumstances"]
        path = given.record / f"processes_{given.backbone}_{given.device}.json"
        content = {"settings": settings, "hardware": facts, "medians": rows, "all": found}
        write_json(path, json.loads(json.dumps(content)))


if __name__ == "__main__":
    main()
