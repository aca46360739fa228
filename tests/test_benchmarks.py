"""Benchmarks that are run rarely must not have rotted when they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.files import read_json

FOLDER = Path(__file__).parents[1] / "benchmarks"


def called(script, *options):
    environment = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, FOLDER / script, *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_gpu_benchmark_writes_after_every_slice_and_goes_on(tmp_path):
    options = ("--record", tmp_path, "--synthetic", "--quick", "--device", "cpu", "--slices")
    first = called("gpu.py", *options, "views", "falcon-compiled")
    assert first.returncode == 0, first.stderr
    results = read_json(tmp_path / "gpu.json")["results"]
    assert set(results) == {"views", "falcon-compiled"}
    assert results["views"]["samples_per_second_16"] > 0
    assert results["falcon-compiled"] == {"error": "not compiled in a quick look on a CPU"}
    second = called("gpu.py", *options, "views", "r18-eager")
    assert [line.split(" ")[0] for line in second.stdout.splitlines()] == ["r18-eager"]
    found = read_json(tmp_path / "gpu.json")
    assert found["results"]["views"] == results["views"]
    step = found["results"]["r18-eager"]
    # 50,000 images in batches of 32 are 1,562 steps.
    assert step["epoch_seconds"] == pytest.approx(1562 * step["step_ms"] / 1000)
    assert step["samples_per_second"] == pytest.approx(32_000 / step["step_ms"])
    assert found["settings"] == {"images": "noise", "quick": True}
