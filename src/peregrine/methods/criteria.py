"""Criteria of two branches: the forms of InfoNCE that the named methods use, and the cosine.

All take vectors [n, d] of any length, compare them by cosine in float32 and return a mean over
samples as a scalar. Formulas: feature-augmentation.md, section 2, and the papers named below.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from peregrine.methods.feature_augmentation import cosines


def infonce(anchor: Tensor, candidates: Tensor, *, temperature: float) -> Tensor:
    """-mean_i log softmax_j(cos(a_i, b_j) / T) at j = i: negatives are the other candidates.

    The unified objective and MoCo v3 (Chen et al. 2021, algorithm 1) take online outputs as anchors
    and targets as candidates. NNCLR (Dwibedi et al. 2021, equation 3) takes neighbours as anchors
    and predictions as candidates, so its softmax runs over the predictions of the batch.
    """
    logits = cosines(anchor, candidates) / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def infonce_queue(online: Tensor, target: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE with the stored vectors [m, d] as negatives and the own target as the positive.

    Source: MoCo, He et al. 2020, equation 1; the batch's other targets are no negatives.
    """
    positive = F.cosine_similarity(online, target, dim=1)[:, None]
    logits = torch.cat([positive, cosines(online, queue)], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def nt_xent(za: Tensor, zb: Tensor, *, temperature: float) -> Tensor:
    """SimCLR's loss: every view is an anchor, the other 2N - 2 views of both sides are negatives.

    Source: Chen et al. 2020, equation 1, mean over 2N anchors.
    """
    n = len(za)
    z = torch.cat([za, zb])
    logits = (cosines(z, z) / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def cosine(online: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of paired rows; SimSiam minimises its negative, BYOL 2 - 2 of it."""
    return F.cosine_similarity(online, target, dim=1).mean()
