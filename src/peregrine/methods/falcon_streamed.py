"""The FALCON loss for dictionaries that are too large to score at once.

The direct loss holds scores [n, c], 1 GB a view at n = 512 and c = 500,000, and several such
matrices for its gradient. Everything in it is a sum over codes once the normaliser of each row is
known, so this one takes a few thousand codes at a time: first the normalisers, then the terms,
and in the backward pass the scores once more. Only [n, chunk], [n, f] and [n] are ever held.

With a = h W / tau of the first view, b of the second, p = softmax(a), r = softmax(b),
m = mean_i p_i and all sums over rows i of the batch and codes j (falcon.md, section 1):

    invariance I = -(1/n) sum_ij p_ij log r_ij
    dI/da_ij = -(1/n) p_ij (log r_ij - E_i),  E_i = sum_j p_ij log r_ij
    dI/db_ij = (1/n) (r_ij - p_ij)
    prior M = -sum_j q_j log m_j (forward), sum_j m_j log(m_j / q_j) (reverse), q_j mostly 1/c
    dM/da_ij = t_ij - p_ij T_i,  T_i = sum_j t_ij,  t_ij = p_ij dM/dp_ij
    t_ij = -q_j p_ij / (n m_j) (forward), (p_ij / n) (1 + log(m_j / q_j)) (reverse)
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Columns = Callable[[int, int], Tensor]
"""(start, stop) -> codes start to stop of the dictionary, [f, stop - start]."""


def streamed_falcon_loss(
    h_a: Tensor,
    h_b: Tensor,
    columns: Columns,
    *,
    codes: int,
    tau: float,
    chunk: int,
    beta: float = 1.0,
    prior: str = "forward",
    symmetric: bool = True,
    q: Tensor | None = None,
) -> dict[str, Tensor]:
    """`falcon_loss` of scores h W / tau, with the same terms, gradients and options.

    Args:
        h_a, h_b: embeddings of two views, [n, f].
        columns: the dictionary, a range of codes at a time.
        codes: c.
        chunk: codes held at a time; the last ones may be fewer.
        q: prior of the codes, [c]; uniform by default.

    Returns:
        Scalars `invariance` and `prior`, at least float32, differentiable once in h_a and h_b.
    """
    if h_a.shape != h_b.shape or h_a.ndim != 2:
        raise ValueError(f"embeddings must be two [n, f], not {h_a.shape} and {h_b.shape}")
    device = h_a.device.type
    if torch.is_autocast_enabled(device):  # the backward pass runs outside of it: one type for both
        h_a, h_b = (h.to(torch.get_autocast_dtype(device)) for h in (h_a, h_b))
    if q is None:
        q = h_a.new_full((codes,), 1 / codes, dtype=wide(h_a).dtype)
    scores = _Scores(columns, codes, tau, chunk, q)
    with torch.autocast(device, enabled=False):
        invariance, match = _Streamed.apply(h_a, h_b, scores, prior, symmetric)
    return {"invariance": beta * invariance, "prior": match}


class _Scores:
    """h W / tau, a few codes at a time, and the prior q of these."""

    def __init__(self, columns: Columns, codes: int, tau: float, chunk: int, q: Tensor) -> None:
        self.columns, self.codes, self.tau, self.chunk, self.q = columns, codes, tau, chunk, q

    def logs(
        self, views: Sequence[Tensor], normalisers: Sequence[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Codes [f, k], their prior [k], and log softmax [n, k] of each h."""
        for (part, found), prior in zip(self.each(*views), self.q.split(self.chunk)):
            yield part, prior, [score - m - log for score, (m, log) in zip(found, normalisers)]

    def each(self, *views: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Codes [f, k], and for each h [n, f] its scores [n, k] as float32 or float64."""
        for start in range(0, self.codes, self.chunk):
            part = self.columns(start, min(start + self.chunk, self.codes)).to(views[0].dtype)
            yield part, [wide(h @ part) / self.tau for h in views]

    def normalisers(self, *views: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(largest score m, log sum_j exp(score_ij - m)), each [n, 1], of each h.

        Kept apart: their sum would be rounded, and a saturated p would not be exactly 1.
        """
        peaks = [wide(h).new_full((len(h), 1), -math.inf) for h in views]
        sums = [torch.zeros_like(peak) for peak in peaks]
        for _, found in self.each(*views):
            for place, scores in enumerate(found):
                peak = torch.maximum(peaks[place], scores.amax(dim=1, keepdim=True))
                sums[place] *= (peaks[place] - peak).exp()
                sums[place] += (scores - peak).exp().sum(dim=1, keepdim=True)
                peaks[place] = peak
        return [(peak, total.log()) for peak, total in zip(peaks, sums)]


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32, in which the terms are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_a, h_b, scores, prior, symmetric):
        views, rows = (h_a, h_b), len(h_a)
        orders = ((0, 1), (1, 0)) if symmetric else ((0, 1),)
        normalisers = scores.normalisers(*views)
        # Row sums E and T of the module's docstring for each order of the views, and the prior.
        expected, pulls = torch.zeros(2, len(orders), rows, 1).to(normalisers[0][0])
        match = expected.new_zeros(())
        for _, q, log_p in scores.logs(views, normalisers):
            for order, (first, second) in enumerate(orders):
                p = log_p[first].exp()
                expected[order] += (p * log_p[second]).sum(dim=1, keepdim=True)
                pull, part = _match(log_p[first], p, q, prior)
                pulls[order] += pull.sum(dim=1, keepdim=True)
                match += part
        ctx.save_for_backward(h_a, h_b, *normalisers[0], *normalisers[1], expected, pulls)
        ctx.scores, ctx.prior, ctx.orders = scores, prior, orders
        return -expected.sum() / (rows * len(orders)), match / len(orders)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope_invariance, slope_match):
        h_a, h_b, *normalisers, expected, pulls = ctx.saved_tensors
        views, normalisers = (h_a, h_b), (normalisers[:2], normalisers[2:])
        along = slope_invariance / (len(h_a) * len(ctx.orders))
        against = slope_match / len(ctx.orders)
        gradients = [torch.zeros_like(wide(h)) for h in views]
        for part, q, log_p in ctx.scores.logs(views, normalisers):
            p = [each.exp() for each in log_p]
            slopes = [torch.zeros_like(each) for each in p]
            for order, (first, second) in enumerate(ctx.orders):
                slopes[first] -= along * p[first] * (log_p[second] - expected[order])
                slopes[second] += along * (p[second] - p[first])
                pull, _ = _match(log_p[first], p[first], q, ctx.prior)
                slopes[first] += against * (pull - p[first] * pulls[order])
            for gradient, slope in zip(gradients, slopes):
                gradient += wide(slope.to(part.dtype) @ part.T) / ctx.scores.tau
        return *(each.to(h.dtype) for each, h in zip(gradients, views)), None, None, None


def _match(log_p: Tensor, p: Tensor, q: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """(p dM/dp [n, k], share of these codes in the prior M), in log space: p may underflow."""
    rows = len(log_p)
    log_sum = log_p.logsumexp(dim=0)
    log_mean = log_sum - math.log(rows)
    if prior == "forward":
        return -(log_p - log_sum).exp() * q, -(log_mean * q).sum()
    excess = log_mean - q.log()
    return p * (1 + excess) / rows, (log_mean.exp() * excess).sum()
