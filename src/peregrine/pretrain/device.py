"""Where a run trains, and how many threads it uses."""

import platform
from contextlib import AbstractContextManager, nullcontext

import torch

from peregrine.errors import UserError


def pick_device(wanted: str = "auto") -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        UserError: no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    if wanted != "cpu" and (kind != "cuda" or (index and not index.isdecimal())):
        raise UserError(f"device '{wanted}' is unknown; there are: auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{wanted}' is not there; torch sees {torch.cuda.device_count()}")
    return torch.device(wanted)


def set_threads(threads: int) -> None:
    """Threads of torch's kernels; another count gives other last bits, so the scale states it."""
    torch.set_num_threads(threads)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bfloat16 autocast where the run says so; float32 otherwise."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def circumstances(device: torch.device) -> dict[str, str | int]:
    """What may change the last bits of a result without being part of the run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} {name}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
