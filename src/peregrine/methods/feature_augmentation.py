"""Operators that augment projected features, and the queue that the neighbour operators search.

Zhang et al., arXiv 2410.12396 name the operators; their definitions are declared assumptions
(feature-augmentation.md, section 2). Every operator maps vectors z [n, d] of any length to K unit
vectors each, [K, n, d], and draws from the given generator only. Gradient flows to z; neighbours,
the spread of the batch and the other branch are constants.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.augmentation import AugmentationOptions
from peregrine.errors import UserError
from peregrine.methods.base import Neighbours
from peregrine.streams import generator

SEARCHING = ("nn", "interpolate")
"""Operators that need a queue."""


class FeatureQueue(nn.Module):
    """First in, first out memory of unit feature vectors; part of the run's saved state.

    Starts with random directions, as NNCLR and MoCo do. `images` says of which image of the
    training set each vector is, -1 for none; nothing that is trained looks at it.

    Args:
        length, width: of the memory [length, width].
        seed: of the run; draws from its `init/queue` stream.
    """

    features: Tensor
    images: Tensor
    position: Tensor
    newest = 0
    """How many vectors the last push brought."""

    def __init__(self, length: int, width: int, seed: int) -> None:
        super().__init__()
        start = torch.randn(length, width, generator=generator(seed, "init/queue"))
        self.register_buffer("features", F.normalize(start, dim=1))
        self.register_buffer("images", torch.full((length,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_same_shape)
        self._collected: list[tuple[Tensor, Tensor | None]] = []

    def collect(self, features: Tensor, images: Tensor | None = None) -> None:
        """Keep [n, d] of `images` [n] for the next `flush`."""
        self._collected.append((features.detach(), images))

    def flush(self) -> None:
        """Store what was collected since the last one, of every batch of the step."""
        if self._collected:
            features, images = zip(*self._collected, strict=True)
            self.push(torch.cat(features), None if images[0] is None else torch.cat(images))
        self._collected = []

    @torch.no_grad()
    def push(self, features: Tensor, images: Tensor | None = None) -> None:
        """Store [n, d] of `images` [n], oldest first to go; the last `length` of more count."""
        length = len(self.features)
        rows = F.normalize(features.detach().to(self.features.dtype), dim=1)[-length:]
        slots = (self.position + torch.arange(len(rows), device=rows.device)) % length
        self.features[slots] = rows
        self.images[slots] = -1 if images is None else images[-length:]
        self.newest = len(rows)
        self.position.copy_((self.position + len(rows)) % length)

    @torch.no_grad()
    def neighbours(self, features: Tensor, samples: int = 1) -> Tensor:
        """The K stored vectors of highest cosine for each row, nearest first: [K, n, d]."""
        similar = cosines(features.to(self.features.dtype), self.features)
        if samples == 1:
            found = similar.argmax(dim=1, keepdim=True)
        else:
            found = similar.topk(samples, dim=1).indices
        return self.features[found.T].to(features.dtype)

    @torch.no_grad()
    def older(self, most: int = 256) -> Neighbours | None:
        """The nearest older vector of the newest ones, as training searched when they were new.

        Of the last steps' vectors, together at most `most` and a quarter of the queue but at least
        one step's, each is held against what was stored before its step: the newest L of these, for
        every power of two L >= 32 that the queue has for all of them, and the whole rest of it.
        None if a step fills the queue.
        """
        length, step = len(self.features), self.newest
        steps = max(min(most, length // 4) // max(step, 1), 1)
        room = length - steps * step
        if not step or room < 1:
            return None
        age = (self.position - 1 - torch.arange(length, device=self.position.device)) % length
        features, images = self.features[age], self.images[age]  # newest first
        limits = [2**k for k in range(5, room.bit_length())]
        found: dict[int | None, list[Tensor]] = {limit: [] for limit in (*limits, None)}
        for first in range(step, steps * step + 1, step):
            similar = cosines(features[first - step : first], features[first:])
            for limit, places in found.items():
                places.append(images[first + similar[:, :limit].argmax(dim=1)])
        return Neighbours(
            images[: steps * step], {limit: torch.cat(parts) for limit, parts in found.items()}
        )


def _same_shape(queue: FeatureQueue, state: dict[str, Tensor], prefix: str, *_) -> None:
    state.setdefault(f"{prefix}images", queue.images)  # weights of before there were any
    saved = state.get(f"{prefix}features", queue.features).shape
    if saved != queue.features.shape:
        raise UserError(
            f"{prefix}features: the saved queue holds {saved[0]} vectors of width {saved[-1]}, that"
            f" of this run {len(queue.features)} of {queue.features.shape[1]}; use the run's own"
            " weights, or its method.queue and method.embedding"
        )


def augment(
    z: Tensor,
    other: Tensor,
    options: AugmentationOptions,
    queue: FeatureQueue | None,
    draws: torch.Generator,
    *,
    straight_through: bool = False,
) -> Tensor:
    """The operator of `options` on z [n, d]: K unit vectors for each row, [K, n, d].

    Args:
        other: [n, d], the other branch; a constant that only extrapolate uses.
        queue: of past features, for the operators in SEARCHING.
        straight_through: a neighbour passes its gradient to z.
    """
    o, k = options, options.samples
    if o.operator == "nn":
        return nearest(z, queue, k, straight_through=straight_through)
    if o.operator == "mask":
        return mask(z, o.mask_ratio, draws, k)
    if o.operator == "noise":
        return noise(z, o.noise_sd, draws, k)
    if o.operator == "mix":
        return mix(z, o.mix_alpha, draws, k)
    if o.operator == "interpolate":
        return interpolate(z, queue, draws, k)
    return extrapolate(z, other, draws, k)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a [n, d] with every row of b [m, d]: [n, m].

    Also under autocast in the precision of a and b: bfloat16 steps by 0.004 below 1, more than
    separates the neighbours of features that share a mean.
    """
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def nearest(z: Tensor, queue: FeatureQueue, samples: int = 1, *, straight_through: bool) -> Tensor:
    """The K nearest neighbours in the queue; straight-through passes the gradient to z."""
    found = queue.neighbours(z, samples)
    # z + detach(nn(z) - z), without its rounding: the value is the neighbour's to the last bit.
    return found + (z - z.detach()) if straight_through else found


