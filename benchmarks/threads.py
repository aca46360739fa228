"""How to share cores out: one run on 1 and on 2 threads, and two runs side by side on 1 each.

    PYTHONPATH=src python benchmarks/threads.py --data FOLDER [--accept-unverified] [--quick]
        [--repetitions 5] [--record benchmarks/recorded]

The training of benchmarks/pretraining.py (Barlow Twins, width 32 at batch 64 and 256, width 128 at
batch 64, bfloat16 where the processor multiplies in it). Samples/s are those of all runs of an
arrangement together; arrangements take turns, each in processes of its own, which begin to count
together. It is wall time, so nothing else may run; `training_threads` of config/scales/*.yaml
rests on it.
"""

import multiprocessing
import statistics
import time

import record
import torch
from pretraining import arguments, hardware, ours, prepared, settings

from peregrine.data.prepare import Prepared
from peregrine.files import write_json
from peregrine.pretrain.device import keep_memory, native_bfloat16

ARRANGEMENTS = {"1 run, 1 thread": (1, 1), "1 run, 2 threads": (1, 2), "2 runs, 1 thread": (2, 1)}
"""(runs, threads each)."""
PRECISION = "bfloat16" if native_bfloat16(torch.device("cpu")) else "float32"
CASES = {(32, 64): 40, (32, 256): 12, (128, 64): 8}
"""Steps that are timed, by width and batch."""


def child(case: tuple[int, int], threads: int, steps: int, data: Prepared, gate, out) -> None:
    torch.set_num_threads(threads)
    keep_memory()
    turn = ours(settings("barlow_twins", *case, PRECISION), data, steps, time.perf_counter)
    gate.wait()
    out.put(case[1] / turn())


def together(case: tuple[int, int], runs: int, threads: int, steps: int, data: Prepared) -> float:
    """Samples/s of `runs` processes in all."""
    spawn = multiprocessing.get_context("spawn")
    gate, out = spawn.Barrier(runs), spawn.Queue()
    given = (case, threads, steps, data, gate, out)
    children = [spawn.Process(target=child, args=given) for _ in range(runs)]
    for each in children:
        each.start()
    rates = [out.get(timeout=600) for _ in children]
    for each in children:
        each.join()
    return sum(rates)


def main() -> None:
    given = arguments(__doc__.splitlines()[0]).parse_args()
    facts = hardware([1, 2], ("torch",)) | {"clock": "wall"}
    data = prepared(given.data, given.accept_unverified)
    results, rated = {}, {}
    for case, steps in CASES.items():
        rates: dict[str, list[float]] = {name: [] for name in ARRANGEMENTS}
        for _ in range(2 if given.quick else given.repetitions):
            for name, (runs, threads) in ARRANGEMENTS.items():
                rates[name].append(together(case, runs, threads, steps, data))
        print(f"width {case[0]}, batch {case[1]}", flush=True)
        for name, found in rates.items():
            print(f"  {name:16} {statistics.median(found):7,.0f} samples/s", flush=True)
        results[f"width {case[0]}, batch {case[1]}"] = rates
        run = settings("barlow_twins", *case, PRECISION)
        for threads in (1, 2):
            found = rates[f"1 run, {threads} thread{'s' * (threads > 1)}"]
            rate = {"samples_per_second": statistics.median(found), "threads": threads}
            rated[f"width {case[0]}, batch {case[1]}, {threads}"] = record.shape(run) | rate
    if given.record:
        facts |= {"device": record.facts()["device"], "results": {} if given.quick else rated}
        write_json(given.record / "threads.json", facts | {"samples_per_second": results})


if __name__ == "__main__":
    main()
