"""Projectors and predictors: features [n, f] -> embeddings [n, d]."""

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, last_norm: bool = False):
    """Linear layers with BatchNorm and ReLU between them, as SimCLR, BYOL and NNCLR use them.

    Args:
        inputs, hidden, outputs: widths.
        layers: number of linear layers, at least 1.
        last_norm: BatchNorm after the last layer too (NNCLR's projector).
    """
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    modules: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        last = index == layers - 1
        # A bias before BatchNorm would be subtracted again.
        modules.append(nn.Linear(before, after, bias=last and not last_norm))
        if not last:
            modules += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last_norm:
            modules.append(nn.BatchNorm1d(after))
    return nn.Sequential(*modules)
