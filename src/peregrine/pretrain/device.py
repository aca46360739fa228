"""Where a run trains: a device of its own, threads, precision, and what the manifest says of it."""

import ctypes
import fcntl
import os
import platform
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import TextIO

import torch

from peregrine.config.machine import gpu_wait, jobs_per_gpu, visible_gpus
from peregrine.errors import UserError

PACKAGES = ("numpy", "scipy", "scikit-learn")
IF_USED = ("timm", "torchvision")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of malloc.h in glibc."""

_held: dict[int, TextIO] = {}
"""Leases of this process by device index; they end with it, however it ends."""


def pick_device(wanted: str = "auto", among: tuple[int, int] = (0, 1)) -> torch.device:
    """`auto` is a CUDA device that no other training uses, where there is one, else the CPU.

    A CUDA device is leased for the life of the process; asked again, the process gets the same.
    `among` (k, w) leaves it every w-th device from the k-th on, where no number is given.

    Raises:
        UserError: no such device, or none became free in PEREGRINE_GPU_WAIT seconds.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = wanted.partition(":")
    if wanted != "cpu" and (kind != "cuda" or (number and not number.isdecimal())):
        raise UserError(f"device '{wanted}' is unknown; there are: auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UserError(f"device '{wanted}' is not there; torch sees {count}")
    allowed = [int(number)] if number else list(range(count))[among[0] :: among[1]]
    if not allowed:
        raise UserError(f"torch sees {count} GPUs; start at most as many processes, one on each")
    index = next((each for each in allowed if each in _held), None)
    if index is None:
        # Where torch counts other devices than the driver lists, its own numbers must do.
        names = visible_gpus()
        names = names if len(names) == count else [str(each) for each in range(count)]
        index, lock = lease({each: names[each] for each in allowed}, jobs_per_gpu(), gpu_wait())
        _held[index] = lock
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def lease(
    devices: dict[int, str], jobs: int = 1, wait: float | None = None, folder: Path | None = None
) -> tuple[int, TextIO]:
    """A free place on one of `devices` (index -> name): (index, the lock that holds it).

    Snakemake counts GPUs but does not hand them out: without this all jobs would train on the
    first one. The lock is an flock, so it ends with the process, also by a kill.

    Args:
        jobs: places on every device; one each is taken before the second of any.
        wait: seconds until giving up; None waits for ever.
        folder: of the lock files; one for this user, on this machine and in this SLURM job, where
            the same name may mean another device.

    Raises:
        UserError: nothing became free in time, or the folder cannot be used.
    """
    folder = folder or _lock_folder()
    until = None if wait is None else time.monotonic() + wait
    told = False
    while True:
        for place in range(jobs):
            for index, name in devices.items():
                lock = _try(folder / f"{name.replace('/', '-')}.{place}")
                if lock:
                    return index, lock
        names = ", ".join(devices.values())
        if until is not None and time.monotonic() >= until:
            raise UserError(
                f"no GPU of {names} became free in {wait:g} s; end another training,"
                " or raise PEREGRINE_GPU_WAIT or PEREGRINE_JOBS_PER_GPU"
            )
        if not told:
            print(f"waiting for a GPU: others train on {names}", flush=True)
            told = True
        time.sleep(0.5)


def _lock_folder() -> Path:
    """Private to the user: a folder that another one made could hold our locks for ever."""
    job = os.environ.get("SLURM_JOB_ID", "")
    name = f"peregrine-gpu-{os.getuid()}" + (f"-slurm-{job}" if job else "")
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); set TMPDIR") from None
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; remove it or set TMPDIR")
    return folder


def _try(path: Path) -> TextIO | None:
    """The open file when it could be locked; None where another process holds it."""
    try:
        stream = path.open("a")
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be locked: {error.strerror}; set TMPDIR") from None
    return stream


def set_threads(threads: int) -> None:
    """Threads of torch's kernels; another count gives other last bits, so the scale states it."""
    torch.set_num_threads(threads)


def set_precision(device: torch.device, precision: str) -> None:
    """Global switches of a CUDA device; none of them touches the CPU. Not measured yet.

    float32 means float32: TF32, which convolutions would use by default, goes with bfloat16.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    if precision == "bfloat16" and not native_bfloat16(device):
        print(
            f"this {device.type} emulates bfloat16, which is slow; float32 is another run",
            flush=True,
        )


def native_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16 (AVX-512 BF16, AMX, Arm BF16, or its GPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities()
    return any(value for name, value in abilities.items() if name.endswith("bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bfloat16 autocast where the run says so; float32 otherwise."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def circumstances(device: torch.device) -> dict[str, str | int]:
    """What may change the last bits of a result without being part of the run."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    facts = {
        "device": f"{device.type} {name}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
    if cuda:
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    used = [package for package in IF_USED if package in sys.modules]
    return facts | {package: metadata.version(package) for package in (*PACKAGES, *used)}


def keep_memory() -> None:
    """Have freed memory stay with the process, where the C library is glibc.

    By default it gives every large block back to the system, which hands out zeroed pages again at
    the next step: a fifth of a step on a CPU. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
