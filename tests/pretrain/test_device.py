"""Devices by name and by lease, precision, and what the manifest says of them."""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata

import pytest
import torch

from peregrine.errors import UserError
from peregrine.pretrain import device
from peregrine.pretrain.device import autocast, circumstances, lease, pick_device, set_precision

TWO = {0: "0", 1: "1"}


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "mps:0", "cpu:0", "cuda:999"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError) as error:
        pick_device(name)
    assert f"'{name}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_is_that_of_the_run(precision, expected):
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == expected
    assert (x @ x).dtype == torch.float32


def test_circumstances_name_what_may_change_last_bits():
    facts = circumstances(torch.device("cpu"))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["device"].startswith("cpu ")
    assert {"python", "platform"} <= set(facts)
    for package in ("numpy", "scipy", "scikit-learn"):
        assert facts[package] == metadata.version(package)
    assert not {"cuda", "cudnn"} & set(facts)


def test_packages_that_only_some_runs_use_stand_there_when_used(monkeypatch):
    monkeypatch.delitem(device.sys.modules, "timm", raising=False)
    assert "timm" not in circumstances(torch.device("cpu"))
    monkeypatch.setitem(device.sys.modules, "timm", torch)
    assert circumstances(torch.device("cpu"))["timm"] == metadata.version("timm")


def test_emulated_bfloat16_is_told_in_one_line(monkeypatch, capsys):
    """The same switches stay untouched on the CPU."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.allow_tf32
    abilities = {"avx512_bf16": False, "avx512_f": True, "architecture": "x86_64"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    set_precision(torch.device("cpu"), "float32")
    assert capsys.readouterr().out == ""
    set_precision(torch.device("cpu"), "bfloat16")
    assert capsys.readouterr().out.count("\n") == 1
    abilities["amx_bf16"] = True
    set_precision(torch.device("cpu"), "bfloat16")
    assert capsys.readouterr().out == ""
    assert (flags.benchmark, flags.allow_tf32) == before


# Leases ------------------------------------------------------------------------------------------


def test_every_device_is_taken_once_before_any_twice(tmp_path):
    held = [lease(TWO, 2, 0, tmp_path) for _ in range(4)]
    assert [index for index, _ in held] == [0, 1, 0, 1]
    with pytest.raises(UserError, match="no GPU of 0, 1 became free in 0 s; .*PEREGRINE_GPU_WAIT"):
        lease(TWO, 2, 0, tmp_path)
    held[3][1].close()
    assert lease(TWO, 2, 0, tmp_path)[0] == 1


def test_only_the_devices_asked_for(tmp_path):
    first = lease({1: "GPU-8f/1"}, 1, 0, tmp_path)
    assert first[0] == 1
    with pytest.raises(UserError, match="GPU-8f/1"):
        lease({1: "GPU-8f/1"}, 1, 0, tmp_path)
    assert lease({0: "GPU-99", 1: "GPU-8f/1"}, 1, 0, tmp_path)[0] == 0


def test_a_lease_ends_with_its_process(tmp_path, capsys):
    """Killed, it has no time to give anything back; who waits is told so once, and goes on."""
    child = os.fork()
    if not child:
        _mine = lease({0: "0"}, 1, 0, tmp_path)
        (tmp_path / "taken").touch()
        time.sleep(60)
        os._exit(0)
    try:
        while not (tmp_path / "taken").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="became free in 0 s"):
            lease({0: "0"}, 1, 0, tmp_path)
        capsys.readouterr()
        assert lease(TWO, 1, 0, tmp_path)[0] == 1
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.6)
        began = time.monotonic()
        assert lease({0: "0"}, 1, 20, tmp_path)[0] == 0
        assert 0.6 <= time.monotonic() - began < 10
        assert capsys.readouterr().out == "waiting for a GPU: others train on 0\n"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """torch and the environment as on a machine with two GPUs; places taken by other processes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(device, "_held", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("PEREGRINE_GPU_WAIT", "0")
    for name in ("SLURM_JOB_ID", "PEREGRINE_JOBS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)
    return current


def test_a_process_keeps_the_device_it_got(two_gpus, monkeypatch, tmp_path):
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("auto") == pick_device("cuda:0") == torch.device("cuda", 0)
    assert set(two_gpus) == {0}
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["4.0"]
    first = device._held
    monkeypatch.setattr(device, "_held", {})  # another process
    assert pick_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setattr(device, "_held", {})  # a third one, while `first` still holds its own
    with pytest.raises(UserError, match="no GPU of 4 became free"):
        pick_device("cuda:0")
    monkeypatch.setenv("PEREGRINE_JOBS_PER_GPU", "2")
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")
    assert len(first) == 1


def test_processes_of_one_run_take_different_devices(two_gpus, monkeypatch):
    """Also where places are shared: the second never gets the first one's device."""
    monkeypatch.setenv("PEREGRINE_JOBS_PER_GPU", "2")
    held = []
    for number in (0, 1):
        assert pick_device("auto", among=(number, 2)) == torch.device("cuda", number)
        assert pick_device("cuda", among=(number, 2)) == torch.device("cuda", number)
        held.append(device._held)
        monkeypatch.setattr(device, "_held", {})  # another process
    with pytest.raises(UserError, match="torch sees 2 GPUs; start at most as many processes"):
        pick_device("auto", among=(2, 3))


def test_another_slurm_job_has_other_devices_under_the_same_names(two_gpus, monkeypatch, tmp_path):
    for job in ("", "17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setattr(device, "_held", {})
        assert pick_device("cuda:0") == torch.device("cuda", 0)
    folders = sorted(path.name for path in tmp_path.iterdir())
    user = f"peregrine-gpu-{os.getuid()}"
    assert folders == [user, f"{user}-slurm-17", f"{user}-slurm-18"]


def test_a_lock_folder_of_somebody_else_is_refused(two_gpus, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"peregrine-gpu-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="belongs to another user"):
        pick_device("auto")
    with pytest.raises(UserError, match="cannot be locked: No such file or directory; set TMPDIR"):
        lease(TWO, 1, 0, tmp_path / "missing")


PAGES = """
import resource, sys
from peregrine.pretrain.device import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
import numpy as np
np.ones(2**23)
before = faults()
for _ in range(4):
    np.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_not_asked_for_again():
    """64 MiB four times: all of its pages each time, or none of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMPY_MADVISE_HUGEPAGE": "0"}
    found = {
        how: int(subprocess.check_output([sys.executable, "-c", PAGES, how], env=environment))
        for how in ("given back", "kept")
    }
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert found["given back"] > 0.9 * pages
    assert found["kept"] < 0.1 * pages
