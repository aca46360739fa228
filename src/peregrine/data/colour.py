"""Colour operations on a batch of images in [0, 1], with parameters per image; see `views`."""

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from peregrine.data.resample import send

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(permutations(range(4)))  # of the colour operations, by the number that is drawn


def jitter_colours(
    images: Tensor,
    chosen: Tensor,
    order: Tensor,
    factors: Tensor,
    active: tuple[int, ...] = (BRIGHTNESS, CONTRAST, SATURATION, HUE),
) -> Tensor:
    """torchvision's ColorJitter of the chosen images, each with factors and an order of its own.

    images is [n, c, h, w]; on the host, chosen is bool [n], order [n] indexes ORDERS, factors is
    [n, 4] (brightness, contrast, saturation; hue in turns). Operations not `active` are left out,
    as are saturation and hue with one channel. Returns a new tensor.
    """
    with_hue = HUE in active and images.shape[1] == 3
    blends = tuple(a for a in active if a != HUE and (a != SATURATION or images.shape[1] == 3))
    sequences, before_hue = _sequences(blends, with_hue)
    # Images with most blends before hue come first, those not chosen last. Each step then
    # concerns a slice, and hue, the dearest of them, is computed once for all.
    rank, by_rank = torch.where(chosen, before_hue[order], -1).sort(descending=True, stable=True)
    touched = int(chosen.sum())
    sequence, factors = sequences[order[by_rank[:touched]]], factors[by_rank[:touched]]
    ratio = factors.gather(1, sequence)
    rest = 1 - ratio
    weights = torch.stack([ratio, rest * (sequence == CONTRAST), rest * (sequence == SATURATION)])
    weights = send(weights, images.device)[..., None, None, None]
    images = images.index_select(0, send(by_rank, images.device))
    splits = (rank[:, None] > torch.arange(len(blends))).sum(0).tolist()
    for step, split in enumerate(splits):
        _blend_(images[:split], *weights[:, :split, step])
    if with_hue:
        # Where torchvision starts with hue, it makes NaN of a pixel whose largest value is 0 and
        # whose smallest is negative, as a bicubic crop leaves them beside saturated colours.
        hue_first = slice(splits[0] if splits else 0, touched)
        images[hue_first].clamp_(0, 1)
        images[:touched] = adjust_hue(images[:touched], factors[:, HUE])
        for step, split in enumerate(splits):
            _blend_(images[split:touched], *weights[:, split:, step])
    return images.index_select(0, send(by_rank.argsort(), images.device))


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
    luma = to_grey(images)
    reference = luma.mean((1, 2, 3), keepdim=True).mul_(to_mean)
    if images.shape[1] == 3:
        reference = torch.addcmul(reference, luma, to_luma)
    torch.addcmul(reference, images, ratio, out=images).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """torchvision's adjust_hue of [n, 3, h, w] in [0, 1] with a shift (turns, host [n]) each."""
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
    distance = hue[:, None] + send(opposite, images.device)[..., None, None]
    distance.sub_(distance.round()).abs_().sub_(1 / 3).clamp_(-1 / 6, 0)
    return torch.addcmul(value[:, None], chroma6[:, None], distance)


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
