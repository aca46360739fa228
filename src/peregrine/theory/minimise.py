"""Minimisation in float64 by L-BFGS (scipy), gradients by torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize
from torch import Tensor


class Minimum(NamedTuple):
    """Where a minimisation ended, and whether by its tolerances or for want of iterations."""

    point: Tensor
    loss: float
    iterations: int
    converged: bool


def minimise(
    loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int, slope: float
) -> Minimum:
    """A local minimum of `loss`, a scalar of one float64 tensor, from `start`.

    Ends where no derivative exceeds `slope`, or a step gains less than a hundredth of it.
    """

    def value_and_gradient(flat):
        point = torch.from_numpy(flat.reshape(start.shape)).requires_grad_()
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy().ravel()

    limits = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-2 * slope, "gtol": slope}
    found = minimize(
        value_and_gradient,
        start.double().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options=limits,
    )
    point = torch.from_numpy(found.x.reshape(start.shape))
    return Minimum(point, float(found.fun), int(found.nit), found.status == 0)
