"""What a study's runs have left under results/: one record per seed and one per measured number.

These two lists are metrics.csv and runs.csv, and everything printed later - tables, verdicts -
is computed from them alone, so a reader who has the two files can recompute all of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.load import Cell, Project
from peregrine.config.models import Scale, Study
from peregrine.errors import UserError
from peregrine.reporting.published import Cells, read_csv

EVALUATIONS = ("linear", "knn", "clustering", "collapse")
READINGS = ("corrected", "released")
FAILED = ("collapsed", "nan")
OUTCOMES = ("finished", *FAILED)

SECTIONS = {
    ("linear", "all"): "linear",
    ("linear", "few"): "few",
    ("clustering", "kmeans"): "kmeans",
    ("clustering", "codes"): "codes",
}
"""(evaluation, key) whose numbers are metrics of their own name; else 'evaluation/key'."""

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

    @property
    def failed(self) -> bool:
        return self.status in FAILED or (self.status == "mixed" and self.detail.startswith(FAILED))


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

    def counts(self, row: str, used: Mapping[int, float]) -> tuple[int, int]:
        """(missing, failed) seeds of a row among those that are not `used`."""
        unused = [run for run in self.seeds(row) if run.seed not in used]
        missing = sum(run.status in ("missing", "incomplete") for run in unused)
        return missing, sum(run.failed for run in unused)


@dataclass(frozen=True)
class Evidence:
    """All that a table or a claim is computed from."""

    study: Study
    cells: Mapping[str, Cell]  # the rows that are run at this scale
    records: Records
    published: Cells
    scale: str
    protocol: str


def read_records(project: Project, study: str, results: Path) -> Records:
    """Everything that the runs of `study` have left so far; what is not there is said, not raised.

    Raises:
        UserError: a file that is there but damaged, changed, or of another run.
    """
    measurements: list[Measurement] = []
    runs: list[SeedRun] = []
    for cell in project.of(study).values():
        folder = results / "runs" / cell.id
        seeds = [_read_seed(folder, cell, seed, project.scale) for seed in project.scale.seeds]
        runs += _judged([run for run, _, _ in seeds], [facts for _, facts, _ in seeds])
        for _, _, values in seeds:
            measurements += values
    return Records(measurements, runs)


def from_csv(folder: Path) -> Records:
    """The records that `collect` wrote to metrics.csv and runs.csv of `folder`.

    Raises:
        UserError: a file is missing or has other columns.
    """
    kinds = {"seed": int, "value": float}

    def rows(kind: type) -> list:
        path = folder / f"{'metrics' if kind is Measurement else 'runs'}.csv"
        lines = read_csv(path, kind._fields)
        return [
            kind(*(kinds.get(name, str)(line[name]) for name in kind._fields)) for line in lines
        ]

    return Records(rows(Measurement), rows(SeedRun))


Facts = tuple[str, str, str]
"""What all seeds of a row must share: data sums, code fingerprint, accept_unverified."""


def _read_seed(
    folder: Path, cell: Cell, seed: int, scale: Scale
) -> tuple[SeedRun, Facts | None, list[Measurement]]:
    place = folder / f"seed-{seed}"
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
        sums = json.dumps(manifest["data"], sort_keys=True)
        data = hashlib.sha256(sums.encode()).hexdigest()[:12]
        facts = (data, str(manifest["code"]), str(bool(manifest["accept_unverified"])))
        device, torch = str(manifest["device"]), str(manifest["torch"])
        parts, owner = dict(manifest["code_parts"]), (manifest["run"], manifest["seed"])
    except (KeyError, TypeError, ValueError) as error:
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

    key = (cell.study, cell.row, cell.label, cell.id, seed)
    values = [
        Measurement(*key, reading, scale.protocol, metric, value)
        for reading in READINGS
        for metric, value in _evaluations(place / reading, scale.protocol, cell.id, seed)
    ]
    if online is not None:
        values.append(Measurement(*key, "released", "online", ONLINE_PROBE, float(online)))
    corrected = place / "corrected"
    unread = [f for f in EVALUATIONS if not (corrected / f"{f}-{scale.protocol}.json").is_file()]
    notes = [detail] if detail else []
    if unread:
        notes.append(f"not evaluated: {', '.join(unread)}")
        status = "incomplete" if status == "finished" else status
    older = _older(cell.run.method["name"], facts[1], parts)
    if older:
        notes.append(older)
        status = "older code" if status == "finished" else status
    run = name._replace(
        status=status, epoch=epoch, code=facts[1], data=data, device=device, torch=torch
    )
    return run._replace(detail="; ".join(notes)), facts, sorted(values, key=lambda m: m[5:8])


def _evaluations(folder: Path, protocol: str, run: str, seed: int) -> Iterator[tuple[str, float]]:
    for name in EVALUATIONS:
        path = folder / f"{name}-{protocol}.json"
        if path.is_file():
            found = files.read_json(path)
            owner = (found.pop("run", run), str(found.pop("seed", seed)))
            if owner != (run, str(seed)):
                raise UserError(f"{path} belongs to run {owner[0]}, seed {owner[1]}; move the file")
            for key, value in found.items():
                yield from _numbers(SECTIONS.get((name, key), f"{name}/{key}"), value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers and flags in nested mappings, by path; texts, lists and nulls are not metrics."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, bool | int | float):
        yield name, float(value)


def _older(method: str, code: str, parts: Mapping[str, str]) -> str:
    """Which modules have changed since a result was made; empty if its code is today's."""
    if code == fingerprint.fingerprint("pretrain", method):
        return ""
    now = fingerprint.parts("pretrain", method)
    differ = [module for module in sorted({*now, *parts}) if now.get(module) != parts.get(module)]
    return f"older code, these modules differ: {', '.join(differ) or 'none of the recorded'}"


def _judged(runs: list[SeedRun], facts: list[Facts | None]) -> list[SeedRun]:
    """The seeds of a row, called mixed where they may not be averaged."""
    names = ("data", "code", "accept_unverified")
    known = [each for each in facts if each is not None]
    differ = [
        name
        for name, each in zip(names, zip(*known, strict=True), strict=False)
        if len(set(each)) > 1
    ]
    if not differ:
        return runs
    note = f"seeds differ in {', '.join(differ)}"
    out = []
    for run, fact in zip(runs, facts, strict=True):
        if fact is not None:
            before = [run.status] if run.status in FAILED else []
            detail = "; ".join([*before, note, *([run.detail] if run.detail else [])])
            run = run._replace(status="mixed", detail=detail)
        out.append(run)
    return out
