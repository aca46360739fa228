"""The protocol as a report prints it: its knobs, and where the grid of the probe was too narrow."""

from collections.abc import Iterator, Mapping
from typing import Any

from peregrine.config.load import Cell, Project
from peregrine.reporting.records import Records
from peregrine.reporting.words import named, plain, prose

EDGE = "linear/c_at_edge"
"""Of a seed: 1 where validation chose the largest C of the grid, -1 the smallest, else 0."""


def printed_knobs(project: Project) -> list[list[str]]:
    """Name and value of everything in the protocol, and in the detection where one is run."""
    return [[named(key.replace("_", " ")), plain(value)] for key, value in _knobs(project)]


def _knobs(project: Project) -> Iterator[tuple[str, Any]]:
    for key, value in project.protocol.model_dump(mode="json").items():
        inner = value.items() if isinstance(value, dict) else ()
        yield from ((f"{key} {name}", number) for name, number in inner)
        if not inner:
            yield key, value
    if project.detection is not None:
        yield "detection", project.detection.name
        for part in (project.detection.chosen.data, project.detection.chosen.detection):
            for key, value in part.model_dump(mode="json").items():
                if value not in (None, [], ""):
                    yield f"detection {key}", value


def printed_edge(records: Records, cells: Mapping[str, Cell]) -> str:
    """At which rows the linear probe chose an end of its grid of C; empty where at none.

    A run that several rows share is named once. There the accuracy is a lower bound: regularised
    less, or more, the probe may do better.
    """
    ends: dict[int, list[str]] = {1: [], -1: []}
    seen = set()
    for row, cell in cells.items():
        if cell.id in seen:
            continue
        seen.add(cell.id)
        chosen = records.values(row, EDGE, "corrected")
        for end, rows in ends.items():
            if at := sum(value == end for value in chosen.values()):
                rows.append(f"{cell.label} ({at} of {len(chosen)})")
    parts = [
        f"the {which} C of the grid was chosen by validation, in as many of their seeds, at:"
        f" {'; '.join(rows)}"
        for which, rows in (("largest", ends[1]), ("smallest", ends[-1]))
        if rows
    ]
    if not parts:
        return ""
    told = prose(". ".join(part[:1].upper() + part[1:] for part in parts))
    return f"{told}. Beyond the grid the linear probe of these rows might have done better."
