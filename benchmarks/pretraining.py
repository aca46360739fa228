"""Training samples/s on a CPU: this repository's loop, and one of lightly and Lightning.

    PYTHONPATH=src python benchmarks/pretraining.py --data FOLDER [--accept-unverified] [--quick]
        [--threads 2] [--repetitions 5] [--our-net] [--cpu-time] [--record benchmarks/recorded]

FOLDER has CIFAR-10 in the official binary layout, or its archive. SimCLR and Barlow Twins with a
ResNet-8, width 32 at batch 256 and width 128 at batch 64, two views by `asymmetric` of
config/presets.yaml, Adam, heads as config/presets.yaml has them. `ours` is the step of `peregrine
pretrain`, with its online probe, and a step's share of the monitors that end an epoch; bfloat16 as
config/scales/cpu.yaml trains where the processor multiplies in it, and float32. `lightly` takes the
library's view transforms, heads and losses, torch's DataLoader with 0 workers and with as many as
threads, and Lightning's Trainer at its default precision, float32: no probe, no monitors. Its net
is the same list of layers written plainly; --our-net hands it this repository's module instead.
All take turns, a fixed number of steps after a warm-up each. --cpu-time counts the process's own
seconds and leaves out rows with workers, which are processes of their own.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import record
import torch
from PIL import Image
from torch import Tensor, nn
from views import hardware

from peregrine.config.load import build_run, read_yaml
from peregrine.config.models import BackboneSpec, Run, SourceSpec
from peregrine.data.prepare import Prepared, load, prepare
from peregrine.files import write_json
from peregrine.nets.backbones import build_backbone
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.device import keep_memory, native_bfloat16
from peregrine.pretrain.monitor import monitors
from peregrine.pretrain.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "config"
NETS = {32: (256, 12), 128: (64, 8)}
"""Batch, and steps that are timed, by width of the ResNet-8."""
METHODS = {"simclr": "simclr", "barlow_twins": "barlow-twins"}
WARM = 2
CPU = torch.device("cpu")


def settings(method: str, width: int, batch: int, precision: str) -> Run:
    presets = read_yaml(CONFIG / "presets.yaml")
    parts = {
        "dataset": {"name": "cifar10"},
        "backbone": {"name": "resnet8", "width": width},
        "method": presets["methods"][METHODS[method]],
        "views": presets["views"]["asymmetric"],
        "batch_size": batch,
        "epochs": 100,
        "precision": precision,
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 1e-4, "warmup_epochs": 1},
    }
    return build_run([parts], method)


# ours --------------------------------------------------------------------------------------------


def steps_of(trainer: Trainer) -> Iterator[int]:
    at = Position("", 0, "", {})
    for at.epoch in range(trainer.run.epochs):
        yield from trainer.epoch(at, {})


def ours(run: Run, data: Prepared, steps: int, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that trains on for some steps: seconds a step."""
    trainer = Trainer(run, 0, data, CPU)
    going = steps_of(trainer)

    def turn() -> float:
        for _ in range(WARM):
            next(going)
        start = clock()
        for _ in range(steps):
            next(going)
        a_step = (clock() - start) / steps
        start = clock()
        monitors(trainer.method, trainer.watched)
        return a_step + (clock() - start) / trainer.steps

    return turn


# lightly and Lightning ---------------------------------------------------------------------------


class PlainBlock(nn.Module):
    def __init__(self, channels: int, width: int, pool: bool, first: bool) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.2)
        body = [] if first else [act]
        body += [nn.Conv2d(channels, width, 3, padding=1), act]
        body += [nn.Conv2d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*body)
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
        self.shortcut = nn.Conv2d(channels, width, 1) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.body(x)) + self.shortcut(self.pool(x))


def plain_resnet8(width: int) -> nn.Module:
    """ResNet8 of peregrine.nets.backbones, layer by layer."""
    return nn.Sequential(
        PlainBlock(3, width, True, True),
        PlainBlock(width, width, True, False),
        PlainBlock(width, width, False, False),
        PlainBlock(width, width, False, False),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Pictures(torch.utils.data.Dataset):
    """Images [n, 3, h, w] as torchvision's CIFAR10 gives them, transformed."""

    def __init__(self, images: np.ndarray, transform: Callable) -> None:
        self.images, self.transform = images.transpose(0, 2, 3, 1).copy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images[index]))


def transform(run: Run, data: Prepared) -> Callable:
    """lightly's two asymmetric views, with the settings of the run's."""
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    from lightly.transforms.multi_view_transform import MultiViewTransform

    views = []
    for kind, spec in zip((BYOLView1Transform, BYOLView2Transform), run.views, strict=True):
        views.append(
            kind(
                input_size=spec.size, min_scale=spec.crop_scale[0], hf_prob=spec.flip,
                cj_prob=spec.jitter, cj_strength=1.0, cj_bright=spec.brightness,
                cj_contrast=spec.contrast, cj_sat=spec.saturation, cj_hue=spec.hue,
                random_gray_scale=spec.grey, gaussian_blur=spec.blur,
                solarization_prob=spec.solarise, normalize={"mean": data.mean, "std": data.sd},
            )
        )  # fmt: skip
    return MultiViewTransform(views)


