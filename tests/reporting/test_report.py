"""Reports: same bytes twice, nothing loaded from elsewhere, and a notebook that really checks."""

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pikepdf
import pytest

from peregrine import files
from peregrine.config.load import resolve
from peregrine.errors import UserError
from peregrine.reporting.document import document, prose, read_study
from peregrine.reporting.report import index, report
from peregrine.reporting.stands_in import stands_in

KINDS = ("html", "ipynb", "json", "pdf")


@dataclass
class Copy:
    """A collected world that a test may spoil."""

    world: object
    results: Path
    reports: Path

    @property
    def folder(self) -> Path:
        return self.results / "paper" / "toy"

    def edit(self, name: str, change, *, sums: bool) -> None:
        """Change a collected file; `sums`: and make collected.json agree, as a forger would."""
        path = self.folder / name
        path.write_text(change(path.read_text()))
        if sums:
            record = files.read_json(self.folder / "collected.json")
            record["files"][name] = files.sha256(path)
            files.write_json(self.folder / "collected.json", record)

    def report(self) -> dict[str, bytes]:
        report(self.world.project, "toy", self.results, self.reports, self.world.config)
        return {kind: (self.reports / "paper" / f"toy.{kind}").read_bytes() for kind in KINDS}


@pytest.fixture
def copy(collected, tmp_path):
    shutil.copytree(collected.results / "paper", tmp_path / "results" / "paper")
    return Copy(collected, tmp_path / "results", tmp_path / "reports")


@pytest.fixture(scope="module")
def made(collected):
    """The four files of a report."""
    report(collected.project, "toy", collected.results, collected.reports, collected.config)
    return {kind: (collected.reports / "paper" / f"toy.{kind}").read_bytes() for kind in KINDS}


@pytest.fixture(scope="module")
def printed(made):
    return json.loads(made["json"])["printed"]


def cell_of(printed, table: int, row: str, column: str) -> dict:
    table = printed["tables"][table]
    [line] = [line for line in table["rows"] if line["label"] == row]
    return line["cells"][table["columns"].index(column)]


def test_the_pdf_keeps_the_tags_that_screen_readers_need_and_packs_them(made):
    with pikepdf.open(io.BytesIO(made["pdf"])) as pdf:
        assert pdf.Root.MarkInfo.Marked
        [document] = pdf.Root.StructTreeRoot.K
        assert document.S == "/Document" and len(document.K) > 10
        packed = [each for each in pdf.objects if isinstance(each, pikepdf.Dictionary)]
        assert len(packed) > made["pdf"].count(b" obj")


def test_a_second_report_elsewhere_has_the_same_bytes(made, copy):
    again = copy.report()
    assert [kind for kind in KINDS if again[kind] != made[kind]] == []
    assert sorted(path.name for path in (copy.reports / "paper").iterdir()) == sorted(
        f"toy.{kind}" for kind in KINDS
    )


def test_nothing_volatile_or_local_is_in_the_notebook(made, collected):
    text = made["ipynb"].decode()
    assert str(collected.results) not in text and "/tmp" not in text
    words = re.sub(r'"image/png": "[^"]*"', "", text)  # where chance may spell anything
    assert not re.search(r"papermill|iopub|start_time|0x[0-9a-f]{6,}", words)
    assert [c["id"] for c in json.loads(text)["cells"]][:2] == ["cell-00", "cell-01"]


def test_the_page_loads_nothing_from_elsewhere(made, collected):
    index(collected.project, collected.results, collected.reports)
    pages = [made["html"].decode(), (collected.reports / "paper" / "index.html").read_text()]
    for page in pages:
        assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", page)
        sources = re.findall(r'\bsrc="([^"]{0,30})', page)
        assert all(source.startswith("data:") for source in sources)
    figures = [figure.id for figure in collected.project.study("toy").figures]
    assert pages[0].count("data:image/png;base64,") == len(figures) - 1  # without "beyond"


def test_the_pdf_has_pages_and_no_date(made):
    assert made["pdf"].startswith(b"%PDF") and len(made["pdf"]) > 20_000
    assert b"CreationDate" not in made["pdf"] and b"ModDate" not in made["pdf"]


