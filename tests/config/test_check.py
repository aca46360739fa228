"""Names that a study may use: what is written is known, what is not is refused by its place."""

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from peregrine.config.check import HISTORY, METRICS, check_study
from peregrine.config.load import load, read_study
from peregrine.config.models import MIXTURES, AttackSpec
from peregrine.config.study import Study
from peregrine.diagnostics.collapse import collapse_report
from peregrine.diagnostics.geometry import geometry_report
from peregrine.diagnostics.mixture import mixture_report
from peregrine.diagnostics.released import released_report
from peregrine.errors import UserError
from peregrine.evaluation.average_precision import average_precision
from peregrine.evaluation.clustering import cluster_scores
from peregrine.evaluation.knn import knn_classify
from peregrine.evaluation.linear import few_label_probe, label_share_probe, linear_probe
from peregrine.evaluation.robustness import report
from peregrine.reporting.evaluations import numbers

CONFIG = Path(__file__).parents[2] / "config"
STUDY = {
    "name": "toy", "title": "T", "paper": "P", "summary": "S", "defaults": {},
    "rows": {"small": {"label": "Small"}, "large": {"label": "Large"}},
    "tables": [{"id": "main", "title": "T", "rows": ["small", "large"],
                "columns": [{"metric": "linear/accuracy", "label": "linear"}],
                "baseline": {"large": "small"}, "published_rows": {"large": "L"}}],
    "figures": [
        {"id": "rows", "kind": "metric_by_row", "title": "T", "caption": "C",
         "groups": {"all": ["large"]}, "untrained": "small", "baseline": {"large": "small"},
         "panels": [{"metric": "codes/nmi", "label": "NMI", "level": "codes/nmi_chance"}]},
        {"id": "training", "kind": "history", "title": "T", "caption": "C",
         "groups": {"all": ["large"]}, "panels": [{"metric": "features_sd", "label": "sd"}]},
        {"id": "spectrum", "kind": "spectrum", "title": "T", "caption": "C",
         "groups": {"all": ["large"]}, "panels": [{"metric": "features", "label": "f"}]},
        {"id": "mixtures", "kind": "mixture", "title": "T", "caption": "C",
         "groups": {"all": ["large"]}, "panels": [
             {"metric": "collapse/embeddings/mixture_relative", "label": "m",
              "level": "collapse/embeddings/mixture_chance"}]},
        {"id": "matrices", "kind": "matrices", "title": "T", "caption": "C",
         "groups": {"all": ["large"]}, "panels": [{"metric": "similarity", "label": "s"}]},
    ],
    "claims": [{"id": "C1", "statement": "S", "tests": [
        {"kind": "interaction", "label": "L", "metric": "collapse/features/rankme",
         "ceiling": "collapse/features/rankme_ceiling", "rows": ["large"], "against": ["small"],
         "control": ["large"], "control_against": ["small"]}]}],
    "assumptions": [],
}  # fmt: skip


def changed(path: str, value) -> dict:
    """STUDY with one value replaced, at a dotted path."""
    import copy

    out = copy.deepcopy(STUDY)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    reduce(lambda inner, key: inner[key], way, out)[last] = value
    return out


def test_the_study_is_whole():
    check_study(Study(**STUDY))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rows.large.over", "smal", "row large: there is no row 'smal'"),
        ("tables.0.rows", ["smal"], "table main: there is no row 'smal'; did you mean 'small'?"),
        ("tables.0.baseline", {"larg": "small"}, "table main: there is no row 'larg'"),
        ("tables.0.baseline", {"large": "smal"}, "table main: there is no row 'smal'"),
        ("tables.0.published_rows", {"larg": "L"}, "table main: there is no row 'larg'"),
        ("tables.0.columns.0.metric", "linear/acuracy", "did you mean 'linear/accuracy'?"),
        ("tables.0.columns.0.metric", "features_sd", "there is no metric 'features_sd'"),
        ("tables.0.columns.0.reading", "corected", "did you mean 'corrected'?"),
        ("figures.0.groups", {"all": ["larg"]}, "figure rows: there is no row 'larg'"),
        ("figures.0.untrained", "smal", "figure rows: there is no row 'smal'"),
        ("figures.0.baseline", {"large": "smal"}, "figure rows: there is no row 'smal'"),
        ("figures.0.panels.0.metric", "codes/mni", "there is no metric 'codes/mni'"),
        ("figures.0.panels.0.level", "codes/chance", "there is no metric 'codes/chance'"),
        ("figures.0.panels.0.reading", "x", "figure rows: there is no reading 'x'"),
        ("figures.1.panels.0.metric", "feature_sd", "did you mean 'features_sd'?"),
        (
            "figures.3.panels.0.metric",
            "collapse/embeddings/mixture_relative_k10",
            "did you mean 'collapse/embeddings/mixture_relative'?",
        ),
        ("figures.4.panels.0.metric", "H^T H", "figure matrices: there is no metric 'H^T H'"),
        ("figures.2.panels.0.metric", "codes", "figure spectrum: there is no metric 'codes'"),
        ("claims.0.tests.0.rows", ["x"], "study toy: claim C1: there is no row 'x'"),
        ("claims.0.tests.0.against", ["x"], "claim C1: there is no row 'x'"),
        ("claims.0.tests.0.control", ["x"], "claim C1: there is no row 'x'"),
        ("claims.0.tests.0.control_against", ["x"], "claim C1: there is no row 'x'"),
        ("claims.0.tests.0.metric", "x", "claim C1: there is no metric 'x'"),
        ("claims.0.tests.0.ceiling", "x", "claim C1: there is no metric 'x'"),
        ("claims.0.tests.0.reading", "x", "claim C1: there is no reading 'x'"),
    ],
)
def test_unknown_names_are_refused_by_their_place(path, value, message):
    with pytest.raises(UserError) as error:
        check_study(Study(**changed(path, value)))
    assert message in str(error.value)
    assert str(error.value).startswith("study toy: ")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tables", STUDY["tables"] * 2, "id of tables 'main' stands twice"),
        ("figures", STUDY["figures"] + STUDY["figures"][:1], "id of figures 'rows'"),
        ("claims", STUDY["claims"] * 2, "id of claims 'C1' stands twice"),
        ("rows.large.label", "Small", "row label 'Small' stands twice"),
        ("figures.0.panels", STUDY["figures"][0]["panels"] * 2, "panel label 'NMI' stands twice"),
    ],
)
def test_twins_are_refused(path, value, message):
    with pytest.raises(ValidationError, match=message):
        Study(**changed(path, value))


