"""What a seed's evaluations say, once it is known which weights, data, code and protocol made them.

A file of another kind, run, seed or protocol is refused. One of other weights, data or protocol
values is stale: it is named with the step to rerun, and none of the seed's evaluations is used.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.check import EVALUATIONS, READINGS
from peregrine.errors import UserError
from peregrine.frozen import EXTRA, NOT_AVAILABLE, STEPS

MATRICES = "corrected/matrices.safetensors"
"""What `diagnose` leaves beside the collapse evaluation for figures of matrices and maps."""
SECTIONS = {
    ("linear", "all"): "linear",
    ("linear", "few"): "few",
    ("clustering", "kmeans"): "kmeans",
    ("clustering", "codes"): "codes",
}
"""(evaluation, key) whose numbers are metrics of their own name; else 'evaluation/key'."""

IMAGES = "images of "
"""Begins the fact of an evaluation that saw images of its own."""

IDENTITY = ("kind", "run", "seed", "protocol")
NO_METRICS = (*IDENTITY, "status", "data", "provenance", "spectrum_sha256", "matrices_sha256")
"""Keys of an evaluation that say where it comes from."""


@dataclass(frozen=True)
class Origin:
    """What the evaluations of a seed must come from."""

    run: str
    seed: int
    method: str
    status: str
    weights: str
    data: str
    protocol: str
    protocol_digest: str
    evaluations: tuple[str, ...] = EVALUATIONS
    own_digests: Mapping[str, str] = field(default_factory=dict)
    """Of evaluations that the protocol does not fix: what does, in its place."""


@dataclass
class Evaluations:
    """Everything that the evaluations of a seed say."""

    made: set[tuple[str, str]] = field(default_factory=set)  # (reading, kind), stale ones too
    values: list[tuple[str, str, float]] = field(default_factory=list)  # reading, metric, value
    code: dict[str, str] = field(default_factory=dict)  # step and file -> its fingerprint
    stale: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)  # steps whose code has changed since
    not_available: list[str] = field(default_factory=list)  # readings the method does not have


def read_evaluations(place: Path, origin: Origin, *, look: bool = False) -> Evaluations:
    """All evaluations of a seed folder that are there; `look`: without their values.

    Raises:
        UserError: one that is damaged, changed, or of another kind, run, seed or protocol.
    """
    out = Evaluations()
    for reading in READINGS:
        folder = place / reading
        there = set(os.listdir(folder)) if folder.is_dir() else ()  # one look for all kinds
        for kind in origin.evaluations:
            name = f"{kind}-{origin.protocol}.json"
            if name in there:
                out.made.add((reading, kind))
                found = _add(out, folder / name, f"{reading}/{kind}", origin)
                if not look:
                    out.values += _values(folder / name, found, kind)
    if out.stale:
        out.values, out.code, out.older, out.not_available = [], {}, [], []
    return out


def _add(out: Evaluations, path: Path, name: str, origin: Origin) -> dict[str, Any]:
    """The content of an evaluation, all but its values added to `out`; empty if it is stale."""
    reading, _, kind = name.partition("/")
    found, made = _identified(path, kind, origin)
    why = _stale(found, made, origin, kind)
    if why:
        out.stale.append(f"{name} {why}")
        return {}
    step = STEPS[kind]
    today = {
        step: (
            made.get("step"),
            fingerprint.fingerprint(step, origin.method if kind in EXTRA else None),
        )
    }
    if kind not in EXTRA:
        now = fingerprint.fingerprint("extract", origin.method)
        today = {"extract": (made.get("extract"), now), **today}
    for each, (then, now) in today.items():
        out.code[f"{each} code of {name}"] = str(then)
        if then != now and each not in out.older:
            out.older.append(each)
    if "images" in made:
        out.code[f"{IMAGES}{name}"] = str(made["images"])
    if found["status"] == NOT_AVAILABLE and reading not in out.not_available:
        out.not_available.append(reading)
    return found


def _values(path: Path, found: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str, float]]:
    for key, value in found.items():
        if key in NO_METRICS:
            continue
        own = key if key.startswith("labels-") else f"{kind}/{key}"
        try:
            measured = [*numbers(SECTIONS.get((kind, key), own), value)]
        except OverflowError:
            raise UserError(f"{path}: {own} is too large; rerun {STEPS[kind]}") from None
        for metric, number in measured:
            if metric.endswith("accuracy") and not 0 <= number <= 1:
                why = f"{metric} is {number:g}, and a share lies between 0 and 1"
                raise UserError(f"{path}: {why}; rerun {STEPS[kind]}")
            yield path.parent.name, metric, number


def _identified(path: Path, kind: str, origin: Origin) -> tuple[dict[str, Any], dict[str, Any]]:
    """(content, provenance) of an evaluation; provenance is empty where it has none."""
    found = files.read_json(path)
    made = found.get("provenance")
    expected = (kind, origin.run, str(origin.seed), origin.protocol)
    # Files of before there was a provenance need not name themselves: they are stale anyway.
    defaults = (None,) * 4 if made else expected
    owner = tuple(str(found.get(key, default)) for key, default in zip(IDENTITY, defaults))
    if owner != expected:
        raise UserError(
            f"{path} belongs to {owner[0]} of run {owner[1]}, seed {owner[2]}, protocol {owner[3]};"
            " move the file"
        )
    if made is not None and not isinstance(made, dict):
        raise UserError(f"{path}: its provenance is no mapping; delete it and rerun its step")
    return found, made or {}


def _stale(found: Mapping[str, Any], made: Mapping[str, Any], origin: Origin, kind: str) -> str:
    """Why the numbers may not be used, and what to rerun; empty if they may."""
    step = STEPS[kind]
    again = f"rerun {step}" if kind in EXTRA else f"rerun extract and {step}"
    if not made:
        return f"does not say what it was made of, {again}"
    as_ended = found.get("status") in (origin.status, NOT_AVAILABLE)
    if made.get("weights") != origin.weights or not as_ended:
        return f"is of other weights, {again}"
    if made.get("data") != origin.data:
        return f"is of other data, {again}"
    if made.get("protocol") != origin.own_digests.get(kind, origin.protocol_digest):
        return f"is of another protocol '{origin.protocol}', rerun {step}"
    return ""


def numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers and flags in nested mappings, by path; texts, lists and nulls are not metrics."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(f"{name}/{key}", inner)
    elif isinstance(value, bool | int | float):
        yield name, float(value)


def verify(path: Path, checksum: str, step: str) -> None:
    """Raises UserError where a file of a run is missing or does not have its recorded sum."""
    try:
        intact = files.sha256(path) == checksum
    except OSError:
        intact = False
    if not intact:
        raise UserError(f"{path} is missing or was changed; rerun {step}")


def is_there(path: Path, checksum: str, step: str) -> None:
    """`verify` without reading the file, for a look at results of many gigabytes."""
    if not path.is_file():
        raise UserError(f"{path} is missing; rerun {step}")