def test_every_claim_is_printed_with_its_verdict(printed):
    assert [(claim["id"], claim["verdict"]) for claim in printed["claims"]] == [
        ("A1", "mixed"),  # c64 has a seed that ended in NaN, which counts as contradicted
        ("A2", "undecided"),
        ("A3", "undecided"),
        ("A4", "not run"),
        ("A5", "supported"),  # by the untrained net alone: one row is enough
        ("A6", "undecided"),
    ]
    assert printed["claims"][3]["reason"] == "There is no row for it"
    # Seeds 1 and 2: (.90 - .51) - (.90 - .51) and (.931 - .52) - (.901 - .52)
    interaction = printed["claims"][2]["tests"][1]
    assert interaction["numbers"].startswith("+1.50 points (95 %: \u221217.56 to +20.56), p = 0.")


def test_tests_without_rows_are_counted_in_one_line(printed, made):
    line = "1 test is not run at scale paper, which lacks the row Toy, c = 1024."
    assert [claim["lacking"] for claim in printed["claims"]] == ["", "", line, "", "", ""]
    labels = [test["label"] for test in printed["claims"][2]["tests"]]
    assert "difference of big" not in labels and len(labels) == 4
    assert line in made["html"].decode()
    # Seeds may be lost and rows mixed: such tests say so themselves.
    assert [test["verdict"] for test in printed["claims"][2]["tests"]].count("not run") == 1


def test_what_is_not_run_is_left_out_and_named(printed, made, collected):
    assert [table["title"] for table in printed["tables"]] == ["Main", "Assumed", "Other"]
    assert "beyond.svg" not in [figure["file"] for figure in printed["figures"]]
    said = "Left out, because scale paper runs too few of their rows: "
    assert printed["left_out"] == {
        "tables": f"{said}Beyond \u2013 left out.",
        "figures": f"{said}beyond.",
    }
    page = made["html"].decode()
    assert all(page.count(line) == 1 for line in printed["left_out"].values())
    assert "<h3>Beyond" not in page and ". beyond</h3>" not in page
    names = files.read_json(collected.folder / "collected.json")["files"]
    assert {"tables/beyond.csv", "figures/data/beyond.csv"} < set(names)


def seeds_of(printed, label):
    """What the provenance says of a row's seeds."""
    runs = printed["runs"]
    [row] = [row for row in runs["rows"] if row["label"] == label]
    return row["cells"][runs["columns"].index("seeds")]


def test_missing_failed_and_mixed_seeds_are_shown(printed, made):
    assert cell_of(printed, 0, "Toy, c = 64", "linear")["seeds"] == "2 of 3 seeds, 1 failed"
    assert cell_of(printed, 0, "Toy, c = 256", "few")["seeds"] == "2 of 3 seeds"
    assert cell_of(printed, 0, "Toy <mixed> & odd", "few")["ours"] == "mixed"
    assert cell_of(printed, 0, "Toy, c = 1024", "few")["ours"] == "not run"
    assert printed["seeds"] == "10 of 15 seeds finished, 1 missing, 3 mixed, 1 NaN"
    assert "2 of 3 seeds" in made["html"].decode()
    assert seeds_of(printed, "Toy, c = 64").startswith("0, 1 finished; 2 NaN")


def test_cells_print_ours_beside_the_published_number(printed):
    cell = cell_of(printed, 0, "Toy, c = 16", "linear")
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert cell["ours"] == f"90.0 \u00b1 {half:.1f}"
    assert cell["published"] == "90"
    assert cell["verdict"] == "reproduced"
    assert cell_of(printed, 1, "Toy, c = 16", "linear")["verdict"].endswith("assumptions")
    assert cell_of(printed, 2, "Toy, c = 16", "linear")["verdict"] == "other set-up"
    assert cell_of(printed, 0, "Toy, c = 64", "linear")["verdict"] == "inconclusive"
    # Seeds 1 and 2: 0.90 - 0.900 and 0.931 - 0.901, so 1.5 points; t(1) * 1.5 = 19.1.
    gain = cell_of(printed, 0, "Toy, c = 256", "linear")["gain"]
    assert gain.split() == ["+1.5", "(\u221217.6", "to", "+20.6)"]


