"""What a newcomer reads on the screen of `snakemake`: rows by their names, mistakes in a line."""

import re

import pytest
from test_workflow import ROOT, checkout, snakemake

from peregrine.config.load import read_study


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("screen") / "checkout")


def test_messages_name_the_rows(fresh):
    done = snakemake(fresh, "-n")
    assert done.returncode == 0
    messages = re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    label = read_study(ROOT / "config/studies/falcon.yaml").rows["falcon-c16"].label
    start = f"Pretraining {label} (falcon), all seeds: digits-resnet8x4-falcon-"
    assert sum(message.startswith(start) for message in messages) == 1
    of_rows = ("Pretraining", "Extracting", "Evaluating", "Collapse")
    named = [message for message in messages if message.startswith(of_rows)]
    assert len(named) == 4 * 5
    assert all(re.search(r"\((falcon|feature_augmentation)\), all seeds: ", m) for m in named)


def test_a_job_a_seed_names_the_seed(fresh):
    scale = fresh / "config/scales/tiny.yaml"
    before = scale.read_text()
    scale.write_text(before.replace("seeds_per_job: all", "seeds_per_job: one"))
    done = snakemake(fresh, "-n")
    scale.write_text(before)
    assert "(falcon), seed 1: digits-resnet8x4-falcon-" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("scale=x", "config/scales/x.yaml does not exist; there are: "),
        ("scal=tiny", "config/config.yaml: unknown key 'scal'; did you mean 'scale'?"),
        ("scale=3", "config/config.yaml: scale: input should be a valid string"),
        ("studies=[]", "config/config.yaml: studies: "),
        ("results=there", "--config results=... has no effect; edit config/config.yaml"),
    ],
)
def test_a_wrong_override_is_a_line_and_plans_nothing(fresh, override, line):
    done = snakemake(fresh, "-n", "--config", override)
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert [each for each in text.splitlines() if each.startswith(line)]
    assert "Traceback" not in text and "Job 0" not in text
    assert not (fresh / "results").exists()


def test_an_unknown_data_set_is_refused_before_anything_runs(fresh):
    scale = fresh / "config/scales/tiny.yaml"
    before = scale.read_text()
    scale.write_text(before.replace("name: digits", "name: digit"))
    done = snakemake(fresh, "-n")
    scale.write_text(before)
    assert "data set 'digit' is unknown; did you mean 'digits'?" in done.stdout + done.stderr
    assert done.returncode == 1 and "Job 0" not in done.stdout + done.stderr
