"""Shared by all tests: one thread, a tiny data set, tiny runs, the command line in this process."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: other counts, other last bits

import sys

import numpy as np
import pytest
import yaml

from peregrine.cli import main
from peregrine.config.load import build_run
from peregrine.data import prepare
from peregrine.data.sources import Split
from peregrine.files import write_json, write_tensors

CLASSES = 4
VIEWS = {"count": 2, "size": 8, "crop_scale": [0.5, 1.0], "flip": 0.0, "jitter": 0.5}
METHODS = {
    "falcon": {"name": "falcon", "codes": 64, "embedding": 8},
    # Everything that a run can carry from step to step: moving averages and a queue.
    "two_branch": {
        "name": "two_branch",
        "criterion": "squared",
        "target": "ema",
        "placement": "parallel",
        "operator": "nn",
        "queue": 50,
        "projector_hidden": 16,
        "embedding": 8,
        "predictor_hidden": 16,
    },
    "falcon, neighbours": {
        **{"name": "falcon", "codes": 64, "embedding": 8},
        **{"operator": "nn", "samples": 2, "memory": 50},
    },
    "swav, neighbours": {
        **{"name": "swav", "codes": 12, "projector_hidden": 16, "embedding": 8, "queue": 60},
        **{"queue_epoch": 1, "frozen_epochs": 1, "operator": "interpolate", "memory": 50},
    },
}


def quadrants(images: int, seed: int) -> Split:
    """Noise of 8 px with one bright quadrant, which is the class."""
    random = np.random.default_rng(seed)
    labels = random.permutation(images) % CLASSES
    pixels = random.integers(0, 120, (images, 1, 8, 8))
    for image, label in zip(pixels, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[0, row : row + 4, column : column + 4] += 130
    return Split(pixels.astype(np.uint8), labels.astype(np.int64))


def write_tiny_data(folder):
    """A prepared data set of 96 + 32 images under the name of a registered one; its path."""
    splits = {"train": quadrants(96, 0), "test": quadrants(32, 1)}
    pixels = splits["train"].images / 255
    arrays = {f"{name}_images": split.images for name, split in splits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in splits.items()}
    path = folder / "digits.safetensors"
    write_tensors(path, arrays, name="digits")
    record = {
        "mean": [float(pixels.mean())],
        "sd": [float(pixels.std())],
        "classes": list("abcd"),
        "sums": {name: prepare.split_sum(split) for name, split in splits.items()},
    }
    write_json(path.with_suffix(".json"), record)
    return path


@pytest.fixture(scope="session")
def tiny_data_path(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_data(tiny_data_path):
    return prepare.load(tiny_data_path)


@pytest.fixture(scope="session")
def tiny_run():
    """`tiny_run(METHOD, field=..., optimizer={...})`: a run that trains in a tenth of a second."""

    def build(method="falcon", /, optimizer=None, **fields):
        layer = {
            "dataset": {"name": "digits"},
            "backbone": {"width": 8},
            "method": METHODS[method],
            "views": [VIEWS],
            "batch_size": 24,
            "epochs": 4,
            "optimizer": {"lr": 0.05, "warmup_epochs": 1} | (optimizer or {}),
        }
        return build_run([layer, fields], "a test")

    return build


@pytest.fixture
def tiny_config(tmp_path):
    """A configuration folder of two runs on the tiny data set, which is prepared already."""
    folder = tmp_path / "config"
    files = {
        "config.yaml": {
            "scale": "tiny",
            "studies": ["one"],
            "results": str(tmp_path / "results"),
            "reports": str(tmp_path / "reports"),
        },
        "scales/tiny.yaml": {"name": "tiny", "description": "", "seeds": [0, 1]},
        "studies/one.yaml": {
            "name": "one",
            **dict.fromkeys(("title", "paper", "summary"), ""),
            **dict.fromkeys(("tables", "figures", "claims", "assumptions"), []),
            "defaults": {
                "dataset": {"name": "digits"},
                "backbone": {"width": 8},
                "method": METHODS["falcon"],
                "views": [VIEWS],
                "batch_size": 24,
                "epochs": 2,
                "optimizer": {"lr": 0.05, "warmup_epochs": 1},
            },
            "rows": {
                "first": {"label": "first"},
                "nan": {"label": "nan", "run": {"optimizer": {"name": "sgd", "lr": 1e30}}},
            },
        },
        "presets.yaml": {"views": {}, "methods": {}},
        "protocols.yaml": {
            "standard": {
                "linear_c_grid": [0.01, 1.0],
                "linear_validation_share": 0.25,
                "linear_max_iter": 200,
                "few_labels_per_class": 3,
                "few_label_draws": 2,
                "split_seed": 0,
                "knn_k": 5,
                "knn_temperature": 0.07,
                "kmeans_restarts": 2,
                "chance_permutations": 3,
                "embedding_sample": 40,
            }
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    write_tiny_data(tmp_path / "results" / "data")
    return folder


@pytest.fixture
def cli(tiny_config, monkeypatch, capfd):
    """`cli("pretrain", "--run", ...)` with the tiny configuration: (exit code, stdout, stderr)."""

    def call(*arguments, config=("--config", tiny_config)):
        words = ["peregrine", *map(str, (*arguments, *config))]
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capfd.readouterr()

    return call
