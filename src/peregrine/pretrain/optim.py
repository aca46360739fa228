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
    """Linear warm-up per step from `start` to the effective peak `base`, then a cosine to `end`."""

    base: float
    start: float
    warmup_steps: float
    total_steps: int
    end: float = 0.0

    def at(self, step: int) -> float:
        """Learning rate of step 0, 1, ... total_steps - 1."""
        if step < self.warmup_steps:
            return self.start + (self.base - self.start) * step / self.warmup_steps
        rest = max(self.total_steps - self.warmup_steps, 1)
        left = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / rest))
        return self.end + (self.base - self.end) * left


def decay_at(spec: OptimizerSpec, step: int, total_steps: int) -> float:
    """Weight decay of a step: constant, or along a cosine to `weight_decay_end` (DINO)."""
    if spec.weight_decay_end is None:
        return spec.weight_decay
    left = 0.5 * (1 + math.cos(math.pi * step / max(total_steps, 1)))
    return spec.weight_decay_end + (spec.weight_decay - spec.weight_decay_end) * left


def build_optimizer(
    spec: OptimizerSpec, parameters: Iterable[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Optimiser at effective rate `lr`; parameters without gradient are left out.

    LARS multiplies each tensor's rate by eta |w| / (|g| + decay |w|), 1 where a norm is 0, and
    `clip` keeps the product at or below lr (LARC); settings in falcon.md, section 3. Excluded
    parameters, those of one dimension, are neither decayed nor adapted: plain SGD. So are, always,
    those that a method has marked `undecayed`, because their length means nothing.
    """
    kept, excluded = [], []
    for parameter in (each for each in parameters if each.requires_grad):
        apart = spec.exclude_bias_and_norm and parameter.ndim <= 1
        (excluded if apart or getattr(parameter, "undecayed", False) else kept).append(parameter)
    groups: list[dict] = [{"params": kept, "weight_decay": spec.weight_decay}]
    if excluded:
        groups.append({"params": excluded, "weight_decay": 0.0, "excluded": True})
    if spec.name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum, fused=True)
    from timm.optim.lars import Lars  # here: the import takes a second

    # timm adapts where there is weight decay; always_adapt says so for a decay of 0 too.
    groups[0]["always_adapt"] = True
    return Lars(groups, lr=lr, momentum=spec.momentum, trust_coeff=spec.eta, trust_clip=spec.clip)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, decay: float | None = None) -> None:
    """The rate of all parameters, and the weight decay of those that are not excluded."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if decay is not None and not group.get("excluded"):
            group["weight_decay"] = decay


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Scale every gradient whose own norm exceeds `norm`; 0 leaves all as they are.

    Parameter by parameter, as DINO's code does, not by the norm of all together.
    """
    if norm:
        gradients = [each.grad for each in parameters if each.grad is not None]
        scales = torch._foreach_add(torch._foreach_norm(gradients), 1e-6)
        torch._foreach_reciprocal_(scales)
        torch._foreach_mul_(scales, norm)
        torch._foreach_clamp_max_(scales, 1.0)
        torch._foreach_mul_(gradients, scales)
