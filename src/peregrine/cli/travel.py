"""Finished results that travel to another machine."""

from pathlib import Path
from typing import Annotated

import typer

from peregrine.cli.options import TRAVEL, Configuration, ScaleName, app


@app.command(rich_help_panel=TRAVEL)
def bundle(
    path: Annotated[Path, typer.Argument(help="The bundle to write, such as runs.tar.xz.")],
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Only this STUDY/ROW or run id; repeatable.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Pack the networks too.")] = False,
    own: Annotated[bool, typer.Option("--own", help="Leave out what was adopted.")] = False,
    slim: Annotated[
        bool,
        typer.Option(
            "--slim",
            help="Pack the large matrices only where a figure shows them: of some runs' first"
            " finished seed; of a scale like another neither them nor spectra.",
        ),
    ] = False,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
) -> None:
    """Pack every finished seed of a scale, or of some of its runs: metrics, or weights as well."""
    from peregrine.config.load import load
    from peregrine.reporting.bundles import bundle as step

    project = load(config, scale=scale)
    runs = [project.id_of(name) for name in run or ()]
    count, others = step(project, Path(project.config.results), path, runs, weights, own, slim)
    for line in others:
        print(f"not packed: {line}")
    size = path.stat().st_size / 2**20
    print(f"{path}: {count} seeds, {size:.2f} MiB, {size / count:.3f} a seed")


@app.command(rich_help_panel=TRAVEL)
def adopt(
    paths: Annotated[list[Path], typer.Argument(help="Bundles, adopted one after the other.")],
    replicate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keep the seeds apart under NAME, as repeats to compare with, never as results.",
        ),
    ] = None,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
) -> None:
    """Verify bundles and take their seeds over: a study completes from them without a training.

    With --replicate NAME they complete nothing: each seed is compared with the same seed here, and
    the report says how far numbers move when nothing but the machine changes.
    """
    from peregrine.config.load import load
    from peregrine.reporting.bundles import adopt as step

    project = load(config, scale=scale)
    for path in paths:
        for line in step(project, Path(project.config.results), path, replicate):
            print(line)
