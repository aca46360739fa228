"""What stands in: where the runs of a scale differ from the study as it is written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peregrine.config.load import Cell, Project, read_yaml, resolve
from peregrine.config.models import Run, ViewSpec
from peregrine.config.study import Study
from peregrine.reporting.records import UNVERIFIED
from peregrine.reporting.words import named

ALWAYS = ("data set", "backbone", "batch size", "epochs")
"""Facts that are shown even where nothing differs."""

DATA = {"digits": "8 \u00d7 8, enlarged to {} px"}
"""Data sets whose images are drawn at another size than they have."""


def stands_in(project: Project, study: Study, config: Path) -> list[list[str]]:
    """[what, study as written, here] of every fact that differs; several values where rows do."""
    plain = project.scale.model_copy(update={"run": {}, "studies": {}, "times": {}})
    written = {cell.row: cell for cell in resolve(study, plain, read_yaml(config / "presets.yaml"))}
    here = project.of(study.name)
    trained = [row for row, cell in here.items() if cell.run.epochs]

    out = []
    for name, fact in FACTS.items():
        ours, theirs = _shown(fact, here, trained), _shown(fact, written, trained)
        if name in ALWAYS or ours != theirs:
            out.append([name, theirs, ours])
    return out


def unverified(runs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """A line on data that are not the official files, by the notes of runs.csv; or none."""
    notes = {note for run in runs for note in run["detail"].split("; ")}
    found = sorted(note for note in notes if note.startswith(UNVERIFIED))
    return [["files of the data", "official", "; ".join(found)]] if found else []


def _shown(fact: Callable[[Run], str], cells: Mapping[str, Cell], rows: list[str]) -> str:
    values = dict.fromkeys(fact(cells[row].run) for row in rows)
    return ", ".join(filter(None, values)) or ("\u2013" if rows else "nothing trained")


def backbone_text(run: Run) -> str:
    """The backbone, with its width where that is a choice."""
    spec = run.backbone
    return f"{named(spec.name)}, width {spec.width}" if spec.name == "resnet8" else named(spec.name)


def rate_text(run: Run) -> str:
    """The peak learning rate as used, after scaling by batch / 256."""
    return f"{run.optimizer.lr * run.batch_size / 256:g}"


def _data(run: Run) -> str:
    data = run.dataset
    how = [DATA.get(data.name, "").format(run.views[0].size)]
    if data.train_per_class:
        how.append(f"{data.train_per_class:,} training images a class")
    if data.imbalance > 1:
        how.append(f"long-tailed, the first class {data.imbalance:g} times the last")
    if data.validation_per_class:
        how.append(
            f"tested on {data.validation_per_class:,} held-out training images a class,"
            " not on the test set"
        )
    return ", ".join(filter(None, [named(data.name), *how]))


def _method(key: str, when: Callable[[Mapping[str, Any]], bool] = lambda _: True):
    """An option of the method, nothing where the method has it not or does not use it."""

    def fact(run: Run) -> str:
        options = run.method
        return f"{options[key]:g}" if key in options and when(options) else ""

    return fact


def follows(options: Mapping[str, Any]) -> bool:
    """Whether a method that has an EMA uses it: it has no choice (DINO), or chose it."""
    return options.get("target", "ema") == "ema"


def _views(show: Callable[[ViewSpec], str]) -> Callable[[Run], str]:
    return lambda run: " and ".join(dict.fromkeys(show(view) for view in run.views))


def _colour(view: ViewSpec) -> str:
    parts = ("brightness", "contrast", "saturation", "hue")
    strengths = ", ".join(f"{part} {getattr(view, part):g}" for part in parts)
    return f"{strengths}; probability {view.jitter:g}"


def _randaugment(view: ViewSpec) -> str:
    return f"{view.randaugment} at magnitude {view.magnitude}" if view.randaugment else "none"


FACTS: dict[str, Callable[[Run], str]] = {
    "data set": _data,
    "backbone": backbone_text,
    "width of the embedding": _method("embedding"),
    "width of the projector": _method("projector_hidden"),
    "width of the predictor": _method(
        "predictor_hidden", lambda options: options["placement"] not in ("none", "basic")
    ),
    "queue of neighbours": _method(
        "queue", lambda options: options.get("operator") in ("nn", "interpolate")
    ),
    "EMA at the start": _method("ema_start", follows),
    "batch size": lambda run: str(run.batch_size),
    "epochs": lambda run: str(run.epochs),
    "optimiser": lambda run: run.optimizer.name,
    "learning rate (effective)": rate_text,
    "warm-up, epochs": lambda run: f"{run.optimizer.warmup_epochs:g}",
    "learning rate of the first step": lambda run: f"{run.optimizer.warmup_start:g}",
    "weight decay": lambda run: f"{run.optimizer.weight_decay:g}",
    "views: size": _views(lambda view: f"{view.size} px"),
    "views: crop, share of the area": _views(lambda view: "{:g} to {:g}".format(*view.crop_scale)),
    "views: flip": _views(lambda view: f"{view.flip:g}"),
    "views: colour jitter": _views(_colour),
    "views: greyscale": _views(lambda view: f"{view.grey:g}"),
    "views: blur": _views(lambda view: f"{view.blur:g}"),
    "views: solarise": _views(lambda view: f"{view.solarise:g}"),
    "views: RandAugment": _views(_randaugment),
}
"""What is compared: its name, and a run's value in words."""
