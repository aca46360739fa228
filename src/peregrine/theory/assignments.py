"""Free assignments: the loss over all probabilities p [n, c], n < c, without embeddings.

Both views share p: for a given p the invariance is least at p' = p (Gibbs), and the prior does not
see p'. Two constructions are comparisons, not minima (falcon.md, section 1): every sample on one
code of its own, or spread evenly over its c/n private codes. Two more serve as starts: every
sample keeps the same share on one of its private codes; or a few samples carry all other codes.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from peregrine.config.theory import Sizes
from peregrine.methods.falcon import falcon_loss
from peregrine.streams import generator
from peregrine.theory.minimise import minimise

NOISE = 0.1
"""Sd of what is added to the logits of a start, so that no symmetry holds the minimiser on it."""

SLOPE = 1e-6
"""At which a minimisation ends; the losses are then within 1e-3 of those at 1e-8."""

Line = tuple[str, int, int, float, str, str, str, float]
"""(prior, n, c, beta, start, stage, metric, value)."""


def constructed(kind: str, n: int, c: int, epsilon: float, carriers: int = 0) -> Tensor:
    """Log-probabilities [n, c] of a construction; codes without a sample's mass get epsilon.

    Args:
        kind: one_hot, spread, equal_share (half of the mass on one private code) or carriers.
        carriers: how many samples carry, evenly, the codes that the others leave; of `carriers`.
    """
    per = c // n
    mass = torch.zeros(n, c, dtype=torch.float64)
    rows = torch.arange(n)
    if kind == "carriers":
        mass[rows[carriers:], rows[carriers:] - carriers] = 1
        for row, part in enumerate(torch.arange(n - carriers, c).chunk(carriers)):
            mass[row, part] = 1
    elif kind == "one_hot":
        mass[rows, rows * per] = 1
    else:
        mass.view(n, n, per)[rows, rows] = 1
        if kind == "equal_share":
            mass[rows, rows * per] = per - 1
    unused = epsilon * (mass == 0).sum(dim=1, keepdim=True)
    p = mass / mass.sum(dim=1, keepdim=True) * (1 - unused)
    return torch.where(mass > 0, p, epsilon).log()


def terms(logits: Tensor, prior: str, beta: float) -> tuple[Tensor, Tensor]:
    """(invariance, prior) of one assignment that both views share."""
    found = falcon_loss(logits, logits, beta=beta, prior=prior, symmetric=False)
    return found["invariance"], found["prior"]


def measure_assignments(sizes: Sizes) -> Iterator[Line]:
    """Constructions and minimisations at every size; over beta at the largest one only, where
    the minimiser starts from neither comparison: it takes long and ends where others do."""
    n = sizes.assignment_samples
    for c in sorted({*sizes.few_codes, sizes.assignment_codes}):
        for prior in ("forward", "reverse"):
            built = _built(n, c, sizes.epsilon, prior)
            largest = c == sizes.assignment_codes
            for beta in sizes.betas if largest and prior == "forward" else (1.0,):
                yield from _at(sizes, built, prior, n, c, beta, largest)


def _built(n: int, c: int, epsilon: float, prior: str) -> dict[str, dict[int, tuple]]:
    """Kind -> number of carriers (else 0) -> (log-probabilities, its terms at beta 1)."""
    out: dict[str, dict[int, tuple]] = {}
    few = range(1, n // 2 + 1) if prior == "forward" else ()
    names = ("one_hot", "spread", "equal_share")
    for kind, k in [*((name, 0) for name in names), *(("carriers", k) for k in few)]:
        logits = constructed(kind, n, c, epsilon, k)
        pair = [each.item() for each in terms(logits, prior, 1.0)]
        out.setdefault(kind, {})[k] = (logits if kind != "carriers" else None, *pair)
    return out


def _at(sizes: Sizes, built: dict, prior: str, n: int, c: int, beta: float, largest: bool):
    """Lines of one loss: its constructions, then where the minimiser goes from each start."""
    at = (prior, n, c, beta)

    def total(found: tuple) -> float:
        return beta * found[1] + found[2]

    starts: dict[str, Tensor] = {}
    for kind, found in built.items():
        best = min(found, key=lambda k: total(found[k]))
        logits = found[best][0]
        starts[kind] = constructed(kind, n, c, sizes.epsilon, best) if logits is None else logits
        yield *at, kind, "constructed", "loss", total(found[best])
        if best:
            yield *at, kind, "constructed", "carriers", best
    if beta == 1 and prior == "forward":
        (_, h1, m1), (_, h2, m2) = built["one_hot"][0], built["spread"][0]
        yield *at, "both", "constructed", "equal_at_beta", (m1 - m2) / (h2 - h1)
    draws = generator(0, f"theory/assignments/{prior}/{beta!r}", step=c)
    noise = torch.randn(n, c, generator=draws, dtype=torch.float64) * NOISE
    starts = {kind: logits + noise for kind, logits in starts.items()}
    if beta == 1:
        for k in range(sizes.large_starts if largest else sizes.assignment_starts):
            starts[f"random-{k}"] = torch.randn(n, c, generator=draws, dtype=torch.float64)
    if largest:
        starts = {kind: x for kind, x in starts.items() if kind not in ("one_hot", "spread")}
    reached = []
    for kind, start in starts.items():
        found = minimise(lambda x: sum(terms(x, prior, beta)), start, sizes.iterations, SLOPE)
        reached.append((found.loss, kind))
        for metric, value in _described(found.point, prior, n, c):
            yield *at, kind, "minimised", metric, value
        yield *at, kind, "minimised", "loss", found.loss
        yield *at, kind, "minimised", "iterations", found.iterations
        yield *at, kind, "minimised", "converged", float(found.converged)
    yield *at, "lowest", "minimised", "loss", min(reached)[0]
    if prior == "reverse":
        yield *at, "lowest", "minimised", "excess", min(reached)[0] - math.log(c / n)


def _described(logits: Tensor, prior: str, n: int, c: int) -> Iterator[tuple[str, float]]:
    p = logits.softmax(dim=1)
    off = 1 - p.amax(dim=1)
    yield "off_share_mean", off.mean().item()
    yield "off_share_min", off.min().item()
    yield "off_share_max", off.max().item()
    yield "carriers", float((off > 0.5).sum())
    if prior == "reverse":
        invariance, match = terms(logits, prior, 1.0)
        yield "excess", (invariance + match).item() - math.log(c / n)
