"""How well `status --estimate` predicts a row from the other rows of a scale.

    PYTHONPATH=src python benchmarks/estimate.py [--scale demo] [--data results/data]
        [--repeats 5] [--record benchmarks/recorded]

Every row of the scale is trained for a moment, rows in turn, and its samples per second of
processor time taken, which other processes on the machine disturb least. Then each row is predicted
from all others, and the table says by how much that is wrong. FOLDER of --data holds prepared data.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from record import facts, write

from peregrine.config.load import load
from peregrine.config.models import Run
from peregrine.data.prepare import load as load_data
from peregrine.nets.flops import forward_flops
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.trainer import Trainer
from peregrine.reporting.estimate import Measured, Work, predict, work_of

STEPS = 12


def rates(runs: dict[str, Run], data: Path, repeats: int) -> dict[str, float]:
    """Samples per second of processor time by run, medians over blocks of STEPS steps."""
    trainers, found = {}, {name: [] for name in runs}
    for name, run in runs.items():
        own = load_data(data / f"{run.dataset.name}.safetensors", run.dataset)
        trainers[name] = Trainer(run, 0, own, torch.device("cpu"))
    for repeat in range(repeats + 1):
        for name, trainer in trainers.items():
            steps = trainer.epoch(Position("", 0, "", {}, epoch=repeat), {})
            next(steps)
            began = time.process_time()
            for _ in range(STEPS):
                next(steps)
            spent = time.process_time() - began
            found[name] += [STEPS * runs[name].batch_size / spent] * bool(repeat)
    return {name: statistics.median(values) for name, values in found.items()}


def left_out(known: list[Measured]) -> dict[str, float]:
    """Predicted over measured rate of each, from all others."""
    out = {}
    for each in known:
        others = [other for other in known if other.owner != each.owner]
        rate, _ = predict(each.work, others, forward_flops)
        out[each.owner] = rate / each.rate
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="demo")
    parser.add_argument("--data", type=Path, default=Path("results/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    project = load(Path(__file__).parents[1] / "config", scale=given.scale)
    torch.set_num_threads(project.scale.training_threads)
    runs = {name: run for name, run in project.runs().items() if run.epochs}
    found = rates(runs, given.data, given.repeats)
    known = [Measured("cpu", work_of(runs[name]), rate, owner=name) for name, rate in found.items()]
    ratios = left_out(known)
    for name, ratio in ratios.items():
        print(f"{name:45} {found[name]:8.0f} samples/CPU s, predicted {ratio:.2f} of it")
    wrong = sorted(abs(ratio - 1) for ratio in ratios.values())
    cost = {name: runs[name].epochs / rate for name, rate in found.items()}
    total = sum(cost[name] / ratios[name] for name in cost) / sum(cost.values())
    print(f"median error {statistics.median(wrong):.0%}, largest {wrong[-1]:.0%}, all {total:.2f}")
    if given.record:
        results = {
            name: {
                **entry(work_of(runs[name])),
                "samples_per_processor_second": found[name],
                "predicted_over_measured": ratios[name],
            }
            for name in runs
        }
        settings = {"scale": given.scale, "repeats": given.repeats, "steps": STEPS}
        write(given.record / "estimate.json", facts(), settings, results)


def entry(work: Work) -> dict:
    """As a record has it; no wall-clock rate, so `--estimate` itself leaves it out."""
    return work._asdict() | {"backbone": work.backbone.model_dump(mode="json")}


if __name__ == "__main__":
    main()
