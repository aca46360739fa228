"""Stochastic depth with random numbers of its own."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch of some images of a batch, and scale it up for the others.

    Huang and others, arXiv 1603.09382. timm's module draws from the global generator, which a
    resumed run would have to restore. Here a host generator is given for each pass, and shared by
    all layers; without one, as in a moving average, nothing is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] -> [n, ...], with the same expectation."""
        if not self.training or self.generator is None:
            return x
        kept = torch.rand(len(x), generator=self.generator) >= self.rate
        scale = (kept / (1 - self.rate)).to(x.device, x.dtype, non_blocking=True)
        return x * scale.view(-1, *[1] * (x.ndim - 1))