def mask(z: Tensor, ratio: float, draws: torch.Generator, samples: int = 1) -> Tensor:
    """Each coordinate kept with probability 1 - ratio, then normalised again."""
    keep = torch.rand((samples, *z.shape), generator=draws, device=z.device) >= ratio
    return F.normalize(F.normalize(z, dim=1) * keep, dim=-1)


def noise(z: Tensor, share: float, draws: torch.Generator, samples: int = 1) -> Tensor:
    """Gaussian noise on unit rows, its sd `share` of the batch sd (divisor n) per coordinate."""
    unit = F.normalize(z, dim=1)
    sd = share * unit.detach().std(dim=0, correction=0)
    drawn = torch.randn((samples, *z.shape), generator=draws, device=z.device)
    return F.normalize(unit + sd * drawn, dim=-1)


def mix(z: Tensor, alpha: float, draws: torch.Generator, samples: int = 1) -> Tensor:
    """Unit rows mixed with another row of the batch each, weight Beta(a, a) on the larger part.

    So a row keeps at least half of itself. Needs n >= 2; every row and sample draws its partner.
    """
    unit, n = F.normalize(z, dim=1), len(z)
    step = torch.randint(1, n, (samples, n), generator=draws, device=z.device)
    partner = unit[(torch.arange(n, device=z.device) + step) % n]
    weight = beta(alpha, (samples, n, 1), draws)
    weight = torch.maximum(weight, 1 - weight)
    return F.normalize(weight * unit + (1 - weight) * partner, dim=-1)


def interpolate(z: Tensor, queue: FeatureQueue, draws: torch.Generator, samples: int = 1) -> Tensor:
    """Unit rows moved towards their nearest neighbour in the queue, weight uniform in [0, 0.5)."""
    weight = torch.rand((samples, len(z), 1), generator=draws, device=z.device) / 2
    return F.normalize((1 - weight) * F.normalize(z, dim=1) + weight * queue.neighbours(z), dim=-1)


def extrapolate(z: Tensor, other: Tensor, draws: torch.Generator, samples: int = 1) -> Tensor:
    """lambda z + (1 - lambda) other of unit rows, lambda = 1 + Beta(2, 2): away from the other.

    Source: positive extrapolation of Zhu et al., ICCV 2021. `other` [n, d] is a constant.
    """
    weight = 1 + beta(2, (samples, len(z), 1), draws)
    other = F.normalize(other.detach(), dim=1)
    return F.normalize(weight * F.normalize(z, dim=1) + (1 - weight) * other, dim=-1)


def beta(a: float, size: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Draws of Beta(a, a), on the generator's device; torch's own Beta takes no generator.

    Beta(1, 1) is uniform and Beta(2, 2) the median of three uniforms, both without leaving the
    device; any other is the inverse of its distribution function, computed on the host.
    """
    if a == 1:
        return torch.rand(size, generator=draws, device=draws.device)
    if a == 2:
        uniform = torch.rand((3, *size), generator=draws, device=draws.device)
        return uniform.median(dim=0).values
    from scipy.special import betaincinv  # an import that hardly a run needs

    uniform = torch.rand(size, generator=draws, device=draws.device, dtype=torch.float64)
    return torch.from_numpy(betaincinv(a, a, uniform.cpu().numpy())).float().to(draws.device)
