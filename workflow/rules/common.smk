import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The models of peregrine.config, without torch: this file is read at every planning.
sys.path.insert(0, str(Path("src").resolve()))

from peregrine.config.check import EVALUATIONS, READINGS
from peregrine.config.fingerprint import fingerprint, of_data
from peregrine.config.identity import digest, protocol_digest
from peregrine.config.load import load, load_config
from peregrine.config.machine import jobs_per_gpu, visible_gpus
from peregrine.config.models import SourceSpec
from peregrine.config.resources import needs, processes
from peregrine.data.sources import source
from peregrine.errors import UserError
from peregrine.places import ADOPTED, is_adopted, replicates, seed_folder

try:
    PROJECT = load(Path("config"), **config)
    STEPS_SEE = load_config(Path("config"), scale=PROJECT.scale.name)
    GPU_PLACES = len(visible_gpus()) * jobs_per_gpu()
    for name in sorted({run.dataset.name for run in PROJECT.runs().values()}):
        source(name)
except UserError as error:
    raise WorkflowError(str(error))

# The steps read config.yaml themselves and are told the scale, so nothing else can be overridden.
for key, value in STEPS_SEE:
    if getattr(PROJECT.config, key) != value:
        raise WorkflowError(f"--config {key}=... has no effect; edit config/config.yaml")

SCALE = PROJECT.scale.name
STUDIES = list(PROJECT.studies)
THEORY_STUDY = ["theory"] if PROJECT.config.theory else []
RESULTS = PROJECT.config.results
RUNS = f"{RESULTS}/runs"
REPORTS = f"{PROJECT.config.reports}/{SCALE}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
PROTOCOL = PROJECT.scale.protocol

# Detection comes last. That its data are missing is said now, before anything is trained, unless
# every detection has been done already.
if PROJECT.detection and not (PROJECT.detection.folder / "Annotations").is_dir():
    for cell in (each for each in PROJECT.cells if "detection" in each.evaluations):
        for seed in PROJECT.scale.seeds:
            folder = seed_folder(Path(RESULTS), cell.id, seed)
            found = folder / "corrected" / f"detection-{PROTOCOL}.json"
            if not (is_adopted(folder) or found.is_file()):
                raise WorkflowError(
                    f"config.yaml: detection_data: {PROJECT.detection.folder} has no Annotations;"
                    " name the folder that has them beside JPEGImages and ImageSets"
                )

# All seeds of a run in one job, or one job a seed: what the scale says.
TOGETHER = PROJECT.scale.seeds_per_job == "all"
SEED_FOLDERS = expand("seed-{seed}", seed=PROJECT.scale.seeds) if TOGETHER else ["seed-{seed}"]
JOB = "{run}" if TOGETHER else "{run}.seed-{seed}"
# Seeds that a training job has at work at a time; `pretrain` counts places of a GPU the same way.
AT_ONCE = min(PROJECT.scale.seeds_together, len(PROJECT.scale.seeds), GPU_PLACES or sys.maxsize)
SEED_NAMES = "all seeds" if TOGETHER else "seed {wildcards.seed}"


wildcard_constraints:
    run="|".join(PROJECT.runs()),
    seed=r"\d+",
    study="|".join(STUDIES),
    dataset=r"[a-z0-9_]+",


class RowNames(dict):
    """Labels by run id, as a message can print them: `{ROWS:{wildcards.run}}`.

    A message knows the globals of the workflow. In `params:` a new label would rerun the step.
    """

    def __format__(self, run):
        return self[run]


ROWS = RowNames()
for cell in PROJECT.cells:
    told = f"{cell.label} ({cell.study})"
    ROWS[cell.id] = f"{ROWS[cell.id]} = {told}" if cell.id in ROWS else told


def about(step):
    """Message of a step of a run: its rows and seeds in words, then the run id."""
    return f"{step} {{ROWS:{{wildcards.run}}}}, {SEED_NAMES}: {{wildcards.run}}"


def of_seeds(name):
    """A file of every seed folder of one job."""
    return [f"{RUNS}/{{run}}/{folder}/{name}" for folder in SEED_FOLDERS]


def seed_options(wildcards):
    """`--seed S` for each seed of one job."""
    seeds = PROJECT.scale.seeds if TOGETHER else [wildcards.seed]
    return " ".join(f"--seed {seed}" for seed in seeds)


def keep_what_is_replaced(jobs):
    """Results of older code or data go to the attic: Snakemake deletes outputs of jobs it starts."""
    from peregrine.reporting.attic import keep_older

    jobs = list(jobs)
    renewed = {job.wildcards.dataset for job in jobs if "dataset" in job.wildcards.keys()}
    seeds = [
        (wildcards.run, int(seed))
        for wildcards in (job.wildcards for job in jobs if "run" in job.wildcards.keys())
        for seed in (PROJECT.scale.seeds if TOGETHER else [wildcards.seed])
    ]
    try:
        for place in keep_older(PROJECT, Path(RESULTS), seeds, renewed):
            print(f"Results that a rerun replaces are kept in {place}", file=sys.stderr)
    except UserError as error:
        raise WorkflowError(str(error))


