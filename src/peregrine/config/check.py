"""What a study may name: its own rows, and the metrics and readings that the steps write.

A name that nothing has would only leave an empty cell or an empty picture, so it is refused here.
tests/config/test_check.py holds the names against what the evaluations really return.
"""

import difflib
from collections.abc import Iterable, Iterator

from peregrine.config.models import LABEL_SHARES, MIXTURES
from peregrine.config.study import Figure, Study
from peregrine.errors import UserError

READINGS = ("corrected", "released")
EVALUATIONS = ("linear", "knn", "clustering", "collapse")
"""Evaluations of every row."""
LAYERS = ("features", "embeddings")
"""Layers whose spectra are kept."""


def _names(prefix: str, text: str) -> Iterator[str]:
    """'prefix/a', 'prefix/a_b' and 'prefix/a_c' for 'a+b+c', for each word of `text`."""
    for word in text.split():
        stem, *ends = word.split("+")
        yield from (f"{prefix}/{name}" for name in (stem, *(f"{stem}_{end}" for end in ends)))


CLUSTERS = "nmi+chance+chance_sd ami ari accuracy+ceiling n k classes permutations"
LAYER = (
    "n d constant feature_sd+ceiling rankme+ceiling effective_rank+ceiling"
    " participation_ratio+ceiling intraclass_variance+ceiling+chance+groups"
    " intracluster_variance+ceiling+chance+groups"
    " alpha_req+points offdiagonal+chance+codes class_contrast code_contrast"
    " alignment+chance uniformity+floor"
    " mixture_n mixture_rank mixture_entropy_ceiling gaussian_entropy"
)
MIXTURE_CURVES = [
    f"collapse/{layer}/mixture_{what}"
    for layer in LAYERS
    for what in ("entropy", "relative", "chance")
]
"""Measured for every number k of components, with _k{k} at the end."""

OPERATORS = ("none", "nn", "mask", "noise", "mix", "interpolate", "extrapolate")
"""Operators on augmented features, and the features themselves."""

METRICS = frozenset(
    [
        "online_probe/accuracy",
        *_names("linear", "accuracy top5_accuracy standard_error c+at_edge converged+path"),
        *_names("linear", "streamed"),
        *_names("linear", "n_train n_validation n_test classes"),
        *(
            each
            for probe in ("few", *(f"labels-{100 * share:g}" for share in LABEL_SHARES))
            for each in (
                *_names(probe, "accuracy+sd converged+path labels_per_class draws folds"),
                *_names(probe, "n_train n_pool n_test classes"),
            )
        ),
        *_names("knn", "accuracy standard_error k+asked temperature n_train n_test"),
        *_names("knn", "zero_train zero_test"),
        *_names("kmeans", CLUSTERS),
        *_names("codes", CLUSTERS),
        *_names("collapse/features", LAYER),
        *_names("collapse/embeddings", LAYER),
        *_names("collapse/embeddings", "mixture_padding"),
        *(f"{curve}_k{k}" for curve in MIXTURE_CURVES for k in MIXTURES),
        *_names("collapse/codes", "c n usage_entropy+ceiling+ratio occupied+ceiling+random"),
        *_names("robustness", "n stored purity_chance"),
        *(f"robustness/clean/{operator}/purity" for operator in OPERATORS),
        *(
            f"robustness/{change}/{operator}/{what}"
            for change in ("attack", "random")
            for operator in OPERATORS
            for what in ("cosine", "changed", "purity")
        ),
        *_names("collapse/codes", "dead+floor+share+share_floor soft_entropy+ceiling+ratio"),
        *_names("detection", "AP AP50 AP75 AP07 loss"),
    ]
)
"""Metrics of metrics.csv."""

NEIGHBOURS = ("neighbour_purity", "neighbour_same_image")
"""Columns of history.csv for a queue of neighbours; with _L{L}, of its newest L vectors alone."""

HISTORY = frozenset(
    ["lr", "loss", "probe_accuracy"]
    + ["swapped", "distillation", "classification", "variance", "covariance"]  # of the baselines
    + [f"{layer}_{monitor}" for layer in LAYERS for monitor in ("sd", "rank")]
    + ["invariance", "prior", "contrastive", "similarity"]  # loss terms of the methods
    + ["redundancy"]
    + ["augmented_similarity", "neighbour_chance", *NEIGHBOURS]  # of feature augmentation
)
"""Columns of history.csv that can be drawn over its epochs."""

MATRICES = ("correlation", "similarity")
"""H^T H and H H^T of the embeddings."""

COLOURED = ("class", "code")
"""What colours the points of a map."""

DRAWN = {
    "history": HISTORY,
    "queue": (*NEIGHBOURS, "neighbour_chance"),
    "spectrum": LAYERS,
    "mixture": MIXTURE_CURVES,
    "matrices": MATRICES,
    "map": COLOURED,
    "label_share": ("accuracy",),
}
"""Kind of figure -> what its panels draw, where that is no metric."""


def check_study(study: Study) -> None:
    """Refuse names that nothing has: rows, metrics and readings of tables, figures and claims.

    Raises:
        UserError: one line that names the study, the place, and the nearest known name.
    """
    for name, row in study.rows.items():
        _known(f"study {study.name}: row {name}", "row", filter(None, [row.over]), study.rows)
    for kind, rows in study.evaluations.items():
        _known(f"study {study.name}: evaluations: {kind}", "row", rows, study.rows)
    for table in study.tables:
        where = f"study {study.name}: table {table.id}"
        rows = (*table.rows, *table.baseline, *table.baseline.values(), *table.published_rows)
        _known(where, "row", rows, study.rows)
        for column in table.columns:
            _known(where, "metric", [column.metric], METRICS)
            _known(where, "reading", [column.reading], READINGS)
    for figure in study.figures:
        where = f"study {study.name}: figure {figure.id}"
        _known(where, "row", _rows(figure), study.rows)
        for panel in figure.panels:
            drawn = DRAWN.get(figure.kind, METRICS)
            _known(where, "metric", filter(None, [panel.metric, panel.level]), drawn)
            _known(where, "reading", [panel.reading], READINGS)
    for claim in study.claims:
        where = f"study {study.name}: claim {claim.id}"
        for test in claim.tests:
            _known(where, "row", test.every_row, study.rows)
            _known(where, "metric", filter(None, [test.metric, test.ceiling]), METRICS)
            _known(where, "reading", [test.reading], READINGS)


def _rows(figure: Figure) -> Iterator[str]:
    yield from figure.rows
    if figure.untrained:
        yield figure.untrained
    yield from (*figure.baseline, *figure.baseline.values())
    yield from (*figure.control, *figure.control.values())


def _known(where: str, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1, 0.0)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{where}: there is no {kind} '{name}'{hint}")
