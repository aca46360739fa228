"""The theory study: sizes, claims with their tolerances, figures. A study of its own kind.

It has no runs, data or seeds: config/theory.yaml says how large its minimisations are, and
a scale lays its `theory` over these sizes.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from peregrine.config.load import merge, read_yaml, validate
from peregrine.config.models import Model, Name, Scale, no_twins

Count = Annotated[int, Field(ge=2, le=2**20)]
Positive = Annotated[float, Field(gt=0)]


class Sizes(Model):
    """How large everything is; numbers of codes are c, of samples n, of dimensions f."""

    epsilon: float = Field(gt=0, lt=1e-3, description="Mass of a code that is not chosen.")
    iterations: int = Field(ge=1, description="Most iterations of a minimisation (L-BFGS).")
    code_widths: tuple[Count, ...] = Field(min_length=1, description="f of the random codes.")
    code_count: Count = Field(description="Random codes drawn for each f.")
    assignment_samples: Count = Field(description="n of the free assignments.")
    assignment_codes: Count = Field(description="c of the free assignments, larger than n.")
    assignment_starts: int = Field(ge=1, description="Their random starts, at the c of few_codes.")
    large_starts: int = Field(ge=0, description="Their random starts, at the largest c.")
    betas: tuple[Positive, ...] = Field(min_length=1, description="Weights of the invariance.")
    width: Count = Field(description="f of the free embeddings.")
    block: Count = Field(description="n/c of the free embeddings, n >= c.")
    codes: tuple[Count, ...] = Field(
        min_length=1, description="c of the free embeddings with n >= c."
    )
    few_codes: tuple[Count, ...] = Field(
        min_length=1, description="c of the free embeddings with n < c, n as of assignments."
    )
    starts: int = Field(ge=1, description="Random starts of the free embeddings.")
    picture: Count = Field(description="c of the solutions whose cosines are written out.")

    @model_validator(mode="after")
    def _fits(self) -> "Sizes":
        n = self.assignment_samples
        for c in (self.assignment_codes, *self.few_codes):
            if c < 2 * n or c % n:
                raise ValueError(f"n < c: {c} codes are no multiple of {n} samples, or not twice")
        if 1.0 not in self.betas:
            raise ValueError("betas must hold 1, the weight of the released code")
        if self.picture not in self.codes:
            raise ValueError(f"picture {self.picture} is none of codes {list(self.codes)}")
        largest = max(self.assignment_codes, *self.few_codes, *self.codes)
        if self.epsilon * largest >= 0.1:
            raise ValueError(f"epsilon {self.epsilon} is too large for {largest} codes")
        return self


class TheoryTest(Model):
    """One number from a CSV file of the study, held against a declared limit."""

    label: str
    file: Literal["codes", "assignments", "embeddings"]
    metric: Name
    where: dict[str, str | float | tuple[str | float, ...]] = Field(
        {}, description="Column -> value or values of the lines that count; '*' ends a beginning."
    )
    reduce: Literal["max", "min", "mean"] = Field(description="How these lines become one number.")
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _limited(self) -> "TheoryTest":
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"test '{self.label}' needs at_most, at_least or both")
        return self


class TheoryClaim(Model):
    id: Name | Annotated[str, Field(pattern=r"^T\d+$")]
    statement: str
    tests: tuple[TheoryTest, ...] = Field(min_length=1)
    remark: str = ""


class TheoryFigure(Model):
    id: Literal["codes", "assignments", "blocks", "gram", "few"]
    title: str
    caption: str


class TheoryStudy(Model):
    name: Literal["theory"]
    title: str
    paper: str
    summary: str
    sizes: Sizes
    claims: tuple[TheoryClaim, ...]
    figures: tuple[TheoryFigure, ...]

    @model_validator(mode="after")
    def _distinct(self) -> "TheoryStudy":
        for kind in ("claims", "figures"):
            no_twins(f"id of {kind}", (each.id for each in getattr(self, kind)))
        return self


def load_theory(folder: Path, scale: Scale) -> TheoryStudy:
    """config/theory.yaml with the scale's sizes laid over it.

    Raises:
        UserError: missing or not valid.
    """
    path = folder / "theory.yaml"
    data = read_yaml(path)
    sizes = data.get("sizes")
    if isinstance(sizes, dict):
        data["sizes"] = merge(sizes, scale.theory)
    return validate(TheoryStudy, data, f"{path}, with the scale {scale.name}")
