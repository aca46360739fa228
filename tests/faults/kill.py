"""Kills the tiny workflow at random moments, lets it finish, and compares every byte.

    python tests/faults/kill.py --kills 50

Each round is a fresh checkout, killed again and again until it is through; then its weights,
histories, tables, claims and reports must be those of a checkout that nobody disturbed. Prints a
table of fault, trials, what was hit and outcome; ends with code 1 where a byte differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "workflow"))

from test_workflow import artefacts, checkout, environment, snakemake

FAULTS = {
    "SIGKILL of everything": "power cut",
    "SIGTERM of everything": "time limit, shutdown",
    "SIGKILL of Snakemake alone": "its step lives on and meets the next one",
    "SIGTERM of Snakemake alone": "it waits for its step",
    "SIGKILL of one step": "out of memory",
    "SIGTERM of one step": "preemption",
    "SIGKILL after the last output": "before Snakemake's record of it",
}
PATIENCE = 300.0


class Trials:
    """What was done, and what came of it."""

    def __init__(self) -> None:
        self.trials: Counter[str] = Counter()
        self.hit: dict[str, Counter[str]] = {name: Counter() for name in FAULTS}
        self.different: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.rounds = self.files = self.refused = self.unrecorded = 0

    def table(self) -> str:
        lines = [
            "| fault | trials | hit | trials with another byte |",
            "|---|---|---|---|",
        ]
        for name, why in FAULTS.items():
            hit = ", ".join(f"{step} {n}" for step, n in sorted(self.hit[name].items()))
            count = self.trials[name]
            lines.append(f"| {name} ({why}) | {count} | {hit} | {self.different[name]} |")
        kills = sum(self.trials.values())
        lines.append(f"\n{kills} kills in {self.rounds} rounds; {self.files} files compared.")
        lines.append(f"Second trainers that were refused: {self.refused}.")
        lines.append(f"Last outputs that Snakemake had no record of: {self.unrecorded}.")
        return "\n".join(lines)


class Workflow:
    """A running `snakemake` in a session, and so a process group, of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "screen.log").open("ab") as screen:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--cores", "2"],
                cwd=folder,
                env=environment(),
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def members(self) -> dict[int, list[str]]:
        """Living processes of the group, with their words."""
        return {pid: words for pid, group, words in processes() if group == self.process.pid}

    def steps(self) -> dict[int, str]:
        """Living steps (python -m peregrine STEP), without the shells around them."""
        out = {}
        for pid, words in self.members().items():
            if "peregrine" in words and words[words.index("peregrine") - 1] == "-m":
                out[pid] = words[words.index("peregrine") + 1]
        return out

    def wait(self, what: Callable[[], object]) -> None:
        """Until `what` holds or the workflow has ended."""
        until = time.monotonic() + PATIENCE
        while not what() and not self.ended:
            if time.monotonic() > until:
                raise TimeoutError("the workflow stands still")
            time.sleep(0.01)

    def kill_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def settle(self) -> None:
        """Until nothing of the group lives."""
        until = time.monotonic() + PATIENCE
        while self.members():
            self.process.poll()  # else it stays as a zombie
            if time.monotonic() > until:
                self.kill_group(signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()


def processes() -> Iterator[tuple[int, int, list[str]]]:
    """(id, process group, words) of everything that lives."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            words = (place / "cmdline").read_text().split("\0")
        except (OSError, ValueError):
            continue
        if state != "Z":
            yield int(place.name), int(group), words


def outputs(folder: Path) -> set[Path]:
    """The file that each pretrain, extract, evaluate and collect writes last."""
    runs, tiny = folder / "results/runs", folder / "results/tiny"
    names = ("outcome.json", "released/features.safetensors", "released/clustering-*.json")
    found = {path for name in names for path in runs.glob(f"*/seed-1/{name}")}
    return found | set(tiny.glob("*/collected.json"))


def unrecorded(folder: Path) -> bool:
    """Whether a job has written all, or some, of its outputs and Snakemake does not know it."""
    return any((folder / ".snakemake/incomplete").glob("*"))


def strike(work: Workflow, fault: str, moment: float, trials: Trials) -> bool:
    """Let the workflow come to a step, wait a moment and kill; False where it ended before."""
    if fault == "SIGKILL after the last output":
        before = outputs(work.folder)
        work.wait(lambda: outputs(work.folder) - before)
        at = sorted(path.stem for path in outputs(work.folder) - before)[:1]
    else:
        work.wait(work.steps)
        time.sleep(moment)
        at = list(work.steps().values()) or ["between steps"]
    steps = work.steps()
    if work.ended:
        return False
    number = signal.SIGTERM if "SIGTERM" in fault else signal.SIGKILL
    if fault.endswith("of one step"):
        if not steps:
            return False
        pid = min(steps)
        at = [steps[pid]]
        os.kill(pid, number)
    elif fault.endswith("alone"):
        os.kill(work.process.pid, number)
        work.process.wait()
    else:
        work.kill_group(number)
        work.process.wait()
    if fault == "SIGKILL after the last output":
        trials.unrecorded += unrecorded(work.folder)
    trials.trials[fault] += 1
    trials.hit[fault].update(at[:1])
    print(f"{work.folder.name}: {fault}, at {at[0]}", flush=True)
    return True


def one_round(folder: Path, plan: Iterator[tuple[str, float]], trials: Trials) -> Counter[str]:
    """Kill the workflow of a checkout until it is through, or the plan is; then let it finish."""
    done: Counter[str] = Counter()
    groups: list[Workflow] = []
    for fault, moment in plan:
        if not groups or groups[-1].ended:
            snakemake(folder, "--unlock")
            groups.append(Workflow(folder))
        work = groups[-1]
        try:
            hit = strike(work, fault, moment, trials)
        except BaseException:
            work.kill_group(signal.SIGKILL)
            raise
        done[fault] += hit
        # A step that died leaves Snakemake to itself: the next fault comes while it goes on.
        if not hit and work.ended and work.process.returncode == 0:
            break
    for work in groups:
        work.settle()
    snakemake(folder, "--unlock")
    # Snakemake shows the log of what failed.
    screen = (folder / "screen.log").read_text(errors="replace")
    trials.refused += screen.count("is being trained by another process")
    if Workflow(folder).process.wait():
        raise RuntimeError((folder / "screen.log").read_text()[-6000:])
    return done


def planned(kills: int, seed: int) -> Iterator[tuple[str, float]]:
    """Every fault in turn, in an order and at moments of this seed; ends after `kills`."""
    draws = random.Random(seed)
    faults: list[str] = []
    for _ in range(kills):
        if not faults:
            faults = draws.sample(list(FAULTS), len(FAULTS))
        yield faults.pop(), draws.uniform(0.0, 4.0)


def differing(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Names of files that are not as expected; a leftover .tmp-* is no result, nobody reads it."""
    found = {name: data for name, data in artefacts(folder).items() if "/.tmp-" not in name}
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )


