"""The application, and the options that its commands share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="""Rerun FALCON / CPLearn and Feature Augmentation, step by step.

    `snakemake` runs the steps in their order, in parallel and only where something is missing or
    out of date. Each of them also runs by hand; `status` says which runs there are and how far
    they are.""",
    epilog="A wrong input ends with one line that names it, and exit code 2.",
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STEPS, SUMMARY = "Steps of a run, in their order", "Steps of a study"
TRAVEL, LOOK = "Results that travel", "Looking around"
"""Headings in the list of commands."""

INTERRUPTED = 75
"""Exit code of a run that was asked to stop: try again, it goes on (EX_TEMPFAIL)."""

DataSet = Annotated[str, typer.Argument(help="A data set of the registry, such as digits.")]
StudyName = Annotated[str, typer.Argument(help="A study of config.yaml, such as falcon.")]
Configuration = Annotated[Path, typer.Option("--config", help="The configuration folder.")]
ScaleName = Annotated[
    str | None,
    typer.Option("--scale", help="A file of config/scales/; config.yaml's scale if not given."),
]
RunName = Annotated[
    str, typer.Option("--run", help="STUDY/ROW, such as falcon/untrained, or a run id of `status`.")
]
Seeds = Annotated[list[int], typer.Option("--seed", help="A seed of the scale; may be repeated.")]
Device = Annotated[
    str, typer.Option(help="auto (a GPU where there is one, else the CPU), cpu, cuda or cuda:N.")
]
