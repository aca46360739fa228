"""Parts of derivations in numpy and float64; gradients by central differences, not by autograd."""

import numpy as np
import torch

STEP = 1e-5
"""Of the central differences: off by STEP^2 and by 1e-16 / STEP, both about 1e-10."""


def central_differences(value, arrays):
    """Gradient of value(*arrays) by every array."""
    out = []
    for which, array in enumerate(arrays):
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = [each.copy() for each in arrays]
                moved[which][place] += step
                ends.append(value(*moved))
            slope[place] = (ends[0] - ends[1]) / (2 * STEP)
        out.append(slope)
    return out


def distance(ours, derived, *arrays):
    """Largest difference of value, and of gradient.

    `ours` maps float64 tensors to a scalar tensor, `derived` arrays to a number.
    """
    leaves = [torch.from_numpy(each.copy()).requires_grad_() for each in arrays]
    value = ours(*leaves)
    found = [slope.numpy() for slope in torch.autograd.grad(value, leaves)]
    expected = central_differences(derived, arrays)
    gap = max(float(abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return abs(float(value.detach()) - derived(*arrays)), gap


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def projected(module, x):
    """(hidden, output) of Linear without bias, BatchNorm of the batch, ReLU, Linear."""
    first, gamma, shift, second, bias = (p.detach().double().numpy() for p in module.parameters())
    u = x @ first.T
    u = (u - u.mean(0)) / np.sqrt(((u - u.mean(0)) ** 2).mean(0) + 1e-5) * gamma + shift
    hidden = np.maximum(u, 0)
    return hidden, hidden @ second.T + bias