def test_what_a_row_is_over_is_its_baseline_wherever_none_is_named():
    """Lines of training have none, and a table's own word counts."""
    given = changed("rows.large.over", "small")
    del given["tables"][0]["baseline"], given["figures"][0]["baseline"]
    own = {"id": "own", "baseline": {"small": "large", "large": "large"}}
    given["tables"].append(given["tables"][0] | own)
    study = Study(**given)
    check_study(study)
    assert study.tables[0].baseline == study.figures[0].baseline == {"large": "small"}
    assert study.tables[1].baseline == {"small": "large", "large": "large"}
    assert study.figures[1].baseline == {}


def test_a_figure_of_gains_needs_a_baseline():
    given = changed("figures.0.kind", "gain")
    Study(**given)
    del given["figures"][0]["baseline"]
    with pytest.raises(ValidationError, match="figure rows: baseline says"):
        Study(**given)


def test_the_shipped_studies_are_whole():
    for path in sorted((CONFIG / "studies").glob("*.yaml")):
        assert read_study(path).rows
    assert load(CONFIG).cells


def test_the_metrics_are_those_that_the_evaluations_return():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(600, 6)), np.arange(600) % 6  # a mixture of 200 needs 600
    codes = draw.integers(8, size=600)
    common = {"c_grid": (0.1, 1.0), "split_seed": 0, "max_iter": 50, "streamed_above": 10**6}
    scores = cluster_scores(y, codes, permutations=2, seed=0)
    torch.manual_seed(0)
    z = {key: torch.randn(4, 3) for key in ("clean", "attack", "random", "other")}
    labels = torch.tensor([0, 1, 0, 1])
    robust = report(z, torch.randn(4, 3), labels, labels, AttackSpec())
    written = {
        "linear": linear_probe(x, y, x, y, validation_share=0.5, **common),
        "few": few_label_probe(x, y, x, y, labels_per_class=2, draws=2, **common),
        "labels-1": label_share_probe(x, y, x, y, share=0.01, draws=2, **common),
        "labels-10": label_share_probe(x, y, x, y, share=0.1, draws=2, **common),
        "knn": knn_classify(x, y, x, y, k=3, temperature=0.1),
        "kmeans": scores,
        "codes": scores,
        "robustness": robust,
        "detection": {key: 0.5 for key in average_precision([], [], ()) if key != "per_class"}
        | {"loss": 0.5},
        "collapse": collapse_report(x, x, codes, np.full(8, 1 / 8), 8, y)
        | released_report(x, codes, 8, MIXTURES, sample=600, seed=0)
        | {
            f"{layer}/{name}": value
            for layer in ("features", "embeddings")
            for report in (
                geometry_report(x, np.ones(6), labels=y, codes=codes, views=[x[:300], x[300:]]),
                mixture_report(x, MIXTURES, sample=600, seed=0),
            )
            for name, value in report.items()
        },
    }
    names = {name for key, value in written.items() for name, _ in numbers(key, value)}
    assert names | {"online_probe/accuracy"} == METRICS


def test_the_columns_of_a_history_are_those_that_training_writes():
    from peregrine.pretrain import monitor

    text = Path(monitor.__file__).read_text()
    assert all(f'_{name}"]' in text for name in ("sd", "rank"))
    assert {
        f"{layer}_{m}" for layer in ("features", "embeddings") for m in ("sd", "rank")
    } < HISTORY
