"""The NMI that uniform random codes give on a test set: what a published NMI is to be held against.

An expectation from binomial counts, no simulation, so the same number everywhere. The chance levels
of our own runs are another thing: permutations of the codes that a net does use.
"""

import math
from functools import cache

import numpy as np
from scipy.special import gammaln

TEST_SETS: dict[str, tuple[int, ...]] = {
    "cifar10": (1000,) * 10,
    "cifar100": (100,) * 100,
    "fashion_mnist": (1000,) * 10,
    "svhn": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),  # digits 0 to 9
}
"""Test images of each class, of data sets as they were published."""


@cache
def random_nmi(sizes: tuple[int, ...], codes: int) -> float:
    """Expected NMI (arithmetic mean of entropies) of uniform random codes with classes of `sizes`.

    A code's count among m images is X ~ Binomial(m, 1/codes), so the expected entropy of the codes
    is log n - (codes / n) E[X log X] at m = n, and that of classes and codes together the same with
    the sum over classes m in place of one term. Returned is the ratio of expectations; the NMI
    varies so little over draws that on TEST_SETS it is within .0005 of the expected ratio, which
    the tests draw. Uniform codes occupy the most: random codes of which fewer are in use give less.

    Raises:
        ValueError: no code, or no image.
    """
    n = sum(sizes)
    if codes < 1 or n < 1:
        raise ValueError(f"codes and images must be at least 1, got {codes} and {n}")
    alone = math.log(n) - codes / n * _x_log_x(n, codes)
    both = math.log(n) - codes / n * sum(_x_log_x(m, codes) for m in sizes)
    classes = -sum(m / n * math.log(m / n) for m in sizes if m)
    return max(0.0, 2 * (classes + alone - both) / (classes + alone)) if classes + alone else 0.0


@cache
def _x_log_x(m: int, codes: int) -> float:
    """E[X log X] of X ~ Binomial(m, 1 / codes), in nats."""
    if codes == 1:
        return m * math.log(m) if m else 0.0
    x = np.arange(1, m + 1, dtype=float)
    choose = gammaln(m + 1) - gammaln(x + 1) - gammaln(m - x + 1)
    log_share = choose - x * math.log(codes) + (m - x) * math.log1p(-1 / codes)
    return float((np.exp(log_share) * x * np.log(x)).sum())
