"""GEDI without its generative term: a uniform prior on classes, and one view predicts the other.

Sansone and Manhaeve, the method that FALCON grew out of; the loss is that of the released code of
FALCON (falcon.md, section 3).
"""

import math

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import MethodOptions
from peregrine.methods.base import Description, Encoded, Method, Progress, Setting
from peregrine.nets.heads import mlp


class Options(MethodOptions):
    codes: int = Field(2048, ge=2, description="c, the number of classes.")
    embedding: int = Field(2048, ge=1, description="Width of the hidden layer.")
    temperature: float = Field(0.1, gt=0, description="Divides the logits.")
    beta: float = Field(0.1, gt=0, description="Weight of the invariance term.")


def gedi_loss(scores_a: Tensor, scores_b: Tensor, *, beta: float) -> dict[str, Tensor]:
    """Prior and invariance term of two views, one-sided, in log space.

    With p1 = softmax(a), p2 = softmax(b) over classes and p1-bar the batch mean of p1:
    prior = -(1/2) sum_j log p1-bar_j, a sum over classes and not a mean;
    invariance = -(beta/2) (1/n) sum_i sum_j p2_ij log p1_ij. Nothing is detached.

    Args:
        scores_a, scores_b: logits / T, [n, c].

    Source: released code of FALCON (falcon.md, section 3).
    """
    log_p1 = F.log_softmax(scores_a, dim=1)
    log_mean = log_p1.logsumexp(dim=0) - math.log(len(log_p1))
    cross_entropy = -(F.softmax(scores_b, dim=1) * log_p1).sum(dim=1).mean()
    return {"prior": -0.5 * log_mean.sum(), "invariance": 0.5 * beta * cross_entropy}


class Gedi(Method):
    readings = ("corrected", "released")  # the same outputs in both

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        self.head = mlp(backbone.features, options.embedding, options.codes)

    def embed(self, features: Tensor) -> Tensor:
        """The hidden layer after its ReLU."""
        return self.head[:-1](features)

    def scores(self, embedding: Tensor) -> Tensor:
        return self.head[-1](embedding).float() / self.options.temperature

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        first, second = (self.scores(self.embed(z)) for z in encoded.online)
        return gedi_loss(first, second, beta=self.options.beta)

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        h = self.embed(features)
        return Description(features, h, self.scores(h))
