"""From a results folder, built here file by file, to metrics, tables and claims."""

import json

import pytest
from small_world import PARTS, REPOSITORY, World

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.load import load
from peregrine.errors import UserError
from peregrine.reporting import evaluations
from peregrine.reporting.claims import judge
from peregrine.reporting.collect import collect, read_collected
from peregrine.reporting.records import Evidence, from_csv, read_runs


@pytest.fixture(autouse=True)
def code(monkeypatch):
    monkeypatch.setattr(fingerprint, "fingerprint", lambda step, method=None: "now")
    monkeypatch.setattr(fingerprint, "parts", lambda step, method=None: PARTS)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_metrics_are_one_line_a_number(world):
    lines = world.lines("metrics.csv")
    assert list(lines[0]) == [
        "study", "row", "label", "run", "seed", "reading", "protocol", "metric", "value",
    ]  # fmt: skip
    first = {
        line["metric"]: (line["reading"], line["protocol"], line["value"])
        for line in lines
        if (line["row"], line["seed"]) == ("small", "1")
    }
    assert first == {
        "linear/accuracy": ("corrected", "standard", "0.51"),
        "linear/converged": ("corrected", "standard", "1.0"),
        "few/accuracy": ("corrected", "standard", "0.31"),
        "few/accuracy_sd": ("corrected", "standard", "0.02"),
        "knn/accuracy": ("corrected", "standard", "0.41000000000000003"),
        "kmeans/ami": ("corrected", "standard", "0.3"),
        "kmeans/k": ("corrected", "standard", "10.0"),
        "collapse/features/rankme": ("corrected", "standard", "12.5"),
        "collapse/features/rankme_ceiling": ("corrected", "standard", "32.0"),
        "online_probe/accuracy": ("released", "online", "0.5"),
    }
    order = [(line["row"], line["seed"], line["reading"], line["metric"]) for line in lines]
    assert order == sorted(order, key=lambda x: (["small", "large"].index(x[0]), *x[1:]))


def test_a_complete_study(world):
    assert world.states("small") == [("finished", "")] * 3
    run = world.lines("runs.csv")[0]
    assert (run["epoch"], run["code"], run["device"], run["torch"]) == ("5", "now", "cpu", "2.0")
    assert len(run["data"]) == 12
    assert not {"wall_seconds", "attempts"} & set(run)
    large, huge = world.cell("large"), world.cell("huge")
    assert (large["mean"], large["sd"], large["seeds"], large["gain"]) == (
        "0.71",
        "0.01",
        "3",
        "0.2",
    )
    assert (large["published"], large["verdict"]) == ("0.9", "other set-up")
    assert (huge["run"], huge["published"], huge["verdict"]) == ("", "0.95", "not run")
    assert world.cell("small", "AMI")["remark"] == "not measured"
    assert world.cell("small", "online")["mean"] == "0.5"
    claims = json.loads((world.collect() / "claims.json").read_text())
    assert [(claim["id"], claim["verdict"]) for claim in claims] == [
        ("T1", "supported @mini"),
        ("T2", "not run @mini"),
    ]


def test_missing_incomplete_and_failed_seeds_are_told_apart(world):
    (world.folder("small", 0) / "outcome.json").unlink()
    world.drop("small", 1)
    world.drop("small", 2)
    world.outcome("small", 2, "nan")
    assert world.states("small") == [
        ("incomplete", "no outcome.json"),
        ("incomplete", "not evaluated: linear, knn, clustering, collapse"),
        ("nan", "nan early; not evaluated: linear, knn, clustering, collapse"),
    ]
    cell = world.cell("small")
    assert (cell["seeds"], cell["missing"], cell["failed"], cell["mean"]) == ("0", "2", "1", "")
    world.folder("large", 1).rename(world.folder("large", 1).with_name("elsewhere"))
    assert world.states("large")[1] == ("missing", "")
    cell = world.cell("large")
    assert (cell["seeds"], cell["missing"], cell["failed"], cell["mean"]) == ("2", "1", "0", "0.71")


