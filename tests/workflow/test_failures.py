"""One seed of five is killed, then one of five collapses: the rest goes on, and all is said."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_workflow import TINY, checkout, environment

SEEDS = range(5)
SCALE = (
    TINY.partition("studies:")[0]
    .replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4]")
    .replace("seeds_per_job: all", "seeds_per_job: one")
    + "studies: {falcon: {rows: [falcon-c16], run: {method: {embedding: 8}}}}\n"
)
# In the place of Python: seed 3 gets what the kernel sends where memory ends.
STUB = """\
#!/bin/sh
case "$*" in *"peregrine pretrain"*"--seed 3") kill -KILL $$ ;; esac
exec {python} "$@"
"""


class Campaign:
    def __init__(self, place: Path) -> None:
        self.folder = checkout(place / "checkout")
        self.scale = self.folder / "config/scales/tiny.yaml"
        self.scale.write_text(SCALE)
        main = self.folder / "config/config.yaml"
        main.write_text(main.read_text().replace("[falcon, feature_augmentation]", "[falcon]"))
        stub = place / "bin/python"
        stub.parent.mkdir()
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)
        self.stub = {"PATH": f"{stub.parent}{os.pathsep}{environment()['PATH']}"}

    def ask(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        given = environment() | {"PYTHONPATH": str(self.folder / "src")} | variables
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, cwd=self.folder, env=given, capture_output=True, text=True, timeout=1200
        )

    def status(self) -> dict:
        return json.loads(self.ask("peregrine", "status", "--json").stdout)

    def runs(self) -> dict[int, str]:
        """Seed -> status, as `collect` has written it."""
        with (self.folder / "results/tiny/falcon/runs.csv").open() as stream:
            return {int(line["seed"]): line["status"] for line in csv.DictReader(stream)}

    def printed(self) -> str:
        """What the PDF of the study was made of."""
        return (self.folder / "reports/tiny/falcon.json").read_text()

    def cell(self) -> dict[str, str]:
        """The linear probe in the table of the paper's comparison."""
        for path in sorted(self.folder.glob("results/tiny/falcon/tables/*.csv")):
            with path.open() as stream:
                for line in csv.DictReader(stream):
                    if (line["row"], line["metric"]) == ("falcon-c16", "linear/accuracy"):
                        return line
        raise AssertionError("no table has the linear probe")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("failures"))


def test_a_job_that_the_kernel_ends_stops_no_other(campaign):
    words = ("snakemake", "--cores", "2", "--keep-going", "--until", "pretrain")
    done = campaign.ask(*words, **campaign.stub)
    assert done.returncode == 1
    trained = campaign.folder.glob("results/runs/*/seed-*/outcome.json")
    assert sorted(path.parent.name for path in trained) == ["seed-0", "seed-1", "seed-2", "seed-4"]
    found = campaign.status()
    assert (found["totals"]["to evaluate"], found["totals"]["missing"]) == (4, 1)
    assert found["next"] == "snakemake"


def test_a_report_in_between_is_one_command_and_names_what_is_missing(campaign):
    done = campaign.ask("peregrine", "report", "--collect", "falcon")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (campaign.folder / "reports/tiny/falcon.pdf").stat().st_size > 10_000
    expected = dict.fromkeys(SEEDS, "incomplete") | {3: "missing"}
    assert campaign.runs() == expected
    assert "0 of 5 seeds finished, 4 incomplete, 1 missing" in campaign.printed()


def test_one_collapse_of_five_is_reported_counted_and_fails_the_gate(campaign):
    done = campaign.ask("snakemake", "--cores", "2", "--until", "pretrain")
    assert done.returncode == 0, done.stderr[-3000:]
    last = {}
    for seed in SEEDS:
        (path,) = campaign.folder.glob(f"results/runs/*/seed-{seed}/history.csv")
        with path.open() as stream:
            row = list(csv.DictReader(stream))[-1]
        last[seed] = min(float(row["features_sd"]), float(row["embeddings_sd"]))
    lowest, second = sorted(last, key=last.get)[:2]
    # The same trainings, judged by a floor between the lowest two.
    floor = (last[lowest] + last[second]) / 2
    text = SCALE.replace("seeds_per_job: one", "seeds_per_job: all")
    text = text.replace("collapse_floor: 0.0", f"collapse_floor: {floor!r}\n  on_collapse: record")
    campaign.scale.write_text(text)
    wanted = ("reports/tiny/falcon.pdf", "results/tiny/verdict_gate.txt")
    done = campaign.ask("snakemake", "--cores", "2", "--keep-going", *wanted)
    assert done.returncode == 1
    assert "Error in rule verdict_gate" in done.stderr
    log = (campaign.folder / "results/logs/verdict_gate/tiny.log").read_text().splitlines()
    assert len(log) == 1 and log[0].endswith(f"seed {lowest}): collapsed")
    assert not (campaign.folder / "results/tiny/verdict_gate.txt").exists()

    assert campaign.runs() == dict.fromkeys(SEEDS, "finished") | {lowest: "collapsed"}
    cell = campaign.cell()
    assert (cell["seeds"], cell["failed"], cell["missing"]) == ("5", "1", "0")
    assert "1 of 5 seeds collapsed" in cell["remark"]
    assert "4 of 5 seeds finished, 1 collapsed" in campaign.printed()
    found = campaign.status()
    assert (found["totals"]["done"], found["totals"]["failed"]) == (4, 1)
