"""What a study's runs have left under results/: one record per seed and one per measured number.

These two lists are metrics.csv and runs.csv, and everything printed later - tables, verdicts -
is computed from them alone, so a reader who has the two files can recompute all of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.identity import digest, protocol_digest
from peregrine.config.load import Cell, Project
from peregrine.config.study import Study
from peregrine.errors import UserError
from peregrine.frozen import EXTRA, data_of, weights_of
from peregrine.places import ADOPTED, seed_folder
from peregrine.reporting.evaluations import (
    EVALUATIONS,
    IMAGES,
    Origin,
    is_there,
    read_evaluations,
    verify,
)
from peregrine.reporting.published import Cells, read_csv

FAILED = ("collapsed", "nan")
OUTCOMES = ("finished", *FAILED)
STATUSES = (*OUTCOMES, "older code", "stale", "mixed", "incomplete", "missing")

UNVERIFIED = "data not verified: "
"""Begins the note of a seed whose data came from files that are not the official ones."""

ONLINE_PROBE = "online_probe/accuracy"
"""Measured while training, so its protocol is 'online' whatever the evaluation's is."""


class Measurement(NamedTuple):
    """A line of metrics.csv."""

    study: str
    row: str
    label: str
    run: str
    seed: int
    reading: str
    protocol: str
    metric: str
    value: float


class SeedRun(NamedTuple):
    """A line of runs.csv: what became of one seed of a row. Nothing volatile, so no times."""

    row: str
    label: str
    run: str
    seed: int
    status: str
    epoch: int | str
    code: str
    data: str
    device: str
    torch: str
    detail: str
    not_available: str = ""  # readings that the method does not have

    @property
    def failed(self) -> bool:
        return bool(self.failure)

    @property
    def failure(self) -> str:
        """collapsed or nan, also where the status says something else; empty if neither."""
        hidden = self.status in ("mixed", "stale")
        said = self.detail.partition(";")[0] if hidden else self.status
        return said if said in FAILED else ""


class Records:
    """All records of a study at a scale, and look-ups in them."""

    def __init__(self, measurements: list[Measurement], runs: list[SeedRun]) -> None:
        self.measurements = measurements
        self.runs = runs

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[int, float]]:
        out: dict[tuple[str, str, str], dict[int, float]] = {}
        for m in self.measurements:
            out.setdefault((m.row, m.metric, m.reading), {})[m.seed] = m.value
        return out

    def values(self, row: str, metric: str, reading: str) -> dict[int, float]:
        """Seed -> value; empty where nothing was measured, and for a row of mixed seeds."""
        return {} if self.mixed(row) else self._values.get((row, metric, reading), {})

    def seeds(self, row: str) -> list[SeedRun]:
        return [run for run in self.runs if run.row == row]

    def mixed(self, row: str) -> bool:
        """Seeds that differ in data, code or trust in the data must not be averaged."""
        return any(run.status == "mixed" for run in self.seeds(row))

    def not_available(self, row: str, metric: str, reading: str) -> bool:
        """The method does not have the reading, and nothing else was measured under its name."""
        lacks = any(reading in run.not_available.split() for run in self.seeds(row))
        return lacks and not self.values(row, metric, reading)

    def counts(self, row: str, metric: str, used: Mapping[int, float]) -> tuple[int, int]:
        """(missing, failed) seeds of a row: missing of those not `used`, failed of all of them.

        A collapsed seed is evaluated as it ended, and is a failed one all the same; so is a seed
        whose evaluation that has the metric diverged, as a fine-tuning may.
        """
        seeds = self.seeds(row)
        lost = [run for run in seeds if run.seed not in used and not run.failed]
        missing = sum(run.status in ("missing", "incomplete", "stale") for run in lost)
        return missing, len(self.failed(row, metric))

    def failed(self, row: str, metric: str) -> set[int]:
        """The failed seeds of a row, as `counts` counts them."""
        diverged = self.values(row, f"{metric.partition('/')[0]}/diverged_at", "corrected")
        return {run.seed for run in self.seeds(row) if run.failed or run.seed in diverged}


@dataclass(frozen=True)
class Evidence:
    """All that a table or a claim is computed from."""

    study: Study
    cells: Mapping[str, Cell]  # the rows that are run at this scale
    records: Records
    published: Cells
    scale: str
    protocol: str
    overlaid: frozenset[str] = frozenset()  # rows whose run scale paper changes
    looks: int = 1  # at the verdicts, while seeds came

    def unplanned(self, metric: str) -> str:
        """Why no row at all is to have a metric; empty where one is."""
        return unplanned(metric, self.cells.values())


