"""Write the verdicts of a finished demo into README.md, between its markers (`make readme`).

`--check` writes nothing and fails where README.md says something else than the results.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from peregrine.config.load import load

ROOT = Path(__file__).parents[1]
START, END = "<!-- verdicts -->\n", "<!-- /verdicts -->\n"


def verdicts(results: Path, reports: Path, config: Path) -> str:
    """The tables of claims and of the theory, in Markdown."""
    project = load(config, scale="demo")
    seeds = [row for study in project.studies for row in runs(results / "demo" / study)]
    rows = {row["run"] for row in seeds}
    untrained = {row["run"] for row in seeds if row["epoch"] == "0"}
    each = len(project.scale.seeds)
    lines = [
        f"{len(rows)} rows with {each} seeds each: {(len(rows) - len(untrained)) * each} trainings"
        f" and {len(untrained) * each} untrained nets.",
        "",
        "| claim of the paper | verdict at scale `demo` |",
        "|---|---|",
    ]
    for study in project.studies:
        for claim in json.loads((results / "demo" / study / "claims.json").read_text()):
            statement = claim["statement"].rstrip(".")
            lines.append(f"| {claim['id']}: {statement} | {claim['verdict'].partition(' @')[0]} |")
    found = json.loads((reports / "demo/theory.json").read_text())["claims"]
    by_verdict: dict[str, list[str]] = {}
    for claim in found:
        by_verdict.setdefault(claim["verdict"], []).append(claim["id"])
    counted = "; ".join(f"{verdict} {', '.join(ids)}" for verdict, ids in by_verdict.items())
    lines += ["", f"Statements of FALCON's theory, by minimisation without a backbone: {counted}."]
    return "\n".join(lines) + "\n"


def runs(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    old, _, after = rest.partition(END)
    new = f"\n{verdicts(ROOT / 'results', ROOT / 'reports', ROOT / 'config')}\n"
    if check and old != new:
        sys.exit("README.md: the verdicts are not those of results/demo; run `make readme`")
    if not check:
        path.write_text(f"{before}{START}{new}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
