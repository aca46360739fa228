"""Self-Classifier: two views classify each other; priors on classes and batch forbid one class.

Amrani, Karlinsky, Bronstein 2022, arXiv 2103.10994. The target is sharpened over the batch, the
prediction over the classes, and each is then normalised along the other axis. The loss is that of
the method's own code; head and optimiser are a declared assumption (falcon.md, section 3): SwAV's
projector with a unit embedding, then unit class vectors, as the method's own code has them.
"""

import math

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import MethodOptions
from peregrine.methods.base import Description, Encoded, Method, Progress, Setting
from peregrine.methods.feature_augmentation import cosines
from peregrine.nets.heads import mlp


class Options(MethodOptions):
    codes: int = Field(2048, ge=2, description="C, the number of classes.")
    projector_hidden: int = Field(2048, ge=1)
    embedding: int = Field(128, ge=1, description="d, the width of the unit embedding.")
    target_temperature: float = Field(0.05, gt=0, description="Softmax over the batch.")
    temperature: float = Field(0.1, gt=0, description="Softmax over the classes.")


def self_classifier_loss(
    scores_a: Tensor, scores_b: Tensor, *, target_temperature: float, temperature: float
) -> Tensor:
    """Cross-entropy with a uniform prior on classes and images, mean of both view orders.

    target = softmax over the batch (T_t), divided by its sums over classes; prediction = softmax
    over classes (T), divided by its sums over the batch; one order is
    -(1/n) sum_i sum_j target_ij log(n/c prediction_ij). Gradient flows through the target too.

    Args:
        scores_a, scores_b: class scores of two views, [n, c].

    Source: arXiv 2103.10994, section 3, and the method's own code (falcon.md, section 3), without
    its 1e-8 inside the logarithm: in log space nothing underflows.
    """

    def one(target: Tensor, predicted: Tensor) -> Tensor:
        log_target = F.log_softmax(target / target_temperature, dim=0)
        log_p = F.log_softmax(predicted / temperature, dim=1)
        log_p = log_p - log_p.logsumexp(dim=0) + math.log(len(log_p) / log_p.shape[1])
        return -(F.softmax(log_target, dim=1) * log_p).sum(dim=1).mean()

    return (one(scores_a, scores_b) + one(scores_b, scores_a)) / 2


class SelfClassifier(Method):
    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        o = options
        self.projector = mlp(backbone.features, o.projector_hidden, o.embedding)
        self.classes = nn.Linear(o.embedding, o.codes, bias=False)

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.projector(features).float(), dim=1)

    def scores(self, embedding: Tensor) -> Tensor:
        return cosines(embedding, self.classes.weight)

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        first, second = (self.scores(self.embed(z)) for z in encoded.online)
        o = self.options
        loss = self_classifier_loss(
            first, second, target_temperature=o.target_temperature, temperature=o.temperature
        )
        return {"classification": loss}

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        h = self.embed(features)
        return Description(features, h, self.scores(h) / self.options.temperature)
