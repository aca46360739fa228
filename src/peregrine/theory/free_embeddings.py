"""Free embeddings h [n, f] in place of a backbone of infinite capacity, minimised over.

Both views share h. The optimum of the theory (falcon.md, section 1; arXiv 2410.04959) for n >= c:
each embedding aligned with exactly one code, n/c on every code, so H H^T is block diagonal with
equal blocks, H^T H near I, and the loss at its lower bound, ln c (forward form, epsilon -> 0) or 0
(reverse form). `aligned` starts there, `random-k` anywhere. For n < c the reverse form is bounded
by ln(c/n); the forward form is held against the lowest free assignment.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from peregrine.config.theory import Sizes
from peregrine.methods.falcon import falcon_loss, temperature
from peregrine.streams import generator
from peregrine.theory.codes import random_codes
from peregrine.theory.minimise import Minimum, minimise

SLOPE = 1e-8
"""At which a minimisation ends."""

Line = tuple[str, str, str, int, int, int, str, str, float]
"""(stage, norm, prior, n, c, f, start, metric, value); stage: blocks (n >= c) or few (n < c);
prior is none where the spread assignment is approached instead of the loss minimised."""

Cosine = tuple[str, str, str, int, int, float]
"""(norm, prior, start, row, column, cosine), samples in the order of their codes."""


def embed(raw: Tensor, norm: str) -> Tensor:
    """h [n, f] of unconstrained numbers, in the published (l2) or the released (tanh) form."""
    if norm == "tanh":
        return torch.tanh(raw)
    n, f = raw.shape
    return F.normalize(raw, dim=1) * math.sqrt(f / n)


def aligned_start(codes: Tensor, n: int, norm: str) -> Tensor:
    """Raw numbers whose embeddings stand on the codes in turn, h = w / sqrt(n)."""
    target = codes.T[torch.arange(n) % codes.shape[1]] / math.sqrt(n)
    return torch.atanh(target) if norm == "tanh" else target


def measure_embeddings(
    sizes: Sizes, lowest: Mapping[int, float], cosines: list[Cosine]
) -> Iterator[Line]:
    """All norms, priors, sizes and starts.

    Args:
        lowest: c -> lowest loss of free assignments in the forward form, for n < c.
        cosines: receives those between all samples at c = sizes.picture.
    """
    pairs = [(sizes.block * c, c) for c in sizes.codes]
    pairs += [(sizes.assignment_samples, c) for c in sizes.few_codes]
    f = sizes.width
    for n, c in pairs:
        codes = random_codes(f, c, "embeddings/dictionary", c)
        tau = temperature(f, n, c, sizes.epsilon)
        for norm in ("l2", "tanh"):
            starts = {"aligned": aligned_start(codes, n, norm)}
            draws = generator(0, f"theory/embeddings/{norm}/{n}", step=c)
            for k in range(sizes.starts):
                starts[f"random-{k}"] = torch.randn(n, f, generator=draws, dtype=torch.float64)
            if n < c:
                at = ("few", norm, "none", n, c, f, "spread")
                yield (
                    *at,
                    "divergence",
                    _distance_from_spread(codes, tau, norm, n, sizes.iterations),
                )
            for prior in ("forward", "reverse"):
                loss = _loss(codes, tau, norm, prior)
                for name, start in starts.items():
                    found = minimise(loss, start, sizes.iterations, SLOPE)
                    h = embed(found.point, norm)
                    at = ("blocks" if n >= c else "few", norm, prior, n, c, f, name)
                    for metric, value in _described(h, codes, tau, prior, found, lowest):
                        yield *at, metric, value
                    if n >= c == sizes.picture:
                        order = (h @ codes).argmax(dim=1).argsort(stable=True)
                        unit = F.normalize(h[order], dim=1)
                        for (i, j), value in _entries(unit @ unit.T):
                            cosines.append((norm, prior, name, i, j, value))


def _loss(codes: Tensor, tau: float, norm: str, prior: str) -> Callable[[Tensor], Tensor]:
    def loss(raw: Tensor) -> Tensor:
        scores = embed(raw, norm) @ codes / tau
        return sum(falcon_loss(scores, scores, prior=prior, symmetric=False).values())

    return loss


def _distance_from_spread(codes: Tensor, tau: float, norm: str, n: int, iterations: int) -> float:
    """Least mean KL(spread || p) over embeddings [n, f], in nats; spread: evenly over c/n codes.

    From the sums of each sample's c/n codes, the direction in which their logits are largest.
    """
    f, per = len(codes), codes.shape[1] // n

    def divergence(raw: Tensor) -> Tensor:
        log_p = (embed(raw, norm) @ codes / tau).log_softmax(dim=1).view(n, n, per)
        own = log_p[torch.arange(n), torch.arange(n)]
        return -own.mean() - math.log(per)

    start = codes.view(f, n, per).sum(dim=2).T / (per * math.sqrt(n))
    return minimise(divergence, start, iterations, SLOPE).loss


def _entries(matrix: Tensor) -> Iterator[tuple[tuple[int, int], float]]:
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            yield (i, j), value


def _described(
    h: Tensor, codes: Tensor, tau: float, prior: str, found: Minimum, lowest: Mapping[int, float]
) -> Iterator[tuple[str, float]]:
    """Metrics of one solution; those about blocks where n >= c."""
    (n, f), c = h.shape, codes.shape[1]
    p = (h @ codes / tau).softmax(dim=1)
    own = p.argmax(dim=1)
    held = torch.bincount(own, minlength=c).double()
    unit = F.normalize(h, dim=1)
    cosine = (unit * codes.T[own]).sum(dim=1) / math.sqrt(f)
    yield "loss", found.loss
    yield "iterations", found.iterations
    yield "converged", float(found.converged)
    yield "own_share_min", p.amax(dim=1).min().item()
    yield "own_share_mean", p.amax(dim=1).mean().item()
    yield "own_cosine_min", cosine.min().item()
    yield "own_cosine_mean", cosine.mean().item()
    yield "codes_used", float((held > 0).sum())
    yield "alone_share", (held[own] == 1).double().mean().item()
    gram = h.T @ h
    gram = gram / gram.diagonal().mean()  # tanh leaves the length free
    off = gram[~torch.eye(f, dtype=torch.bool)]
    yield "gram_off_sd", off.square().mean().sqrt().item()
    yield "gram_off_sd_times_root", off.square().mean().sqrt().item() * math.sqrt(min(n, c))
    yield "gram_diagonal_sd", gram.diagonal().std(correction=0).item()
    if n < c:
        bound = math.log(c / n) if prior == "reverse" else lowest[c]
        yield "excess", found.loss - bound
        entropy = torch.special.entr(p).sum(dim=1)
        yield "codes_per_sample", entropy.exp().mean().item()
        yield "codes_per_sample_of_spread", c / n
        return
    bound = math.log(c) if prior == "forward" else 0.0
    yield "excess", found.loss - bound
    yield "block_smallest", held.min().item()
    yield "block_largest", held.max().item()
    yield "equal_blocks", (held == n // c).double().mean().item()
    mismatch = _mismatch(held / n, prior)
    if mismatch is not None:
        yield "block_mismatch", mismatch
        yield "unexplained_excess", abs(found.loss - bound - mismatch)
    together = own[:, None] == own
    cosines = unit @ unit.T
    yield "within_cosine_min", cosines[together].min().item()
    if not together.all():
        yield "between_cosine_sd_times_root", cosines[~together].std().item() * math.sqrt(f)


def _mismatch(share: Tensor, prior: str) -> float | None:
    """Prior term above its bound if every sample were on one code; None where that is infinite."""
    c = len(share)
    if prior == "reverse":
        return math.log(c) - torch.special.entr(share).sum().item()
    if (share == 0).any():
        return None
    return -share.log().mean().item() - math.log(c)
