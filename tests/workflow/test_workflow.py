"""The workflow as a user runs it, at a scale small enough for a test: plan, run, edit, kill."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "config", "profiles", "src", "workflow")
TINY = """\
name: tiny
description: Small enough for a test.
seeds: [0, 1]
seeds_per_job: all
training_threads: 1
run:
  dataset: {name: digits}
  views: digits
  backbone: {name: resnet8, width: 4}
  batch_size: 64
  epochs: 3
  collapse_floor: 0.0
  optimizer: {name: adam, lr: 8.0e-3, warmup_epochs: 1}
studies:
  falcon:
    rows: [untrained, falcon-c16, falcon-released-c4096]
    run: {method: {embedding: 8}}
    row: {untrained: {epochs: 0}}
  feature_augmentation:
    rows: [infonce-predictor, infonce-parallel-nn]
    run: {method: {projector_hidden: 8, embedding: 8, predictor_hidden: 8, queue: 64}}
theory:
  code_widths: [8, 16]
  code_count: 32
  assignment_samples: 4
  assignment_codes: 64
  assignment_starts: 1
  large_starts: 0
  betas: [1]
  width: 8
  codes: [4, 8]
  few_codes: [8, 16]
  starts: 1
  picture: 4
"""


RULES = {
    "Preparing data set": "prepare",
    "Pretraining": "pretrain",
    "Extracting features of": "extract",
    "Evaluating": "evaluate",
    "Collapse diagnostics of": "diagnose",
    "Tables, figures and claims of": "collect",
    "Minimising over free": "theory",
    "Notebook, page and PDF of the theory": "theory_report",
    "Notebook, page and PDF of": "report",
}
"""How the message of each rule begins, which is what a dry run prints."""


def checkout(folder: Path, origin: Path = ROOT) -> Path:
    """A copy of what the workflow needs, set to the tiny scale."""
    folder.mkdir(parents=True)
    for name in PARTS:
        source = origin / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    (folder / "config/scales/tiny.yaml").write_text(TINY)
    main = folder / "config/config.yaml"
    main.write_text(main.read_text().replace("scale: demo", "scale: tiny"))
    return folder


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=1200
    )


def finish(folder: Path) -> None:
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def planned(folder: Path) -> dict[str, set[str]]:
    """Rule -> what its planned jobs are about (a run or a study), from a dry run."""
    result = snakemake(folder, "-n")
    text = result.stdout + result.stderr
    assert result.returncode == 0, text[-4000:]
    jobs: dict[str, set[str]] = {}
    for message in re.findall(r"^Job \d+: (.*)$", text, re.MULTILINE):
        rule = next((RULES[start] for start in RULES if message.startswith(start)), message)
        jobs.setdefault(rule, set()).add(message.rsplit(" ", 1)[-1])
    return jobs


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished workflow, which the tests below edit and put back."""
    folder = checkout(tmp_path_factory.mktemp("workflow") / "checkout")
    plan = planned(folder)
    assert len(plan["pretrain"]) == 5
    assert plan["report"] == {"falcon", "feature_augmentation"}
    finish(folder)
    return folder


@pytest.fixture
def edit(finished):
    """Replace text in a file of the finished checkout; undone after the test."""
    before: dict[Path, tuple[str, os.stat_result]] = {}

    def change(name: str, old: str, new: str) -> None:
        path = finished / name
        before.setdefault(path, (path.read_text(), path.stat()))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    yield change
    for path, (text, stat) in before.items():
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_finished_run_plans_nothing_and_left_everything(finished):
    assert planned(finished) == {}
    for study in ("falcon", "feature_augmentation", "theory"):
        for kind in ("pdf", "html", "ipynb"):
            assert (finished / f"reports/tiny/{study}.{kind}").stat().st_size > 10_000
    assert (finished / "reports/tiny/index.html").stat().st_size > 500
    assert (finished / "results/tiny/verdict_gate.txt").read_text() == "10 of 10 seeds finished\n"
    # Checkpoints are gone once the results were used.
    assert not list(finished.glob("results/runs/*/*/resume/last.safetensors"))


def test_without_the_theory_no_rule_of_it_is_planned(tmp_path):
    folder = checkout(tmp_path / "checkout")
    main = folder / "config/config.yaml"
    main.write_text(main.read_text() + "theory: false\n")
    plan = planned(folder)
    assert "Index page" in plan and plan["report"] == {"falcon", "feature_augmentation"}
    assert not {"theory", "theory_report"} & set(plan)


