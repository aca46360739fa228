"""Image folders, train/CLASS/* and val/CLASS/*, as ImageNet and its subsets come. No torch.

Their files have no published digests. What can be checked is that every class is there, how many
images there are, and that each of them decodes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peregrine.errors import UserError, refusal

PARTS = {"train": "train", "test": "val"}
"""Split -> its folder. ImageNet's test images have no published labels: val stands in."""
KINDS = (".jpeg", ".jpg", ".png")
SHORT_SIDE = 256
"""px; what images of ImageNet are resized to before their centre is evaluated."""


def synsets(name: str) -> tuple[str, ...]:
    """The class list beside this module: WordNet ids in label order, which is sorted."""
    return tuple((Path(__file__).parent / f"{name}.txt").read_text(encoding="ascii").split())


IMAGENET = synsets("imagenet1k")
"""The 1,000 of ILSVRC-2012, as timm 1.0 lists them (imagenet_synsets.txt)."""
IMAGENET100 = synsets("imagenet100")
"""The 100 of Contrastive Multiview Coding (Tian and others, arXiv 1906.05849)."""
IMAGENETTE = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)
"""Ten easy ones (github.com/fastai/imagenette)."""


@dataclass(frozen=True)
class Folders:
    """How many images each split officially has, and how they are stored.

    Attributes:
        counts: by split.
        short_side: px to which larger images are reduced; smaller ones are kept as they are.
    """

    counts: dict[str, int]
    short_side: int = SHORT_SIDE

    def decode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [h, 3, w], how often each of the 256 values occurs in each channel [3, 256]).

        RGB by Pillow, without the turn that EXIF may ask for, as torchvision's ImageFolder. A short
        side above `short_side` px is reduced to it (bicubic, antialiased), the long one with it.

        Raises:
            UserError: no image that Pillow decodes whole.
        """
        from PIL import Image

        try:
            with Image.open(path, formats=("JPEG", "PNG")) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            raise UserError(f"{path} is no whole image ({error}); replace it") from None
        w, h = image.size
        if min(w, h) > self.short_side:
            long_side = int(self.short_side * max(w, h) / min(w, h))
            size = (self.short_side, long_side) if w < h else (long_side, self.short_side)
            image = image.resize(size, Image.Resampling.BICUBIC)
        counts = np.array(image.histogram(), np.int64).reshape(3, 256)
        return np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1)), counts


def listed(name: str, classes: Sequence[str], place: Path) -> dict[str, list[tuple[Path, int]]]:
    """(file, label) of all images by split, classes and files in sorted order.

    Args:
        name: of the data set; {place}/{name} is looked at first.
        classes: in label order. Folders of other classes of ImageNet are passed over.

    Raises:
        UserError: no such folder, or one that lacks a class, or has one that is none.
    """
    roots = [root for root in (place / name, place) if (root / PARTS["train"]).is_dir()]
    if not roots:
        raise UserError(
            f"{place} has no folder train/ with one folder a class; put it there, or name the"
            f" folder that has it by sources.{name}.folder in config.yaml"
        )
    return {split: _of_split(name, classes, roots[0] / part) for split, part in PARTS.items()}


def _of_split(name: str, classes: Sequence[str], folder: Path) -> list[tuple[Path, int]]:
    try:
        there = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {refusal(error)}") from None
    missing = [each for each in classes if each not in there]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(classes)} classes of {name}, among them"
            f" {missing[0]}; put a folder of that name there"
        )
    odd = sorted(each for each in there.difference(classes, IMAGENET) if not each.startswith("."))
    if odd:
        raise UserError(f"{folder / odd[0]} is no class of {name}, nor of ImageNet; move it away")
    files = []
    for label, each in enumerate(classes):
        found = sorted(entry.name for entry in os.scandir(folder / each) if _is_image(entry.name))
        if not found:
            raise UserError(f"{folder / each} has no image; put the images of this class there")
        files += [(folder / each / file, label) for file in found]
    return files


def _is_image(name: str) -> bool:
    return name.lower().endswith(KINDS) and not name.startswith(".")
