"""FALCON's dictionaries W [f, c]: frozen random signs as published, and four others, all ours.

Every code has norm sqrt(f), as signs have: an aligned h then has the logit that tau is made for.

random     i.i.d. signs, frozen (falcon.md, section 1).
hadamard   signs of Sylvester's matrix, frozen: f codes at right angles, for c > f several such
           blocks, each with random signs and order of its own, so random to one another.
learned    starts at the random signs and is trained by the loss; norms restored after each step.
hybrid     the first half of the random signs frozen, the other half learned.
kmeans     refitted to recent embeddings every so many epochs, frozen in between.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.methods.base import Progress
from peregrine.streams import generator

ROUNDS = 10
"""Of Lloyd's algorithm, each time the codes are refitted."""
ENTRIES = 2**24
"""Numbers of a matrix of points by centres that k-means holds at a time, 64 MiB."""


class Dictionary(nn.Module):
    """W [f, c]: frozen signs as packed bits, learned or refitted codes as floats.

    Args:
        kind: one of the module's docstring.
        shape: (f, c); hadamard needs an f that is a power of two.
        seed: of the stream init/dictionary.
        memory: embeddings that k-means sees, c at least.
        refit_epochs: epochs between two fits of k-means.
    """

    bits: Tensor
    codes: Tensor | None

    def __init__(
        self, kind: str, shape: tuple[int, int], seed: int, memory: int = 0, refit_epochs: int = 1
    ) -> None:
        super().__init__()
        self.shape = shape
        f, c = shape
        draws = generator(seed, "init/dictionary")
        if kind == "hadamard":
            signs = hadamard(f, c, draws)
        else:
            signs = torch.randint(2, shape, generator=draws, dtype=torch.uint8)
        self.frozen = {"learned": 0, "kmeans": 0, "hybrid": c // 2}.get(kind, c)
        free = signs[:, self.frozen :].float() * 2 - 1
        if self.frozen:
            self.register_buffer("bits", pack(signs[:, : self.frozen]))
        if kind == "kmeans":
            self.refit_epochs = refit_epochs
            self.register_buffer("codes", free)
            self.register_buffer("memory", torch.zeros(memory, f))
            self.register_buffer("stored", torch.zeros((), dtype=torch.int64))
            self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))
            self._newest: list[Tensor] = []
        else:
            self.codes = nn.Parameter(free) if self.frozen < c else None
        if isinstance(self.codes, nn.Parameter):
            # A direction has nothing to decay, and Adam would see little else of an unused code.
            self.codes.undecayed = True
        self._signs: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._counts: tuple[int, int] | None = None  # stored and fitted, as the host knows them
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    def _forget(self) -> None:
        self._signs, self._counts = {}, None

    def signs(self, like: Tensor) -> Tensor:
        """The frozen codes as +-1 on the device of `like`, of the type that a product has there."""
        kind = like.device.type
        autocast = torch.is_autocast_enabled(kind)
        key = like.device, torch.get_autocast_dtype(kind) if autocast else like.dtype
        if key not in self._signs:
            packed = unpack(self.bits, (self.shape[0], self.frozen))
            self._signs[key] = packed.to(key[1]) * 2 - 1
        return self._signs[key]

    def matrix(self, like: Tensor) -> Tensor:
        """W [f, c] on the device of `like`, of the type that a product has there."""
        if self.codes is None:
            return self.signs(like)
        free = self.codes.to(like.dtype)
        return torch.cat([self.signs(like), free], dim=1) if self.frozen else free

    def columns(self, start: int, stop: int) -> Tensor:
        """Codes start to stop of W, [f, stop - start], float32 where they are frozen signs."""
        if self.codes is not None:
            return self.matrix(self.codes)[:, start:stop]
        f, c = self.shape
        rows = torch.arange(f, device=self.bits.device)[:, None] * c
        place = rows + torch.arange(start, stop, device=self.bits.device)
        signs = self.bits[place >> 3] >> (place & 7).to(torch.uint8) & 1
        return signs.to(torch.float32) * 2 - 1

    def remember(self, embeddings: Sequence[Tensor]) -> None:
        """Embeddings [n, f] of each view of a loss; stored by `after_step`, for k-means only."""
        if hasattr(self, "memory"):
            self._newest += [each.detach() for each in embeddings]

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Norms of learned codes restored; k-means stores what is new and fits when it is due."""
        if isinstance(self.codes, nn.Parameter):
            self.codes.copy_(F.normalize(self.codes, dim=0) * math.sqrt(self.shape[0]))
        if not hasattr(self, "memory"):
            return
        size = len(self.memory)
        new = F.normalize(torch.cat(self._newest).to(self.memory.dtype), dim=1)[-size:]
        # Read once: each look at them would wait for a GPU.
        stored, fitted = self._counts or (int(self.stored), int(self.fitted))
        places = (stored + torch.arange(len(new), device=new.device)) % size
        self.memory[places] = new
        stored += len(new)
        self._newest = []
        # Asked once an epoch has begun: nobody but the loop knows which step is an epoch's last.
        if progress.epoch >= fitted + self.refit_epochs and stored >= self.shape[1]:
            draws = progress.generator(torch.device("cpu"), "dictionary")
            centres = kmeans(self.memory[:stored], self.shape[1], draws)
            self.codes.copy_(centres.T * math.sqrt(self.shape[0]))
            fitted = progress.epoch
        self.stored.fill_(stored)
        self.fitted.fill_(fitted)
        self._counts = stored, fitted


def hadamard(f: int, c: int, draws: torch.Generator) -> Tensor:
    """0/1 uint8 [f, c]: blocks of f codes, those of a block at right angles as +-1; f = 2^k.

    A block is Sylvester's matrix with random signs of its rows and columns and a random order of
    its columns. Rows' signs make the codes of different blocks random to one another.
    """
    sylvester = torch.zeros(1, 1, dtype=torch.uint8)
    while len(sylvester) < f:
        upper, lower = (torch.cat([sylvester, each], 1) for each in (sylvester, 1 - sylvester))
        sylvester = torch.cat([upper, lower])
    blocks = []
    for _ in range(0, c, f):
        rows, columns = torch.randint(2, (2, f), generator=draws, dtype=torch.uint8)
        order = torch.randperm(f, generator=draws)
        blocks.append((sylvester ^ rows[:, None] ^ columns)[:, order])
    return torch.cat(blocks, dim=1)[:, :c]


def kmeans(points: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Unit centres [count, f] of unit points [m, f], m >= count, by cosine (spherical k-means).

    From `count` random points by ROUNDS of Lloyd's algorithm. A centre that no point is nearest
    to, or whose points cancel, stays where it is. Points are sorted by centre and added up in
    order, as the sums of a scattered addition would differ from run to run on a GPU.
    """
    centres = points[torch.randperm(len(points), generator=draws)[:count].to(points.device)]
    parts = points.split(max(1, ENTRIES // count))
    members = torch.arange(count, device=points.device)
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(dim=1) for part in parts])
        nearest, order = nearest.sort(stable=True)
        starts = torch.searchsorted(nearest, members)
        sums = F.embedding_bag(order, points, starts, mode="sum")
        empty = ~sums.any(dim=1, keepdim=True)
        centres = torch.where(empty, centres, F.normalize(sums, dim=1))
    return centres


def code_prior(frequencies: Sequence[float], codes: int) -> Tensor:
    """Prior q of every code, float32 [c], from the frequencies of K classes, in any unit.

    Each class has c / K codes, over which its frequency is spread evenly; a code at the border of
    two classes takes its part of both, so that equal frequencies give exactly 1 / c. Which codes
    are whose does not matter where they are exchangeable.
    """
    classes = len(frequencies)
    reached = np.concatenate([[0.0], np.cumsum(frequencies) / np.sum(frequencies)])
    borders = np.linspace(0, classes, codes + 1)
    return torch.from_numpy(np.diff(np.interp(borders, np.arange(classes + 1), reached))).float()


def pack(signs: Tensor) -> Tensor:
    """0/1 [f, c] -> uint8 [ceil(f c / 8)], eight signs a byte."""
    flat = F.pad(signs.flatten(), (0, -signs.numel() % 8)).view(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=signs.device)
    return (flat << places).sum(1, dtype=torch.uint8)  # int64 would take 8 f c bytes


def unpack(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack`."""
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flat.flatten()[: shape[0] * shape[1]].view(shape)
