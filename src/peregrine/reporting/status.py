"""`python -m peregrine status`: how far every seed of every row is, and what to type next.

Nothing is written, nothing is locked for longer than a look, and a damaged file is a line of the
answer, so that this works beside a running workflow and on what a crash has left. Of weights and
histories it only sees that they are there: `collect` reads and verifies them.
"""

import fcntl
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peregrine.config.load import Cell, Project
from peregrine.errors import UserError
from peregrine.files import read_tensors
from peregrine.places import is_adopted, own_folder, seed_folder
from peregrine.reporting.records import FAILED, SeedRun, judged, read_seed

STATES = {
    "done": "trained and evaluated",
    "running": "being trained now",
    "stopped": "has a checkpoint, from which it goes on",
    "to evaluate": "trained, but an evaluation is missing",
    "failed": "collapsed or ended in NaN; a result, counted as failed",
    "adopted": "adopted, and of older code, stale or without an evaluation: stays as it is",
    "older code": "made by code that has changed since",
    "stale": "evaluations of other weights, data or protocol, or trained on other data",
    "mixed": "seeds that differ in data or code and are not averaged",
    "damaged": "a file that is not what its step wrote",
    "missing": "nothing there yet",
}

# Where the trainer keeps its lock and its last checkpoint (peregrine.pretrain.checkpoint); between
# two renames there is only the one before it.
LOCK = Path("resume", "lock")
CHECKPOINT = Path("resume", "last.safetensors")
PREVIOUS = Path("resume", "previous.safetensors")


class SeedState(NamedTuple):
    """How far one seed of a row is; `state` is a key of STATES."""

    study: str
    row: str
    label: str
    run: str
    seed: int
    state: str
    detail: str


def states(project: Project, studies: Sequence[str], results: Path) -> list[SeedState]:
    """Every seed of every row of the studies, in their order.

    Raises:
        UserError: a study that config.yaml does not name.
    """
    for study in studies:
        project.study(study)
    cells = [cell for study in studies for cell in project.of(study).values()]
    return [each for cell in cells for each in _row(project, cell, results)]


def _row(project: Project, cell: Cell, results: Path) -> list[SeedState]:
    read, damaged, brought = [], {}, set()
    for seed in project.scale.seeds:
        try:
            place = seed_folder(results, cell.id, seed)
            brought |= {seed} if is_adopted(place) else set()
            read.append(read_seed(place, cell, seed, project, look=True)[:2])
        except UserError as error:
            damaged[seed] = str(error)
    found = {run.seed: run for run in judged([r for r, _ in read], [facts for _, facts in read])}
    out = []
    for seed in project.scale.seeds:
        if seed in damaged:
            state, detail = "damaged", damaged[seed]
        else:
            own, adopted = own_folder(results, cell.id, seed), seed in brought
            state, detail = _state(found[seed], own, cell.run.epochs, adopted=adopted)
        out.append(SeedState(cell.study, cell.row, cell.label, cell.id, seed, state, detail))
    return out


def _state(seed: SeedRun, place: Path, epochs: int, *, adopted: bool) -> tuple[str, str]:
    """(state, detail) of a seed that could be read.

    Args:
        place: where it is made here, which an adopted one was not.
    """
    trained = (place / "outcome.json").is_file()
    if held(place / LOCK):
        return "running", _reached(place, epochs)
    if seed.status == "finished":
        return "done", seed.detail
    if seed.status in FAILED:
        return "failed", f"{seed.status}: {seed.detail}"
    if adopted and seed.status != "mixed":
        return "adopted", f"{seed.status}: {seed.detail}"
    if seed.status == "incomplete" and trained:
        return "to evaluate", seed.detail
    if seed.status in ("incomplete", "missing"):
        stopped = (place / CHECKPOINT).is_file() or (place / PREVIOUS).is_file()
        return ("stopped", _reached(place, epochs)) if stopped else ("missing", "")
    return seed.status, seed.detail


def held(lock: Path) -> bool:
    """Whether a trainer holds the lock. Shared and let go at once: a look must not refuse one."""
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or none that can be read
        return False
    return False


