"""Random views of a batch of images, made on the images' device without a data loader.

A view is, in this order: random resized crop and flip, colour jitter, grey, blur, solarise,
RandAugment (on the view rounded to 8 bits), normalise. Every random number comes from one generator
and is drawn before a pixel is touched, in a count that depends on the numbers of views and of
RandAugment's operations alone. The deterministic pieces equal torchvision.transforms.v2.functional
on float images in [0, 1] (RandAugment: on uint8 ones), with a parameter per image; distributions
are those of RandomResizedCrop, RandomHorizontalFlip, ColorJitter (with an order of its operations
per image), RandomGrayscale, GaussianBlur, RandomSolarize and RandAugment. Parameters are host
tensors: the host then has nothing computed in vain and never waits for a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peregrine.data.colour import (
    ORDERS,
    blends_before_hue,
    jitter_colours_,
    solarise,
    to_grey,
)
from peregrine.data.ragged import Ragged
from peregrine.data.randaugment import draw_operations, randaugment
from peregrine.data.resample import blur_kernel_size, gaussian_blur, resized_crop, send

if TYPE_CHECKING:
    from peregrine.config.models import ViewSpec

ATTEMPTS = 10  # of RandomResizedCrop, before it falls back to a central crop
DRAWS = 2 * ATTEMPTS + 13  # random numbers per view of an image, RandAugment's aside
CPU_CHUNK = 2**19  # floats made at a time: few operations, and temporaries that caches hold
GPU_CHUNK = 2**27  # the same on a GPU: 512 MB, and of images of many sizes less to be padded


@dataclass
class ViewGroup:
    """Views made with the same settings: `images` is [k, n, c, h, w], normalised float32."""

    role: str
    images: Tensor


@dataclass
class Views:
    """The groups of views of one batch, in the order of the specification."""

    groups: list[ViewGroup]
    rows: Tensor | None = None
    """Which images of the training set these are, [n], on their device; for the record only."""

    def __iter__(self) -> Iterator[ViewGroup]:
        return iter(self.groups)

    def by_role(self, role: str) -> list[ViewGroup]:
        """Groups that play `role`, in order; an empty list where none does."""
        return [group for group in self.groups if group.role == role]


@dataclass
class Parameters:
    """Host tensors [n, v] for v views of n images, or [m] for m views of one or the other; box and
    factors have a last [4], those of RandAugment a last [k]."""

    box: Tensor  # top, left, height, width in px
    flip: Tensor  # bool, as jitter, grey, blur and solarise
    jitter: Tensor
    order: Tensor  # index into ORDERS
    factors: Tensor  # of brightness, contrast and saturation; hue in turns
    grey: Tensor
    blur: Tensor
    sigma: Tensor  # px
    solarise: Tensor
    operations: Tensor  # of RandAugment
    amounts: Tensor  # likewise

    def of(self, views: Sequence[int]) -> "Parameters":
        """Those of some views, one view after another: [n, v] -> [m]."""
        return self._each(lambda x: x[:, views].transpose(0, 1).flatten(0, 1))

    def __getitem__(self, part: Tensor) -> "Parameters":
        return self._each(lambda x: x[part])

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        return Parameters(**{name: function(x) for name, x in vars(self).items()})


def largest_side(specs: "Sequence[ViewSpec]") -> int:
    """Side in px of the largest views; the evaluated part of images that differ in size."""
    return max(spec.size for spec in specs)


def make_views(
    images_uint8: Tensor | Ragged,
    spec: "Sequence[ViewSpec]",
    generator: torch.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    part: tuple[int, int] = (0, 1),
) -> Views:
    """Make all views of a batch.

    images_uint8 is [n, c, h, w] with c 1 or 3, or n images of different sizes; mean and std hold c
    values on the [0, 1] scale.
    Returns a float32 group [count, n, c, size, size] per entry of spec, on the images' device. A
    CPU generator gives the same parameters on every device and spares a GPU the wait for them.
    part is (which, of how many): the images are that one of the equal, consecutive parts of a batch
    and get the views that they have in the whole.
    Raises ValueError.
    """
    _check(images_uint8, spec, mean, std)
    device = images_uint8.device
    if isinstance(images_uint8, Ragged):
        n, c = len(images_uint8), images_uint8.channels
        height, width = (x.double() for x in (images_uint8.heights, images_uint8.widths))
        h, w = int(height.max()), int(width.max())
        parameters = draw_parameters(
            spec, n, height[:, None, None], width[:, None, None], generator, part
        )
    else:
        n, c, h, w = images_uint8.shape
        parameters = draw_parameters(spec, n, h, w, generator, part)
    means, stds = torch.tensor([mean, std]).view(2, c, 1, 1)
    scale, shift = send(torch.stack([1 / stds, -means / stds]), device)
    # Groups that differ in probabilities and strengths only are made in one go: at small batches
    # the number of operations started is what costs.
    batches: dict[tuple, list[int]] = {}
    for number, s in enumerate(spec):
        strengths = (s.brightness, s.contrast, s.saturation, s.hue)
        active = tuple(op for op, strength in enumerate(strengths) if strength > 0 and s.jitter > 0)
        key = (s.size, active, s.solarise_threshold, s.randaugment > 0)
        batches.setdefault(key, []).append(number)
    offsets = [0, *accumulate(s.count for s in spec)]
    images: dict[int, Tensor] = {}
    # Autocast would turn the crops' matrix products into bfloat16.
    with torch.autocast(device.type, enabled=False):
        for (size, active, threshold, augmented), members in batches.items():
            views = [view for m in members for view in range(offsets[m], offsets[m + 1])]
            p = parameters.of(views)
            kind = torch.uint8 if augmented else torch.float32
            out = torch.empty(len(views) * n, c, size, size, device=device, dtype=kind)
            rank = blends_before_hue(p.jitter, p.order, active, c)
            for part, pixels in _parts(images_uint8, rank, c * max(h * w, size * size)):
                made = _transform(pixels, p[part], size, active, threshold)
                if augmented:
                    made = made.clamp_(0, 1).mul_(255).round_().to(kind)
                else:
                    # Into new memory: index_copy_ is four times as slow from planes.
                    made = torch.mul(made, scale, out=made.new_empty(made.shape)).add_(shift)
                out.index_copy_(0, send(part, device), made)
            if augmented:
                out = randaugment(out, p.operations, p.amounts)
                out = (out * (scale / 255)).add_(shift)
            out = out.unflatten(0, (len(views), n))
            images.update(zip(members, out.split([spec[m].count for m in members])))
    return Views([ViewGroup(s.role, images[number]) for number, s in enumerate(spec)])


def _parts(images: Tensor | Ragged, rank: Tensor, floats: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(which views [k], their uint8 images [k, c, h, w]): together all, by descending `rank`.

    Views are counted as in `Parameters.of`, and `floats` are made of one. Images of different sizes
    come by proportions, padded, and by rank in each part only; crop boxes leave the padding out.
    """
    n, m = len(images), len(rank)
    limit = CPU_CHUNK if images.device.type == "cpu" else GPU_CHUNK
    chunk = ceil(m / ceil(m * floats / limit))
    if isinstance(images, Ragged):
        for rows in images.by_shape().split(max(chunk * n // m, 1)):
            every = (torch.arange(0, m, n)[:, None] + rows).flatten()
            order = rank[every].argsort(descending=True, stable=True)
            place = send(order % len(rows), images.device)
            yield every[order], images.padded(rows).index_select(0, place)
    else:
        for part in rank.argsort(descending=True, stable=True).split(chunk):
            yield part, images.index_select(0, send(part % n, images.device))


def _check(
    images: Tensor | Ragged,
    spec: "Sequence[ViewSpec]",
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    if isinstance(images, Ragged):
        c = images.channels
    else:
        if images.dtype != torch.uint8:
            kind = str(images.dtype).removeprefix("torch.")
            raise ValueError(f"images must be uint8, not {kind}")
        if images.ndim != 4 or 0 in images.shape:
            sizes = list(images.shape)
            raise ValueError(f"images must be [n, c, h, w], none of them 0, not {sizes}")
        c = images.shape[1]
    if c not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, not {c}")
    if len(mean) != c or len(std) != c:
        raise ValueError(f"mean and std must have {c} values each, not {len(mean)} and {len(std)}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, not {list(std)}")
    if not spec:
        raise ValueError("the view specification is empty")


def _transform(
    images_uint8: Tensor,
    p: Parameters,
    size: int,
    active: tuple[int, ...],
    threshold: float,
) -> Tensor:
    """A view of each image [m, c, h, w] in [0, 1], [m, c, size, size], plane after plane."""
    c = images_uint8.shape[1]
    images = images_uint8.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    images = resized_crop(images, p.box, p.flip, (size, size))
    if active:
        jitter_colours_(images, p.jitter, p.order, p.factors, active)
    if c == 3:
        _replace(images, p.grey, to_grey)
    _replace(images, p.blur, lambda x, s: gaussian_blur(x, s, blur_kernel_size(size)), p.sigma)
    _replace(images, p.solarise, lambda x: solarise(x, threshold))
    return images


def _replace(
    images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor
) -> None:
    """Replace the chosen images, in place, by `operation` of them and of their parameters."""
    host = chosen.nonzero().squeeze(1)
    if len(host):
        index = send(host, images.device)
        part = operation(images.index_select(0, index), *(p[host] for p in parameters))
        images.index_copy_(0, index, part.expand(-1, images.shape[1], -1, -1))


def draw_parameters(
    spec: "Sequence[ViewSpec]",
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    generator: torch.Generator,
    part: tuple[int, int] = (0, 1),
) -> Parameters:
    """Draw the parameters of all views of n images, DRAWS numbers each and RandAugment's.

    height and width in px are those of all images, or float64 [n, 1, 1]; part as in make_views.
    """
    index, parts = part
    views = [s for s in spec for _ in range(s.count)]
    # Double precision: floor(u * k) is below k and, for any k that occurs, uniform.
    shape = (n * parts, len(views), DRAWS)
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    u = u[index * n : (index + 1) * n]
    ranges = [
        [s.crop_scale, s.crop_ratio]
        + [(max(0.0, 1 - x), 1 + x) for x in (s.brightness, s.contrast, s.saturation)]
        + [(-s.hue, s.hue), s.blur_sigma]
        for s in views
    ]
    chances = [[s.flip, s.jitter, s.grey, s.blur, s.solarise] for s in views]
    low, high = torch.tensor(ranges, dtype=u.dtype).unbind(2)
    in_range = torch.lerp(low[:, 2:], high[:, 2:], u[..., -5:]).float()
    happens = u[..., -10:-5] < torch.tensor(chances, dtype=u.dtype)
    flip, jitter, grey, blur, inverted = happens.unbind(2)
    order = (u[..., -11] * len(ORDERS)).long()
    boxes = crop_boxes(u[..., :-11], height, width, low[:, :2], high[:, :2])
    factors, sigma = in_range[..., :4], in_range[..., 4]
    drawn = draw_operations(views, n, generator, part)
    return Parameters(boxes, flip, jitter, order, factors, grey, blur, sigma, inverted, *drawn)


def crop_boxes(
    u: Tensor, height: int | Tensor, width: int | Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Boxes [n, v, 4] (top, left, height, width; int64) of torchvision's RandomResizedCrop.

    u [n, v, 2 * ATTEMPTS + 2] is uniform on [0, 1): areas, ratios, top, left. low and high [v, 2]
    bound scale and ratio; height and width as in draw_parameters. The first attempt that fits
    counts; where none does, the largest central crop of admissible ratio.
    """
    (small, narrow), (large, wide) = low[:, None].unbind(2), high[:, None].unbind(2)
    areas = torch.lerp(small, large, u[..., :ATTEMPTS]).mul_(height * width)
    ratios = torch.lerp(narrow.log(), wide.log(), u[..., ATTEMPTS:-2]).exp_()
    widths, heights = (areas * ratios).sqrt_().round_(), (areas / ratios).sqrt_().round_()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.byte().argmax(2, keepdim=True)  # 0 where nothing fits
    fitted = fits.gather(2, first)
    widest, tallest = (height * wide).round_(), (width / narrow).round_()
    box_width = torch.where(fitted, widths.gather(2, first), widest.clamp_max_(width))
    box_height = torch.where(fitted, heights.gather(2, first), tallest.clamp_max_(height))
    room = torch.cat([height - box_height, width - box_width], 2)
    corner = torch.where(fitted, u[..., -2:] * (room + 1), room / 2)
    return torch.cat([corner, box_height, box_width], 2).long()