def unplanned(metric: str, cells: Iterable[Cell]) -> str:
    """Why none of the rows is to have a metric of an extra evaluation; empty where one is."""
    kind = metric.partition("/")[0]
    if kind not in EXTRA or any(kind in cell.evaluations for cell in cells):
        return ""
    return "no detection data configured" if kind == "detection" else f"no row has {kind}"


def read_records(project: Project, study: str, results: Path) -> Records:
    """Everything that the runs of `study` have left so far; what is not there is said, not raised.

    Raises:
        UserError: a file that is there but damaged, changed, or of another run; or rows whose
            detectors were fine-tuned on different images.
    """
    measurements: list[Measurement] = []
    runs: list[SeedRun] = []
    images: dict[str, str] = {}
    for cell in project.of(study).values():
        seeds = [
            read_seed(seed_folder(results, cell.id, seed), cell, seed, project)
            for seed in project.scale.seeds
        ]
        runs += judged([run for run, _, _ in seeds], [facts for _, facts, _ in seeds])
        sums = set()
        for _, facts, values in seeds:
            measurements += values
            sums |= {value for name, value in (facts or {}).items() if name.startswith(IMAGES)}
        if len(sums) == 1:  # seeds that differ are called mixed
            images.setdefault(sums.pop(), f"run {cell.id}")
    if len(images) > 1:
        raise UserError(
            f"{results / 'runs'}: detectors of {' and '.join(images.values())} were fine-tuned on"
            " different images; delete the detection-*.json of one and run detect again"
        )
    return Records(measurements, runs)


def from_csv(folder: Path) -> Records:
    """The records that `collect` wrote to metrics.csv and runs.csv of `folder`.

    Raises:
        UserError: a file is missing or has other columns, or a line of it makes no sense.
    """
    return Records(
        _lines(folder / "metrics.csv", Measurement), _lines(folder / "runs.csv", SeedRun)
    )


def read_runs(path: Path) -> list[SeedRun]:
    """The seeds of a runs.csv, at least one.

    Raises:
        UserError: missing, not the file that `collect` writes, or without any seed.
    """
    runs = _lines(path, SeedRun)
    if not runs:
        raise UserError(f"{path} names no run; run collect again")
    return runs


def _lines(path: Path, kind: type) -> list:
    kinds = {"seed": int, "value": float}
    out = []
    for number, line in enumerate(read_csv(path, kind._fields), start=2):
        try:
            found = kind(*(kinds.get(name, str)(line[name]) for name in kind._fields))
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; run collect again") from None
        if kind is SeedRun and found.status not in STATUSES:
            raise UserError(f"{path}: line {number}: there is no status '{found.status}'")
        out.append(found)
    return out


Facts = dict[str, str]
"""What the seeds of a row must share, by name: data, code of every step, accept_unverified."""


