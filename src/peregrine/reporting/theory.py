"""The step `theory_report`: declared limits held against what was minimised; notebook and PDF.

Reads the long-form CSV files that the step `theory` left. Like a study's, the mapping is written
first; the notebook judges again from the CSV files and fails if a number differs; the PDF prints.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from peregrine import files
from peregrine.config.theory import TheoryClaim, TheoryStudy, TheoryTest
from peregrine.errors import UserError
from peregrine.reporting.notebook import execute
from peregrine.reporting.report import WORKFLOW, compile_pdf
from peregrine.reporting.theory_figures import draw
from peregrine.reporting.words import prose

NOTEBOOK = WORKFLOW / "notebooks" / "theory.py"
TEMPLATE = WORKFLOW / "report" / "theory.typ"
STARTS = {
    "one_hot": "one code each",
    "spread": "spread over c/n codes",
    "equal_share": "equal shares",
    "carriers": "a few carriers",
    "aligned": "promised optimum",
    "random": "random",
}
"""Starts as readers know them."""

Frames = Mapping[str, pd.DataFrame]


def theory_report(study: TheoryStudy, scale: str, folder: Path, target: Path) -> None:
    """Write theory.json, .ipynb, .html and .pdf to `target` from what `theory` left in `folder`.

    Raises:
        UserError: a file is missing or was changed, or is of other sizes than configured now.
    """
    record, frames = read_theory(study, folder)
    claims = [judge(claim, frames) for claim in study.claims]
    data = {
        "declared": study.model_dump(mode="json", include={"title", "sizes", "claims"}),
        "claims": claims,
        "printed": _printed(study, scale, record, frames, claims),
    }
    files.write_json(target / "theory.json", data)
    parameters = {"folder": os.path.relpath(folder, target), "declarations": "theory.json"}
    notebook, page = execute(NOTEBOOK, parameters, target, study.title)
    with tempfile.TemporaryDirectory() as scratch:
        for figure in study.figures:
            files.write_bytes(Path(scratch, f"{figure.id}.svg"), draw(figure.id, frames))
        pdf = compile_pdf(TEMPLATE, target / "theory.json", Path(scratch))
    files.write_bytes(target / "theory.ipynb", notebook)
    files.write_bytes(target / "theory.html", page)
    files.write_bytes(target / "theory.pdf", pdf)


def read_theory(study: TheoryStudy, folder: Path) -> tuple[dict[str, Any], Frames]:
    """(theory.json, its CSV files as frames by name), sums verified.

    Raises:
        UserError: see theory_report.
    """
    record = files.read_json(folder / "theory.json")
    for name, checksum in record["files"].items():
        if not (folder / name).is_file() or files.sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is missing or was changed; run theory again")
    if record["sizes"] != study.sizes.model_dump(mode="json"):
        raise UserError(f"{folder} is of other sizes than configured now; run theory again")
    return record, {Path(name).stem: pd.read_csv(folder / name) for name in record["files"]}


# --- verdicts -------------------------------------------------------------------------------------


def judge(claim: TheoryClaim, frames: Frames) -> dict[str, Any]:
    """Verdicts of a claim's tests, and its own: mixed where they differ.

    A test without lines is not run at this scale; beside it a claim is at best undecided.

    Raises:
        UserError: a test names a metric or a column that its file does not have.
    """
    tests = [_decide(test, frames[test.file]) for test in claim.tests]
    verdicts = {test["verdict"] for test in tests}
    if verdicts == {"supported", "not run"}:
        verdicts = {"undecided"}
    elif len(verdicts) > 1:
        verdicts -= {"not run"}
    verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
    return {"id": claim.id, "verdict": verdict, "tests": tests}


def _decide(test: TheoryTest, frame: pd.DataFrame) -> dict[str, Any]:
    unknown = [column for column in test.where if column not in frame.columns]
    if unknown or test.metric not in set(frame["metric"]):
        name = f"column '{unknown[0]}'" if unknown else f"metric '{test.metric}'"
        raise UserError(f"theory.yaml: test '{test.label}': {test.file}.csv has no {name}")
    values = select(frame, {"metric": test.metric, **test.where})["value"]
    if values.empty:
        return {"value": None, "lines": 0, "verdict": "not run"}
    value = float(getattr(values, test.reduce)())
    low = -math.inf if test.at_least is None else test.at_least
    high = math.inf if test.at_most is None else test.at_most
    verdict = "supported" if low <= value <= high else "contradicted"
    return {"value": value, "lines": len(values), "verdict": verdict}


def select(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Lines whose columns have one of the wanted values; 'random-*' means any that begins so."""
    for column, wanted in where.items():
        wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        kept = frame[column].isin(wanted)
        for each in wanted:
            if isinstance(each, str) and each.endswith("*"):
                kept |= frame[column].str.startswith(each[:-1])
        frame = frame[kept]
    return frame


# --- what is printed ------------------------------------------------------------------------------


def shown(number: float | None) -> str:
    """Five significant digits, powers of ten below a thousandth, with a true minus sign."""
    if number is None:
        return "\u2013"
    if float(number).is_integer():
        return f"{number:.0f}".replace("-", "\u2212")
    text = f"{number:.5g}" if abs(number) >= 1e-3 else f"{number:.2g}".replace("e-0", "e-")
    return text.replace("-", "\u2212")


