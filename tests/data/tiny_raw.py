"""Raw files of the official layouts, a few images each, and registry entries that describe them."""

import dataclasses
import hashlib
import struct
import tarfile
from io import BytesIO

import numpy as np
from scipy.io import savemat

from peregrine.data.raw import Download, RawFile
from peregrine.data.sources import SOURCES


def pixels(n, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def cifar_records(labels, images):
    """<label bytes><red><green><blue>, spelled out byte by byte."""
    rows = (bytes([*label, *image.ravel().tolist()]) for label, image in zip(labels, images))
    return b"".join(rows)


class Tiny:
    """A data set's raw files, what they hold, and its entry in the registry."""

    def __init__(self, name, files, images, labels, archive=None):
        self.name, self.files, self.images, self.labels = name, files, images, labels
        official = SOURCES[name]
        self.archive = archive
        sizes = [
            RawFile(key, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
            for key, data in files.items()
        ]
        self.source = dataclasses.replace(
            official, raw=dataclasses.replace(official.raw, files=tuple(sizes), downloads=())
        )

    def at(self, base):
        """The entry with its downloads at `base`, by name of what is served there."""
        served = self.archive or self.files
        items = tuple(
            Download(f"{base}/{key}", len(data), f"md5:{hashlib.md5(data).hexdigest()}")
            for key, data in served.items()
        )
        raw = dataclasses.replace(self.source.raw, downloads=items)
        return dataclasses.replace(self.source, raw=raw)

    def write(self, folder, files=None):
        folder.mkdir(parents=True, exist_ok=True)
        for key, data in (files or self.files).items():
            (folder / key).write_bytes(data)
        return folder


def pack(members):
    """A gzipped tar of (name, bytes) pairs and of ready TarInfo entries."""
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, BytesIO(member[1]))
    return stream.getvalue()


def _cifar10():
    images = {"train": pixels(50, (3, 32, 32), 0), "test": pixels(10, (3, 32, 32), 1)}
    labels = {split: np.arange(len(each)) * 3 % 10 for split, each in images.items()}
    rows = {"train": labels["train"][:, None].tolist(), "test": labels["test"][:, None].tolist()}
    files = {
        f"data_batch_{k + 1}.bin": cifar_records(
            rows["train"][10 * k : 10 * k + 10], images["train"][10 * k : 10 * k + 10]
        )
        for k in range(5)
    }
    files["test_batch.bin"] = cifar_records(rows["test"], images["test"])
    folder = SOURCES["cifar10"].raw.folder
    packed = pack((f"{folder}/{key}", data) for key, data in files.items())
    return Tiny("cifar10", files, images, labels, {"cifar-10-binary.tar.gz": packed})


def _cifar100():
    images = {"train": pixels(200, (3, 32, 32), 2), "test": pixels(100, (3, 32, 32), 3)}
    labels = {split: np.arange(len(each)) * 7 % 100 for split, each in images.items()}
    files = {
        f"{split}.bin": cifar_records([[fine % 20, fine] for fine in labels[split]], each)
        for split, each in images.items()
    }
    folder = SOURCES["cifar100"].raw.folder
    packed = pack((f"{folder}/{key}", data) for key, data in files.items())
    return Tiny("cifar100", files, images, labels, {"cifar-100-binary.tar.gz": packed})


def _fashion():
    images = {"train": pixels(40, (1, 28, 28), 4), "test": pixels(20, (1, 28, 28), 5)}
    labels = {split: np.arange(len(each)) % 10 for split, each in images.items()}
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        n = len(labels[split])
        header = struct.pack(">IIII", 2051, n, 28, 28)  # magic numbers of MNIST's page
        files[f"{prefix}-images-idx3-ubyte"] = header + images[split].tobytes()
        header = struct.pack(">II", 2049, n)
        files[f"{prefix}-labels-idx1-ubyte"] = header + bytes(labels[split].tolist())
    return Tiny("fashion_mnist", files, images, labels)


def mat(images, marks, compressed=True):
    """A .mat file as scipy writes it: X [32, 32, 3, n], y [n, 1]."""
    stream = BytesIO()
    arrays = {"X": images.transpose(2, 3, 1, 0), "y": np.asarray(marks)[:, None]}
    savemat(stream, arrays, do_compression=compressed)
    return stream.getvalue()


def _svhn():
    images = {"train": pixels(20, (3, 32, 32), 6), "test": pixels(10, (3, 32, 32), 7)}
    labels = {split: np.arange(len(each)) % 10 for split, each in images.items()}
    files = {
        f"{split}_32x32.mat": mat(images[split], [np.uint8(label or 10) for label in labels[split]])
        for split in images
    }
    return Tiny("svhn", files, images, labels)


MAKERS = {"cifar10": _cifar10, "cifar100": _cifar100, "fashion_mnist": _fashion, "svhn": _svhn}
