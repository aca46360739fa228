"""Can this machine, or the cluster behind it, run the workflow? What to set where it cannot.

Looks and asks only: nothing is submitted unless a probe is asked for, and no torch is loaded. On a
cluster the questions are those that otherwise cost a night: jobs whose end nobody hears of, limits
that end every slice too early, a folder that the nodes do not see.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from peregrine.config.load import Project, read_yaml
from peregrine.config.machine import visible_gpus
from peregrine.config.resources import LEAST, NEEDS, SLICES, needs
from peregrine.errors import UserError
from peregrine.files import write_text

PLUGIN, LEAST_PLUGIN = "snakemake-executor-plugin-slurm", (2, 7, 1)
DISK = {
    **{"digits": 0.01, "cifar10": 0.4, "cifar100": 0.4, "fashion_mnist": 0.1, "svhn": 0.6},
    **{"imagenette": 4.0, "imagenet100": 34.0, "imagenet1k": 350.0},
}
"""GB of a prepared data set and of what is fetched for it; those of image folders lie elsewhere."""
RESULTS_GB = 1.0
"""Kept free for weights, checkpoints and reports of a few runs."""
SELDOM = 180
"""Seconds between two questions of the plugin where nothing ends for long: it adds ten each time.
A job that SLURM has forgotten by then is waited for without end."""
ENTRY = r"(?:(\w+):)?(\w+)=(.*)"
"""A resource in a list of a profile: rule, where there is one, name and value."""
NUMBERS = ("retries", "slurm-init-seconds-before-status-checks")
PATIENCE = 20
"""Seconds that a command of SLURM may take to answer."""
PROBE_PATIENCE = 300


class Finding(NamedTuple):
    """One line: `ok`, `note` (to know, nothing to do) or `set` (something to do)."""

    kind: str
    text: str


class CannotLook(Exception):
    """A question that had to be answered first was not; its text is a line of its own."""


def as_text(findings: list[Finding]) -> str:
    return "\n".join(f"{found.kind:<5}{found.text}" for found in findings)


def code(findings: list[Finding]) -> int:
    """0 where all is fine, 1 where something is to set, 2 where SLURM could not be asked."""
    kinds = {found.kind for found in findings}
    return 2 if "stop" in kinds else int("set" in kinds)


def examine(project: Project, profile: Path, submit: bool = False) -> list[Finding]:
    """Everything that is to say of this machine for a scale, and of SLURM where it is installed."""
    findings = list(of_machine(project))
    if not shutil.which("sbatch"):
        return [*findings, Finding("note", "SLURM: none here (no sbatch on PATH), so none asked")]
    try:
        for found in of_slurm(project, read_profile(profile / "config.yaml"), submit):
            findings.append(found)
    except CannotLook as reason:
        findings.append(Finding("stop", f"SLURM: {reason}"))
    return findings


# This machine


def of_machine(project: Project) -> Iterator[Finding]:
    results = Path(project.config.results)
    yield _writable(results)
    yield _disk(project, results)
    gpus = _gpus()
    yield Finding("note", f"GPU: {gpus or 'none here; trainings take the processor'}")
    if any(run.precision == "bfloat16" for run in project.runs().values()):
        if not gpus and not _bfloat16_processor():
            text = f"scale {project.scale.name} trains in bfloat16, which this processor emulates"
            yield Finding("note", f"bfloat16: {text}; slow here, fine on an A100 or later")


def _writable(folder: Path) -> Finding:
    probe = folder / f".probe-{os.getpid()}"
    try:
        write_text(probe, "probe\n")
        probe.unlink()
    except UserError as error:
        return Finding("set", f"results: {error}")
    return Finding("ok", f"results: {folder} can be written")


def _disk(project: Project, results: Path) -> Finding:
    names = {run.dataset.name for run in project.runs().values()}
    names = {name for name in names if not (results / f"data/{name}.safetensors").exists()}
    wanted = RESULTS_GB + sum(DISK.get(name, 0.0) for name in names)
    free = shutil.disk_usage(results if results.is_dir() else Path()).free / 1e9
    text = f"disk: {free:,.0f} GB free, about {wanted:,.1f} GB wanted by scale {project.scale.name}"
    if free >= wanted:
        return Finding("ok", text)
    return Finding("set", f"{text}; free some, or set results in config.yaml to another disk")


def _gpus() -> str:
    """Devices with memory and whether they have bfloat16, in words; empty if there is none."""
    if not visible_gpus():
        return ""
    fields = "--query-gpu=name,memory.total,compute_cap"
    lines = _answer("nvidia-smi", fields, "--format=csv,noheader")
    if not lines:
        return f"{len(visible_gpus())} visible"
    told = []
    for name, memory, capability in (line.split(", ") for line in lines.strip().splitlines()):
        native = "" if float(capability) >= 8 else ", no bfloat16"
        told.append(f"{name} ({memory}{native})")
    return ", ".join(told)


def _bfloat16_processor() -> bool:
    """As torch asks it: AVX-512 BF16, AMX or Arm BF16."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags))


