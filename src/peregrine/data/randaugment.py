"""RandAugment (Cubuk et al., arXiv 1909.13719) of a whole batch of 8-bit images on their device.

An image gets N operations in sequence, each drawn from torchvision.transforms.v2.RandAugment's 14
with the one magnitude M of 31 and, where the operation has one, a random sign; nearest
interpolation, black outside. Images are sorted by operation, so the work is done on at most 14
slices: shears, translations and rotations by one grid of positions, what maps pixel values to pixel
values by a table of 256 per image and channel. Operations and amounts are host tensors.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from peregrine.data.colour import to_grey
from peregrine.data.resample import send

if TYPE_CHECKING:
    from peregrine.config.models import ViewSpec

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize"),
    *("Color", "Sharpness"),
)
"""torchvision's names, in an order that puts geometry first and tables after it."""
SIGNED = frozenset(OPERATIONS) - {"Identity", *OPERATIONS[8:12]}
BINS = 31  # of magnitudes

Rows = dict[str, slice]  # of the images that get an operation


def draw_operations(
    views: "Sequence[ViewSpec]", n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Operations [n, v, k] (int64, indices into OPERATIONS) and their amounts (float32).

    k is the largest `randaugment` of the v views; those with less get Identity beyond theirs. Two
    numbers an operation are drawn, none where k is 0. Amounts are in the units of `amounts`.
    """
    counts = torch.tensor([view.randaugment for view in views])
    k = int(counts.max())
    shape = (n, len(views), k, 2)
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    operations = (u[..., 0] * len(OPERATIONS)).long() * (torch.arange(k) < counts[:, None])
    table = torch.stack([amounts(view.magnitude, view.size) for view in views])
    size = table.gather(1, operations.transpose(0, 1).flatten(1)).view(len(views), n, k)
    signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operations]
    return operations, torch.where(signed & (u[..., 1] < 0.5), -1, 1) * size.transpose(0, 1)


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
    uint8 tensors; only where a shear has its origin half-way between two pixels it may take the
    other one. With one channel Color changes nothing, as there.
    """
    place = torch.arange(len(images))
    for operation, amount in zip(operations.unbind(1), amounts.unbind(1)):
        order = operation[place].argsort(stable=True)
        place = place[order]
        images = images.index_select(0, send(order, images.device))
        ends = [0, *accumulate(operation.bincount(minlength=len(OPERATIONS)).tolist())]
        rows = {name: slice(*pair) for name, pair in zip(OPERATIONS, pairwise(ends))}
        _apply_(images, amount[place], rows)
    return images.index_select(0, send(place.argsort(), images.device))


def _apply_(images: Tensor, amount: Tensor, rows: Rows) -> None:
    """One operation an image, in place; images and amount, host [m], are sorted by operation."""
    moved = slice(rows["ShearX"].start, rows["Rotate"].stop)
    images[moved] = _move(images[moved], _origins(amount, rows, images.shape[3])[moved])

    amount = send(amount, images.device)[:, None, None, None]
    mapped = slice(rows["Brightness"].start, rows["Equalize"].stop)
    levels = torch.arange(256.0, device=images.device)
    tables = [
        table(levels, amount[rows[name], 0], images[rows[name]]) for name, table in TABLES.items()
    ]
    tables = torch.cat([each.byte().expand(-1, images.shape[1], -1) for each in tables])
    pixels = images[mapped].flatten(2)
    images[mapped] = tables.gather(2, pixels.long()).view_as(images[mapped])

    if images.shape[1] == 3:
        old, by = images[rows["Color"]].float(), amount[rows["Color"]]
        images[rows["Color"]] = _mix(old * (1 + by), to_grey(old).floor_(), -by)

    old = images[rows["Sharpness"]].float()
    inner = old[..., 1:-1, 1:-1]
    lines = old[..., :-2, :] + old[..., 1:-1, :] + old[..., 2:, :]
    smooth = (lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]).add_(inner, alpha=4)
    smooth.div_(13).round_().sub_(inner)
    images[rows["Sharpness"], :, 1:-1, 1:-1] = _mix(inner, smooth, -amount[rows["Sharpness"]])


def _mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """uint8 of first + weight * second, rounded once to float32, as a fused multiply-add does.

    torch.add(first, second, alpha=weight) in torchvision is one. Where both are the same grey, the
    sum is a whole number that another rounding would push below itself, and uint8 cuts off.
    """
    mixed = torch.addcmul(first.double(), second.double(), weight.double())
    return mixed.float().clamp_(0, 255).byte()


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
    last = counts.gather(2, below.argmax(2, keepdim=True))
    step = ((pixels.shape[2] - last) / 255).floor_()
    new = (below - counts + (step / 2).floor_()).div_(step.clamp_min(1)).floor_().clamp_(max=255)
    return torch.where(step > 0, new, levels)


# New values [m, c or 1, 256] of the levels, from amounts [m, 1, 1] and images, in [0, 255].
TABLES = {
    "Brightness": lambda levels, by, images: (levels * (1 + by)).clamp_(0, 255),
    "Contrast": _contrast,
    "Posterize": _posterize,
    "Solarize": lambda levels, at, images: torch.where(levels >= at, 255 - levels, levels),
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}


def _origins(amount: Tensor, rows: Rows, size: int) -> Tensor:
    """[m, 2, 3] on the host: where a pixel comes from, both in px from the centre.

    Shears keep the upper or the left border, the others the centre, as in torchvision.
    """
    by = amount.double()
    matrices = torch.eye(2, 3, dtype=by.dtype).repeat(len(by), 1, 1)
    for axis, letter in enumerate("XY"):
        sheared, shifted = rows[f"Shear{letter}"], rows[f"Translate{letter}"]
        matrices[sheared, axis, 1 - axis] = by[sheared]
        matrices[sheared, axis, 2] = by[sheared] * (size / 2)
        matrices[shifted, axis, 2] = -by[shifted]
    angle = by[rows["Rotate"]].deg2rad()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    matrices[rows["Rotate"], :, :2] = turn.view(-1, 2, 2)
    return matrices.float()


def _move(images: Tensor, matrices: Tensor) -> Tensor:
    """The nearest pixel to each pixel's origin, 0 outside."""
    size = images.shape[-1]
    # By hand and not as a matrix product, which may be in TF32 on a GPU.
    across, down, shift = send(matrices / (size / 2), images.device)[..., None, None].unbind(2)
    x = _centred(size, images.device)
    grid = (across * x + down * x[:, None] + shift).permute(0, 2, 3, 1)
    return grid_sample(images.float(), grid, "nearest", "zeros", align_corners=False).byte()


@lru_cache(maxsize=16)
def _centred(size: int, device: torch.device) -> Tensor:
    return torch.linspace((1 - size) / 2, (size - 1) / 2, size, device=device)
