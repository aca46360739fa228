"""Verdicts on the theory from lines made by hand, and the report of a tiny study."""

import json
from pathlib import Path

import pandas as pd
import pytest

from peregrine.config.models import Scale
from peregrine.config.theory import TheoryClaim, load_theory
from peregrine.errors import UserError
from peregrine.reporting.theory import judge, select, shown, theory_report
from peregrine.theory.study import theory

CONFIG = Path(__file__).parents[2] / "config"
TINY = {
    "code_widths": [8, 16],
    "code_count": 32,
    "assignment_samples": 4,
    "assignment_codes": 64,
    "assignment_starts": 1,
    "large_starts": 1,
    "betas": [1, 2],
    "width": 8,
    "codes": [4, 8],
    "few_codes": [8, 16],
    "starts": 1,
    "picture": 4,
}
LINES = pd.DataFrame(
    [("aligned", 4, "excess", 0.1), ("random-0", 4, "excess", 0.5), ("random-1", 8, "excess", 0.9)],
    columns=["start", "c", "metric", "value"],
)


def claim(*tests):
    given = [{"label": "x", "file": "embeddings", "metric": "excess"} | test for test in tests]
    return TheoryClaim(id="T1", statement="s", tests=given)


def test_lines_are_chosen_by_value_list_and_beginning():
    def values(**where):
        return select(LINES, where)["value"].tolist()

    assert values(start="aligned") == [0.1]
    assert values(start="random-*") == [0.5, 0.9]
    assert values(start=["aligned", "*-1"]) == [0.1]
    assert values(start=("aligned", "random-1"), c=8.0) == [0.9]


@pytest.mark.parametrize(
    ("tests", "verdict", "values"),
    [
        ([{"reduce": "max", "at_most": 0.9}], "supported", [0.9]),
        ([{"reduce": "max", "at_most": 0.89}], "contradicted", [0.9]),
        ([{"reduce": "mean", "at_least": 0.4, "at_most": 0.6}], "supported", [0.5]),
        ([{"reduce": "min", "at_least": 0.2}], "contradicted", [0.1]),
        ([{"reduce": "max", "at_most": 1}, {"reduce": "min", "at_least": 1}], "mixed", [0.9, 0.1]),
        ([{"reduce": "max", "at_most": 1, "where": {"c": 16}}], "not run", [None]),
        (
            [{"reduce": "max", "at_most": 1}, {"reduce": "max", "at_most": 1, "where": {"c": 16}}],
            "undecided",
            [0.9, None],
        ),
        (
            [{"reduce": "max", "at_most": 0}, {"reduce": "max", "at_most": 1, "where": {"c": 16}}],
            "contradicted",
            [0.9, None],
        ),
    ],
)
def test_verdicts(tests, verdict, values):
    found = judge(claim(*tests), {"embeddings": LINES})
    assert found["verdict"] == verdict
    assert [test["value"] for test in found["tests"]] == pytest.approx(values)


def test_a_metric_or_column_that_nothing_has_is_one_line():
    for wrong, words in (
        ({"metric": "exces"}, "metric 'exces'"),
        ({"where": {"n": 1}}, "column 'n'"),
    ):
        with pytest.raises(UserError, match=f"embeddings.csv has no {words}"):
            judge(claim({"reduce": "max", "at_most": 1} | wrong), {"embeddings": LINES})


def test_numbers_as_text():
    assert [shown(x) for x in (12.81763, 16384, -0.5, 2.2e-6, None, 1e-8, 0.0)] == [
        "12.818",
        "16384",
        "\u22120.5",
        "2.2e\u22126",
        "\u2013",
        "1e\u22128",
        "0",
    ]


def test_the_report_of_a_tiny_study(tmp_path):
    study = load_theory(CONFIG, Scale(name="t", description="", seeds=(0,), theory=TINY))
    folder, target = theory(study.sizes, tmp_path / "results"), tmp_path / "reports"
    theory_report(study, "t", folder, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert set(before) == {f"theory.{kind}" for kind in ("json", "pdf", "ipynb", "html")}
    assert before["theory.pdf"].startswith(b"%PDF")
    data = json.loads(before["theory.json"])
    verdicts = {each["id"]: each["verdict"] for each in data["claims"]}
    assert set(verdicts) == {f"T{k}" for k in range(1, 15)}
    assert verdicts["T2"] in ("not run", "contradicted")  # there are no 16384 codes here
    assert "tests judged again, all as reported" in before["theory.html"].decode()
    theory_report(study, "t", folder, target)
    assert before == {path.name: path.read_bytes() for path in target.iterdir()}

    # Limits that change are judged again; lines that change are refused.
    other = study.model_copy(update={"sizes": study.sizes.model_copy(update={"starts": 2})})
    with pytest.raises(UserError, match="of other sizes than configured now; run theory again"):
        theory_report(other, "t", folder, target)
    lines = folder / "codes.csv"
    lines.write_text(lines.read_text().replace("0", "1", 1))
    with pytest.raises(UserError, match=r"codes.csv is missing or was changed; run theory again"):
        theory_report(study, "t", folder, target)
