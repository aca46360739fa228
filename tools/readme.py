"""Write the verdicts of a finished demo and of published scales into README.md (`make readme`).

The column of scale demo comes from results/demo, those of other scales from reports/published/.
`--check` writes nothing and fails where README.md says something else, between its markers.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peregrine.config.load import load
from peregrine.reporting.document import tally
from peregrine.reporting.document_claims import could_show
from peregrine.reporting.statistics import POWER

ROOT = Path(__file__).parents[1]
START, END = "<!-- verdicts -->\n", "<!-- /verdicts -->\n"
FITS = 50
"""Characters that a verdict may have in its cell; what is longer stands below the table."""

VOTES = {"supported": "for", "contradicted": "against", "undecided": "open"}
"""Verdict of a test -> what a mixed claim calls it."""

NEEDED = {"id", "verdict", "tests", "votes", "interim"}
"""What is read of a published claim."""

NAMES = {"ami": "AMI", "nmi": "NMI"}

Claims = dict[str, list[dict[str, Any]]]
"""Study -> its claims.json."""


def block(root: Path) -> str:
    """The table of claims by scale, and what is to be said of it, in Markdown."""
    project = load(root / "config", scale="demo")
    demo = claims_of(root / "results/demo", project.studies)
    absent = [study for study in project.studies if study not in demo]
    theory = root / "reports/demo/theory.json"
    if absent or not theory.is_file():
        sys.exit(f"{root / 'results/demo'}: no finished demo; run `make demo` first")
    others = published(root / "reports/published", project.studies)
    table, below = verdicts(demo, others)
    lines = [f"- `demo`: {seeds(root / 'results/demo', project)}."]
    for scale in others:
        lines.append(f"- `{scale}`: {parts(root / 'reports/published' / scale, others[scale])}.")
    lines += ["", *table, "", *below]
    found = json.loads(theory.read_text(encoding="utf-8"))["claims"]
    by_verdict: dict[str, list[str]] = {}
    for claim in found:
        by_verdict.setdefault(claim["verdict"], []).append(claim["id"])
    counted = "; ".join(f"{verdict} {', '.join(ids)}" for verdict, ids in by_verdict.items())
    if others:
        lines += [explained(table, below), ""]
    again = "`make demo`, `make published` for the other columns" if others else "`make demo`"
    lines += [f"To regenerate: {again}, then `make readme`.", ""]
    lines += [
        "Statements of FALCON's theory ([worded here](config/theory.yaml)), by minimisation without"
        f" a backbone: {counted}."
    ]
    return "\n".join(lines) + "\n"


def claims_of(folder: Path, studies: Sequence[str]) -> Claims:
    """The claims of every study that has been collected in `folder`."""
    paths = {study: folder / study / "claims.json" for study in studies}
    return {
        study: json.loads(path.read_text(encoding="utf-8"))
        for study, path in paths.items()
        if path.is_file()
    }


def published(folder: Path, studies: Sequence[str]) -> dict[str, Claims]:
    """Scale -> its claims, of every published scale but demo; from the small to the large."""
    names = sorted(path.name for path in folder.glob("*") if path.is_dir() and path.name != "demo")
    names.sort(key=lambda name: name == "paper")
    found = {name: claims_of(folder / name, studies) for name in names}
    for name, claims in found.items():
        for study, each in claims.items():
            if any(not NEEDED <= claim.keys() for claim in each):
                path = folder / name / study / "claims.json"
                sys.exit(f"{path}: of older code; run `make published`")
    return {name: claims for name, claims in found.items() if claims}


def verdicts(demo: Claims, others: Mapping[str, Claims]) -> tuple[list[str], list[str]]:
    """(lines of the table, lines below it).

    The demo's verdicts stand alone: on another kind of processor its trainings end in other
    numbers, and CI compares this table with a fresh demo.
    """
    columns = " | ".join(f"`{scale}`" for scale in ("demo", *others))
    lines = [
        f"| claim of the paper, and its verdict at scale | {columns} |",
        "|---|" + "---|" * (1 + len(others)),
    ]
    below: list[str] = []
    for study, claims in demo.items():
        for claim in claims:
            cells = [f"{claim['id']}: {claim['statement'].rstrip('.')}", verdict(claim)]
            for scale, known in others.items():
                same = [each for each in known.get(study, ()) if each["id"] == claim["id"]]
                cell, more = said(same[0]) if same else ("\u2013", "")
                cells.append(cell)
                below += [f"- {claim['id']} at `{scale}` could show {more}."] if more else []
            lines.append(f"| {' | '.join(cells)} |")
    return lines, [*below, ""] if below else []


def explained(table: Sequence[str], below: Sequence[str]) -> str:
    """The words of the table that need it."""
    text = " ".join([*table, *below])
    out = []
    if "could show" in text:
        out.append(
            "What seeds could show: the smallest true effect that they would have found with"
            f" {POWER:.0%} power, were the standard deviation the measured one; of several tests,"
            " that of the most and of the least able."
        )
    if "interim" in text:
        out.append("Interim: planned seeds are still missing.")
    if " for, " in text:
        out.append("For, against, open: tests that support, contradict, or are undecided.")
    return " ".join(out)


def verdict(claim: Mapping[str, Any]) -> str:
    return claim["verdict"].partition(" @")[0]


def said(claim: Mapping[str, Any]) -> tuple[str, str]:
    """(verdict, with what an undecided claim could have shown; that, where it is too long)."""
    name, more = verdict(claim), ""
    about = ["interim"] if claim["interim"] and name != "not run" else []
    if name == "mixed":
        votes = [f"{claim['votes'].get(kind, 0)} {word}" for kind, word in VOTES.items()]
        about.append(", ".join(votes))
    if name == "undecided":
        more = "; ".join(smallest_effects(claim["tests"]))
        about.append(f"could show {more}" if more else without_effect(claim["tests"]))
    cell = f"{name} ({', '.join(about)})" if about else name
    if not more or len(cell) <= FITS:
        return cell, ""
    return f"{name} ({', '.join([*about[:-1], 'see below'])})", more


def smallest_effects(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """'1.2 to 3.4 points': from the least to the most of the undecided tests, by unit."""
    groups: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test["verdict"] == "undecided" and test["detectable"] is not None:
            number, unit = could_show(test)
            before = "equality within " if test["kind"] == "equivalent" else ""
            groups.setdefault((before, unit + of_what(test["metric"])), []).append(number)
    out = []
    for (before, after), numbers in groups.items():
        ends = sorted(set(numbers), key=float)
        out.append(before + " to ".join(dict.fromkeys([ends[0], ends[-1]])) + after)
    return out


def of_what(metric: str) -> str:
    """' in AMI': the metric of a number without a unit; points are points of accuracy."""
    name = metric.rpartition("/")[2].replace("_", " ")
    return "" if name.endswith("accuracy") else f" in {NAMES.get(name, name)}"


def without_effect(tests: Sequence[Mapping[str, Any]]) -> str:
    """Why a claim is undecided although no test could be given an effect that it could show."""
    undecided = [test for test in tests if test["verdict"] == "undecided"]
    if any(test["failed"] for test in undecided):
        return "seeds failed"
    return "one seed" if any(test["seeds"] == 1 for test in undecided) else "not all of it run"


def seeds(folder: Path, project: Any) -> str:
    """'15 rows with 3 seeds each: 39 trainings and 6 untrained nets'."""
    lines = [line for study in project.studies for line in runs(folder / study)]
    rows = {line["run"] for line in lines}
    untrained = {line["run"] for line in lines if line["epoch"] == "0"}
    each = len(project.scale.seeds)
    return (
        f"{len(rows)} rows with {each} seeds each: {(len(rows) - len(untrained)) * each} trainings"
        f" and {len(untrained) * each} untrained nets"
    )


def parts(folder: Path, studies: Sequence[str]) -> str:
    """'[falcon](...pdf), 15 rows x 3 seeds: all finished', of each study of a snapshot."""
    place = f"reports/published/{folder.name}"
    return "; ".join(
        f"[{study}]({place}/{study}.pdf), {tally(runs(folder / study))}" for study in studies
    )


def runs(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(words).check
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    if not text.count(START) == text.count(END) == 1:
        sys.exit(f"{path}: there must be one {START.strip()} and one {END.strip()}")
    before, _, rest = text.partition(START)
    old, _, after = rest.partition(END)
    new = f"\n{block(root)}\n"
    if check and old != new:
        sys.exit(
            "README.md: the verdicts are not those of results/demo and reports/published;"
            " run `make readme`"
        )
    if not check:
        path.write_text(f"{before}{START}{new}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
