"""Named streams of random numbers: everything random is keyed by (seed, stream, epoch, step).

No generator state is ever saved: a resumed run asks for the same key and gets the same numbers.
Streams in use: init, order, views, method, backbone, dictionary, probe, evaluation, robustness,
detection, theory, data/part.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, stream: str, epoch: int = 0, step: int = 0) -> int:
    """A seed that depends on every part of the key and on nothing else.

    63 bits, of which torch's generator on the CPU uses 32: two keys in 4 billion coincide.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{epoch}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(
    seed: int, stream: str, epoch: int = 0, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator on `device`, set to the key."""
    out = torch.Generator(device=device)
    out.manual_seed(stream_seed(seed, stream, epoch, step))
    return out


@contextmanager
def seeded_init(seed: int, stream: str) -> Iterator[None]:
    """Modules built inside draw their weights from the stream; global state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, stream))
        yield
