"""The steps of a study."""

from pathlib import Path
from typing import Annotated

import typer

from peregrine.cli.options import SUMMARY, Configuration, ScaleName, StudyName, app


@app.command(rich_help_panel=SUMMARY)
def collect(
    study: StudyName, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Gather whatever is finished into metrics, tables, figures and claims.

    Missing, failed, mixed and older seeds are shown as such. Writes results/SCALE/STUDY/.
    """
    from peregrine.config.load import load
    from peregrine.reporting.collect import collect as step

    project = load(config, scale=scale)
    step(project, study, Path(project.config.results), config)


@app.command(rich_help_panel=SUMMARY)
def report(
    study: StudyName,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    first: Annotated[
        bool,
        typer.Option(
            "--collect", help="Run collect first, so that an unfinished study can be reported."
        ),
    ] = False,
) -> None:
    """Executed notebook, HTML and PDF of a study.

    Reads what collect wrote, recomputes every number of it, writes reports/SCALE/STUDY.*.
    """
    from peregrine.config.load import load
    from peregrine.reporting.report import report as step

    if first:
        collect(study, config, scale)
    project = load(config, scale=scale)
    folders = Path(project.config.results), Path(project.config.reports)
    step(project, study, *folders, config)


@app.command(rich_help_panel=SUMMARY)
def theory(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Minimise FALCON's loss over free assignments and embeddings."""
    from peregrine.config.load import load
    from peregrine.config.theory import load_theory
    from peregrine.pretrain.device import set_threads
    from peregrine.theory.study import theory as step

    project = load(config, scale=scale)
    set_threads(1)  # small problems: more threads gain nothing, and other counts other last bits
    sizes = load_theory(config, project.scale).sizes
    print(step(sizes, Path(project.config.results) / "theory" / project.scale.name))


@app.command(rich_help_panel=SUMMARY)
def theory_report(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Verdicts, notebook, page and PDF of the theory study."""
    from peregrine.config.load import load
    from peregrine.config.theory import load_theory
    from peregrine.reporting.theory import theory_report as step

    project = load(config, scale=scale)
    study = load_theory(config, project.scale)
    folder = Path(project.config.results) / "theory" / project.scale.name
    step(study, project.scale.name, folder, Path(project.config.reports) / project.scale.name)


@app.command(rich_help_panel=SUMMARY)
def index(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """The page that links the reports of a scale: reports/SCALE/index.html."""
    from peregrine.config.load import load
    from peregrine.reporting.report import index as step

    project = load(config, scale=scale)
    step(project, Path(project.config.results), Path(project.config.reports))


@app.command(rich_help_panel=SUMMARY)
def gate(
    runs: Annotated[list[Path], typer.Argument(help="runs.csv of every study.")],
    output: Annotated[Path, typer.Option(help="Written only when every run finished.")],
) -> None:
    """Fail, with the list, if any run of the studies did not finish as it should."""
    from peregrine.files import write_text
    from peregrine.reporting.records import read_runs

    seeds = [seed for path in runs for seed in read_runs(path)]
    failed = [seed for seed in seeds if seed.status not in ("finished", "older code")]
    for seed in failed:
        print(f"{seed.label} (run {seed.run}, seed {seed.seed}): {seed.status}")
    if failed:
        raise typer.Exit(1)
    older = sum(seed.status == "older code" for seed in seeds)
    note = f", {older} with older code" if older else ""
    write_text(output, f"{len(seeds)} of {len(seeds)} seeds finished{note}\n")
