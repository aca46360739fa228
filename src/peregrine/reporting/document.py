"""Everything that a report says, as one mapping: what was declared, and what is printed from it.

The PDF prints `printed`, whose numbers are text already; the notebook takes `declared` and
recomputes. Both stand in reports/{scale}/{study}.json, so no number is typed twice.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peregrine.config.load import Cell, Project
from peregrine.config.models import BackboneSpec, Column, Run, Study, Table, ViewSpec
from peregrine.errors import UserError
from peregrine.reporting.collect import read_collected
from peregrine.reporting.published import Cells, Published, read_published

NAMES = {
    "cifar10": "CIFAR-10",
    "digits": "handwritten digits (scikit-learn)",
    "resnet8": "ResNet-8",
    "knn": "kNN",
    "kmeans": "k-means",
    "c": "C",
    "nan": "NaN",
}
"""What readers call things that the configuration writes in lower case."""

NO_BREAK = "\u00a0"
"""A space at which no line breaks."""

Line = dict[str, str]


@dataclass(frozen=True)
class Collected:
    """The files of a study that `collect` left, their sums verified."""

    folder: Path
    record: dict[str, Any]
    runs: list[Line]
    claims: list[dict[str, Any]]
    tables: dict[str, list[Line]]


def read_study(folder: Path) -> Collected:
    """All of {results}/{scale}/{study} but the figures.

    Raises:
        UserError: a file is missing or was changed since it was written.
    """
    record = read_collected(folder)

    def lines(name: str) -> list[Line]:
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    tables = {Path(name).stem: lines(name) for name in record["files"] if "tables/" in name}
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    return Collected(folder, record, lines("runs.csv"), claims, tables)


def document(project: Project, study: Study, collected: Collected, config: Path) -> dict[str, Any]:
    """The mapping of the module's docstring, ready for JSON.

    Raises:
        UserError: the study or the scale has changed since it was collected.
    """
    cells = project.of(study.name)
    _check(project, study, collected)
    published = read_published(config / "published" / f"{study.name}.csv")
    labels = {name: row.label for name, row in study.rows.items()}
    return {
        "declared": _declared(study, cells, published, labels),
        "printed": {
            "title": prose(study.title),
            "paper": study.paper,
            "summary": prose(study.summary),
            "scale": project.scale.name,
            "scale_description": prose(project.scale.description),
            "stands_in": _stands_in(study, cells),
            "seeds": tally(collected.runs),
            "claims": [
                _claim(claim, declared.not_run, labels)
                for claim, declared in zip(collected.claims, study.claims, strict=True)
            ],
            "tables": [
                _table(table, study, collected.tables[table.id], published)
                for table in study.tables
            ],
            "figures": [
                {
                    "file": f"{figure.id}.svg",
                    "title": figure.title,
                    "caption": prose(figure.caption),
                }
                for figure in study.figures
            ],
            "assumptions": [
                {key: prose(text) for key, text in assumption.model_dump().items()}
                for assumption in study.assumptions
            ],
            "columns": sorted(
                {
                    (line["column"], line["metric"], line["reading"], line["protocol"])
                    for lines in collected.tables.values()
                    for line in lines
                }
            ),
            "runs": _runs(collected.runs),
            "protocol": project.scale.protocol,
            "knobs": [
                [named(key.replace("_", " ")), _value(value)]
                for key, value in project.protocol.model_dump(mode="json").items()
            ],
            "files": sorted(collected.record["files"].items()),
        },
    }


def _check(project: Project, study: Study, collected: Collected) -> None:
    found = {name: [(x["row"], x["column"]) for x in t] for name, t in collected.tables.items()}
    places = {t.id: [(row, c.label) for row in t.rows for c in t.columns] for t in study.tables}
    now = {row: cell.id for row, cell in project.of(study.name).items()}
    if (
        found != places
        or [claim["id"] for claim in collected.claims] != [claim.id for claim in study.claims]
        or (collected.record["rows"], collected.record["seeds"]) != (now, [*project.scale.seeds])
    ):
        raise UserError(f"{collected.folder} is of an older configuration; run collect again")


def _declared(
    study: Study, cells: Mapping[str, Cell], published: Cells, labels: Mapping[str, str]
) -> dict[str, Any]:
    """What was fixed before results: tables, tests, the values of options that trends follow."""
    options = {test.option for claim in study.claims for test in claim.tests if test.option}
    tables = []
    for table in study.tables:
        known = [
            [row, column.label, found.value, found.unit, found.decimals, found.n]
            for row in table.rows
            for column in table.columns
            if (found := _published(table, row, column.published, published))
            and found.value is not None
        ]
        tables.append(table.model_dump(mode="json") | {"published_values": known})
    return {
        "labels": labels,
        "rows": list(cells),
        "options": {
            option: {row: cell.option(option) for row, cell in cells.items()}
            for option in sorted(options)
        },
        "tables": tables,
        "claims": [claim.model_dump(mode="json") for claim in study.claims],
        "figures": [
            {"id": figure.id, "title": figure.title, "caption": figure.caption}
            for figure in study.figures
        ],
        "assumptions": [assumption.model_dump() for assumption in study.assumptions],
    }


def _published(table: Table, row: str, column: str | None, published: Cells) -> Published | None:
    return published.get((table.published or "", table.published_rows.get(row, ""), column or ""))


def named(text: str) -> str:
    """`text` with the words of NAMES in place of what the configuration writes."""
    return " ".join(NAMES.get(word, word) for word in text.split())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(each) for each in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _stands_in(study: Study, cells: Mapping[str, Cell]) -> list[list[str]]:
    """[what, at paper scale, here]; several values where rows differ."""
    paper, default = study.defaults, {name: f.default for name, f in Run.model_fields.items()}
    trained = [cell.run for cell in cells.values() if cell.run.epochs]

    def here(fact: Callable[[Run], Any]) -> str:
        values = (str(fact(run)) for run in trained)
        return ", ".join(dict.fromkeys(values)) or "nothing trained"

    def net(spec: BackboneSpec) -> str:
        return f"{named(spec.name)}, width {spec.width}"

    def plain(key: str) -> list[str]:
        name = key.replace("_", " ")
        return [name, str(paper.get(key, default[key])), here(lambda run: getattr(run, key))]

    size = ViewSpec.model_fields["size"].default
    return [
        ["data set", named(paper["dataset"]["name"]), here(lambda run: named(run.dataset.name))],
        [
            "backbone",
            net(BackboneSpec(**paper.get("backbone", {}))),
            here(lambda run: net(run.backbone)),
        ],
        ["views", f"{size} px", here(lambda run: f"{run.views[0].size} px")],
        plain("batch_size"),
        plain("epochs"),
    ]


def tally(runs: Sequence[Line]) -> str:
    """'14 of 15 seeds finished, 1 collapsed'."""
    states = Counter(line["status"] for line in runs)
    others = [f"{n} {named(state)}" for state, n in sorted(states.items()) if state != "finished"]
    return ", ".join([f"{states['finished']} of {len(runs)} seeds finished", *others])


# --- numbers and sentences as text ----------------------------------------------------------------


def prose(text: str, labels: Mapping[str, str] | None = None) -> str:
    """`text` with true dashes and transposes, and the labels of rows in place of their names."""
    for row, label in (labels or {}).items():
        if not label.startswith(row):  # 'untrained' reads well already, and is a word besides
            text = re.sub(rf"(?<![\w-]){re.escape(row)}(?![\w-])", label, text)
    return text.replace(" - ", " \u2013 ").replace("^T", "\u1d40")


def _fixed(number: float, decimals: int, *, signed: bool = False) -> str:
    """Fixed decimals with a true minus sign; never a negative zero."""
    rounded = round(number, decimals) + 0.0
    return f"{rounded:{'+' if signed else ''}.{decimals}f}".replace("-", "\u2212")


def _claim(claim: Mapping[str, Any], not_run: str, labels: Mapping[str, str]) -> dict[str, Any]:
    verdict, _, scale = claim["verdict"].partition(" @")
    return {
        "id": claim["id"],
        "statement": prose(claim["statement"]),
        "verdict": verdict,
        "scale": scale,
        "reason": prose(not_run[:1].upper() + not_run[1:]),
        "tests": [
            {
                "label": prose(test["label"]),
                "verdict": test["verdict"],
                "numbers": _test_numbers(test),
                "note": prose("; ".join(_test_notes(test)), labels),
            }
            for test in claim["tests"]
        ],
    }


def _unit(test: Mapping[str, Any]) -> tuple[float, int, str]:
    """(factor, decimals, unit) of a test's numbers: accuracies in percent, all else as it is."""
    per = " per tenfold" if test["kind"] == "trend" else ""
    if test["metric"].endswith("accuracy"):
        level = test["kind"] in ("above", "below")
        return 100.0, 2, (" %" if level else " points") + per
    return 1.0, 3, per


