"""The unit tests on the oldest or newest supported versions (`make test-oldest`, `test-newest`).

    python tools/other_versions.py oldest .venv-oldest
    python tools/other_versions.py newest .venv-newest tests/methods -x

The lock stays exact, since other versions give other last bits; this asks whether the code works
with them. Oldest: tools/oldest.txt, a trial. Newest: what the index has, the exact pins of
pyproject.toml let go. Makes a virtual environment of the Python that runs this; takes `uv` where it
is on PATH. Ends with the exit code of pytest. Tests of the workflow as a whole (tests/workflow,
slurm, faults, docs) are those of the lock and left out.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / "tools/oldest.txt"
PARTS = ("config", "data", "diagnostics", "evaluation", "methods", "nets", "parity", "pretrain")
PARTS += ("reporting", "theory", "test_cli.py", "test_files.py", "test_errors.py", "test_doctor.py")
SHOWN = "torch torchvision snakemake numpy scipy scikit-learn pandas pydantic".split()
SHOW = """\
import sys
from importlib.metadata import version
print("python", sys.version.split()[0], *(f"{name} {version(name)}" for name in sys.argv[1:]))
"""


def newest() -> list[str]:
    """The requirements of pyproject.toml, without upper ends."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    return [re.sub(r"==.*|,?<[^,]*", "", each) for each in wanted]


def install(folder: Path, requirements: list[str]) -> str:
    """Path of the Python of a new environment in `folder` that has them."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = str(folder.absolute() / "bin/python")
    pip = ["uv", "pip", "install", "--python", python]
    if not shutil.which("uv"):
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*pip, "--quiet", *requirements], check=True)
    return python


def main() -> int:
    which, folder, *options = sys.argv[1:]
    python = install(Path(folder), ["-r", str(OLDEST)] if which == "oldest" else newest())
    subprocess.run([python, "-c", SHOW, *SHOWN], check=True)
    tests = options or [f"tests/{part}" for part in PARTS]
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
