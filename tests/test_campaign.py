"""benchmarks/campaign.py: order, slices that go on, what a failing step leaves, bundles."""

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from peregrine.config.load import load
from peregrine.files import sha256

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "campaign.py"
SOURCE = Path(__file__).parents[1] / "src"
SPEC = importlib.util.spec_from_file_location("campaign", SCRIPT)
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


@pytest.fixture
def begin(cli, tiny_config, tmp_path):
    """Start the script on the tiny configuration, whose data are prepared."""

    def start(*options):
        command = [sys.executable, SCRIPT, "--scale", "tiny", "--config", tiny_config, *options]
        return subprocess.Popen(
            [*map(str, command)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def campaign(begin):
    def call(*options):
        process = begin(*options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return call


def test_all_rows_at_one_seed_before_a_second_and_then_a_bundle(campaign, cli, tmp_path):
    code, out, err = campaign("one/*", "--seeds", 0, 1, "--bundle", tmp_path / "a.tar.xz")
    assert (code, err) == (0, "")
    rows = [line.removeprefix("one-") for line in out.splitlines() if line.endswith(": done")]
    names = [line.removesuffix(": done") for line in rows]
    assert [name.rpartition("-")[2] for name in names] == sorted(
        name.rpartition("-")[2] for name in names
    )
    assert not list(tmp_path.glob("results/runs/*/*/*/features.safetensors"))
    assert "0 seeds left" in out
    code, out, _ = cli("status")
    assert code == 0 and "missing" not in out.splitlines()[-2].replace("missing  run", "")
    before = sha256(tmp_path / "a.tar.xz")
    code, out, err = campaign("one/*", "--seeds", 0, 1, "--bundle", tmp_path / "b.tar.xz")
    assert (code, err) == (0, "") and out.startswith("0 of ")
    assert sha256(tmp_path / "b.tar.xz") == before


def test_a_slice_stops_in_time_and_the_next_goes_on(begin, campaign, tiny_config, tmp_path):
    study = tiny_config / "studies" / "one.yaml"
    content = yaml.safe_load(study.read_text())
    content["defaults"]["epochs"] = 400
    study.write_text(yaml.safe_dump(content))
    row = ("one/first", "--seeds", 0)
    process = begin(*row)
    while not list(tmp_path.glob("results/runs/*/seed-0/resume/*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "") and "1 seeds left" in out
    code, out, err = campaign(*row, "--seconds", 280)
    assert (code, err) == (0, "")
    log = (tmp_path / "results/logs/campaign/one-first-seed-0.log").read_text()
    assert "epoch 400" in log or "400/400" in log or "finished at epoch 400" in log


def test_the_time_given_ends_a_slice(campaign, tmp_path):
    begun = time.monotonic()
    code, out, _ = campaign("one/first", "--seeds", 0, "--seconds", 0)
    assert code == 75 and "1 seeds left" in out
    assert time.monotonic() - begun < 60
    assert not list(tmp_path.glob("results/runs/*/*/outcome.json"))


def test_a_failing_step_is_told_and_the_others_go_on(campaign, tmp_path):
    (data,) = tmp_path.glob("results/data/*.safetensors")
    data.write_bytes(data.read_bytes()[:-8])
    code, out, err = campaign("one/first", "--seeds", 0, 1)
    assert (code, err) == (1, "")
    assert out.count(": code 2, see ") == 2 and "2 seeds left" in out


def test_an_unknown_row_is_one_line(campaign):
    code, out, err = campaign("one/fist")
    assert (code, out) == (2, "")
    hint = "did you mean 'one/first'?"
    assert err == f"error: one/fist: scale tiny has no such STUDY/ROW; {hint}\n"


@pytest.mark.parametrize("wrong", [("--jobs", 0), ("--seconds", "nan"), ("--seconds", -1)])
def test_senseless_numbers_are_refused(campaign, wrong):
    code, out, err = campaign("one/first", *wrong)
    assert (code, out) == (2, "") and "is not a number of at least" in err


def test_two_campaigns_do_not_share_results(begin, campaign, tmp_path):
    logs = tmp_path / "results/logs/campaign"
    logs.mkdir(parents=True)
    with (logs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = campaign("one/first")
    assert (code, out) == (2, "") and "a campaign runs here" in err


def test_a_failed_seed_that_was_never_evaluated_still_is(campaign, cli, tmp_path):
    """As a kill between training and evaluation leaves it; and no bundle has it before."""
    run = next(c.id for c in load(tmp_path / "config").cells if c.row == "nan")
    assert cli("pretrain", "--run", run, "--seed", 0, "--device", "cpu")[0] == 0
    code, _, err = cli("bundle", tmp_path / "early.tar.xz", "--run", run)
    assert code == 2 and "not evaluated yet" in err
    code, out, _ = campaign("one/nan", "--seeds", 0, "--bundle", tmp_path / "a.tar.xz")
    assert code == 0 and out.startswith("1 of 1 seeds to do")
    place = tmp_path / "results/runs" / run / "seed-0"
    assert (place / "corrected/linear-standard.json").is_file()
    assert f"{tmp_path / 'a.tar.xz'}: 1 seeds" in out


@pytest.fixture
def gpu_campaign(tmp_path):
    """benchmarks/gpu_campaign.sh with a stand-in for Python: its exit code, and what it called."""
    repository = tmp_path / "repository"
    (repository / "benchmarks").mkdir(parents=True)
    shutil.copy(SCRIPT.with_name("gpu_campaign.sh"), repository / "benchmarks")
    calls = tmp_path / "calls"

    def call(*options, code=0):
        python = tmp_path / "python"
        ends = f'case "$1" in -m) ;; *) exit {code};; esac'
        python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{ends}\n')
        python.chmod(0o755)
        command = ["bash", repository / "benchmarks/gpu_campaign.sh", tmp_path / "out", *options]
        done = subprocess.run(
            [*map(str, command)], env=os.environ | {"PYTHON": str(python)}, capture_output=True
        )
        return done.returncode, [line.split() for line in calls.read_text().splitlines()]

    return call


def test_the_gpu_campaign_takes_one_seed_of_all_methods_before_a_second(gpu_campaign):
    code, (ten, hundred, *stages) = gpu_campaign()
    assert code == 0
    assert [ten[-2:], hundred[-2:]] == [["prepare", "cifar10"], ["prepare", "cifar100"]]
    project = load(SOURCE.parent / "config", scale="gpu")
    done = {}
    for words in stages:
        rows = [word for word in words if "/" in word and not word.endswith((".py", ".xz"))]
        seeds = words[words.index("--seeds") + 1 : words.index("--jobs")]
        for cell in MODULE.chosen(project, rows):
            done.setdefault((cell.study, cell.row), []).extend(seeds)
        assert words[words.index("--scale") + 1] == "gpu"
        assert float(words[words.index("--seconds") + 1]) <= 540
    assert set(map(tuple, done.values())) == {("0", "1", "2")}
    assert {(cell.study, cell.row) for cell in project.cells} == set(done)
    names = [Path(words[words.index("--bundle") + 1]).name for words in stages]
    assert names == [
        f"{stage}-seeds-{seeds}.tar.xz"
        for seeds in ("0", "1-2")
        for stage in ("table-1", "sizes", "two-branch")
    ]


def test_the_gpu_campaign_says_what_is_left(gpu_campaign):
    assert gpu_campaign(code=75)[0] == 75
    assert gpu_campaign(code=1)[0] == 1
    assert gpu_campaign(code=2)[0] == 2  # a wrong input ends it at once
    before = len(gpu_campaign("10")[1])  # no time for any stage
    assert gpu_campaign("10")[0] == 75
    assert len(gpu_campaign("10")[1]) == before + 4  # prepared anew each time, no stage begun
