"""What `make demo` must have left: reports with content, and pretraining within budget."""

import argparse
import csv
import json
import sys
from pathlib import Path

STUDIES = ("falcon", "feature_augmentation")
PRETRAINING_SECONDS = 240
DEMO_SECONDS = 360
PEAK_MB = 3000


def problems(elapsed: float) -> list[str]:
    """One line for each thing that is missing, empty or over its bar."""
    found = []
    for study in (*STUDIES, "theory"):
        for kind in ("pdf", "html", "ipynb"):
            path = Path(f"reports/demo/{study}.{kind}")
            if not path.is_file() or path.stat().st_size < 10_000:
                found.append(f"{path} is missing or nearly empty")
    for study in STUDIES:
        folder = Path(f"results/demo/{study}")
        tables = sorted(folder.glob("tables/*.csv"))
        figures = sorted(folder.glob("figures/*.svg"))
        rows = [row for table in tables for row in csv.DictReader(table.open())]
        if not tables or not any(row["mean"] for row in rows):
            found.append(f"{folder}/tables hold no number")
        if len(figures) < 3:
            found.append(f"{folder}/figures hold {len(figures)} figures, not 3")
        claims = json.loads((folder / "claims.json").read_text())
        if not any("not run" not in claim["verdict"] for claim in claims):
            found.append(f"{folder}/claims.json has no verdict")
        runs = list(csv.DictReader((folder / "runs.csv").open()))
        found += [
            f"{r['label']} seed {r['seed']}: {r['status']}"
            for r in runs
            if r["status"] != "finished"
        ]
    jobs = [next(csv.DictReader(p.open(), delimiter="\t")) for p in _benchmarks("pretrain")]
    # Processor time: the wall time of jobs side by side hangs on what else the machine does.
    seconds = sum(float(job["cpu_time"]) for job in jobs)
    wall = sum(float(job["s"]) for job in jobs)
    peak = max(
        float(next(csv.DictReader(p.open(), delimiter="\t"))["max_rss"]) for p in _benchmarks("*")
    )
    print(f"{len(jobs)} pretraining jobs, {wall:.0f} s, of which {seconds:.0f} s of CPU")
    print(f"peak of one job {peak:.0f} MB")
    if not jobs or seconds > PRETRAINING_SECONDS:
        found.append(f"pretraining took {seconds:.0f} s of CPU, more than {PRETRAINING_SECONDS}")
    if 2 * peak > PEAK_MB:
        found.append(f"two jobs side by side may take {2 * peak:.0f} MB, more than {PEAK_MB}")
    if elapsed > DEMO_SECONDS:
        found.append(f"the demo took {elapsed:.0f} s, more than {DEMO_SECONDS}")
    return found


def _benchmarks(rule: str) -> list[Path]:
    return sorted(Path("results/benchmarks").glob(f"{rule}/*.tsv"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="what `make demo` took")
    lines = problems(parser.parse_args().seconds)
    print("\n".join(lines) or "demo: all there")
    sys.exit(1 if lines else 0)
