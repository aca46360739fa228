"""What every benchmark writes beside its figures: machine, versions, load."""

import os
import platform
from pathlib import Path

import numpy as np
import torch

from peregrine.files import write_json


def facts(device: str = "cpu") -> dict[str, object]:
    """Hardware, versions and the load of the last minute."""
    out: dict[str, object] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
    if device != "cpu":
        out |= {
            "device": f"cuda {torch.cuda.get_device_name()}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return out


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path, machine: dict, settings: dict, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**machine, "settings": settings, "results": results})
