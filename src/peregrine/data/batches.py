"""Batches of a split's images for training and evaluation: what the loop asks, whatever the form.

`take(rows)` gives what make_views accepts, `whole(rows)` images as evaluation sees them, `batches`
what an epoch trains on. Where images lie changes no number.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from peregrine.data.ahead import ahead
from peregrine.data.packed import Packed
from peregrine.data.ragged import Ragged

SHARE = 0.875
"""Of the short side that evaluation sees: 224 of 256 px."""
RESIDENT = 0.5
"""Share of a GPU's free memory that images may take for good."""
READERS = 4
"""Threads that gather batches out of a file; each holds two at most."""
UPLOAD = 2**28
"""Bytes of images sent to a GPU at a time."""


class Uniform:
    """Images of one size, uint8 [n, c, h, w], on the device or, not `resident`, on the host."""

    def __init__(self, images: np.ndarray, device: torch.device, *, resident: bool = True) -> None:
        host = torch.from_numpy(images)
        self.images = host.to(device) if resident else host
        self.device = device

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor | slice) -> Tensor:
        return self.images[rows].to(self.device)

    def whole(self, rows: Tensor | slice) -> Tensor:
        """float32 [m, c, h, w] in [0, 1], as they are."""
        return self.take(rows).float() / 255

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.take, parts)


class Varying:
    """Images of different sizes: all on the GPU where half of its free memory holds them.

    Else each batch is gathered out of the mapped file, by threads that are a few batches ahead.
    """

    def __init__(
        self,
        packed: Packed,
        device: torch.device,
        size: int,
        share: float = SHARE,
        *,
        resident: bool = True,
    ) -> None:
        self.packed, self.device, self.size, self.share = packed, device, size, share
        self.pixels: Tensor | None = None
        if resident and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if len(packed.pixels) < RESIDENT * free:
                self.pixels = _uploaded(packed.pixels, device)

    def __len__(self) -> int:
        return len(self.packed)

    def take(self, rows: Tensor | slice) -> Ragged:
        return self._on_device(self._found(rows))

    def whole(self, rows: Tensor | slice) -> Tensor:
        """float32 [m, c, size, size] in [0, 1]: the centre of images whose short side is resized.

        `share` of the short side is kept.
        """
        return self.take(rows).central(self.size, self.share)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Ragged]:
        parts = [part.cpu() for part in parts]
        return map(self._on_device, ahead(self._found, parts, READERS))

    def _found(self, rows: Tensor | slice) -> Ragged:
        """Images `rows`, on the host unless all are on the device."""
        part = self.packed[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        starts, pixels = torch.from_numpy(part.starts), self.pixels
        if pixels is None:
            sizes = part.sizes()
            starts = torch.from_numpy(sizes.cumsum() - sizes)
            pinned = self.device.type == "cuda"
            pixels = torch.empty(int(sizes.sum()), dtype=torch.uint8, pin_memory=pinned)
            np.concatenate(list(part.images()), out=pixels.numpy())
        heights, widths = torch.from_numpy(part.heights), torch.from_numpy(part.widths)
        return Ragged(pixels, starts, heights, widths, part.channels)

    def _on_device(self, found: Ragged) -> Ragged:
        found.pixels = found.pixels.to(self.device, non_blocking=True)
        return found


def held(
    images: np.ndarray | Packed,
    device: torch.device,
    size: int,
    share: float = SHARE,
    *,
    resident: bool = True,
) -> Uniform | Varying:
    """The images of a split in the form that suits them.

    Args:
        size: px of the square that evaluation sees of images whose sizes differ.
        share: of their short side that it keeps.
        resident: whether they are to stay on the device.
    """
    if isinstance(images, Packed):
        return Varying(images, device, size, share, resident=resident)
    return Uniform(images, device, resident=resident)


def _uploaded(pixels: np.ndarray, device: torch.device) -> Tensor:
    out = torch.empty(len(pixels), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), UPLOAD):
        piece = torch.from_numpy(np.array(pixels[start : start + UPLOAD]))
        out[start : start + UPLOAD].copy_(piece)
    return out
