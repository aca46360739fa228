"""The last checkpoint of a run, its lock, and what a kill leaves behind.

Symptom: a killed run starts again from zero, or goes on from another run's weights. Cause: state
that is not saved whole, or not checked. Protocol: one safetensors file holds all tensors (method,
probe, both optimisers) and, in its header, position and history; it replaces its predecessor in
one rename and carries its own digest. Random numbers need no state: see `peregrine.streams`.
After a kill at any moment there is the last complete checkpoint. The one before it stays beside it,
and takes its place where it is damaged: a disk that lost a block costs an epoch, not the run. Both
stay after the run has finished, until `extract` has used the results: a kill between the last
output and Snakemake's own record of it must not cost the run.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peregrine.errors import UserError, refusal
from peregrine.files import read_tensors, write_tensors, write_text

FOLDER = "resume"
NAME = "last.safetensors"
PREVIOUS = "previous.safetensors"


@dataclass
class Position:
    """Everything of a run that is no tensor."""

    run: str
    seed: int
    code: str
    data: dict[str, str]
    epoch: int = 0
    step: int = 0
    """Steps done in the current epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Running sums of the current epoch's loss terms and probe hits."""
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run folder; a second process is refused instead of writing over the first.

    Raises:
        UserError: another living process holds it.
    """
    lock = folder / FOLDER / "lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a")
    except OSError as error:
        raise UserError(f"{lock} cannot be opened: {error.strerror or error}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being trained by another process; wait for it or end it"
            ) from None
        except OSError as error:
            raise UserError(f"{lock} cannot be locked: {error.strerror or error}") from None
        for leftover in [*folder.glob(".tmp-*"), *lock.parent.glob(".tmp-*")]:
            leftover.unlink(missing_ok=True)  # of a killed process: nobody else writes here now
        yield


def count_attempt(folder: Path) -> int:
    """How many times this run was started, this time included."""
    path = folder / FOLDER / "attempts"
    try:
        attempts = int(path.read_text()) + 1
    except (OSError, ValueError):
        attempts = 1
    write_text(path, f"{attempts}\n")
    return attempts


def save(
    folder: Path,
    position: Position,
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
) -> None:
    """Write the last checkpoint; the one that was the last becomes the previous one."""
    tensors = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": value for key, value in state.items()}
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    path = folder / FOLDER / NAME
    if path.exists():
        _rename(path, path.with_name(PREVIOUS))  # killed here: `restore` takes the previous one
    write_tensors(path, arrays, position=json.dumps(asdict(position)))


def restore(
    folder: Path,
    expected: Position,
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
) -> Position:
    """Load the last checkpoint into modules and optimisers; `expected` where there is none.

    A checkpoint of older code or of other data is set aside: its numbers would be of no code.

    Raises:
        UserError: the checkpoint belongs to another run or seed, or it and the previous one are
            damaged.
    """
    path = folder / FOLDER / NAME
    if not path.exists() and not path.with_name(PREVIOUS).exists():
        return expected
    arrays, metadata = _newest(path)
    if "position" not in metadata:
        raise UserError(f"{path} is no checkpoint; remove it")
    facts = json.loads(metadata["position"])
    if (facts["run"], facts["seed"]) != (expected.run, expected.seed):
        raise UserError(
            f"{path} is a checkpoint of run {facts['run']}, seed {facts['seed']}; remove it"
        )
    if (facts["code"], facts["data"]) != (expected.code, expected.data):
        print(f"{path}: older code or other data; starting again", flush=True)
        return expected
    position = Position(**facts)  # only now: older code may have had other fields
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    for name, module in modules.items():
        module.load_state_dict(_below(tensors, name))
    for name, optimizer in optimizers.items():
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, name).items():
            index, _, part = key.partition("/")
            states.setdefault(int(index), {})[part] = _laid_out(value, parameters[int(index)])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    return position


def _newest(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The last checkpoint, or where it is damaged or missing the previous one in its place."""
    try:
        return read_tensors(path)
    except UserError as error:
        previous = path.with_name(PREVIOUS)
        try:
            found = read_tensors(previous)
        except UserError:
            raise error from None
        if path.exists():  # missing after a kill between two renames, which is no damage
            print(f"{error}; going on from the one before it", flush=True)
        _rename(previous, path)  # else the next save would keep the damaged one as the previous
        return found


def _rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        raise UserError(f"{new} cannot be written: {refusal(error)}") from None


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` with the strides of its parameter: fused optimisers pair elements by their place in
    memory, and a contiguous moment beside a channels-last weight would belong to another one."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)}
