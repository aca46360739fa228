"""Barlow Twins: the cross-correlation of two views' embeddings is drawn towards the identity.

Zbontar et al. 2021, arXiv 2103.03230. Head and settings of the released code of FALCON, whose
baseline it is (falcon.md, section 3).
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import MethodOptions
from peregrine.methods.base import Description, Encoded, Method, Progress, Setting
from peregrine.nets.heads import mlp


class Options(MethodOptions):
    projector_hidden: int = Field(2048, ge=1, description="Width of both hidden layers.")
    embedding: int = Field(2048, ge=1, description="d, the width of z.")
    off_diagonal: float = Field(0.0051, gt=0, description="lambda, weight of the redundancy term.")
    scale: float = Field(0.1, gt=0, description="Multiplies both terms.")


def barlow_twins_loss(
    za: Tensor, zb: Tensor, *, off_diagonal: float = 0.0051, scale: float = 1.0
) -> dict[str, Tensor]:
    """Invariance and redundancy term of two views.

    With z standardised per coordinate over the batch (variance with divisor n, plus 1e-5) and
    C = za^T zb / n: invariance = scale * sum_j (1 - C_jj)^2,
    redundancy = scale * lambda * sum_{j != k} C_jk^2.

    Args:
        za, zb: embeddings [n, d], n >= 2.

    Returns:
        Scalars `invariance` and `redundancy`; 0 and 0 at the optimum.

    Source: arXiv 2103.03230, equations 1 and 2, with the batch normalisation of its algorithm 1.
    """
    if za.shape != zb.shape or za.ndim != 2:
        raise ValueError(f"embeddings must be two [n, d], not {za.shape} and {zb.shape}")
    with torch.autocast(za.device.type, enabled=False):  # bfloat16 would swallow correlations
        za, zb = (F.batch_norm(z, None, None, training=True) for z in (za, zb))
        if 2 * len(za) <= za.shape[1]:
            # |za^T zb|^2 is the sum of the two Gram matrices' product: n x n in place of d x d. At
            # C_jj = 1 it is d^2 / n at least, so taking d of it away costs no more than one bit.
            diagonal = (za * zb).mean(dim=0)
            squares = ((za @ za.T) * (zb @ zb.T)).sum() / len(za) ** 2
            redundancy = squares - diagonal.square().sum()
        else:
            correlation = za.T @ zb / len(za)
            diagonal = correlation.diagonal()
            redundancy = (correlation - diagonal.diag()).square().sum()
    invariance = (1 - diagonal).square().sum()
    return {"invariance": scale * invariance, "redundancy": scale * off_diagonal * redundancy}


class BarlowTwins(Method):
    readings = ("corrected", "released")

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        o = options
        self.projector = mlp(backbone.features, o.projector_hidden, o.embedding, layers=3)

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        first, second = (self.projector(features).float() for features in encoded.online)
        o = self.options
        return barlow_twins_loss(first, second, off_diagonal=o.off_diagonal, scale=o.scale)

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        """Released: embeddings after the second ReLU, and the raw output as scores."""
        features = self.backbone(images)
        hidden = self.projector[:-1](features)
        z = self.projector[-1](hidden)
        if reading == "released":
            return Description(features, hidden, z)
        return Description(features, z)
