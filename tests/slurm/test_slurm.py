"""The workflow on a SLURM of its own, by profiles/slurm as it is: requeued, preempted, out of time.

What comes out must be what a run without a cluster gives, byte by byte.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from cluster import PLUGIN, WITH_THE_TEST, ask, cluster, job, missing, wait_for
from test_workflow import TINY, artefacts, checkout, environment

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SMALL = (
    TINY.partition("studies:")[0]
    .replace("seeds: [0, 1]", "seeds: [0]")
    .replace("epochs: 3", "epochs: 16")
    + "studies: {falcon: {rows: [falcon-c16], run: {method: {embedding: 8}}}}\n"
)
WANTED = ("reports/tiny/falcon.pdf", "results/tiny/verdict_gate.txt")
# Trainings alone go to the cluster, as do the features of the last test: that a job has ended is
# seen after 12, 33, 64, ... seconds, however short it was.
UNTIL = ("--until", "pretrain")
BY_SLURM = ("--workflow-profile", "profiles/slurm")
# The first look after a second instead of twenty, since jobs are short; then after 11, 21, ...
BY_SLURM += ("--slurm-init-seconds-before-status-checks", "1")
PENDING_TERM = 1 << (signal.SIGTERM - 1)


class Slice(NamedTuple):
    """A trainer at work: one start of one job."""

    process: psutil.Process
    job: str
    gpu: str


def small_checkout(folder: Path) -> Path:
    checkout(folder)
    (folder / "config/scales/tiny.yaml").write_text(SMALL)
    main = folder / "config/config.yaml"
    main.write_text(main.read_text().replace("[falcon, feature_augmentation]", "[falcon]"))
    return folder


def started(folder: Path, *arguments: str) -> subprocess.Popen:
    """Snakemake in the background; what it says is in the file `said` of the folder."""
    place = Path(importlib.util.find_spec(PLUGIN).submodule_search_locations[0]).parent
    seen = {} if place.name == "site-packages" else {"PYTHONPATH": str(place)}
    return subprocess.Popen(
        [*WITH_THE_TEST, sys.executable, "-m", "snakemake", *arguments],
        cwd=folder,
        env=environment() | seen,
        stdout=(folder / "said").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(workflow: subprocess.Popen, folder: Path) -> str:
    """What it said, once it has ended well."""
    code = workflow.wait(400)
    said = (folder / "said").read_text()
    assert code == 0, said[-6000:]
    return said


def slices(folder: Path) -> list[Slice]:
    """The trainers of a checkout that have written a checkpoint."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "pretrain" not in words or "peregrine" not in words or "--run" not in words:
            continue
        try:
            if Path(process.cwd()) != folder:
                continue
            given = process.environ()
        except psutil.Error:
            continue
        run, seed = (words[words.index(option) + 1] for option in ("--run", "--seed"))
        last = folder / f"results/runs/{run}/seed-{seed}/resume/last.safetensors"
        if last.exists() and last.stat().st_mtime > process.create_time():
            found.append(Slice(process, given["SLURM_JOB_ID"], given["CUDA_VISIBLE_DEVICES"]))
    return found


def at_work(folder: Path, workflow: subprocess.Popen, other_than: str = "") -> Slice:
    """The next slice, stopped where it is, so that it waits for what a test does."""

    def found():
        assert workflow.poll() is None, (folder / "said").read_text()[-6000:]
        for each in slices(folder):
            if each.job != other_than:
                each.process.suspend()
                return each

    return wait_for("a training", found, 150, 0.05)


def let_go(each: Slice) -> None:
    with suppress(psutil.NoSuchProcess):
        each.process.resume()
    each.process.wait(60)


def told(each: Slice) -> bool:
    """Whether a stopped trainer will find a SIGTERM, or has; SLURM may have woken it."""
    try:
        if each.process.status() != psutil.STATUS_STOPPED:
            return True
        status = Path(f"/proc/{each.process.pid}/status").read_text().splitlines()
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("ShdPnd", "SigPnd"))]
    return any(mask & PENDING_TERM for mask in masks)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    place = tmp_path_factory.mktemp("slurm")
    with cluster(place):
        yield place


