"""Chance level of a published NMI: by hand, by drawing, and beside every number that has one."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from peregrine import files
from peregrine.config.load import load
from peregrine.diagnostics.geometry import contrast
from peregrine.errors import UserError
from peregrine.reporting.chance import TEST_SETS, random_nmi
from peregrine.reporting.collect import collect
from peregrine.reporting.document import document, read_study
from peregrine.reporting.published import Published, read_published
from peregrine.reporting.report import report

CONFIG = Path(__file__).parents[2] / "config"


def test_by_hand():
    # One image of each of two classes, two codes: the codes differ in half of the draws. Entropies
    # in units of log 2: classes 1, codes 1/2, both together 1.
    assert random_nmi((1, 1), 2) == pytest.approx(2 * (1 + 0.5 - 1) / (1 + 0.5))
    # Two images of one class: nothing to agree with. One code: nothing that agrees.
    assert random_nmi((2,), 2) == pytest.approx(0, abs=1e-12)
    assert random_nmi((3, 4), 1) == pytest.approx(0, abs=1e-12)
    # Far more codes than images: each image its own code, which tells its class, log 10 of log n.
    classes, codes = log(10), log(10_000)
    each_its_own = 2 * classes / (classes + codes)
    assert random_nmi((1000,) * 10, 10**10) == pytest.approx(each_its_own, abs=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        random_nmi((1, 1), 0)


def test_test_sets_have_the_images_that_they_are_known_for():
    assert {name: sum(sizes) for name, sizes in TEST_SETS.items()} == {
        "cifar10": 10_000,
        "cifar100": 10_000,
        "fashion_mnist": 10_000,
        "svhn": 26_032,
    }
    assert {name: len(sizes) for name, sizes in TEST_SETS.items() if name != "cifar100"} == {
        "cifar10": 10,
        "fashion_mnist": 10,
        "svhn": 10,
    }
    assert len(set(TEST_SETS["svhn"])) == 10 and len(TEST_SETS["cifar100"]) == 100


PUBLISHED = read_published(CONFIG / "published" / "falcon.csv")
KNOWN = sorted({(c.test_set, c.codes) for c in PUBLISHED.values() if c.chance is not None})


@pytest.mark.parametrize(("test_set", "codes"), KNOWN)
def test_every_chance_level_of_a_published_number_is_what_drawn_codes_score(test_set, codes):
    sizes = TEST_SETS[test_set]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng(codes)
    scores = [
        normalized_mutual_info_score(labels, generator.integers(0, codes, len(labels)))
        for _ in range(4)
    ]
    error = np.std(scores, ddof=1) / len(scores) ** 0.5
    assert error < 0.001
    assert np.mean(scores) == pytest.approx(random_nmi(sizes, codes), abs=0.0005 + 6 * error)


def test_each_published_nmi_has_the_codes_of_its_row_and_its_own_test_set():
    codes = {"Barlow Twins": 2048, "SwAV": 128, "GEDI": 2048, "FALCON c = 16384": 16384}
    codes["Self-Classifier"] = None  # not in the released code
    sets = {"NMI SVHN": "svhn", "NMI CIFAR-10": "cifar10", "NMI CIFAR-100": "cifar100"}
    found = {
        (row, column): (cell.codes, cell.test_set)
        for (_, row, column), cell in PUBLISHED.items()
        if cell.nmi and cell.value is not None
    }
    assert found == {(r, c): (codes[r], sets[c]) for r in codes for c in sets}
    for (_, row, _), cell in PUBLISHED.items():
        stated = "number of codes not stated" not in cell.remark
        assert stated or cell.codes is not None
        if row == "FALCON c = 16384":  # the paper's own number, of the row's name
            assert stated and (cell.chance is not None) == cell.nmi
    # The row of the paper scores what noise does: falcon.md, section 2, to its two decimals.
    chance = {c: PUBLISHED["1", "FALCON c = 16384", c].chance for c in sets}
    expected = {"NMI SVHN": 0.263, "NMI CIFAR-10": 0.353, "NMI CIFAR-100": 0.630}
    assert chance == pytest.approx(expected, abs=0.001)


def test_an_nmi_stands_with_its_chance_level_and_the_ami_in_every_table_and_figure():
    every = tuple(sorted(path.stem for path in (CONFIG / "studies").glob("*.yaml")))
    seen = 0
    for study in load(CONFIG, scale="paper", studies=every).studies.values():
        for shown in (*study.tables, *study.figures):
            parts = getattr(shown, "columns", None) or shown.panels
            metrics = {(each.metric, each.reading) for each in parts}
            metrics |= {(each.level, each.reading) for each in parts if hasattr(each, "level")}
            for metric, reading in metrics:
                kind, _, name = (metric or "").rpartition("/")
                if name == "nmi":
                    seen += 1
                    asked = {(f"{kind}/nmi_chance", reading), (f"{kind}/ami", reading)}
                    assert asked <= metrics, (study.name, shown.id, reading)
    assert seen >= 10  # Table 1, its sizes and Table 3 in two readings, a figure


HEADER = ",".join(Published._fields)
LINE = "a,1,P,acc,codes/nmi,1,2,0.35,,,src,"


def test_a_file_of_published_numbers_needs_no_columns_on_codes(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(HEADER.removesuffix(",codes,test_set") + f"\n{LINE}\n")
    [cell] = read_published(path).values()
    assert (cell.value, cell.codes, cell.chance) == (0.35, None, None)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (",16384,cifar11", "line 2: codes need a test_set, one of cifar10, .*not 'cifar11'"),
        (",16384,", "line 2: codes need a test_set"),
        (",0,cifar10", "line 2: codes 0 is less than one"),
        (",many,cifar10", "line 2: invalid literal"),
        (",1", "has not 14 cells"),
    ],
)
def test_codes_that_cannot_be_are_one_line(tmp_path, end, message):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEADER}\n{LINE}{end}\n")
    with pytest.raises(UserError, match=message) as raised:
        read_published(path)
    assert "\n" not in str(raised.value)


def test_reports_print_it_beside_the_published_number_and_the_notebook_recomputes_it(
    collected, tmp_path
):
    world = type(collected)(tmp_path)
    study = world.project.study("toy").model_dump(mode="json")
    columns = [
        {"metric": "codes/nmi", "reading": "released", "label": label, "published": label}
        for label in ("known", "unknown")
    ]
    table = {"id": "main", "title": "Main", "rows": ["c16", "c64"], "columns": columns}
    table |= {"published": "1", "published_rows": {"c64": "N"}}
    study["tables"], study["figures"], study["claims"] = [table], [], []
    project = replace(
        world.project, studies={"toy": type(world.project.study("toy")).model_validate(study)}
    )
    line = Published("k", "1", "N", "known", "codes/nmi", "1", 2, 0.35, None, None, "src", "")
    lines = [
        line._replace(codes=16384, test_set="cifar10"),
        line._replace(cell="u", column="unknown"),
    ]
    files.write_csv(world.config / "published" / "toy.csv", Published._fields, lines)
    collect(project, "toy", world.results, world.config)
    report(project, "toy", world.results, world.reports, world.config)
    made = world.reports / "paper"
    [shown] = json.loads((made / "toy.json").read_text())["printed"]["tables"]
    [cells] = [row["cells"] for row in shown["rows"] if row["label"] == "Toy, c = 64"]
    assert [cell["published"] for cell in cells] == ["0.35", "0.35"]
    # The reference is .3536: SVHN and CIFAR-100 are drawn above.
    assert [cell["chance"] for cell in cells] == [
        "random codes 0.354 (c = 16384)",
        "its codes not stated",
    ]
    assert "random codes 0.354" in (made / "toy.html").read_text()
    # A chance level of another number of codes is noticed, although all sums are right again.
    path = world.folder / "tables" / "main.csv"
    forged = path.read_text().replace("0.353585", "0.036")
    assert forged != path.read_text()
    path.write_text(forged)
    record = files.read_json(world.folder / "collected.json")
    record["files"]["tables/main.csv"] = files.sha256(path)
    files.write_json(world.folder / "collected.json", record)
    with pytest.raises(UserError, match=r"known: published_chance is 0\.35"):
        report(project, "toy", world.results, world.reports, world.config)
    # What is declared names the classes of test sets that were used, and no others.
    found = document(project, project.study("toy"), read_study(world.folder), world.config)
    assert list(found["declared"]["test_sets"]) == ["cifar10"]


def test_the_note_on_block_contrast_says_how_large_it_can_be():
    """1 for points at right angles, 1 + 1/(k-1) for k that repel each other, 1/(1-s) in general."""
    note = next(t.note for t in load(CONFIG).study("falcon").tables if t.id == "geometry")
    assert "at most 1 + 1/(k-1) for k of equal size and 1/(1-s) for any sizes" in note
    groups = np.repeat(np.arange(3), 2)
    assert contrast(np.eye(3)[groups], groups) == pytest.approx(1)
    simplex = np.eye(3) - 1 / 3  # three directions at 120 degrees: cosine -1/2
    assert contrast(simplex[groups], groups) == pytest.approx(1 + 1 / (3 - 1))
    # Sizes 2, 1, 1 on both ends of a line: within 1; of 5 pairs between groups four have cosine -1
    # and one +1. Squared shares: 1/4 + 1/16 + 1/16, so 1/(1 - 3/8) = 8/5.
    line = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert contrast(line, [0, 0, 1, 2]) == pytest.approx(1 + 3 / 5) == 1 / (1 - 3 / 8)