def _test_numbers(test: Mapping[str, Any]) -> str:
    """'+1.20 points (95 %: +0.30 to +2.10), p = 0.01, 3 seeds'."""
    if test["effect"] is None:
        return ""
    times, decimals, unit = _unit(test)
    level = test["kind"] in ("above", "below")

    def show(number: float) -> str:
        return _fixed(times * number, decimals, signed=not level)

    text = show(test["effect"]) + unit
    if test["interval"]:
        text += " (95 %: {} to {})".format(*map(show, test["interval"]))
    if test["p"] is not None:
        text += ", p < 0.001" if test["p"] < 0.001 else f", p = {test['p']:.2g}"
    return f"{text}, {test['seeds']}{NO_BREAK}seed{'s' if test['seeds'] != 1 else ''}"


def _test_notes(test: Mapping[str, Any]) -> Iterator[str]:
    """The remark of a test, its power in the unit of its effect."""
    for part in filter(None, test["remark"].split("; ")):
        if part.startswith("no seed has"):
            yield "not measured on every row"
        elif not part.startswith(("undecided", "contradicted")):
            yield part
    if test["verdict"] == "undecided" and test["detectable"] is not None:
        times, decimals, unit = _unit(test)
        shown = _fixed(times * test["detectable"], decimals)
        yield f"{test['seeds']} seeds would have shown a difference of {shown}{unit}"


