"""Multinomial logistic regression with an L2 penalty: scikit-learn's minimum, with fewer passes.

Minimised is the mean cross-entropy over n rows plus |W|^2 / (2 C n), the intercepts free; of two
classes with one column of weights, the scores of the first being 0. scikit-learn's
`LogisticRegression(C, tol, max_iter, warm_start)` has the same objective and, up to its stopping
rule, the same minimum. L-BFGS runs in coordinates in which the curvature at the start is about 1:
frozen features are so correlated that in their own coordinates most steps are spent on the few
widest directions. Fewer rows than features are first expressed in the space that they span, where
the minimum lies. Numpy and scipy only; what rows are, in memory or in a file, is theirs to know.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from peregrine.diagnostics.collapse import FLOAT32_STEP

BLOCK = 1024
"""Rows in float32 that are worked on at a time: 2 MiB of 512 features stay in a processor's cache
between the two products of a gradient."""
FLOOR = 1e-6
"""Least curvature of the coordinates, relative to the mean: sums in float32 know no less."""


@dataclass(frozen=True, eq=False)
class Dense:
    """Rows in memory: values [n, f], float32 or float64.

    Sums are of float64 over blocks; inside a block they are of the values' type, or of float64
    where they are asked to be `exact`.
    """

    values: NDArray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: NDArray) -> "Dense":
        return Dense(self.values[rows])

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def precisions(self) -> tuple[bool, ...]:
        """Values of `exact` to try: float64 only where float32 does not reach the tolerance."""
        return (True,) if self.values.dtype == np.float64 else (False, True)

    def send(self, array: NDArray) -> NDArray:
        """A float64 array to where the sums are taken."""
        return array

    def fetch(self, array: NDArray) -> NDArray:
        return array

    def compact(self) -> tuple["Dense", NDArray[np.float64] | None]:
        """Fewer rows than features in the space that they span: (float64 [n, n], basis [f, n])."""
        if len(self) >= self.width:
            return self, None
        basis, across = np.linalg.qr(self.values.T.astype(np.float64))
        return Dense(np.ascontiguousarray(across.T)), basis

    def _blocks(self, work: Callable[[slice, NDArray], Any], exact: bool = False) -> Iterator[Any]:
        """Of each block what `work` makes of its place and values, in their order."""

        def one(start: int) -> Any:
            part = slice(start, start + BLOCK)
            values = self.values[part]
            return work(part, values.astype(np.float64) if exact else values)

        return _in_threads(one, range(0, len(self), BLOCK))

    def sums(
        self, weights: NDArray, y: NDArray[np.int64], classes: int, exact: bool
    ) -> tuple[float, NDArray[np.float64]]:
        """(cross-entropy, its gradient [columns, f + 1]), both summed over rows."""

        def work(part: slice, values: NDArray) -> tuple[float, NDArray, NDArray]:
            scores = _scores(weights, values, classes)
            own = y[part], np.arange(len(values))
            scores -= scores.max(axis=0)
            mine = scores[own]
            np.exp(scores, out=scores)
            total = scores.sum(axis=0)
            loss = float((np.log(total) - mine).sum(dtype=np.float64))
            scores /= total
            scores[own] -= 1
            off = scores[-len(weights) :]
            return loss, off @ values, off.sum(axis=1, dtype=np.float64)

        gradient, loss = np.zeros_like(weights), 0.0
        for more, slopes, shifts in self._blocks(work, exact):
            loss += more
            gradient[:, :-1] += slopes
            gradient[:, -1] += shifts
        return loss, gradient

    def curvature(self, weights: NDArray, classes: int) -> NDArray[np.float64]:
        """Hessian [f + 1, f + 1] of the mean cross-entropy in one class's weights, mean of all."""

        def work(_: slice, values: NDArray) -> tuple[NDArray, NDArray, float]:
            scores = _scores(weights, values, classes)
            np.exp(scores - scores.max(axis=0), out=scores)
            scores /= scores.sum(axis=0)
            spread = (scores * (1 - scores)).mean(axis=0)
            wide = values * spread[:, None]
            return wide.T @ values, wide.sum(axis=0, dtype=np.float64), float(spread.sum())

        out = np.zeros((self.width + 1, self.width + 1))
        for inner, last, corner in self._blocks(work):
            out[:-1, :-1] += inner
            out[:-1, -1] += last
            out[-1, -1] += corner
        out[-1, :-1] = out[:-1, -1]
        return out / len(self)

    def order(self, weights: NDArray, most: int) -> NDArray[np.int64]:
        """Classes of the `most` largest scores, best first, int64 [n, most]."""
        classes = max(2, len(weights))

        def work(_: slice, values: NDArray) -> NDArray:
            scores = _scores(weights, values, classes)
            if most == 1:
                return scores.argmax(axis=0)[:, None]
            return np.argsort(-scores, axis=0, kind="stable")[:most].T

        return np.concatenate(list(self._blocks(work)))


_libraries = cache(ThreadpoolController)
_pool = cache(ThreadPoolExecutor)
_workers: ContextVar[int] = ContextVar("threads that share blocks", default=0)


@contextmanager
def _shared() -> Iterator[None]:
    """BLAS's threads work on blocks inside, each product on one of them.

    So the numbers do not depend on how many there are, as BLAS's own threads would make them; and
    these, which wait in a loop for the next product, do not take the cores from blocks.
    """
    blas = _libraries().select(user_api="blas")
    threads = max((each["num_threads"] for each in blas.info()), default=1)
    before = _workers.set(_workers.get() or threads)
    try:
        with blas.limit(limits=1):
            yield
    finally:
        _workers.reset(before)


