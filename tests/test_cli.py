"""The command line: the steps, one line for a user's error, no torch where none is due."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import typer
from safetensors.numpy import load_file

from peregrine.cli import app
from peregrine.config.load import load
from peregrine.pretrain.trainer import Trainer

COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.fixture
def runs(tiny_config):
    """Run ids by row, and the folder of results."""
    ids = {row: cell.id for row, cell in load(tiny_config).of("one").items()}
    return ids, tiny_config.parent / "results"


def in_one_line(answer, *words):
    code, _, err = answer
    assert code == 2
    assert err.startswith("peregrine: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


def test_all_steps_of_a_run(cli, runs):
    ids, results = runs
    run = ("--run", ids["first"], "--seed", 0, "--seed", 1)
    folders = [results / "runs" / ids["first"] / f"seed-{seed}" for seed in (0, 1)]
    code, out, _ = cli("pretrain", *run)
    assert code == 0
    for seed, folder in enumerate(folders):
        assert f"run {ids['first']}, seed {seed}: finished at epoch 2" in out
        assert (folder / "resume/last.safetensors").exists()

    # A refused extract keeps every checkpoint, of the seeds that were well too.
    backbone = folders[1] / "backbone.safetensors"
    whole = backbone.read_bytes()
    backbone.write_bytes(whole[:-1] + b"\1")
    in_one_line(cli("extract", *run), "seed-1/backbone.safetensors", "run pretrain again")
    assert all((folder / "resume/last.safetensors").exists() for folder in folders)
    backbone.write_bytes(whole)

    named = ("--run", "one/first", *run[2:])
    assert cli("extract", *named)[0] == 0
    assert not any((folder / "resume/last.safetensors").exists() for folder in folders)
    in_one_line(cli("evaluate", *run, "--device", "gpu"), "'gpu'")
    assert cli("evaluate", *named)[0] == 0
    assert cli("diagnose", *run)[0] == 0
    for folder in folders:
        read = {path.stem: json.loads(path.read_text()) for path in folder.glob("*/*.json")}
        kinds = ("linear", "knn", "clustering", "collapse")
        assert set(read) == {f"{kind}-standard" for kind in kinds}
        for record in read.values():
            facts = [record[key] for key in ("run", "status", "protocol")]
            assert facts == [ids["first"], "finished", "standard"]
        assert all(len(record) > 6 for record in read.values())
        # Images of one bright quadrant: the probe must see them, whatever the net learned.
        assert read["linear-standard"]["all"]["accuracy"] > 0.6
        spectrum = list(csv.DictReader((folder / "corrected/spectrum.csv").open()))
        assert [row["layer"] for row in spectrum] == ["features"] * 8 + ["embeddings"] * 8
        values = [float(row["value"]) for row in spectrum if row["layer"] == "features"]
        assert values == sorted(values, reverse=True)
    path = results / "first.tar.xz"
    assert f"{path}: 2 seeds, " in cli("bundle", path, *named[:2])[1]


def test_a_run_that_ends_in_nan_passes_through(cli, runs):
    ids, results = runs
    run = ("--run", ids["nan"], "--seed", 0)
    code, out, _ = cli("pretrain", *run)
    assert code == 0
    assert "nan at epoch 1" in out
    for step in ("extract", "evaluate", "diagnose"):
        assert cli(step, *run)[0] == 0
    folder = results / "runs" / ids["nan"] / "seed-0/corrected"
    for kind in ("linear", "knn", "clustering", "collapse"):
        record = json.loads((folder / f"{kind}-standard.json").read_text())
        assert record.pop("status") == "nan"
        record.pop("spectrum_sha256", None)
        record.pop("matrices_sha256", None)
        assert set(record) == {"kind", "run", "seed", "protocol", "provenance", "checksum"}
        assert record["kind"] == kind
    assert (folder / "spectrum.csv").read_text() == "layer,index,value\n"
    assert load_file(folder / "features.safetensors") == {}


def test_a_stopped_run_says_so_by_its_exit_code(cli, runs, monkeypatch):
    ids, results = runs
    real = Trainer.step

    def step(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    code, _, err = cli("pretrain", "--run", ids["first"], "--seed", 0, "--seed", 1)
    assert code == 75
    assert f"run {ids['first']}, seed 0: stopped by signal 15" in err
    folder = results / "runs" / ids["first"]
    assert not (folder / "seed-1").exists()
    assert [path.name for path in (folder / "seed-0").iterdir()] == ["resume"]
    monkeypatch.setattr(Trainer, "step", real)
    assert cli("pretrain", "--run", ids["first"], "--seed", 0)[0] == 0


def test_what_a_user_may_get_wrong(cli, runs, tiny_config):
    ids, results = runs
    run = ("--run", ids["first"], "--seed", 0)
    for step in ("pretrain", "extract"):
        in_one_line(cli(step, "--run", "nothing", "--seed", 0), "'nothing'", "scale tiny")
        in_one_line(cli(step, *run, "--scale", "papr"), "papr.yaml", "there are: tiny")
    in_one_line(cli("pretrain", *run, "--device", "gpu"), "'gpu'")
    in_one_line(cli("pretrain", "--run", ids["first"], "--seed", 77), "--seed 77", "scale tiny")
    for step in ("evaluate", "diagnose"):
        in_one_line(cli(step, "--run", "nothing", "--seed", 0), "'nothing'", "scale tiny")
        in_one_line(cli(step, *run, "--scale", "papr"), "papr.yaml", "there are: tiny")
    in_one_line(cli("prepare", "digts"), "'digts'", "digits")
    in_one_line(cli("extract", *run), "seed-0/outcome.json does not exist")
    nowhere = ("--config", tiny_config / "nowhere")
    in_one_line(cli("pretrain", *run, config=nowhere), "config.yaml does not exist")
    in_one_line(cli("prepare", "digits", config=nowhere), "config.yaml does not exist")
    gate = ("gate", results / "runs.csv", "--output", results / "gate")
    in_one_line(cli(*gate, config=()), "runs.csv does not exist")

    path = results / "data/digits.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    in_one_line(cli("pretrain", *run), "digits.safetensors", "run prepare again")
    path.write_bytes(whole[:100])
    in_one_line(cli("pretrain", *run), "digits.safetensors is damaged")
    path.unlink()
    in_one_line(cli("pretrain", *run), "digits.safetensors does not exist")
    path.with_suffix(".json").write_text("{}")
    in_one_line(cli("pretrain", *run), "digits.json is damaged")
    assert not (results / "runs").exists()

    study = tiny_config / "studies/one.yaml"
    study.write_text(study.read_text().replace("epochs: 2", "epoch: 2"))
    in_one_line(cli("pretrain", *run), "one.yaml", "'epoch'", "did you mean 'epochs'?")


def test_a_row_is_trained_by_its_name(cli, runs):
    ids, results = runs
    code, out, _ = cli("pretrain", "--run", "one/first", "--seed", 0)
    assert code == 0 and out.startswith(f"run {ids['first']}, seed 0: ")
    assert [path.name for path in (results / "runs").iterdir()] == [ids["first"]]


@pytest.mark.parametrize("step", ["pretrain", "extract", "evaluate", "robustness", "bundle"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one/frist", ("--run one/frist", "scale tiny", "study one", "did you mean 'first'?")),
        ("one/", ("--run one/", "there are: first, nan")),
        ("two/first", ("study 'two'", "one")),
        ("first", ("--run first", "with its study: one/first")),
        ("zzz", ("'zzz'", "2 runs of scale tiny", "status", "STUDY/ROW")),
    ],
)
def test_a_name_of_no_row_is_one_line(cli, runs, step, name, words):
    given = (runs[1] / "a.tar.xz",) if step == "bundle" else ("--seed", 0)
    in_one_line(cli(step, *given, "--run", name), *words)
    assert not (runs[1] / "runs").exists()


@pytest.mark.parametrize("more", [(), ("--seeds-together", 2)])
def test_a_seed_named_twice_is_refused_before_any_is_trained(cli, runs, more):
    ids, results = runs
    seeds = [word for number in (0, 1, 1) for word in ("--seed", number)]
    in_one_line(cli("pretrain", "--run", ids["first"], *seeds, *more), "--seed 1 is given twice")
    assert not (results / "runs").exists()


TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"MASTER_ADDR": None}, "without a valid MASTER_ADDR;"),
        ({"LOCAL_RANK": None, "LOCAL_WORLD_SIZE": None}, "a valid LOCAL_RANK, LOCAL_WORLD_SIZE;"),
        ({"RANK": "first"}, "without a valid RANK;"),
        ({"RANK": "", "WORLD_SIZE": "", "MASTER_PORT": "p"}, "RANK, WORLD_SIZE, MASTER_PORT;"),
    ],
)
def test_a_part_of_torchruns_variables_is_refused(cli, runs, monkeypatch, changed, named):
    run = ("--run", runs[0]["first"], "--seed", 0)
    for name, value in (TORCHRUN | changed).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    in_one_line(cli("pretrain", *run), named, "start it by torchrun, or unset RANK")


@pytest.mark.parametrize("given", [{"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_a_launcher_of_one_process_needs_no_more(cli, runs, monkeypatch, given):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, out, _ = cli("pretrain", "--run", runs[0]["first"], "--seed", 0, "--device", "cpu")
    assert (code, out.count("finished at epoch 2")) == (0, 1)


def test_a_checkpoint_of_another_run_is_one_line(cli, runs):
    ids, results = runs
    folder = results / "runs" / ids["first"]
    assert cli("pretrain", "--run", ids["first"], "--seed", 0)[0] == 0
    (folder / "seed-0").rename(folder / "seed-1")
    answer = cli("pretrain", "--run", ids["first"], "--seed", 1)
    in_one_line(answer, "last.safetensors", f"run {ids['first']}, seed 0", "remove it")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [(["finished"] * 2, 0), (["finished", "nan"], 1), (["collapsed"], 1), (["missing"], 1)],
)
def test_the_gate_lists_what_did_not_finish(cli, tmp_path, statuses, code):
    path, passed = tmp_path / "runs.csv", tmp_path / "gate.txt"
    columns = "row,label,run,seed,status,epoch,code,data,device,torch,detail,not_available"
    rows = [f"r{i},row {i},run{i},{i},{status},1,c,d,cpu,2,," for i, status in enumerate(statuses)]
    path.write_text("\n".join([columns, *rows]) + "\n")
    answer = cli("gate", path, "--output", passed, config=())
    assert answer[0] == code
    assert passed.exists() == (code == 0)
    for i, status in enumerate(statuses):
        assert (f"row {i} (run run{i}, seed {i}): {status}" in answer[1]) == (status != "finished")


@pytest.mark.parametrize("text", ["", "row\n", "\x00\xff", "row,label\na,b\n"])
def test_the_gate_refuses_what_is_no_list_of_runs(cli, tmp_path, text):
    path, passed = tmp_path / "runs.csv", tmp_path / "gate.txt"
    path.write_bytes(text.encode("latin-1"))
    in_one_line(cli("gate", path, "--output", passed, config=()), "runs.csv")
    assert not passed.exists()


def python(code, *arguments, root):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        cwd=root,
        capture_output=True,
        text=True,
    )


def test_the_module_runs_as_a_program(tmp_path, pytestconfig):
    done = subprocess.run(
        [sys.executable, "-m", "peregrine", "prepare", "digts", "--config", "config"],
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath / "src")},
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
    )
    in_one_line((done.returncode, done.stdout, done.stderr), "'digts'")
    assert done.stdout == ""


HELP = """
import sys
from peregrine.cli import app
for command in sys.argv[1:]:
    print("COMMAND", command)
    app([command, "--help"], standalone_mode=False)
