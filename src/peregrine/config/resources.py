"""Estimates of what a step of a run needs: memory, time, and whether a GPU helps.

None of this, nor the number of processes that train a run, changes a result, so it is no part of
the run's configuration. It is estimated for each run, because one number for all would not do: with
the memory and time of CIFAR a training on ImageNet is killed, and with those of ImageNet jobs on
CIFAR wait long in a cluster's queue.
"""

import math
from typing import NamedTuple

from peregrine.config.models import Run

IMAGES = {
    "digits": 1197,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "fashion_mnist": 60_000,
    "svhn": 73_257,
    "imagenette": 9_469,
    "imagenet100": 126_689,
    "imagenet1k": 1_281_167,
}
"""Training images of whole data sets."""
OTHER_IMAGES = IMAGES["svhn"]
"""Of a data set that is not listed: as many as the largest of small images has."""
COST = {
    "resnet8": (0.27, 32),
    "resnet18": (1.8, 224),
    "resnet50": (4.1, 224),
    "vit_small": (4.6, 224),
}
"""Multiplications of one image in units of 10^9, and at how many px a side: published for the last
three, counted for the first (width 128). A CIFAR stem keeps 16 times the positions. ResNet-8 is
counted with pooling after the convolution; nets/backbones.py pools inside it, with 0.6 times as
many, which leaves its limits on the safe side."""
CIFAR_STEM = 16
RATE = 3e13
"""Operations a second that a training gets out of a GPU: the released code of FALCON got 1.5e13 out
of an A100, ResNet-50 in bfloat16 gets about 6e13."""
SLICES = 4
"""Starts of a training that runs into its time limit: retries of profiles/slurm, and one."""
LEAST, MOST = 8, 48
"""Hours of a slice: none is shorter, and few sites allow longer ones."""


class Needs(NamedTuple):
    """Memory in MB, limit in hours, and whether a GPU is used where there is one."""

    mem_mb: int
    hours: int
    gpu: bool


NEEDS = {
    "pretrain": Needs(3000, LEAST, True),
    "extract": Needs(3000, 1, True),
    "evaluate": Needs(2000, 1, False),
    "diagnose": Needs(2000, 1, False),
}
RUN_STEPS = tuple(NEEDS)
"""Of every run, in their order."""
COMMANDS = {"detection": "detect"}
"""Commands of extra evaluations that are called otherwise."""
LARGE = {
    # Ten batches of images of 256 px on the host, and what CUDA takes.
    ("imagenet100", "pretrain"): Needs(16_000, LEAST, True),
    ("imagenet1k", "pretrain"): Needs(16_000, LEAST, True),
    ("imagenet100", "extract"): Needs(12_000, 2, True),
    ("imagenet1k", "extract"): Needs(12_000, 8, True),
    # Neighbours' copy of 126,689 x 512 in float64; at 1.28 million, blocks on a GPU.
    ("imagenet100", "evaluate"): Needs(8_000, 12, False),
    ("imagenet1k", "evaluate"): Needs(16_000, 24, True),
    # Singular values of 50,000 x 2048 in float64.
    ("imagenet1k", "diagnose"): Needs(12_000, 4, False),
}


def training_hours(run: Run) -> float:
    """Hours of a whole training at RATE: three times the operations of a pass forward."""
    cost, side = COST[run.backbone.name]
    stem = run.backbone.name.startswith("resnet") and run.backbone.name != "resnet8"
    if stem and run.backbone.stem == "cifar":
        cost *= CIFAR_STEM
    if run.backbone.name == "resnet8":
        cost *= (run.backbone.width / 128) ** 2
    views = sum(view.count * (view.size / side) ** 2 for view in run.views)
    # No limit is closer than SVHN's: it costs nothing, and small data sets end long before it.
    images = max(IMAGES.get(run.dataset.name, 0), OTHER_IMAGES)
    return 3 * 2e9 * cost * views * images * run.epochs / RATE / 3600


def needs(step: str, run: Run) -> Needs:
    """Of a job that takes one seed; a training's limit is twice its share of SLICES."""
    found = LARGE.get((run.dataset.name, step), NEEDS[step])
    if step != "pretrain":
        return found
    hours = math.ceil(2 * training_hours(run) / SLICES)
    return found._replace(hours=min(MOST, max(LEAST, hours)))


def obstacle(run: Run, processes: int) -> str | None:
    """Why one run cannot be trained in so many processes, and the remedy; None where it can.

    Each process encodes its part of the batch by itself. For a backbone that treats images together
    or draws random numbers these must be micro-batches that the run has with one process too.
    """
    steps, cached = run.accumulate.steps, run.accumulate.mode == "cached"
    if processes == 1:
        return None
    if run.batch_size % processes:
        return f"{processes} processes do not cut batch_size {run.batch_size} into equal parts"
    if steps > 1 and not cached:
        return (
            "accumulate: {mode: plain} has a loss of every micro-batch, which several processes"
            " do not; train in one process, or set mode: cached"
        )
    if steps % processes and (steps > 1 or _takes_parts_apart(run)):
        return (
            f"{processes} processes need accumulate: {{mode: cached, steps: N}} with N a multiple"
            f" of {processes}, not {steps}: each normalises and draws for its own part"
        )
    return None


def _takes_parts_apart(run: Run) -> bool:
    """Whether the backbone has batch statistics or random numbers of its own."""
    return run.backbone.name in ("resnet18", "resnet50") or run.backbone.drop_path > 0


def processes(run: Run, most: int, gpus: int) -> int:
    """The largest number of processes that a run can be trained in.

    Args:
        most: what the scale allows.
        gpus: of this machine; where there are any, each process has one to itself.
    """
    most = min(most, gpus or most)
    return next(n for n in range(most, 0, -1) if obstacle(run, n) is None)
