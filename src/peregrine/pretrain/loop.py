"""The pretraining loop: one run, one seed, any method, resumable at every step.

Images are uint8 on the device, or come there ahead of their step; views are made there for a whole
batch. Nothing random is carried from step to step (see `peregrine.streams`), so a run that was
killed and resumed ends in the same bytes as one that was not.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from peregrine.config.fingerprint import fingerprint
from peregrine.config.identity import run_id
from peregrine.config.models import Run
from peregrine.config.resources import obstacle
from peregrine.data.prepare import Prepared
from peregrine.errors import UserError
from peregrine.pretrain import checkpoint
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.device import circumstances, keep_memory, set_precision
from peregrine.pretrain.distributed import ALONE, World
from peregrine.pretrain.monitor import monitors
from peregrine.pretrain.results import judge, write_results
from peregrine.pretrain.trainer import Trainer


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the checkpoint is written."""


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
        outcome = judge(run, at)
        if at.epoch and outcome["status"] == "finished":
            outcome["online_probe_accuracy"] = trainer.test_accuracy(data)
        if world.main:
            write_results(trainer, at, outcome, folder, attempts)
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
    while at.epoch < run.epochs and judge(run, at)["status"] == "finished":
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