def test_a_collapsed_seed_with_evaluations_is_used_and_named(world):
    world.ended("small", 2, "collapsed")
    assert world.states("small")[2] == ("collapsed", "collapsed early")
    cell = world.cell("small")
    assert (cell["seeds"], cell["failed"]) == ("3", "1")
    assert "1 of 3 seeds collapsed" in cell["remark"]
    assert world.cell("small", "online")["failed"] == "1"


def test_data_that_were_accepted_unverified_are_said(world):
    world.outcome("small", 2, "collapsed")
    for seed in range(3):
        manifest = {"accept_unverified": True, "unverified": ["test_batch.bin", "more.bin"]}
        world.manifest("small", seed, **manifest)
    world.ended("small", 2, "collapsed")
    said = "data not verified: test_batch.bin, more.bin"
    assert world.states("small") == [
        ("finished", said),
        ("finished", said),
        ("collapsed", f"collapsed early; {said}"),
    ]
    assert world.states("large") == [("finished", "")] * 3
    assert world.cell("small")["seeds"] == "3"


def test_a_half_evaluated_seed_gives_what_it_has(world):
    world.drop("small", 0, "collapse", "knn")
    assert world.states("small")[0] == ("incomplete", "not evaluated: knn, collapse")
    cell = world.cell("small")
    assert (cell["seeds"], cell["missing"], cell["remark"]) == ("3", "0", "")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"train": "abc", "test": "changed"}}, "data"),
        ({"accept_unverified": True}, "accept_unverified"),
        ({"code": "before", "code_parts": PARTS | {"peregrine.methods.falcon": "0"}}, "code"),
    ],
)
def test_seeds_that_differ_are_not_averaged(world, change, named):
    world.manifest("large", 1, **change)
    world.ended("large", 2, "collapsed")
    states = world.states("large")
    assert [status for status, _ in states] == ["mixed"] * 3
    assert states[0][1] == f"seeds differ in {named}"
    assert states[2][1].startswith("collapsed; seeds differ")
    cell = world.cell("large")
    assert (cell["verdict"], cell["mean"], cell["gain"], cell["failed"]) == ("mixed", "", "", "1")
    assert world.states("small") == [("finished", "")] * 3
    claim = json.loads((world.collect() / "claims.json").read_text())[0]
    assert claim["verdict"] != "supported @mini"
    assert "mixed seeds" in claim["reason"]


def test_older_code_is_used_and_its_modules_are_named(world):
    older = PARTS | {"peregrine.methods.falcon": "0", "peregrine.gone": "1"}
    for seed in range(3):
        world.manifest("large", seed, code="before", code_parts=older)
    assert (
        world.states("large")
        == [
            (
                "older code",
                "older code, these modules differ: peregrine.gone, peregrine.methods.falcon",
            )
        ]
        * 3
    )
    cell = world.cell("large")
    assert (cell["mean"], cell["code"], cell["remark"]) == (
        "0.71",
        "before",
        "older code, see runs.csv",
    )


def test_two_collects_give_the_same_bytes(world):
    def contents() -> dict[str, bytes]:
        folder = world.collect()
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    first = contents()
    world.manifest("small", 0, wall_seconds=99.0, attempts=7)  # volatile facts leave no trace
    assert contents() == first
    assert len(first) == 5 and "collected.json" in " ".join(first)


def test_a_changed_evaluation_is_refused(world):
    path = world.folder("small", 1) / "corrected" / "linear-standard.json"
    path.write_text(path.read_text().replace("0.51", "0.91"))
    with pytest.raises(UserError, match="linear-standard.json was changed"):
        world.collect()


def test_results_of_another_run_are_refused(world):
    world.manifest("small", 1, seed=2)
    with pytest.raises(UserError, match="belongs to run .*, seed 2"):
        world.collect()
    world.manifest("small", 1)
    path = world.folder("small", 1) / "corrected" / "knn-standard.json"
    good = files.read_json(path)
    for wrong in ({"run": "another"}, {"seed": 2}, {"kind": "linear"}, {"protocol": "other"}):
        files.write_json(path, good | wrong)
        with pytest.raises(UserError, match="knn-standard.json belongs to"):
            world.collect()
    files.write_json(path, {key: value for key, value in good.items() if key != "run"})
    with pytest.raises(UserError, match="knn-standard.json belongs to knn of run None"):
        world.collect()


