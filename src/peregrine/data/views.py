"""Random views of a batch of images, made on the images' device without a data loader.

A view is, in this order: random resized crop and flip, colour jitter, grey, blur, solarise,
normalise. Every random number comes from one generator and is drawn before a pixel is touched, in a
count that depends on the number of views alone. The deterministic pieces equal
torchvision.transforms.v2.functional on float images in [0, 1], with a parameter per image; the
distributions are those of RandomResizedCrop, RandomHorizontalFlip, ColorJitter (with an order of
its operations per image), RandomGrayscale, GaussianBlur and RandomSolarize. Parameters are host
tensors: the host then has nothing computed in vain and never waits for a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, permutations
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from peregrine.config.models import ViewSpec

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(permutations(range(4)))  # of the colour operations, by the number that is drawn
ATTEMPTS = 10  # of RandomResizedCrop, before it falls back to a central crop
DRAWS = 2 * ATTEMPTS + 13  # random numbers per view of an image, whatever its settings
CPU_CHUNK = 2**18  # floats made at a time: 1 MB and its temporaries stay in a core's cache


@dataclass
class ViewGroup:
    """Views made with the same settings: `images` is [k, n, c, h, w], normalised float32."""

    role: str
    images: Tensor


@dataclass
class Views:
    """The groups of views of one batch, in the order of the specification."""

    groups: list[ViewGroup]

    def __iter__(self) -> Iterator[ViewGroup]:
        return iter(self.groups)

    def by_role(self, role: str) -> list[ViewGroup]:
        """Groups that play `role`, in order; an empty list where none does."""
        return [group for group in self.groups if group.role == role]


@dataclass
class Parameters:
    """Host tensors [n, v] for v views of n images, or [m]; box and factors have a last [4]."""

    box: Tensor  # top, left, height, width in px
    flip: Tensor  # bool, as jitter, grey, blur and solarise
    jitter: Tensor
    order: Tensor  # index into ORDERS
    factors: Tensor  # of brightness, contrast and saturation; hue in turns
    grey: Tensor
    blur: Tensor
    sigma: Tensor  # px
    solarise: Tensor

    def flat(self, images: slice, views: Sequence[int]) -> "Parameters":
        """Those of some images and views, image by image: [n, v] -> [m]."""
        pick = slice(None) if len(views) == self.box.shape[1] else views
        return Parameters(**{k: v[images, pick].flatten(0, 1) for k, v in vars(self).items()})


def make_views(
    images_uint8: Tensor,
    spec: "Sequence[ViewSpec]",
    generator: torch.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Views:
    """Make all views of a batch.

    images_uint8 is [n, c, h, w] with c 1 or 3; mean and std hold c values on the [0, 1] scale.
    Returns a float32 group [count, n, c, size, size] per entry of spec, on the images' device. A
    CPU generator gives the same parameters on every device and spares a GPU the wait for them.
    Raises ValueError.
    """
    _check(images_uint8, spec, mean, std)
    n, c, h, w = images_uint8.shape
    device = images_uint8.device
    parameters = draw_parameters(spec, n, h, w, generator)
    means, stds = torch.tensor([mean, std]).view(2, c, 1, 1)
    scale, shift = _send(torch.stack([1 / stds, -means / stds]), device)
    # Groups that differ in probabilities and strengths only are made in one go: at small batches
    # the number of operations started is what costs.
    batches: dict[tuple, list[int]] = {}
    for number, s in enumerate(spec):
        strengths = (s.brightness, s.contrast, s.saturation, s.hue)
        active = tuple(op for op, strength in enumerate(strengths) if strength > 0 and s.jitter > 0)
        batches.setdefault((s.size, active, s.solarise_threshold), []).append(number)
    offsets = [0, *accumulate(s.count for s in spec)]
    images: dict[int, Tensor] = {}
    # Autocast would turn the crops' matrix products into bfloat16.
    with torch.autocast(device.type, enabled=False):
        for (size, active, threshold), members in batches.items():
            views = [view for m in members for view in range(offsets[m], offsets[m + 1])]
            out = torch.empty(len(views), n, c, size, size, device=device)
            floats = n * c * max(h * w, len(views) * size * size)
            chunk = ceil(n / ceil(floats / CPU_CHUNK)) if device.type == "cpu" else n
            for start in range(0, n, chunk):
                part = slice(start, start + chunk)
                p = parameters.flat(part, views)
                made = _transform(images_uint8[part], p, size, active, threshold)
                by_view = made.unflatten(0, (-1, len(views))).transpose(0, 1)
                torch.addcmul(shift, by_view, scale, out=out[:, part])
            images.update(zip(members, out.split([spec[m].count for m in members])))
    return Views([ViewGroup(s.role, images[number]) for number, s in enumerate(spec)])


def _check(
    images: Tensor, spec: "Sequence[ViewSpec]", mean: Sequence[float], std: Sequence[float]
) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [n, c, h, w], none of them 0, not {list(images.shape)}")
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
    images_uint8: Tensor, p: Parameters, size: int, active: tuple[int, ...], threshold: float
) -> Tensor:
    """Views on the [0, 1] scale, [m, c, size, size], those of the first image first."""
    n, c, h, w = images_uint8.shape
    # Rows outermost, which is how resized_crop reads them.
    images = torch.empty(n, h, c, w, device=images_uint8.device).permute(0, 2, 1, 3)
    images.copy_(images_uint8).div_(255)
    images = resized_crop(images, p.box, p.flip, (size, size))
    if active:
        images = jitter_colours(images, p.jitter, p.order, p.factors, active)
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
        index = _send(host, images.device)
        part = operation(images.index_select(0, index), *(p[host] for p in parameters))
        images.index_copy_(0, index, part.expand(-1, images.shape[1], -1, -1))


def _send(host: Tensor, device: torch.device) -> Tensor:
    """Copy to `device` without waiting: CUDA copies pinned memory only in the background."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def draw_parameters(
    spec: "Sequence[ViewSpec]", n: int, height: int, width: int, generator: torch.Generator
) -> Parameters:
    """Draw the parameters of all views of n images of height x width px, DRAWS numbers each."""
    views = [s for s in spec for _ in range(s.count)]
    # Double precision: floor(u * k) is below k and, for any k that occurs, uniform.
    u = torch.rand(
        (n, len(views), DRAWS), generator=generator, device=generator.device, dtype=torch.float64
    ).cpu()
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
    return Parameters(boxes, flip, jitter, order, factors, grey, blur, sigma, inverted)


