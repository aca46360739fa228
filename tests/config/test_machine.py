"""Which GPUs may be used, and how often each."""

import pytest

from peregrine.config import machine
from peregrine.config.machine import gpu_wait, jobs_per_gpu, visible_gpus
from peregrine.errors import UserError


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,1", ["0", "1"]),
        ("3", ["3"]),
        (" GPU-8f , MIG-1a ", ["GPU-8f", "MIG-1a"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,2", ["1"]),  # CUDA stops at the first that it does not know
    ],
)
def test_cuda_visible_devices_is_respected(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected


def test_otherwise_the_driver_counts(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "none")
    assert visible_gpus() == []
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / bus).mkdir()
    monkeypatch.setattr(machine, "DRIVER", tmp_path)
    assert visible_gpus() == ["0", "1"]


def test_numbers_from_the_environment(monkeypatch):
    for name in ("PEREGRINE_JOBS_PER_GPU", "PEREGRINE_GPU_WAIT"):
        monkeypatch.delenv(name, raising=False)
    assert (jobs_per_gpu(), gpu_wait()) == (1, None)
    monkeypatch.setenv("PEREGRINE_JOBS_PER_GPU", "3")
    monkeypatch.setenv("PEREGRINE_GPU_WAIT", "0")
    assert (jobs_per_gpu(), gpu_wait()) == (3, 0)
    for text in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("PEREGRINE_JOBS_PER_GPU", text)
        with pytest.raises(UserError, match=f"PEREGRINE_JOBS_PER_GPU is '{text}'; set it to"):
            jobs_per_gpu()