def _limit(test: TheoryTest) -> str:
    low, high = test.at_least, test.at_most
    if low is not None and high is not None:
        return f"from {shown(low)} to {shown(high)}"
    return f"at least {shown(low)}" if high is None else f"at most {shown(high)}"


def _printed(
    study: TheoryStudy, scale: str, record: Mapping[str, Any], frames: Frames, claims: list
) -> dict[str, Any]:
    return {
        "title": study.title,
        "paper": study.paper,
        "summary": prose(study.summary),
        "scale": scale,
        "claims": [
            {
                "id": claim.id,
                "statement": prose(claim.statement),
                "remark": prose(claim.remark),
                "verdict": found["verdict"],
                "tests": [
                    {
                        "label": prose(test.label),
                        "verdict": result["verdict"],
                        "value": shown(result["value"]),
                        "limit": _limit(test),
                    }
                    for test, result in zip(claim.tests, found["tests"], strict=True)
                ],
            }
            for claim, found in zip(study.claims, claims, strict=True)
        ],
        "tables": [
            _assignments(frames["assignments"], study),
            _blocks(frames["embeddings"]),
            _few(frames["embeddings"]),
        ],
        "figures": [
            {"file": f"{each.id}.svg", "title": each.title, "caption": prose(each.caption)}
            for each in study.figures
        ],
        "sizes": [
            [field.description, ", ".join(map(shown, value)) if many else shown(value)]
            for name, field in type(study.sizes).model_fields.items()
            for value in [getattr(study.sizes, name)]
            for many in [isinstance(value, tuple)]
        ],
        "code": record["code"],
        "digits": record["digits"],
        "files": sorted(record["files"].items()),
    }


def _one(frame: pd.DataFrame, metric: str, **where: Any) -> str:
    """Mean of the lines, or a dash where there are none."""
    values = select(frame, {"metric": metric, **where})["value"]
    return shown(values.mean()) if len(values) else "\u2013"


def _assignments(frame: pd.DataFrame, study: TheoryStudy) -> dict[str, Any]:
    n, c = study.sizes.assignment_samples, study.sizes.assignment_codes
    at = {"c": c, "beta": 1.0}
    columns = [
        ("forward, as built", "loss", {"prior": "forward", "stage": "constructed"}),
        ("forward, minimised", "loss", {"prior": "forward", "stage": "minimised"}),
        ("mass off the own code", "off_share_mean", {"prior": "forward", "stage": "minimised"}),
        ("samples with most off", "carriers", {"prior": "forward", "stage": "minimised"}),
        ("reverse, as built", "loss", {"prior": "reverse", "stage": "constructed"}),
        ("reverse, minimised", "loss", {"prior": "reverse", "stage": "minimised"}),
    ]
    here = select(frame, at)
    starts = [start for start in STARTS if here["start"].str.startswith(start).any()]
    return {
        "title": f"Free assignments, n = {n}, c = {c}, beta = 1: loss by start",
        "columns": [label for label, *_ in columns],
        "rows": [
            [STARTS[s], *(_one(here, metric, start=f"{s}*", **w) for _, metric, w in columns)]
            for s in starts
        ],
        "note": "Means over random starts. A dash: not minimised from there, or not built.",
    }


def _by_start(frame: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    for norm in ("l2", "tanh"):
        for prior in ("forward", "reverse"):
            for start in ("aligned", "random"):
                name = "L2" if norm == "l2" else norm
                label = [f"{name}, {prior}, {STARTS[start]}"]
                yield label, select(frame, {"norm": norm, "prior": prior, "start": f"{start}*"})


def _blocks(frame: pd.DataFrame) -> dict[str, Any]:
    frame = frame[frame["stage"] == "blocks"]
    c = int(frame["c"].max())
    frame = frame[frame["c"] == c]
    columns = [
        ("excess over the bound", "excess"),
        ("mean p of the own code", "own_share_mean"),
        ("mean cosine with it", "own_cosine_mean"),
        ("share of equal blocks", "equal_blocks"),
        ("smallest cosine within blocks", "within_cosine_min"),
        ("off-diagonal of H^T H, sd \u00d7 \u221ac", "gram_off_sd_times_root"),
    ]
    return {
        "title": f"Free embeddings, n = {int(frame['n'].max())}, c = {c}, f = {frame['f'].max()}",
        "columns": [prose(label) for label, _ in columns],
        "rows": [
            label + [_one(rows, metric) for _, metric in columns]
            for label, rows in _by_start(frame)
        ],
        "note": "Means over random starts.",
    }


def _few(frame: pd.DataFrame) -> dict[str, Any]:
    frame = frame[frame["stage"] == "few"]
    n, sizes = int(frame["n"].max()), sorted(map(int, frame["c"].unique()))
    columns = [("excess", "excess"), ("codes per sample", "codes_per_sample")]
    return {
        "title": f"Free embeddings, n = {n} samples, fewer than codes",
        "columns": [f"{label}, c = {c}" for label, _ in columns for c in sizes],
        "rows": [
            label + [_one(rows, metric, c=c) for _, metric in columns for c in sizes]
            for label, rows in _by_start(frame)
        ],
        "note": "Excess over the lowest free assignment found (forward) or ln(c/n) (reverse). Codes"
        " per sample: exp of the entropy of p, mean over samples.",
    }
