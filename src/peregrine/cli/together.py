"""Seeds of a run trained side by side, each by a command of its own.

A small net leaves most of a GPU idle: several processes share it, and each result is to the last
byte what its seed gives alone. Nothing here imports torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import TextIO

from peregrine.cli.options import INTERRUPTED
from peregrine.config.machine import jobs_per_gpu, visible_gpus
from peregrine.errors import UserError

LIBC = ctypes.CDLL(None)  # loaded before any fork
DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
"""What torchrun tells its processes, beside MASTER_ADDR."""


def places(wanted: int, device: str) -> int:
    """How many of `wanted` trainings get a place on this machine's GPUs; a CPU has one for each."""
    gpus = len(visible_gpus()) if device in ("auto", "cuda") else int(device.startswith("cuda:"))
    room = gpus * jobs_per_gpu()
    if room and room < wanted:
        print(
            f"{room} of {wanted} seeds at a time: PEREGRINE_JOBS_PER_GPU is {jobs_per_gpu()}",
            flush=True,
        )
    return min(wanted, room) if room else wanted


def train_together(seeds: Sequence[int], at_once: int, options: Sequence[str], threads: int) -> int:
    """Run `python -m peregrine pretrain --seed S OPTIONS` for every seed, `at_once` at a time.

    SIGTERM and SIGINT are passed on; no seed is begun after one, or after an error.

    Args:
        threads: of each process.

    Returns:
        Exit code: that of the first seed, in time, that ended with another one than 0; 75 where
        a signal ended them.
    """
    todo, running, codes, stop = list(seeds), {}, [], []
    before = {
        kind: signal.signal(kind, lambda number, _: stop.append(number) or _pass_on(running))
        for kind in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while running or (todo and not stop and not any(codes)):
            while todo and len(running) < at_once and not stop and not any(codes):
                seed = todo.pop(0)
                child = _start(seed, options, threads)
                running[child.pid] = child
                if stop:  # it came before the child could be told
                    _pass_on(running)
            # Whichever ends first; with no signal lost between looking and waiting.
            pid, status = os.waitpid(-1, 0)
            child = running.pop(pid, None)
            if child is not None:
                child.returncode = os.waitstatus_to_exitcode(status)
                codes.append(child.returncode)
                child.reader.join()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    failed = [code for code in codes if code not in (0, INTERRUPTED) and not (stop and code < 0)]
    if failed:
        return failed[0] if failed[0] > 0 else 128 - failed[0]
    return INTERRUPTED if stop or INTERRUPTED in codes else 0


def _start(seed: int, options: Sequence[str], threads: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "peregrine", "pretrain", "--seed", str(seed), *options]
    child = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,
    )
    child.reader = Thread(target=_relay, args=(child.stderr, seed), daemon=True)
    child.reader.start()
    return child


def _relay(stream: TextIO, seed: int) -> None:
    """Errors of a child, line by line; what it prints otherwise names its seed already."""
    for line in stream:
        print(f"seed {seed}: {line}", end="", file=sys.stderr, flush=True)


def check_launcher() -> None:
    """Raises UserError where several processes are told of, but not all that torchrun tells."""
    wrong = [name for name in NUMBERS if not os.environ.get(name, "").isdecimal()]
    wrong += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            "RANK and WORLD_SIZE are set, as torchrun does, but without a valid"
            f" {', '.join(wrong)}; start it by torchrun, or unset RANK to train in one process"
        )


def end_with_parent() -> None:
    """A killed parent leaves no training behind that would hold its seed's lock (Linux only)."""
    if sys.platform == "linux":
        LIBC.prctl(DEATH_SIGNAL, signal.SIGTERM)


def _pass_on(running: dict[int, subprocess.Popen]) -> None:
    for pid in running:
        with suppress(ProcessLookupError):  # not Popen's own, which would reap a child that ended
            os.kill(pid, signal.SIGTERM)
