"""Write requirements.lock and the conda environments from pyproject.toml (`make lock`).

The lock is universal (Linux and macOS, CPython 3.11 to 3.13), carries hashes and no index address.
The conda files take python and pip from conda-forge and everything else from the same pins.
Pins stay as they are as long as pyproject.toml allows; `--upgrade` takes the newest of all.
Needs `uv` on PATH.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = """\
# Everything that `make demo` and `make test` install, pinned by hash. Made by `make lock`.
# Complete: install with `pip install --no-deps --require-hashes -r requirements.lock`.
"""
ENVIRONMENTS = {
    "environment.yml": "The environment that runs the workflow; `make lock` writes it.",
    "workflow/envs/peregrine.yaml": "The environment of every rule; `make lock` writes it.",
}


def compile_lock(upgrade: bool) -> str:
    """Output of uv for the project and its development tools."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requirements.lock"
        if not upgrade:
            shutil.copy(LOCK, out)  # uv prefers what it finds there
        command = ["uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--universal"]
        command += ["--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"]
        command += ["--no-header", "--no-annotate", "-q", "-o", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
        return out.read_text(encoding="utf-8")


def pins(lock: str) -> list[str]:
    """`name==version ; marker` of every entry of a lock, without hashes."""
    lines = re.findall(r"^[A-Za-z0-9][^\n\\]*", lock, re.MULTILINE)
    return [line.strip() for line in lines]


def environment(purpose: str, requirements: list[str]) -> str:
    lines = [f"# {purpose}", "channels: [conda-forge]", "dependencies:"]
    lines += ["  - python =3.11", "  - pip =25.3", "  - pip:"]
    return "\n".join([*lines, *(f'    - "{line}"' for line in requirements)]) + "\n"


if __name__ == "__main__":
    text = HEADER + compile_lock(upgrade="--upgrade" in sys.argv[1:])
    LOCK.write_text(text, encoding="utf-8")
    for name, purpose in ENVIRONMENTS.items():
        (ROOT / name).write_text(environment(purpose, pins(text)), encoding="utf-8")