def read_seed(
    place: Path, cell: Cell, seed: int, project: Project, *, look: bool = False
) -> tuple[SeedRun, Facts | None, list[Measurement]]:
    """What one seed has left in the folder `place`; facts are None where nothing is complete.

    Args:
        look: for its state alone: no measurements, and files that `pretrain` or a bundle has
            written need only be there. All others are verified as they are read.

    Raises:
        UserError: a file that is there but damaged, changed, or of another run.
    """
    name = SeedRun(cell.row, cell.label, cell.id, seed, "missing", "", "", "", "", "", "")
    if not place.is_dir():
        return name, None, []
    absent = [f for f in ("outcome.json", "manifest.json") if not (place / f).is_file()]
    if absent:
        return name._replace(status="incomplete", detail=f"no {' and no '.join(absent)}"), None, []
    outcome = files.read_json(place / "outcome.json")
    manifest = files.read_json(place / "manifest.json")
    try:
        status, epoch, detail = outcome["status"], int(outcome["epoch"]), outcome["detail"] or ""
        online = outcome["online_probe_accuracy"]
        if not (isinstance(detail, str) and (online is None or 0 <= float(online) <= 1)):
            raise ValueError("detail or online_probe_accuracy")
        sums = json.dumps(manifest["data"], sort_keys=True)
        data = hashlib.sha256(sums.encode()).hexdigest()[:12]
        code, trust = str(manifest["code"]), str(bool(manifest["accept_unverified"]))
        device, torch = str(manifest["device"]), str(manifest["torch"])
        unverified = [str(name) for name in manifest.get("unverified", ())]
        parts, owner = dict(manifest["code_parts"]), (manifest["run"], manifest["seed"])
        weights, trained_on = weights_of(outcome), data_of(outcome)
        written = dict(outcome["files"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: outcome.json or manifest.json lacks a usable entry ({error});"
            " delete the folder and rerun pretrain"
        ) from None
    if status not in OUTCOMES:
        raise UserError(f"{place / 'outcome.json'}: status '{status}' is none of {OUTCOMES}")
    if owner != (cell.id, seed):
        raise UserError(
            f"{place / 'manifest.json'} belongs to run {owner[0]}, seed {owner[1]}; move the folder"
        )
    check = is_there if look else verify
    adopted = read_adopted(place, check)
    for file, checksum in written.items():
        if file in adopted.get("files", written):  # weights need not have come along
            check(place / file, checksum, "pretrain")
    own_digests = {"robustness": protocol_digest(project.protocol, "robustness")}
    if project.detection:
        own_digests["detection"] = digest(project.detection.chosen)
    origin = Origin(
        cell.id,
        seed,
        cell.run.method["name"],
        status,
        weights,
        trained_on,
        project.scale.protocol,
        protocol_digest(project.protocol),
        (*EVALUATIONS, *cell.evaluations),
        own_digests,
    )

    key = (cell.study, cell.row, cell.label, cell.id, seed)
    found = read_evaluations(place, origin, look=look)
    other_data = _of_other_data(place, cell, outcome["data"])
    stale = [*other_data, *found.stale]
    values = [Measurement(*key, reading, origin.protocol, *rest) for reading, *rest in found.values]
    if other_data:
        values = []
    elif online is not None and not look:
        values.append(Measurement(*key, "released", "online", ONLINE_PROBE, float(online)))
    unread = [kind for kind in origin.evaluations if ("corrected", kind) not in found.made]
    older = _older(origin.method, code, parts)
    older += [f"older code of {step}" for step in found.older]
    notes = [detail] if detail else []
    if adopted:
        notes.append("adopted")
    if unread:
        notes.append(f"not evaluated: {', '.join(unread)}")
    notes += older
    if unverified:
        notes.append(f"{UNVERIFIED}{', '.join(unverified)}")
    if stale:
        notes = [*([status] if status in FAILED else []), f"stale: {', '.join(stale)}", *notes]
        status = "stale"
    elif status == "finished":
        status = "incomplete" if unread else "older code" if older else status
    run = name._replace(status=status, epoch=epoch, code=code, data=data)
    run = run._replace(device=device, torch=torch, detail="; ".join(notes))
    run = run._replace(not_available=" ".join(found.not_available))
    facts = {"data": data, "code": code, "accept_unverified": trust, **found.code}
    return run, facts, sorted(values, key=lambda m: m[5:8])


def _of_other_data(place: Path, cell: Cell, sums: Mapping[str, str]) -> list[str]:
    """Why a seed must not stand beside those of the data that are prepared here; empty if it may.

    A split of which the run takes a part has another sum than the whole, and is not compared.
    """
    part, name = cell.run.dataset, cell.run.dataset.name
    record = place.parents[2] / "data" / f"{name}.json"
    if not record.is_file():  # adopted, say, and nothing is trained here
        return []
    here = files.read_json(record).get("sums", {})
    whole = {
        "train": not part.train_per_class and not part.validation_per_class and part.imbalance == 1,
        "test": not part.validation_per_class,
    }
    other = [
        split for split, is_whole in whole.items() if is_whole and sums[split] != here.get(split)
    ]
    if not other:
        return []
    return [f"trained on other {' and '.join(other)} images than {record} names, rerun pretrain"]


def read_adopted(place: Path, check: Callable = verify) -> dict[str, Any]:
    """What a bundle has brought there, all of it with its sum; empty for results made here.

    Raises:
        UserError: a file is missing or was changed since.
    """
    if not (place / ADOPTED).is_file():
        return {}
    record = files.read_json(place / ADOPTED)
    for name, checksum in record["files"].items():
        check(place / name, checksum, "adopt")
    return record


def _older(method: str, code: str, parts: Mapping[str, str]) -> list[str]:
    """Which modules have changed since a result was made; empty if its code is today's."""
    if code == fingerprint.fingerprint("pretrain", method):
        return []
    now = fingerprint.parts("pretrain", method)
    differ = [module for module in sorted({*now, *parts}) if now.get(module) != parts.get(module)]
    return [f"older code, these modules differ: {', '.join(differ) or 'none of the recorded'}"]


def judged(runs: list[SeedRun], facts: list[Facts | None]) -> list[SeedRun]:
    """The seeds of a row, called mixed where they may not be averaged."""
    known: dict[str, set[str]] = {}
    for each in facts:
        for name, value in (each or {}).items():
            known.setdefault(name, set()).add(value)
    differ = [name for name, values in known.items() if len(values) > 1]
    if not differ:
        return runs
    note = f"seeds differ in {', '.join(differ)}"
    out = []
    for run, fact in zip(runs, facts, strict=True):
        if fact is not None:
            before = [run.failure] if run.failure else []
            detail = "; ".join([*before, note, *([run.detail] if run.detail else [])])
            run = run._replace(status="mixed", detail=detail)
        out.append(run)
    return out
