"""Fashion-MNIST in its IDX files: big-endian sizes, then bytes."""

import struct
from collections.abc import Mapping

import numpy as np

from peregrine.data.raw import Download, Raw, RawFile, Split
from peregrine.errors import UserError

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
RAW_FASHION = Raw(
    files=(
        RawFile(
            "train-images-idx3-ubyte",
            47_040_016,
            "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        RawFile(
            "train-labels-idx1-ubyte",
            60_008,
            "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        RawFile(
            "t10k-images-idx3-ubyte",
            7_840_016,
            "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        RawFile(
            "t10k-labels-idx1-ubyte",
            10_008,
            "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    downloads=tuple(
        Download(f"{HOME}{name}-ubyte.gz", size, f"md5:{digest}")
        for name, size, digest in (
            ("train-images-idx3", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
)


def load_idx(contents: Mapping[str, bytes]) -> dict[str, Split]:
    """The four files of MNIST's layout; images are [n, 1, h, w].

    Raises:
        UserError: a file whose header does not fit its size, or is of another kind.
    """
    return {
        split: Split(
            _array(contents, f"{prefix}-images-idx3-ubyte", 3)[:, None],
            _array(contents, f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def _array(contents: Mapping[str, bytes], name: str, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file: two zeros, type 8 (uint8), number of dimensions, their sizes."""
    content, header = contents[name], 4 + 4 * dimensions
    if content[:4] == bytes((0, 0, 8, dimensions)) and len(content) >= header:
        shape = struct.unpack(f">{dimensions}I", content[4:header])
        values = np.frombuffer(content, np.uint8, offset=header)
        if values.size == np.prod(shape, dtype=object):
            return values.reshape(shape)
    raise UserError(f"{name} is no IDX file of {dimensions} dimensions; replace it")
