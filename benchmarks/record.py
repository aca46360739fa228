"""What every benchmark writes beside its figures: machine, versions, load."""

import os
import platform
from pathlib import Path

import numpy as np
import torch

from peregrine.config.models import Run
from peregrine.files import write_json
from peregrine.reporting.estimate import work_of


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
    """The processor's name; only its architecture where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def shape(run: Run) -> dict:
    """What `status --estimate` wants to know of a run beside its samples/s."""
    work = work_of(run)
    return {
        "backbone": run.backbone.model_dump(mode="json"),
        "channels": work.channels,
        "views": work.views,
        "batch": work.batch,
        "precision": work.precision,
        "method": work.method,
    }


def write(path: Path, machine: dict, settings: dict, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**machine, "settings": settings, "results": results})
