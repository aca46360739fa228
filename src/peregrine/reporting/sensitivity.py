"""What undocumented choices are worth: the study again at scales like this one, one choice changed.

A scale that is `like` another says what differs from it: a batch, a rate, other views. Its runs are
trained and evaluated as any others; here its numbers are held beside those of the scale itself.
Nothing is averaged over scales, and no verdict is made from them. The words are made where they are
printed, in `peregrine.reporting.document_sensitivity`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peregrine import files
from peregrine.config.load import Cell, Project, load
from peregrine.config.models import Run
from peregrine.config.study import Claim, Study, Test
from peregrine.errors import UserError
from peregrine.reporting.claims import Finding, measured
from peregrine.reporting.ordering import agreement, mean_of
from peregrine.reporting.published import read_csv
from peregrine.reporting.records import Evidence, read_records
from peregrine.reporting.statistics import Estimate, estimate, paired
from peregrine.reporting.tables import rounded
from peregrine.reporting.words import listed, seeds_lost, unit_of

VALUES, COMPARED = "sensitivity.csv", "sensitivity.json"


class Elsewhere(NamedTuple):
    """A line of sensitivity.csv: a number of one seed at a scale like this one."""

    variation: str
    description: str
    row: str
    label: str
    metric: str
    reading: str
    seed: int
    value: float


def write_sensitivity(
    project: Project, study: Study, results: Path, config: Path, evidence: Evidence
) -> list[Path]:
    """Write sensitivity.csv and sensitivity.json of a study, where scales are like this one.

    Args:
        evidence: of the scale itself.

    Returns:
        The paths of both; none where no scale is like this one.
    """
    folder = results / project.scale.name / study.name
    paths = [folder / VALUES, folder / COMPARED]
    others = {name: load(config, scale=name) for name in project.variations}
    others = {name: other for name, other in others.items() if study.name in other.studies}
    if not others:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    said: dict[str, str] = {}
    for name, other in others.items():
        twin = said.setdefault(other.scale.description, name)
        if twin != name:
            raise UserError(f"scales {twin} and {name} have one description; make them two")
    lines: list[Elsewhere] = []
    variations: list[dict[str, Any]] = []
    found: dict[str, Evidence] = {}
    for name, other in others.items():
        records = read_records(other, study.name, results)
        cells = other.of(study.name)
        found[name] = Evidence(study, cells, records, {}, name, other.scale.protocol)
        lines += _lines(study, other, evidence, found[name])
        variations.append(_variation(other, evidence, found[name]))
    files.write_csv(paths[0], Elsewhere._fields, lines)
    claims = [compared(claim, evidence, found) for claim in study.claims]
    orders = [*_orders(study, evidence, found)]
    everything = {"variations": variations, "claims": claims, "orders": orders}
    files.write_text(paths[1], json.dumps(everything) + "\n")
    return paths


def is_another(here: Cell, there: Cell) -> bool:
    """Whether a row is another net at a variation than at the scale itself.

    A trained one is where its run has another id. The id of an untrained net also names a rate, a
    batch and views, which made nothing of it: it is another one only where the data, the backbone,
    the method with its head, or the size at which it sees images differ.
    """
    if here.run.epochs or there.run.epochs:
        return here.id != there.id
    return _untrained(here.run) != _untrained(there.run)


def _untrained(run: Run) -> tuple[Any, ...]:
    return run.dataset, run.backbone, run.method, max(view.size for view in run.views)


def _changed(rows: Iterable[str], here: Evidence, there: Evidence) -> list[str]:
    """Those of `rows` that both scales run, and that are other nets there."""
    both = [row for row in rows if row in here.cells and row in there.cells]
    return [row for row in both if is_another(here.cells[row], there.cells[row])]


def _drawn(study: Study) -> dict[tuple[str, str], tuple[str, dict[str, None]]]:
    """(metric, reading) of the study's figures of this kind -> label, and the rows drawn of it."""
    drawn: dict[tuple[str, str], tuple[str, dict[str, None]]] = {}
    for figure in study.figures:
        for panel in figure.panels if figure.kind == "sensitivity" else ():
            _, rows = drawn.setdefault((panel.metric, panel.reading), (panel.label, {}))
            rows |= dict.fromkeys(figure.rows)
    return drawn


def _orders(
    study: Study, here: Evidence, there: Mapping[str, Evidence]
) -> Iterator[dict[str, Any]]:
    """Of each drawn metric tau-b between rows here and at each variation that has four or more.

    Rows that it changes, their means over the seeds that both have; no p, as nobody expects rows
    trained again to come in any order.
    """
    for (metric, reading), (label, rows) in _drawn(study).items():
        variations = {}
        for name, other in there.items():
            pairs = []
            for row in _changed(rows, here, other):
                ours, theirs = (e.records.values(row, metric, reading) for e in (here, other))
                if shared := ours.keys() & theirs.keys():
                    pairs.append([mean_of(x[s] for s in sorted(shared)) for x in (ours, theirs)])
            tau = agreement(*zip(*pairs, strict=True)) if pairs else None
            if tau is not None:
                variations[name] = {"rows": len(pairs), "tau": rounded(tau)}
        if variations:
            found = {"metric": metric, "reading": reading, "label": label}
            yield found | {"variations": variations}


