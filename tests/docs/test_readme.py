"""README.md's verdicts: those of the published claims, and how the table is written."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from peregrine.config.load import load

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools/readme.py")
readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme)


def table(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """(scales, claim -> its cells) of the table between the markers."""
    lines = text.partition(readme.START)[2].partition(readme.END)[0].splitlines()
    rows = [[c.strip() for c in x.strip("|").split(" | ")] for x in lines if x.startswith("| ")]
    head, *claims = rows
    return [scale.strip("`") for scale in head[1:]], {c[0].partition(":")[0]: c[1:] for c in claims}


def test_every_published_verdict_is_that_of_its_claims():
    scales, rows = table((ROOT / "README.md").read_text(encoding="utf-8"))
    studies = load(ROOT / "config", scale="demo").studies
    assert list(rows) == [claim.id for study in studies.values() for claim in study.claims]
    folder = ROOT / "reports/published"
    published = {path.parts[-3] for path in folder.glob("*/*/claims.json")} - {"demo"}
    assert scales[0] == "demo" and sorted(scales[1:]) == sorted(published)
    for place, scale in enumerate(scales[1:], start=1):
        known = {}
        for path in (folder / scale).glob("*/claims.json"):
            for claim in json.loads(path.read_text(encoding="utf-8")):
                known[claim["id"]] = claim["verdict"].removesuffix(f" @{scale}")
        said = {name: cells[place].partition(" (")[0] for name, cells in rows.items()}
        assert said == {name: known.get(name, "\u2013") for name in rows}


def test_every_undecided_published_verdict_says_what_it_could_have_shown():
    scales, rows = table((ROOT / "README.md").read_text(encoding="utf-8"))
    for cells in rows.values():
        assert all(" (" in cell for cell in cells[1:] if cell.startswith("undecided"))


def finding(verdict="undecided", detectable=0.012, **over) -> dict:
    given = {"kind": "difference", "metric": "linear/accuracy", "seeds": 3, "failed": 0}
    return given | {"verdict": verdict, "detectable": detectable} | over


def claim(*tests, verdict="undecided @cpu", name="A1", votes=None, interim=False) -> dict:
    given = {"id": name, "statement": "It helps.", "verdict": verdict, "tests": list(tests)}
    return given | {"votes": votes or {}, "interim": interim}


@pytest.mark.parametrize(
    ("tests", "cell", "below"),
    [
        ([finding()], "undecided (could show 1.2 points)", ""),
        (
            [finding(), finding("supported", 0.5), finding(detectable=0.1)],
            "undecided (could show 1.2 to 10 points)",  # 10, though as text it is less than 2
            "",
        ),
        (
            [finding(kind="equivalent", detectable=0.0204)],
            "undecided (could show equality within 2.0 points)",
            "",
        ),
        (
            [
                finding(kind="trend", metric="codes/ami", detectable=0.0212),
                finding(kind="trend", metric="few/accuracy", detectable=0.03),
                finding(kind="above", metric="collapse/features/feature_sd", detectable=0.1),
            ],
            "undecided (see below)",
            "0.021 per tenfold in AMI; 3.0 points per tenfold; 0.10 from the threshold in"
            " feature sd",
        ),
        ([finding(detectable=None, seeds=1)], "undecided (one seed)", ""),
        ([finding(detectable=None, failed=1, seeds=1)], "undecided (seeds failed)", ""),
        ([finding("supported"), finding("not run", None)], "undecided (not all of it run)", ""),
    ],
)
def test_an_undecided_claim_says_what_it_could_have_shown(tests, cell, below):
    assert readme.said(claim(*tests)) == (cell, below)


def test_a_decided_claim_is_its_verdict_and_a_mixed_one_says_of_how_many_tests():
    assert readme.said(claim(finding(), verdict="supported @cpu")) == ("supported", "")
    mixed = claim(verdict="mixed @cpu", votes={"supported": 2, "contradicted": 1, "not run": 4})
    assert readme.said(mixed) == ("mixed (2 for, 1 against, 0 open)", "")


def test_a_verdict_is_interim_while_planned_seeds_are_missing():
    assert readme.said(claim(verdict="supported @cpu", interim=True))[0] == "supported (interim)"
    assert readme.said(claim(verdict="not run @cpu", interim=True))[0] == "not run"
    cell = "undecided (interim, could show 1.2 points)"
    assert readme.said(claim(finding(), interim=True)) == (cell, "")
    short = claim(finding(), finding(metric="codes/ami"), interim=True)
    below = "1.2 points; 0.012 in AMI"
    assert readme.said(short) == ("undecided (interim, see below)", below)
    text = readme.explained(["| supported (interim) |"], [])
    assert text == "Interim: planned seeds are still missing."
    assert readme.explained(["| mixed | not run |"], []) == ""


def repository(root: Path, published: dict[str, list[str]]) -> Path:
    """A folder with a finished demo of made-up verdicts, and snapshots of some studies."""
    (root / "config").symlink_to(ROOT / "config")
    project = load(root / "config", scale="demo")
    folders = [(root / "results/demo", "demo", list(project.studies))]
    folders += [
        (root / "reports/published" / scale, scale, studies) for scale, studies in published.items()
    ]
    for folder, scale, studies in folders:
        for study in studies:
            (folder / study).mkdir(parents=True)
            given = [
                claim(finding(), verdict=f"undecided @{scale}", name=each.id)
                for each in project.studies[study].claims
            ]
            (folder / study / "claims.json").write_text(json.dumps(given))
            with (folder / study / "runs.csv").open("w", newline="") as stream:
                lines = csv.writer(stream)
                lines.writerow(("row", "run", "epoch", "status"))
                for row, run, epoch in (("u", "0", 0), ("t", f"1 of {study}", 10)):
                    lines.writerows([(row, run, epoch, "finished")] * 3)
    (root / "reports/demo").mkdir(parents=True)
    theory = {"claims": [{"id": "T1", "verdict": "supported"}, {"id": "T2", "verdict": "mixed"}]}
    (root / "reports/demo/theory.json").write_text(json.dumps(theory))
    (root / "README.md").write_text(f"before\n{readme.START}old\n{readme.END}after\n")
    return root


def test_the_table_has_a_column_for_each_scale_that_is_published(tmp_path):
    root = repository(tmp_path, {"paper": ["feature_augmentation"], "cpu": ["falcon"]})
    readme.main([], root)
    text = (root / "README.md").read_text()
    assert text.startswith(f"before\n{readme.START}\n- `demo`: 3 rows with 3 seeds each: 6 ")
    assert text.endswith(f"\n{readme.END}after\n")
    assert "6 trainings and 3 untrained nets." in text  # the untrained net is one of both studies
    cpu = "- `cpu`: [falcon](reports/published/cpu/falcon.pdf), 2 rows \u00d7 3 seeds: all finished"
    assert f"\n{cpu}.\n" in text
    scales, rows = table(text)
    assert scales == ["demo", "cpu", "paper"]
    shown = "undecided (could show 1.2 points)"
    assert rows["A1"] == ["undecided", shown, "\u2013"]
    assert rows["B7"] == ["undecided", "\u2013", shown]
    assert "the smallest true effect that they would have found with 80% power," in text
    assert "`make published`" in text and "supported T1; mixed T2." in text
    readme.main(["--check"], root)
    path = root / "reports/published/cpu/falcon/claims.json"
    path.write_text(path.read_text().replace("undecided @cpu", "mixed @cpu", 1))
    with pytest.raises(SystemExit, match="run `make readme`"):
        readme.main(["--check"], root)


def test_without_snapshots_only_the_demo_has_a_column(tmp_path):
    root = repository(tmp_path, {"demo": ["falcon"]})  # the demo's column is a fresh one's
    readme.main([], root)
    scales, rows = table((root / "README.md").read_text())
    assert scales == ["demo"] and set(map(tuple, rows.values())) == {("undecided",)}


def test_without_a_finished_demo_it_is_a_line(tmp_path):
    root = repository(tmp_path, {})
    (root / "results/demo/falcon/claims.json").unlink()
    with pytest.raises(SystemExit, match="no finished demo; run `make demo` first"):
        readme.main([], root)
    assert "old" in (root / "README.md").read_text()


@pytest.mark.parametrize("lacks", ["votes", "interim"])
def test_a_snapshot_of_older_code_is_one_line(tmp_path, lacks):
    path = tmp_path / "cpu" / "toy" / "claims.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([claim()]))
    assert readme.published(tmp_path, ["toy"]) == {"cpu": {"toy": [claim()]}}
    path.write_text(json.dumps([{k: v for k, v in claim().items() if k != lacks}]))
    with pytest.raises(SystemExit) as stopped:
        readme.published(tmp_path, ["toy"])
    assert stopped.value.code == f"{path}: of older code; run `make published`"
