"""A study as typed models: its rows, and the tables, figures and claims made of them.

Nothing here changes a number of a run; what does is in `models`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from peregrine.config.models import Extra, Model, Name, no_twins


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

    def gains(self, over: Mapping[str, str]) -> dict[str, str]:
        """Its baselines: what its rows are `over`, under what it says itself."""
        return {row: over[row] for row in self.rows if row in over} | self.baseline

    @model_validator(mode="after")
    def _distinct(self) -> "Table":
        labels = [column.label for column in self.columns]
        if len(set(labels)) != len(labels) or len(set(self.rows)) != len(self.rows):
            raise ValueError(f"table {self.id} names a row or a column label twice")
        return self


class Panel(Model):
    """One pair of axes of a figure."""

    metric: str = Field(
        description="A metric, a layer, a column of history.csv or what stands before _k{k}."
    )
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
    kind: Literal[
        "metric_over_option",
        "spectrum",
        "history",
        "queue",
        "metric_by_row",
        "gain",
        "mixture",
        "matrices",
        "map",
        "detections",
        "label_share",
        "sensitivity",
    ]
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
    control: dict[str, str] = Field(
        {}, description="gain: row -> row whose own gain is taken off, an interaction."
    )

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of its groups, each once."""
        return tuple(dict.fromkeys(row for group in self.groups.values() for row in group))

    def gains(self, over: Mapping[str, str]) -> dict[str, str]:
        """Its baselines, as those of a table; only kinds that draw baselines have any."""
        if self.kind not in ("gain", "metric_by_row"):
            return self.baseline
        out = {row: over[row] for row in self.rows if row in over} | self.baseline
        if self.kind == "gain" and not out:
            raise ValueError(f"figure {self.id}: baseline says over which row each gain is drawn")
        return out | {row: over[row] for row in self.control.values() if row in over}

    @model_validator(mode="after")
    def _complete(self) -> "Figure":
        if (self.kind == "metric_over_option") != (self.option is not None):
            raise ValueError(f"{self.kind}: option goes with metric_over_option, and only there")
        if self.control and self.kind != "gain":
            raise ValueError(f"{self.kind}: control goes with gain only")
        no_twins(f"figure {self.id}: panel label", (panel.label for panel in self.panels))
        return self


class Test(Model):
    """What decides a claim; declared before any result. See peregrine.reporting.claims."""

    kind: Literal["above", "below", "trend", "difference", "differs", "equivalent", "interaction"]
    metric: str
    label: str = Field(description="The test in words.")
    reading: Name = "corrected"
    rows: tuple[str, ...] = Field(min_length=1)
    against: tuple[str, ...] = Field((), description="Partner of each row, same length as rows.")
    control: tuple[str, ...] = Field((), description="Interaction: rows of the other difference.")
    control_against: tuple[str, ...] = Field((), description="Interaction: their partners.")
    threshold: float = Field(
        0.0,
        description="What the number is held against, in its unit; equivalent: the largest"
        " difference of either sign that counts as none.",
    )
    ceiling: str | None = Field(None, description="Metric by which `metric` is divided first.")
    option: str | None = Field(None, description="Dotted option whose logarithm a trend follows.")
    any_row: bool = Field(
        False, description="above, below: one row that passes is enough; else every row must."
    )
    on_failure: Literal["undecided", "contradicted", "as measured"] = Field(
        "undecided",
        description="What a collapsed or NaN seed of these rows makes of the test; as measured:"
        " a seed that left its value counts with it, one that left none makes it undecided.",
    )

    @property
    def every_row(self) -> tuple[str, ...]:
        """All rows that it names, each once."""
        every = (*self.rows, *self.against, *self.control, *self.control_against)
        return tuple(dict.fromkeys(every))

    @model_validator(mode="after")
    def _complete(self) -> "Test":
        paired = self.kind in ("difference", "differs", "equivalent", "interaction")
        if len(self.against) != (len(self.rows) if paired else 0):
            raise ValueError(f"{self.kind}: against needs one partner per row, or none if unpaired")
        crossed = self.kind == "interaction"
        if {len(self.control), len(self.control_against)} != {len(self.rows) if crossed else 0}:
            raise ValueError(f"{self.kind}: control and control_against are for interactions only")
        if (self.kind == "trend") != (self.option is not None):
            raise ValueError(f"{self.kind}: a trend, and nothing else, needs an option")
        if self.kind == "equivalent" and self.threshold <= 0:
            raise ValueError("equivalent: threshold is the difference that counts as none, above 0")
        if self.any_row and self.kind not in ("above", "below"):
            raise ValueError(f"{self.kind}: any_row is for above and below only")
        return self


class Claim(Model):
    id: str
    statement: str
    tests: tuple[Test, ...] = ()
    not_run: str = Field(
        "", description="Why no test covers the claim, or a part of it: then never 'supported'."
    )
    any_test: bool = Field(
        False, description="One test that supports is enough; else all of them must."
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
    label: str = Field(description="With `like`, one that begins with a comma continues its label.")
    like: str | None = Field(None, description="An earlier row, over whose run this one's is laid.")
    over: str | None = Field(
        None, description="Row over which its gain is shown, where no table or figure says other."
    )
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
    evaluations: dict[Extra, tuple[str, ...]] = Field(
        {}, description="Extra evaluation -> rows that have it, where the scale runs them."
    )

    @field_validator("rows")
    @classmethod
    def _labelled(cls, rows: dict[str, Row]) -> dict[str, Row]:
        out: dict[str, Row] = {}
        for name, row in rows.items():
            if row.like is not None and row.like not in out:
                raise ValueError(f"row {name} is like '{row.like}', which must stand before it")
            if row.like is not None and row.label.startswith(","):
                row = row.model_copy(update={"label": out[row.like].label + row.label})
            out[name] = row
        return out

    @field_validator("tables", "figures")
    @classmethod
    def _gains(cls, shown: tuple, info: ValidationInfo) -> tuple:
        over = {name: row.over for name, row in info.data.get("rows", {}).items() if row.over}
        return tuple(each.model_copy(update={"baseline": each.gains(over)}) for each in shown)

    def layers(self, name: str) -> list[dict[str, Any]]:
        """What makes a row's run, later wins: defaults, the rows that it is like, its own."""
        row = self.rows[name]
        return [*(self.layers(row.like) if row.like else [self.defaults]), row.run]

    @model_validator(mode="after")
    def _distinct(self) -> "Study":
        no_twins("row label", (row.label for row in self.rows.values()))
        for kind in ("tables", "figures", "claims"):
            no_twins(f"id of {kind}", (each.id for each in getattr(self, kind)))
        return self
