"""What one (run, seed) needs while it trains, and one step of it, for any method."""

from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from peregrine.config.models import Run
from peregrine.data.batches import held
from peregrine.data.prepare import Prepared
from peregrine.data.ragged import Ragged
from peregrine.data.views import largest_side, make_views
from peregrine.errors import UserError
from peregrine.methods.base import Progress
from peregrine.methods.build import build_method
from peregrine.pretrain.accumulate import accumulate
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.compiled import begin_step, compile_training
from peregrine.pretrain.device import autocast
from peregrine.pretrain.distributed import ALONE, World
from peregrine.pretrain.monitor import chance_purity, neighbour_monitors
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
