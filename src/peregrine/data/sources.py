"""Registry of data sets: where the images come from, how they are checked, what use is allowed.

A source turns raw files into arrays; `acquire` finds, fetches and checks those files, `prepare`
writes the arrays as one uint8 file of one layout. A new data set is one function and one entry of
SOURCES.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from peregrine.data import cifar, idx, svhn
from peregrine.data.folders import IMAGENET, IMAGENET100, IMAGENETTE, Folders
from peregrine.data.raw import Raw, Split
from peregrine.errors import UserError

__all__ = ["SOURCES", "Source", "Split", "source"]


@dataclass(frozen=True)
class Source:
    """How to get a data set.

    Attributes:
        title, licence: for the record.
        classes: names in label order.
        load: raw files by name -> splits by name (train, test).
        verified: in words, what the bytes are checked against and who says so.
        raw: the files that `load` gets.
        folders: instead of both, image folders; such a data set is never fetched.
    """

    title: str
    licence: str
    classes: tuple[str, ...]
    load: Callable[[Mapping[str, bytes]], dict[str, Split]] | None
    verified: str
    raw: Raw = Raw((), ())
    folders: Folders | None = None


DIGITS_TRAIN = 1197


def load_digits(_: Mapping[str, bytes]) -> dict[str, Split]:
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


FOLDERS = (
    "every class is there, as many images as the official set has, and each decodes; no digests"
)
IMAGENET_LICENCE = "non-commercial research and education only (image-net.org/download)"

RED = "SHA-256 of every file and archive as the library red-datasets (Ruby) has them"

SOURCES: dict[str, Source] = {
    "digits": Source(
        title="Optical recognition of handwritten digits (scikit-learn's copy), 16 px",
        licence="CC BY 4.0 (UCI Machine Learning Repository, data set 80)",
        classes=tuple("0123456789"),
        load=load_digits,
        verified="part of the installed scikit-learn, whose wheel the lock pins by hash",
    ),
    "cifar10": Source(
        title="CIFAR-10 (Krizhevsky, 2009), binary version",
        licence="none stated; the author asks for a citation",
        classes=tuple(cifar.NAMES_10.split()),
        load=cifar.load_cifar10,
        verified=RED,
        raw=cifar.RAW_10,
    ),
    "cifar100": Source(
        title="CIFAR-100 (Krizhevsky, 2009), binary version, fine labels",
        licence="none stated; the author asks for a citation",
        classes=tuple(cifar.NAMES_100.split()),
        load=cifar.load_cifar100,
        verified=RED,
        raw=cifar.RAW_100,
    ),
    "fashion_mnist": Source(
        title="Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017)",
        licence="MIT (Zalando SE)",
        classes=idx.FASHION,
        load=idx.load_idx,
        # Debian's package dataset-fashion-mnist repacks these files: with the gzip header's name
        # and time put back, each has the MD5 of the authors' page, so their contents are equal.
        verified="SHA-256 of every unpacked file; gzipped they have the MD5 of the authors' page",
        raw=idx.RAW_FASHION,
    ),
    "svhn": Source(
        title="SVHN, cropped digits (Netzer and others, 2011), without the extra images",
        licence="non-commercial use only, as the authors' page says",
        classes=tuple("0123456789"),
        load=svhn.load_svhn,
        verified="MD5 of both files as the library torchvision has them",
        raw=svhn.RAW,
    ),
    "imagenet1k": Source(
        title="ImageNet, ILSVRC-2012 (Russakovsky and others, 2015), short side 256 px",
        licence=IMAGENET_LICENCE,
        classes=IMAGENET,
        load=None,
        verified=FOLDERS,
        # As the challenge's page and paper (arXiv 1409.0575, table 2) count them.
        folders=Folders({"train": 1_281_167, "test": 50_000}),
    ),
    "imagenet100": Source(
        title="ImageNet-100 (classes of arXiv 1906.05849), short side 256 px",
        licence=IMAGENET_LICENCE,
        classes=IMAGENET100,
        load=None,
        verified=FOLDERS,
        # As users of this list count them: 50 a class in val, and all of train.
        folders=Folders({"train": 126_689, "test": 5_000}),
    ),
    "imagenette": Source(
        title="Imagenette 2 (fast.ai), short side 256 px",
        licence="Apache 2.0 for the selection; the images as ImageNet's",
        classes=IMAGENETTE,
        load=None,
        verified=FOLDERS,
        folders=Folders({"train": 9_469, "test": 3_925}),  # as fast.ai's second version has them
    ),
}


def source(name: str) -> Source:
    """A registered source.

    Raises:
        UserError: no data set of that name; the line names the nearest one.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(SOURCES))}"
        raise UserError(f"data set '{name}' is unknown; {hint}")
    return SOURCES[name]
