"""Seeds trained side by side: the same bytes, signals that reach all, the first error's code."""

import signal
import subprocess
import sys
import time

import pytest
import yaml

from peregrine.cli import together
from peregrine.config.load import validate
from peregrine.config.models import Scale
from peregrine.errors import UserError
from peregrine.files import sha256

DETERMINISTIC = ("backbone.safetensors", "method.safetensors", "run.yaml", "history.csv")


def run_id(cli, row="first"):
    code, out, _ = cli("status")
    assert code == 0
    return next(line.split()[-1] for line in out.splitlines() if line.split()[:1] == [row])


def command(config, run, *more):
    words = ["pretrain", "--config", config, "--run", run, "--device", "cpu", *more]
    return [sys.executable, "-m", "peregrine", *map(str, words)]


def seeds(*numbers):
    return [word for number in numbers for word in ("--seed", str(number))]


def test_results_are_those_of_one_seed_after_the_other(cli, tiny_config, tmp_path):
    run, own = run_id(cli), tmp_path / "results" / "runs"
    sums = []
    for at_once in (1, 2):
        code, out, err = cli(
            "pretrain", "--run", run, *seeds(0, 1), "--seeds-together", at_once, "--device", "cpu"
        )
        assert (code, err) == (0, "")
        for seed in (0, 1):
            assert f"run {run}, seed {seed}: finished at epoch 2" in out
        folders = [own / run / f"seed-{seed}" for seed in (0, 1)]
        sums.append([sha256(f / name) for f in folders for name in DETERMINISTIC])
        for folder in folders:
            folder.rename(tmp_path / f"{at_once}-{folder.name}")
    assert sums[0] == sums[1]


def test_a_signal_reaches_every_seed_and_each_goes_on(cli, tiny_config, tmp_path):
    study = tiny_config / "studies" / "one.yaml"
    content = yaml.safe_load(study.read_text())
    content["defaults"]["epochs"] = 3000
    study.write_text(yaml.safe_dump(content))
    run = run_id(cli)
    whole = command(tiny_config, run, *seeds(0, 1), "--seeds-together", "2")
    parent = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    places = [tmp_path / "results" / "runs" / run / f"seed-{seed}" / "resume" for seed in (0, 1)]
    until = time.monotonic() + 120
    while not all((place / "last.safetensors").exists() for place in places):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 75
    for seed in (0, 1):
        stopped = f"seed {seed}: run {run}, seed {seed}: stopped by signal 15; the checkpoint is"
        assert stopped in errors
    code, out, _ = cli("status")
    assert "2 stopped" in out


@pytest.fixture
def children(monkeypatch, tmp_path):
    """`pretrain` replaced by a shell that notes its seed and ends with the code of that number."""

    def start(codes):
        real = subprocess.Popen

        def fake(words, **options):
            seed = int(words[words.index("--seed") + 1])
            script = f"echo {seed} >> {tmp_path}/begun; echo oh >&2; exit {codes[seed]}"
            return real(["sh", "-c", script], **options)

        monkeypatch.setattr(together.subprocess, "Popen", fake)
        return lambda at_once: together.train_together(list(codes), at_once, [], 1)

    return start


@pytest.mark.parametrize(
    ("codes", "expected", "begun"),
    [
        ({0: 0, 1: 0, 2: 0}, 0, {"0", "1", "2"}),
        ({0: 2, 1: 2, 2: 0}, 2, {"0", "1"}),  # the third is not begun
        ({0: 75, 1: 75, 2: 0}, 75, {"0", "1"}),
    ],
)
def test_the_first_error_ends_it(codes, expected, begun, children, tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    assert children(codes)(2) == expected
    assert set((tmp_path / "begun").read_text().split()) == begun
    assert set(capfd.readouterr().err.splitlines()) == {f"seed {seed}: oh" for seed in begun}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("device", "gpus", "jobs", "expected"),
    [
        ("auto", "", "1", 4),  # no GPU: as many processes as asked for
        ("cpu", "0", "1", 4),
        ("auto", "0", "1", 1),
        ("auto", "0", "3", 3),
        ("auto", "0,1", "3", 4),
        ("cuda:1", "0,1", "3", 3),
    ],
)
def test_no_more_seeds_at_a_time_than_places(device, gpus, jobs, expected, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setenv("PEREGRINE_JOBS_PER_GPU", jobs)
    assert together.places(4, device) == expected
    told = capsys.readouterr().out
    assert told.startswith(f"{expected} of 4 seeds at a time") if expected < 4 else not told


def test_a_scale_of_one_seed_a_job_cannot_train_them_together():
    scale = {"name": "a", "description": "", "seeds": [0, 1], "seeds_together": 2}
    with pytest.raises(
        UserError, match="seeds_together is for jobs of several seeds; set seeds_per"
    ):
        validate(Scale, scale, "a.yaml")
    assert validate(Scale, scale | {"seeds_per_job": "all"}, "a.yaml").seeds_together == 2
    assert Scale(name="a", description="", seeds=(0,)).seeds_together == 1
