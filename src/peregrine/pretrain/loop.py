"""The pretraining loop: one run, one seed, any method, resumable at every step.

Images are uint8 on the device, or come there ahead of their step; views are made there for a whole
batch. Nothing random is carried from step to step (see `peregrine.streams`), so a run that was
killed and resumed ends in the same bytes as one that was not.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from peregrine.config.fingerprint import fingerprint, parts
from peregrine.config.identity import run_id
from peregrine.config.models import Run
from peregrine.config.resources import obstacle
from peregrine.data.batches import held
from peregrine.data.prepare import Prepared
from peregrine.data.ragged import Ragged
from peregrine.data.views import largest_side, make_views
from peregrine.errors import UserError
from peregrine.files import sha256, write_csv, write_json, write_tensors, write_text
from peregrine.methods.base import Progress
from peregrine.methods.build import build_method, split_state
from peregrine.pretrain import checkpoint
from peregrine.pretrain.accumulate import accumulate
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.compiled import begin_step, compile_training
from peregrine.pretrain.device import autocast, circumstances, keep_memory, set_precision
from peregrine.pretrain.distributed import ALONE, World
from peregrine.pretrain.monitor import chance_purity, monitors, neighbour_monitors
from peregrine.pretrain.optim import (
    Schedule,
    build_optimizer,
    clip_gradients,
    decay_at,
    effective_lr,
    set_rates,
)
from peregrine.streams import generator, seeded_init

MONITOR_IMAGES = 256
NEIGHBOUR_LOOKS = 8
"""How often an epoch looks at what neighbours are."""


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the checkpoint is written."""


