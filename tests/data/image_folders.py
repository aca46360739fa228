"""Tiny JPEG folders in the layout of Imagenette, of images that differ in size."""

import dataclasses

import numpy as np
from PIL import Image

from peregrine.data.folders import Folders
from peregrine.data.sources import SOURCES

SIZES = [(20, 31), (31, 20), (24, 24), (40, 17), (9, 50)]  # height, width
COUNTS = {"train": 50, "test": 20}


def entry(short_side=16, counts=COUNTS):
    return dataclasses.replace(SOURCES["imagenette"], folders=Folders(counts, short_side))


def write(root, per_class=(5, 2)):
    """{root}/{train,val}/CLASS/*.JPEG; `per_class` images each; the root."""
    random = np.random.default_rng(0)
    for part, count in zip(("train", "val"), per_class):
        for label, name in enumerate(SOURCES["imagenette"].classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                h, w = SIZES[(number + label) % len(SIZES)]
                coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
                image = Image.fromarray(coarse).resize((w, h), Image.Resampling.BILINEAR)
                image.save(folder / f"{name}_{number}.JPEG", quality=95)
    return root
