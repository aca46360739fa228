"""What is recorded of every epoch: is it collapsing, and what are neighbours made of?"""

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


def chance_purity(labels: Tensor) -> Tensor:
    """Chance that two random images are of one class; waits for the device of labels [n]."""
    shares = torch.bincount(labels).double() / len(labels)
    return (shares**2).sum()


@torch.no_grad()
def neighbour_monitors(method: Method, labels: Tensor, chance: Tensor) -> dict[str, Tensor]:
    """What the neighbours in a method's queue are, given the classes of all training images [n].

    `neighbour_same_image` is the share that are an older view of the very same image, and
    `neighbour_purity` the share of the same class, these included; with _L{L} among the newest L
    vectors alone. `neighbour_chance` is `chance`, see `chance_purity`. Vectors of no image, with
    which a queue starts, count as neither. Methods that search no queue have none of them.
    """
    seen = method.neighbours()
    if seen is None:
        return {}
    out = {"neighbour_chance": chance}
    for length, found in seen.found.items():
        end = "" if length is None else f"_L{length}"
        pure = (labels[found] == labels[seen.images]) & (found >= 0)
        out[f"neighbour_same_image{end}"] = (found == seen.images).double().mean()
        out[f"neighbour_purity{end}"] = pure.double().mean()
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