def crop_boxes(u: Tensor, height: int, width: int, low: Tensor, high: Tensor) -> Tensor:
    """Boxes [n, v, 4] (top, left, height, width; int64) of torchvision's RandomResizedCrop.

    u [n, v, 2 * ATTEMPTS + 2] is uniform on [0, 1): areas, ratios, top, left. low and high [v, 2]
    bound scale and ratio. The first attempt that fits counts; where none does, the largest central
    crop of admissible ratio.
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


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop boxes of images, resize them to `size` (rows, columns) and mirror them where `flip`.

    images is float [n, c, h, w]; on the host, boxes [m, 4] (top, left, height, width in px) and
    flip, bool [m]: m / n of the first image, then of the next. Returns [m, c, *size]. Bicubic
    (a = -0.5), antialiased and not clamped: values may leave [0, 1], as those of torchvision's
    resized_crop(..., interpolation=BICUBIC, antialias=True) do on float images.
    """
    top, left, height, width = boxes.unbind(1)
    upright = torch.zeros_like(flip)
    axes = torch.stack([top, height, upright, left, width, flip]).float()
    vertical, horizontal = _send(axes, images.device).chunk(2)
    rows = _bicubic(vertical, images.shape[2], size[0], int(height.max()))
    columns = _bicubic(horizontal, images.shape[3], size[1], int(width.max()))
    return _separable(images, rows, columns)