@pytest.fixture(scope="module")
def history(slurm, tmp_path_factory):
    """A workflow on the cluster to which everything happens, beside one without; what was seen."""
    folder = small_checkout(tmp_path_factory.mktemp("by-slurm") / "checkout")
    ended(started(folder, "--cores", "1", "--until", "prepare", *WANTED), folder)
    local = tmp_path_factory.mktemp("local") / "checkout"
    shutil.copytree(folder, local, symlinks=True)
    workflow = started(folder, *BY_SLURM, *UNTIL, *WANTED)
    undisturbed = started(local, "--cores", "1", *WANTED)
    try:
        first = at_work(folder, workflow)
        seen = {"folder": folder, "local": local, "first": first, "given": job(first.job)}
        ask("scontrol", "requeue", first.job)
        let_go(first)

        second = at_work(folder, workflow)
        seen |= {"second": second, "requeued": job(second.job)}
        urgent = "--partition=urgent --gres=gpu:2 --output=/dev/null --wrap=true".split()
        other = ask("sbatch", "--parsable", *urgent).strip()
        # SLURM wakes what it preempts.
        second.process.wait(60)

        third = at_work(folder, workflow)
        seen |= {"third": third, "preempted": job(third.job), "urgent": job(other)}
        ask("scontrol", "update", f"JobId={third.job}", "TimeLimit=2")  # of 8 hours
        began = time.monotonic()
        wait_for("the signal before a time limit", lambda: told(third), 90)
        seen["warned"] = time.monotonic() - began
        let_go(third)

        fourth = at_work(folder, workflow, third.job)
        fourth.process.resume()
        seen |= {"fourth": fourth, "limited": job(third.job)}
        seen["said"] = ended(workflow, folder)
        ended(started(folder, "--cores", "1", *WANTED), folder)
        ended(undisturbed, local)
        yield seen
    finally:
        for each in (workflow, undisturbed):
            if each.poll() is None:  # a test has failed
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def test_jobs_ask_for_what_profile_and_rules_say(history):
    given = history["given"]
    assert (given["Requeue"], given["TimeLimit"]) == ("1", "08:00:00")
    assert "mem=3000M" in given["TRES"]
    assert history["first"].gpu in ("0", "1")


def test_a_requeue_and_a_preemption_go_on_in_the_same_job(history):
    assert history["first"].job == history["second"].job == history["third"].job
    assert history["requeued"]["Restarts"] == "1"
    assert history["preempted"]["Restarts"] == "2"
    assert history["urgent"]["JobState"] == "COMPLETED"


def test_a_time_limit_ends_a_slice_and_the_next_is_another_job(history):
    assert history["fourth"].job != history["third"].job
    assert history["limited"]["JobState"] == "FAILED"  # not TIMEOUT: it has ended by itself
    assert history["warned"] < 60
    assert "Trying to restart job" in history["said"]


def test_results_are_those_of_a_run_without_a_cluster(history):
    ours, theirs = artefacts(history["folder"]), artefacts(history["local"])
    for name in ("backbone.safetensors", "history.csv", "claims.json", "falcon.pdf", "tables/"):
        assert any(name in each for each in ours), name
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    (attempts,) = history["folder"].rglob("resume/attempts")
    assert attempts.read_text().strip() == "4"


def test_a_failed_job_shows_its_log(history, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(history["folder"], folder, symlinks=True)
    weights = next(folder.glob("results/runs/*/seed-0/backbone.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    workflow = started(folder, *BY_SLURM, "--retries", "0", "--until", "extract", *WANTED)
    assert workflow.wait(120) == 1
    said = (folder / "said").read_text()
    assert "peregrine: error: " in said
    assert "seed-0/backbone.safetensors" in said
    assert "run pretrain again" in said