def test_files_of_a_run_are_held_against_its_outcome(world):
    for name in ("history.csv", "backbone.safetensors"):
        path = world.folder("small", 1) / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(UserError, match=f"{name} is missing or was changed; rerun pretrain"):
            world.collect()
        path.write_bytes(before)
    world.collect()
    path.unlink()
    with pytest.raises(UserError, match="is missing or was changed; rerun pretrain"):
        world.collect()


def test_runs_are_read_for_the_gate(world):
    path = world.collect() / "runs.csv"
    assert [run.status for run in read_runs(path)] == ["finished"] * 6
    head, first, *_ = path.read_text().splitlines()
    for text, message in {
        head: "names no run",
        "": "the first line must be",
        "a,b\n1,2": "the first line must be",
        f"{head}\nx,y": "line 2 has not",
        f"{head}\n{first.replace('finished', 'perhaps')}": "line 2: there is no status 'perhaps'",
        f"{head}\n{first.replace(',0,', ',zero,')}": "line 2: invalid literal",
    }.items():
        path.write_text(text + "\n")
        with pytest.raises(UserError, match=message):
            read_runs(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_runs(path)


def test_an_unusable_outcome_is_refused(world):
    world.outcome("small", 0, status="perhaps")
    with pytest.raises(UserError, match="status 'perhaps'"):
        world.collect()
    files.write_json(world.folder("small", 0) / "outcome.json", {"status": "finished"})
    with pytest.raises(UserError, match="lacks a usable entry"):
        world.collect()


def test_the_reader_notices_a_changed_file(world):
    folder = world.collect()
    record = read_collected(folder)
    assert set(record["files"]) == {"metrics.csv", "runs.csv", "claims.json", "tables/main.csv"}
    assert (record["scale"], record["protocol"], record["seeds"]) == ("mini", "standard", [0, 1, 2])
    assert record["code"] == {"collect": "now", "pretrain": {"falcon": "now"}}
    path = folder / "tables" / "main.csv"
    path.write_text(path.read_text().replace("0.71", "0.81"))
    with pytest.raises(UserError, match="main.csv is missing or was changed"):
        read_collected(folder)


def test_a_table_that_is_gone_leaves_no_file(world):
    old = world.collect() / "tables" / "old.csv"
    old.write_text("table\n")
    world.collect()
    assert not old.exists()


def test_claims_follow_from_the_two_files_alone(world):
    folder, project = world.collect(), world.project
    again = from_csv(folder)
    evidence = Evidence(project.study("toy"), project.of("toy"), again, {}, "mini", "standard")
    told = json.loads((folder / "claims.json").read_text())
    assert [judge(claim, evidence) for claim in project.study("toy").claims] == told


def test_foreign_csv_files_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="the first line must be study,row"):
        from_csv(tmp_path)


@pytest.mark.parametrize("study", ["falcon", "feature_augmentation"])
def test_the_shipped_studies_collect_from_nothing(tmp_path, study):
    """Their tables and claims name rows and published cells that exist; all is 'not run'."""
    project = load(REPOSITORY / "config", scale="demo")
    folder = collect(project, study, tmp_path, REPOSITORY / "config")
    claims = json.loads((folder / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == [
        f"{'A' if study == 'falcon' else 'B'}{number}" for number in range(1, 8)
    ]
    assert {claim["verdict"] for claim in claims} == {"not run @demo"}
    assert all(claim["reason"] for claim in claims)
    assert {line.status for line in from_csv(folder).runs} == {"missing"}


def test_numbers_flags_and_nothing_else_are_metrics():
    nested = {"x": 1, "accuracy": 0.5, "text": "a", "none": None, "list": [1], "flag": False}
    assert dict(evaluations.numbers("m", nested)) == {"m/x": 1.0, "m/accuracy": 0.5, "m/flag": 0.0}


def test_a_study_collected_in_between_is_older_than_what_it_lacks(world):
    """Else Snakemake would take it for done; what was adopted is all that will come."""
    path = world.results / "mini" / "toy" / "collected.json"
    world.collect()
    assert path.stat().st_mtime > 1e9
    world.drop("small", 1, "knn")
    world.collect()
    assert path.stat().st_mtime == 1
    assert read_collected(path.parent)["study"] == "toy"
