"""Several seeds of one small net on one device: one after the other, side by side, or in one batch.

    PYTHONPATH=src python benchmarks/seeds_together.py [--device cpu] [--seeds 2 4]
        [--width 128] [--batch 64] [--seconds 3] [--repeats 5] [--record benchmarks/recorded]

The work is what the backbone of a training does: two views of a batch through ResNet-8, backward,
Adam, in bfloat16 autocast on CUDA and in float32 on a CPU; no views, heads or losses.

    after      one process; its rate is that of any number of seeds one after the other
    processes  as many processes as seeds, which share the device, started together
    batched    one process, weights stacked by torch.func and passes mapped by vmap: grouped
               convolutions

Rates are steps/s of all seeds together; forms alternate, medians over the repeats. On a CPU steps
per second of processor time stand beside them, where others share the machine.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from record import facts, write
from torch import Tensor

from peregrine.config.models import BackboneSpec
from peregrine.nets.backbones import build_backbone

RATE = 1e-3


def work(device: torch.device, width: int, batch: int, seeds: int) -> Callable[[], None]:
    """One step of `seeds` nets at once: batched where there are several."""
    torch.manual_seed(0)
    spec = BackboneSpec(name="resnet8", width=width)
    nets = [build_backbone(spec, 3).to(device) for _ in range(seeds)]
    images = torch.randn(seeds, 2 * batch, 3, 32, 32, device=device)
    if seeds == 1:
        parameters = list(nets[0].parameters())

        def loss() -> Tensor:
            return nets[0](images[0]).float().square().mean()

    else:
        stacked, _ = torch.func.stack_module_state(nets)
        parameters = list(stacked.values())
        shell = copy.deepcopy(nets[0]).to("meta")

        def one(weights: dict[str, Tensor], own: Tensor) -> Tensor:
            return torch.func.functional_call(shell, weights, (own,)).float().square().mean()

        def loss() -> Tensor:
            return torch.func.vmap(one)(stacked, images).sum()

    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            value = loss()
        value.backward()
        optimizer.step()

    return step


def worker(given: argparse.Namespace) -> None:
    """Warm up, say so, wait for the word, step for the given seconds, say how many there were."""
    torch.set_num_threads(1)
    device = torch.device(given.device)
    step = work(device, given.width, given.batch, given.worker)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        step()
    wait()
    print("ready", flush=True)
    for _ in sys.stdin:
        began, processor, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < given.seconds:
            step()
            steps += 1
            if steps % 8 == 0:  # else a CPU is far ahead of its GPU when time is up
                wait()
        wait()
        rate = steps / (time.perf_counter() - began)
        processed = steps / max(time.process_time() - processor, 1e-9)
        print(json.dumps([given.worker * rate, given.worker * processed]), flush=True)


class Workers:
    """Processes of `seeds` nets each, warm, that step when they are told."""

    def __init__(self, count: int, seeds: int, given: argparse.Namespace) -> None:
        options = ("device", "width", "batch", "seconds")
        asked = [f"--{name}={getattr(given, name)}" for name in options]
        command = [sys.executable, __file__, f"--worker={seeds}", *asked]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.all = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]
        for each in self.all:
            if each.stdout.readline() != "ready\n":
                self.close()
                raise RuntimeError(f"a worker of {seeds} seeds ended before it was warm")

    def rates(self) -> tuple[float, float]:
        """Steps of all seeds together per second, and per second of one processor."""
        for each in self.all:
            each.stdin.write("go\n")
            each.stdin.flush()
        found = [json.loads(each.stdout.readline()) for each in self.all]
        return sum(wall for wall, _ in found), statistics.mean(cpu for _, cpu in found)

    def close(self) -> None:
        for each in self.all:
            each.kill()
            each.wait()


def compare(given: argparse.Namespace, forms: tuple[str, ...] = ("processes", "batched")) -> dict:
    """Rates by form and number of seeds, with the ratio to one seed after the other."""
    crews: dict[str, Workers] = {}
    results: dict[str, dict] = {}
    try:
        crews["after"] = Workers(1, 1, given)
        for seeds in given.seeds:
            for form in forms:
                name = f"{form} {seeds}"
                try:
                    crews[name] = Workers(
                        *((seeds, 1) if form == "processes" else (1, seeds)), given
                    )
                except RuntimeError as error:
                    results[name] = {"error": str(error)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in crews}
        for _ in range(given.repeats):
            for name, crew in crews.items():
                found[name].append(crew.rates())
    finally:
        for crew in crews.values():
            crew.close()
    for name, rates in found.items():
        wall, processor = (statistics.median(each) for each in zip(*rates))
        ratios = [own[0] / base[0] for own, base in zip(rates, found["after"])]
        results[name] = {
            "steps_per_second": wall,
            "steps_per_processor_second": processor,
            "times_one_after_the_other": statistics.median(ratios),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 4])
    for name, value in (("width", 128), ("batch", 64), ("repeats", 5), ("worker", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    if given.worker:
        worker(given)
        return
    results = compare(given)
    print(f"{'form':12} {'steps/s':>9} {'per CPU s':>10} {'ratio':>6}")
    for name, each in results.items():
        if "error" in each:
            print(f"{name:12} {each['error']}")
        else:
            print(f"{name:12} {each['steps_per_second']:9.1f}"
                  f" {each['steps_per_processor_second']:10.1f}"
                  f" {each['times_one_after_the_other']:6.2f}")  # fmt: skip
    if given.record:
        settings = {key: getattr(given, key) for key in ("width", "batch", "seconds", "repeats")}
        write(given.record / "seeds_together.json", facts(given.device), settings, results)


if __name__ == "__main__":
    main()
