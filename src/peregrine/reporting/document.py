"""Everything that a report says, as one mapping: what was declared, and what is printed from it.

The PDF prints `printed`, whose numbers are text already; the notebook takes `declared` and
recomputes. Both stand in reports/{scale}/{study}.json, so no number is typed twice.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peregrine.config.load import Cell, Project
from peregrine.config.study import Column, Figure, Study, Table
from peregrine.errors import UserError
from peregrine.frozen import NOT_AVAILABLE
from peregrine.reporting.chance import TEST_SETS
from peregrine.reporting.collect import read_collected
from peregrine.reporting.document_claims import printed_claim, printed_sd_range
from peregrine.reporting.document_protocol import printed_edge, printed_knobs
from peregrine.reporting.document_sensitivity import has_values, printed_sensitivity
from peregrine.reporting.figures import pictures
from peregrine.reporting.noise import FLOOR, PAIRS, printed_noise
from peregrine.reporting.ordering import ORDERS, printed_ordering
from peregrine.reporting.provenance import printed_runs
from peregrine.reporting.published import Cells, Published, published_of
from peregrine.reporting.records import from_csv
from peregrine.reporting.scope import Rows, left_out, measured, shown_figures, shown_tables
from peregrine.reporting.sensitivity import COMPARED, VALUES
from peregrine.reporting.stands_in import stands_in, unverified
from peregrine.reporting.tables import overlaid
from peregrine.reporting.trained import trained
from peregrine.reporting.words import NO_BREAK, fixed, listed, named, prose

REFERENCES = ("_chance", "_ceiling", "/n_train")
"""Metrics that end so are what others are held against: they have no gain of their own."""

PUBLISHED = ("value", "unit", "decimals", "n", "nmi", "codes", "test_set")
"""What the notebook is told of a published number."""

Line = dict[str, str]


@dataclass(frozen=True)
class Collected:
    """The files of a study that `collect` left, their sums verified."""

    folder: Path
    record: dict[str, Any]
    runs: list[Line]
    claims: list[dict[str, Any]]
    tables: dict[str, list[Line]]
    pairs: list[Line] = field(default_factory=list)
    floor: list[Line] = field(default_factory=list)
    elsewhere: list[Line] = field(default_factory=list)
    orders: list[Line] = field(default_factory=list)
    compared: dict[str, Any] = field(default_factory=dict)


def read_study(folder: Path) -> Collected:
    """All of {results}/{scale}/{study}; of the figures only that they are whole.

    Raises:
        UserError: a file is missing or was changed since it was written.
    """
    record = read_collected(folder)

    def lines(name: str) -> list[Line]:
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    tables = {Path(name).stem: lines(name) for name in record["files"] if "tables/" in name}
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    there = record["files"]
    more = [lines(name) if name in there else [] for name in (PAIRS, FLOOR, VALUES, ORDERS)]
    compared = json.loads((folder / COMPARED).read_text("utf-8")) if COMPARED in there else {}
    return Collected(folder, record, lines("runs.csv"), claims, tables, *more, compared)


def document(project: Project, study: Study, collected: Collected, config: Path) -> dict[str, Any]:
    """The mapping of the module's docstring, ready for JSON.

    Raises:
        UserError: the study or the scale has changed since it was collected.
    """
    cells, scale = project.of(study.name), project.scale.name
    _check(project, study, collected)
    published = published_of(study, config)
    labels = {name: row.label for name, row in study.rows.items()}
    tables = shown_tables(study.tables, cells, published)
    figures = shown_figures(study.figures, cells)
    figures = [figure for figure in figures if has_values(figure, collected.elsewhere)]
    compared = collected.compared
    sensitivity = printed_sensitivity(compared, collected.claims) if compared else None
    return {
        "declared": _declared(study, cells, published, labels, tables, figures)
        | {"overlaid": sorted(overlaid(project, study, config)), "looks": project.scale.looks},
        "printed": {
            "title": prose(study.title),
            "paper": study.paper,
            "summary": prose(study.summary),
            "scale": scale,
            "scale_description": prose(project.scale.description),
            "stands_in": stands_in(project, study, config) + unverified(collected.runs),
            "seeds": tally(collected.runs),
            "looks": project.scale.looks,
            "sd_range": printed_sd_range(len(project.scale.seeds)),
            "trained": trained(cells, config, collected.folder.parents[1]),
            "claims": [
                printed_claim(claim, declared.not_run, labels)
                for claim, declared in zip(collected.claims, study.claims, strict=True)
            ],
            "tables": [_table(table, study, collected, published, cells) for table in tables],
            "figures": [
                {
                    "file": f"{figure.id}.svg",
                    "title": figure.title,
                    "caption": prose(figure.caption),
                }
                for figure in figures
            ],
            "left_out": {
                "tables": left_out(study.tables, tables, scale, cells),
                "figures": left_out(study.figures, figures, scale, cells),
            },
            "assumptions": [
                {key: prose(text) for key, text in assumption.model_dump().items()}
                for assumption in study.assumptions
            ],
            "columns": sorted(
                {
                    (line["column"], line["metric"], line["reading"], line["protocol"])
                    for table in tables
                    for line in collected.tables[table.id]
                }
            ),
            "runs": printed_runs(collected.runs),
            "noise": printed_noise(collected.pairs, collected.floor, scale),
            "protocol": project.scale.protocol,
            "knobs": printed_knobs(project),
            "edge": printed_edge(from_csv(collected.folder), cells),
            "files": [
                item
                for item in sorted(collected.record["files"].items())
                if not item[0].startswith("figures/")  # drawn from the others
            ],
        }
        | ({"sensitivity": sensitivity} if sensitivity else {}),
    }


def _check(project: Project, study: Study, collected: Collected) -> None:
    found = {name: [(x["row"], x["column"]) for x in t] for name, t in collected.tables.items()}
    places = {t.id: [(row, c.label) for row in t.rows for c in t.columns] for t in study.tables}
    now = {row: cell.id for row, cell in project.of(study.name).items()}
    drawn = {name for name in collected.record["files"] if name.startswith("figures/")}
    if (
        found != places
        or drawn != {name for figure in study.figures for name in pictures(figure.id)}
        or [claim["id"] for claim in collected.claims] != [claim.id for claim in study.claims]
        or (collected.record["rows"], collected.record["seeds"]) != (now, [*project.scale.seeds])
    ):
        raise UserError(f"{collected.folder} is of an older configuration; run collect again")


def _declared(
    study: Study,
    cells: Mapping[str, Cell],
    published: Cells,
    labels: Mapping[str, str],
    shown_tables: Sequence[Table],
    shown_figures: Sequence[Figure],
) -> dict[str, Any]:
    """What was fixed before results: tables, tests, the values of options that trends follow."""
    options: dict[str, dict[str, float]] = {}
    for test in (test for claim in study.claims for test in claim.tests if test.option):
        followed = {row: cells[row].option(test.option) for row in test.rows if row in cells}
        options.setdefault(test.option, {}).update(followed)
    tables = []
    for table in study.tables:
        known = [
            [row, column.label, *(getattr(found, key) for key in PUBLISHED)]
            for row in table.rows
            for column in table.columns
            if (found := _published(table, row, column.published, published))
            and found.value is not None
        ]
        shown = {"published_values": known, "shown": table in shown_tables}
        tables.append(table.model_dump(mode="json") | shown)
    return {
        "labels": labels,
        "rows": list(cells),
        "options": options,
        "test_sets": {
            cell.test_set: TEST_SETS[cell.test_set]
            for cell in published.values()
            if cell.chance is not None
        },
        "tables": tables,
        "claims": [claim.model_dump(mode="json") for claim in study.claims],
        "figures": [
            {"id": figure.id, "title": figure.title, "caption": figure.caption}
            for figure in shown_figures
        ],
        "assumptions": [assumption.model_dump() for assumption in study.assumptions],
    }


def _published(table: Table, row: str, column: str | None, published: Cells) -> Published | None:
    return published.get((table.published or "", table.published_rows.get(row, ""), column or ""))


def tally(runs: Sequence[Line]) -> str:
    """'5 rows \u00d7 3 seeds: all finished', or '14 of 15 seeds finished, 1 collapsed'."""
    states = Counter(line["status"] for line in runs)
    others = [f"{n} {named(state)}" for state, n in sorted(states.items()) if state != "finished"]
    if runs and not others:
        rows = len({line["row"] for line in runs})
        return f"{rows} rows \u00d7 {len(runs) // rows} seeds: all finished"
    return ", ".join([f"{states['finished']} of {len(runs)} seeds finished", *others])


def _table(
    table: Table, study: Study, collected: Collected, published: Cells, cells: Rows
) -> dict[str, Any]:
    notes: list[str] = []
    lines, seeds = collected.tables[table.id], Counter(run["row"] for run in collected.runs)
    by_place = {(line["row"], line["column"]): line for line in lines}
    asked = {row for column in table.columns for row in measured([column.metric], cells)}
    ran = {line["row"] for line in lines if line["run"] and line["row"] in asked}
    ran |= {line["row"] for line in lines if line["published"]}
    absent = [study.rows[row].label for row in table.rows if row not in ran]
    unknown: dict[str, list[str]] = {}

    def cell(row: str, column: Column) -> dict[str, Any]:
        known = _published(table, row, column.published, published)
        if known and known.value is None:
            labels = unknown.setdefault(known.remark, [])
            labels += [study.rows[row].label] * (study.rows[row].label not in labels)
        return _cell(by_place[row, column.label], column, known, seeds[row], notes)

    rows = [
        {
            "label": study.rows[row].label,
            "over": study.rows[base].label if (base := table.baseline.get(row)) else "",
            "cells": [cell(row, column) for column in table.columns],
        }
        for row in table.rows
        if row in ran
    ]
    remarks = [
        f"Published numbers of {'; '.join(labels)}: {why}." for why, labels in unknown.items()
    ]
    if absent:
        remarks.append(f"Not measured at this scale, nor published: {listed(absent)}.")
    return {
        "title": table.title,
        "note": prose(table.note),
        "columns": [column.label for column in table.columns],
        "rows": rows,
        "notes": notes,
        "remarks": remarks,
        "ordering": printed_ordering(
            [line for line in collected.orders if line["table"] == table.id],
            other_setup=any(line["verdict"] == "other set-up" for line in lines),
        ),
        "sources": sorted({line["published_source"] for line in lines} - {""}),
    }


def _cell(
    line: Line, column: Column, known: Published | None, seeds: int, notes: list[str]
) -> dict[str, Any]:
    """A cell as text; its remarks join the table's `notes`, and it keeps their numbers."""
    times = 100 if column.percent else 1

    def show(key: str, *, signed: bool = False) -> str:
        return fixed(times * float(line[key]), column.decimals, signed=signed)

    absent = "not run" if not line["run"] else "no result"
    absent = line["verdict"] if line["verdict"] in ("mixed", NOT_AVAILABLE) else absent
    ours = show("mean") if line["mean"] else absent
    if line["low"] and float(line["sd"]):  # a constant has no interval
        half = times * (float(line["high"]) - float(line["low"])) / 2
        ours += f" \u00b1 {fixed(half, column.decimals)}"
    gains = line["gain"] and not column.metric.endswith(REFERENCES)
    gain = show("gain", signed=True) if gains else ""
    if gains and line["gain_low"]:
        ends = f"({show('gain_low', signed=True)} to {show('gain_high', signed=True)})"
        gain += f" {ends.replace(' ', NO_BREAK)}"
    failed = int(line["failed"])
    lost = f"{line['seeds']} of {seeds} seeds" + (f", {failed} failed" if failed else "")
    unknown = known.remark.split("; ") if known and known.value is None else []  # said once below
    remarks = [
        remark
        for remark in line["remark"].split("; ")
        if remark and remark not in unknown and not remark.startswith("not run at scale")
    ]
    notes += [remark for remark in dict.fromkeys(remarks) if remark not in notes]
    return {
        "ours": ours,
        "absent": not line["mean"],
        "seeds": lost if failed or int(line["missing"]) else "",
        "gain": gain,
        "published": _published_text(known, column.percent),
        "chance": _chance_text(known, column.decimals),
        "verdict": "" if line["verdict"] == ours else line["verdict"],
        "notes": sorted(notes.index(remark) for remark in remarks),
    }


def _published_text(known: Published | None, percent: bool) -> str:
    """A published number with its own digits, in the unit in which ours stands beside it."""
    if known is None or known.value is None:
        return ""
    shift = 2 * ((known.unit == "1") == percent) * (1 if percent else -1)
    shown = known.share(known.value) * (100 if percent else 1)
    return f"{shown:.{max(0, known.decimals - shift)}f}"


def _chance_text(known: Published | None, decimals: int) -> str:
    """What a published NMI is to be held against: never our chance level, which is of our codes."""
    if known is None or known.value is None or not known.nmi:
        return ""
    if known.chance is None:
        return "its codes not stated"
    return f"random codes {fixed(known.chance, decimals)} (c = {known.codes})"
