"""Configuration as typed models: unknown keys are refused, every field says what it is.

Nothing here imports torch: the Snakefile plans from these models. A field whose value equals its
default is left out of a run's identity (see `identity`), so defaults are frozen once published.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]*[A-Za-z0-9_.-]$", max_length=200)]
"""A path that needs no quoting: it stands in file patterns and shell commands."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$", max_length=80)]


class Model(BaseModel):
    """Base of all configuration: immutable, unknown keys refused, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, which pydantic would take for the number 1.
        kind = cls.model_fields[info.field_name].annotation
        if kind is not bool and _has_bool(value):
            raise ValueError("true, false, yes, no, on and off are no values here")
        return value


def _has_bool(value: Any) -> bool:
    inside = isinstance(value, (list, tuple)) and any(map(_has_bool, value))
    return isinstance(value, bool) or inside


def _no_twins(what: str, names: Iterable[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise ValueError(f"{what} '{twins[0]}' stands twice")


class MethodOptions(Model):
    """Base of every method's `Options`; its fields are what a study may write under `method:`."""


class DatasetSpec(Model):
    name: Name = Field(description="A name of the registry in peregrine.data.sources.")


class ViewSpec(Model):
    """How one group of views is drawn from each image; see peregrine.data.views."""

    role: Literal["source", "target", "local"] = "source"
    count: int = Field(1, ge=1, description="Views in the group.")
    size: int = Field(32, ge=4, description="Side of the view in pixels.")
    crop_scale: tuple[Probability, Probability] = Field(
        (0.08, 1.0), description="Share of the area."
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="Width over height.")
    flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    jitter: Probability = Field(0.8, description="Probability of the colour jitter.")
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Probability = Field(0.2, description="Probability of greyscale.")
    blur: Probability = Field(0.0, description="Probability of a Gaussian blur.")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="Pixels.")
    solarise: Probability = 0.0
    solarise_threshold: Probability = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> "ViewSpec":
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key} must be two positive numbers, the smaller one first")
        return self


class BackboneSpec(Model):
    name: Literal["resnet8"] = "resnet8"
    width: int = Field(128, ge=1, description="Features F of the last layer.")


class OptimizerSpec(Model):
    name: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0, description="At batch 256; the effective rate is lr * batch/256.")
    weight_decay: Strength = Field(1e-4, description="L2 term, as torch's Adam and SGD apply it.")
    momentum: Probability = Field(0.9, description="SGD only.")
    warmup_epochs: float = Field(10, ge=0, description="Linear, per step.")
    warmup_start: float = Field(3e-5, ge=0, description="Learning rate of the first step.")


class ProbeSpec(Model):
    """The online linear probe on detached features (released reading of accuracy)."""

    lr: float = Field(0.1, gt=0, description="Adam, at batch 256, same schedule as the method.")


class Run(Model):
    """One resolved pretraining configuration without its seed."""

    dataset: DatasetSpec
    backbone: BackboneSpec = BackboneSpec()
    method: dict[str, Any] = Field(description="`name` of the registry and that method's options.")
    views: tuple[ViewSpec, ...] = Field(min_length=1)
    batch_size: int = Field(256, ge=2)
    epochs: int = Field(100, ge=0, le=10**6, description="0 keeps the untrained net.")
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerSpec = OptimizerSpec()
    probe: ProbeSpec = ProbeSpec()
    on_collapse: Literal["stop", "record"] = "stop"
    collapse_floor: Strength = Field(
        0.01, description="Smallest feature sd (1 = isotropic) that does not count as collapse."
    )


class Column(Model):
    """A column of a table. Numbers stay in the metric's own unit (shares: 0 to 1) until printed."""

    metric: str = Field(description="A metric of metrics.csv, such as linear/accuracy.")
    label: str
    reading: Name = "corrected"
    percent: bool = Field(False, description="Printed times 100.")
    decimals: int = Field(3, ge=0, le=6)
    published: str | None = Field(None, description="Column of config/published/<study>.csv.")


class Table(Model):
    id: Name
    title: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    baseline: dict[str, str] = Field({}, description="Row -> row over which its gain is shown.")
    published: str | None = Field(None, description="Table of config/published/<study>.csv.")
    published_rows: dict[str, str] = Field({}, description="Row -> row of the published table.")
    assumed: bool = Field(
        False, description="A setting behind the published numbers is our choice: verdicts say so."
    )
    other_setup: str = Field(
        "", description="Why no scale can reproduce the published numbers: cells say other set-up."
    )
    note: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> "Table":
        labels = [column.label for column in self.columns]
        if len(set(labels)) != len(labels) or len(set(self.rows)) != len(self.rows):
            raise ValueError(f"table {self.id} names a row or a column label twice")
        return self


class Panel(Model):
    """One pair of axes of a figure."""

    metric: str = Field(description="A metric of metrics.csv, a layer or a column of history.csv.")
    label: str
    reading: Name = "corrected"
    percent: bool = Field(False, description="Drawn times 100.")
    level: str | None = Field(None, description="Metric drawn beside it, such as a chance level.")
    level_label: str = "chance level"
    untrained_at_option: bool = Field(
        False, description="The untrained net is a point at its option, not a line across."
    )


