"""The noise floor: how far a number moves when nothing but the machine changes.

A replicate is the same run with the same seed, trained again: with another number of threads, on
another device, or once more on the same CPU, where nothing may change at all. `adopt --replicate
NAME` brings it. It completes no study and is averaged with no seed: each is held against the one
seed that it repeats (noise.csv), and all pairs of a name against what other seeds do
(noise_floor.csv). Verdicts rest on contrasts of rows, seed by seed, so the floor has those of the
claims' tests too. Without replicates there is neither file, and the report says so.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peregrine import files
from peregrine.config.load import Cell, Project
from peregrine.config.study import Test
from peregrine.frozen import weights_of
from peregrine.places import replicates, seed_folder
from peregrine.reporting.claims import contrast
from peregrine.reporting.records import Facts, Records, SeedRun, read_seed
from peregrine.reporting.tables import rounded
from peregrine.reporting.words import fixed, listed

PAIRS, FLOOR = "noise.csv", "noise_floor.csv"

READING = "corrected"
POINTS = (100.0, 2, " points")
SCORE = (1.0, 4, "")
MAIN = {
    "linear/accuracy": ("linear probe", POINTS),
    "few/accuracy": ("probe with few labels", POINTS),
    "knn/accuracy": ("nearest neighbours", POINTS),
    "kmeans/ami": ("AMI of k-means", SCORE),
    "codes/ami": ("AMI of codes", SCORE),
}
"""Metrics of the floor: what readers call them, then factor, decimals and unit as printed."""

IDENTICAL, MOVED, UNTRAINED = "identical", "moved", "untrained"
NOT_COMPARED = "not compared: "
"""States of a pair. Identical: weights, history and every metric are the same to the last bit."""

NO_CIRCUMSTANCES = {
    *("run", "seed", "code", "code_parts", "data", "accept_unverified", "unverified"),
    *("effective_lr", "attempts", "wall_seconds", "samples_per_second"),
}
"""Entries of a manifest that say what was trained and how long it took, not where."""
FIRST = ("device", "threads", "processes", "torch")
"""The others are named behind these."""


class Pair(NamedTuple):
    """A line of noise.csv: a metric here and in a replicate; none where nothing was compared."""

    replicate: str
    row: str
    label: str
    run: str
    seed: int
    state: str
    differs: str
    reading: str = ""
    protocol: str = ""
    metric: str = ""
    value: float | None = None
    other: float | None = None
    difference: float | None = None  # other - value


class Floor(NamedTuple):
    """A line of noise_floor.csv, in the unit of the metric."""

    replicate: str
    of: str  # ROWS or CONTRASTS
    metric: str
    pairs: int
    items: int  # rows, or contrasts, that they are of
    rms: float
    largest: float
    seed_items: int  # of the items, those with two seeds or more
    seed_values: int  # the values that these have, one a seed
    seed_sd: float | None  # root of the mean variance over their seeds


ROWS, CONTRASTS = "rows", "contrasts"
COMPARING = ("difference", "differs", "equivalent", "interaction")
"""Kinds of tests that are a contrast of rows."""

Series = Mapping[int, float]
"""Seed -> number."""


def read_pairs(project: Project, study: str, results: Path) -> list[Pair]:
    """Every replicate of the study's seeds beside the seed; a run that two rows share counts once.

    Raises:
        UserError: a file that is damaged, changed, or of another run.
    """
    cells: dict[str, Cell] = {}
    for cell in project.of(study).values():
        cells.setdefault(cell.id, cell)
    pairs = []
    for cell in cells.values():
        for seed in project.scale.seeds:
            own = seed_folder(results, cell.id, seed)
            for name, place in replicates(results, cell.id, seed).items():
                pairs += _compared(name, cell, seed, (own, place), project)
    return sorted(pairs, key=lambda pair: pair.replicate)


def _compared(
    name: str, cell: Cell, seed: int, places: tuple[Path, Path], project: Project
) -> list[Pair]:
    key = (name, cell.row, cell.label, cell.id, seed)
    read = [read_seed(place, cell, seed, project) for place in places]
    for (run, _, _), whose in zip(read, ("seed here", "replicate"), strict=True):
        if run.status in ("missing", "incomplete", "stale"):
            return [Pair(*key, f"{NOT_COMPARED}the {whose} is {_state(run)}", "")]
    differs = _differences(*(files.read_json(place / "manifest.json") for place in places))
    outcomes = [files.read_json(place / "outcome.json") for place in places]
    why = _another(*(facts for _, facts, _ in read)) or _same_training(*places, cell.run.epochs)
    if not why and outcomes[0]["status"] != outcomes[1]["status"]:
        why = "ended as {} here, as {} there".format(*(each["status"] for each in outcomes))
    if why:
        return [Pair(*key, NOT_COMPARED + why, differs)]
    # reading, protocol and metric -> value
    here, there = ({m[5:8]: m.value for m in values} for _, _, values in read)
    trained = [(weights_of(each), each["files"].get("history.csv")) for each in outcomes]
    state = IDENTICAL if trained[0] == trained[1] and here == there else MOVED
    state = state if cell.run.epochs else UNTRAINED
    shared = [Pair(*key, state, differs, *m, here[m], there[m], there[m] - here[m])
              for m in sorted(here.keys() & there.keys())]  # fmt: skip
    return shared or [Pair(*key, state, differs)]  # both ended in NaN


def _state(run: SeedRun) -> str:
    detail = "; ".join(part for part in run.detail.split("; ") if part != "adopted")
    return f"{run.status} ({detail})" if detail else run.status


def _another(here: Facts, there: Facts) -> str:
    """Which code, data or trust in the data differ; empty where it is the same training."""
    differ = sorted(name for name in here.keys() & there.keys() if here[name] != there[name])
    named = {"code": "code of pretrain", "accept_unverified": "trust in the data"}
    return f"another {listed([named.get(name, name) for name in differ])}" if differ else ""


def _same_training(here: Path, there: Path, epochs: int) -> str:
    """Whether the replicate is the seed itself, packed and adopted: no two take equally long."""
    times = [place / "timing.csv" for place in (here, there)]
    if epochs and all(map(Path.is_file, times)) and len({*map(Path.read_bytes, times)}) == 1:
        return "it is the training of this study itself"
    return ""


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """'threads: 1 here, 2 there' of all that two manifests say about machine and versions."""
    names = [name for name in FIRST if name in here or name in there]
    names += sorted((here.keys() | there.keys()) - NO_CIRCUMSTANCES - set(FIRST))
    return "; ".join(
        f"{name}: {here.get(name, 'none')} here, {there.get(name, 'none')} there"
        for name in names
        if here.get(name) != there.get(name)
    )


def floors(
    pairs: Sequence[Pair], records: Records, tests: Iterable[Test], cells: Mapping[str, Cell]
) -> list[Floor]:
    """What each replicate's name does to the main metrics, and what other seeds do to them.

    First of rows, then of the contrasts of `tests`, where a replicate holds a seed of all their
    rows. Rows of untrained nets are left out, contrasts with one are not. The seeds' sd is over the
    same rows or contrasts, rounded to six decimals as all numbers are; mixed rows and rows of one
    seed have none.
    """
    contrasts = list(_contrasts(tests, cells))
    out = []
    for name in dict.fromkeys(pair.replicate for pair in pairs):
        for metric in MAIN:
            moves: dict[str, dict[int, float]] = {}  # run -> seed -> difference
            for pair in pairs:
                if (pair.replicate, pair.metric, pair.reading) == (name, metric, READING):
                    moves.setdefault(pair.run, {})[pair.seed] = pair.difference
            here = partial(records.values, metric=metric, reading=READING)
            rows = {
                pair.run: pair.row
                for pair in pairs
                if pair.replicate == name and pair.state in (IDENTICAL, MOVED)
            }
            of_rows = [(moves[run], here(row)) for run, row in rows.items() if run in moves]

            def moved(row: str, moves: Mapping[str, Series] = moves) -> Series:
                return moves.get(cells[row].id, {})

            of_tests = [
                (contrast(test, moved), contrast(test, here))
                for test in contrasts
                if test.metric == metric
            ]
            for of, items in ((ROWS, of_rows), (CONTRASTS, of_tests)):
                out += _floor((name, of, metric), [each for each in items if each[0]])
    return out


def _floor(key: tuple[str, str, str], items: Sequence[tuple[Series, Series]]) -> Iterator[Floor]:
    """The line of items: by how much each moves, seed by seed, and its numbers here."""
    if not items:
        return
    moves = np.array([move for of, _ in items for move in of.values()])
    seeds = [list(values.values()) for _, values in items if len(values) > 1]
    variance = np.mean([np.var(values, ddof=1) for values in seeds]) if seeds else None
    yield Floor(
        *key,
        pairs=len(moves),
        items=len(items),
        rms=rounded(math.sqrt(np.mean(moves**2))),
        largest=rounded(np.abs(moves).max()),
        seed_items=len(seeds),
        seed_values=sum(map(len, seeds)),
        seed_sd=None if variance is None else rounded(math.sqrt(variance)),
    )


def _contrasts(tests: Iterable[Test], cells: Mapping[str, Cell]) -> Iterator[Test]:
    """The tests that are contrasts of rows run here in a main metric, each contrast once."""
    seen = set()
    for test in tests:
        rows = (test.rows, test.against, test.control, test.control_against)
        named = set(test.every_row)
        if (
            test.kind in COMPARING
            and test.metric in MAIN
            and (test.reading, test.ceiling) == (READING, None)
            and named <= cells.keys()
            and any(cells[row].run.epochs for row in named)
            and (test.metric, *rows) not in seen
        ):
            seen.add((test.metric, *rows))
            yield test


def write_noise(
    project: Project, study: str, results: Path, records: Records, folder: Path
) -> list[Path]:
    """noise.csv and noise_floor.csv in `folder`, or neither where the study has no replicate.

    Returns:
        The files written.
    """
    pairs = read_pairs(project, study, results)
    written = [folder / PAIRS, folder / FLOOR]
    if not pairs:
        for path in written:  # of replicates that are gone
            path.unlink(missing_ok=True)
        return []
    tests = [test for claim in project.study(study).claims for test in claim.tests]
    files.write_csv(written[0], Pair._fields, pairs)
    files.write_csv(written[1], Floor._fields, floors(pairs, records, tests, project.of(study)))
    return written


ABOUT = (
    "A replicate is the same run with the same seed, trained again where only the machine, its"
    " settings or the versions of libraries differ. It counts for no table and no claim."
    " A pair is a seed and its replicate; the table has the root mean square and the largest of"
    " the absolute differences over all pairs. Beside them stands by how much two trainings of a"
    " row differ that have different seeds: \u221a2 times the standard deviation over seeds, whose"
    " variance is averaged over the same rows. Verdicts rest on contrasts of rows, seed by seed, so"
    " these stand there too, wherever a replicate has a seed of all rows of a test. Accuracies are"
    " in points; noise.csv has every metric of every pair."
)
UNKNOWN = (
    "Not measured at scale {scale}: no run of this study was trained again with the same seed where"
    " only the machine differs. How that is done: docs/run-it.md, The noise floor."
)


def printed_noise(
    pairs: Sequence[Mapping[str, str]], floor: Sequence[Mapping[str, str]], scale: str
) -> dict[str, Any]:
    """The section of a report, from the lines of the two files as text; a line where none is."""
    names = list(dict.fromkeys(pair["replicate"] for pair in pairs))
    return {
        "about": ABOUT if pairs else UNKNOWN.format(scale=scale),
        "rows": [_row(line) for line in floor],
        "read": [
            {
                "name": name,
                "text": _read(
                    [pair for pair in pairs if pair["replicate"] == name],
                    [line for line in floor if line["replicate"] == name],
                ),
            }
            for name in names
        ],
    }


def _shown(line: Mapping[str, str], number: float) -> str:
    times, decimals, unit = MAIN[line["metric"]][1]
    return fixed(times * number, decimals) + unit


def _row(line: Mapping[str, str]) -> list[str]:
    """replicate, metric, pairs, rms, largest, between two seeds, sd over seeds."""
    numbers = [_shown(line, float(line[key])) for key in ("rms", "largest")]
    seeds = ["\u2013", "\u2013"]
    if line["seed_sd"]:
        sd = float(line["seed_sd"])
        seeds = [_shown(line, math.sqrt(2) * sd), f"{_shown(line, sd)} ({_seeds(line)})"]
    what = MAIN[line["metric"]][0] + (", contrasts" if line["of"] == CONTRASTS else "")
    return [line["replicate"], what, f"{line['pairs']} ({_items(line)})", *numbers, *seeds]


def _items(line: Mapping[str, str]) -> str:
    """'1 row', '3 contrasts'."""
    return f"{line['items']} {line['of'] if line['items'] != '1' else line['of'][:-1]}"


def _seeds(line: Mapping[str, str]) -> str:
    """'6 seeds of 2 rows', '3 seeds of 1 of 2 rows': what the sd over seeds is made of."""
    some = f"{line['seed_items']} of " if line["seed_items"] != line["items"] else ""
    return f"{line['seed_values']} seeds of {some}{_items(line)}"


def _read(pairs: Sequence[Mapping[str, str]], floor: Sequence[Mapping[str, str]]) -> str:
    """What the numbers of one replicate say: of its lines of the floor, the first of each kind."""
    row, compares = (next((x for x in floor if x["of"] == of), None) for of in (ROWS, CONTRASTS))
    seeds = list({(pair["run"], pair["seed"]): pair for pair in pairs}.values())
    states = [pair["state"] for pair in seeds]
    compared = [pair for pair in seeds if pair["state"] in (IDENTICAL, MOVED)]
    differs = list(dict.fromkeys(pair["differs"] for pair in compared if pair["differs"]))
    said = []
    if compared:
        known = "manifests, which do not name the model of a CPU, record no difference"
        said.append(listed(differs, most=2) or known)
    same = states.count(IDENTICAL)
    if not compared:
        said.append("no trained seed could be compared")
    elif same == len(compared):
        each = "its one seed is" if same == 1 else f"all {same} seeds are"
        said.append(f"{each} identical to ours to the last bit: weights, history and metrics")
    else:
        said += [_moves(line) for line in (row, compares) if line]
        said += ["it has no seed of all rows of a contrast"] * bool(row and not compares)
        said += [f"{same} of {len(compared)} seeds are identical to ours"] * bool(same)
    if UNTRAINED in states:
        said.append("untrained nets are not counted")
    lost: dict[str, list[str]] = {}
    for pair in seeds:
        if pair["state"].startswith(NOT_COMPARED):
            lost.setdefault(pair["state"], []).append(f"{pair['label']}, seed {pair['seed']}")
    said += [f"{why}: {listed(which)}" for why, which in lost.items()]
    return "".join(f"{sentence[:1].upper()}{sentence[1:]}. " for sentence in said).strip()


def _moves(line: Mapping[str, str]) -> str:
    rms, pairs, metric = float(line["rms"]), int(line["pairs"]), MAIN[line["metric"]][0]
    what = f"the {metric}" if line["of"] == ROWS else f"a contrast of rows in the {metric}"
    text = f"it moves {what} by {_shown(line, rms)}"
    over = f"root mean square of {pairs} pairs" if pairs > 1 else "one pair"
    text += f" ({over}, {_items(line)})"
    if not line["seed_sd"]:
        return f"{text}; no {line['of'][:-1]} of these has two seeds to hold that against"
    seeds = math.sqrt(2) * float(line["seed_sd"])
    text += f", another seed by {_shown(line, seeds)} ({_seeds(line)})"
    return f"{text}: {100 * rms / seeds:.0f} % of that" if seeds else text