def _lines(study: Study, other: Project, here: Evidence, there: Evidence) -> Iterator[Elsewhere]:
    """The numbers that the study's figures of this kind show of changed rows, each once."""
    drawn = [
        (row, *measured)
        for measured, (_, rows) in _drawn(study).items()
        for row in _changed(rows, here, there)
    ]
    for row, metric, reading in drawn:
        label = study.rows[row].label
        for seed, value in sorted(there.records.values(row, metric, reading).items()):
            name, said = other.scale.name, other.scale.description
            yield Elsewhere(name, said, row, label, metric, reading, seed, value)


def _variation(other: Project, here: Evidence, there: Evidence) -> dict[str, Any]:
    """What has become of a variation's seeds: row -> those with a value, and what the others are.

    A value is one that the study draws of variations or tests. `same` are the rows that the
    variation leaves as they are.
    """
    study = here.study
    asked = {metric for metric, _ in _drawn(study)}
    asked |= {test.metric for claim in study.claims for test in claim.tests}
    changed = _changed(there.cells, here, there)
    valued: dict[str, set[int]] = {}
    for m in there.records.measurements:
        if m.metric in asked:
            valued.setdefault(m.row, set()).add(m.seed)
    rows = {}
    for row in changed:
        mine = set() if there.records.mixed(row) else valued.get(row, set())
        lost = [[s.failure or s.status, s.seed] for s in there.records.seeds(row)]
        rows[row] = {
            "label": there.cells[row].label,
            "valued": sorted(mine),
            "lost": [each for each in lost if each[1] not in mine],
        }
    same = {
        row: cell.label
        for row, cell in there.cells.items()
        if row in here.cells and row not in changed
    }
    scale = other.scale
    described = {"name": scale.name, "description": scale.description, "seeds": [*scale.seeds]}
    return described | {"rows": rows, "same": same}


def read_sensitivity(folder: Path) -> tuple[list[Elsewhere], list[dict[str, Any]]]:
    """Lines of sensitivity.csv in {results}/{scale}/{study}, variations of sensitivity.json.

    Both are empty where the files are not there.
    """
    if not (folder / VALUES).is_file():
        return [], []
    kinds = {"seed": int, "value": float}
    lines = [
        Elsewhere(*(kinds.get(name, str)(line[name]) for name in Elsewhere._fields))
        for line in read_csv(folder / VALUES, Elsewhere._fields)
    ]
    return lines, json.loads((folder / COMPARED).read_text(encoding="utf-8"))["variations"]


def coverage(variations: Sequence[Mapping[str, Any]], rows: Iterable[str] = ()) -> list[str]:
    """What variations lack of `rows`, or of all: sentences for a report or below a figure."""
    asked, none, fewer = set(rows), [], []
    same: dict[str, list[str]] = {}
    whole: dict[str, list[str]] = {}
    for each in variations:
        changed = [line for row, line in each["rows"].items() if row in asked or not asked]
        for row, label in each["same"].items():
            if row in asked or not asked:
                same.setdefault(label, []).append(each["description"])
        if not any(line["valued"] for line in changed):
            none += [each["description"]] * bool(changed)
            continue
        losses = [set(map(tuple, line["lost"])) for line in changed]
        every = set.intersection(*losses) if len(losses) > 1 else set()
        if every:
            whole.setdefault(seeds_lost(sorted(every)), []).append(each["description"])
        lost = [
            f"{line['label']}, {seeds_lost(sorted(loss - every))}"
            for line, loss in zip(changed, losses, strict=True)
            if loss - every
        ]
        if lost:
            have = sum(len(line["valued"]) for line in changed)
            of = f"{have} of {len(changed) * len(each['seeds'])} seeds"
            fewer.append(f"{each['description']} has {of} ({listed(lost)})")
    said = [f"No result yet with {'; '.join(none)}."] if none else []
    said += [f"Of every row {text}: {'; '.join(where)}." for text, where in whole.items()]
    said += [f"Seeds without a value: {'; '.join(fewer)}."] if fewer else []
    kept = [
        label if len(where) == len(variations) else f"{label} ({'; '.join(where)})"
        for label, where in same.items()
    ]
    return said + ([f"Left as it is, so not compared: {'; '.join(kept)}."] if kept else [])


