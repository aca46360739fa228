"""What a figure shows, mark by mark, and where its numbers come from. Every file is verified."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from peregrine import files
from peregrine.config.load import Cell
from peregrine.config.study import Panel
from peregrine.errors import UserError
from peregrine.places import seed_folder
from peregrine.reporting.evaluations import MATRICES, verify
from peregrine.reporting.records import Records
from peregrine.reporting.sensitivity import Elsewhere

SUMS = {"spectrum.csv": "spectrum_sha256", "matrices.safetensors": "matrices_sha256"}
"""File -> key of the collapse evaluation that was written with it, where its sum stands."""


class Mark(NamedTuple):
    """One thing in a picture: a seed's dot or line, a mean with its interval, a reference line."""

    panel: str
    group: str
    label: str
    x: float | str
    kind: str  # seed, mean, level, baseline, untrained
    seed: int | str
    value: float
    low: float = math.nan
    high: float = math.nan


class Pixel(NamedTuple):
    """An element of a matrix or the class of a row of it; a point of a map or its axes' share."""

    panel: str
    label: str
    kind: str  # seed, class, share
    seed: int
    x: float | str
    y: float | str
    value: float


class Box(NamedTuple):
    """An object in a test image, or what the detector found; edges in px of the image."""

    panel: str
    label: str
    kind: str  # object; seed for what that seed's detector found
    seed: int
    image: str
    place: int  # of its class in the list of classes, from 1
    x1: float
    y1: float
    x2: float
    y2: float
    value: float | str  # score of what was found


AS_CHOSEN = "as chosen"
"""Where a figure of kind sensitivity has the scale itself."""

PIXELS = ("matrices", "map", "detections")
"""Kinds of figures that show one seed."""

FIELDS = {"matrices": Pixel._fields, "map": Pixel._fields, "detections": Box._fields}
"""Columns of figures/data/*.csv, where they are not those of `Mark`."""


@dataclass(frozen=True)
class Source:
    """Where a figure's numbers come from."""

    cells: dict[str, Cell]
    records: Records
    results: Path
    seeds: tuple[int, ...]
    protocol: str
    elsewhere: tuple[Elsewhere, ...] = ()
    """What scales like this one have measured, for figures of kind sensitivity."""

    def values(self, row: str, panel: Panel, metric: str | None = None) -> dict[int, float]:
        """Seed -> value, in percent where the panel is."""
        found = self.records.values(row, metric or panel.metric, panel.reading)
        scale = 100.0 if panel.percent else 1.0
        return {seed: scale * value for seed, value in sorted(found.items())}

    def sizes(self, panel: Panel) -> list[int]:
        """The numbers k of components for which the panel's metric, _k{k} at its end, is there."""
        stem = f"{panel.metric}_k"
        found = {m.metric for m in self.records.measurements if m.metric.startswith(stem)}
        return sorted(int(metric.removeprefix(stem)) for metric in found)

    def curves(self, row: str, name: str) -> dict[int, pd.DataFrame]:
        """Seed -> the CSV file `name` of that seed's run; none for a row of mixed seeds."""
        if self.records.mixed(row):
            return {}
        states = {run.seed: run.status for run in self.records.seeds(row)}
        out = {}
        for seed in self.seeds:
            place = seed_folder(self.results, self.cells[row].id, seed)
            if states.get(seed) != "stale" and (place / name).is_file():
                self._verify(place, name)
                out[seed] = read_curve(place / name)
        return out

    def matrices(self, row: str) -> tuple[int, dict[str, np.ndarray]] | None:
        """(seed, arrays) of the first seed that has matrices; none for a row of mixed seeds."""
        states = {run.seed: run.status for run in self.records.seeds(row)}
        for seed in () if self.records.mixed(row) else self.seeds:
            place = seed_folder(self.results, self.cells[row].id, seed)
            if states.get(seed) != "stale" and (place / MATRICES).is_file():
                self._verify(place, MATRICES)
                arrays, _ = files.read_tensors(place / MATRICES)
                if arrays:
                    return seed, arrays
        return None

    def detections(self, row: str) -> tuple[int, dict[str, Any], bytes] | None:
        """(seed, evaluation, PNG) of the first seed with pictures; none for mixed seeds."""
        states = {run.seed: run.status for run in self.records.seeds(row)}
        asked = row in self.cells and "detection" in self.cells[row].evaluations
        for seed in self.seeds if asked and not self.records.mixed(row) else ():
            place = seed_folder(self.results, self.cells[row].id, seed) / "corrected"
            record = place / f"detection-{self.protocol}.json"
            if states.get(seed) != "stale" and record.is_file():
                found = files.read_json(record)
                if found.get("shown"):
                    verify(record.with_suffix(".png"), found["picture_sha256"], "detect")
                    return seed, found, record.with_suffix(".png").read_bytes()
        return None

    def _verify(self, place: Path, name: str) -> None:
        """A curve against the sum that its step has recorded."""
        reading, _, curve = name.rpartition("/")
        if not reading:
            record = place / "outcome.json"
            sums = files.read_json(record)["files"] if record.is_file() else {}
            checksum, step = sums.get(curve), "pretrain"
        else:
            record = place / reading / f"collapse-{self.protocol}.json"
            checksum = files.read_json(record).get(SUMS[curve]) if record.is_file() else None
            step = "diagnose"
        if checksum is not None:
            verify(place / name, checksum, step)


def read_curve(path: Path) -> pd.DataFrame:
    """A curve's file: its index columns in place, no line twice, all else numbers."""
    keys = ["layer", "index"] if path.name == "spectrum.csv" else ["epoch"]
    try:
        table = pd.read_csv(path)
        if table.duplicated(keys).any():
            raise ValueError(f"a line with the same {' and '.join(keys)} stands twice")
        rest = [name for name in table if name != "layer"]
        table[rest] = table[rest].apply(pd.to_numeric)
        table[keys[-1]] = table[keys[-1]].astype(int)
        if keys[0] == "layer":
            table["value"] = table["value"].astype(float)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); delete it and rerun its step") from None
    return table
