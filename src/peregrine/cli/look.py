"""Looking around."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peregrine.cli.options import LOOK, Configuration, ScaleName, app

if TYPE_CHECKING:
    from peregrine.config.load import Project


@app.command(rich_help_panel=LOOK)
def status(
    study: Annotated[
        list[str] | None, typer.Option(help="Only this study; may be repeated.")
    ] = None,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Print instead the hours that each study will take, predicted from the runs that"
            " were measured so far.",
        ),
    ] = False,
) -> None:
    """How far every seed of every row is, and what to type next; or how long it takes.

    Reads only, also beside a running workflow. Ends with code 0 whatever it finds.
    """
    from peregrine.config.load import load, load_config
    from peregrine.reporting.status import as_json, as_text, next_step, states

    project = load(config, scale=scale)
    if estimate:
        print(estimated(project, config.parent / "benchmarks" / "recorded", json))
        return
    seeds = states(project, study or list(project.studies), Path(project.config.results))
    step = next_step(project, seeds, load_config(config).scale)
    print((as_json if json else as_text)(project, seeds, step))


def estimated(project: "Project", recorded: Path, json: bool) -> str:
    """Hours of every study on each kind of device that was measured."""
    from peregrine.nets.flops import forward_flops
    from peregrine.reporting.estimate import as_json, as_text, hours, measurements

    results = Path(project.config.results)
    known = measurements(results, recorded)
    table = hours(project, known, forward_flops, results)
    return as_json(table) if json else as_text(project, table, known)


@app.command(rich_help_panel=LOOK)
def doctor(
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    profile: Annotated[Path, typer.Option(help="The Snakemake profile of the cluster.")] = Path(
        "profiles/slurm"
    ),
    submit: Annotated[
        bool, typer.Option("--submit", help="Also send a job that looks for the results folder.")
    ] = False,
) -> None:
    """Whether this machine, and SLURM where it is installed, can run a scale; what to set.

    Ends with code 0 where all is fine, 1 where something is to set, 2 where it cannot look.
    """
    from peregrine.config.load import load
    from peregrine.doctor import as_text, code, examine

    findings = examine(load(config, scale=scale), profile, submit)
    print(as_text(findings))
    raise typer.Exit(code(findings))


@app.command(rich_help_panel=LOOK)
def schema() -> None:
    """Print the JSON schema of config.yaml (workflow/schemas/config.schema.json)."""
    import json

    from peregrine.config.load import schema as generate

    print(json.dumps(generate(), indent=2))
