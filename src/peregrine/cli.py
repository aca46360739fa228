"""`python -m peregrine STEP`: every rule of the workflow, also by hand.

Each command imports what it needs when it runs, so that planning and reporting never load torch.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from peregrine.errors import REMEDIES, UserError, out_of_memory, refusal

if TYPE_CHECKING:
    import torch

    from peregrine.config.load import Project
    from peregrine.data.prepare import Prepared

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

STEPS, SUMMARY, LOOK = "Steps of a run, in their order", "Steps of a study", "Looking around"
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
RunId = Annotated[str, typer.Option("--run", help="Run id, as `status` and results/runs name it.")]
Seeds = Annotated[list[int], typer.Option("--seed", help="A seed of the scale; may be repeated.")]
Device = Annotated[
    str, typer.Option(help="auto (a GPU where there is one, else the CPU), cpu, cuda or cuda:N.")
]


@app.command(rich_help_panel=STEPS)
def prepare(
    dataset: DataSet,
    config: Configuration = Path("config"),
    check: Annotated[
        bool, typer.Option("--check", help="Say what is there; write and fetch nothing.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="That decode image folders; all cores by default.")
    ] = None,
) -> None:
    """Bring a data set into one verified uint8 file.

    Writes {name}.safetensors and {name}.json to results/data/.
    """
    from peregrine.config.load import load_config
    from peregrine.config.models import SourceSpec
    from peregrine.data.acquire import check as look
    from peregrine.data.prepare import prepare as step
    from peregrine.data.sources import source

    settings = load_config(config)
    origin = source(dataset)
    for name in settings.sources:
        source(name)
    spec = settings.sources.get(dataset, SourceSpec())
    results = Path(settings.results)
    store = Path(os.environ.get("PEREGRINE_DATA") or results / "raw")
    if check:
        for line in look(dataset, origin, spec, store, results / "data"):
            print(line)
    else:
        print(step(dataset, results / "data", spec, store, threads))


@app.command(rich_help_panel=STEPS)
def pretrain(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """Train a run, one seed after the other; a stopped one goes on where it was.

    Reads the prepared data set; writes results/runs/RUN/seed-N/. Ends with code 0 also where a
    seed collapses or ends in NaN, which is a result, and with code 75 where a signal stopped it:
    the same command then goes on from the last checkpoint.
    """
    from peregrine.config.load import load
    from peregrine.data.prepare import load as load_data
    from peregrine.pretrain.device import pick_device, set_threads
    from peregrine.pretrain.loop import Interrupted
    from peregrine.pretrain.loop import pretrain as step

    project = load(config, scale=scale)
    chosen = project.run(run)
    project.check_seeds(run, seed)
    results = Path(project.config.results)
    set_threads(project.scale.training_threads)
    data = load_data(results / "data" / f"{chosen.dataset.name}.safetensors", chosen.dataset)
    for each in seed:
        try:
            outcome = step(chosen, each, data, seed_folder(results, run, each), pick_device(device))
        except Interrupted as reason:
            print(f"run {run}, seed {each}: {reason}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        print(f"run {run}, seed {each}: {outcome['status']} at epoch {outcome['epoch']}")


@app.command(rich_help_panel=STEPS)
def extract(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """Compute the frozen features of trained runs; their checkpoints are then removed.

    Reads the weights and the data; writes results/runs/RUN/seed-N/corrected/features.safetensors.
    """
    from peregrine.evaluation.features import extract as step
    from peregrine.evaluation.features import forget_checkpoint

    project, folders, data, place = with_data(run, seed, config, scale, device)
    of = project.protocol
    for folder in folders:
        step(folder, data, place, of.embedding_sample, of.view_sample, of.centre_share)
    for folder in folders:
        forget_checkpoint(folder)


@app.command(rich_help_panel=STEPS)
def evaluate(
    run: RunId, seed: Seeds, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Linear probe, kNN and clustering on frozen features.

    Writes linear-, knn- and clustering-PROTOCOL.json beside the features.
    """
    from peregrine.config.check import READINGS
    from peregrine.config.load import load
    from peregrine.evaluation.evaluate import evaluate as step

    project = load(config, scale=scale)
    for folder in trained(project, run, seed):
        for reading in READINGS:
            step(folder, reading, project.scale.protocol, project.protocol)


