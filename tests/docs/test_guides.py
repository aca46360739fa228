"""The guides in docs/, followed to the letter on a copy of the repository.

A fenced block with `title="FILE"` is the whole FILE, or goes before, after or in place of the line
that starts with what `before=`, `after=` or `replaces=` says. Blocks marked `sh run` are run, in
their order, by one shell that stops at the first failure.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(guide: str) -> list[tuple[dict[str, str], str]]:
    """(attributes, text) of every marked block; `run` is an attribute without a value."""
    found = []
    for _, info, body in FENCE.findall((ROOT / "docs" / guide).read_text(encoding="utf-8")):
        words = [word.partition("=") for word in shlex.split(info)]
        if words:
            found.append(({name: value for name, _, value in words}, body))
    return found


def apply(folder: Path, marks: dict[str, str], body: str) -> None:
    path = folder / marks["title"]
    place = next((kind for kind in ("before", "after", "replaces") if kind in marks), None)
    if place is None:
        assert not path.exists(), f"{marks['title']} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if line.startswith(marks[place])]
    assert len(at) == 1, f"{marks['title']}: {len(at)} lines start with '{marks[place]}'"
    first, last = (at[0] + (place == "after"), at[0] + (place != "before"))
    path.write_text("".join([*lines[:first], body, *lines[last:]]), encoding="utf-8")


def follow(guide: str, folder: Path) -> str:
    """Do what a guide says in a copy of src/ and config/; what its commands print."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    script = ""
    for marks, body in blocks(guide):
        if "run" in marks:
            script += body
        else:
            apply(folder, marks, body)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, script + done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def outcomes(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.glob("results/runs/*/*/outcome.json")]


def test_a_method(tmp_path):
    out = follow("add-a-method.md", tmp_path)
    assert out.startswith("..")  # the two tests that the guide writes
    (outcome,) = outcomes(tmp_path)
    assert "-alignment-" in outcome["run"]
    assert (outcome["status"], outcome["epoch"]) == ("finished", 1)
    history = next(tmp_path.glob("results/runs/*/*/history.csv"))
    assert {"loss", "alignment", "uniformity"} <= set(history.read_text().split("\n")[0].split(","))
    assert "2 seeds: 2 missing" in out
    assert "2 seeds: 1 to evaluate, 1 missing" in out


def test_a_data_set(tmp_path):
    follow("add-a-data-set.md", tmp_path)
    record = json.loads((tmp_path / "results/data/stripes.json").read_text())
    assert record["counts"] == {"train": 600, "test": 200}
    assert record["shape"] == [1, 16, 16]
    # Half of the pixels are 200 and half 40, and the noise has mean 0.
    assert record["mean"] == [pytest.approx(120 / 255, abs=0.002)]
    (outcome,) = outcomes(tmp_path)
    assert outcome["run"].startswith("stripes-") and outcome["status"] == "finished"
    assert outcome["data"] == record["sums"]


def test_a_study(tmp_path):
    out = follow("add-a-study.md", tmp_path)
    assert "4 seeds: 2 done, 2 missing" in out
    folder = tmp_path / "results/trial/codes"
    lines = list(csv.DictReader((folder / "tables/accuracy.csv").open()))
    assert [line["row"] for line in lines] == ["few", "few", "many", "many"]
    assert [bool(line["mean"]) for line in lines] == [False, False, True, True]
    (claim,) = json.loads((folder / "claims.json").read_text())
    assert claim["id"] == "C1" and claim["verdict"].split()[0] in ("not", "undecided")
    assert (folder / "figures/codes.svg").is_file()


def test_the_commands_of_run_it_exist():
    """Options and commands that docs/run-it.md and the README name."""
    from typer.main import get_command

    from peregrine.cli import app

    known = get_command(app).commands
    for name in ("docs/run-it.md", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for words in re.findall(r"python -m peregrine ([^`\n|]+)", text):
            command, *rest = words.split()
            if command.startswith("-"):
                continue
            assert command in known, f"{name}: {words}"
            options = {option for each in known[command].params for option in each.opts} | {"-h"}
            assert {word for word in rest if word.startswith("-")} <= options, f"{name}: {words}"


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'\]\(([^)#]+)[^)]*\)|src(?:set)?="([^"]+)"', text):
            link = target[0] or target[1]
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"
