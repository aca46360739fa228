"""Train and evaluate named rows of a scale in slices, all of them at one seed before a second.

    PYTHONPATH=src python benchmarks/campaign.py STUDY/ROW [STUDY/ROW ...] --scale SCALE
        [--seeds 0 1 2] [--jobs 1] [--seconds 540] [--device auto] [--bundle FILE] [--config config]

For a machine without Snakemake: it calls the same commands as the workflow's rules do, in order of
the names, which may have * and ?. After --seconds nothing is begun, and what runs is told to save
and stop; the seeds that were finished here are packed into --bundle. The same command goes on from
there. Ends with code 75 while something is left to do, 1 where a step failed (its log is in
results/logs/campaign/, the other seeds go on), 0 where all is done. No torch.
"""

import argparse
import fnmatch
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from peregrine.cli.options import INTERRUPTED
from peregrine.config.load import Cell, Project, load
from peregrine.errors import UserError
from peregrine.places import own_folder, seed_folder
from peregrine.reporting.bundles import bundle
from peregrine.reporting.records import FAILED, read_seed

STEPS = ("pretrain", "extract", "evaluate", "diagnose")
EXTRA = {"detection": "detect"}
"""Commands of evaluations that are called otherwise."""
ON_DEVICE = ("pretrain", "extract", "robustness", "detect")
"""Steps that gain by a GPU."""
DONE = ("finished", "older code", *FAILED)
PATIENCE = 45
"""Seconds that a step gets to save and stop; killed after them, it loses part of an epoch."""

Steps = Iterator[list[str]]
"""Commands of a seed, each to be begun when the one before has ended well."""


def chosen(project: Project, patterns: Sequence[str]) -> list[Cell]:
    """The rows that the patterns name, in their order.

    Raises:
        UserError: a pattern that fits no row of the scale.
    """
    out: list[Cell] = []
    for pattern in patterns:
        found = [c for c in project.cells if fnmatch.fnmatchcase(f"{c.study}/{c.row}", pattern)]
        if not found:
            raise UserError(f"{pattern}: scale {project.scale.name} has no such STUDY/ROW")
        out += [cell for cell in found if cell not in out]
    return out


def commands(cell: Cell, seed: int, options: Namespace, results: Path) -> Steps:
    """What a seed still needs. Looked up when it is its turn: two rows may share a run."""
    trained = (own_folder(results, cell.id, seed) / "outcome.json").is_file()
    extra = (EXTRA.get(each, each) for each in cell.evaluations)
    for step in (*(STEPS[1:] if trained else STEPS), *extra):
        device = ["--device", options.device] if step in ON_DEVICE else []
        yield [
            *(sys.executable, "-m", "peregrine", step, "--run", cell.id, "--seed", str(seed)),
            *("--scale", options.scale, "--config", str(options.config), *device),
        ]
    for features in own_folder(results, cell.id, seed).glob("*/features.safetensors"):
        features.unlink()  # large, and made again from the weights


class Campaign:
    """Seeds in progress, one process each."""

    def __init__(self, logs: Path, deadline: float) -> None:
        self.logs, self.deadline = logs, deadline
        self.running: dict[int, tuple[subprocess.Popen, str, Steps]] = {}
        self.failed: list[str] = []
        self.stopped = False

    def stop(self, *_: object) -> None:
        """Begin nothing more and tell what runs to save; for signals too."""
        self.stopped = True
        for process, _, _ in self.running.values():
            process.terminate()

    def begin(self, name: str, steps: Steps) -> None:
        """Start the next step of a seed, if it has one."""
        command = next(steps, None)
        if command is None:
            print(f"{name}: done", flush=True)
            return
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.running[process.pid] = (process, name, steps)

    def wait(self) -> None:
        """Until a step has ended, or the time has come; what follows it is begun."""
        while all(process.poll() is None for process, _, _ in self.running.values()):
            if time.monotonic() > self.deadline and not self.stopped:
                self.stop()
            time.sleep(0.2)
        for pid, (process, name, steps) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[pid]
            if process.returncode and not self.stopped:
                self.failed.append(f"{name}: code {process.returncode}, see {self.logs}/{name}.log")
                print(self.failed[-1], flush=True)
            elif not self.stopped:
                self.begin(name, steps)

    def end(self) -> None:
        """Wait for what was told to stop, and kill what does not."""
        until = time.monotonic() + PATIENCE
        for process, _, _ in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
                continue
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="STUDY/ROW")
    parser.add_argument("--scale", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="all of the scale by default")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--config", type=Path, default=Path("config"))
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        return run(options, begun)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: Namespace, begun: float) -> int:
    project = load(options.config, scale=options.scale)
    cells = chosen(project, options.rows)
    results = Path(project.config.results)
    seeds = options.seeds or project.scale.seeds
    for cell in cells:
        project.check_seeds(cell.id, seeds)
    os.environ["OMP_NUM_THREADS"] = str(project.scale.training_threads)

    def done(cell: Cell, seed: int) -> bool:
        place = seed_folder(results, cell.id, seed)
        return read_seed(place, cell, seed, project, look=True)[0].status in DONE

    def left() -> list[tuple[Cell, int]]:
        return [(cell, seed) for seed in seeds for cell in cells if not done(cell, seed)]

    campaign = Campaign(results / "logs" / "campaign", begun + options.seconds)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, campaign.stop)
    todo, begun_runs = left(), set()
    print(f"{len(todo)} of {len(cells) * len(seeds)} seeds to do", flush=True)
    while (todo and not campaign.stopped) or campaign.running:
        while todo and len(campaign.running) < options.jobs and not campaign.stopped:
            cell, seed = todo.pop(0)
            if (cell.id, seed) not in begun_runs:  # another row of the same run
                begun_runs.add((cell.id, seed))
                name = f"{cell.study}-{cell.row}-seed-{seed}"
                campaign.begin(name, commands(cell, seed, options, results))
        if campaign.running:
            campaign.wait()
        if campaign.stopped:
            campaign.end()
            break
    remaining = left()
    if options.bundle and len(remaining) < len(cells) * len(seeds):
        count, _ = bundle(project, results, options.bundle, {c.id for c in cells}, own=True)
        print(f"{options.bundle}: {count} seeds, {options.bundle.stat().st_size / 2**20:.2f} MiB")
    print(f"{len(remaining)} seeds left, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if campaign.failed else INTERRUPTED if remaining else 0


if __name__ == "__main__":
    sys.exit(main())
