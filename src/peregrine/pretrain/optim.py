"""Optimisers and the learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from peregrine.config.models import OptimizerSpec


def effective_lr(lr: float, batch_size: int) -> float:
    """The rate that is really applied: lr * batch / 256, the linear scaling rule."""
    return lr * batch_size / 256


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up per step from `start`, then a cosine to 0; `base` is the effective peak."""

    base: float
    start: float
    warmup_steps: float
    total_steps: int

    def at(self, step: int) -> float:
        """Learning rate of step 0, 1, ... total_steps - 1."""
        if step < self.warmup_steps:
            return self.start + (self.base - self.start) * step / self.warmup_steps
        rest = max(self.total_steps - self.warmup_steps, 1)
        return self.base * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / rest))


def build_optimizer(
    spec: OptimizerSpec, parameters: Iterable[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Optimiser at effective rate `lr`; parameters without gradient are left out."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if spec.name == "adam":
        return torch.optim.Adam(trained, lr=lr, weight_decay=spec.weight_decay, fused=True)
    return torch.optim.SGD(
        trained, lr=lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
