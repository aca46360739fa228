"""What the workflow costs before anything is trained: start-up of the steps, planning, status.

    PYTHONPATH=src python benchmarks/workflow.py [--scale paper] [--repeats 5] [--record FOLDER]

Whole processes in a copy of this repository without results, in turn, `--repeats` rounds; median
wall and CPU time of each. `status, finished` looks at results that this script makes up: every seed
of the scale finished and evaluated, with small files in place of weights. Floors: an empty Python
program, the import of torch, and a Snakefile of 6,000 jobs without anything to look up.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import record

from peregrine import files
from peregrine.config.check import READINGS
from peregrine.config.fingerprint import fingerprint, parts
from peregrine.config.load import Cell, Project, load
from peregrine.frozen import FEATURES, weight_facts, write_result

ROOT = Path(__file__).parents[1]
NEEDED = ("Snakefile", "workflow", "config", "profiles", "src", "pyproject.toml")
FLOOR_JOBS = 6000
FLOOR = f"""
N = range({FLOOR_JOBS // 3})
rule all:
    input: expand("c/{{n}}", n=N)
rule a:
    output: "a/{{n}}"
    shell: "touch {{output}}"
rule b:
    input: "a/{{n}}"
    output: "b/{{n}}"
    shell: "touch {{output}}"
rule c:
    input: "b/{{n}}"
    output: "c/{{n}}"
    shell: "touch {{output}}"
"""
MODULES = {
    "prepare": "peregrine.data.prepare",
    "pretrain": "peregrine.pretrain.loop",
    "extract": "peregrine.evaluation.features",
    "evaluate": "peregrine.evaluation.evaluate",
    "diagnose": "peregrine.diagnostics.diagnose",
    "collect": "peregrine.reporting.collect",
    "report": "peregrine.reporting.report",
}


def make_up(project: Project, cell: Cell, results: Path) -> None:
    """Finished and evaluated seeds of a row that nobody trained, as far as `status` looks."""
    method = cell.run.method["name"]
    for seed in project.scale.seeds:
        folder = results / "runs" / cell.id / f"seed-{seed}"
        for part in ("backbone", "method"):
            files.write_text(folder / f"{part}.safetensors", part)
        files.write_csv(folder / "history.csv", ("epoch", "loss"), [(1, 0.5)])
        sums = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
        data = {"train": "a", "test": "b"}
        outcome = {"run": cell.id, "seed": seed, "status": "finished", "detail": "", "data": data}
        outcome |= {"epoch": cell.run.epochs, "online_probe_accuracy": 0.5, "files": sums}
        files.write_json(folder / "outcome.json", outcome)
        code = {"code": fingerprint("pretrain", method), "code_parts": parts("pretrain", method)}
        facts = {"run": cell.id, "seed": seed, "data": data, "accept_unverified": False}
        facts |= {"device": "none", "torch": "none", **code}
        files.write_json(folder / "manifest.json", facts)
        seen = weight_facts(outcome, method) | {"code": fingerprint("extract", method)}
        for reading in READINGS:
            files.write_text(folder / reading / FEATURES, "features")
            for kind in ("linear", "knn", "clustering", "collapse"):
                numbers = {f"number-{index}": index / 7 for index in range(40)}
                protocol = project.scale.protocol, project.protocol
                write_result(folder, reading, kind, protocol, seen, numbers)
        for kind in cell.evaluations:
            protocol = project.protocol if kind != "detection" else project.detection.chosen
            seen |= {"images": "none"}
            name = project.scale.protocol
            write_result(folder, "corrected", kind, (name, protocol), seen, {"AP": 0.5})


def once(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of a command that must end well."""
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if child.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="folder for workflow.json")
    given = parser.parse_args()
    machine = record.facts() | {"threads": 1}  # now: what follows is itself a load; as in `once`
    with tempfile.TemporaryDirectory() as place:
        fresh, finished, floor = (Path(place, name) for name in ("fresh", "finished", "floor"))
        for folder in (fresh, finished):
            folder.mkdir()
            for name in NEEDED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, folder / name)
        floor.mkdir()
        (floor / "Snakefile").write_text(FLOOR)
        project = load(fresh / "config", scale=given.scale)
        for cell in {cell.id: cell for cell in project.cells}.values():
            make_up(project, cell, finished / "results")
        seeds = len(project.runs()) * len(project.scale.seeds)
        plan = ["snakemake", "-n", "--quiet", "all"]
        status = [sys.executable, "-m", "peregrine", "status", "--scale", given.scale]
        said = subprocess.run(
            status, cwd=finished, capture_output=True, text=True, env=dict(os.environ)
        )
        print("\n".join(said.stdout.splitlines()[-3:]), file=sys.stderr)
        commands = {
            "an empty program (floor)": ([sys.executable, "-c", "pass"], fresh),
            "import torch (floor)": ([sys.executable, "-c", "import torch"], fresh),
            **{
                f"import of {step}": ([sys.executable, "-c", f"import {module}"], fresh)
                for step, module in MODULES.items()
            },
            "peregrine --help": ([sys.executable, "-m", "peregrine", "--help"], fresh),
            f"status, nothing there, {seeds} seeds": (status, fresh),
            f"status, all finished, {seeds} seeds": (status, finished),
            f"plan of {FLOOR_JOBS} empty jobs (floor)": (plan, floor),
            f"plan of scale {given.scale}": ([*plan, "--config", f"scale={given.scale}"], fresh),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(given.repeats):
            for name, (command, folder) in commands.items():
                taken[name].append(once(command, folder))
    results = {}
    print(f"{'command':<48}{'wall s':>8}{'CPU s':>8}")
    for name, each in taken.items():
        wall, cpu = (round(statistics.median(column), 2) for column in zip(*each))
        results[name] = {"wall_seconds": wall, "cpu_seconds": cpu}
        print(f"{name:<48}{wall:>8.2f}{cpu:>8.2f}")
    if given.record:
        machine["versions"] |= {name: version(name) for name in ("snakemake", "pydantic")}
        chosen = {"scale": given.scale, "repeats": given.repeats}
        record.write(given.record / "workflow.json", machine, chosen, results)


if __name__ == "__main__":
    main()
