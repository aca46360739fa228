"""Resampling a batch of images by matrix products: resized crops and Gaussian blur.

Parameters are host tensors, one per image or view; see `peregrine.data.views`.
"""

from functools import lru_cache
from math import ceil

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device) -> Tensor:
    """Copy to `device` without waiting: CUDA copies pinned memory only in the background."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop boxes of images, resize them to `size` (rows, columns) and mirror them where `flip`.

    images is float [m, c, h, w]; on the host, boxes [m, 4] (top, left, height, width in px) and
    flip, bool [m]. Returns [m, c, *size], planes in memory. Bicubic (a = -0.5), antialiased and not
    clamped: values may leave [0, 1], as those of torchvision's resized_crop(...,
    interpolation=BICUBIC, antialias=True) do on float images.
    """
    top, left, height, width = boxes.unbind(1)
    upright = torch.zeros_like(flip)
    axes = torch.stack([top, height, upright, left, width, flip]).float()
    vertical, horizontal = send(axes, images.device).chunk(2)
    rows = _bicubic(vertical, images.shape[2], size[0], int(height.max()))
    columns = _bicubic(horizontal, images.shape[3], size[1], int(width.max()))
    return _separable(images, rows, columns)


def _bicubic(axis: Tensor, extent: int, size: int, longest: int) -> Tensor:
    """Weights [m, size, extent] that resize [start, start + length) of an axis of `extent` px.

    axis is [3, m]: start, length (none above `longest`) and whether to mirror. As in aten's
    UpSampleKernel.cpp the kernel reaches 2 * max(scale, 1) px, is cut at the box and normalised.
    """
    start, length, mirror = axis[:, :, None]
    output = torch.arange(size, device=axis.device) + 0.5
    scale = length / size
    stretch = scale.clamp_min(1)
    centre = (output + mirror * (size - 2 * output)) * scale
    # Only the taps within reach are computed, then spread: at 32 px 4 of 32.
    taps = torch.arange(ceil(4 * max(longest / size, 1)), device=axis.device) + 0.5
    pixel = (centre - 2 * stretch - 0.5).ceil_() + taps[:, None, None]
    # Keys' kernel without a branch, twice over: with u = max(2 - |x|, 0) and v = max(u - 1, 0) it
    # is u^2 (u - 1) + 2 v^2 (1 - 2 v). Masks are floats, which are written faster than bool.
    u = (pixel - centre).div_(stretch).abs_().neg_().add_(2).clamp_min_(0)
    taps = u * u
    taps.mul_(u.sub_(1))
    v = u.clamp_min_(0)
    taps.addcmul_(v * v, v.mul_(-2).add_(1), value=2)
    taps.mul_(torch.gt(pixel, 0, out=u)).mul_(torch.lt(pixel, length, out=u))
    taps.div_(taps.sum(0))
    weights = torch.zeros(axis.shape[1], size, extent, device=axis.device)
    pixel = pixel.add_(start).clamp_(0, extent - 1).long()
    return weights.scatter_add_(2, pixel.permute(1, 2, 0), taps.permute(1, 2, 0))


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ channel @ columns^T; [m, c, h, w], [m, r, h] and [m, s, w] give [m, c, r, s].

    Batched products: the columns of all channels in one, then the rows of each, which leaves plane
    after plane in memory, [c, m, r, s]. Colour operations read them so, and nothing is copied.
    """
    m, c, h, w = images.shape
    s = columns.shape[1]
    by_column = torch.bmm(images.reshape(m, c * h, w), columns.transpose(1, 2)).view(m, c, h, s)
    planes = images.new_empty(c, m, rows.shape[1], s)
    for plane, channel in zip(planes, by_column.unbind(1)):
        torch.bmm(rows, channel, out=plane)
    return planes.transpose(0, 1)


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
    kernel = send((offsets / sigma[:, None]).square_().mul_(-0.5).softmax(1), images.device)
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
