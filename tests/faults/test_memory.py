"""A machine without enough memory: one line, and whatever was there before stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peregrine.config.load import load

SRC = Path(__file__).parents[2] / "src"
# The limit comes after torch, which takes gigabytes of addresses for itself.
LIMITED = """
import resource, sys
import torch, torchvision, sklearn
from pathlib import Path
from peregrine.cli import main
from peregrine.pretrain import loop
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_net_that_does_not_fit_is_a_line(tiny_config, tmp_path):
    path = tiny_config / "studies/one.yaml"
    study = yaml.safe_load(path.read_text())
    study["rows"] = {"wide": {"label": "wide", "run": {"backbone": {"width": 1024}}}}
    path.write_text(yaml.safe_dump(study))
    (run,) = load(tiny_config).runs()
    words = ["pretrain", "--run", run, "--seed", "0", "--config", str(tiny_config)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    *_, line = done.stderr.splitlines()  # libraries below may have a say of their own before
    assert "Traceback" not in done.stderr
    assert line.startswith("peregrine: error: there is not enough memory for this run; take a sm")
    folder = tmp_path / "results/runs" / run / "seed-0"
    assert not list(folder.glob("*.safetensors")) and not (folder / "outcome.json").exists()
