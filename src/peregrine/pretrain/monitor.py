"""Is it collapsing? Two numbers per layer on a fixed batch of training images, once an epoch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from peregrine.methods.base import Method


@torch.no_grad()
def monitors(method: Method, images: Tensor) -> dict[str, float]:
    """Feature sd and effective rank of features and embeddings of normalised images [n, c, h, w].

    The method is put into eval mode and back.
    """
    method.eval()
    seen = method.describe(images)
    method.train()
    out = {}
    for layer, x in (("features", seen.features), ("embeddings", seen.embeddings)):
        out[f"{layer}_sd"] = direction_sd(x)
        out[f"{layer}_rank"] = effective_rank(x)
    return out


def direction_sd(x: Tensor) -> float:
    """sqrt(d) times the rms standard deviation of unit rows [n, d]: 0 constant, 1 isotropic."""
    unit = F.normalize(x.double(), dim=1)
    return float((unit.var(dim=0, correction=0).sum()).sqrt())


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred rows (Roy, Vetterli 2007).

    0 for a constant matrix and for one that is not finite.
    """
    x = x.double()
    if not torch.isfinite(x).all():
        return 0.0
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    total = values.sum()
    if total <= 1e-12:
        return 0.0
    share = values / total
    return float(torch.special.entr(share).sum().exp())