def test_a_reading_that_a_method_does_not_have_is_not_available(printed):
    """The notebook came to the same; the online probe, measured while training, is there."""
    cell = cell_of(printed, 0, "Toy, c = 16", "released NMI")
    assert (cell["ours"], cell["verdict"], cell["seeds"], cell["notes"]) == ("n/a", "", "", [])
    assert cell_of(printed, 0, "Toy, c = 64", "released NMI")["ours"] == "0.250"
    assert cell_of(printed, 0, "Toy, c = 1024", "released NMI")["ours"] == "not run"
    assert cell_of(printed, 0, "Toy <mixed> & odd", "released NMI")["ours"] == "mixed"
    assert cell_of(printed, 0, "Toy, c = 16", "online")["absent"] is False
    assert seeds_of(printed, "Toy, c = 16") == "0, 1, 2 finished"


def test_every_kind_of_cell_verdict_is_recomputed(printed):
    """The notebook compared these with its own; published with two decimals, so tol is .01."""
    verdicts = {
        ("Toy, c = 16", "few"): "reproduced (printed value)",  # sd .003: 1.69 sd < .01 < 3.37 sd
        ("untrained net", "few"): "consistent",  # sd .006: 1.69 sd > .01, but d = 0
        ("Toy, c = 256", "few"): "above published",
        ("Toy <mixed> & odd", "linear"): "",  # printed as its number: mixed
    }
    for (row, column), verdict in verdicts.items():
        assert cell_of(printed, 0, row, column)["verdict"] == verdict


def test_prose_names_rows_by_their_labels():
    labels = {"c16": "Toy, c = 16", "c16-b": "Toy b", "untrained": "untrained net"}
    assert prose("not run: c16, c16-b", labels) == "not run: Toy, c = 16, Toy b"
    assert prose("the untrained net - H^T H", labels) == "the untrained net \u2013 H\u1d40 H"


def test_a_changed_file_is_refused(copy):
    copy.edit("tables/main.csv", lambda text: text.replace("0.9,", "0.8,", 1), sums=False)
    with pytest.raises(UserError, match=r"main\.csv is missing or was changed"):
        copy.report()
    assert not copy.reports.exists()


@pytest.mark.parametrize("part", ["tables", "figures", "claims", "scale"])
def test_results_of_an_older_configuration_are_refused(copy, part, monkeypatch):
    project = copy.world.project
    if part == "scale":
        project = replace(project, scale=project.scale.model_copy(update={"seeds": (0, 1)}))
    else:
        study = project.study("toy")
        study = study.model_copy(update={part: getattr(study, part)[:-1]})
        project = replace(project, studies={"toy": study})
    monkeypatch.setattr(copy.world, "project", project)
    with pytest.raises(UserError, match="older configuration; run collect again"):
        copy.report()


def test_a_missing_figure_is_refused(copy):
    (copy.folder / "figures" / "gain.png").unlink()
    with pytest.raises(UserError, match=r"gain\.png is missing or was changed"):
        copy.report()


@pytest.mark.parametrize("name", ["figures/rows.svg", "figures/data/rows.csv"])
def test_a_changed_figure_is_refused(copy, name):
    copy.edit(name, lambda text: text + " ", sums=False)
    with pytest.raises(UserError, match="is missing or was changed"):
        copy.report()


