"""Random codes in {-1, +1}^f, and how far from orthogonal they are."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from peregrine.config.theory import Sizes
from peregrine.streams import generator


def random_codes(f: int, c: int, stream: str, step: int = 0) -> Tensor:
    """i.i.d. Rademacher signs, float64 [f, c], from the stream `theory/{stream}`."""
    draws = generator(0, f"theory/{stream}", step=step)
    return torch.randint(2, (f, c), generator=draws).double() * 2 - 1


def measure_codes(sizes: Sizes) -> Iterator[tuple[int, int, str, float]]:
    """(f, c, metric, value): mean and variance about 0 of the cosines of all c (c - 1) / 2 pairs.

    Signs of different pairs are pairwise independent, so with k pairs the standard errors are
    sqrt(1 / (f k)) of the mean and sqrt((2 f - 2) / (f^3 k)) of the mean square, whose expectations
    are 0 and 1/f; `_z` is the distance from these in standard errors.
    """
    c = sizes.code_count
    pairs = c * (c - 1) / 2
    for f in sizes.code_widths:
        signs = random_codes(f, c, "codes", f)
        # Sums over pairs from the sums over all ordered ones, without c x c cosines where c > f.
        total = (signs.sum(dim=1).square().sum().item() / f - c) / 2
        squares = ((signs @ signs.T).square().sum().item() / f**2 - c) / 2
        mean, variance = total / pairs, squares / pairs
        yield f, c, "cosine_mean", mean
        yield f, c, "cosine_mean_z", mean * math.sqrt(f * pairs)
        yield f, c, "cosine_variance", variance
        yield f, c, "cosine_variance_times_f", variance * f
        yield f, c, "cosine_variance_z", (variance - 1 / f) / math.sqrt((2 * f - 2) / f**3 / pairs)
