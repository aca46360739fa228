"""What a user or a machine may get wrong: one line, exit code 2, and nothing that stood there lost.

Each case names what is broken, the command that meets it, and what the line must say.
"""

import ctypes
import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from peregrine.config.load import load
from peregrine.errors import out_of_memory
from peregrine.reporting.published import Published

FIRST = ("--run", "{first}", "--seed", "0")
SECOND = ("--run", "{first}", "--seed", "1")
VOLATILE = ("lock", "attempts")


@pytest.fixture
def world(tiny_config, cli):
    """Seed 0 of the first row is trained and evaluated, and the study is collected."""
    (tiny_config / "published").mkdir()
    (tiny_config / "published/one.csv").write_text(",".join(Published._fields) + "\n")
    return World(tiny_config, cli)


class World:
    def __init__(self, config: Path, cli: Callable) -> None:
        self.config, self.results = config, config.parent / "results"
        self.cli = cli
        self.first = load(config).of("one")["first"].id
        self.seed = self.results / "runs" / self.first / "seed-0"

    def call(self, *words):
        return self.cli(*(str(word).format(first=self.first) for word in words))

    def done(self, *steps):
        """The steps of seed 0, then collect; all must work."""
        for step in steps:
            words = ("one",) if step == "collect" else FIRST
            answer = self.call(step, *words)
            assert answer[0] == 0, answer

    def refused(self, *command, says=()):
        """The command must end in one line that holds `says`, and change no file."""
        before = self.content()
        code, _, err = self.call(*command)
        assert code == 2, err
        assert err.startswith("peregrine: error: ") and err.count("\n") == 1, err
        assert "Traceback" not in err
        for word in says:
            assert word in err
        assert self.content() == before
        assert not list(self.results.rglob(".tmp-*"))

    def content(self) -> dict[Path, bytes]:
        files = [path for path in self.results.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files if path.name not in VOLATILE}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.config / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    def cut(self, path: Path, length: int) -> None:
        path.write_bytes(path.read_bytes()[:length])


@dataclass(frozen=True)
class Case:
    """`broken` is (file of the configuration, old, new)."""

    command: tuple[str, ...]
    says: tuple[str, ...]
    broken: tuple[str, str, str] | None = None


