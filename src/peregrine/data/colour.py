"""Colour operations on a batch of images in [0, 1], with parameters per image; see `views`."""

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from peregrine.data.resample import send

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(permutations(range(4)))  # of the colour operations, by the number that is drawn


def jitter_colours_(
    images: Tensor, chosen: Tensor, order: Tensor, factors: Tensor, active: tuple[int, ...]
) -> None:
    """In place, torchvision's ColorJitter of the chosen images, each with factors and an order.

    images is [n, c, h, w] by descending `blends_before_hue`; on the host, chosen is bool [n], order
    [n] indexes ORDERS, factors is [n, 4] (brightness, contrast, saturation; hue in turns).
    Operations not `active` are left out, as are saturation and hue with one channel.
    """
    # Because of the order each step concerns a slice, and hue, the dearest, is computed once.
    blends, with_hue = _operations(active, images.shape[1])
    rank = blends_before_hue(chosen, order, active, images.shape[1])
    touched = int(chosen.sum())
    images, factors = images[:touched], factors[:touched]
    sequence = _sequences(blends, with_hue)[0][order[:touched]]
    ratio = factors.gather(1, sequence)
    rest = 1 - ratio
    weights = torch.stack([ratio, rest * (sequence == CONTRAST), rest * (sequence == SATURATION)])
    weights = send(weights, images.device)[..., None, None, None]
    splits = (rank[:, None] > torch.arange(len(blends))).sum(0).tolist()
    for step, split in enumerate(splits):
        _blend_(images[:split], *weights[:, :split, step])
    if with_hue:
        # Where torchvision starts with hue, it makes NaN of a pixel whose largest value is 0 and
        # whose smallest is negative, as a bicubic crop leaves them beside saturated colours.
        images[splits[0] if splits else 0 :].clamp_(0, 1)
        adjust_hue_(images, factors[:, HUE])
        for step, split in enumerate(splits):
            _blend_(images[split:], *weights[:, split:, step])


def blends_before_hue(
    chosen: Tensor, order: Tensor, active: tuple[int, ...], channels: int
) -> Tensor:
    """How many of brightness, contrast and saturation come before hue, [n]; -1 of no jitter."""
    before = _sequences(*_operations(active, channels))[1]
    return torch.where(chosen, before[order], -1)


def _operations(active: tuple[int, ...], channels: int) -> tuple[tuple[int, ...], bool]:
    """(the blends, whether hue is changed): one channel has neither saturation nor hue."""
    blends = tuple(a for a in active if a != HUE and (a != SATURATION or channels == 3))
    return blends, HUE in active and channels == 3


@lru_cache(maxsize=32)
def _sequences(blends: tuple[int, ...], with_hue: bool) -> tuple[Tensor, Tensor]:
    """Of each of ORDERS the sequence of its blends [24, b] and the number before hue [24]."""
    sequences = [[a for a in order if a in blends] for order in ORDERS]
    before = [sum(a in blends for a in o[: o.index(HUE) if with_hue else 4]) for o in ORDERS]
    return torch.tensor(sequences, dtype=torch.long).view(24, -1), torch.tensor(before)


def _blend_(images: Tensor, ratio: Tensor, to_mean: Tensor, to_luma: Tensor) -> None:
    """In place: clamp(ratio * image + to_mean * mean luma + to_luma * luma), weights [n, 1, 1, 1].

    Brightness, contrast and saturation are this blend: 1 - ratio goes to black, mean or luma.
    """
    if not len(images):
        return
    luma = to_grey(images)
    reference = luma.mean((1, 2, 3), keepdim=True).mul_(to_mean)
    if images.shape[1] == 3:
        reference = luma.mul_(to_luma).add_(reference)
    images.mul_(ratio).add_(reference).clamp_(0, 1)


def adjust_hue_(images: Tensor, shift: Tensor) -> None:
    """In place torchvision's adjust_hue of [n, 3, h, w] in [0, 1]; shift in turns, host [n]."""
    red, green, blue = images.unbind(1)
    # RGB to hue by sorting (Hocevar's form). Masks are floats and choices products: on a CPU
    # torch.where costs 40 times as much as a product.
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    swapped = torch.lt(green, blue, out=torch.empty_like(high))
    not_red = torch.lt(red, high, out=torch.empty_like(high))
    value, middle = torch.maximum(red, high), torch.minimum(red, high)
    chroma6 = (value - torch.minimum(middle, low)).mul_(6)
    hue = middle.sub_(low).div_(chroma6.clamp_min(1e-12))
    hue.add_((2 * swapped).sub_(1 / 3).mul_(not_red).sub_(swapped)).abs_()
    # And back: channel = value - 6 chroma * clamp(1 / 3 - d, 0, 1 / 6), where d is the distance in
    # turns from the hue opposite to the channel's.
    opposite = shift[:, None] + torch.tensor([1 / 2, 1 / 6, -1 / 6])
    torch.add(hue[:, None], send(opposite, images.device)[..., None, None], out=images)
    images.sub_(images.round()).abs_().sub_(1 / 3).clamp_(-1 / 6, 0)
    images.mul_(chroma6[:, None]).add_(value[:, None])


def to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) [n, 1, h, w] of [n, c, h, w], torchvision's; one channel: identity."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def solarise(images: Tensor, threshold: float) -> Tensor:
    """torchvision's solarize: values at or above `threshold` are inverted, images in [0, 1]."""
    chosen = images.clone().ge_(threshold)
    return torch.addcmul(images, chosen, torch.sub(1, images, alpha=2))