loaded = {"torch", "numpy", "sklearn", "scipy", "pandas"} & set(sys.modules)
assert not loaded, f"loaded by --help: {loaded}"
"""


def test_help_of_every_command_is_quick(pytestconfig):
    assert {"prepare", "pretrain", "extract", "evaluate", "diagnose", "collect"} <= set(COMMANDS)
    done = python(HELP, *COMMANDS, root=pytestconfig.rootpath)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("COMMAND ")[1:]
    assert [text.split()[0] for text in texts] == COMMANDS
    assert all("Usage" in text and "--help" in text for text in texts)


TORCH_FREE = """
import importlib, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} imports torch"
from peregrine.config.fingerprint import fingerprint
from peregrine.config.load import load
project = load(Path("config"))
for run in project.runs().values():
    for step in ("prepare", "pretrain", "extract", "evaluate", "diagnose"):
        fingerprint(step, run.method["name"])
assert "torch" not in sys.modules, "planning imports torch"
"""


def test_planning_and_diagnosing_import_no_torch(pytestconfig):
    source = pytestconfig.rootpath / "src/peregrine"
    files = [source / "cli/look.py", source / "files.py", source / "data/prepare.py"]
    files += [path for name in ("config", "diagnostics") for path in (source / name).glob("*.py")]
    files += [source / f"evaluation/{name}.py" for name in ("evaluate", "linear", "knn")]
    names = [".".join(path.relative_to(source.parent).with_suffix("").parts) for path in files]
    done = python(TORCH_FREE, *sorted(names), root=pytestconfig.rootpath)
    assert done.returncode == 0, done.stderr