def test_a_garbled_picture_is_one_line(copy):
    copy.edit("figures/rows.svg", lambda text: text[: len(text) // 2], sums=True)
    with pytest.raises(UserError, match="no PDF .*run collect again") as error:
        copy.report()
    assert "\n" not in str(error.value)


def forged_mean(text: str) -> str:
    lines = list(csv.DictReader(io.StringIO(text)))
    lines[4]["mean"] = f"{float(lines[4]['mean']) + 0.000002:.6f}"
    out = io.StringIO()
    writer = csv.DictWriter(out, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


FORGERIES = {
    "a mean, by two millionths": ("tables/main.csv", forged_mean, "mean is"),
    "a verdict of a cell": (
        "tables/main.csv",
        lambda text: text.replace(",reproduced,", ",consistent,", 1),
        "main, Toy, c = 16, linear: verdict is reproduced",
    ),
    "a p value": (
        "claims.json",
        lambda text: re.sub(r'"p": 0\.\d+', '"p": 0.04', text, count=1),
        "claims.json says",
    ),
    "a verdict of a test": (
        "claims.json",
        lambda text: text.replace('"verdict": "contradicted"', '"verdict": "supported"', 1),
        "claim A1, above of c16, c64, big: Toy, c = 64: contradicted",
    ),
    "a verdict of a claim": (
        "claims.json",
        lambda text: text.replace('"mixed @paper"', '"supported @paper"', 1),
        "claim A1: mixed @paper",
    ),
    "rows that a test lacks": (
        "claims.json",
        lambda text: re.sub(r'("lacking": \[)\s+"big"', r"\1", text, count=1),
        "claim A3, difference of big",
    ),
    "a number of a table that is left out": (
        "tables/beyond.csv",
        lambda text: text.replace("0.900000", "0.900002").replace(",0.9,", ",0.900002,"),
        "table beyond, Toy, c = 16, few: mean is",
    ),
    "an order of rows": (
        "ordering.csv",
        lambda text: text.replace(",0.707107,", ",0.807107,", 1),
        "ordering.csv, main, linear: tau is 0.707",
    ),
    "a measurement": (
        "metrics.csv",
        lambda text: re.sub(r"(few/accuracy,0\.\d)", r"\g<1>1", text, count=1),
        "table main, untrained net, few: mean is",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_notebook_stops_at_a_forged_number(copy, forgery):
    """All sums are right again, so only the recomputation can notice."""
    name, change, message = FORGERIES[forgery]
    before = (copy.folder / name).read_text()
    copy.edit(name, change, sums=True)
    assert (copy.folder / name).read_text() != before
    with pytest.raises(UserError, match="notebook study.py, cell .*AssertionError") as stopped:
        copy.report()
    assert message in str(stopped.value)
    assert not (copy.reports / "paper" / "toy.pdf").exists()


def test_the_index_counts_runs_and_links_reports(collected):
    index(collected.project, collected.results, collected.reports)
    page = (collected.reports / "paper" / "index.html").read_text()
    assert "5 runs; 10 of 15 seeds finished" in page
    assert page.count("<tr>") == 1 + len(collected.project.study("toy").claims)
    assert all(f'href="toy.{kind}"' in page for kind in KINDS)
    assert "A toy \u2013 with a dash" in page


def test_the_mapping_needs_no_report(collected):
    study = collected.project.study("toy")
    found = document(collected.project, study, read_study(collected.folder), collected.config)
    assert len(found["printed"]["claims"]) == len(found["declared"]["claims"]) == 6
    assert found["declared"]["options"]["method.codes"]["c64"] == 64


def test_what_is_no_measurement_has_no_gain_and_a_constant_no_interval():
    from peregrine.config.study import Column
    from peregrine.reporting.document import _cell

    line = {"run": "r", "verdict": "", "remark": "", "seeds": "3", "missing": "0", "failed": "0"}
    line |= {"mean": "16.0", "sd": "0.0", "low": "16.0", "high": "16.0"}
    line |= {"gain": "0.09", "gain_low": "0.08", "gain_high": "0.1"}

    def shown(metric: str, **over) -> tuple[str, str]:
        column = Column(metric=metric, label="m", decimals=1)
        cell = _cell(line | over, column, None, 3, [])
        return cell["ours"], cell["gain"]

    assert shown("collapse/codes/occupied_ceiling") == ("16.0", "")
    assert shown("codes/nmi_chance", sd="0.1", high="17.0") == ("16.0 \u00b1 0.5", "")
    assert shown("codes/nmi")[1].startswith("+0.1")


def test_an_overlay_of_scale_paper_is_seen(collected):
    from peregrine.config.load import load
    from peregrine.reporting.tables import overlaid

    project, study = collected.project, collected.project.study("toy")
    assert overlaid(project, study, collected.config) == frozenset()
    path = collected.config / "scales" / "paper.yaml"
    before = path.read_text()
    path.write_text(before + "studies: {toy: {row: {c16: {epochs: 1}}}}\n")
    try:
        changed = load(collected.config)
    finally:
        path.write_text(before)
    assert overlaid(changed, study, collected.config) == {"c16"}


def test_figures_are_among_the_sums(collected):
    names = files.read_json(collected.folder / "collected.json")["files"]
    assert {"figures/rows.svg", "figures/rows.png", "figures/data/rows.csv"} < set(names)


def test_what_stands_in_names_files_that_are_not_the_official_ones(copy, printed):
    assert all("not verified" not in cell for line in printed["stands_in"] for cell in line)
    note = "data not verified: test_batch.bin"

    def noted(text):
        lines = list(csv.DictReader(io.StringIO(text)))
        for line in lines[:2]:
            line["detail"] = "; ".join(filter(None, [line["detail"], note]))
        out = io.StringIO()
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue()

    copy.edit("runs.csv", noted, sums=True)
    world = copy.world
    study = world.project.study("toy")
    said = document(world.project, study, read_study(copy.folder), world.config)["printed"]
    assert said["stands_in"][-1] == ["files of the data", "official", note]
    assert note in seeds_of(said, said["runs"]["rows"][0]["label"])


def test_a_part_of_the_data_is_described(collected):
    """All options beside the data set, in the column of this scale only."""
    part = {"name": "cifar100", "train_per_class": 1000, "validation_per_class": 50}
    part["imbalance"] = 20
    scale = collected.project.scale.model_copy(update={"run": {"dataset": part}})
    study = collected.project.study("toy")
    cells = tuple(resolve(study, scale, {}))
    project = replace(collected.project, scale=scale, cells=cells)
    facts = {what: rest for what, *rest in stands_in(project, study, collected.config)}
    assert facts["data set"][1] == (
        "CIFAR-100, 1,000 training images a class, long-tailed, the first class 20 times the last,"
        " tested on 50 held-out training images a class, not on the test set"
    )
    assert "held-out" not in facts["data set"][0]


def test_the_notebook_judges_by_the_rules_that_claims_declare(collected, tmp_path):
    """Seeds as they ended, one test that will do. It raises where claims.json says otherwise."""
    from peregrine.reporting.collect import collect

    world = type(collected)(tmp_path)
    place = world.seed_folder("c16", 1)
    for path in [place / "outcome.json", *place.glob("*/*-standard.json")]:
        found = files.read_json(path)
        if found["status"] != "n/a":
            files.write_json(path, found | {"status": "collapsed"})
    test = {"kind": "above", "metric": "linear/accuracy", "rows": ["c16"], "threshold": 0.1}
    tests = [test | {"label": rule, "on_failure": rule} for rule in ("undecided", "as measured")]
    study = world.project.study("toy").model_dump(mode="json")
    one = {"id": "A2", "statement": "S", "tests": tests, "any_test": True}
    barred = one | {"id": "A3", "not_run": "a part has no row"}
    study["claims"] = [{"id": "A1", "statement": "S", "tests": tests}, one, barred]
    study = type(world.project.study("toy")).model_validate(study)
    project = replace(world.project, studies={"toy": study})
    collect(project, "toy", world.results, world.config)
    report(project, "toy", world.results, world.reports, world.config)
    claims = json.loads((world.folder / "claims.json").read_text())
    assert [each["verdict"] for each in claims[0]["tests"]] == ["undecided", "supported"]
    verdicts = [claim["verdict"].partition(" @")[0] for claim in claims]
    assert verdicts == ["undecided", "supported", "undecided"]
    printed = files.read_json(world.reports / "paper" / "toy.json")["printed"]
    votes = "tests: 1 supported, 1 undecided"
    why = "cannot be supported at this scale, as a part of it has no test"
    assert [claim["state"] for claim in printed["claims"]] == [votes, votes, f"{votes}; {why}"]
