"""Methods of this repository beside plain loops of lightly's building blocks, on real CIFAR-10.

    PYTHONPATH=src python benchmarks/against_lightly.py --data FOLDER [--accept-unverified]
        [--out results/against_lightly] [--seeds 0 1 2] [--epochs 4] [--train-per-class 100]
        [--methods simclr byol] [--record benchmarks/recorded]

FOLDER has CIFAR-10 in the official binary layout, or its archive. `ours` is a method of this
repository in its own loop; `lightly` takes the library's heads, losses, memory banks and moving
averages in a loop written out here; `matched` is lightly's with the one part replaced that differs
(lightly_parts.VARIANTS). Both sides have the same net, images, views, batches, schedule and, as far
as the heads are built alike, the same initial weights, so that seeds are pairs. Nothing is chosen
by the test set. Finished trainings are kept in --out and skipped; --record writes
against_lightly.csv and .json there. What is compared, and why where it differs: docs/parity.md.
"""

import argparse
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from lightly_parts import (
    DINO_CODES,
    EMA,
    EMBEDDING,
    HIDDEN,
    QUEUE,
    SWAV_CODES,
    VARIANTS,
)
from lightly_parts import METHODS as LIGHTLY
from record import processor
from torch import Tensor, nn

from peregrine.config.load import build_run, read_yaml
from peregrine.config.models import BackboneSpec, DatasetSpec, Protocol, Run, SourceSpec
from peregrine.data.prepare import Prepared, load, prepare
from peregrine.data.views import make_views
from peregrine.evaluation.knn import knn_classify
from peregrine.evaluation.linear import linear_probe
from peregrine.files import read_json, write_csv, write_json
from peregrine.nets.backbones import build_backbone
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.trainer import Trainer
from peregrine.reporting.statistics import estimate
from peregrine.streams import generator, seeded_init

CONFIG = Path(__file__).parents[1] / "config"
WIDTH, BATCH, LR, DECAY, START = 32, 64, 4e-3, 1e-4, 3e-5
FIRST_STEPS, FIRST_EPOCHS, FIRST_DATA = 20, 6, {"train_per_class": 250}
"""Steps in float32, from the same initial weights, over which losses are compared one by one; the
epochs and images of the run that they begin."""
TRUNK = {"projector_hidden": HIDDEN, "embedding": EMBEDDING}
# Each is its preset of config/presets.yaml with smaller heads. SimCLR's has lightly's BatchNorm
# after the last layer, moving averages start lower because the run is short.
METHODS: dict[str, dict] = {
    "barlow_twins": {"preset": "barlow-twins", **TRUNK},
    "swav": {
        "preset": "swav", **TRUNK, "codes": SWAV_CODES,
        "queue": QUEUE, "queue_epoch": 2, "frozen_epochs": 1,
    },
    "dino": {"preset": "dino", **TRUNK, "codes": DINO_CODES, "ema_start": EMA},
    "simclr": {"preset": "simclr", **TRUNK, "projector_norm": True},
    "nnclr": {"preset": "nnclr", **TRUNK, "predictor_hidden": HIDDEN, "queue": QUEUE},
    "byol": {"preset": "byol", **TRUNK, "predictor_hidden": HIDDEN, "ema_start": EMA},
    "simsiam": {"preset": "simsiam", **TRUNK, "predictor_hidden": HIDDEN},
}  # fmt: skip
TRAINED_TOO = ("swav", "nnclr")
"""Variants that are trained to the end; of the others the first steps say enough."""
SIDES = ("ours", "lightly", "matched")


def settings(name: str, epochs: int, part: dict[str, int], precision: str = "bfloat16") -> Run:
    presets = read_yaml(CONFIG / "presets.yaml")
    options = dict(METHODS[name])
    method = presets["methods"][options.pop("preset")] | options
    return build_run(
        [
            {
                "dataset": {"name": "cifar10", **part},
                "backbone": {"name": "resnet8", "width": WIDTH},
                "method": method,
                "views": presets["views"]["asymmetric"],
                "batch_size": BATCH,
                "epochs": epochs,
                "precision": precision,
                "on_collapse": "record",
                "optimizer": {
                    "name": "adam", "lr": LR, "weight_decay": DECAY,
                    "warmup_epochs": 1, "warmup_start": START,
                },
            }
        ],
        name,
    )  # fmt: skip


# ours --------------------------------------------------------------------------------------------


def ours(run: Run, seed: int, data: Prepared, most: int) -> tuple[list[float], nn.Module]:
    """(loss of each step, backbone) of the first `most` steps of this repository's own loop."""
    trainer = Trainer(run, seed, data, torch.device("cpu"))
    at, losses = Position("", seed, "", {}), []
    for at.epoch in range(run.epochs):
        sums: dict[str, Tensor] = {}
        before = 0.0
        for _ in trainer.epoch(at, sums):
            total = float(sums["loss"])
            losses.append(total - before)
            before = total
            if len(losses) == most:
                return losses, trainer.method.backbone
    return losses, trainer.method.backbone


