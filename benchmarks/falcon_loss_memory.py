"""Time and peak memory of the streamed FALCON loss on a large dictionary, forward and backward.

    PYTHONPATH=src python benchmarks/falcon_loss_memory.py [--codes 500000] [--batch 512]
        [--embedding 384] [--chunk 8192] [--device cpu]

The peak on a CPU is that of the whole process, so the share of Python and torch, measured before
the loss, is printed too; on a GPU it is torch's own count. ImageNet-100 settings by default.
"""

import argparse
import resource
import sys
import time

import torch

from peregrine.methods.base import Setting
from peregrine.methods.falcon import FalconHead, Options
from peregrine.methods.falcon_streamed import streamed_falcon_loss
from peregrine.streams import seeded_init


def peak(device: str) -> float:
    """GiB, largest so far."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("codes", 500_000), ("batch", 512), ("embedding", 384), ("chunk", 8192)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    n, f = given.batch, given.embedding
    before = peak(given.device)
    options = Options(codes=given.codes, embedding=f, chunk=given.chunk)
    with seeded_init(0, "init/method"):
        head = FalconHead(f, options, Setting(n, n, 0)).to(given.device)
    built = peak(given.device)
    draws = torch.Generator().manual_seed(0)
    views = [torch.randn(n, f, generator=draws).to(given.device) for _ in range(2)]
    print(f"{given.device}, {torch.get_num_threads()} threads, n {n}, f {f}, c {given.codes},")
    print(f"chunk {given.chunk}; peak at start {before:.2f} GiB, with the dictionary {built:.2f}")
    sizes = {"codes": given.codes, "tau": head.tau, "chunk": given.chunk}
    for prior, symmetric in (("forward", False), ("reverse", True)):
        z = [view.clone().requires_grad_() for view in views]
        clock = [time.perf_counter()]
        h = [head.embed(each) for each in z]
        form = {"prior": prior, "symmetric": symmetric}
        terms = streamed_falcon_loss(*h, head.columns, **sizes, **form)
        values = {name: round(term.item(), 4) for name, term in terms.items()}
        clock.append(time.perf_counter())
        sum(terms.values()).backward()
        high = peak(given.device)
        clock.append(time.perf_counter())
        forward, backward = clock[1] - clock[0], clock[2] - clock[1]
        print(f"{form}: {forward:.1f} s forward, {backward:.1f} s backward, peak {high:.2f} GiB")
        print(f"  {values}")


if __name__ == "__main__":
    main()