def _reached(place: Path, epochs: int) -> str:
    """How far the last checkpoint is, from its header alone."""
    try:
        _, metadata = read_tensors(place / CHECKPOINT, [], verify=False)
        return f"epoch {json.loads(metadata['position'])['epoch']} of {epochs}"
    except (UserError, KeyError, ValueError, TypeError):
        return f"no checkpoint yet, {epochs} epochs to go"


def next_step(project: Project, seeds: Sequence[SeedState], default_scale: str) -> str:
    """What to type, or to do, next."""
    scale = project.scale.name
    count = Counter(each.state for each in seeds)
    command = "snakemake" + (f" --config scale={scale}" if scale != default_scale else "")
    page = Path(project.config.reports, scale, "index.html")
    if count["damaged"]:
        return f"do what the lines on damaged files say, then {command}"
    if count["running"]:
        return f"wait; logs stand in {project.config.results}/logs/pretrain"
    if all(map(_settled, seeds)) and page.is_file():
        return f"open {page}"
    return command


def _settled(seed: SeedState) -> bool:
    """Whether no rule makes anything of it any more: none touches what was adopted."""
    brought = seed.state == "mixed" and "adopted" in seed.detail.split("; ")
    return seed.state in ("done", "failed", "adopted") or brought


def as_text(project: Project, seeds: Sequence[SeedState], step: str) -> str:
    """Tables, the lines on what is not done, totals and the next step, for a reader."""
    shown = [s for s in STATES if s == "done" or any(each.state == s for each in seeds)]
    name = max([3, *(len(each.row) for each in seeds)])
    label = max([5, *(len(each.label) for each in seeds)])
    lines = [f"scale {project.scale.name}, seeds {' '.join(map(str, project.scale.seeds))}"]
    for study in dict.fromkeys(each.study for each in seeds):
        head = "".join(f"  {state}" for state in shown)
        lines += ["", study, f"  {'row':<{name}}  {'label':<{label}}{head}  run"]
        rows: dict[str, list[SeedState]] = {}
        for each in seeds:
            if each.study == study:
                rows.setdefault(each.row, []).append(each)
        for of_row in rows.values():
            count = Counter(each.state for each in of_row)
            cells = "".join(f"  {count[s] or '.':>{len(s)}}" for s in shown)
            row = of_row[0]
            lines.append(f"  {row.row:<{name}}  {row.label:<{label}}{cells}  {row.run}")
    lines += [""] * any(each.detail for each in seeds)
    lines += _notes(seeds)
    total = Counter(each.state for each in seeds)
    lines += ["", f"{len(seeds)} seeds: {', '.join(f'{total[s]} {s}' for s in STATES if total[s])}"]
    lines += [f"  {s}: {STATES[s]}" for s in shown if s not in ("done", "missing")]
    return "\n".join([*lines, f"next: {step}"])


def _notes(seeds: Sequence[SeedState]) -> list[str]:
    """Why seeds are not done: one line for all that have the same reason."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for each in seeds:
        if each.detail:
            rows = reasons.setdefault((each.state, " ".join(each.detail.split())), {})
            rows.setdefault(f"{each.study}, {each.label}", []).append(str(each.seed))
    lines = []
    for (state, detail), rows in reasons.items():
        first, numbers = next(iter(rows.items()))
        others = len(rows) - 1
        more = f" and {others} more row{'s' * (others > 1)}" if others else ""
        lines.append(f"{state}: {first}, seed {' '.join(numbers)}{more}: {detail}")
    return lines


def as_json(project: Project, seeds: Sequence[SeedState], step: str) -> str:
    """The same for machines: {scale, seeds: [...], totals: {state: count}, next}."""
    total = Counter(each.state for each in seeds)
    answer = {
        "scale": project.scale.name,
        "seeds": [each._asdict() for each in seeds],
        "totals": {state: total[state] for state in STATES},
        "next": step,
    }
    return json.dumps(answer, indent=1)