# lightly -----------------------------------------------------------------------------------------


def theirs(
    name: str, run: Run, seed: int, data: Prepared, most: int, matched: bool
) -> tuple[list[float], nn.Module]:
    """(loss of each step, backbone) of a plain loop around lightly's parts."""
    with seeded_init(seed, "init/backbone"):
        backbone = build_backbone(BackboneSpec(name="resnet8", width=WIDTH), 3)
    with seeded_init(seed, "init/method"):
        method = LIGHTLY[name](backbone, matched, run.precision, seed)
    peak, images = LR * BATCH / 256, torch.from_numpy(data.images["train"])
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=peak, weight_decay=DECAY)
    steps = len(images) // BATCH
    total, losses = run.epochs * steps, []
    for epoch in range(run.epochs):
        order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
        for index in range(steps):
            step = epoch * steps + index
            if step < steps:
                rate = START + (peak - START) * step / steps
            else:
                rate = peak / 2 * (1 + math.cos(math.pi * (step - steps) / (total - steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            draws = generator(seed, "views", epoch, index)
            batch = images[order[index * BATCH : (index + 1) * BATCH]]
            a, b = (
                group.images[0]
                for group in make_views(batch, run.views, draws, mean=data.mean, std=data.sd)
            )
            method.before_step(step, total)
            loss = method.loss(a, b, epoch)
            optimizer.zero_grad()
            loss.backward()
            method.after_backward(epoch)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == most:
                return losses, backbone
    return losses, backbone


# evaluation --------------------------------------------------------------------------------------


@torch.no_grad()
def evaluated(backbone: nn.Module, data: Prepared) -> dict[str, float]:
    """Linear probe and kNN on the whole test set, by the standard protocol."""
    backbone.eval()
    mean, sd = (torch.tensor(each).view(-1, 1, 1) for each in (data.mean, data.sd))
    arrays = []
    for split in ("train", "test"):
        features = []
        for part in torch.from_numpy(data.images[split]).split(500):
            with torch.autocast("cpu", torch.bfloat16):
                features.append(backbone((part / 255 - mean) / sd).float())
        arrays += [torch.cat(features).numpy(), data.labels[split]]
    protocol = Protocol(**read_yaml(CONFIG / "protocols.yaml")["standard"])
    probe = linear_probe(
        *arrays,
        c_grid=protocol.linear_c_grid,
        validation_share=protocol.linear_validation_share,
        split_seed=protocol.split_seed,
        max_iter=protocol.linear_max_iter,
        streamed_above=protocol.streamed_above,
    )
    near = knn_classify(*arrays, k=protocol.knn_k, temperature=protocol.knn_temperature)
    return {"linear": probe["accuracy"], "knn": near["accuracy"]}


def trained(
    name: str, side: str, run: Run, seed: int, data: Prepared, most: int = 0
) -> tuple[list[float], nn.Module]:
    if side == "ours":
        return ours(run, seed, data, most)
    return theirs(name, run, seed, data, most, matched=side == "matched")


def cell(
    name: str, side: str, seed: int, given: argparse.Namespace, data: Prepared
) -> dict[str, list[float]]:
    """Loss of each epoch and, after the last, linear probe and kNN; kept in --out."""
    path = given.out / f"{name}-{side}-{seed}-e{given.epochs}-n{given.train_per_class}.json"
    if not path.exists():
        if name == "untrained":
            with seeded_init(seed, "init/backbone"):
                net = build_backbone(BackboneSpec(name="resnet8", width=WIDTH), 3)
            found: dict[str, list[float]] = {}
        else:
            run = settings(name, given.epochs, {"train_per_class": given.train_per_class})
            losses, net = trained(name, side, run, seed, data)
            found = {"loss": np.reshape(losses, (given.epochs, -1)).mean(axis=1).tolist()}
        write_json(path, found | {key: [value] for key, value in evaluated(net, data).items()})
    out = read_json(path)
    return {key: out[key] for key in ("loss", "linear", "knn") if key in out}


def first_steps(name: str, side: str, given: argparse.Namespace) -> float:
    """Largest difference from ours of the losses of the first steps, in float32; relative to the
    loss where it is above 1 (SimSiam's is about 0 at first, between -1 and 1)."""
    path = given.out / f"{name}-{side}-first.json"
    if not path.exists():
        data = load(given.out / "cifar10.safetensors", DatasetSpec(name="cifar10", **FIRST_DATA))
        run = settings(name, FIRST_EPOCHS, FIRST_DATA, "float32")
        a, b = (np.array(trained(name, s, run, 0, data, FIRST_STEPS)[0]) for s in ("ours", side))
        gap = float(np.max(np.abs(b - a) / np.maximum(np.abs(a), 1)))
        write_json(path, {"difference": gap})
    return read_json(path)["difference"]


def summary(cells: dict[tuple[str, str, int], dict], first: dict[tuple[str, str], float]) -> dict:
    """Per method and library side: both means and sd over seeds, paired difference, interval."""
    out: dict[str, dict] = {}
    for name, side in first:
        seeds = [s for n, k, s in cells if (n, k) == (name, side)]
        entry: dict = {"first_steps": first[name, side], "seeds": len(seeds)}
        out[f"{name}/{side}"] = entry
        if not seeds:
            continue
        for metric in ("loss", "linear", "knn"):
            a, b = ([cells[name, k, s][metric][-1] for s in seeds] for k in ("ours", side))
            gap = estimate(np.subtract(a, b))
            spread = math.sqrt((estimate(a).sd ** 2 + estimate(b).sd ** 2) / 2)
            entry[metric] = {
                "ours": estimate(a).mean, "ours_sd": estimate(a).sd,
                side: estimate(b).mean, f"{side}_sd": estimate(b).sd,
                "difference": gap.mean, "low": gap.low, "high": gap.high,
                "within_interval": bool(gap.low <= 0 <= gap.high),
                "within_seed_sd": bool(abs(gap.mean) <= spread),
            }  # fmt: skip
    return out


def show(cells: dict, results: dict) -> None:
    for key, entry in results.items():
        name, side = key.split("/")
        print(f"\n{name}: ours and {side}, {entry['seeds']} seeds")
        print(f"  first {FIRST_STEPS} losses within {entry['first_steps']:.1e}")
        if not entry["seeds"]:
            continue
        for which in ("ours", side):
            curves = [v["loss"] for (n, k, _), v in cells.items() if (n, k) == (name, which)]
            print(f"  loss, {which:8}", *(f"{x:9.4f}" for x in np.mean(curves, axis=0)))
        for metric in ("linear", "knn"):
            m = entry[metric]
            noise = "within" if m["within_interval"] else "BEYOND"
            print(
                f"  {metric:7} {m['ours']:.4f} +- {m['ours_sd']:.4f}, {side} {m[side]:.4f}"
                f" +- {m[f'{side}_sd']:.4f}, difference {m['difference']:+.4f}"
                f" [{m['low']:+.4f}, {m['high']:+.4f}], {noise} seed noise"
            )


def record(
    folder: Path, given: argparse.Namespace, data: Prepared, cells: dict, results: dict
) -> None:
    rows = [
        (name, side, seed, metric, epoch, f"{value:.6g}")
        for (name, side, seed), found in cells.items()
        for metric, values in found.items()
        for epoch, value in enumerate(values, start=given.epochs - len(values) + 1)
    ]
    header = ("method", "side", "seed", "metric", "epoch", "value")
    write_csv(folder / "against_lightly.csv", header, rows)
    names = ("torch", "lightly", "numpy", "scikit-learn", "timm")
    facts = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "data": {"sums": data.sums, "unverified": list(data.unverified)},
        "settings": {
            "epochs": given.epochs, "train_images": 10 * given.train_per_class, "batch": BATCH,
            "backbone": f"resnet8, width {WIDTH}", "precision": "bfloat16",
            "optimiser": f"Adam, {LR * BATCH / 256:g}, decay {DECAY:g}, warm-up 1 epoch, cosine",
            "methods": METHODS, "variants": VARIANTS,
        },
        "results": results,
    }  # fmt: skip
    write_json(folder / "against_lightly.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/against_lightly"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--accept-unverified", action="store_true")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    if len(given.seeds) < 2 or given.epochs < 2:
        parser.error("an interval needs at least two seeds, and a curve two epochs")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    path = given.out / "cifar10.safetensors"
    if not path.exists():
        source = SourceSpec(folder=given.data, accept_unverified=given.accept_unverified)
        prepare("cifar10", given.out, source)
    data = load(path, DatasetSpec(name="cifar10", train_per_class=given.train_per_class))
    pairs = [(n, k) for n in given.methods for k in SIDES[1:] if k == "lightly" or n in VARIANTS]
    first = {}
    for name, side in pairs:
        first[name, side] = first_steps(name, side, given)
        print(f"{name}, {side}: first steps within {first[name, side]:.1e}", flush=True)
    cells = {}
    columns = [("untrained", "ours")]
    for name in given.methods:
        columns += [(name, k) for k in SIDES if k != "matched" or name in TRAINED_TOO]
    for seed in given.seeds:  # seed by seed, so that what is finished early is all methods
        for name, side in columns:
            found = cells[name, side, seed] = cell(name, side, seed, given, data)
            print(f"seed {seed}: {name}, {side}: probe {found['linear'][0]:.4f}", flush=True)
    cells = {key: cells[key] for key in sorted(cells, key=lambda k: (columns.index(k[:2]), k[2]))}
    results = summary(cells, first)
    show(cells, results)
    if given.record:
        record(given.record, given, data, cells, results)


if __name__ == "__main__":
    main()