def rounds(
    kills: int, seeds: Iterator[int], home: Path, trials: Trials, expected: dict[str, bytes]
) -> list[str]:
    """Rounds until there were so many kills; names of the files that are not as expected."""
    wrong = []
    while kills > 0:
        seed = next(seeds)
        folder = checkout(home / f"killed-{seed}")
        done = one_round(folder, planned(kills, seed), trials)
        kills -= done.total()
        other = differing(folder, expected)
        trials.rounds += 1
        trials.files += len(expected)
        for fault in done:
            trials.different[fault] += done[fault] if other else 0
        wrong += [f"{folder.name}: {name}" for name in other]
        print(
            f"round {seed}: {done.total()} kills, then it was let finish; of {len(expected)}"
            f" files {len(other)} differ",
            flush=True,
        )
    return wrong


def run(kills: int, seed: int, home: Path, beside: int = 1) -> tuple[Trials, list[str]]:
    """(what was done, names of the files that differ); the checkouts stay in `home`.

    Args:
        kills, seed: how many, and that of faults and moments.
        home: where the checkouts are made.
        beside: how many checkouts are killed at the same time.
    """
    undisturbed = Workflow(checkout(home / "undisturbed"))
    if undisturbed.process.wait():
        raise RuntimeError((undisturbed.folder / "screen.log").read_text()[-6000:])
    expected = artefacts(undisturbed.folder)
    trials = Trials()
    share = [kills // beside + (each < kills % beside) for each in range(beside)]
    with ThreadPoolExecutor(beside) as pool:
        parts = [
            pool.submit(rounds, part, count(seed * 1000 + 100 * each), home, trials, expected)
            for each, part in enumerate(share)
        ]
        wrong = [name for part in parts for name in part.result()]
    return trials, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments")
    parser.add_argument("--beside", type=int, default=1, help="checkouts killed at the same time")
    parser.add_argument("--folder", type=Path, help="where the checkouts stay; else they go")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = asked.folder or Path(temporary)
        trials, wrong = run(asked.kills, asked.seed, home.resolve(), asked.beside)
    print(trials.table())
    for name in wrong:
        print(name)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