def _in_threads(work: Callable[[int], Any], starts: Sequence[int]) -> Iterator[Any]:
    """`work` of each start, in their order, by as many threads as there are."""
    with nullcontext() if _workers.get() else _shared():
        threads = min(_workers.get(), len(starts))
        yield from map(work, starts) if threads == 1 else _pool(threads).map(work, starts)


def _scores(weights: NDArray, values: NDArray, classes: int) -> NDArray:
    """[classes, m]: along classes sums are faster than along rows' few entries."""
    weights = weights.astype(values.dtype)
    scores = weights[:, :-1] @ values.T
    scores += weights[:, -1:]
    if len(weights) < classes:
        scores = np.concatenate([np.zeros_like(scores), scores])
    return scores


class Logistic:
    """A fit by C, the inverse strength of the penalty on a sum over rows.

    Attributes:
        weights: float64 [classes, f + 1], of two classes [1, f + 1]; the intercepts last.
        converged: whether the largest component of the gradient came to `tol` in `max_iter` steps.
    """

    def __init__(
        self, C: float = 1.0, *, tol: float, max_iter: int, warm_start: bool = False
    ) -> None:
        self.C, self.tol, self.max_iter, self.warm_start = C, tol, max_iter, warm_start
        self.converged = False
        self.weights: NDArray[np.float64] | None = None
        self._inner: NDArray[np.float64] | None = None
        self._rows: tuple[Any, Any, NDArray[np.float64] | None] = (None, None, None)

    def fit(self, x: Any, y: NDArray[np.int64]) -> "Logistic":
        """x: Dense or `streamed.Rows`; y [n]: indices into the classes, each of which occurs."""
        if self._rows[0] is not x:  # once for all C of a path
            self._rows = x, *x.compact()
        _, rows, basis = self._rows
        classes = int(y.max()) + 1
        if not self.warm_start or self._inner is None:
            self._inner = np.zeros((1 if classes == 2 else classes, rows.width + 1))
        with _shared():
            self._inner = self._minimum(rows, np.asarray(y, np.int64), classes, self._inner)
        self.weights = self._inner
        if basis is not None:
            self.weights = np.column_stack([self._inner[:, :-1] @ basis.T, self._inner[:, -1]])
        return self

    def _minimum(
        self, rows: Any, y: NDArray[np.int64], classes: int, start: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        n, left = len(rows), self.max_iter
        strength = np.full(rows.width + 1, 1 / (self.C * n))
        strength[-1] = 0
        curvature = rows.fetch(rows.curvature(rows.send(start), classes)) + np.diag(strength)
        factor = _factor(curvature)
        inverse, penalty = rows.send(np.linalg.inv(factor)), rows.send(strength)
        largest = np.inf

        def objective(flat: NDArray, exact: bool) -> tuple[float, NDArray]:
            nonlocal largest
            weights = rows.send(flat.reshape(start.shape)) @ inverse
            loss, gradient = rows.sums(weights, y, classes, exact)
            pulled = penalty * weights
            gradient = gradient / n + pulled
            largest = float(abs(gradient).max())
            loss = float(loss) / n + float((pulled * weights).sum()) / 2
            return loss, rows.fetch(gradient @ inverse.T).ravel()

        def stop(_: NDArray) -> None:
            if largest <= self.tol:
                raise StopIteration

        point = (start @ factor).ravel()
        for exact in rows.precisions:
            objective(point, exact)
            if largest > self.tol and left > 0:
                options = {"maxiter": left, "maxfun": 20 * left, "maxls": 50, "gtol": 0, "ftol": 0}
                found = minimize(
                    objective, point, (exact,), "L-BFGS-B", jac=True, callback=stop, options=options
                )
                point, left = found.x, left - found.nit
                objective(point, exact)  # the last one tried may have been another
            if largest <= self.tol:
                break
        self.converged = largest <= self.tol
        return point.reshape(start.shape) @ rows.fetch(inverse)

    def order(self, x: Any, most: int) -> NDArray[np.int64]:
        """Classes of the `most` largest scores, best first, int64 [n, most]."""
        return x.order(self.weights, most)

    def predict(self, x: Any) -> NDArray[np.int64]:
        return self.order(x, 1)[:, 0]


def _factor(curvature: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cholesky factor, of as much more on the diagonal as rounding asks for, FLOOR at least."""
    more = FLOOR * np.trace(curvature) / len(curvature) * np.eye(len(curvature))
    while True:
        try:
            return np.linalg.cholesky(curvature + more)
        except np.linalg.LinAlgError:
            more *= 10


def standardised(train_x: NDArray, test_x: NDArray) -> tuple[Dense, Dense]:
    """Both matrices by mean and standard deviation of `train_x`; a constant column becomes 0.

    Constant means: no more spread than float32 rounding, which would be blown up to unit variance.
    Statistics are of float64, the result of float32.
    """
    mean = train_x.mean(axis=0, dtype=np.float64)
    parts = [slice(start, start + BLOCK) for start in range(0, len(train_x), BLOCK)]
    sd = np.sqrt(sum(((train_x[part] - mean) ** 2).sum(axis=0) for part in parts) / len(train_x))
    varies = sd > FLOAT32_STEP * np.maximum(train_x.max(axis=0), -train_x.min(axis=0))
    scale = np.where(varies, 1.0 / np.where(varies, sd, 1.0), 0.0)

    def changed(x: NDArray) -> Dense:
        out = np.empty(x.shape, np.float32)
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            out[part] = (x[part] - mean) * scale
        return Dense(out)

    return changed(train_x), changed(test_x)
