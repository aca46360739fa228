"""Time of each part of `evaluate` and `diagnose` on frozen features of CIFAR-10's size.

    PYTHONPATH=src python benchmarks/evaluation.py [--features FILE] [--protocol standard]
        [--threads 2] [--repeats 5] [--device cpu] [--peer] [--record benchmarks/recorded]

Without --features, 50,000 + 10,000 features in 512 dimensions, 10 classes: Gaussians around class
means, their variances a power law, rotated and cut at zero, as the last ReLU and the mean over
places leave them. With it the features.safetensors of a run that has a corrected reading.
The steps run as from the command line, in this process: features are read from a file and checked,
results are written. A part is timed from inside its step; what is left is reading and writing.
--peer also lets scikit-learn find the probe with all labels by the protocol's grid, tolerance and
split, each fit warm-started by the one before, and compares: several minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from threadpoolctl import threadpool_limits

from peregrine.config.load import read_yaml
from peregrine.config.models import Protocol
from peregrine.diagnostics.diagnose import diagnose
from peregrine.evaluation.evaluate import evaluate
from peregrine.files import map_tensors, read_json, write_json, write_tensors
from peregrine.frozen import FEATURES, joined

PROTOCOLS = Path(__file__).parents[1] / "config" / "protocols.yaml"
TRAIN, TEST, WIDTH, CLASSES, EMBEDDING, CODES = 50_000, 10_000, 512, 10, 128, 4096
DECAY = 1.0
"""Variances fall with the index to this power: between what Barlow Twins and FALCON give here."""
DISTANCE = 0.8
"""Of class means along the ten widest directions, in standard deviations: a probe gets 80 %."""
PARTS = {
    "linear, all labels": ("peregrine.evaluation.evaluate", "linear_probe"),
    "linear, few labels": ("peregrine.evaluation.evaluate", "few_label_probe"),
    "linear, shares of labels": ("peregrine.evaluation.evaluate", "label_share_probe"),
    "kNN": ("peregrine.evaluation.evaluate", "knn_classify"),
    "k-means": ("peregrine.evaluation.evaluate", "kmeans_clusters"),
    "scores of clusterings": ("peregrine.evaluation.evaluate", "cluster_scores"),
    "spectra": ("peregrine.diagnostics.diagnose", "spectrum"),
    "collapse": ("peregrine.diagnostics.diagnose", "collapse_report"),
    "geometry": ("peregrine.diagnostics.diagnose", "geometry_report"),
    "mixtures": ("peregrine.diagnostics.diagnose", "mixture_report"),
    "pictures": ("peregrine.diagnostics.diagnose", "_pictures"),
    "released": ("peregrine.diagnostics.diagnose", "_released"),
}
Clocks = dict[str, tuple[float, float]]
"""(wall, processor) seconds."""


def synthetic(seed: int = 0) -> dict[str, np.ndarray]:
    """What `extract` leaves of both splits, without the views."""
    rng = np.random.default_rng(seed)
    n = TRAIN + TEST
    labels = rng.permutation(np.arange(n) % CLASSES)
    sd = np.arange(1, WIDTH + 1) ** (-DECAY / 2)
    means = np.zeros((CLASSES, WIDTH))
    means[:, :CLASSES] = DISTANCE * sd[:CLASSES] * rng.normal(size=(CLASSES, CLASSES))
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    x = (means[labels] + sd * rng.normal(size=(n, WIDTH))).astype(np.float32)
    x = np.maximum(x @ rotation.astype(np.float32) + np.float32(0.1), 0)
    embeddings = x @ rng.normal(size=(WIDTH, EMBEDDING)).astype(np.float32)
    scores = embeddings @ rng.choice([-1, 1], (EMBEDDING, CODES)).astype(np.float32)
    codes = scores.argmax(1)
    arrays = {"sample_labels": labels[:TEST]}
    for split, part in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, n))):
        arrays |= {
            f"{split}_features": x[part],
            f"{split}_labels": labels[part],
            f"{split}_embeddings": embeddings[part][:TEST],
            f"{split}_codes": codes[part],
            f"{split}_usage": np.bincount(codes[part], minlength=CODES) / len(codes[part]),
        }
    return arrays


def seed_folder(folder: Path, features: Path | None) -> None:
    """A seed folder whose features are those of `features`, or synthetic ones in both readings."""
    sums = {f"{part}.safetensors": "0" * 64 for part in ("backbone", "method")}
    facts = {"kind": "features", "run": "benchmark", "seed": "0", "status": "finished"}
    facts |= {"data": "0" * 64, "code": "", "weights": joined(*sums.values())}
    outcome = {"run": "benchmark", "seed": 0, "status": "finished", "files": sums}
    write_json(folder / "outcome.json", outcome | {"data": {"train": "", "test": ""}})
    if features:
        arrays, found = map_tensors(features)
        released = {"status": "n/a"}
        facts["codes"] = found["codes"]
    else:
        arrays = synthetic()
        released = {}
        facts["codes"] = str(CODES)
    write_tensors(folder / "corrected" / FEATURES, arrays, **facts)
    write_tensors(folder / "released" / FEATURES, {} if released else arrays, **facts | released)


@contextmanager
def timed(clocks: Clocks) -> Iterator[None]:
    """Adds up the time of each part while it is open."""

    def watched(label: str, part: Callable) -> Callable:
        def run(*args, **kwargs):
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return part(*args, **kwargs)
            finally:
                before = clocks.get(label, (0.0, 0.0))
                spent = time.perf_counter() - wall, time.process_time() - cpu
                clocks[label] = before[0] + spent[0], before[1] + spent[1]

        return run

    with ExitStack() as stack:
        for label, (module, name) in PARTS.items():
            found = __import__(module, fromlist=[name])
            stack.enter_context(patch.object(found, name, watched(label, getattr(found, name))))
        yield


def steps(folder: Path, protocol: Protocol, only: str) -> Clocks:
    clocks: Clocks = {}
    with timed(clocks):
        for step in (evaluate, diagnose):
            if step.__name__ not in only:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            for reading in ("corrected", "released"):
                step(folder, reading, "benchmark", protocol)
            clocks[step.__name__] = time.perf_counter() - wall, time.process_time() - cpu
    return clocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="evaluate diagnose")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    protocol = Protocol(**read_yaml(PROTOCOLS)[given.protocol])
    with tempfile.TemporaryDirectory() as name, threadpool_limits(given.threads):
        folder = Path(name)
        seed_folder(folder, given.features)
        runs = [steps(folder, protocol, given.steps) for _ in range(given.repeats)]
        found = read_json(folder / "corrected" / "linear-benchmark.json")
    print(f"{'part':28} {'wall s':>8} {'CPU s':>8}")
    table = {}
    for label in runs[0]:
        wall, cpu = (statistics.median(run[label][i] for run in runs) for i in (0, 1))
        table[label] = {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
        print(f"{label:28} {wall:8.2f} {cpu:8.2f}")
    print(found)


if __name__ == "__main__":
    main()
