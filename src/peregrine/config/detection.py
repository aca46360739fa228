"""config/detection.yaml: data sets of boxes, and the detector that is fine-tuned on them.

Like the protocol of evaluation, fixed before results. Where the data lie stands in config.yaml
(`detection_data`) and is part of no identity; the data's own sum is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from peregrine.config.models import (
    Config,
    Model,
    Name,
    Probability,
    Scale,
    Strength,
    no_twins,
)
from peregrine.errors import UserError

Side = Annotated[int, Field(ge=16, le=4096)]
HEADS = {"resnet8": ("c4",), "resnet18": ("c4", "fpn"), "resnet50": ("c4", "fpn")}
"""Backbone -> heads; resnet8 halves the image twice and has one map, vit_small has no stages."""
Splits = Annotated[tuple[Annotated[str, Field(pattern=r"^[\w./-]+$")], ...], Field(min_length=1)]


class BoxData(Model):
    """A data set in the layout of PASCAL VOC; see peregrine.evaluation.voc."""

    title: str
    licence: str
    classes: tuple[str, ...] = Field(min_length=1, description="Names in the annotations.")
    train: Splits = Field(
        description="Lists of ImageSets/Main; YEAR/LIST where several such trees lie together."
    )
    test: Splits
    drop: tuple[str, ...] = Field((), description="Images of these lists that are not used.")

    @model_validator(mode="after")
    def _distinct(self) -> "BoxData":
        for key in ("classes", "train", "test", "drop"):
            no_twins(key, getattr(self, key))
        return self


class Detection(Model):
    """A Faster R-CNN on a pretrained backbone, and how it is fine-tuned."""

    data: Name = Field(description="A data set of this file.")
    head: Literal["c4", "fpn"] = Field(
        description="c4: one map, the last stage sees each region; fpn: a pyramid of all stages."
    )
    short_sides: tuple[Side, ...] = Field(
        min_length=1, description="px; one drawn for each image, the last one for the test."
    )
    long_side: Side = Field(description="px, at most.")
    anchors: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Sides in px of the resized image; fpn: one for each map."
    )
    pooled: int = Field(7, ge=1, le=28, description="Side of a region's map.")
    regions: int = Field(512, ge=1, description="Regions of an image that the head learns from.")
    proposals: int = Field(2000, ge=1, description="Of an image, in training; half in the test.")
    batch_norm: Literal["frozen", "trained"] = Field(
        "frozen", description="Whether the backbone's statistics are those of pretraining."
    )
    iterations: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0, description="Of SGD; not scaled by the batch.")
    momentum: Probability = 0.9
    weight_decay: Strength = 1e-4
    warmup: int = Field(ge=0, description="Iterations of linear warm-up.")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.75, 0.92), description="Shares of the iterations after which the rate falls to a tenth."
    )
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    pictures: int = Field(6, ge=0, le=8, description="Test images that are drawn.")
    shown_score: Probability = Field(0.5, description="Lowest score of a box that is drawn.")

    @model_validator(mode="after")
    def _fits(self) -> "Detection":
        if max(self.short_sides) > self.long_side:
            raise ValueError("long_side is shorter than one of short_sides")
        if self.head == "fpn" and len(self.anchors) != 5:
            raise ValueError("fpn has 5 maps: give anchors 5 sides, small to large")
        return self


class DetectionFile(Model):
    data: dict[Name, BoxData]
    detections: dict[Name, Detection]

    @model_validator(mode="after")
    def _known(self) -> "DetectionFile":
        for name, each in self.detections.items():
            if each.data not in self.data:
                raise ValueError(f"detection {name}: data '{each.data}' is none of this file")
        return self


class Chosen(Model):
    """A detection with its data set: everything that its numbers depend on, but the images."""

    data: BoxData
    detection: Detection


@dataclass(frozen=True)
class Planned:
    """The detection of a scale, with the folder of its images."""

    name: str
    chosen: Chosen
    folder: Path


def plan(file: DetectionFile, path: Path, scale: Scale, config: Config) -> Planned | None:
    """What a scale detects; None where it names no detection, or config.yaml no data for it.

    Raises:
        UserError: a name is unknown.
    """
    for each in config.detection_data:
        if each not in file.data:
            raise UserError(
                f"config.yaml: detection_data names '{each}'; {path} has {', '.join(file.data)}"
            )
    name = scale.detection
    if name is None:
        return None
    if name not in file.detections:
        raise UserError(
            f"scale {scale.name}: detection '{name}' is not in {path};"
            f" it has {', '.join(file.detections)}"
        )
    detection = file.detections[name]
    if detection.data not in config.detection_data:
        return None
    place = Path(config.detection_data[detection.data])
    try:
        place = place.expanduser()
    except RuntimeError:
        raise UserError(
            f"config.yaml: detection_data: {place}: nobody of that name is known here"
        ) from None
    return Planned(name, Chosen(data=file.data[detection.data], detection=detection), place)


def check_backbone(backbone: str, head: str, where: str) -> None:
    """Raises UserError where a detector with this head cannot be built on the backbone."""
    if head not in HEADS.get(backbone, ()):
        fit = [name for name, heads in HEADS.items() if head in heads]
        raise UserError(
            f"{where}: no {head} detector on {backbone}, only on {', '.join(fit)};"
            " take the row out of evaluations: detection, or choose another head"
        )
