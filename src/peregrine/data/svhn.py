"""SVHN, cropped digits, in its MATLAB files.

The two arrays are read here, not by scipy, whose reader (1.17) ends the process on some damaged
files. Format: "MAT-File Format" (MathWorks), level 5, little-endian. After 128 bytes come elements:
a tag of type and size, then as many bytes, padded to 8; short ones have their bytes in the tag.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from peregrine.data.raw import Download, Raw, RawFile, Split
from peregrine.errors import UserError

PIXELS = (32, 32, 3)
HOME = "http://ufldl.stanford.edu/housenumbers/"
FILES = (
    ("train_32x32.mat", 182_040_794, "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
    ("test_32x32.mat", 64_275_384, "md5:eb5a983be6a315427106f1b164d9cef3"),
)
RAW = Raw(
    files=tuple(RawFile(*each) for each in FILES),
    downloads=tuple(Download(HOME + name, *rest) for name, *rest in FILES),
)

HEADER = 128
MATRIX, COMPRESSED = 14, 15
STORED = {2: np.dtype("u1"), 9: np.dtype("<f8")}  # types of elements that hold numbers
NUMBERS = (6, 9)  # classes of arrays: double, uint8
UNPACKED = 73_257 * 32 * 32 * 3 + 1024
"""Bytes of the largest array, that of the training images, with its tags."""


def load_svhn(contents: Mapping[str, bytes]) -> dict[str, Split]:
    """train_32x32.mat and test_32x32.mat: X uint8 [32, 32, 3, n], y [n, 1]; label 10 is digit 0.

    Raises:
        UserError: a file that does not hold these two arrays of numbers.
    """
    splits = {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        try:
            arrays = dict(_arrays(contents[name]))
            images, labels = arrays["X"], arrays["y"]
        except (ValueError, LookupError, struct.error, zlib.error):
            images, labels = np.empty(0), np.empty(0)
        n = images.shape[-1]
        if images.dtype != np.uint8 or images.shape != (*PIXELS, n) or labels.shape != (n, 1):
            raise UserError(f"{name} must hold X, uint8 {list(PIXELS)} x n, and n labels y")
        if not np.isin(labels, range(1, 11)).all():
            raise UserError(f"{name}: labels must be 1 to 10; replace it")
        digits = labels.ravel().astype(np.int64) % 10
        splits[split] = Split(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), digits)
    return splits


def _arrays(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every plain numeric array of a file; everything else is passed over."""
    if content[HEADER - 4 : HEADER] != b"\x00\x01IM":
        raise ValueError("no little-endian MATLAB file of level 5")
    for kind, payload in _elements(memoryview(content)[HEADER:]):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(payload, UNPACKED)
            if not unpacker.eof:
                raise ValueError("truncated, or larger than it should be")
            kind, payload = next(_elements(memoryview(unpacked)), (0, payload))
        if kind == MATRIX:
            (_, flags), (_, sizes), (_, name), (stored, values), *_ = _elements(payload)
            if flags[0] in NUMBERS and stored in STORED:
                shape = struct.unpack(f"<{len(sizes) // 4}i", sizes)
                array = np.frombuffer(values, STORED[stored]).reshape(shape, order="F")
                yield bytes(name).decode("ascii"), array


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, bytes) of each element."""
    while len(data):
        kind, size = struct.unpack("<II", data[:8])
        start, short = 8, kind >> 16
        if short:  # size and type share four bytes, and its own are the other four
            start, kind, size = 4, kind & 0xFFFF, short
        end = start + size
        if end > len(data) or short > 4:
            raise ValueError("an element is longer than what holds it")
        yield kind, data[start:end]
        data = data[end if kind == COMPRESSED else end + -end % 8 :]