class Figure(Model):
    """What is drawn from the collected numbers; see peregrine.reporting.figures."""

    id: Name
    kind: Literal["metric_over_option", "spectrum", "history", "metric_by_row", "gain"]
    title: str
    caption: str
    groups: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="Name -> rows that share a line, a colour or a column of axes."
    )
    panels: tuple[Panel, ...] = Field(min_length=1)
    untrained: str | None = Field(None, description="Row whose mean is drawn across as a line.")
    option: str | None = Field(None, description="Dotted option of the run on the x axis.")
    option_label: str = ""
    option_symbol: str = Field("", description="The option in a word or letter, for the legend.")
    baseline: dict[str, str] = Field({}, description="Row -> row over which its gain is drawn.")

    @model_validator(mode="after")
    def _complete(self) -> "Figure":
        if (self.kind == "metric_over_option") != (self.option is not None):
            raise ValueError(f"{self.kind}: option goes with metric_over_option, and only there")
        if self.kind == "gain" and not self.baseline:
            raise ValueError("gain: baseline says over which row each gain is drawn")
        _no_twins(f"figure {self.id}: panel label", (panel.label for panel in self.panels))
        return self


class Test(Model):
    """What decides a claim; declared before any result. See peregrine.reporting.claims."""

    kind: Literal["above", "below", "trend", "difference", "differs", "interaction"]
    metric: str
    label: str = Field(description="The test in words.")
    reading: Name = "corrected"
    rows: tuple[str, ...] = Field(min_length=1)
    against: tuple[str, ...] = Field((), description="Partner of each row, same length as rows.")
    control: tuple[str, ...] = Field((), description="Interaction: rows of the other difference.")
    control_against: tuple[str, ...] = Field((), description="Interaction: their partners.")
    threshold: float = Field(0.0, description="What the number is held against, in its unit.")
    ceiling: str | None = Field(None, description="Metric by which `metric` is divided first.")
    option: str | None = Field(None, description="Dotted option whose logarithm a trend follows.")
    on_failure: Literal["undecided", "contradicted"] = Field(
        "undecided", description="What a collapsed or NaN seed of these rows makes of the test."
    )

    @model_validator(mode="after")
    def _complete(self) -> "Test":
        paired = self.kind in ("difference", "differs", "interaction")
        if len(self.against) != (len(self.rows) if paired else 0):
            raise ValueError(f"{self.kind}: against needs one partner per row, or none if unpaired")
        crossed = self.kind == "interaction"
        if {len(self.control), len(self.control_against)} != {len(self.rows) if crossed else 0}:
            raise ValueError(f"{self.kind}: control and control_against are for interactions only")
        if (self.kind == "trend") != (self.option is not None):
            raise ValueError(f"{self.kind}: a trend, and nothing else, needs an option")
        return self


class Claim(Model):
    id: str
    statement: str
    tests: tuple[Test, ...] = ()
    not_run: str = Field(
        "", description="Why no test covers the claim, or a part of it: then never 'supported'."
    )

    @model_validator(mode="after")
    def _explained(self) -> "Claim":
        if not self.tests and not self.not_run:
            raise ValueError(f"claim {self.id} has no tests: say why in not_run")
        return self


class Assumption(Model):
    setting: str
    stated: str
    ours: str


class Row(Model):
    label: str
    only: tuple[Name, ...] = Field((), description="Scales that have this row; empty: all.")
    run: dict[str, Any] = {}


class Study(Model):
    """A study, written once for paper scale: its runs, tables, figures and claims."""

    name: Name
    title: str
    paper: str
    summary: str
    defaults: dict[str, Any]
    rows: dict[str, Row]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    assumptions: tuple[Assumption, ...]

    @model_validator(mode="after")
    def _distinct(self) -> "Study":
        _no_twins("row label", (row.label for row in self.rows.values()))
        for kind in ("tables", "figures", "claims"):
            _no_twins(f"id of {kind}", (each.id for each in getattr(self, kind)))
        return self


class StudyOverlay(Model):
    rows: tuple[str, ...] = Field((), description="The rows run at this scale; empty: all.")
    run: dict[str, Any] = Field({}, description="Laid over every run of the study.")
    row: dict[str, dict[str, Any]] = Field({}, description="Laid over one row.")


class Scale(Model):
    """What stands in for paper scale: data set, widths, epochs, seeds, threads."""

    name: Name
    description: str
    seeds: tuple[int, ...] = Field(min_length=1)
    seeds_per_job: Literal["all", "one"] = "one"
    training_threads: int = Field(
        1, ge=1, le=1024, description="Set by torch; other counts, other bits."
    )
    protocol: Name = "standard"
    run: dict[str, Any] = Field({}, description="Laid over every run.")
    studies: dict[str, StudyOverlay] = {}
    theory: dict[str, Any] = Field({}, description="Laid over the sizes of theory.yaml.")

    @model_validator(mode="after")
    def _seeds(self) -> "Scale":
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be different numbers of at least 0")
        return self


class Protocol(Model):
    """Every free knob of the evaluation, fixed before results."""

    linear_c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    linear_validation_share: float = Field(gt=0, lt=1)
    linear_max_iter: int = Field(ge=1)
    few_labels_per_class: int = Field(ge=1)
    few_label_draws: int = Field(ge=1)
    split_seed: int = Field(ge=0, lt=2**32)
    knn_k: int = Field(ge=1)
    knn_temperature: float = Field(gt=0)
    kmeans_restarts: int = Field(ge=1)
    chance_permutations: int = Field(ge=1)
    embedding_sample: int = Field(ge=2, description="Train embeddings kept for the diagnostics.")


class Config(Model):
    """config/config.yaml: what `snakemake` runs when nothing else is said."""

    scale: Name = Field("demo", description="A file of config/scales/.")
    studies: tuple[Name, ...] = Field(
        ("falcon", "feature_augmentation"), min_length=1, description="Files of config/studies/."
    )
    results: Folder = Field("results", description="Folder of data, runs and tables.")
    reports: Folder = Field("reports", description="Folder of notebooks, pages and PDFs.")

    @model_validator(mode="after")
    def _distinct(self) -> "Config":
        if len(set(self.studies)) != len(self.studies):
            raise ValueError("studies names a study twice")
        return self
