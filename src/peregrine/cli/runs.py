"""The steps of a run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peregrine.cli.options import (
    INTERRUPTED,
    STEPS,
    Configuration,
    DataSet,
    Device,
    RunName,
    ScaleName,
    Seeds,
    app,
)
from peregrine.errors import UserError
from peregrine.places import own_folder, retire

if TYPE_CHECKING:
    import torch

    from peregrine.config.load import Project
    from peregrine.data.prepare import Prepared


@app.command(rich_help_panel=STEPS)
def prepare(
    dataset: DataSet,
    config: Configuration = Path("config"),
    check: Annotated[
        bool, typer.Option("--check", help="Say what is there; write and fetch nothing.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode image folders (default: all cores)."),
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
    run: RunName,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "auto",
    seeds_together: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many seeds to train side by side (default: the scale's seeds_together).",
        ),
    ] = None,
) -> None:
    """Train a run, one seed after the other or several at a time; a stopped one goes on.

    Reads the prepared data set; writes results/runs/RUN/seed-N/. Ends with code 0 also where a
    seed collapses or ends in NaN, which is a result, and with code 75 where a signal stopped it:
    the same command then goes on from the last checkpoint. Under `torchrun --nproc-per-node N -m`
    N processes train each seed together, as they do by themselves where the scale says so.
    """
    from peregrine.cli.together import check_launcher, end_with_parent, places, train_together
    from peregrine.config.load import load
    from peregrine.config.machine import launched, visible_gpus
    from peregrine.config.resources import processes

    if launched():
        check_launcher()
        end_with_parent()
    project = load(config, scale=scale)
    run = project.id_of(run)
    chosen = project.run(run)
    project.check_seeds(run, seed)
    if len(set(seed)) < len(seed):  # side by side one would wait for the other's lock
        raise UserError(f"--seed {max(seed, key=seed.count)} is given twice; give each seed once")
    wanted = min(seeds_together or project.scale.seeds_together, len(seed))
    at_once = 1 if launched() else places(wanted, device)
    if at_once > 1:
        options = ["--run", run, "--config", str(config), "--scale", project.scale.name]
        options += ["--device", device, "--seeds-together", "1"]
        raise typer.Exit(train_together(seed, at_once, options, project.scale.training_threads))

    from peregrine.data.prepare import load as load_data
    from peregrine.pretrain.device import set_threads
    from peregrine.pretrain.distributed import join, launch
    from peregrine.pretrain.loop import Interrupted
    from peregrine.pretrain.loop import pretrain as step
    from peregrine.reporting.attic import keep_older

    results = Path(project.config.results)
    if not launched() and not device.startswith("cuda:"):
        gpus = 0 if device == "cpu" else len(visible_gpus())
        together = processes(chosen, project.scale.processes_per_run, gpus)
        if together > 1:
            raise typer.Exit(launch(together, sys.argv[1:]))
    set_threads(project.scale.training_threads)
    data = load_data(results / "data" / f"{chosen.dataset.name}.safetensors", chosen.dataset)
    world = join()
    for place in keep_older(project, results, ((run, each) for each in seed if world.main)):
        print(f"results that this training replaces are kept in {place}")
    for each in seed:
        folder = own_folder(results, run, each)
        try:
            outcome = step(chosen, each, data, folder, world.device(device), world)
        except Interrupted as reason:
            if world.main:
                print(f"run {run}, seed {each}: {reason}", file=sys.stderr)
            world.leave()
            raise typer.Exit(INTERRUPTED) from None
        print(f"run {run}, seed {each}: {outcome['status']} at epoch {outcome['epoch']}")
        replaced = retire(results, run, each) if world.main else None
        if replaced:
            print(f"what was adopted for it before is in {replaced}")
    world.leave()


@app.command(rich_help_panel=STEPS)
def extract(
    run: RunName,
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
    run: RunName,
    seed: Seeds,
    config: Configuration = Path("config"),
    scale: ScaleName = None,
    device: Device = "cpu",
) -> None:
    """Linear probe, kNN and clustering on frozen features.

    Writes linear-, knn- and clustering-PROTOCOL.json beside the features. On a GPU, where asked
    for, probe and neighbours are computed by torch; their files name it.
    """
    from peregrine.config.check import READINGS
    from peregrine.config.load import load
    from peregrine.evaluation.evaluate import evaluate as step

    project = load(config, scale=scale)
    folders = trained(project, run, seed)
    place = None
    if device != "cpu":
        from peregrine.pretrain.device import pick_device  # torch, only where needed

        place = pick_device(device)
    if place is not None and place.type == "cpu":  # auto, and there is none
        place = None
    for folder in folders:
        for reading in READINGS:
            step(folder, reading, project.scale.protocol, project.protocol, place)


@app.command(rich_help_panel=STEPS)
def diagnose(
    run: RunName, seed: Seeds, config: Configuration = Path("config"), scale: ScaleName = None
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
    run: RunName,
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
    run: RunName,
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
    part = project.run(project.id_of(run)).dataset
    data = load_data(Path(project.config.results) / "data" / f"{part.name}.safetensors", part)
    return project, folders, data, pick_device(device)


def trained(project: "Project", run: str, seeds: list[int]) -> list[Path]:
    """Folders of trained seeds, each of which must hold the run and seed that its path says."""
    from peregrine.frozen import read_outcome

    run = project.id_of(run)
    project.check_seeds(run, seeds)
    folders = [own_folder(Path(project.config.results), run, each) for each in seeds]
    for folder, seed in zip(folders, seeds):
        outcome = read_outcome(folder)
        if (outcome["run"], outcome["seed"]) != (run, seed):
            raise UserError(
                f"{folder} holds run {outcome['run']}, seed {outcome['seed']}; move it away"
            )
    return folders
