"""The real CIFAR and Fashion-MNIST, where a folder has them: PEREGRINE_TEST_DATA.

The folder holds cifar-10-batches-bin/, cifar-100-binary/ or the four files of Fashion-MNIST, in any
of the forms that `prepare` knows.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from peregrine.config.models import SourceSpec
from peregrine.data.prepare import load, prepare
from peregrine.data.raw import locate
from peregrine.data.sources import SOURCES

FOLDER = os.environ.get("PEREGRINE_TEST_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="PEREGRINE_TEST_DATA names no folder")
# Mean and sd of the training images as published for these sets (torchvision's and timm's users),
# rounded to 4 digits, and what the sets' own pages say of their sizes.
KNOWN = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], 5000, 1000),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762], 500, 100),
    "fashion_mnist": ([0.2860], [0.3530], 6000, 1000),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_real_data_are_read(name, tmp_path):
    raw = SOURCES[name].raw
    found = locate(raw, name, Path(FOLDER))
    if sum(map(len, found.values())) < len(raw.files):
        pytest.skip(f"{FOLDER} has no {name}")
    data = load(prepare(name, tmp_path, SourceSpec(folder=FOLDER, accept_unverified=True)))
    mean, sd, train, test = KNOWN[name]
    assert data.mean == pytest.approx(mean, abs=6e-5)
    assert data.sd == pytest.approx(sd, abs=6e-5)
    assert set(np.bincount(data.labels["train"])) == {train}
    assert set(np.bincount(data.labels["test"])) == {test}
    # Restored from pictures, the test images of CIFAR-10 may differ; no other file may.
    assert set(data.unverified) <= {"test_batch.bin"}
    if name == "cifar10":  # the first images of the page: frog, truck, truck, deer, automobile
        names = [data.classes[label] for label in data.labels["train"][:5]]
        assert names == ["frog", "truck", "truck", "deer", "automobile"]
