"""One run in several processes: gradient caching (see `accumulate`) with parts on other devices.

torchrun starts the processes. Each draws what one process would draw, makes the views of its own
part of every batch and encodes them. Features of all parts are then gathered, and every process
takes heads, queues and criterion over the whole batch, so their BatchNorm, negatives and
assignments are those of one process, whatever the method. Gradients of the backbone are added up.
A number of processes is thus where a run is trained, not which run it is.

Collectives are written out instead of torch's DistributedDataParallel, because gradient caching
calls the backbone twice and outside of the graph of the loss.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from peregrine.config.machine import launched
from peregrine.errors import UserError
from peregrine.methods.base import Method
from peregrine.pretrain import checkpoint
from peregrine.pretrain.device import pick_device

PATIENCE = timedelta(days=1)
"""Until a process gives the others up; those that have ended torchrun sees at once. Long, because
one may wait for its GPU."""


@dataclass(frozen=True)
class World:
    """The processes that train one run together; of a process by itself nothing is asked."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """The rows of a batch [n, ...] that are this process's, [n / size, ...]."""
        return batch.chunk(self.size)[self.rank]

    def gathered(self, parts: list[Tensor]) -> list[Tensor]:
        """Of equal tensors [m, ...] the whole batch [m * size, ...]; constants."""
        if self.size == 1 or not parts:
            return parts
        own = torch.stack([each.detach() for each in parts])
        return list(torch.cat(self._of_all(own), dim=1))

    def sum_gradients(self, method: Method) -> None:
        """Make gradients those of the whole batch: each process has its images' share of the
        backbone's, and all of the others', of which the mean keeps processes equal to the bit."""
        if self.size == 1:
            return
        shared = {id(each) for each in method.backbone.parameters()}
        known = [each for each in method.parameters() if each.grad is not None]
        gradients = [each.grad for each in known]
        whole = [each.grad for each in known if id(each) not in shared]
        if whole:
            torch._foreach_div_(whole, self.size)
        flat = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(flat)
        _spread(flat, gradients)

    @contextmanager
    def statistics(self, method: Method) -> Iterator[None]:
        """Running BatchNorm statistics as one process would have them that encodes all parts.

        A pass makes r of them (1 - m) r + m s. Starting from 0, a process is left with what its k
        passes add, and (1 - m)^k r + that, process by process, is what one would come to.
        """
        modules = method.modules() if self.size > 1 else ()
        norms = [each for each in modules if isinstance(each, _BatchNorm)]
        if not norms:
            yield
            return
        # `data`: autograd, which keeps the buffers though training does not use them, is not told.
        running = [r.data for norm in norms for r in (norm.running_mean, norm.running_var)]
        counts = [norm.num_batches_tracked for norm in norms]
        result, earlier = torch.cat(running), torch.stack(counts)
        torch._foreach_zero_(running)
        yield
        passes = torch.stack(counts) - earlier
        kept = torch.cat(
            [
                ((1 - norm.momentum) ** k).expand(2 * norm.num_features)
                for norm, k in zip(norms, passes)
            ]
        )
        for added in self._of_all(torch.cat(running)):
            result = kept * result + added
        _spread(result, running)
        _spread(earlier + self.size * passes, counts)

    def agreed(self, stop: list[int]) -> int:
        """The signal that some process has got, else 0: all of them stop after the same step."""
        own = stop[0] if stop else 0
        if self.size == 1:
            return own
        signal = torch.tensor(own)
        dist.all_reduce(signal, op=dist.ReduceOp.MAX)
        return int(signal)

    def same(self, row: dict[str, float]) -> dict[str, float]:
        """The main process's numbers: all judge by them whether the run goes on."""
        if self.size == 1:
            return row
        values = torch.tensor(list(row.values()), dtype=torch.float64)
        dist.broadcast(values, 0)
        return dict(zip(row, values.tolist()))

    def level(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the main one's weights and buffers, those of its checkpoint: on GPUs
        what each computes of the whole batch may differ in the last bits."""
        if self.size > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dist.broadcast(value, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        self.agreed([])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the body before the others; who fails ends all.

        Raises:
            SystemExit: another process has failed, and has said why.
        """
        if not self.main and self.agreed([]):
            sys.exit(2)
        failed = [1]
        try:
            yield
            failed = []
        finally:
            elsewhere = self.agreed(failed)
        if elsewhere or (self.main and self.agreed([])):
            sys.exit(2)

    @contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        """checkpoint.exclusive, which the main process holds for all."""
        with ExitStack() as held:
            with self.main_first():
                if self.main:
                    held.enter_context(checkpoint.exclusive(folder))
            yield

    def device(self, wanted: str) -> torch.device:
        """pick_device; each process of a machine gets a GPU of its own.

        They ask one after the other, and the k-th of w only for every w-th device, so that two
        runs never wait for each other.

        Raises:
            UserError: as pick_device; a GPU with a number, or fewer GPUs than processes.
        """
        if self.size == 1:
            return pick_device(wanted)
        if wanted.startswith("cuda:"):
            raise UserError(f"device '{wanted}' cannot take {self.size} processes; say cuda")
        here, count = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        for turn in range(count):
            if turn == here:
                found = pick_device(wanted, among=(here, count))
            self.wait()
        return found

    def leave(self) -> None:
        """Let the others go, at the end of an orderly process; gloo may abort without."""
        if self.size > 1:
            dist.destroy_process_group()

    def _of_all(self, own: Tensor) -> list[Tensor]:
        """`own` of every process, in order."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return found


ALONE = World()


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy pieces of [total], or rows of it where tensors have no dimension, into `tensors`."""
    pieces = flat.split([each.numel() for each in tensors])
    torch._foreach_copy_(tensors, [piece.view_as(each) for piece, each in zip(pieces, tensors)])


def join() -> World:
    """The world that torchrun has put this process into; only the main process prints."""
    if not launched() or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    # Numbers that the host needs go by gloo, and wait for no GPU.
    kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(kind, timeout=PATIENCE)
    world = World(dist.get_rank(), dist.get_world_size())
    if not world.main:
        sys.stdout = open(os.devnull, "w")
    return world


def launch(processes: int, arguments: list[str]) -> int:
    """Run `python -m peregrine ARGUMENTS` in so many processes; 0 or the exit code of one."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    # Seconds to end a step and write a checkpoint after a signal; SLURM's profile gives 120.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
    options = ["--standalone", f"--nproc-per-node={processes}", "-m"]
    try:
        main([*options, "--", "peregrine", *arguments])  # or --run would be torchrun's --run-path
    except ChildFailedError as error:
        # Once one has ended, torchrun ends the others by a signal, which is a negative code.
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    except SignalException:
        return os.EX_TEMPFAIL  # what the command line says of a stopped training
    return 0
