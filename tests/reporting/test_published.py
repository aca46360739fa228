"""config/published beside the numbers of the papers, typed in here a second time.

falcon.md, section 2, and feature-augmentation.md, section 1.
"""

from pathlib import Path

import pytest

from peregrine.config.load import load
from peregrine.reporting.published import read_published

CONFIG = Path(__file__).parents[2] / "config"
FALCON = read_published(CONFIG / "published" / "falcon.csv")
FIGURES = read_published(CONFIG / "published" / "falcon_figures.csv")
AUGMENTATION = read_published(CONFIG / "published" / "feature_augmentation.csv")

TABLE_1 = """
Barlow Twins     | 0.06 | 0.05 | 0.10 | 0.76 | 0.65 | 0.28
SwAV             | 0.03 | 0.29 | 0.12 | 0.45 | 0.56 | 0.10
Self-Classifier  | 0.07 | 0.28 | 0.26 | 0.58 | 0.59 | 0.15
GEDI             | 0.07 | 0.29 | 0.25 | 0.58 | 0.64 | 0.38
FALCON c = 16384 | 0.31 | 0.35 | 0.58 | 0.78 | 0.68 | 0.41
"""
COLUMNS_1 = [f"{what} {data}" for what in ("NMI", "accuracy") for data in
             ("SVHN", "CIFAR-10", "CIFAR-100")]  # fmt: skip
SIZES = "100 500 1K 5K 10K 50K 100K 200K 300K 500K".split()
TABLE_2 = {
    ("DINO", "top-1"): "64.1 65.8 65.1 65.7 66.6 67.5 67.7 68.3 67.0 67.2",
    ("FALCON", "top-1"): "64.9 68.4 70.2 72.2 72.9 73.9 72.2 73.9 73.6 74.0",
    ("DINO", "top-5"): "87.0 88.6 88.7 87.7 89.2 89.2 89.4 89.8 89.2 89.9",
    ("FALCON", "top-5"): "87.7 89.9 91.2 91.7 92.3 92.6 92.6 92.9 92.8 92.9",
}
MIXTURES = {
    "Barlow Twins": (-7966, -8483, -8966, -9286, -9631),
    "SwAV": (-10658, -10664, -10673, -10683, -10693),
    "CPLearn": (-4136, -4257, -4424, -4553, -4670),
    "DINO": (-10156, -10187, -10225, -10252, -10278),
}
RANKS = (0, 1, 10, 100, 127, 128, 500, 1000, 2000, 2047)
SPECTRA = {  # SwAV's and DINO's are drawn flat between the last ranks
    "Barlow Twins": (-2.7, -3.1, -4.3, -5.7, -5.9, -5.9, -8.1, -9.1, -19.6, -24.7),
    "SwAV": (3.4, -2.6, -3.7, -5.9, -9.8, -13.2, -13.3, -13.3, -13.3, -13.3),
    "CPLearn": (6.3, 2.3, 0.0, -3.8, -4.4, -4.4, -7.1, -8.2, -11.1, -15.2),
    "DINO": (4.2, -0.4, -2.4, -10.9, -11.4, -11.4, -12.4, None, None, -16.0),
}
IMAGENET_1K = {"NN": 70.9, "NNCLR as quoted": 70.8}
SOLO_LEARN = {
    "CIFAR-10":
        {"BYOL": 92.58, "SimCLR": 90.74, "NNCLR": 91.88, "MoCo v2+": 92.94, "SimSiam": 90.51},
    "ImageNet-100":
        {"BYOL": 80.16, "NNCLR": 79.80, "SimCLR": 77.64, "MoCo v2+": 78.20, "SimSiam": 74.54},
}  # fmt: skip
NO_DATA_SET = {
    "BYOL": 69.1,
    "BYOL + one NN sample": 71.4,
    "four samples + free loss, Mask": 79.8,
}


def values(cells, table):
    return {(row, column): c.value for (t, row, column), c in cells.items() if t == table}


def test_table_1():
    typed = {}
    for line in TABLE_1.strip().splitlines():
        row, *numbers = (part.strip() for part in line.split("|"))
        typed |= {(row, c): float(x) for c, x in zip(COLUMNS_1, numbers, strict=True)}
    unknown = {("FALCON, smaller dictionaries", column): None for column in COLUMNS_1}
    assert values(FALCON, "1") == typed | unknown


def test_table_2():
    typed = {
        (f"{method} c = {size}", column): float(x)
        for (method, column), line in TABLE_2.items()
        for size, x in zip(SIZES, line.split(), strict=True)
    }
    assert values(FALCON, "2") == typed
    assert {c.unit for (table, _, _), c in FALCON.items() if table == "2"} == {"%"}


def test_the_table_whose_numbers_are_unknown_is_the_only_other_one():
    assert {table for table, _, _ in FALCON} == {"1", "2", "ICML ResNet-18"}
    assert set(values(FALCON, "ICML ResNet-18").values()) == {None}


def test_figures_of_the_released_code():
    typed = {
        (row, f"{k} components"): float(x)
        for row, numbers in MIXTURES.items()
        for k, x in zip((10, 20, 50, 100, 200), numbers, strict=True)
    }
    assert values(FIGURES, "mixture entropy") == typed
    typed = {
        (row, f"rank {k}"): x
        for row, numbers in SPECTRA.items()
        for k, x in zip(RANKS, numbers, strict=True)
    }
    assert values(FIGURES, "log singular value") == typed
    assert {table for table, _, _ in FIGURES} == {"mixture entropy", "log singular value"}


def test_feature_augmentation():
    assert values(AUGMENTATION, "ImageNet-1k") == {
        (row, "linear"): x for row, x in IMAGENET_1K.items()
    }
    assert values(AUGMENTATION, "data set not stated") == {
        (row, "linear"): x for row, x in NO_DATA_SET.items()
    }
    libraries = {f"solo-learn, {data}": numbers for data, numbers in SOLO_LEARN.items()}
    for table, numbers in libraries.items():
        assert {row: x for (row, _), x in values(AUGMENTATION, table).items()} == numbers
    rest = {t for t, _, _ in AUGMENTATION} - {"ImageNet-1k", "data set not stated", *libraries}
    assert {c.value for (t, _, _), c in AUGMENTATION.items() if t in rest} == {None}


@pytest.mark.parametrize("cells", [FALCON, FIGURES, AUGMENTATION])
def test_each_has_a_source_and_a_remark_and_says_what_is_not_available(cells):
    for cell in cells.values():
        known = ("arXiv 2410.12396", "arXiv 2410.04959", "solo-learn")
        assert any(each in cell.source for each in known)
        # Another library's number says so, and never stands under the name of a paper's table.
        assert (cell.source == "solo-learn") == cell.table.startswith("solo-learn, ")
        assert cell.remark
        assert (cell.value is None) == cell.remark.startswith("not available"), cell.cell


def test_numbers_without_a_data_set_share_no_table_with_imagenet_1k():
    study = load(CONFIG, scale="paper").study("feature_augmentation")
    of_1k, unstated = set(IMAGENET_1K), set(NO_DATA_SET)
    for table in study.tables:
        shown = set(table.published_rows.values())
        assert not (shown & of_1k and shown & unstated), table.id
        if table.published == "ImageNet-1k":
            assert not shown & unstated


def test_another_library_s_number_never_judges():
    study = load(CONFIG, scale="paper").study("feature_augmentation")
    borrowed = [table for table in study.tables if (table.published or "").startswith("solo-learn")]
    assert len(borrowed) == len(SOLO_LEARN)
    assert all("solo-learn" in table.other_setup for table in borrowed)