def test_a_changed_falcon_loss_reruns_falcon_and_what_hangs_on_it(finished, edit):
    edit(
        "src/peregrine/methods/falcon.py",
        "(log_p.exp() * log_q).sum(dim=1)",
        "(log_q * log_p.exp()).sum(dim=1)",
    )
    plan = planned(finished)
    runs = {path.name for path in finished.glob("results/runs/*")}
    falcon = {name for name in runs if "-falcon-" in name}
    assert len(falcon) == 3 and len(runs) == 5
    for rule in ("pretrain", "extract", "evaluate", "diagnose"):
        assert plan[rule] == falcon, rule
    assert plan["collect"] == plan["report"] == {"falcon"}
    assert "theory" in plan  # it minimises the same loss
    assert "prepare" not in plan


def test_comments_docstrings_and_new_methods_rerun_nothing(finished, edit):
    edit("src/peregrine/methods/falcon.py", "Scalars `invariance`", "The scalars `invariance`")
    edit("src/peregrine/pretrain/loop.py", "import signal\n", "# a comment\nimport signal\n")
    source = finished / "src/peregrine/methods/falcon.py"
    new = finished / "src/peregrine/methods/falcon_two.py"
    new.write_text(source.read_text())
    edit(
        "src/peregrine/methods/registry.py",
        "METHODS: dict[str, str] = {\n",
        'METHODS: dict[str, str] = {\n    "falcon_two": "peregrine.methods.falcon_two:Falcon",\n',
    )
    assert planned(finished) == {}
    new.unlink()


def test_a_changed_claim_recollects_its_study_only(finished, edit):
    edit("config/studies/falcon.yaml", "title: FALCON", "title: About FALCON")
    plan = planned(finished)
    assert plan["collect"] == plan["report"] == {"falcon"}
    assert not {"prepare", "pretrain", "extract", "evaluate", "diagnose"} & set(plan)


@pytest.mark.parametrize("key", ["processes_per_run", "seeds_together"])
def test_the_number_of_processes_is_no_part_of_a_result(key, finished, edit):
    edit("config/scales/tiny.yaml", "seeds_per_job", f"{key}: 2\nseeds_per_job")
    assert planned(finished) == {}


def test_another_source_of_the_data_prepares_them_again(finished, edit):
    key = "results: results"
    edit("config/config.yaml", key, f"sources: {{digits: {{download: false}}}}\n{key}")
    assert planned(finished) == {}
    edit("config/config.yaml", "download: false", "accept_unverified: true")
    assert planned(finished)["prepare"] == {"digits"}


def test_a_part_of_the_data_is_another_run_on_the_same_file(finished, edit):
    edit("config/scales/tiny.yaml", "{name: digits}", "{name: digits, validation_per_class: 20}")
    plan = planned(finished)
    assert len(plan["pretrain"]) == 5
    assert "prepare" not in plan


def test_a_changed_limit_of_the_theory_is_judged_again_without_minimising(finished, edit):
    edit("config/theory.yaml", "at_most: 4}", "at_most: 3}")
    assert set(planned(finished)) == {"theory_report", "Index page"}


def test_adopted_metrics_complete_a_study_without_a_training(finished, tmp_path):
    bundled = tmp_path / "all.tar.xz"
    steps = ("bundle", str(bundled)), ("adopt", str(bundled))
    there = checkout(tmp_path / "there")
    for (step, path), folder in zip(steps, (finished, there), strict=True):
        command = [sys.executable, "-m", "peregrine", step, path]
        given = environment() | {"PYTHONPATH": str(folder / "src")}
        subprocess.run(command, cwd=folder, env=given, check=True, capture_output=True)
    plan = planned(there)
    assert not {"pretrain", "extract", "evaluate", "diagnose"} & set(plan)
    assert plan["collect"] == {"falcon", "feature_augmentation"}
    metrics = "results/tiny/falcon/metrics.csv"
    assert snakemake(there, "--cores", "1", metrics).returncode == 0
    assert (there / metrics).read_bytes() == (finished / metrics).read_bytes()


def test_a_replicate_that_comes_or_goes_collects_its_study_again(finished, tmp_path):
    folder, path = tmp_path / "checkout", str(tmp_path / "one.tar.xz")
    shutil.copytree(finished, folder, symlinks=True)
    run = min(folder.glob("results/runs/*-falcon-*")).name
    given = environment() | {"PYTHONPATH": "src"}
    for step in (["bundle", path, "--run", run], ["adopt", "--replicate", "again", path]):
        command = [sys.executable, "-m", "peregrine", *step]
        subprocess.run(command, cwd=folder, env=given, check=True, capture_output=True)
    plan = planned(folder)
    assert plan["collect"] == plan["report"] == {"falcon"}
    assert not {"prepare", "pretrain", "extract", "evaluate", "diagnose", "theory"} & set(plan)
    shutil.rmtree(folder / "results/replicates")
    assert planned(folder) == {}