def _bicubic(axis: Tensor, extent: int, size: int, longest: int) -> Tensor:
    """Weights [m, size, extent] that resize [start, start + length) of an axis of `extent` px.

    axis is [3, m]: start, length (none above `longest`) and whether to mirror. As in aten's
    UpSampleKernel.cpp the kernel reaches 2 * max(scale, 1) px, is cut at the box and normalised.
    """
    start, length, mirror = axis[:, :, None, None]
    output = torch.arange(size, device=axis.device)[:, None] + 0.5
    scale = length / size
    stretch = scale.clamp_min(1)
    centre = (output + mirror * (size - 2 * output)) * scale
    # Only the taps within reach are computed, then spread: at 32 px 4 of 32.
    taps = torch.arange(ceil(4 * max(longest / size, 1)), device=axis.device) + 0.5
    pixel = (centre - 2 * stretch - 0.5).ceil_() + taps
    # Keys' kernel without a branch, twice over: with u = max(2 - |x|, 0) and v = max(u - 1, 0) it
    # is u^2 (u - 1) + 2 v^2 (1 - 2 v).
    u = (pixel - centre).div_(stretch).abs_().neg_().add_(2).clamp_min_(0)
    taps = u * u
    taps.mul_(u.sub_(1))
    v = u.clamp_min_(0)
    taps.addcmul_(v * v, v.mul_(-2).add_(1), value=2)
    taps.mul_((pixel > 0).logical_and_(pixel < length))
    taps.div_(taps.sum(-1, keepdim=True))
    weights = torch.zeros(axis.shape[1], size, extent, device=axis.device)
    return weights.scatter_add_(2, pixel.add_(start).clamp_(0, extent - 1).long(), taps)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ channel @ columns^T; [n, c, h, w], [m, r, h] and [m, s, w] give [m, c, r, s].

    Two batched products, all channels in one. Images in [n, h, c, w] memory are not copied.
    """
    n, c, h, w = images.shape
    m, r, _ = rows.shape
    by_row = images.permute(0, 2, 1, 3).reshape(n, h, c * w)
    by_row = torch.bmm(rows.reshape(n, -1, h), by_row).view(m, r * c, w)
    by_row = torch.bmm(by_row, columns.transpose(1, 2)).view(m, r, c, -1)
    return by_row.permute(0, 2, 1, 3).contiguous()


def blur_kernel_size(size: int) -> int:
    """Taps of the blur of a view of `size` px: a tenth (SimCLR), odd; 23 at 224 px, 5 at 32 px."""
    return max(3, 2 * round(0.05 * size) + 1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """torchvision's gaussian_blur of [n, c, h, w] with a sigma (px, host [n]) per image.

    Raises ValueError where kernel_size is even or reaches beyond the reflection at the border.
    """
    h, w = images.shape[2:]
    if kernel_size % 2 == 0 or kernel_size // 2 >= min(h, w):
        raise ValueError(f"a blur of {kernel_size} taps does not fit images of {h} x {w} px")
    offsets = torch.arange(kernel_size) - kernel_size // 2
    kernel = _send((offsets / sigma[:, None]).square_().mul_(-0.5).softmax(1), images.device)
    matrices = [(kernel @ _taps(s, kernel_size, images.device)).view(-1, s, s) for s in (h, w)]
    return _separable(images, *matrices)


@lru_cache(maxsize=16)
def _taps(extent: int, kernel_size: int, device: torch.device) -> Tensor:
    """[taps, extent * extent]: 1 where a tap of an output pixel reads an input pixel."""
    tap, output = torch.arange(kernel_size)[:, None], torch.arange(extent)
    read = (output + tap - kernel_size // 2).abs()
    read = torch.minimum(read, 2 * (extent - 1) - read)
    reads = torch.zeros(kernel_size, extent, extent)
    reads[tap, output, read] = 1
    return reads.flatten(1).to(device)


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
    weights = _send(weights, images.device)[..., None, None, None]
    images = images.index_select(0, _send(by_rank, images.device))
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
    return images.index_select(0, _send(by_rank.argsort(), images.device))


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
    distance = hue[:, None] + _send(opposite, images.device)[..., None, None]
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
