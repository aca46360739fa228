"""RandAugment (Cubuk et al., arXiv 1909.13719) of a whole batch of 8-bit images on their device.

An image gets N operations in sequence, each drawn from torchvision.transforms.v2.RandAugment's 14
with the one magnitude M of 31 and, where the operation has one, a random sign; nearest
interpolation, black outside. Images are sorted by operation, so that each is one call for all its
images: shears, translations and rotations by a grid of positions, whatever maps pixel values to
pixel values by a table of 256 per image and channel. Operations and amounts are host tensors.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from peregrine.data.colour import to_grey
from peregrine.data.resample import send

if TYPE_CHECKING:
    from peregrine.config.models import ViewSpec

BINS = 31  # of magnitudes
CPU_PIECE = 2**17  # pixel values that an operation works on at a time: they stay in a core's cache


def draw_operations(
    views: "Sequence[ViewSpec]", n: int, generator: torch.Generator, part: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """Operations [n, v, k] (int64, numbers in OPERATIONS) and their amounts (float32).

    k is the largest `randaugment` of the v views; those with less get Identity beyond theirs. Two
    numbers an operation are drawn, none where k is 0. Amounts are in the units of `amounts`. The n
    images are the `part` of a batch, as make_views has it.
    """
    counts = torch.tensor([view.randaugment for view in views])
    k = int(counts.max())
    if not k:
        return counts.new_empty(n, len(views), 0), torch.empty(n, len(views), 0)
    index, parts = part
    shape = (n * parts, len(views), k, 2)
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    u = u[index * n : (index + 1) * n]
    operations = (u[..., 0] * len(OPERATIONS)).long() * (torch.arange(k) < counts[:, None])
    table = torch.stack([amounts(view.magnitude, view.size) for view in views])
    size = table.gather(1, operations.transpose(0, 1).flatten(1)).view(len(views), n, k)
    signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operations]
    return operations, torch.where(signed & (u[..., 1] < 0.5), -1, 1) * size.transpose(0, 1)


@lru_cache(maxsize=32)
def amounts(magnitude: int, size: int) -> Tensor:
    """Amount of each operation [14] at one of 31 magnitudes, on images of `size` px.

    Shears are tangents, translations whole px, rotations degrees; brightness, contrast, colour and
    sharpness are what is added to the factor 1; bits that Posterize keeps; the value from which
    Solarize inverts. Operations without one: 0.
    """
    tops = {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0}
    tops |= dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), 0.9)
    tops |= dict.fromkeys(("TranslateX", "TranslateY"), 150 / 331 * size)
    found = {name: torch.linspace(0, top, BINS)[magnitude] for name, top in tops.items()}
    for name in ("TranslateX", "TranslateY"):
        found[name] = found[name].trunc()
    found["Posterize"] = 8 - torch.tensor(magnitude / ((BINS - 1) / 4)).round()
    found["Solarize"] = 255 * torch.linspace(1, 0, BINS)[magnitude]
    return torch.stack([found.get(name, torch.tensor(0.0)) for name in OPERATIONS])


def randaugment(images: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    """Apply each image's operations one after the other.

    images is uint8 [m, c, s, s] with c 1 or 3; on the host, operations and amounts are [m, k] as
    `draw_operations` gives them. Returns uint8, what torchvision.transforms.v2.functional makes of
    uint8 tensors, but for two roundings: a shear whose origin is half-way between two pixels may
    take the other one, and Color, Contrast and Sharpness may be one level off where a processor
    does not fuse multiplying and adding. With one channel Color changes nothing, as there.
    """
    numbers = torch.cat([amounts[..., None], _origins(operations, amounts, images.shape[3])], 2)
    piece = ceil(CPU_PIECE / images[0].numel()) if images.device.type == "cpu" else len(images)
    place = torch.arange(len(images))
    for step, operation in enumerate(operations.unbind(1)):
        order = operation[place].argsort(stable=True)
        place = place[order]
        images = images.index_select(0, send(order, images.device))
        given = send(numbers[place, step], images.device)[..., None, None]
        counts = operation.bincount(minlength=len(OPERATIONS)).tolist()
        groups = zip(OPERATIONS.values(), images.split(counts), given.split(counts))
        for apply, group, its in groups:
            if apply and len(group):
                for part, some in zip(group.split(piece), its.split(piece)):
                    part.copy_(apply(part, some))
    return images.index_select(0, send(place.argsort(), images.device))


def _origins(operations: Tensor, amounts: Tensor, size: int) -> Tensor:
    """[m, k, 6] on the host: the affine map from a pixel to its origin, from the centre, in px.

    Shears keep the upper or the left border, the others the centre, as in torchvision. In the units
    of grid_sample, where half the size is 1.
    """
    by = amounts.double()
    maps = torch.eye(2, 3, dtype=by.dtype).repeat(*by.shape, 1, 1)
    for axis, letter in enumerate("XY"):
        sheared, shifted = (operations == NUMBER[f"{x}{letter}"] for x in ("Shear", "Translate"))
        maps[..., axis, 1 - axis] += by * sheared
        maps[..., axis, 2] += by * sheared * (size / 2) - by * shifted
    angle = (by * (operations == NUMBER["Rotate"])).deg2rad()
    maps[..., 0, 0] = maps[..., 1, 1] = angle.cos()
    maps[..., 0, 1] -= angle.sin()
    maps[..., 1, 0] += angle.sin()
    return maps.float().div_(size / 2).flatten(2)


def _move(images: Tensor, given: Tensor) -> Tensor:
    """The nearest pixel to each pixel's origin, black where that is outside."""
    size = images.shape[-1]
    x = torch.linspace((1 - size) / 2, (size - 1) / 2, size, device=images.device)
    # By hand and not as a matrix product, which may be in TF32 on a GPU.
    across, down, shift = given[:, 1:].unflatten(1, (2, 3)).unbind(2)
    grid = (across * x + down * x[:, None] + shift).permute(0, 2, 3, 1)
    return grid_sample(images.float(), grid, "nearest", "zeros", align_corners=False)