@app.command(rich_help_panel=STEPS)
def diagnose(
    run: RunId, seed: Seeds, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Collapse diagnostics on frozen features.

    Writes collapse-PROTOCOL.json and spectrum.csv beside the features.
    """
    from peregrine.config.check import READINGS
    from peregrine.config.load import load
    from peregrine.diagnostics.diagnose import diagnose as step

    project = load(config, scale=scale)
    for folder in trained(project, run, seed):
        for reading in READINGS:
            step(folder, reading, project.scale.protocol, project.protocol)


@app.command(rich_help_panel=STEPS)
def robustness(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """What a small attack on the images does to neighbours and augmented features.

    Reads the weights and the data; writes corrected/robustness-PROTOCOL.json.
    """
    from peregrine.evaluation.robustness import robustness as step

    project, folders, data, place = with_data(run, seed, config, scale, device)
    for folder in folders:
        step(folder, data, place, project.scale.protocol, project.protocol)


@app.command(rich_help_panel=STEPS)
def detect(
    run: RunId,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
) -> None:
    """Fine-tune a detector from the weights and score its boxes; a killed one goes on.

    Reads the weights and detection_data; writes corrected/detection-PROTOCOL.json and .png.
    """
    from peregrine.evaluation.detection import detect as step

    project, folders, data, place = with_data(run, seed, config, scale, device)
    for folder in folders:
        step(folder, data, place, project.detection, project.scale.protocol)


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
    study: StudyName, config: Configuration = Path("config"), scale: ScaleName = None
) -> None:
    """Executed notebook, HTML and PDF of a study.

    Reads what collect wrote, recomputes every number of it, writes reports/SCALE/STUDY.*.
    """
    from peregrine.config.load import load
    from peregrine.reporting.report import report as step

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
    set_threads(project.scale.training_threads)
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


@app.command(rich_help_panel=LOOK)
def status(
    study: Annotated[
        list[str] | None, typer.Option(help="Only this study; may be repeated.")
    ] = None,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """How far every seed of every row is, and what to type next.

    Reads only, also beside a running workflow. Ends with code 0 whatever it finds.
    """
    from peregrine.config.load import load, load_config
    from peregrine.reporting.status import as_json, as_text, next_step, states

    project = load(config, scale=scale)
    seeds = states(project, study or list(project.studies), Path(project.config.results))
    step = next_step(project, seeds, load_config(config).scale)
    print((as_json if json else as_text)(project, seeds, step))


@app.command(rich_help_panel=LOOK)
def schema() -> None:
    """Print the JSON schema of config.yaml (workflow/schemas/config.schema.json)."""
    import json

    from peregrine.config.load import schema as generate

    print(json.dumps(generate(), indent=2))


def with_data(
    run: str, seeds: list[int], config: Path, scale: str | None, device: str
) -> tuple["Project", list[Path], "Prepared", "torch.device"]:
    """(project, folders of trained seeds, data of the run, device); sets the scale's threads."""
    from peregrine.config.load import load
    from peregrine.data.prepare import load as load_data
    from peregrine.pretrain.device import pick_device, set_threads

    project = load(config, scale=scale)
    folders = trained(project, run, seeds)
    set_threads(project.scale.training_threads)
    part = project.run(run).dataset
    data = load_data(Path(project.config.results) / "data" / f"{part.name}.safetensors", part)
    return project, folders, data, pick_device(device)


def trained(project: "Project", run: str, seeds: list[int]) -> list[Path]:
    """Folders of trained seeds, each of which must hold the run and seed that its path says."""
    from peregrine.frozen import read_outcome

    project.check_seeds(run, seeds)
    folders = [seed_folder(Path(project.config.results), run, each) for each in seeds]
    for folder, seed in zip(folders, seeds):
        outcome = read_outcome(folder)
        if (outcome["run"], outcome["seed"]) != (run, seed):
            raise UserError(
                f"{folder} holds run {outcome['run']}, seed {outcome['seed']}; move it away"
            )
    return folders


def seed_folder(results: Path, run: str, seed: int) -> Path:
    return results / "runs" / run / f"seed-{seed}"


def main() -> None:
    """Entry point: a user's error is one line on stderr and exit code 2."""
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except UserError as error:
        problem = str(error)
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "python -m peregrine")
        problem = f"{error.format_message()} (see {command} -h)"
    except BrokenPipeError:
        os._exit(1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        problem = (
            "there is not enough memory for this run; take a smaller batch_size, net or view"
            f" (accumulate cuts a batch, chunk FALCON's dictionary): {error}"
        )
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        problem = f"{error.filename or 'a file'}: {refusal(error)}"
    print(f"peregrine: error: {' '.join(problem.split())}", file=sys.stderr)
    sys.exit(2)
