"""Registry of data sets: where the images come from, how they are checked, what use is allowed.

A source yields raw arrays; `prepare` writes them as one uint8 file of one layout. A new data set is
one function and one entry of SOURCES.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peregrine.errors import UserError


@dataclass(frozen=True)
class Split:
    """One split as it comes: images uint8 [n, c, h, w], labels int64 [n]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """How to get a data set; `load` returns its splits by name (train, test)."""

    title: str
    licence: str
    classes: tuple[str, ...]
    load: Callable[[], dict[str, Split]]
    verified: str
    """In words: what the bytes were checked against."""


DIGITS_TRAIN = 1197


def load_digits() -> dict[str, Split]:
    """scikit-learn's 1,797 handwritten digits, drawn at 16 px: 1,197 to train, 600 to test.

    The 8x8 counts 0..16 are scaled to 0..255 and enlarged twofold by bilinear interpolation. The
    split is contiguous in the file's order, not random: neighbours were written by the same hand.
    """
    from PIL import Image
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    big = [Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR) for image in small]
    images = np.stack([np.asarray(image) for image in big])[:, None]
    labels = bunch.target.astype(np.int64)
    cut = DIGITS_TRAIN
    return {
        "train": Split(images[:cut], labels[:cut]),
        "test": Split(images[cut:], labels[cut:]),
    }


SOURCES: dict[str, Source] = {
    "digits": Source(
        title="Optical recognition of handwritten digits (scikit-learn's copy), 16 px",
        licence="CC BY 4.0 (UCI Machine Learning Repository, data set 80)",
        classes=tuple("0123456789"),
        load=load_digits,
        verified="part of the installed scikit-learn, whose wheel the lock pins by hash",
    ),
}


def source(name: str) -> Source:
    """A registered source.

    Raises:
        UserError: no data set of that name.
    """
    if name not in SOURCES:
        raise UserError(f"data set '{name}' is unknown; there are: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
