"""Disks that are full, read-only or damaged, and two workflows at once: one line, or healed.

Beside what tests/test_files.py (writes), tests/pretrain/test_resume.py (checkpoints, a disk that
fills up while a run trains), tests/data/test_raw.py (raw files) and
tests/evaluation/test_features.py (weights) hold.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from peregrine import files
from peregrine.config.load import load
from peregrine.data import prepare as data
from peregrine.data.prepare import prepare
from peregrine.errors import UserError
from peregrine.places import own_folder
from peregrine.pretrain.loop import pretrain

SRC = Path(__file__).parents[2] / "src"
CPU = torch.device("cpu")


def in_a_process(code: str, *arguments: object, before=None) -> subprocess.CompletedProcess:
    """Code after which a UserError ends as it does on the command line: one line, code 2."""
    whole = (
        "import sys\nfrom pathlib import Path\nfrom peregrine.errors import UserError\n"
        "try:\n    " + "\n    ".join(code.strip().splitlines()) + "\n"
        "except UserError as error:\n    print(error, file=sys.stderr)\n    sys.exit(2)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", whole, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        preexec_fn=before,
    )


def no_file_above(size: int):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else it ends the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


WRITE = """
import numpy as np
from peregrine.files import write_tensors
write_tensors(Path(sys.argv[1]), {"a": np.zeros(100_000)})
"""


def test_a_file_that_the_system_cuts_off_leaves_the_old_one(tmp_path):
    """A real short write, by the kernel: the first part is written, then it refuses."""
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"a": np.ones(3)})
    before = path.read_bytes()
    done = in_a_process(WRITE, path, before=no_file_above(300_000))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{path} cannot be written: File too large" in done.stderr
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert in_a_process(WRITE, path).returncode == 0
    assert files.read_tensors(path)[0]["a"].shape == (100_000,)


def mounted(folder: Path, *options: str) -> bool:
    """Whether a small file system of its own could be mounted, which takes root."""
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def disk(tmp_path):
    """`disk(options)` is a file system of 1 MB, where the machine lets one be mounted."""
    folders = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk-{len(folders)}"
        folder.mkdir()
        if not mounted(folder, "-o", options):
            pytest.skip("nothing can be mounted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(disk):
    folder = disk("size=1m")
    path = folder / "a.safetensors"
    files.write_tensors(path, {"a": np.ones(60_000)})
    before = path.read_bytes()
    with pytest.raises(UserError, match="No space left on device; free some space, then run the"):
        files.write_tensors(path, {"a": np.zeros(80_000)})  # old and new do not fit together
    assert path.read_bytes() == before
    assert [each.name for each in folder.iterdir()] == [path.name]


def test_a_read_only_disk(disk, tiny_run, tiny_data):
    folder = disk("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(UserError, match="cannot be written: Read-only file system; choose a fold"):
        files.write_text(folder / "a.txt", "text")
    with pytest.raises(UserError, match="lock cannot be opened: Read-only file system"):
        pretrain(tiny_run(epochs=1), 0, tiny_data, folder / "seed-0", CPU)


CUTS = {
    "cut": lambda data: data[: len(data) * 2 // 3],
    "a flipped bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "zeros at the end": lambda data: data[:-512] + bytes(512),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", CUTS)
def test_a_damaged_data_set_is_named_and_prepared_again(damage, tmp_path):
    path = prepare("digits", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(CUTS[damage](whole))
    with pytest.raises(UserError, match="digits.safetensors") as error:
        data.load(path)
    assert "delete it and" in str(error.value)
    path.unlink()
    prepare("digits", tmp_path)
    assert path.read_bytes() == whole
    data.load(path)


def test_damaged_features_are_named_and_extracted_again(cli, tiny_config, tmp_path):
    (run,) = (run for run, of in load(tiny_config).runs().items() if of.optimizer.lr < 1)
    which = ("--run", run, "--seed", "0")
    for step in ("pretrain", "extract"):
        assert cli(step, *which)[0] == 0
    path = own_folder(tmp_path / "results", run, 0) / "corrected" / "features.safetensors"
    whole = path.read_bytes()
    for damage in CUTS.values():
        path.write_bytes(damage(whole))
        for step in ("evaluate", "diagnose"):
            code, _, said = cli(step, *which)
            assert (code, said.count("\n")) == (2, 1)
            assert str(path) in said and "delete it and rerun" in said
    path.unlink()
    assert cli("extract", *which)[0] == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("missing", ["outcome.json", "backbone.safetensors", "history.csv"])
def test_a_run_folder_with_a_part_missing_is_made_whole_by_the_same_command(
    missing, tiny_run, tiny_data, tmp_path
):
    run = tiny_run(epochs=1)
    pretrain(run, 0, tiny_data, tmp_path, CPU)
    names = [path for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".csv"]
    before = {path: path.read_bytes() for path in names if path.name != "manifest.json"}
    (tmp_path / missing).unlink()
    pretrain(run, 0, tiny_data, tmp_path, CPU)
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / missing).is_file()


def test_a_second_workflow_on_the_same_folder_is_refused(tmp_path):
    """By Snakemake's own lock, at once, and the first one goes on."""
    wait = "for i in $(seq 600); do test -e go && break; sleep 0.1; done"
    rule = f'rule a:\n    output: "done"\n    shell: "touch began; {wait}; touch {{output}}"\n'
    (tmp_path / "Snakefile").write_text(rule)
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / "began").exists() and first.poll() is None:
            time.sleep(0.05)
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        said = second.stdout + second.stderr
        assert second.returncode != 0
        assert "cannot be locked" in said, said
        assert not (tmp_path / "done").exists()
    finally:
        (tmp_path / "go").touch()
        assert first.wait() == 0
    assert (tmp_path / "done").exists()