def _table(table: Table, study: Study, lines: Sequence[Line], published: Cells) -> dict[str, Any]:
    notes: list[str] = []
    by_place = {(line["row"], line["column"]): line for line in lines}

    def cell(row: str, column: Column) -> dict[str, Any]:
        known = _published(table, row, column.published, published)
        return _cell(by_place[row, column.label], column, known, notes)

    return {
        "title": table.title,
        "note": prose(table.note),
        "columns": [column.label for column in table.columns],
        "rows": [
            {
                "label": study.rows[row].label,
                "over": study.rows[base].label if (base := table.baseline.get(row)) else "",
                "cells": [cell(row, column) for column in table.columns],
            }
            for row in table.rows
        ],
        "notes": notes,
        "sources": sorted({line["published_source"] for line in lines} - {""}),
    }


def _cell(line: Line, column: Column, known: Published | None, notes: list[str]) -> dict[str, Any]:
    """A cell as text; its remarks join the table's `notes`, and it keeps their numbers."""
    times = 100 if column.percent else 1

    def show(key: str, *, signed: bool = False) -> str:
        return _fixed(times * float(line[key]), column.decimals, signed=signed)

    absent = "not run" if not line["run"] else "no result"
    absent = "mixed" if line["verdict"] == "mixed" else absent
    ours = show("mean") if line["mean"] else absent
    if line["low"]:
        half = times * (float(line["high"]) - float(line["low"])) / 2
        ours += f" \u00b1 {_fixed(half, column.decimals)}"
    gain = show("gain", signed=True) if line["gain"] else ""
    if line["gain_low"]:
        ends = f"({show('gain_low', signed=True)} to {show('gain_high', signed=True)})"
        gain += f" {ends.replace(' ', NO_BREAK)}"
    lost = int(line["missing"]) + int(line["failed"])
    remarks = [r for r in line["remark"].split("; ") if r and not r.startswith("not run at scale")]
    notes += [remark for remark in dict.fromkeys(remarks) if remark not in notes]
    return {
        "ours": ours,
        "absent": not line["mean"],
        "seeds": f"{line['seeds']} of {int(line['seeds']) + lost} seeds" if lost else "",
        "gain": gain,
        "published": _published_text(known, column.percent) if known else "",
        "verdict": "" if line["verdict"] == ours else line["verdict"],
        "notes": sorted(notes.index(remark) + 1 for remark in remarks),
    }


def _published_text(known: Published, percent: bool) -> str:
    """A published number with its own digits, in the unit in which ours stands beside it."""
    if known.value is None:
        return "not available"
    shift = 2 * ((known.unit == "1") == percent) * (1 if percent else -1)
    shown = known.share(known.value) * (100 if percent else 1)
    return f"{shown:.{max(0, known.decimals - shift)}f}"


def _runs(lines: Sequence[Line]) -> list[dict[str, str]]:
    """One entry a row: its run, what became of each seed, and what made its numbers."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(line["row"], []).append(line)

    def shared(seeds: list[Line], key: str) -> str:
        return ", ".join(sorted({line[key] for line in seeds} - {""})) or "\u2013"

    out = []
    for seeds in rows.values():
        states: dict[tuple[str, str], list[str]] = {}
        for line in seeds:
            states.setdefault((line["status"], line["detail"]), []).append(line["seed"])
        outcome = "; ".join(
            f"{', '.join(numbers)} {named(status)}" + (f" ({detail})" if detail else "")
            for (status, detail), numbers in states.items()
        )
        out.append(
            {
                "label": seeds[0]["label"],
                "run": seeds[0]["run"],
                "seeds": outcome,
                **{key: shared(seeds, key) for key in ("epoch", "code", "data", "device", "torch")},
            }
        )
    return out
