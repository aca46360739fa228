"""Hours of every study, predicted from what trainings have measured on each kind of device.

Samples/s come from finished seeds under results/runs and from benchmarks/recorded. A run takes the
rate of the measured ones nearest to it: of the same shape, method and options as far as there are
any. Where a shape (backbone, views, batch, precision) was not measured, rates are scaled by the
operations of its backbone, and the run is counted as extrapolated. Nothing here imports torch:
who asks brings the counter of operations.
"""

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peregrine.config.load import Project, read_yaml, validate
from peregrine.config.models import BackboneSpec, Run
from peregrine.config.resources import COMMANDS, IMAGES, OTHER_IMAGES, RUN_STEPS
from peregrine.data.sources import SOURCES
from peregrine.errors import UserError
from peregrine.files import read_json
from peregrine.frozen import EXTRA

FAR = 30
"""Times as many operations, or as few, from which a rate says nothing: operations are not what
bounds small nets."""

Flops = Callable[[BackboneSpec, int, int], float]
"""(backbone, channels, side in px) -> operations of a pass forward of one image."""

GREY = ("digits", "fashion_mnist")
AFTER_TRAINING = (*RUN_STEPS[1:], *(COMMANDS.get(each, each) for each in EXTRA))
"""Steps after training whose seconds Snakemake has written down."""


class Work(NamedTuple):
    """What decides how long an image of a run takes."""

    backbone: BackboneSpec
    channels: int
    views: tuple[tuple[int, int], ...]
    """(side in px, count), largest first."""
    batch: int
    precision: str
    method: dict[str, Any]

    def shape(self) -> tuple:
        return (*self[:3], self.batch, self.precision)


class Measured(NamedTuple):
    """Training samples a second of a kind of device."""

    device: str
    work: Work
    rate: float
    compiled: bool = False
    owner: str = ""
    """Run id, where it is one of this project's."""


class StudyHours(NamedTuple):
    """Of one study on one kind of device; hours of all seeds, one after the other."""

    study: str
    seeds: int
    training: float
    extrapolated: int
    """Runs of a shape that was not measured."""
    far: int
    """Runs that are too far from any measurement; no hours of theirs are counted."""
    evaluation: float
    unmeasured: int
    """Runs of whose data set no evaluation was measured."""


def work_of(run: Run) -> Work:
    sides: dict[int, int] = {}
    for view in run.views:
        sides[view.size] = sides.get(view.size, 0) + view.count
    channels = 1 if run.dataset.name in GREY else 3
    views = tuple(sorted(sides.items(), reverse=True))
    return Work(run.backbone, channels, views, run.batch_size, run.precision, dict(run.method))


def operations(work: Work, flops: Flops) -> float:
    """Of the backbone, forward, for all views of one image."""
    return sum(k * flops(work.backbone, work.channels, side) for side, k in work.views)