def _mapped(
    table: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The operation that looks pixels up in a table [m, c or 1, 256] of values in [0, 256).

    `table` makes it from the old values, amounts [m, 1, 1] and the images.
    """

    def apply(images: Tensor, given: Tensor) -> Tensor:
        levels = torch.arange(256.0, device=images.device)
        new = table(levels, given[:, 0], images).byte().expand(-1, images.shape[1], -1)
        return new.gather(2, images.flatten(2).long()).view_as(images)

    return apply


def _mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return torch.addcmul(first, second, weight).clamp_(0, 255)


def _contrast(levels: Tensor, by: Tensor, images: Tensor) -> Tensor:
    grey = to_grey(images.float()).floor_()
    return _mix(levels * (1 + by), grey.mean((1, 2, 3)).view(-1, 1, 1), -by)


def _posterize(levels: Tensor, bits: Tensor, images: Tensor) -> Tensor:
    step = torch.exp2(8 - bits)
    return (levels / step).floor_() * step


def _autocontrast(levels: Tensor, _: Tensor, images: Tensor) -> Tensor:
    pixels = images.flatten(2)
    low, high = (x.float()[..., None] for x in (pixels.amin(2), pixels.amax(2)))
    flat = high == low
    scale = ((high - low) * (1 / 255)).masked_fill_(flat, 1)
    return (levels - low.masked_fill(flat, 0)).div_(scale).clamp_(0, 255)


def _equalize(levels: Tensor, _: Tensor, images: Tensor) -> Tensor:
    """Pillow's histogram equalisation; counts are exact in float32 up to 4,096 px a side."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, device=images.device)
    counts.scatter_add_(2, pixels, counts.new_ones(1).expand_as(pixels))
    below = counts.cumsum(2)
    last = counts.gather(2, pixels.amax(2, keepdim=True))
    step = ((pixels.shape[2] - last) / 255).floor_()
    new = (below - counts + (step / 2).floor_()).div_(step.clamp_min(1)).floor_().clamp_(max=255)
    return torch.where(step > 0, new, levels)


def _colour(images: Tensor, given: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    old, by = images.float(), given[:, :1]
    return _mix(old * (1 + by), to_grey(old).floor_(), -by)


def _sharpen(images: Tensor, given: Tensor) -> Tensor:
    """Away from or towards a blur by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; borders stay."""
    new = images.float()
    inner = new[..., 1:-1, 1:-1]
    lines = new[..., :-2, :] + new[..., 1:-1, :] + new[..., 2:, :]
    blur = (lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]).add_(inner, alpha=4)
    inner.copy_(_mix(inner, blur.div_(13).round_().sub_(inner), -given[:, :1]))
    return new


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "Identity": None,
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), _move),
    "Brightness": _mapped(lambda levels, by, _: (levels * (1 + by)).clamp_(0, 255)),
    "Color": _colour,
    "Contrast": _mapped(_contrast),
    "Sharpness": _sharpen,
    "Posterize": _mapped(_posterize),
    "Solarize": _mapped(lambda levels, at, _: torch.where(levels >= at, 255 - levels, levels)),
    "AutoContrast": _mapped(_autocontrast),
    "Equalize": _mapped(_equalize),
}
"""torchvision's names and order. Each takes uint8 images [m, c, s, s] and [m, 7, 1, 1], amounts and
origins, and returns values in [0, 256), of which uint8 keeps the whole part."""
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
SIGNED = list(OPERATIONS)[1:10]