def compared(claim: Claim, here: Evidence, there: Mapping[str, Evidence]) -> dict[str, Any]:
    """The tests of a claim beside themselves at scales like this one, where a row of them changed.

    Returns:
        id; measured, the number of its tests that have a number here; for each test that has one
        at a variation too its effect here and, by scale, there (see `_beside`); lost, the failed
        and mixed seeds there.
    """
    ours = {_key(f): f for f in measured(claim, here) if f.values}
    theirs = {
        name: {_key(f): f for f in measured(claim, evidence) if f.values}
        for name, evidence in there.items()
    }
    tests, shown = [], {name: [] for name in there}
    for key, finding in ours.items():
        variations = {}
        for name, found in theirs.items():
            if key in found and _changed(finding.rows, here, there[name]):
                variations[name] = _beside(finding, found[key])
                shown[name].append(found[key])
        if variations:
            test = finding.test
            entry = {"label": finding.label, "metric": test.metric, "kind": test.kind}
            entry |= {"threshold": test.threshold, "values": _values(finding)}
            entry |= _as_json(finding.found, finding.values)  # as in claims.json
            tests.append(entry | {"variations": variations})
    lost = [each for name, e in there.items() for each in _lost(claim, here, e, shown[name])]
    return {"id": claim.id, "measured": len(ours), "tests": tests, "lost": lost}


def _key(finding: Finding) -> tuple[str, str, tuple[str, ...]]:
    return finding.label, finding.test.metric, finding.rows


def _values(finding: Finding) -> dict[int, float]:
    """Rounded, so that whoever reads the file can compute the rest."""
    return {seed: rounded(value) for seed, value in sorted(finding.values.items())}


def _as_json(found: Estimate, values: Mapping[int, float]) -> dict[str, Any]:
    ends = None if found.low is None else [rounded(found.low), rounded(found.high)]
    return {"effect": rounded(found.mean), "interval": ends, "seeds": len(values)}


def _beside(ours: Finding, other: Finding) -> dict[str, Any]:
    """A test at a variation: its effect, and by how much it differs from that here.

    as_chosen: the effect here over the seeds that both have. change: effect there minus that, seed
    by seed. apart: its 95 % t interval leaves 0 out. turned: over these seeds the effects are on
    opposite sides of the threshold; for equality, one within the margin and one beyond. clear: the
    intervals of both are wholly on one side.
    """
    test, values = ours.test, _values(other)
    there = _as_json(estimate(list(values.values())), values)
    shift = paired(values, _values(ours))
    change = _as_json(estimate(list(shift.values())), shift)
    before = {seed: _values(ours)[seed] for seed in shift}
    as_chosen = _as_json(estimate(list(before.values())), before)
    ends = change["interval"]
    sides = [
        side(test, mean_of(effects[seed] for seed in shift)) if shift else 0
        for effects in (before, values)
    ]
    return there | {
        "values": values,
        "as_chosen": as_chosen,
        "change": change,
        "apart": bool(ends) and not ends[0] <= 0 <= ends[1],
        "turned": sides[0] * sides[1] < 0,
        "clear": all(_clear(test, each["interval"]) for each in (as_chosen, there)),
    }


def side(test: Test, effect: float) -> int:
    """1 above the threshold, -1 below it; for equality 1 within the margin, -1 beyond.

    0 where a report prints no distance from it.
    """
    times, decimals, _ = unit_of({"kind": test.kind, "metric": test.metric})
    equality = test.kind == "equivalent"
    distance = test.threshold - abs(effect) if equality else effect - test.threshold
    return int(np.sign(round(times * distance, decimals)))


def _clear(test: Test, interval: Sequence[float] | None) -> bool:
    """Whether an interval leaves the threshold out; for equality, both ends of the margin."""
    if interval is None:
        return False
    margins = [-test.threshold, test.threshold]
    nulls = margins if test.kind == "equivalent" else [test.threshold]
    return not any(interval[0] <= null <= interval[1] for null in nulls)


def _lost(
    claim: Claim, here: Evidence, there: Evidence, shown: Sequence[Finding]
) -> Iterator[dict[str, Any]]:
    """Failed and mixed seeds of the changed rows of a claim, and whether `shown` numbers hold them.

    A seed that failed and left a value is in the effects, as it is in those of the scale itself.
    """
    metrics: dict[str, list[str]] = {}
    for test in claim.tests:
        for row in test.every_row:
            metrics.setdefault(row, []).append(test.metric)
    for row in _changed(metrics, here, there):
        entry = {"variation": there.scale, "row": row, "label": there.cells[row].label}
        if there.records.mixed(row):
            yield entry | {"state": "mixed", "seeds": []}
            continue
        failed = set().union(*(there.records.failed(row, metric) for metric in metrics[row]))
        used = {seed for finding in shown if row in finding.rows for seed in finding.values}
        for state, seeds in (("counted", failed & used), ("left out", failed - used)):
            if seeds:
                yield entry | {"state": state, "seeds": sorted(seeds)}
