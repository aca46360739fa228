"""VICReg: equal embeddings of two views, every coordinate varies, no two vary together.

Bardes, Ponce, LeCun 2022, arXiv 2105.04906. Settings are a declared assumption (falcon.md,
section 3).
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
    invariance: float = Field(25.0, gt=0, description="Weight.")
    variance: float = Field(25.0, ge=0, description="Weight.")
    covariance: float = Field(1.0, ge=0, description="Weight.")


def vicreg_loss(
    za: Tensor, zb: Tensor, *, invariance: float, variance: float, covariance: float
) -> dict[str, Tensor]:
    """The three weighted terms of two views.

    invariance: mean of (a - b)^2 over images and coordinates; variance: mean over coordinates and
    views of max(0, 1 - sqrt(var + 1e-4)); covariance: sum over views of the squared off-diagonal
    covariances, over d. Variances and covariances divide by n - 1.

    Args:
        za, zb: [n, d], n at least 2.

    Source: the authors' code. arXiv 2105.04906, equations 1 to 6, has a sum over coordinates in
    the invariance term (d times this one) and over views in the variance term (twice this one).
    """
    parts = [_variance_and_covariance(each) for each in (za, zb)]
    return {
        "invariance": invariance * F.mse_loss(za, zb),
        "variance": variance * (parts[0][0] + parts[1][0]) / 2,
        "covariance": covariance * (parts[0][1] + parts[1][1]),
    }


def _variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    n, d = z.shape
    z = z - z.mean(dim=0)
    covariances = z.T @ z / (n - 1)
    variances = covariances.diagonal()
    hinge = F.relu(1 - torch.sqrt(variances + 1e-4)).mean()
    return hinge, (covariances - torch.diag(variances)).square().sum() / d


class VICReg(Method):
    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        o = options
        self.projector = mlp(backbone.features, o.projector_hidden, o.embedding, layers=3)

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        za, zb = (self.projector(features).float() for features in encoded.online)
        o = self.options
        with torch.autocast(za.device.type, enabled=False):  # covariances are products
            return vicreg_loss(
                za, zb, invariance=o.invariance, variance=o.variance, covariance=o.covariance
            )

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        return Description(features, self.projector(features))
