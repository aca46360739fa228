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

    Rows with most of their seeds there are named, the others counted, and a run that several rows
    share stands once. There the accuracy is a lower bound: regularised less, or more, the probe may
    do better.
    """
    parts = []
    for which, end in (("largest", 1.0), ("smallest", -1.0)):
        most, some, seen = [], 0, set()
        for row, cell in cells.items():
            chosen = [*records.values(row, EDGE, "corrected").values()]
            at = chosen.count(end)
            if not at or cell.id in seen:
                continue
            seen.add(cell.id)
            if 2 * at > len(chosen):
                most.append(f"{cell.label} ({at} of {len(chosen)})")
            else:
                some += 1
        of = [f"most seeds of {'; '.join(most)}"] if most else []
        if some:
            of.append(f"some seeds of {some} {'other ' if most else ''}row{'s' * (some != 1)}")
        if of:
            parts.append(f"Validation chose the {which} C of the grid for {', and for '.join(of)}.")
    if not parts:
        return ""
    return prose(" ".join([*parts, "Beyond the grid the probe of these seeds might be better."]))
