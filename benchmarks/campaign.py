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
import fcntl
import fnmatch
import math
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from peregrine.cli.options import INTERRUPTED
from peregrine.cli.together import end_with_parent
from peregrine.config.load import Cell, Project, load
from peregrine.config.reading import known_names
from peregrine.config.resources import COMMANDS, RUN_STEPS
from peregrine.errors import UserError
from peregrine.places import own_folder, seed_folder
from peregrine.reporting.bundles import bundle
from peregrine.reporting.records import FAILED, read_seed

ON_DEVICE = ("pretrain", "extract", "robustness", "detect")
"""Steps that gain by a GPU."""
DONE = ("finished", "older code", *FAILED)
PATIENCE = 15
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
            hint = known_names(pattern, [f"{cell.study}/{cell.row}" for cell in project.cells])
            raise UserError(f"{pattern}: scale {project.scale.name} has no such STUDY/ROW; {hint}")
        out += [cell for cell in found if cell not in out]
    return out


def commands(cell: Cell, seed: int, trained: bool, options: Namespace, results: Path) -> Steps:
    """What a seed still needs."""
    extra = (COMMANDS.get(each, each) for each in cell.evaluations)
    for step in (*(RUN_STEPS[1:] if trained else RUN_STEPS), *extra):
        device = ["--device", options.device] if step in ON_DEVICE else []
        yield [
            *(sys.executable, "-m", "peregrine", step, "--run", cell.id, "--seed", str(seed)),
            *("--scale", options.scale, "--config", str(options.config), *device),
        ]
    for features in own_folder(results, cell.id, seed).glob("*/features.safetensors"):
        features.unlink(missing_ok=True)  # large, and made again from the weights


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
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
            )
        self.running[process.pid] = (process, name, steps)
        if self.stopped:  # a signal came before the child could be told
            process.terminate()

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


def at_least(kind: type, smallest: float):
    """A type of argument: a finite number, not below `smallest`."""

    def number(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and value >= smallest):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {smallest}")
        return value

    return number


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises UserError where another campaign works on the same results."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder / 'lock'}: a campaign runs here; wait for its end") from None
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="STUDY/ROW")
    parser.add_argument("--scale", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="all of the scale by default")
    parser.add_argument("--jobs", type=at_least(int, 1), default=1, help="seeds at a time")
    parser.add_argument("--seconds", type=at_least(float, 0), default=540)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--config", type=Path, default=Path("config"))
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        project = load(options.config, scale=options.scale)
        logs = Path(project.config.results) / "logs" / "campaign"
        with alone(logs):
            return run(project, options, logs, begun)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(project: Project, options: Namespace, logs: Path, begun: float) -> int:
    """Exit code."""
    cells = chosen(project, options.rows)
    results = Path(project.config.results)
    seeds = options.seeds or project.scale.seeds
    for cell in cells:
        project.check_seeds(cell.id, seeds)
    os.environ["OMP_NUM_THREADS"] = str(project.scale.training_threads)

    campaign = Campaign(logs, begun + options.seconds)

    def state(cell: Cell, seed: int) -> str:
        """'done', 'trained' where evaluations lack, 'new' where the training does."""
        place = seed_folder(results, cell.id, seed)
        try:
            found = read_seed(place, cell, seed, project, look=True)[0]
        except UserError as error:
            campaign.failed.append(f"{cell.label}, seed {seed}: {error}")
            return "damaged"
        if found.status in DONE and "not evaluated" not in found.detail:
            return "done"
        trained = (own_folder(results, cell.id, seed) / "outcome.json").is_file()
        return "trained" if trained and "rerun pretrain" not in found.detail else "new"

    def left() -> list[tuple[Cell, int, str]]:
        every = [(cell, seed, state(cell, seed)) for seed in seeds for cell in cells]
        return [each for each in every if each[2] in ("trained", "new")]

    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, campaign.stop)
    todo, taken = left(), set()
    for line in campaign.failed:
        print(line, flush=True)
    print(f"{len(todo)} of {len(cells) * len(seeds)} seeds to do", flush=True)
    while (todo and not campaign.stopped) or campaign.running:
        while todo and len(campaign.running) < options.jobs and not campaign.stopped:
            cell, seed, how = todo.pop(0)
            if (cell.id, seed) not in taken:  # another row of the same run
                taken.add((cell.id, seed))
                name = f"{cell.study}-{cell.row}-seed-{seed}"
                campaign.begin(name, commands(cell, seed, how == "trained", options, results))
        if campaign.running:
            campaign.wait()
        if campaign.stopped:
            campaign.end()
            break
    wrong, remaining = bool(campaign.failed), left()
    if options.bundle:
        try:
            runs = {cell.id for cell in cells}
            count, _ = bundle(project, results, options.bundle, runs, own=True, slim=True)
            size = options.bundle.stat().st_size / 2**20
            print(f"{options.bundle}: {count} seeds, {size:.2f} MiB")
        except UserError as error:
            print(f"no bundle: {error}")
    print(f"{len(remaining)} seeds left, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if wrong else INTERRUPTED if remaining else 0


if __name__ == "__main__":
    sys.exit(main())
