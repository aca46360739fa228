"""Options of feature augmentation that methods share; see methods/feature_augmentation.py."""

from typing import Literal

from pydantic import Field, model_validator

from peregrine.config.models import MethodOptions

Operator = Literal["none", "nn", "mask", "noise", "mix", "interpolate", "extrapolate"]


class AugmentationOptions(MethodOptions):
    operator: Operator = "none"
    samples: int = Field(1, ge=1, description="K, augmented samples of each feature.")
    reduction: Literal["mean", "free"] = Field(
        "mean", description="Over the K samples; free: their sum, the free loss."
    )
    mask_ratio: float = Field(0.3, ge=0, lt=1)
    noise_sd: float = Field(0.1, gt=0, description="As a share of the batch sd per coordinate.")
    mix_alpha: float = Field(1.0, gt=0, description="a of Beta(a, a).")

    @model_validator(mode="after")
    def _made_by_an_operator(self) -> "AugmentationOptions":
        if self.samples > 1 and self.operator == "none":
            raise ValueError(f"{self.samples} samples need an operator that makes them")
        return self


class TargetAugmentationOptions(AugmentationOptions):
    """For a method that augments the target side of an objective of its own."""

    memory: int = Field(65536, ge=1, description="Length of the queue of nn and interpolate.")

    @model_validator(mode="after")
    def _enough_neighbours(self) -> "TargetAugmentationOptions":
        if self.operator == "nn" and self.samples > self.memory:
            raise ValueError(f"{self.samples} neighbours need a memory of at least as many")
        return self
