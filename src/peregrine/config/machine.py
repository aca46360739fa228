"""What planning must know of this machine, found without importing torch."""

import os
from pathlib import Path

from peregrine.errors import UserError

DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus() -> list[str]:
    """CUDA devices that a job may use, as CUDA_VISIBLE_DEVICES names them, else 0, 1, ...

    As CUDA reads it, the list ends at the first entry that is no device.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(len(list(DRIVER.glob("*"))))]
    devices = []
    for device in (each.strip() for each in visible.split(",")):
        if device in ("", "-1", "NoDevFiles", "none", "void"):
            break
        devices.append(device)
    return devices


def jobs_per_gpu() -> int:
    """How many trainings may share a device: PEREGRINE_JOBS_PER_GPU, 1 where it is not set.

    Raises:
        UserError: it is no number of at least 1.
    """
    return _number("PEREGRINE_JOBS_PER_GPU", 1, least=1)


def gpu_wait() -> int | None:
    """Seconds to wait for a device that others use: PEREGRINE_GPU_WAIT, without end by default.

    Raises:
        UserError: it is no number of at least 0.
    """
    return _number("PEREGRINE_GPU_WAIT", None, least=0)


def compile_choice() -> bool | None:
    """Whether trainings are compiled: PEREGRINE_COMPILE, 0 or 1; None where it is not set.

    Raises:
        UserError: it is something else.
    """
    text = os.environ.get("PEREGRINE_COMPILE", "")
    if text not in ("", "0", "1"):
        raise UserError(f"PEREGRINE_COMPILE is '{text}'; set it to 0 (never) or 1 (always)")
    return bool(int(text)) if text else None


def launched() -> bool:
    """Whether torchrun, or what stands for it, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _number(name: str, default: int | None, *, least: int) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} is '{text}'; set it to a whole number of at least {least}")
    return int(text)
