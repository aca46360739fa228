"""`python -m peregrine STEP`: every rule of the workflow, also by hand.

Each command imports what it needs when it runs, so that planning and reporting never load torch.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peregrine.errors import UserError

if TYPE_CHECKING:
    from peregrine.config.load import Project

app = typer.Typer(
    help="Rerun FALCON / CPLearn and Feature Augmentation, step by step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

READING = "corrected"
"""The reading that frozen features are evaluated in."""

INTERRUPTED = 75
"""Exit code of a run that was asked to stop: try again, it goes on (EX_TEMPFAIL)."""

Configuration = Annotated[Path, typer.Option("--config", help="The configuration folder.")]
ScaleName = Annotated[str | None, typer.Option("--scale", help="Instead of config.yaml's scale.")]
RunId = Annotated[str, typer.Option("--run", help="Run id, a folder of results/runs.")]
Seeds = Annotated[list[int], typer.Option("--seed", help="Repeat for several seeds.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def prepare(dataset: str, config: Configuration = Path("config")) -> None:
    """Bring a data set into one verified uint8 file."""
    from peregrine.config.load import load_config
    from peregrine.data.prepare import prepare as step

    print(step(dataset, Path(load_config(config).results) / "data"))


@app.command()
def pretrain(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """Train a run, one seed after the other; a stopped one goes on where it was."""
    from peregrine.config.load import load
    from peregrine.data.prepare import load as load_data
    from peregrine.pretrain.device import pick_device, set_threads
    from peregrine.pretrain.loop import Interrupted
    from peregrine.pretrain.loop import pretrain as step

    project = load(config, scale=scale)
    chosen = project.run(run)
    known_seeds(project, run, seed)
    results = Path(project.config.results)
    set_threads(project.scale.training_threads)
    data = load_data(results / "data" / f"{chosen.dataset.name}.safetensors")
    for each in seed:
        try:
            outcome = step(chosen, each, data, seed_folder(results, run, each), pick_device(device))
        except Interrupted as reason:
            print(f"run {run}, seed {each}: {reason}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        print(f"run {run}, seed {each}: {outcome['status']} at epoch {outcome['epoch']}")


@app.command()
def extract(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """Compute the frozen features of trained runs; their checkpoints are then removed."""
    from peregrine.config.load import load
    from peregrine.data.prepare import load as load_data
    from peregrine.evaluation.features import extract as step
    from peregrine.evaluation.features import forget_checkpoint
    from peregrine.pretrain.device import pick_device, set_threads

    project = load(config, scale=scale)
    folders = trained(project, run, seed)
    set_threads(project.scale.training_threads)
    name = project.run(run).dataset.name
    data = load_data(Path(project.config.results) / "data" / f"{name}.safetensors")
    for folder in folders:
        step(folder, data, pick_device(device), project.protocol.embedding_sample)
    for folder in folders:
        forget_checkpoint(folder)


@app.command()
def evaluate(
    run: RunId, seed: Seeds, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Linear probe, kNN and clustering on frozen features."""
    from peregrine.config.load import load
    from peregrine.evaluation.evaluate import evaluate as step

    project = load(config, scale=scale)
    for folder in trained(project, run, seed):
        step(folder, READING, project.scale.protocol, project.protocol)


@app.command()
def diagnose(
    run: RunId, seed: Seeds, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Collapse diagnostics on frozen features."""
    from peregrine.config.load import load
    from peregrine.diagnostics.diagnose import diagnose as step

    project = load(config, scale=scale)
    for folder in trained(project, run, seed):
        step(folder, READING, project.scale.protocol, project.protocol)


@app.command()
def collect(study: str, config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Gather whatever is finished into metrics, tables, figures and claims."""
    from peregrine.config.load import load
    from peregrine.reporting.collect import collect as step

    project = load(config, scale=scale)
    step(project, study, Path(project.config.results), config)


@app.command()
def report(study: str, config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Executed notebook, HTML and PDF of a study."""
    from peregrine.config.load import load
    from peregrine.reporting.report import report as step

    project = load(config, scale=scale)
    folders = Path(project.config.results), Path(project.config.reports)
    step(project, study, *folders, config)


@app.command()
def theory(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Minimise FALCON's loss over free assignments and embeddings."""
    from peregrine.config.load import load
    from peregrine.config.theory import load_theory
    from peregrine.pretrain.device import set_threads
    from peregrine.theory.study import theory as step

    project = load(config, scale=scale)
    set_threads(project.scale.training_threads)
    sizes = load_theory(config, project.scale).sizes
    print(step(sizes, Path(project.config.results) / "theory" / project.scale.name))


@app.command()
def theory_report(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """Verdicts, notebook, page and PDF of the theory study."""
    from peregrine.config.load import load
    from peregrine.config.theory import load_theory
    from peregrine.reporting.theory import theory_report as step

    project = load(config, scale=scale)
    study = load_theory(config, project.scale)
    folder = Path(project.config.results) / "theory" / project.scale.name
    step(study, project.scale.name, folder, Path(project.config.reports) / project.scale.name)


@app.command()
def index(config: Configuration = Path("config"), scale: ScaleName = None) -> None:
    """The page that links the reports of a scale."""
    from peregrine.config.load import load
    from peregrine.reporting.report import index as step

    project = load(config, scale=scale)
    step(project, Path(project.config.results), Path(project.config.reports))


@app.command()
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


@app.command()
def schema() -> None:
    """Print the JSON schema of config.yaml (workflow/schemas/config.schema.json)."""
    import json

    from peregrine.config.load import schema as generate

    print(json.dumps(generate(), indent=2))


def trained(project: "Project", run: str, seeds: list[int]) -> list[Path]:
    """Folders of trained seeds, each of which must hold the run and seed that its path says."""
    from peregrine.frozen import read_outcome

    known_seeds(project, run, seeds)
    folders = [seed_folder(Path(project.config.results), run, each) for each in seeds]
    for folder, seed in zip(folders, seeds):
        outcome = read_outcome(folder)
        if (outcome["run"], outcome["seed"]) != (run, seed):
            raise UserError(
                f"{folder} holds run {outcome['run']}, seed {outcome['seed']}; move it away"
            )
    return folders


def known_seeds(project: "Project", run: str, seeds: list[int]) -> None:
    """Refuse a run or a seed that the scale does not have."""
    project.run(run)
    for seed in seeds:
        if seed not in project.scale.seeds:
            raise UserError(f"--seed {seed}: scale {project.scale.name} has {project.scale.seeds}")


def seed_folder(results: Path, run: str, seed: int) -> Path:
    return results / "runs" / run / f"seed-{seed}"


def main() -> None:
    """Entry point: a user's error is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"peregrine: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os._exit(1)