STUDY = "studies/one.yaml"
CONFIGURATION = {
    "unknown key": Case(
        ("pretrain", *FIRST), ("one.yaml", "'epoch'", "did you mean 'epochs'?"),
        (STUDY, "epochs: 2", "epoch: 2"),
    ),
    "unknown option of a method": Case(
        ("pretrain", *FIRST), ("'code'", "did you mean 'codes'?"), (STUDY, "codes:", "code:")
    ),
    "unknown method": Case(
        ("pretrain", *FIRST), ("'flacon'", "did you mean 'falcon'?"),
        (STUDY, "name: falcon", "name: flacon"),
    ),
    "value out of range": Case(
        ("status",), ("one.yaml", "batch_size", "greater than or equal to 2"),
        (STUDY, "batch_size: 24", "batch_size: 1"),
    ),
    "no YAML": Case(("status",), ("config.yaml: line 3",), ("config.yaml", "scale: tiny", "{")),
    "key twice": Case(
        ("status",), ("config.yaml", "'scale' stands twice"),
        ("config.yaml", "scale: tiny", "scale: tiny\nscale: tiny"),
    ),
    "unknown protocol": Case(
        ("status",), ("tiny.yaml", "protocol 'strict'", "protocols.yaml"),
        ("scales/tiny.yaml", "name: tiny", "name: tiny\nprotocol: strict"),
    ),
    "unknown data set": Case(("prepare", "digts"), ("'digts'", "did you mean 'digits'?")),
    "unknown scale": Case(
        ("pretrain", *FIRST, "--scale", "papr"), ("papr.yaml does not exist", "there are: tiny")
    ),
    "unknown study": Case(("collect", "falcn"), ("'falcn'", "scale tiny: one")),
    "unknown study of status": Case(("status", "--study", "falcn"), ("'falcn'", "one")),
    "unknown run": Case(("evaluate", "--run", "r", "--seed", "0"), ("'r'", "scale tiny")),
    "unknown seed": Case(("evaluate", "--run", "{first}", "--seed", "7"), ("--seed 7", "(0, 1)")),
    "unknown device": Case(("pretrain", *FIRST, "--device", "gpu"), ("'gpu'", "cuda:N")),
    "no such command": Case(("pretrian",), ("'pretrian'", "'pretrain'", "-h")),
    "no such option": Case(
        ("evaluate", *FIRST, "--sede", "1"), ("--sede", "--seed", "evaluate -h")
    ),
    "seed that is no number": Case(
        ("pretrain", "--run", "r", "--seed", "a"), ("--seed", "integer", "pretrain -h")
    ),
    "missing option": Case(("pretrain", "--seed", "0"), ("--run", "pretrain -h")),
    "missing argument": Case(("collect",), ("study", "collect -h")),
    "too early": Case(("extract", *FIRST), ("seed-0/outcome.json does not exist", "run the step")),
    "report too early": Case(("report", "one"), ("collected.json does not exist",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATION)
def test_input(world, name):
    case = CONFIGURATION[name]
    if case.broken:
        world.edit(*case.broken)
    world.refused(*case.command, says=case.says)


def test_prepared_data(world):
    data = world.results / "data/digits.safetensors"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + b"\1")
    world.refused("pretrain", *FIRST, says=("digits.safetensors", "checksum", "run prepare again"))
    data.write_bytes(whole[: len(whole) // 2])
    world.refused("pretrain", *FIRST, says=("digits.safetensors is damaged", "delete it"))
    data.write_bytes(b"")
    world.refused("pretrain", *FIRST, says=("digits.safetensors is damaged", "delete it"))


def test_checkpoints_weights_and_features(world):
    world.done("pretrain")
    last = world.seed / "resume/last.safetensors"
    whole = last.read_bytes()
    (world.seed.parent / "seed-1/resume").mkdir(parents=True)
    other = world.seed.parent / "seed-1/resume/last.safetensors"
    other.write_bytes(whole)
    world.refused("pretrain", *SECOND, says=("last.safetensors", "seed 0", "remove it"))
    other.write_bytes(whole[:200])
    world.refused("pretrain", *SECOND, says=("seed-1/resume/last.safetensors is damaged",))

    backbone = world.seed / "backbone.safetensors"
    kept = backbone.read_bytes()
    world.cut(backbone, 300)
    world.refused("extract", *FIRST, says=("backbone.safetensors", "run pretrain again"))
    backbone.write_bytes(kept)
    world.done("extract")
    features = world.seed / "corrected/features.safetensors"
    world.cut(features, 300)
    for step in ("evaluate", "diagnose"):
        world.refused(step, *FIRST, says=("features.safetensors is damaged", "rerun its step"))
    outcome = world.seed / "outcome.json"
    outcome.write_text(outcome.read_text().replace("finished", "collapsed"))
    world.refused("collect", "one", says=("outcome.json was changed", "rerun its step"))


@contextmanager
def small_files(size: int):
    """No file may grow beyond `size` bytes, as on a full disk but on any machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_that_cannot_grow(world):
    with small_files(2000):
        world.refused("prepare", "digits", says=("digits.safetensors cannot be written", "large"))
        world.refused("pretrain", *FIRST, says=("last.safetensors cannot be written",))
    world.done("pretrain", "extract", "evaluate", "diagnose", "collect")
    with small_files(800):
        world.refused("collect", "one", says=("metrics.csv cannot be written",))
        world.refused("pretrain", *SECOND, says=("last.safetensors cannot be written",))
    world.done("collect")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB under results/, before anything is written there."""
    place = tmp_path / "results"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"this machine may not mount a small disk: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(small_disk, world):
    """Nothing is lost while it is full, and the same command works once it is not."""
    full = ("No space left on device", "free some space", "same command")
    world.done("pretrain", "extract", "evaluate", "diagnose", "collect")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    world.refused("prepare", "digits", says=("digits.safetensors", *full))
    world.refused("pretrain", *SECOND, says=("seed-1", *full))
    world.refused("evaluate", *FIRST, says=("linear-standard.json", *full))
    world.refused("collect", "one", says=("metrics.csv", *full))
    filler.unlink()
    assert world.call("pretrain", *SECOND)[0] == 0
    world.done("evaluate", "collect")


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


@contextmanager
def without_privileges():
    """Permissions count, also for root: Linux's right to override them is put aside."""
    if os.geteuid():
        yield
        return
    if not hasattr(ctypes.CDLL(None), "capset"):
        pytest.skip("root ignores permissions here")
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()  # two of (effective, ...)
    assert libc.capget(ctypes.byref(header), sets) == 0
    effective = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(ctypes.byref(header), sets) == 0


@contextmanager
def forbidden(path: Path, mode: int):
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with without_privileges():
            yield
    finally:
        path.chmod(before)


def refused_behind(world, path, mode, *command, says):
    """`World.refused`, with the look at what stands there outside of the permissions."""
    before = world.content()
    with forbidden(path, mode):
        code, _, err = world.call(*command)
    assert (code, err.count("\n")) == (2, 1), err
    for word in says:
        assert word in err
    assert world.content() == before


def test_missing_permissions(world):
    world.done("pretrain", "extract", "evaluate", "diagnose", "collect")
    denied = ("Permission denied", "give yourself permission")
    data = world.results / "data/digits.safetensors"
    unread = ("cannot be read", *denied)
    refused_behind(world, data, 0, "pretrain", *SECOND, says=("digits.safetensors", *unread))
    outcome = world.seed / "outcome.json"
    refused_behind(world, outcome, 0, "evaluate", *FIRST, says=("outcome.json", *unread))
    features = world.seed / "corrected/features.safetensors"
    refused_behind(world, features, 0, "diagnose", *FIRST, says=("features.safetensors", *unread))
    refused_behind(world, world.seed, 0, "collect", "one", says=("seed-0", *denied))

    refused_behind(world, world.seed.parent, 0o500, "pretrain", *SECOND, says=("seed-1", denied[0]))
    unwritten = ("cannot be written", *denied)
    one = world.results / "tiny/one"
    refused_behind(world, one, 0o500, "collect", "one", says=("metrics.csv", *unwritten))
    place = world.results / "data"
    refused_behind(world, place, 0o500, "prepare", "digits", says=("digits", *unwritten))
    world.done("evaluate", "collect")


def test_status_goes_on_where_a_file_may_not_be_read(world):
    world.done("pretrain")
    with forbidden(world.seed / "outcome.json", 0):
        code, out, _ = world.call("status")
    assert code == 0
    assert "damaged: one, first, seed 0:" in out and "Permission denied" in out


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_bug(error, known):
    assert out_of_memory(error) is known
