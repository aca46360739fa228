"""Operators that augment projected features, and the queue that the neighbour operators search.

Zhang et al., arXiv 2410.12396 name the operators; their definitions are declared assumptions
(feature-augmentation.md, section 2). Every operator maps vectors [n, d] to unit vectors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.streams import generator


class FeatureQueue(nn.Module):
    """First in, first out memory of unit feature vectors; part of the run's saved state.

    Starts with random directions, as NNCLR does.

    Args:
        length, width: of the memory [length, width].
        seed: of the run; draws from its `init/queue` stream.
    """

    features: Tensor
    position: Tensor

    def __init__(self, length: int, width: int, seed: int) -> None:
        super().__init__()
        start = torch.randn(length, width, generator=generator(seed, "init/queue"))
        self.register_buffer("features", F.normalize(start, dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Store [n, d], oldest entries first to go; of more than `length` rows the last count."""
        length = len(self.features)
        rows = F.normalize(features.detach().to(self.features.dtype), dim=1)[-length:]
        slots = (self.position + torch.arange(len(rows), device=rows.device)) % length
        self.features[slots] = rows
        self.position.copy_((self.position + len(rows)) % length)

    @torch.no_grad()
    def neighbours(self, features: Tensor) -> Tensor:
        """The stored vector of highest cosine for each row, [n, d]; a constant."""
        found = cosines(features.to(self.features.dtype), self.features).argmax(dim=1)
        return self.features[found].to(features.dtype)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a [n, d] with every row of b [m, d]: [n, m].

    Also under autocast in the precision of a and b: bfloat16 steps by 0.004 below 1, more than
    separates the neighbours of features that share a mean.
    """
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def nearest(z: Tensor, queue: FeatureQueue, *, straight_through: bool) -> Tensor:
    """Nearest neighbour in the queue, a constant; straight-through passes the gradient to z."""
    found = queue.neighbours(z)
    # z + detach(nn(z) - z), without its rounding: the value is the neighbour's to the last bit.
    return found + (z - z.detach()) if straight_through else found


def mask(z: Tensor, ratio: float, draws: torch.Generator) -> Tensor:
    """Each coordinate kept with probability 1 - ratio, then normalised again."""
    keep = torch.rand(z.shape, generator=draws, device=z.device) >= ratio
    return F.normalize(F.normalize(z, dim=1) * keep, dim=1)
