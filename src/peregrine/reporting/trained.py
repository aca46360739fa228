"""How each row was trained: the settings in which rows differ, a line a row, from resolved runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peregrine.config.load import Cell, read_yaml
from peregrine.config.models import Run
from peregrine.config.resources import IMAGES
from peregrine.data.sources import SOURCES
from peregrine.errors import UserError
from peregrine.files import read_json
from peregrine.reporting.estimate import part_of
from peregrine.reporting.stands_in import backbone_text, follows, rate_text
from peregrine.reporting.words import named

UNKNOWN = "\u2013"
"""What a row does not have, or nobody knows before its data are prepared."""

TIMES = " \u00d7 "
AMOUNT = f"images{TIMES}epochs"
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lars": "LARS"}


class Setting(NamedTuple):
    """A run, and what its options do not say by themselves."""

    run: Run
    id: str
    views: str
    images: int | None


def trained(cells: Mapping[str, Cell], config: Path, results: Path) -> dict[str, Any]:
    """What the report prints of the rows of a study at a scale, all of it text.

    Args:
        cells: the rows that are run, in the study's order.
        config: the configuration folder; presets.yaml names the views.
        results: data/ in it says how many images a data set has that is no known one.

    Returns:
        "shared", what all trained rows have; "columns", what they differ in; "rows", each with its
        "label", "cells" and "same_as", the row whose run it shares and whose cells stand there;
        "untrained", the other rows.
    """
    named_views = views_by_name(config)
    settings = {
        row: Setting(cell.run, cell.id, _views(cell.run, named_views), images(cell.run, results))
        for row, cell in cells.items()
        if cell.run.epochs
    }
    facts = {
        name: {row: fact(setting) for row, setting in settings.items()}
        for name, fact in FACTS.items()
    }
    # A single run has its name too, so that there is always a column.
    differing = [
        name for name, found in facts.items() if name == "run" or len(set(found.values())) > 1
    ]
    shared = [
        _said(name, next(iter(found.values())))
        for name, found in facts.items()
        if settings and name not in differing and set(found.values()) != {UNKNOWN}
    ]
    first: dict[str, str] = {}
    rows = []
    for row, setting in settings.items():
        owner = first.setdefault(setting.id, row)
        again = owner != row
        rows.append(
            {
                "label": cells[row].label,
                "same_as": cells[owner].label if again else "",
                "cells": [] if again else [facts[name][row] for name in differing],
            }
        )
    return {
        "shared": "; ".join(shared),
        "columns": differing,
        "rows": rows,
        "untrained": "; ".join(cell.label for row, cell in cells.items() if row not in settings),
    }


def _said(name: str, value: str) -> str:
    """A setting that all rows share, in a sentence."""
    if name == AMOUNT:
        return f"{value.replace(TIMES, f' images{TIMES}')} epochs"
    return value if name == "backbone" else f"{name} {value}"


def images(run: Run, results: Path) -> int | None:
    """Training images of a run; None of a data set that is neither known nor prepared."""
    data = run.dataset
    if data.name not in SOURCES:
        return None
    whole = IMAGES.get(data.name)
    if whole is None:
        try:
            whole = int(read_json(results / "data" / f"{data.name}.json")["counts"]["train"])
        except (OSError, UserError, KeyError, TypeError, ValueError):
            return None
    long_tailed = data.imbalance > 1 and not data.train_per_class
    if long_tailed and whole % len(SOURCES[data.name].classes):
        return None  # as many as its smallest class has, which only the data say
    return part_of(run, whole)


def steps(run: Run, images: int | None) -> int | None:
    """Optimiser steps of a whole training: an epoch leaves out what does not fill a batch."""
    return None if images is None else images // run.batch_size * run.epochs


def views_by_name(config: Path) -> dict[str, tuple]:
    """The views of presets.yaml by name, spelled out as a run has them."""
    presets = read_yaml(config / "presets.yaml").get("views") or {}
    filled = ((name, _filled(views)) for name, views in presets.items())
    return {name: views for name, views in filled if views is not None}


def _filled(views: Any) -> tuple | None:
    """Views with every default, or None of what no run could have."""
    try:
        return Run(dataset={"name": "any"}, method={"name": "any"}, views=views).views
    except ValueError:
        return None


def _views(run: Run, known: Mapping[str, tuple]) -> str:
    """The preset that the run's views are, or how many of which size."""
    for name, views in known.items():
        if views == run.views:
            return name
    return ", ".join(f"{view.count} of {view.size} px" for view in run.views)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _batch(setting: Setting) -> str:
    size, parts = setting.run.batch_size, setting.run.accumulate
    if parts.steps == 1:
        return str(size)
    return f"{size} as {parts.steps} \u00d7 {size // parts.steps}, {parts.mode}"


def _option(key: str) -> Callable[[Setting], str]:
    def fact(setting: Setting) -> str:
        found = setting.run.method.get(key)
        return UNKNOWN if found is None else f"{found:g}" if key == "ema_start" else str(found)

    return fact


def _ema(setting: Setting) -> str:
    return _option("ema_start")(setting) if follows(setting.run.method) else UNKNOWN


FACTS: dict[str, Callable[[Setting], str]] = {
    "run": lambda it: it.id.rpartition("-")[2],
    "backbone": lambda it: backbone_text(it.run),
    AMOUNT: lambda it: f"{named(it.run.dataset.name)}, {_count(it.images)}{TIMES}{it.run.epochs}",
    "batch": _batch,
    "steps": lambda it: _count(steps(it.run, it.images)),
    "optimiser": lambda it: OPTIMIZERS[it.run.optimizer.name],
    "learning rate": lambda it: rate_text(it.run),
    "weight decay": lambda it: f"{it.run.optimizer.weight_decay:g}",
    "codes c": _option("codes"),
    "embedding": _option("embedding"),
    "EMA start": _ema,
    "views": lambda it: it.views,
}
"""What is shown: its name, and a row's value in words."""