def data_of_run(wildcards):
    return f"{RESULTS}/data/{PROJECT.run(wildcards.run).dataset.name}.safetensors"


def source_of(wildcards):
    """What may change the bytes of a data set: nothing, as long as every file must be official."""
    spec = PROJECT.config.sources.get(wildcards.dataset, SourceSpec())
    return spec.folder or "accepted" if spec.accept_unverified else "official"


def is_folders(wildcards):
    """Whether images lie one by one in folders: to decode them takes cores and hours."""
    return wildcards.dataset.startswith("imagenet")


def extracted_by(wildcards):
    """What of the protocol features depend on; images in folders differ in size."""
    data = source(PROJECT.run(wildcards.run).dataset.name)
    return PROJECT.protocol.of_features(bool(data.folders))


def code_of(step):
    """Fingerprint of a step's code for the run of the wildcards: a change makes results stale."""

    def fingerprint_of_run(wildcards):
        return fingerprint(step, PROJECT.run(wildcards.run).method["name"])

    return fingerprint_of_run


def code_of_data(wildcards):
    return of_data(wildcards.dataset)


def study_of(wildcards):
    return PROJECT.study(wildcards.study)


def published_of_study(wildcards):
    """The file of published numbers, where a table of the study names one."""
    named = any(table.published for table in study_of(wildcards).tables)
    return f"config/published/{wildcards.study}.csv" if named else []


def study_digest(wildcards):
    circumstances = ("processes_per_run", "seeds_together")
    return digest(study_of(wildcards)) + digest(PROJECT.scale, without=circumstances)


def results_of_study(wildcards):
    """Everything that `collect` reads: all rows and seeds of the study at this scale."""
    names = [
        "outcome.json",
        "manifest.json",
        "history.csv",
        *(f"corrected/{kind}-{PROTOCOL}.json" for kind in EVALUATIONS),
        *(f"released/{kind}-{PROTOCOL}.json" for kind in ("clustering", "collapse")),
        *(f"{reading}/spectrum.csv" for reading in READINGS),
        "corrected/matrices.safetensors",
    ]
    wanted = []
    for cell in PROJECT.of(wildcards.study).values():
        # Extra evaluations: of the rows for which the study asks.
        extra = [f"corrected/{kind}-{PROTOCOL}.json" for kind in cell.evaluations]
        for seed in PROJECT.scale.seeds:
            place = seed_folder(Path(RESULTS), cell.id, seed)
            # Nothing here makes what was adopted; what a bundle has not brought is not asked for.
            here = is_adopted(place)
            wanted += [place / n for n in (*names, *extra) if not here or (place / n).is_file()]
    return list(map(str, wanted))


def replicates_of_study(wildcards):
    """What was adopted for the noise floor: one that comes or goes collects the study again."""
    return [
        str(place / ADOPTED)
        for cell in PROJECT.of(wildcards.study).values()
        for seed in PROJECT.scale.seeds
        for place in replicates(Path(RESULTS), cell.id, seed).values()
    ]


@cache
def variations():
    """The scales that are like this one."""
    try:
        return [load(scale=name) for name in PROJECT.variations]
    except UserError as error:
        raise WorkflowError(str(error))


def variations_of_study(wildcards):
    """What was measured at scales like this one: it is shown, and never made by this workflow."""
    return [
        str(path)
        for other in variations()
        for cell in other.of(wildcards.study).values()
        for seed in other.scale.seeds
        for path in sorted(seed_folder(Path(RESULTS), cell.id, seed).glob("corrected/*.json"))
    ]


# A job asks for a GPU only where there is one; else a laptop would train one run at a time.
GPU = min(GPU_PLACES, 1)


# Snakemake takes a resource that nobody limits for endless: all cores would train on one card.
# Scope local: the limit is this machine's, jobs that go to a cluster are not held against it.
resource_scopes:
    gpu="local",


if GPU and "gpu" not in workflow.global_resources:  # --resources gpu=N wins
    workflow.register_resource("gpu", GPU_PLACES)


def asked_of(step, times=lambda wildcards: 1):
    """Memory, time and GPU of a step as its run needs them: see peregrine.config.resources."""

    def of_run(wildcards):
        return needs(step, PROJECT.run(wildcards.run))

    return {
        "mem_mb": lambda wildcards: times(wildcards) * of_run(wildcards).mem_mb,
        "runtime": lambda wildcards: f"{of_run(wildcards).hours}h",
        "gpu": lambda wildcards: times(wildcards) * GPU * of_run(wildcards).gpu,
    }


def at_once(wildcards):
    """Processes of a training job: seeds side by side, or those that share one seed."""
    run, most = PROJECT.run(wildcards.run), PROJECT.scale.processes_per_run
    return AT_ONCE * processes(run, most, len(visible_gpus()))
