"""What made the numbers of a report: every row's run, what became of its seeds, code and data."""

from collections.abc import Mapping, Sequence
from typing import Any

from peregrine.reporting.trained import UNKNOWN
from peregrine.reporting.words import named


def printed_runs(lines: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The lines of runs.csv, a row of the study each; all of it text.

    Returns:
        "shared", (name, value) of what all rows have; "columns", what they differ in; "rows", each
        with its "label", "run" and "cells".
    """
    rows: dict[str, list[Mapping[str, str]]] = {}
    for line in lines:
        rows.setdefault(line["row"], []).append(line)
    found = {
        name: [told(seeds) for seeds in rows.values()]
        for name, told in (
            ("seeds", _outcome),
            ("code of training", lambda seeds: _values(seeds, "code")),
            ("data sum", lambda seeds: _values(seeds, "data")),
            ("computed on", _computed_on),
        )
    }
    differing = [name for name, texts in found.items() if len(set(texts)) > 1]
    return {
        "shared": [[name, texts[0]] for name, texts in found.items() if name not in differing],
        "columns": differing,
        "rows": [
            {
                "label": seeds[0]["label"],
                "run": seeds[0]["run"],
                "cells": [found[name][place] for name in differing],
            }
            for place, seeds in enumerate(rows.values())
        ],
    }


def _values(seeds: Sequence[Mapping[str, str]], key: str) -> str:
    return ", ".join(sorted({line[key] for line in seeds} - {""})) or UNKNOWN


def _computed_on(seeds: Sequence[Mapping[str, str]]) -> str:
    return f"{_values(seeds, 'device')}, torch {_values(seeds, 'torch')}"


def _outcome(seeds: Sequence[Mapping[str, str]]) -> str:
    """'0, 1 finished; 2 missing (why)'."""
    states: dict[tuple[str, str], list[str]] = {}
    for line in seeds:
        states.setdefault((line["status"], line["detail"]), []).append(line["seed"])
    return "; ".join(
        f"{', '.join(numbers)} {named(status)}" + (f" ({detail})" if detail else "")
        for (status, detail), numbers in states.items()
    )
