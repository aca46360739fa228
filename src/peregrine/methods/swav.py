"""SwAV: a view predicts the prototypes that another view was assigned to, all used evenly.

Caron et al. 2020, arXiv 2006.09882. Unit embeddings z are scored against learned unit prototypes;
Sinkhorn-Knopp turns the scores of a batch, and of a queue of earlier embeddings, into assignments
that spread over the prototypes; every other view predicts them by a softmax. Settings: falcon.md,
section 3. Prototypes are brought back to unit length after each step, as in the authors' code.

Feature augmentation (arXiv 2410.12396), which neither paper has on SwAV, stands on the target side:
z is augmented before it is assigned, the predictions are of z itself. Assignments are constants
anyway. Neighbours come from past z of the first view, in a memory beside SwAV's own queue.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.augmentation import TargetAugmentationOptions
from peregrine.methods.base import Description, Encoded, Method, Neighbours, Progress, Setting
from peregrine.methods.feature_augmentation import SEARCHING, FeatureQueue, augment
from peregrine.nets.heads import mlp

GLOBAL_VIEWS = 2
"""Views that are assigned; local views only predict."""


class Options(TargetAugmentationOptions):
    codes: int = Field(3000, ge=2, description="c, the number of prototypes.")
    projector_hidden: int = Field(2048, ge=1)
    embedding: int = Field(128, ge=1, description="d, the width of z and of a prototype.")
    temperature: float = Field(0.1, gt=0, description="Of the predictions.")
    sinkhorn_epsilon: float = Field(0.05, gt=0, description="Temperature of the assignments.")
    sinkhorn_iterations: int = Field(3, ge=1)
    queue: int = Field(3840, ge=0, description="Earlier embeddings of a view, assigned with it.")
    queue_epoch: int = Field(50, ge=0, description="Epochs before the queue is used.")
    frozen_epochs: int = Field(2, ge=0, description="Epochs before the prototypes are trained.")
    local_views: int = Field(0, ge=0, description="Smaller views that only predict.")


def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Assignments [n, c]: rows sum to 1, columns to about n / c, the nearer the more iterations.

    Alternately every code is given the same mass and every row mass 1, starting from
    exp(scores / epsilon). In log space: exp overflows float32 at scores of 4.5 and epsilon .05.

    Args:
        scores: cosines with the prototypes, [n, c].

    Source: arXiv 2006.09882, equations 3 to 5.
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


def swav_loss(scores: list[Tensor], assignments: list[Tensor], *, temperature: float) -> Tensor:
    """Cross-entropy of predictions with the assignments of another view, mean over such pairs.

    -(1/n) sum_i sum_j q_ij log softmax(s_i / T)_j for the assignments q of view v and the scores s
    of each view other than v.

    Args:
        scores: cosines with the prototypes, [n, c] for every view.
        assignments: [n, c] for the first views; constants.

    Source: arXiv 2006.09882, equations 1, 2 and 6, whose sums are means here and in the authors'
    code.
    """
    predicted = [F.log_softmax(each / temperature, dim=1) for each in scores]
    terms = [
        -(q * log_p).sum(dim=1).mean()
        for v, q in enumerate(assignments)
        for w, log_p in enumerate(predicted)
        if v != w
    ]
    return torch.stack(terms).mean()


class SwAV(Method):
    readings = ("corrected", "released")

    queue: Tensor

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        o = options
        self.views = GLOBAL_VIEWS + o.local_views
        self.projector = mlp(backbone.features, o.projector_hidden, o.embedding)
        start = nn.Linear(o.embedding, o.codes, bias=False).weight.detach()
        self.prototypes = nn.Parameter(F.normalize(start, dim=1))
        self.register_buffer("queue", torch.zeros(GLOBAL_VIEWS, o.queue, o.embedding))
        self._newest: list[Tensor] = []
        searched = o.operator in SEARCHING
        self.memory = FeatureQueue(o.memory, o.embedding, setting.seed) if searched else None

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.projector(features).float(), dim=1)

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        o = self.options
        z = [self.embed(features) for features in encoded.online]
        # Without a gradient an optimiser leaves the prototypes alone, weight decay included.
        frozen = progress.epoch < o.frozen_epochs
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        scores = [_scores(each, prototypes) for each in z]
        self._newest.append(torch.stack(z[:GLOBAL_VIEWS]).detach())
        full = progress.step * len(z[0]) >= o.queue  # each step has stored as many, or more
        queue = self.queue if full and progress.epoch >= o.queue_epoch else self.queue[:, :0]
        if self.memory is not None:
            self.memory.collect(z[0], encoded.rows)
        values = []
        for targets in self._targets(z, progress):
            with torch.no_grad():
                assignments = [
                    sinkhorn(
                        torch.cat([_scores(own, prototypes), _scores(earlier, prototypes)]),
                        epsilon=o.sinkhorn_epsilon,
                        iterations=o.sinkhorn_iterations,
                    )[: len(own)]
                    for own, earlier in zip(targets, queue)
                ]
            values.append(swav_loss(scores, assignments, temperature=o.temperature))
        total = torch.stack(values)
        return {"swapped": total.sum() if o.reduction == "free" else total.mean()}

    @torch.no_grad()
    def _targets(self, z: list[Tensor], progress: Progress) -> list[list[Tensor]]:
        """What is assigned, of each of the K samples: [n, d] of the views that are assigned."""
        first, second = z[:GLOBAL_VIEWS]
        if self.options.operator == "none":
            return [[first, second]]
        draws = progress.generator(first.device)
        pairs = (first, second), (second, first)
        samples = [augment(own, other, self.options, self.memory, draws) for own, other in pairs]
        return [list(sample) for sample in zip(*samples)]

    def neighbours(self) -> Neighbours | None:
        return self.memory.older() if self.memory is not None else None

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        if progress.epoch >= self.options.frozen_epochs:
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        stored = torch.cat([*self._newest, self.queue], dim=1)
        self.queue.copy_(stored[:, : self.options.queue])
        self._newest = []
        if self.memory is not None:
            self.memory.flush()

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        """Released: the scores are the embedding itself, not those of the prototypes."""
        features = self.backbone(images)
        z = self.embed(features)
        if reading == "released":
            return Description(features, z, z)
        return Description(features, z, _scores(z, self.prototypes) / self.options.temperature)


def _scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """z C^T [n, c], also under autocast in float32: bfloat16 steps by .004, epsilon is .05."""
    with torch.autocast(z.device.type, enabled=False):
        return z @ prototypes.T
