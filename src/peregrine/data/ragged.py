"""A batch of images that differ in height and width."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Ragged:
    """n images in one tensor.

    Attributes:
        pixels: uint8 [bytes]; of an image row by row, in a row channel by channel, which is how
            resized crops read it.
        starts: of each image in `pixels`, int64 [n], as heights and widths on the host.
        heights, widths: px.
        channels: 1 or 3.
    """

    pixels: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor
    channels: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def image(self, row: int) -> Tensor:
        """One image, a view uint8 [c, h, w]."""
        start, h, w = (int(each[row]) for each in (self.starts, self.heights, self.widths))
        flat = self.pixels[start : start + h * self.channels * w]
        return flat.view(h, self.channels, w).transpose(0, 1)

    def padded(self, rows: Tensor) -> Tensor:
        """Images `rows` as uint8 [k, c, H, W], each in the upper left corner, zeros elsewhere."""
        size = int(self.heights[rows].max()), self.channels, int(self.widths[rows].max())
        out = torch.zeros(len(rows), *size, dtype=torch.uint8, device=self.device)
        out = out.transpose(1, 2)
        for place, row in zip(out, rows.tolist()):
            image = self.image(row)
            place[:, : image.shape[1], : image.shape[2]] = image
        return out

    def by_shape(self) -> Tensor:
        """All rows, images of like proportions side by side: little is padded."""
        return (self.heights.double() / self.widths).argsort(stable=True)

    def central(self, size: int, share: float) -> Tensor:
        """What evaluation sees: float32 [n, c, size, size] in [0, 1].

        The short side is resized to size / share and the centre cut out: 256 and 224 px at a share
        of .875. Equal to torchvision's Resize (bicubic, antialiased, on float images; but clamped)
        and CenterCrop.
        """
        short = round(size / share)
        out = torch.empty(len(self), self.channels, size, size, device=self.device)
        for row, place in enumerate(out):
            image = self.image(row).float().div_(255)
            h, w = image.shape[1:]
            if min(h, w) != short:
                longest = int(short * max(h, w) / min(h, w))
                to = (short, longest) if h < w else (longest, short)
                image = F.interpolate(image[None], to, mode="bicubic", antialias=True)[0]
                h, w = to
            top, left = round((h - size) / 2), round((w - size) / 2)
            place.copy_(image[:, top : top + size, left : left + size]).clamp_(0, 1)
        return out
