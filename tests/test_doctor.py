"""`doctor` beside commands that print what SLURM 22.05 printed, changed in one place each."""

import os

import pytest

from peregrine import doctor
from peregrine.doctor import hours

CONFIG = """\
Configuration data as of 2026-11-22T10:41:14
AccountingStorageType   = accounting_storage/none
GresTypes               = gpu
JobRequeue              = 1
MinJobAge               = 300 sec
SLURM_VERSION           = 22.05.8
"""
PARTITIONS = "normal*|up|3-00:00:00|gpu:fake:2\nurgent|up|1:00:00|(null)\n"
PROFILE = """\
slurm-status-command: squeue
slurm-requeue: true
retries: 3
slurm-init-seconds-before-status-checks: 20
set-resources: {pretrain: {gpu: 1}}
"""
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """`commands(name=script)`: the only commands that there are, beside the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), "/usr/bin", "/bin"]))
    # SLURM of the machine, if it has one, is not seen.
    real = doctor.shutil.which
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name: real(name, path=str(folder)) if name else None
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(doctor, "version", lambda name: "2.8.0")

    def make(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return make


@pytest.fixture
def cluster(commands, tmp_path):
    """A cluster on which all is fine; keywords change what it prints."""
    profile = tmp_path / "profile"
    profile.mkdir()

    def make(config=CONFIG, partitions=PARTITIONS, text=PROFILE, sbatch="", sacct=NO_ACCOUNTING):
        commands(
            scontrol=f"cat <<'END'\n{config}END",
            sinfo=f"cat <<'END'\n{partitions}END",
            squeue="",
            sacct=sacct,
            sbatch=sbatch,
        )
        (profile / "config.yaml").write_text(text)
        return ("--profile", profile)

    return make


def lines(out, kind):
    return [line.removeprefix(kind).strip() for line in out.splitlines() if line.startswith(kind)]


def test_all_is_fine(cli, cluster, tiny_config):
    code, out, _ = cli("doctor", *cluster())
    assert code == 0, out
    assert not lines(out, "set")
    assert "normal allows 72 h, the longest job asks 8 h" in out
    assert "--mem=3000 --time=480" in out
    assert not list((tiny_config.parent / "results").glob(".probe*"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text": PROFILE.replace("checks: 20", "checks: 120")}, "before-status-checks: 100"),
        ({"config": CONFIG.replace("300 sec", "90 sec")}, "MinJobAge = 300 or for accounting"),
        ({"text": PROFILE.replace("squeue", "sacct")}, "slurm-status-command: squeue"),
        (
            {
                "text": PROFILE.replace("slurm-requeue: true\n", ""),
                "config": CONFIG.replace("JobRequeue              = 1", "JobRequeue = 0"),
            },
            "slurm-requeue: true",
        ),
        ({"partitions": PARTITIONS.replace("*", "")}, "one of: normal, urgent"),
        ({"partitions": PARTITIONS.replace("|up|3", "|down|3")}, "normal is down"),
        ({"partitions": PARTITIONS.replace("gpu:fake:2", "(null)")}, "gpu: 0 under set-resources"),
        # 4 slices of 8 hours are 32: of 3 hours, 11 slices, 10 of which cost a retry.
        (
            {"partitions": PARTITIONS.replace("3-00:00:00", "3:00:00")},
            'pretrain: {runtime: "3h"} and retries: 10',
        ),
        ({"sbatch": "echo 'Invalid account' >&2; exit 1"}, "refused"),
    ],
)
def test_what_is_to_set(cli, cluster, changed, words):
    code, out, _ = cli("doctor", *cluster(**changed))
    assert code == 1
    (told,) = lines(out, "set")
    assert words in told


def test_resources_of_a_profile_may_be_lists_as_snakemake_has_them(cli, cluster):
    text = PROFILE.replace("{pretrain: {gpu: 1}}", "['pretrain:gpu=1', 'pretrain:runtime=30m']")
    text += "default-resources: [\"slurm_partition='urgent'\", mem_mb=4000]\n"
    code, out, err = cli("doctor", *cluster(text=text))
    assert err == ""
    assert any("GPUs: partition urgent has no gres gpu" in line for line in lines(out, "set"))
    assert "--time=30 " in out and "--gpus=1 --partition=urgent" in out


@pytest.mark.parametrize(
    "wrong", ["default-resources: 4", "set-resources: [gpu]", "set-resources: {pretrain: 4}",
              "slurm-init-seconds-before-status-checks: soon"],
)  # fmt: skip
def test_a_profile_that_makes_no_sense_is_one_line(cli, cluster, wrong):
    code, _, err = cli("doctor", *cluster(text=f"{wrong}\n"))
    assert code == 2
    assert "not of the form that Snakemake takes" in err
    assert err.count("\n") == 1


def test_accounting_makes_a_short_memory_of_slurm_harmless(cli, cluster):
    options = cluster(config=CONFIG.replace("300 sec", "45 sec"), sacct="true")
    code, out, _ = cli("doctor", *options)
    assert code == 0
    assert "sacct, which answers" in out


def test_an_old_plugin_and_none(cli, cluster, monkeypatch):
    options = cluster()
    monkeypatch.setattr(doctor, "version", lambda name: "2.7.0")
    code, out, _ = cli("doctor", *options)
    assert (code, lines(out, "set")[0].split()[1]) == (1, "2.7.0")

    def absent(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", absent)
    code, out, _ = cli("doctor", *options)
    assert code == 1
    assert "pip install 'snakemake-executor-plugin-slurm>=2.7.1,<3'" in lines(out, "set")[0]


def test_a_slurm_that_does_not_answer(cli, cluster, commands):
    options = cluster()
    commands(scontrol="exit 1")
    code, out, _ = cli("doctor", *options)
    assert code == 2
    assert lines(out, "stop") == [
        "SLURM: slurmctld does not answer (scontrol show config); look on a login node"
    ]


def test_without_slurm_one_line_says_so(cli, commands):
    code, out, _ = cli("doctor")
    assert code == 0
    assert [line for line in out.splitlines() if "SLURM" in line] == [
        "note SLURM: none here (no sbatch on PATH), so none asked"
    ]


def test_a_probe_is_seen_by_a_job_or_not(cli, cluster, tiny_config):
    run_it = 'for word; do case "$word" in --wrap=*) sh -c "${word#--wrap=}" ;; esac; done'
    code, out, _ = cli("doctor", "--submit", *cluster(sbatch=run_it))
    assert code == 0, out
    assert "a job has seen" in out
    code, out, _ = cli("doctor", "--submit", *cluster(sbatch="exit 0"))
    assert code == 1
    assert "a folder that every node sees" in lines(out, "set")[0]
    assert not list((tiny_config.parent / "results").glob(".probe*"))


def test_a_full_disk(cli, commands, monkeypatch, tiny_config):
    (tiny_config.parent / "results/data/digits.safetensors").unlink()
    usage = type("Usage", (), {"free": 5e8})()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    code, out, _ = cli("doctor")
    assert code == 1
    assert "disk: 0 GB free, about 1.0 GB wanted" in lines(out, "set")[0]


def test_memory_of_gpus_and_what_they_multiply(cli, commands, monkeypatch):
    commands(**{"nvidia-smi": "echo 'Tesla V100, 32768 MiB, 7.0'; echo 'A100, 81920 MiB, 8.0'"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    _, out, _ = cli("doctor")
    assert "Tesla V100 (32768 MiB, no bfloat16), A100 (81920 MiB)" in out


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("3-00:00:00", 72),
        ("1:30:00", 1.5),
        ("30:00", 0.5),
        ("1-12", 36),
        ("infinite", float("inf")),
    ],
)
def test_time_limits(limit, expected):
    assert hours(limit) == expected
