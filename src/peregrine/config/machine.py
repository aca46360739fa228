"""What planning must know of this machine, found without importing torch."""

import os
from pathlib import Path


def visible_gpus() -> int:
    """How many CUDA devices a job may use: CUDA_VISIBLE_DEVICES where set, else NVIDIA's driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