def test_what_a_rerun_replaces_is_in_the_attic(finished, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder, symlinks=True)
    source = folder / "src/peregrine/diagnostics/diagnose.py"
    source.write_text(source.read_text() + "\n\nCHANGED = True\n")
    run = min(folder.glob("results/runs/*-falcon-*"))
    wanted = [
        f"results/runs/{run.name}/seed-{seed}/corrected/collapse-standard.json" for seed in (0, 1)
    ]
    before = {name: (folder / name).read_bytes() for name in wanted}
    assert snakemake(folder, "-n", *wanted).returncode == 0
    assert not (folder / "results/attic").exists()
    done = snakemake(folder, "--cores", "1", *wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"kept in results/attic/{run.name}/seed-0/1" in done.stderr
    for name in wanted:
        seed, _, rest = name.removeprefix(f"results/runs/{run.name}/").partition("/")
        kept = folder / "results/attic" / run.name / seed / "1"
        assert (kept / rest).read_bytes() == before[name] != (folder / name).read_bytes()
        assert (kept / "backbone.safetensors").samefile(
            folder / f"results/runs/{run.name}/{seed}/backbone.safetensors"
        )
    assert [path.name for path in folder.glob("results/attic/*")] == [run.name]


def test_a_user_error_is_one_clear_line(finished, edit):
    edit("config/config.yaml", "scale: tiny", "scale: tinny")
    result = snakemake(finished, "-n")
    assert result.returncode != 0
    assert "config/scales/tinny.yaml does not exist; there are:" in result.stdout + result.stderr


def test_an_override_that_the_steps_would_not_see_is_refused(finished):
    result = snakemake(finished, "-n", "--config", "results=elsewhere")
    assert result.returncode != 0
    assert "edit config/config.yaml" in result.stdout + result.stderr


def test_the_linter_has_nothing_to_say(finished):
    result = snakemake(finished, "--lint")
    assert result.returncode == 0, result.stdout + result.stderr


# Instead of the trainer: notes that it began and ended, and fails, so that nothing follows.
STUB = """\
#!/bin/sh
case "$*" in
  *"peregrine prepare"*) mkdir -p results/data
    echo data > results/data/digits.safetensors; echo data > results/data/digits.json ;;
  *"peregrine pretrain"*) echo + >> running; sleep 0.7; echo - >> running; exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("visible", "per_gpu", "options", "expected"),
    [
        ("0,1", "", (), 2),
        ("3", "2", (), 2),
        ("0,1", "", ("--resources", "gpu=1"), 1),
        ("", "", (), 5),  # no GPU: all 5 runs on 8 cores
    ],
)
def test_trainings_at_once(visible, per_gpu, options, expected, tmp_path):
    folder = checkout(tmp_path / "checkout")
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    surroundings = environment() | {
        "PATH": f"{stub.parent}{os.pathsep}{environment()['PATH']}",
        "CUDA_VISIBLE_DEVICES": visible,
        "PEREGRINE_JOBS_PER_GPU": per_gpu,
    }
    command = [sys.executable, "-m", "snakemake", "--cores", "8", "--until", "pretrain", *options]
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)
    lines = (folder / "running").read_text().split()
    assert lines.count("+") == 5, done.stderr[-3000:]
    running = [lines[: end + 1].count("+") - lines[:end].count("-") for end in range(len(lines))]
    assert max(running) == expected


VOLATILE = {"manifest.json", "timing.csv"}


def artefacts(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a run was killed."""
    kept = [*folder.glob("results/runs/*/seed-*/*"), *folder.glob("results/runs/*/seed-*/*/*")]
    kept += [*folder.glob("results/tiny/**/*"), *folder.glob("reports/tiny/*")]
    files = [p for p in kept if p.is_file() and p.name not in VOLATILE and "resume" not in p.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_five_kills_while_pretraining_change_no_byte(finished, tmp_path):
    """SIGKILL to the whole process group of the workflow, at random moments of pretraining."""
    folder = checkout(tmp_path / "killed", origin=finished)
    moments = random.Random(5)
    kills = 0
    while kills < 5:
        workflow = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", "--until", "pretrain"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            # The clock starts when a trainer is at work, so that the kill hits training.
            seen = attempts(folder)
            until = time.monotonic() + 60
            while attempts(folder) == seen and workflow.poll() is None:
                assert time.monotonic() < until, "no training within a minute"
                time.sleep(0.05)
            time.sleep(moments.uniform(0.0, 1.2))
            if workflow.poll() is not None:
                break  # everything is trained; fewer kills than planned are an error below
            kills += 1
        finally:
            if workflow.poll() is None:
                os.killpg(workflow.pid, signal.SIGKILL)
            workflow.wait()
        assert snakemake(folder, "--unlock").returncode == 0
    assert kills == 5
    finish(folder)
    assert artefacts(folder) == artefacts(finished)


def attempts(folder: Path) -> int:
    """How often trainers have started so far."""
    counts = folder.glob("results/runs/*/*/resume/attempts")
    return sum(int(path.read_text() or 0) for path in counts)