class Trainer:
    """Everything that one (run, seed) needs while it trains."""

    def __init__(
        self, run: Run, seed: int, data: Prepared, device: torch.device, world: World = ALONE
    ) -> None:
        self.run, self.seed, self.device, self.world = run, seed, device, world
        self.images = held(data.images["train"], device, largest_side(run.views))
        self.labels = torch.from_numpy(data.labels["train"]).to(device)
        self.chance = chance_purity(self.labels)
        self.mean, self.sd, self.unverified = data.mean, data.sd, data.unverified
        n = len(self.images)
        self.steps = n // run.batch_size
        if not self.steps and run.epochs:
            raise UserError(f"batch_size {run.batch_size} exceeds the {n} training images")
        self.method = build_method(run, seed, channels=len(data.mean), train_images=n).to(device)
        with seeded_init(seed, "probe"):
            self.probe = nn.Linear(self.method.backbone.features, len(data.classes)).to(device)
        self.schedule = self._schedule(run.optimizer.lr, run.optimizer.lr_end)
        self.probe_schedule = self._schedule(run.probe.lr)
        self.optimizer = build_optimizer(
            run.optimizer, self.method.parameters(), self.schedule.base
        )
        self.probe_optimizer = torch.optim.Adam(
            self.probe.parameters(), lr=run.probe.lr, fused=device.type == "cuda" or None
        )
        self.compiled = compile_training(self.method, device, run.epochs * self.steps)
        picks = torch.randperm(n, generator=generator(seed, "order", -1))
        self.watched = self.normalised(self.images.whole(picks[:MONITOR_IMAGES].to(device)))

    def _schedule(self, lr: float, end: float = 0.0) -> Schedule:
        spec, steps = self.run.optimizer, self.steps
        base = effective_lr(lr, self.run.batch_size)
        total = self.run.epochs * steps
        warmup = spec.warmup_epochs * steps
        return Schedule(base, spec.warmup_start, warmup, total, end)

    def normalised(self, images: Tensor) -> Tensor:
        """float32 [n, c, h, w] in [0, 1] with the data set's mean and sd taken out."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        sd = torch.tensor(self.sd, device=images.device).view(-1, 1, 1)
        return (images - mean) / sd

    def modules(self) -> dict[str, nn.Module]:
        return {"method": self.method, "probe": self.probe}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "probe_optimizer": self.probe_optimizer}

    def epoch(self, at: Position, sums: dict[str, Tensor]) -> Iterator[int]:
        """Train the rest of the current epoch; yields after each step that is done."""
        self.method.train()
        size, device = self.run.batch_size, self.device
        draws = generator(self.seed, "order", at.epoch)
        order = torch.randperm(len(self.images), generator=draws).to(device)
        parts = order[: self.steps * size].split(size)[at.step :]
        own = [self.world.part(rows) for rows in parts]
        for index, rows, images in zip(count(at.step), parts, self.images.batches(own)):
            now = Progress(
                self.seed, at.epoch, at.epoch * self.steps + index, self.run.epochs * self.steps
            )
            for name, value in self.step(rows, images, now, index).items():
                sums[name] = sums.get(name, 0) + value.double()
            yield index + 1

    def step(
        self, rows: Tensor, images: Tensor | Ragged, now: Progress, index: int
    ) -> dict[str, Tensor]:
        """One optimiser step on the batch `rows`; detached loss terms and probe hits.

        `images` are this process's part of it.
        """
        spec, world = self.run.optimizer, self.world
        set_rates(
            self.optimizer, self.schedule.at(now.step), decay_at(spec, now.step, now.total_steps)
        )
        set_rates(self.probe_optimizer, self.probe_schedule.at(now.step))
        # On the host: parameters are drawn there, the same ones for every device.
        draws = generator(self.seed, "views", now.epoch, index)
        part = world.rank, world.size
        views = make_views(images, self.run.views, draws, mean=self.mean, std=self.sd, part=part)
        views.rows = world.part(rows)
        self.optimizer.zero_grad(set_to_none=True)
        if self.compiled:
            begin_step()
        precision = partial(autocast, self.device, self.run.precision)
        terms, online = accumulate(self.method, views, now, self.run.accumulate, precision, world)
        clip_gradients(self.method.parameters(), spec.clip_norm)
        self.optimizer.step()
        self.method.after_step(now)
        terms |= self._neighbours(index)

        features = torch.cat([each.float() for each in online])
        labels = self.labels[rows].repeat(len(online))
        logits = self.probe(features)
        self.probe_optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        self.probe_optimizer.step()
        hits = (logits.argmax(dim=1) == labels).double().mean()
        return {**terms, "probe_accuracy": hits}

    def _neighbours(self, index: int) -> dict[str, Tensor]:
        """The neighbour monitors after some evenly spaced steps, so weighted that the epoch's mean
        is theirs. An epoch shows each image once: at its end no queue shorter than the data set
        holds an older view of a new image, at its beginning many do.
        """
        looks = min(NEIGHBOUR_LOOKS, self.steps)
        if index * looks // self.steps == (index - 1) * looks // self.steps:
            return {}
        seen = neighbour_monitors(self.method, self.labels, self.chance)
        return {name: value * (self.steps / looks) for name, value in seen.items()}

    @torch.no_grad()
    def calibrate(self) -> None:
        """BatchNorm statistics of the untrained net from the training images, in one pass.

        With the initial mean 0 and variance 1 its head would be worse than random, and a trained
        row would be credited with what normalisation alone does.
        """
        norms = [m for m in self.method.modules() if isinstance(m, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the plain mean over all batches
            norm.reset_running_stats()
        self.method.train()
        rows = torch.arange(len(self.images), device=self.device)
        for part in rows.chunk(max(len(rows) // MONITOR_IMAGES, 1)):
            self.method.describe(self.normalised(self.images.whole(part)))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum

    @torch.no_grad()
    def test_accuracy(self, data: Prepared) -> float:
        """Accuracy of the online probe on the test set, eval mode."""
        self.method.eval()
        hits = 0
        side = largest_side(self.run.views)
        images = held(data.images["test"], self.device, side, resident=False)
        labels = torch.from_numpy(data.labels["test"])
        for start in range(0, len(labels), 512):
            batch = self.normalised(images.whole(slice(start, start + 512)))
            guess = self.probe(self.method.backbone(batch).float()).argmax(dim=1).cpu()
            hits += int((guess == labels[start : start + 512]).sum())
        return hits / len(labels)


def pretrain(
    run: Run,
    seed: int,
    data: Prepared,
    folder: Path,
    device: torch.device,
    world: World = ALONE,
) -> dict[str, object]:
    """Train to the last epoch, or to a scientific end (NaN, collapse), and write the results.

    Args:
        run, seed: what to train; `folder` is results/runs/{run}/seed-{seed}.
        data: the prepared data set.
        world: the processes that make this call together; the main one of them writes.

    Returns:
        The content of outcome.json.

    Raises:
        Interrupted: SIGTERM or SIGINT; the same call goes on from there.
        UserError: the folder is in use, or holds another run's checkpoint; or the run cannot be
            trained in so many processes.
    """
    reason = obstacle(run, world.size)
    if reason:
        raise UserError(f"run {run_id(run)}: {reason}")
    code = fingerprint("pretrain", run.method["name"])
    start = Position(run_id(run), seed, code, dict(data.sums))
    with world.exclusive(folder), _stop_requests() as stop:
        attempts = checkpoint.count_attempt(folder) if world.main else 0
        keep_memory()
        set_precision(device, run.precision)
        with world.main_first():
            trainer = Trainer(run, seed, data, device, world)
            at = checkpoint.restore(folder, start, trainer.modules(), trainer.optimizers())
        print(
            f"run {at.run}, seed {seed}: effective learning rate {trainer.schedule.base:.3g}"
            f" (lr {run.optimizer.lr:g} x batch {run.batch_size} / 256), epoch {at.epoch}"
            f" of {run.epochs}, {circumstances(device)['device']}",
            flush=True,
        )
        _train(trainer, at, folder, stop)
        if not run.epochs:
            trainer.calibrate()
        outcome = _outcome(run, at)
        if at.epoch and outcome["status"] == "finished":
            outcome["online_probe_accuracy"] = trainer.test_accuracy(data)
        if world.main:
            _write(trainer, at, outcome, folder, attempts)
        signalled = world.agreed(stop)
        if signalled:  # it came too late for this seed, but the next one must not begin
            raise Interrupted(f"stopped by signal {signalled}; the results are written")
    return outcome


def _train(trainer: Trainer, at: Position, folder: Path, stop: list[int]) -> None:
    run, world = trainer.run, trainer.world
    bar = tqdm(
        total=run.epochs * trainer.steps * run.batch_size,
        initial=(at.epoch * trainer.steps + at.step) * run.batch_size,
        unit="sample",
        unit_scale=True,
        desc=f"seed {trainer.seed}",
        # Silent where stderr is a file; the epoch lines stand there.
        disable=None if world.main else True,
    )
    while at.epoch < run.epochs and _outcome(run, at)["status"] == "finished":
        began, first = time.perf_counter(), at.step
        sums = {
            name: torch.tensor(value, dtype=torch.float64, device=trainer.device)
            for name, value in at.sums.items()
        }
        for done in trainer.epoch(at, sums):
            bar.update(run.batch_size)
            signalled = world.agreed(stop)
            if signalled and done < trainer.steps:
                at.step, at.sums = done, {name: float(value) for name, value in sums.items()}
                _save(trainer, at, folder)
                raise Interrupted(f"stopped by signal {signalled}; the checkpoint is written")
        seconds = time.perf_counter() - began
        rate = (trainer.steps - first) * run.batch_size / seconds
        at.history.append(world.same(_row(trainer, at, sums)))
        at.timing.append({"epoch": at.epoch, "seconds": seconds, "samples_per_second": rate})
        at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
        _save(trainer, at, folder)
        left = (run.epochs - at.epoch) * seconds * trainer.steps / (trainer.steps - first)
        row = at.history[-1]
        tqdm.write(
            f"seed {trainer.seed} epoch {at.epoch}/{run.epochs}: loss {row['loss']:.4f},"
            f" probe {row['probe_accuracy']:.3f}, feature sd {row['features_sd']:.3f},"
            f" {rate:,.0f} samples/s, {left:.0f} s left",
            file=sys.stdout,
        )
        sys.stdout.flush()
        signalled = world.agreed(stop)
        if signalled:
            raise Interrupted(f"stopped by signal {signalled}; the checkpoint is written")
    bar.close()


def _save(trainer: Trainer, at: Position, folder: Path) -> None:
    """The main process writes the checkpoint; none goes on, or ends, before it is there."""
    trainer.world.level(trainer.modules().values())
    if trainer.world.main:
        checkpoint.save(folder, at, trainer.modules(), trainer.optimizers())
    trainer.world.wait()


def _row(trainer: Trainer, at: Position, sums: dict[str, Tensor]) -> dict[str, float]:
    """History of one epoch: means of the loss terms, the last learning rate, the monitors."""
    means = {name: float(value) / trainer.steps for name, value in sums.items()}
    last = at.epoch * trainer.steps + trainer.steps - 1
    watched = monitors(trainer.method, trainer.watched)
    return {"epoch": at.epoch + 1, "lr": trainer.schedule.at(last), **means, **watched}


def _outcome(run: Run, at: Position) -> dict[str, object]:
    """finished, collapsed or nan, judged from the history alone, so a resume judges the same."""
    status, detail = "finished", ""
    if at.history:
        row = at.history[-1]
        layer = min(("features", "embeddings"), key=lambda layer: row[f"{layer}_sd"])
        spread = row[f"{layer}_sd"]
        if not all(math.isfinite(value) for value in row.values()):
            status, detail = "nan", "a loss term or monitor is not finite"
        elif spread < run.collapse_floor and (run.on_collapse == "stop" or at.epoch == run.epochs):
            status = "collapsed"
            detail = f"{layer} sd {spread:.4g} is below the floor {run.collapse_floor:g}"
    return {"status": status, "detail": detail, "epoch": at.epoch, "online_probe_accuracy": None}


def _write(
    trainer: Trainer, at: Position, outcome: dict[str, object], folder: Path, attempts: int
) -> None:
    """All declared outputs; outcome.json comes last and holds the sums of the others."""
    run = trainer.run
    backbone, rest = split_state(trainer.method)
    names = {"run": at.run, "seed": str(at.seed)}
    write_tensors(folder / "backbone.safetensors", backbone, **names)
    write_tensors(folder / "method.safetensors", rest, **names)
    write_text(folder / "run.yaml", yaml.safe_dump(run.model_dump(mode="json"), sort_keys=True))
    header = list(at.history[0]) if at.history else ["epoch", "lr", "loss"]
    write_csv(folder / "history.csv", header, ([row[key] for key in header] for row in at.history))
    timing = ["epoch", "seconds", "samples_per_second"]
    write_csv(folder / "timing.csv", timing, ([row[key] for key in timing] for row in at.timing))
    seconds = sum(row["seconds"] for row in at.timing)
    write_json(
        folder / "manifest.json",
        {
            "run": at.run,
            "seed": at.seed,
            "code": at.code,
            "code_parts": parts("pretrain", run.method["name"]),
            "data": at.data,
            "accept_unverified": bool(trainer.unverified),
            "unverified": list(trainer.unverified),
            "effective_lr": trainer.schedule.base,
            "attempts": attempts,
            "wall_seconds": round(seconds, 3),
            "samples_per_second": round(at.epoch * trainer.steps * run.batch_size / seconds, 1)
            if seconds
            else None,
            **circumstances(trainer.device),
            "compiled": trainer.compiled,
            "processes": trainer.world.size,
        },
    )
    deterministic = ("backbone.safetensors", "method.safetensors", "run.yaml", "history.csv")
    outcome |= {
        "run": at.run,
        "seed": at.seed,
        "step": at.epoch * trainer.steps,
        "data": at.data,
        "files": {name: sha256(folder / name) for name in deterministic},
    }
    write_json(folder / "outcome.json", outcome)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals received inside; the loop looks at it after every step."""
    seen: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda number, _: seen.append(number)) for kind in kinds}
    try:
        yield seen
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
