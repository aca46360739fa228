"""Time of each part of `evaluate` and `diagnose` on frozen features of CIFAR-10's size.

    PYTHONPATH=src python benchmarks/evaluation.py [--features FILE] [--protocol standard]
        [--threads 2] [--repeats 5] [--steps evaluate diagnose] [--device cuda] [--peer]
        [--record benchmarks/recorded]

Without --features, 50,000 + 10,000 features in 512 dimensions, 10 classes: Gaussians around class
means, their variances a power law, rotated and cut at zero, as the last ReLU and the mean over
places leave them. With it the features.safetensors of a run that has a corrected reading.
The steps run as from the command line, in this process: features are read from a file and checked,
results are written. A part is timed from inside its step; what is left is reading and writing.
Each figure is a median. The floor of the probes counts the products of matrices that they asked
for, in operations, at the rate of one large float32 product on the same threads.
--peer also lets scikit-learn find the probe with all labels by the protocol's grid, split and
tolerance, in float64, each fit but the last warm-started by the one before: many minutes.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from peregrine.config.load import read_yaml
from peregrine.config.models import Protocol
from peregrine.diagnostics.diagnose import diagnose
from peregrine.evaluation.evaluate import evaluate
from peregrine.evaluation.linear import TOLERANCE
from peregrine.evaluation.logistic import Dense, standardised
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
        stack.enter_context(patch.object(Dense, "sums", counted(Dense.sums)))
        stack.enter_context(patch.object(Dense, "curvature", counted(Dense.curvature)))
        for label, (module, name) in PARTS.items():
            found = __import__(module, fromlist=[name])
            stack.enter_context(patch.object(found, name, watched(label, getattr(found, name))))
        yield


asked = {"passes": 0, "operations": 0.0}


def counted(part: Callable) -> Callable:
    """Counts gradients, and operations of the products in them and in curvatures."""

    def run(rows: Dense, weights: np.ndarray, *args):
        if part.__name__ == "sums":
            asked["passes"] += 1
            asked["operations"] += 4 * weights.size * len(rows)
        else:
            asked["operations"] += 2 * len(rows) * rows.width * (rows.width + len(weights))
        return part(rows, weights, *args)

    return run


def steps(folder: Path, protocol: Protocol, names: list[str], device) -> Clocks:
    clocks: Clocks = {}
    asked.update(passes=0, operations=0.0)
    with timed(clocks):
        for step, more in ((evaluate, (device,)), (diagnose, ())):
            if step.__name__ not in names:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            for reading in ("corrected", "released"):
                step(folder, reading, "benchmark", protocol, *more)
            clocks[step.__name__] = time.perf_counter() - wall, time.process_time() - cpu
    return clocks


def peak() -> float:
    """Operations a second of a large product in float32."""
    a = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def peer(folder: Path, protocol: Protocol) -> dict:
    """The probe with all labels by scikit-learn."""
    arrays, _ = map_tensors(folder / "corrected" / FEATURES)
    wall, cpu = time.perf_counter(), time.process_time()
    x, test = (
        rows.values.astype(np.float64)
        for rows in standardised(arrays["train_features"], arrays["test_features"])
    )
    y, grid = arrays["train_labels"], sorted(protocol.linear_c_grid)
    fit, held = train_test_split(
        np.arange(len(y)),
        test_size=protocol.linear_validation_share,
        stratify=y,
        random_state=protocol.split_seed,
    )
    settings = {"tol": TOLERANCE, "max_iter": protocol.linear_max_iter}
    model, validation = LogisticRegression(warm_start=True, **settings), []
    for c in grid:
        validation.append(model.set_params(C=c).fit(x[fit], y[fit]).score(x[held], y[held]))
    c = grid[int(np.argmax(validation))]
    accuracy = LogisticRegression(C=c, **settings).fit(x, y).score(test, arrays["test_labels"])
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {"accuracy": accuracy, "c": c, "validation_accuracy": validation, **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", nargs="+", default=["evaluate", "diagnose"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    protocol = Protocol(**read_yaml(PROTOCOLS)[given.protocol])
    device, name = None, platform.processor() or platform.machine()
    if given.device != "cpu":
        from peregrine.pretrain.device import circumstances, pick_device

        device = pick_device(given.device)
        name = str(circumstances(device)["device"])
    with tempfile.TemporaryDirectory() as place, threadpool_limits(given.threads):
        folder = Path(place)
        seed_folder(folder, given.features)
        runs = [steps(folder, protocol, given.steps, device) for _ in range(given.repeats)]
        result = {
            "device": name,
            "threads": given.threads,
            "repeats": given.repeats,
            "versions": {each: version(each) for each in ("numpy", "scipy", "scikit-learn")},
            "features": "a run's" if given.features else "synthetic",
            "seconds": {},
        }
        print(f"{'part':28} {'wall s':>8} {'CPU s':>8}")
        for label in runs[0]:
            wall, cpu = (statistics.median(run[label][i] for run in runs) for i in (0, 1))
            result["seconds"][label] = {"wall": round(wall, 3), "cpu": round(cpu, 3)}
            print(f"{label:28} {wall:8.2f} {cpu:8.2f}")
        if device is None and "evaluate" in given.steps:
            rate = peak()
            result["probes"] = {**asked, "floor_s": asked["operations"] / rate, "rate": rate}
            print(
                f"probes: {asked['passes']} gradients, {asked['operations'] / 1e12:.2f} 10^12"
                f" operations, {asked['operations'] / rate:.1f} s at {rate / 1e9:.0f} 10^9/s"
            )
        if "evaluate" in given.steps:
            found = read_json(folder / "corrected" / "linear-benchmark.json")["all"]
            keys = ("accuracy", "c", "converged", "converged_path", "validation_accuracy")
            result["linear"] = {key: found[key] for key in keys}
            print(result["linear"])
        if given.peer:
            result["scikit-learn"] = peer(folder, protocol)
            print("scikit-learn", result["scikit-learn"])
    if given.record:
        end = "" if device is None else f"_{device.type}"
        write_json(given.record / f"evaluation{end}.json", result)


if __name__ == "__main__":
    main()
