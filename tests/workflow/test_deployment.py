"""What the workflow promises to strangers: conda environments, offline report, the catalog's list.

No conda channel is asked: a stand-in answers what Snakemake asks conda and makes an environment of
this interpreter's packages, in which peregrine itself is not installed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from test_workflow import ROOT, TINY, checkout, environment

ONE_ROW = (
    TINY.partition("studies:")[0].replace("seeds: [0, 1]", "seeds: [0]")
    + "studies: {falcon: {rows: [falcon-c16], run: {method: {embedding: 8}}}}\n"
)
CONDA = """\
#!/bin/bash
# Answers what Snakemake asks conda. An environment is a python of the test's own interpreter.
echo "$*" >> {place}/asked
case "$*" in
  --version) echo "conda 24.7.1" ;;
  "info --json") echo '{{"conda_prefix": "{place}", "platform": "linux-64"}}' ;;
  "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  clean*) ;;
  "env create"*)
    prefix=$(echo "$*" | sed 's/.*--prefix //')
    mkdir -p "$prefix/bin"
    printf '#!/bin/bash\\necho run >> {place}/used\\nexec {python} "$@"\\n' > "$prefix/bin/python"
    chmod +x "$prefix/bin/python" ;;
  *) echo "not known: $*" >&2; exit 1 ;;
esac
"""
NO_NETWORK = """\
import socket
from pathlib import Path

real = socket.socket.connect

def connect(self, address):
    if self.family == socket.AF_UNIX or str(address[0]).startswith(("127.", "::1", "localhost")):
        return real(self, address)
    with Path({tried!r}).open("a") as stream:
        stream.write(f"{{address}}\\n")
    raise OSError("no network in this test")

socket.socket.connect = connect
"""


class Deployment:
    """A checkout of one row and one seed, and a machine on which only conda has python."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = checkout(place / "checkout")
        (self.folder / "config/scales/tiny.yaml").write_text(ONE_ROW)
        main = self.folder / "config/config.yaml"
        main.write_text(main.read_text().replace("[falcon, feature_augmentation]", "[falcon]"))
        (place / "bin").mkdir()
        conda = place / "bin/conda"
        conda.write_text(CONDA.format(place=place, python=sys.executable))
        conda.chmod(0o755)
        (place / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')

    def snakemake(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(self.place / "bin"), "/usr/bin", "/bin"])
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=environment() | {"PATH": path} | variables,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def lines(self, name: str) -> list[str]:
        path = self.place / name
        return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """The workflow of one row, run with --use-conda."""
    installed = subprocess.run(
        [sys.executable, "-c", "import peregrine"], cwd="/", env=environment(), capture_output=True
    )
    if not installed.returncode:
        pytest.skip("peregrine is installed here, so nothing shows whether the rules find src/")
    world = Deployment(tmp_path_factory.mktemp("conda"))
    done = world.snakemake("--cores", "2", "--use-conda")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return world


def test_every_step_runs_in_the_conda_environment(deployed):
    made = [line for line in deployed.lines("asked") if line.startswith("env create")]
    assert len(made) == 1  # one environment for all rules
    steps = ("prepare", "pretrain", "extract", "evaluate", "diagnose", "collect", "report")
    others = ("theory", "theory_report", "index", "verdict_gate")
    assert len(deployed.lines("used")) == len(steps) + len(others)
    assert (deployed.folder / "reports/tiny/falcon.pdf").stat().st_size > 10_000
    assert (deployed.folder / "results/tiny/verdict_gate.txt").is_file()


def test_the_report_of_snakemake_needs_no_network(deployed, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(tried=str(tmp_path / "tried")))
    nowhere = "http://127.0.0.1:9"
    done = deployed.snakemake(
        *("--report", "report.html"),
        PYTHONPATH=str(tmp_path),
        http_proxy=nowhere,
        https_proxy=nowhere,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert not (tmp_path / "tried").exists()
    text = (deployed.folder / "report.html").read_text(encoding="utf-8")
    categories = json.loads(re.search(r"var categories = (.*);\n", text).group(1))
    assert set(categories) == {"falcon", "theory"}
    assert set(categories["falcon"]) == {"Figures", "Tables", "Report"}
    figures = deployed.folder.glob("results/tiny/falcon/figures/*.svg")
    drawn = sorted(str(path.relative_to(deployed.folder)) for path in figures)
    assert drawn and categories["falcon"]["Figures"] == drawn
    assert text.count("Small dots and thin lines are seeds") >= len(drawn)  # the caption
    # Everything that the page needs to be drawn is in it.
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text)


def test_the_no_network_guard_sees_a_connection(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(tried=str(tmp_path / "tried")))
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "no network in this test" in done.stderr
    assert "192.0.2.1" in (tmp_path / "tried").read_text()


def test_a_rule_that_cannot_find_the_code_fails(deployed):
    """So the tests above do show that every rule finds src/. It stands last: outputs are lost."""
    rules = deployed.folder / "workflow/rules/prepare.smk"
    before = rules.read_text()
    assert '"PYTHONPATH=src python' in before
    rules.write_text(before.replace('"PYTHONPATH=src python', '"python'))
    done = deployed.snakemake("--cores", "1", "--use-conda", "--forcerun", "prepare")
    rules.write_text(before)
    assert done.returncode != 0
    assert "No module named peregrine" in done.stdout + done.stderr


def locked() -> list[Requirement]:
    """The entries of requirements.lock, read as pip reads them."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Requirement(line.partition(" --hash")[0]) for line in entries]


@pytest.mark.parametrize("name", ["environment.yml", "workflow/envs/peregrine.yaml"])
def test_conda_and_pip_agree_pin_by_pin(name):
    found = yaml.safe_load((ROOT / name).read_text())
    assert set(found) == {"channels", "dependencies"}
    assert found["channels"] == ["conda-forge"]
    python, pip, packages = found["dependencies"]
    assert re.fullmatch(r"python =3\.\d+", python)
    assert re.fullmatch(r"pip =\d+\.\d+", pip)
    assert list(packages) == ["pip"]
    assert [str(Requirement(line)) for line in packages["pip"]] == [str(r) for r in locked()]
    for line in packages["pip"]:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[^=* ]+( ; .+)?", line), line


def test_what_the_workflow_catalog_asks_for():
    """Its page "Adding workflows": the general list, and the one of standardised usage."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme and "workflow" in readme
    assert (ROOT / "workflow/Snakefile").is_file()
    assert list((ROOT / "workflow/rules").glob("*.smk"))
    assert len((ROOT / "config/README.md").read_text(encoding="utf-8").splitlines()) > 20
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": True}
    flags = usage["mandatory-flags"]
    assert set(flags) == {"desc", "flags"} and isinstance(flags["desc"], str)
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        assert field["description"] and "default" in field, name