def train_images(run: Run, results: Path) -> int:
    """Training images of a run; a data set that is prepared says its own number."""
    spec = run.dataset
    try:
        images = int(read_json(results / "data" / f"{spec.name}.json")["counts"]["train"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        images = IMAGES.get(spec.name, OTHER_IMAGES)
    return part_of(run, images)


def part_of(run: Run, whole: int | None) -> int | None:
    """Training images of a run whose data set has `whole` of them; None where that is not known."""
    if whole is None:
        return None
    spec = run.dataset
    classes = len(SOURCES[spec.name].classes)
    held = classes * (spec.validation_per_class or 0)
    if spec.train_per_class or spec.imbalance > 1:
        largest = spec.train_per_class or (whole - held) // classes
        return min(whole - held, sum(spec.class_sizes(largest, classes)))
    return whole - held


# What was measured -------------------------------------------------------------------------------


def measurements(results: Path, recorded: Path) -> list[Measured]:
    """Of finished seeds and of benchmark records; what cannot be read is left out."""
    found = [*_records(recorded)]
    for manifest in sorted(results.glob("runs/*/seed-*/manifest.json")):
        try:
            found.append(_finished(manifest))
        except (OSError, UserError, KeyError, ValueError, TypeError):
            continue
    return found


def _finished(manifest: Path) -> Measured:
    facts = read_json(manifest)
    path = manifest.parent / "run.yaml"
    run = validate(Run, read_yaml(path), str(path))
    with (manifest.parent / "timing.csv").open(encoding="utf-8") as stream:
        rates = [float(row["samples_per_second"]) for row in csv.DictReader(stream)]
    return Measured(
        device_kind(facts),
        work_of(run),
        statistics.median(rates),  # the first epoch warms up, others may be disturbed
        bool(facts.get("compiled")),
        str(facts["run"]),
    )


def device_kind(facts: dict[str, Any]) -> str:
    """`cuda NAME`, or a processor with the number of threads, which decides there; and how many
    processes shared a run, if several did."""
    kind, processes = str(facts["device"]), int(facts.get("processes", 1))
    kind += "" if kind.startswith("cuda") else f", {_of(facts['threads'], 'thread')}"
    return kind if processes == 1 else f"{kind}, {processes} processes"


def _records(folder: Path) -> Iterator[Measured]:
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_json(path)
        except (OSError, UserError):
            continue
        results = record.get("results")
        quick = isinstance(record.get("settings"), dict) and record["settings"].get("quick")
        for name, one in results.items() if isinstance(results, dict) and not quick else ():
            try:
                yield Measured(
                    device_kind({**record, **one}),
                    Work(
                        BackboneSpec(**one["backbone"]),
                        int(one["channels"]),
                        tuple((int(side), int(count)) for side, count in one["views"]),
                        int(one["batch"]),
                        str(one["precision"]),
                        dict(one["method"]),
                    ),
                    float(one["samples_per_second"]),
                    bool(one.get("compiled")),
                    str(one.get("run", name)),
                )
            except (KeyError, TypeError, ValueError):
                continue


# What is predicted -------------------------------------------------------------------------------


def predict(work: Work, known: Sequence[Measured], flops: Flops) -> tuple[float | None, bool]:
    """(samples/s, whether it is extrapolated) from measurements of one kind of device.

    None where the nearest take FAR times as many operations, or as few.

    The nearest are those that differ in the fewest of, in this order: precision, backbone, views,
    batch, method, its options; on a GPU compiled ones come first. Of several the geometric mean.

    Raises:
        ValueError: nothing was measured.
    """
    if not known:
        raise ValueError("no measurement to predict from")
    own = operations(work, flops)

    def distance(each: Measured) -> tuple:
        other = each.work
        backbone = 2 * (other.backbone.name != work.backbone.name) + (
            other.backbone != work.backbone
        )
        options = {**work.method, **other.method}
        differing = sum(work.method.get(key) != other.method.get(key) for key in options)
        return (
            other.precision != work.precision,
            backbone,
            (other.channels, other.views) != (work.channels, work.views),
            other.batch != work.batch,
            other.method.get("name") != work.method.get("name"),
            # Between shapes operations are what counts; within one, what the method does.
            differing if other.shape() == work.shape() else 0,
            not each.compiled,
        )

    nearest = min(map(distance, known))
    group = [each for each in known if distance(each) == nearest]
    ratios = [operations(each.work, flops) / own for each in group]
    if not 1 / FAR <= statistics.median(ratios) <= FAR:
        return None, True
    logs = [math.log(each.rate * ratio) for each, ratio in zip(group, ratios, strict=True)]
    return math.exp(statistics.mean(logs)), all(each.work.shape() != work.shape() for each in group)


def hours(
    project: Project, known: Sequence[Measured], flops: Flops, results: Path
) -> dict[str, list[StudyHours]]:
    """{kind of device: [StudyHours]}, of every kind that was measured."""
    seconds = evaluation_seconds(project, results)
    out: dict[str, list[StudyHours]] = {}
    for kind in sorted({each.device for each in known}):
        here = [each for each in known if each.device == kind]
        out[kind] = []
        for study in project.studies:
            runs = {cell.id: cell.run for cell in project.of(study).values()}
            training = evaluation = 0.0
            extrapolated = far = unmeasured = 0
            for run in runs.values():
                if run.epochs:
                    rate, guessed = predict(work_of(run), here, flops)
                    extrapolated += guessed and rate is not None
                    far += rate is None
                    if rate is not None:
                        training += run.epochs * train_images(run, results) / rate
                per_seed = seconds.get(run.dataset.name)
                evaluation += per_seed or 0.0
                unmeasured += per_seed is None
            seeds = len(project.scale.seeds)
            times = seeds / 3600
            found = (training * times, extrapolated, far, evaluation * times, unmeasured)
            out[kind].append(StudyHours(study, seeds * len(runs), *found))
    return out


def evaluation_seconds(project: Project, results: Path) -> dict[str, float]:
    """Seconds of all steps after training, of a seed, by data set: the median of what ran here."""
    seeds = len(project.scale.seeds)
    found: dict[str, list[float]] = {}
    for name, run in project.runs().items():
        total = 0.0
        for step in AFTER_TRAINING:
            folder = results / "benchmarks" / step
            # A job for each seed, of which some may still be to come, or one for all of them.
            each = [_spent(path) for path in folder.glob(f"{name}.seed-*.tsv")] or [
                _spent(path) / seeds for path in folder.glob(f"{name}.tsv")
            ]
            known = [spent for spent in each if not math.isnan(spent)]
            total += statistics.mean(known) if known else 0.0
        if total:
            found.setdefault(run.dataset.name, []).append(total)
    return {name: statistics.median(totals) for name, totals in found.items()}


def _spent(path: Path) -> float:
    """Seconds of a benchmark file of Snakemake; NaN where it cannot be read."""
    try:
        with path.open(encoding="utf-8") as stream:
            return float(next(csv.DictReader(stream, delimiter="\t"))["s"])
    except (OSError, StopIteration, KeyError, TypeError, ValueError):
        return math.nan


def as_text(project: Project, table: dict[str, list[StudyHours]], known: Sequence[Measured]) -> str:
    """One block a kind of device, with what it rests on; kinds of no measurement are named."""
    lines = [f"scale {project.scale.name}: hours of all seeds, one after the other"]
    for kind, studies in table.items():
        count = sum(each.device == kind for each in known)
        lines += ["", f"{kind}, from {count} measurement{'s' * (count > 1)}"]
        width = max(len(each.study) for each in studies)
        for each in studies:
            remarks = []
            if each.extrapolated:
                remarks.append(f"{_of(each.extrapolated, 'run')} extrapolated")
            if each.far:
                remarks.append(f"{_of(each.far, 'run')} unlike any measured, not counted")
            if each.unmeasured:
                remarks.append(f"evaluation of {_of(each.unmeasured, 'run')} not measured")
            note = f"  ({'; '.join(remarks)})" if remarks else ""
            lines.append(
                f"  {each.study:<{width}}  training {_hours(each.training, each.far)}"
                f"  evaluation {_hours(each.evaluation, each.unmeasured)}{note}"
            )
    for kind in ("cpu", "cuda"):
        if not any(each.startswith(kind) for each in table):
            lines += ["", f"{kind}: not measured"]
    return "\n".join(lines)


def as_json(table: dict[str, list[StudyHours]]) -> str:
    return json.dumps({kind: [each._asdict() for each in of] for kind, of in table.items()})


def _of(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _hours(value: float, without: int) -> str:
    """Hours or minutes; `without` runs are not in them."""
    if without and not value:
        return "not measured"
    return f"{value:9,.1f} h" if value >= 1 else f"{60 * value:7.1f} min"
