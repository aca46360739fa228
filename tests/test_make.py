"""The Makefile: what it lists and what it removes; and .ci/run, which installs only in CI."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = (".venv/bin/python", ".venv-oldest/a", ".venv-newest/a", ".snakemake/conda/e/a")
CACHES = (".pytest_cache/a", ".ruff_cache/a", ".hypothesis/a", "src/peregrine/__pycache__/a.pyc")
MADE = ("results/runs/r/seed-0/outcome.json", "results/raw/a", "reports/demo/a.pdf", "report.html")
NOTES = ".snakemake/metadata/a"
KEPT = ("reports/published/cpu/a.pdf", "src/peregrine/a.py", "config/config.yaml")


@pytest.fixture
def folder(tmp_path):
    """A clone in which something was installed, trained, reported and published."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*ENVIRONMENTS, *CACHES, *MADE, NOTES, *KEPT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def make(folder, *words):
    """As typed, also where `make test` has started these tests."""
    own = {key: os.environ[key] for key in os.environ if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=folder, env=own, capture_output=True, text=True)


def files(folder):
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return set(found) - {"Makefile"}


def test_clean_removes_what_can_be_installed_again_and_nothing_trained(folder):
    assert make(folder, "clean").returncode == 0
    # Without Snakemake's notes it would not see that the parameters of a step have changed.
    assert files(folder) == {*MADE, NOTES, *KEPT}
    assert make(folder, "clean").returncode == 0


@pytest.mark.parametrize("words", [(), ("YES=",), ("YES=0",), ("YES=no",)])
def test_results_are_removed_only_where_that_is_confirmed(folder, words):
    before = files(folder)
    done = make(folder, "clean-results", *words)
    assert done.returncode != 0
    said, failed = done.stderr.strip().split("\n")
    assert "results/" in said and "downloads" in said and "make clean-results YES=1" in said
    assert failed.endswith("Error 1")
    assert files(folder) == before


def test_confirmed_it_removes_results_and_reports_but_published_ones(folder):
    assert make(folder, "clean-results", "YES=1").returncode == 0
    assert files(folder) == {*ENVIRONMENTS, *CACHES, *KEPT}
    shutil.rmtree(folder / "reports")
    assert make(folder, "clean-results", "YES=1").returncode == 0


def test_make_alone_lists_every_target(folder):
    done = make(folder)
    assert done.returncode == 0
    listed = re.findall(r"^make (\S+(?: test-\S+)?)  +\S", done.stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*?[^\\])$", (ROOT / "Makefile").read_text(), re.S | re.M)
    assert " ".join(listed).split() == phony[1].replace("\\\n", "").split()
    assert len(done.stdout.splitlines()) == len(listed)


def test_install_runs_nothing(folder):
    shutil.rmtree(folder / ".venv")
    (folder / "requirements.lock").touch()
    plans = {target: make(folder, "-n", target).stdout for target in ("install", "demo")}
    assert all("pip install" in plan for plan in plans.values())
    assert ["snakemake --cores" in plan for plan in plans.values()] == [False, True]


STANDINS = {
    "id": "echo 0",
    "apt-get": 'echo "$*" >> installed',
    "say": "true",
}


@pytest.mark.parametrize("ci", ["", "true"])
@pytest.mark.parametrize("present", [(), ("slurmd", "munged"), ("slurmctld",)])
def test_system_packages_are_installed_in_ci_alone(tmp_path, ci, present):
    """The part of .ci/run that does it, as root, with stand-ins for all programs."""
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    part = re.search(r'^say "packages.*?(?=^say "make test")', text, re.MULTILINE | re.DOTALL)[0]
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {**STANDINS, **dict.fromkeys(present, "true")}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", part],
        cwd=tmp_path,
        env={"PATH": str(programs), "CI": ci},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    log = tmp_path / "installed"
    if ci and "slurmctld" not in present:
        wanted = ["update", "install --yes slurmctld slurmd slurm-client munge"]
        assert log.read_text().splitlines() == wanted
    else:
        assert not log.exists()
    packages = {"slurmctld": "slurmctld", "slurmd": "slurmd", "munged": "munge"}
    lacking = {package for program, package in packages.items() if program not in present}
    named = set(done.stdout.partition("names):")[2].split())
    assert named == (set() if ci else lacking | {"slurm-client"})
