"""docs/parity.md's tables from benchmarks/recorded/against_lightly{,_longer}.{csv,json}.

    PYTHONPATH=src python tools/parity.py [--check]

--check changes nothing and fails where the page says something else.
"""

import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from peregrine.files import read_json, write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/parity.md"
RECORDED = ROOT / "benchmarks/recorded/against_lightly"
LONGER = ROOT / "benchmarks/recorded/against_lightly_longer.json"


def accuracies(results: dict) -> list[str]:
    lines = [
        "| method | first steps | last loss, ours / other | probe, ours, % | probe, other, %"
        " | difference [95 %] | kNN, difference [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in sorted(results.items()):
        name, side = key.split("/")
        label = name.replace("_", " ") + (", *matched*" if side == "matched" else "")
        cells = [label, f"{found['first_steps']:.0e}"]
        if found["seeds"]:
            loss, probe = found["loss"], found["linear"]
            cells.append(f"{loss['ours']:.3f} / {loss[side]:.3f}")
            for which in ("ours", side):
                sd = probe[f"{which}_sd"]
                cells.append(f"{100 * probe[which]:.1f} ± {100 * sd:.1f}")
            cells += [difference(probe), difference(found["knn"])]
        cells += [""] * (7 - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def difference(found: dict) -> str:
    low, high = (f"{100 * found[end]:+.1f}" for end in ("low", "high"))
    beyond = "" if found["within_interval"] else " **beyond**"
    return f"{100 * found['difference']:+.1f} [{low}, {high}]{beyond}"


def losses(lines: list[dict]) -> list[str]:
    curves: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["metric"] == "loss":
            place = line["method"], line["side"]
            curves[place][int(line["epoch"])].append(float(line["value"]))
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    shown = epochs if len(epochs) <= 6 else [*epochs[:3], epochs[len(epochs) // 2], *epochs[-2:]]
    out = [
        f"| method | side | {' | '.join(f'epoch {epoch}' for epoch in shown)} |",
        f"|---|---|{'---|' * len(shown)}",
    ]
    for (name, side), curve in curves.items():
        numbers = " | ".join(f"{mean(curve[epoch]):.4f}" for epoch in shown)
        out.append(f"| {name.replace('_', ' ')} | {side} | {numbers} |")
    return out


def filled(page: str) -> str:
    with RECORDED.with_suffix(".csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    blocks = {
        "accuracies": accuracies(read_json(RECORDED.with_suffix(".json"))["results"]),
        "longer": accuracies(read_json(LONGER)["results"]),
        "losses": losses(lines),
    }
    for name, block in blocks.items():
        text = "\n".join([f"<!-- {name} -->", *block, f"<!-- /{name} -->"])
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        count = len(re.findall(pattern, page, flags=re.S))
        if count != 1:
            sys.exit(f"{PAGE}: there must be one <!-- {name} --> and one <!-- /{name} -->")
        page = re.sub(pattern, text.replace("\\", r"\\"), page, flags=re.S)
    return page


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if "--check" not in sys.argv:
        write_text(PAGE, after)
    elif after != before:
        sys.exit(f"{PAGE} is not what was recorded; run tools/parity.py")