# SLURM


def read_profile(path: Path) -> dict[str, Any]:
    """A profile whose resources are mappings; Snakemake also takes lists, of rule:name=value.

    Raises:
        UserError: neither, or a number that is none.
    """
    found = read_yaml(path)
    try:
        for key in ("default-resources", "set-resources"):
            said = found.get(key) or {}
            found[key] = _of_list(said) if isinstance(said, list) else dict(said)
        for of_rule in found["set-resources"].values():
            dict(of_rule or {})
        for key in NUMBERS:
            int(found.get(key, 0))
    except (AttributeError, TypeError, ValueError):
        keys = ", ".join(("default-resources", "set-resources", *NUMBERS))
        raise UserError(f"{path}: one of {keys} is not of the form that Snakemake takes") from None
    return found


def _of_list(entries: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for each in entries:
        rule, name, value = re.fullmatch(ENTRY, each).groups()
        place = out.setdefault(rule, {}) if rule else out
        place[name] = int(value) if value.isdecimal() else value
    return out


def of_slurm(project: Project, profile: Mapping[str, Any], submit: bool) -> Iterator[Finding]:
    """Raises CannotLook where slurmctld does not answer."""
    lacking = [name for name in ("squeue", "scontrol", "sinfo") if not shutil.which(name)]
    if lacking:
        raise CannotLook(f"no {', '.join(lacking)} beside sbatch; look on a login node")
    shown = _answer("scontrol", "show", "config")
    if shown is None:
        raise CannotLook("slurmctld does not answer (scontrol show config); look on a login node")
    facts = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", shown, re.MULTILINE))
    yield Finding("ok", f"SLURM: {facts.get('SLURM_VERSION', '?')} answers")
    yield _plugin()
    yield _status(facts, profile)
    yield _requeue(facts, profile)
    partition = _partition_name(profile)
    yield from _partition(project, partition, profile)
    options = _options(project, profile, partition)
    yield _accepted(options)
    if submit:
        yield _seen_by_a_job(Path(project.config.results), options)


def _plugin() -> Finding:
    remedy = f"pip install '{PLUGIN}>={'.'.join(map(str, LEAST_PLUGIN))},<3'"
    try:
        found = version(PLUGIN)
    except PackageNotFoundError:
        return Finding("set", f"plugin: Snakemake has none for SLURM; {remedy}")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < LEAST_PLUGIN:
        return Finding("set", f"plugin: {found} forces --ntasks-per-gpu=1; {remedy}")
    return Finding("ok", f"plugin: {PLUGIN} {found}")


def _status(facts: Mapping[str, str], profile: Mapping[str, Any]) -> Finding:
    """Whether the command that the profile takes will say that a job has ended."""
    answers = _answer("sacct", "--noheader", "--allocations", "--starttime=now") is not None
    if profile.get("slurm-status-command", "sacct") == "sacct":
        if answers:
            return Finding("ok", "status: sacct answers")
        return Finding(
            "set", "status: sacct does not; in the profile: slurm-status-command: squeue"
        )
    every = int(profile.get("slurm-init-seconds-before-status-checks", 40))
    age = int(re.match(r"\d*", facts.get("MinJobAge", ""))[0] or 0)
    text = f"status: SLURM forgets jobs after {age} s (MinJobAge), squeue is asked every {every} s"
    if age >= 3 * every and age > SELDOM:
        return Finding("ok", text)
    if answers:
        return Finding("note", f"{text}; the plugin takes sacct, which answers")
    if age <= SELDOM:
        rare = f"{text}, later every {SELDOM} s"
        return Finding("set", f"{rare}; ask the site for MinJobAge = 300 or for accounting (sacct)")
    setting = f"slurm-init-seconds-before-status-checks: {age // 3}"
    return Finding("set", f"{text}; in the profile: {setting}")


def _requeue(facts: Mapping[str, str], profile: Mapping[str, Any]) -> Finding:
    if profile.get("slurm-requeue"):
        return Finding("ok", "requeue: asked for by the profile (slurm-requeue)")
    if facts.get("JobRequeue") == "1":
        return Finding("ok", "requeue: SLURM's default (JobRequeue = 1)")
    return Finding("set", "requeue: off (JobRequeue = 0); in the profile: slurm-requeue: true")


def _partition_name(profile: Mapping[str, Any]) -> str:
    """What the profile names for trainings, else for all; empty is the site's default."""
    for part in ((profile.get("set-resources") or {}).get("pretrain"), "default-resources"):
        said = profile.get(part) if isinstance(part, str) else part
        if (said or {}).get("slurm_partition"):
            return str(said["slurm_partition"]).strip("'\"")
    return ""


def _partition(project: Project, name: str, profile: Mapping[str, Any]) -> Iterator[Finding]:
    """Limit and GPUs of the partition that trainings will go to."""
    lines = (_answer("sinfo", "--noheader", "--format=%P|%a|%l|%G") or "").split()
    rows = [line.split("|", 3) for line in lines if line.count("|") >= 3]
    known = ", ".join(sorted({row[0].rstrip("*") for row in rows})) or "none"
    mine = [r for r in rows if r[0].rstrip("*") == name or (not name and r[0].endswith("*"))]
    if not mine:
        wrong = f"there is no '{name}'" if name else "SLURM has no default"
        setting = "in the profile: slurm_partition: \"'NAME'\""
        yield Finding("set", f"partition: {wrong}; {setting}, one of: {known}")
        return
    name = mine[0][0].rstrip("*")
    if not any(row[1] == "up" for row in mine):
        yield Finding("set", f"partition: {name} is down; others: {known}")
    if any(re.search(r"\bgpu\b", row[3]) for row in mine):
        yield Finding("ok", f"GPUs: partition {name} has {_of_gpus(mine)}")
    else:
        having = {row[0].rstrip("*") for row in rows if re.search(r"\bgpu\b", row[3])}
        where = f"slurm_partition of one that has: {', '.join(sorted(having))}"
        remedy = where if having else "gpu: 0 under set-resources, and train on processors"
        yield Finding("set", f"GPUs: partition {name} has no gres gpu; in the profile: {remedy}")
    yield from _limits(project, name, hours(mine[0][2]), profile)


def _of_gpus(rows: list[list[str]]) -> str:
    return ", ".join(sorted({row[3] for row in rows if "gpu" in row[3]}))


def hours(limit: str) -> float:
    """A time limit of SLURM in hours: [days-]hours:minutes:seconds, minutes:seconds, infinite."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+)*", limit):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    parts = [0] * (3 - len(parts)) + parts if not days else (parts + [0, 0])[:3]
    return 24 * int(days or 0) + parts[0] + parts[1] / 60 + parts[2] / 3600


def _limits(
    project: Project, name: str, limit: float, profile: Mapping[str, Any]
) -> Iterator[Finding]:
    """The partition's limit against what each step asks for; the longest of each stands for it."""
    changed = profile.get("set-resources") or {}
    asked = {
        step: _runtime(changed.get(step)) or max(_asked(project, step), default=0) for step in NEEDS
    }
    over = {step: value for step, value in asked.items() if value > limit}
    if not over:
        longest = max(asked.values())
        yield Finding(
            "ok", f"time: {name} allows {_span(limit)}, the longest job asks {longest:g} h"
        )
    for step, value in over.items():
        whole = max(1, int(limit))
        text = f"time: {name} allows {_span(limit)}, {step} asks {value:g} h; in the profile, under"
        setting = f'set-resources: {step}: {{runtime: "{whole}h"}}'
        if step == "pretrain":
            slices = -(-value * SLICES // whole)
            setting += f" and retries: {max(slices - 1, int(profile.get('retries', 0))):.0f}"
        yield Finding("set", f"{text} {setting}")


def _asked(project: Project, step: str) -> list[int]:
    return [needs(step, run).hours for run in project.runs().values()]


def _runtime(said: Mapping[str, Any] | None) -> float:
    """Hours that a profile's set-resources gives a step; 0 where it leaves it to the rule."""
    text = str((said or {}).get("runtime", ""))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    units = {"s": 1 / 3600, "m": 1 / 60, "": 1 / 60, "h": 1, "d": 24}
    return float(found[1]) * units[found[2]] if found else 0.0


def _span(limit: float) -> str:
    return "any time" if limit == float("inf") else f"{limit:g} h"


def _options(project: Project, profile: Mapping[str, Any], partition: str) -> list[str]:
    """What `sbatch` is told of a training, as the plugin tells it."""
    mega = max((needs("pretrain", run).mem_mb for run in project.runs().values()), default=3000)
    span = _runtime((profile.get("set-resources") or {}).get("pretrain"))
    span = span or max(_asked(project, "pretrain"), default=LEAST)
    options = [f"--mem={mega}", f"--time={int(60 * span)}", "--cpus-per-task=1", "--ntasks=1"]
    if ((profile.get("set-resources") or {}).get("pretrain") or {}).get("gpu"):
        options.append("--gpus=1")
    account = (profile.get("default-resources") or {}).get("slurm_account")
    options += [f"--account={str(account).strip(chr(39))}"] if account else []
    return [*options, *([f"--partition={partition}"] if partition else [])]


def _accepted(options: list[str]) -> Finding:
    """SLURM itself says whether it would take a training; nothing is queued."""
    done = _run("sbatch", "--test-only", *options, "--wrap=true")
    said = " ".join((done.stderr if done else "no answer").split())
    if done and done.returncode == 0:
        return Finding("ok", f"sbatch: a training would be taken ({' '.join(options)})")
    return Finding("set", f"sbatch: a training is refused ({' '.join(options)}): {said}")


def _seen_by_a_job(results: Path, options: list[str]) -> Finding:
    """Whether a job reads what is written here, and what it writes is read here."""
    probe = (results / f".probe-{os.getpid()}").absolute()
    answer = probe.with_name(f"{probe.name}-answer")
    write_text(probe, "seen\n")
    short = [each for each in options if not each.startswith(("--time", "--mem"))]
    try:
        command = ["sbatch", "--wait", "--time=1", "--mem=100", "--output=/dev/null", *short]
        done = _run(*command, f"--wrap=cp '{probe}' '{answer}'", patience=PROBE_PATIENCE)
        if done is None:
            return Finding("set", f"folder: the probe did not run within {PROBE_PATIENCE} s")
        if done.returncode == 0 and answer.is_file():
            return Finding("ok", f"folder: a job has seen {results}, and its file is seen here")
    finally:
        probe.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    said = " ".join(done.stderr.split())
    remedy = "work in a folder that every node sees, or set results in config.yaml to one"
    return Finding("set", f"folder: a job does not see {results}{said and f' ({said})'}; {remedy}")


def _run(*command: str, patience: int = PATIENCE) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _answer(*command: str) -> str | None:
    """What a command prints, None where it fails or is silent for too long."""
    done = _run(*command)
    return done.stdout if done and done.returncode == 0 else None
