"""What undocumented choices are worth: the study again at scales like this one, one choice changed.

A scale that is `like` another says what differs from it: a batch, a rate, other views. Its runs are
trained and evaluated as any others; here its numbers are held beside those of the scale itself.
Nothing is averaged over scales, and no verdict is made from them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peregrine import files
from peregrine.config.load import Project, load
from peregrine.config.study import Claim, Study
from peregrine.errors import UserError
from peregrine.reporting.claims import Finding, measured
from peregrine.reporting.published import read_csv
from peregrine.reporting.records import Evidence, read_records
from peregrine.reporting.tables import rounded
from peregrine.reporting.words import listed

VALUES, TURNS = "sensitivity.csv", "sensitivity.json"


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
    paths = [folder / VALUES, folder / TURNS]
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
    found: dict[str, Evidence] = {}
    for name, other in others.items():
        records = read_records(other, study.name, results)
        cells = other.of(study.name)
        found[name] = Evidence(study, cells, records, {}, name, other.scale.protocol)
        lines += _lines(study, other, found[name])
    files.write_csv(paths[0], Elsewhere._fields, lines)
    described = {name: other.scale.description for name, other in others.items()}
    turns = [turned(claim, evidence, found, described) for claim in study.claims]
    files.write_text(paths[1], json.dumps(turns, indent=1, sort_keys=True) + "\n")
    return paths


def _lines(study: Study, other: Project, evidence: Evidence) -> Iterator[Elsewhere]:
    """The numbers that the study's figures of this kind show, each once."""
    drawn = dict.fromkeys(
        (row, panel.metric, panel.reading)
        for figure in study.figures
        if figure.kind == "sensitivity"
        for panel in figure.panels
        for rows in figure.groups.values()
        for row in rows
    )
    for row, metric, reading in drawn:
        label = study.rows[row].label
        for seed, value in sorted(evidence.records.values(row, metric, reading).items()):
            name, said = other.scale.name, other.scale.description
            yield Elsewhere(name, said, row, label, metric, reading, seed, value)


def read_sensitivity(folder: Path) -> list[Elsewhere]:
    """The lines of sensitivity.csv in {results}/{scale}/{study}; none where it is not there."""
    if not (folder / VALUES).is_file():
        return []
    kinds = {"seed": int, "value": float}
    return [
        Elsewhere(*(kinds.get(name, str)(line[name]) for name in Elsewhere._fields))
        for line in read_csv(folder / VALUES, Elsewhere._fields)
    ]


def turned(
    claim: Claim, here: Evidence, there: Mapping[str, Evidence], described: Mapping[str, str]
) -> dict[str, Any]:
    """How the tests of a claim fare at scales like this one.

    A test keeps its side where its effect is on the same side of its threshold; it turns clearly
    where the 95 % t intervals of both exclude the threshold. Where all trained rows of a test are
    the very runs of this scale, the choice does not concern it.

    Returns:
        id, sentence, and for every test its effect here and, by scale, there.
    """
    ours = {_key(f): f for f in measured(claim, here) if f.values}
    theirs = {
        name: {_key(f): f for f in measured(claim, evidence) if f.values}
        for name, evidence in there.items()
    }
    tests = []
    for key, finding in ours.items():
        beside = {
            name: found[key]
            for name, found in theirs.items()
            if key in found and _changed(finding, here, there[name])
        }
        if beside:
            variations = {
                name: _as_json(other) | {"turned": _turn(finding, other)}
                for name, other in beside.items()
            }
            entry = {"label": finding.label, "metric": finding.test.metric}
            tests.append(entry | _as_json(finding) | {"variations": variations})
    return {
        "id": claim.id,
        "tests": tests,
        "sentence": " ".join(
            filter(None, [_sentence(tests, len(ours), described), _lost(claim, there, described)])
        ),
    }


def _changed(finding: Finding, here: Evidence, there: Evidence) -> bool:
    """Whether a trained row of a test is another run there."""
    return any(
        here.cells[row].run.epochs and here.cells[row].id != there.cells[row].id
        for row in finding.rows
    )


def _lost(claim: Claim, there: Mapping[str, Evidence], described: Mapping[str, str]) -> str:
    """Which rows failed or were mixed at which scales: they are in no number."""
    out = []
    for name, evidence in there.items():
        named = dict.fromkeys(row for test in claim.tests for row in (*test.rows, *test.against))
        lost = [
            evidence.cells[row].label
            for row in named
            if row in evidence.cells
            and (evidence.records.mixed(row) or any(s.failed for s in evidence.records.seeds(row)))
        ]
        if lost:
            out.append(f"{described[name]} ({listed(lost)})")
    return f"Failed or mixed seeds under: {'; '.join(out)}." if out else ""


def _key(finding: Finding) -> tuple[str, tuple[str, ...]]:
    return finding.label, finding.rows


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "effect": rounded(finding.found.mean),
        "interval": finding.interval,
        "seeds": len(finding.values),
    }


def _turn(ours: Finding, other: Finding) -> str:
    """'', 'other side' or 'clearly other side' of the threshold; of both, for equality."""
    if ours.test.kind == "equivalent":
        margin = ours.test.threshold
        inside = [abs(rounded(each.found.mean)) < margin for each in (ours, other)]
        return "" if inside[0] == inside[1] else "other side"
    null = ours.test.threshold
    means = [rounded(each.found.mean) for each in (ours, other)]  # as claims.json has them
    if (means[0] > null) == (means[1] > null) or means[0] == null:
        return ""
    ends = [each.interval for each in (ours, other)]
    apart = all(each and not each[0] <= null <= each[1] for each in ends)
    return "clearly other side" if apart else "other side"


def _sentence(tests: Sequence[Mapping], measured: int, described: Mapping[str, str]) -> str:
    """What a claim's verdict depends on, in words."""
    if not tests:
        return (
            "Not looked at: no test of it has all of its rows at a variation, trained and changed."
        )
    names = dict.fromkeys(name for test in tests for name in test["variations"])
    turns: dict[str, dict[str, list[str]]] = {"clearly other side": {}, "other side": {}}
    for test in tests:
        for name, found in test["variations"].items():
            if found["turned"]:
                by_test = turns[found["turned"]].setdefault(test["label"], [])
                by_test.append(described[name])
    several = "1 variation" if len(names) == 1 else f"{len(names)} variations"
    text = f"{len(tests)} of its {measured} tests measured here were repeated under {several}."
    if not any(turns.values()):
        return f"{text} All keep their side."
    for kind, words in (("clearly other side", "Clearly turned"), ("other side", "Turned, within")):
        parts = [f"{label} ({listed(where)})" for label, where in turns[kind].items()]
        if parts:
            noise = " noise" if kind == "other side" else ""
            text += f" {words}{noise}: {'; '.join(parts)}."
    kept = len({t["label"] for t in tests} - {x for kind in turns.values() for x in kind})
    return f"{text} The other {kept} keep their side in all." if kept else text
