"""Images of different sizes in one tensor file, which is written and read in bounded memory."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from peregrine.data.ahead import ahead
from peregrine.data.sources import Split
from peregrine.errors import UserError
from peregrine.files import map_tensors, streamed_tensors

CHUNK = 1000
"""Images whose pixels are digested together; the split's sum is over these digests."""
Decoder = Callable[[Path], tuple[np.ndarray, np.ndarray]]
"""File -> (uint8 [h, 3, w], how often each value occurs [3, 256])."""
COLUMNS = ("starts", "heights", "widths", "labels")


@dataclass(frozen=True)
class Packed:
    """n images in one array; indexing with an array of rows gives a part of them.

    Attributes:
        pixels: uint8 [bytes]; of an image row by row, in a row channel by channel.
        starts: of each image in `pixels`, int64 [n], as heights and widths, which are in px.
        channels: of every image.
    """

    pixels: np.ndarray
    starts: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    channels: int = 3

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: np.ndarray | slice) -> "Packed":
        columns = self.starts[rows], self.heights[rows], self.widths[rows]
        return Packed(self.pixels, *columns, self.channels)

    def sizes(self) -> np.ndarray:
        """Bytes of each image, int64 [n]."""
        return self.heights * self.widths * self.channels

    def images(self) -> Iterator[np.ndarray]:
        """The bytes of each image."""
        for start, size in zip(self.starts.tolist(), self.sizes().tolist(), strict=True):
            yield self.pixels[start : start + size]

    def fits(self) -> bool:
        """Whether every image has pixels, and all of them lie inside."""
        positive = min(self.starts.min() + 1, self.heights.min(), self.widths.min()) > 0
        return bool(positive and (self.starts + self.sizes()).max() <= len(self.pixels))


def write_packed(
    path: Path, files: dict[str, list[tuple[Path, int]]], decode: Decoder, threads: int, name: str
) -> dict[str, np.ndarray]:
    """Decode all images and write them; by split, how often each value occurs [3, 256].

    Args:
        files: (file, label) of every image by split.
        threads: that decode. Pillow decodes and resizes without Python's lock.

    Raises:
        UserError: an image that cannot be decoded, or a file that cannot be written.
    """
    counts = {split: np.zeros((3, 256), np.int64) for split in files}
    with streamed_tensors(path, name=name) as tensors:
        for split, found in files.items():
            shapes: list[tuple[int, ...]] = []
            images = ahead(decode, [file for file, _ in found], threads, 16 * threads)
            bar = tqdm(images, desc=split, total=len(found), unit="image", disable=None)
            tensors.flat(f"{split}_pixels", _noted(bar, shapes, counts[split]))
            heights, channels, widths = np.array(shapes, np.int64).T
            sizes = heights * channels * widths
            columns = sizes.cumsum() - sizes, heights, widths, [label for _, label in found]
            for column, values in zip(COLUMNS, columns, strict=True):
                tensors.numbers(f"{split}_{column}", np.asarray(values))
    return counts


def _noted(
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    shapes: list[tuple[int, ...]],
    counts: np.ndarray,
) -> Iterator[np.ndarray]:
    """The images, whose shapes and counts are added up on the way."""
    for image, seen in images:
        shapes.append(image.shape)
        counts += seen
        yield image


def read_packed(path: Path, splits: Sequence[str], channels: int = 3) -> dict[str, Split]:
    """Splits whose pixels stay in the file; not verified, see `packed_sum`.

    Raises:
        UserError: missing or damaged.
    """
    names = [f"{split}_{part}" for split in splits for part in ("pixels", *COLUMNS)]
    arrays, _ = map_tensors(path, names, verify=False)
    out = {}
    for split in splits:
        starts, heights, widths, labels = (np.array(arrays[f"{split}_{c}"]) for c in COLUMNS)
        images = Packed(arrays[f"{split}_pixels"], starts, heights, widths, channels)
        lengths = {len(column) for column in (starts, heights, widths, labels)}
        if len(lengths) > 1 or not images.fits():
            raise UserError(f"{path} is damaged; delete it and run prepare again")
        out[split] = Split(images, labels)
    return out


def packed_sum(split: Split) -> str:
    """SHA-256 of a split's sizes, labels and, by way of digests of CHUNK images each, pixels.

    The order of the images counts, not where they lie. Chunks are digested side by side.
    """
    images = split.images
    digest = hashlib.sha256(f"packed {images.channels}".encode())
    for column in (images.heights, images.widths, split.labels):
        digest.update(np.ascontiguousarray(column, dtype="<i8").data)
    chunks = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    for each in ahead(_pixel_digest, chunks, min(8, os.cpu_count() or 1)):
        digest.update(each)
    return digest.hexdigest()


def _pixel_digest(images: Packed) -> bytes:
    digest = hashlib.sha256()
    for pixels in images.images():
        digest.update(pixels.data)
    return digest.digest()