def lightly(
    method: str, run: Run, data: Prepared, steps: int, clock: Callable[[], float],
    workers: int, our_net: bool,
) -> Callable[[], float]:  # fmt: skip
    """A function that trains for some steps with Lightning's Trainer: seconds a step."""
    import pytorch_lightning as lightning
    from lightly.loss import BarlowTwinsLoss, NTXentLoss
    from lightly.models import modules as parts

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    width, options = run.backbone.width, run.method
    hidden = options.get("projector_hidden", 2048)
    if method == "simclr":
        head = parts.SimCLRProjectionHead(width, hidden, options.get("embedding", 256))
        criterion = NTXentLoss(temperature=options["temperature"])
    else:
        head = parts.BarlowTwinsProjectionHead(width, hidden, options["embedding"])
        criterion = BarlowTwinsLoss(lambda_param=options["off_diagonal"])
    net = build_backbone(BackboneSpec(name="resnet8", width=width), 3)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net if our_net else plain_resnet8(width)
            self.head, self.criterion, self.times = head, criterion, []

        def training_step(self, batch, index):
            return self.criterion(*(self.head(self.backbone(view)) for view in batch))

        def on_train_batch_end(self, *_):
            self.times.append(clock())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-4)

    module = Module()
    loader = torch.utils.data.DataLoader(
        Pictures(data.images["train"], transform(run, data)),
        batch_size=run.batch_size, shuffle=True, drop_last=True, num_workers=workers,
    )  # fmt: skip

    def turn() -> float:
        module.times.clear()
        trainer = lightning.Trainer(
            max_steps=WARM + steps, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        return (module.times[-1] - module.times[WARM - 1]) / steps

    return turn


# -------------------------------------------------------------------------------------------------


def compared(given: argparse.Namespace, data: Prepared, method: str, width: int) -> dict:
    """By side the samples/s of every repetition."""
    clock = time.process_time if given.cpu_time else time.perf_counter
    batch, steps = NETS[width]
    steps = 4 if given.quick else steps
    full = settings(method, width, batch, "float32")
    turns = {}
    if native_bfloat16(CPU):
        half = settings(method, width, batch, "bfloat16")
        turns["ours, bfloat16"] = ours(half, data, steps, clock)
    turns["ours, float32"] = ours(full, data, steps, clock)
    for workers in (0,) if given.cpu_time else (0, given.threads):
        its = lightly(method, full, data, steps, clock, workers, given.our_net)
        turns[f"lightly, {workers} workers"] = its
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(2 if given.quick else given.repetitions):
        for name, turn in turns.items():
            rates[name].append(batch / turn())
    medians = {name: statistics.median(found) for name, found in rates.items()}
    theirs = max(value for name, value in medians.items() if name.startswith("lightly"))
    print(f"\n{method}, width {width}, batch {batch}, {given.threads} threads", flush=True)
    for name, value in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(
            f"  {name:18} {value:7,.0f} samples/s ({spread}),"
            f" {value / theirs:.2f} of the faster lightly",
            flush=True,
        )
    return rates


def prepared(folder: str, accept_unverified: bool) -> Prepared:
    with tempfile.TemporaryDirectory() as place:
        source = SourceSpec(folder=folder, accept_unverified=accept_unverified)
        prepare("cifar10", Path(place), source)
        data = load(Path(place) / "cifar10.safetensors")
        return replace(data, images={name: np.array(each) for name, each in data.images.items()})


def arguments(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--data", required=True)
    parser.add_argument("--accept-unverified", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--record", type=Path)
    return parser


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--our-net", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    warnings.filterwarnings("ignore")  # Lightning's advice on workers, and of what is deprecated
    facts = hardware([given.threads], ("torch", "lightly", "pytorch-lightning", "pillow"))
    data = prepared(given.data, given.accept_unverified)
    cases = [(method, width) for width in given.widths for method in given.methods]
    results = {f"{m}, width {w}": compared(given, data, m, w) for m, w in cases}
    if given.record:
        facts |= {
            "clock": "CPU" if given.cpu_time else "wall",
            "our_net": given.our_net,
            "steps": {str(width): 4 if given.quick else NETS[width][1] for width in given.widths},
        }
        rated = {} if given.cpu_time or given.quick else dict(ours_of(results, given.threads))
        facts |= {"device": record.facts()["device"], "results": rated}
        write_json(given.record / "pretraining.json", facts | {"samples_per_second": results})


def ours_of(results: dict[str, dict], threads: int) -> Iterator[tuple[str, dict]]:
    """Of our rows what `python -m peregrine status --estimate` reads."""
    for case, rates in results.items():
        method, width = case.split(", width ")
        for name in (each for each in rates if each.startswith("ours")):
            run = settings(method, int(width), NETS[int(width)][0], name.removeprefix("ours, "))
            rate = {"samples_per_second": statistics.median(rates[name]), "threads": threads}
            yield f"{case}, {run.precision}", record.shape(run) | rate


if __name__ == "__main__":
    main()
