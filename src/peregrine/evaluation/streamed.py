"""Rows for the linear probe, and neighbours, of features that stay in their file or on a GPU.

For data sets above the protocol's `streamed_above`, and for all where a GPU is asked for:
ImageNet-1k at 2048 features is 10.5 GB. The objective and the solver are those of `logistic`; only
the sums over images are taken here, block by block in float64. So there is no learning rate and no
number of epochs to choose, and the tests hold both against each other. Where half of a GPU's free
memory holds the features, they are sent there once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from peregrine.diagnostics.collapse import FLOAT32_STEP
from peregrine.evaluation.logistic import Dense
from peregrine.pretrain.device import pick_device

VALUES = 2**24
"""Numbers of float64 in a block, 128 MiB; a handful of blocks are in memory at a time."""
RESIDENT = 0.5
"""Share of a GPU's free memory that features may take."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix [n, f] that stay where they are and are changed whenever they are read.

    Attributes:
        values: float32 [N, f], mapped, in memory or on the device.
        picks: which of them, int64 [n], in order.
        change: from a block [m, f], float64 on the device, to what is used of it.
        device: where blocks are worked on.
    """

    values: NDArray[np.float32] | Tensor
    picks: NDArray[np.int64]
    change: Callable[[Tensor], Tensor]
    device: torch.device

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, rows: NDArray[np.int64]) -> "Rows":
        return replace(self, picks=self.picks[rows])

    def parts(self, columns: int = 0) -> Iterator[slice]:
        """Slices that cover all rows, so many that `columns` more numbers a row fit in a block."""
        size = max(1, VALUES // (self.values.shape[1] + columns))
        return (slice(start, start + size) for start in range(0, len(self), size))

    def block(self, part: slice) -> Tensor:
        """float64 [m, f] on the device, changed."""
        picks = self.picks[part]
        if isinstance(self.values, Tensor):
            found = self.values[torch.from_numpy(picks).to(self.device)].double()
        else:
            found = torch.from_numpy(self.values[picks].astype(np.float64)).to(self.device)
        return self.change(found)

    # What `logistic.Dense` has too, in float64.

    precisions = (True,)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def send(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def fetch(self, tensor: Tensor) -> NDArray:
        return tensor.cpu().numpy()

    def compact(self) -> "tuple[Rows | Dense, NDArray[np.float64] | None]":
        if len(self) >= self.width:
            return self, None
        return Dense(self.block(slice(None)).cpu().numpy()).compact()

    def sums(
        self, weights: Tensor, y: NDArray[np.int64], classes: int, exact: bool
    ) -> tuple[float, Tensor]:
        labels = torch.from_numpy(y).to(self.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(weights)
        for part in self.parts(2 * classes):
            block, own = self.block(part), labels[part, None]
            logs = _scores(weights, block, classes).log_softmax(dim=1)
            loss -= logs.gather(1, own).sum()
            off = logs.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=logs.dtype))
            gradient[:, :-1] += off[:, -len(weights) :].T @ block
            gradient[:, -1] += off[:, -len(weights) :].sum(0)
        return float(loss), gradient

    def curvature(self, weights: Tensor, classes: int) -> Tensor:
        out = torch.zeros(self.width + 1, self.width + 1, dtype=torch.float64, device=self.device)
        for part in self.parts(2 * classes + self.width):
            block = F.pad(self.block(part), (0, 1), value=1.0)
            shares = _scores(weights, block[:, :-1], classes).softmax(dim=1)
            out += (block * (shares * (1 - shares)).mean(1, keepdim=True)).T @ block
        return out / len(self)

    def order(self, weights: NDArray, most: int) -> NDArray[np.int64]:
        sent, classes = self.send(weights), max(2, len(weights))
        return np.concatenate(
            [
                self.fetch(_scores(sent, self.block(part), classes).topk(most).indices)
                for part in self.parts(2 * classes)
            ]
        )


def _scores(weights: Tensor, block: Tensor, classes: int) -> Tensor:
    """float64 [m, classes] of weights [columns, f + 1], the intercepts last."""
    scores = torch.addmm(weights[:, -1], block, weights[:, :-1].T)
    return F.pad(scores, (1, 0)) if len(weights) < classes else scores


def _rows(x: ArrayLike, name: str, device: torch.device) -> Rows:
    """All rows, unchanged. ValueError if not a non-empty matrix of finite numbers."""
    values = np.asarray(x)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: expected a non-empty matrix [n, d], got shape {values.shape}")
    rows = Rows(values, np.arange(len(values)), lambda block: block, device)
    if device.type == "cuda" and values.nbytes < RESIDENT * torch.cuda.mem_get_info(device)[0]:
        held = torch.empty(values.shape, device=device)
        for part in rows.parts():
            held[part] = rows.block(part)
        rows = replace(rows, values=held)
    for part in rows.parts():
        finite = rows.block(part).isfinite()
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"{name}: values are not finite (the first at row {part.start + row}, "
                f"column {column})"
            )
    return rows


def standardised(train_x: ArrayLike, test_x: ArrayLike) -> tuple[Rows, Rows]:
    """Both by mean and standard deviation of `train_x`; a constant column becomes 0.

    What `logistic.standardised` does. Raises ValueError on values that are not finite.
    """
    device = pick_device()
    train, test = _rows(train_x, "train features", device), _rows(test_x, "test features", device)
    n, parts = len(train), list(train.parts())
    mean = torch.stack([train.block(part).sum(0) for part in parts]).sum(0) / n
    variance = torch.stack([(train.block(part) - mean).square().sum(0) for part in parts])
    sd = (variance.sum(0) / n).sqrt()
    largest = torch.stack([train.block(part).abs().amax(0) for part in parts]).amax(0)
    scale = torch.where(sd > FLOAT32_STEP * largest, 1 / sd, 0.0)

    def change(block: Tensor) -> Tensor:
        return block.sub_(mean).mul_(scale)

    return replace(train, change=change), replace(test, change=change)


def nearest(
    train_x: ArrayLike, test_x: ArrayLike, k: int
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.int64]]]:
    """For parts of the test rows the k training rows of largest cosine, in their order.

    Yields (part, cosines [m, k], rows of `train_x` [m, k]). Of rows tied for the last place any may
    come: ask for more than are needed. A zero vector has cosine 0 to all.
    """
    device = pick_device()
    train, test = (
        replace(_rows(x, f"{name} features", device), change=F.normalize)
        for x, name in ((train_x, "train"), (test_x, "test"))
    )
    k = min(k, len(train))
    for part in test.parts(test.values.shape[1]):
        rows = test.block(part)
        best = torch.empty(len(rows), 0, dtype=torch.float64, device=device)
        places = torch.empty(len(rows), 0, dtype=torch.int64, device=device)
        for those in train.parts(len(rows)):
            cosine = rows @ train.block(those).T
            columns = torch.arange(those.start, those.start + cosine.shape[1], device=device)
            best, kept = torch.cat([best, cosine], 1).topk(min(k, best.shape[1] + len(columns)))
            places = torch.cat([places, columns.expand_as(cosine)], 1).gather(1, kept)
        places, order = places.sort(dim=1)
        yield part, best.gather(1, order).cpu().numpy(), places.cpu().numpy()
