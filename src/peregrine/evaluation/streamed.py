"""Linear probe and neighbours over features that stay in their file, in blocks and on a GPU.

For data sets above the protocol's `streamed_above`: ImageNet-1k at 2048 features is 10.5 GB, and
scikit-learn's solver holds several copies in float64. The objective, the solver (L-BFGS-B), its
tolerance and the numbers (float64) are the same; only the sum over images is taken block by block.
So there is no learning rate and no number of epochs to choose, and the tests hold both against
each other. Where half of a GPU's free memory holds the features, they are sent there once.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from peregrine.diagnostics.collapse import FLOAT32_STEP
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

    What `linear._standardised` does. Raises ValueError on values that are not finite.
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


class Logistic:
    """scikit-learn's `LogisticRegression(C, tol, max_iter, warm_start)` on `Rows`.

    Minimised is the mean cross-entropy over n rows plus |W|^2 / (2 C n), the intercepts free; of
    two classes with one column of weights, the scores of the first being 0.
    """

    def __init__(
        self, C: float = 1.0, *, tol: float, max_iter: int, warm_start: bool = False
    ) -> None:
        self.C, self.tol, self.max_iter, self.warm_start = C, tol, max_iter, warm_start
        self._weights: NDArray[np.float64] | None = None

    def set_params(self, *, C: float) -> "Logistic":
        self.C = C
        return self

    def fit(self, x: Rows, y: NDArray) -> "Logistic":
        """y [n]: indices into the classes, each of which occurs. Warns where it stops early."""
        classes, width = int(y.max()) + 1, x.values.shape[1]
        columns = 1 if classes == 2 else classes
        labels = torch.from_numpy(np.asarray(y, np.int64)).to(x.device)
        start = np.zeros((columns, width + 1))
        if self.warm_start and self._weights is not None:
            start = self._weights

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weights = torch.from_numpy(flat).to(x.device).view(columns, width + 1)
            loss = torch.zeros((), dtype=torch.float64, device=x.device)
            gradient = torch.zeros_like(weights)
            for part in x.parts(2 * classes):
                block, own = x.block(part), labels[part, None]
                logs = _scores(weights, block).log_softmax(dim=1)
                loss -= logs.gather(1, own).sum()
                off = logs.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=logs.dtype))
                gradient[:, :-1] += off[:, -columns:].T @ block
                gradient[:, -1] += off[:, -columns:].sum(0)
            penalised = weights.clone()
            penalised[:, -1] = 0
            strength = 1 / (self.C * len(x))
            loss = loss / len(x) + strength / 2 * penalised.square().sum()
            gradient = gradient / len(x) + strength * penalised
            return float(loss), gradient.flatten().cpu().numpy()

        options = {"maxiter": self.max_iter, "maxls": 50, "gtol": self.tol}
        options["ftol"] = 64 * np.finfo(float).eps
        found = minimize(objective, start.ravel(), method="L-BFGS-B", jac=True, options=options)
        if not found.success:
            warnings.warn(f"lbfgs: {found.message}", ConvergenceWarning, stacklevel=2)
        self._weights = found.x.reshape(columns, width + 1)
        return self

    def order(self, x: Rows, most: int) -> NDArray[np.int64]:
        """Classes of the `most` largest scores, best first, int64 [n, most]."""
        weights = torch.from_numpy(self._weights).to(x.device)
        return np.concatenate(
            [
                _scores(weights, x.block(part)).topk(most).indices.cpu().numpy()
                for part in x.parts(2 * len(weights))
            ]
        )

    def predict(self, x: Rows) -> NDArray[np.int64]:
        return self.order(x, 1)[:, 0]


def _scores(weights: Tensor, block: Tensor) -> Tensor:
    """float64 [m, classes] of weights [columns, f + 1], the intercepts last."""
    scores = torch.addmm(weights[:, -1], block, weights[:, :-1].T)
    return F.pad(scores, (1, 0)) if len(weights) == 1 else scores


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
