"""DINO: a student predicts what a centred, sharpened moving average of itself sees in other views.

Caron et al. 2021, arXiv 2104.14294. Student and teacher are backbone, three-layer head, unit
bottleneck and unit prototypes; the teacher follows the student as a moving average and sees the
two global views only. Settings: falcon.md, section 3. What that table leaves open is as in the
code it was read from: three linear layers in the head, prototypes untrained for one epoch.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import MethodOptions
from peregrine.data.views import Views
from peregrine.methods.base import (
    Description,
    Encoded,
    Method,
    Progress,
    Setting,
    by_role,
    features_of,
    follow,
)
from peregrine.methods.feature_augmentation import cosines

GLOBAL_VIEWS = 2
"""Views that the teacher sees; local views go through the student only."""


class Options(MethodOptions):
    codes: int = Field(4096, ge=2, description="c, the number of prototypes.")
    projector_hidden: int = Field(2048, ge=1)
    embedding: int = Field(256, ge=1, description="d, the width of the bottleneck.")
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.07, gt=0)
    warmup_temperature: float = Field(0.04, gt=0, description="The teacher's in the first epoch.")
    warmup_epochs: int = Field(0, ge=0, description="Epochs until teacher_temperature, linearly.")
    ema_start: float = Field(0.9995, ge=0, le=1, description="Rises to 1 along a cosine.")
    centre_momentum: float = Field(0.9, ge=0, le=1)
    frozen_epochs: int = Field(1, ge=0, description="Epochs before the prototypes are trained.")
    local_views: int = Field(0, ge=0, description="Smaller views, for the student only.")
    evaluate: Literal["student", "teacher"] = "student"


def dino_loss(
    student: list[Tensor],
    teacher: list[Tensor],
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student with the teacher's view of another crop, mean over such pairs.

    -(1/n) sum_i sum_j softmax((t_i - centre) / T_t)_j log softmax(s_i / T_s)_j for every teacher
    view t and every student view s but the same one. The teacher's side is a constant.

    Args:
        student: scores [n, c] of every view; teacher: of the first ones; centre: [c].

    Source: arXiv 2104.14294, equations 1 to 4; the sum over pairs is a mean here and in the
    authors' code.
    """
    targets = [F.softmax((t.detach() - centre) / teacher_temperature, dim=1) for t in teacher]
    predicted = [F.log_softmax(s / student_temperature, dim=1) for s in student]
    terms = [
        -(q * log_p).sum(dim=1).mean()
        for v, q in enumerate(targets)
        for w, log_p in enumerate(predicted)
        if v != w
    ]
    return torch.stack(terms).mean()


class DinoHead(nn.Module):
    """Features [n, f] -> unit bottleneck [n, d] -> cosines with the prototypes [n, c].

    No BatchNorm. The last layer is weight-normalised with gain 1: only directions count.
    """

    def __init__(self, inputs: int, options: Options) -> None:
        super().__init__()
        hidden, d = options.projector_hidden, options.embedding
        layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, d)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        first, second, last = layers
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.prototypes = nn.Linear(d, options.codes, bias=False)

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.mlp(features).float(), dim=1)

    def scores(self, embedding: Tensor, *, frozen: bool = False) -> Tensor:
        weight = self.prototypes.weight
        return cosines(embedding, weight.detach() if frozen else weight)


class Dino(Method):
    readings = ("corrected", "released")  # the same outputs in both

    centre: Tensor

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        self.views = GLOBAL_VIEWS + options.local_views
        self.head = DinoHead(backbone.features, options)
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), copy.deepcopy(self.head)])
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(options.codes))
        self._newest: list[Tensor] = []

    def encode(self, views: Views) -> Encoded:
        encoded = super().encode(views)
        with torch.no_grad():
            encoded.target = features_of(self.teacher[0], by_role(views)[:GLOBAL_VIEWS])
        return encoded

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        o = self.options
        # Without a gradient an optimiser leaves the prototypes alone, weight decay included.
        frozen = progress.epoch < o.frozen_epochs
        student = [self.head.scores(self.head.embed(z), frozen=frozen) for z in encoded.online]
        with torch.no_grad():
            head = self.teacher[1]
            teacher = [head.scores(head.embed(z)) for z in encoded.target]
        self._newest += teacher
        loss = dino_loss(
            student,
            teacher,
            self.centre,
            student_temperature=o.student_temperature,
            teacher_temperature=self.teacher_temperature(progress.epoch),
        )
        return {"distillation": loss}

    def teacher_temperature(self, epoch: int) -> float:
        """From warmup_temperature in the first epoch to teacher_temperature, the last of warm-up's.

        A warm-up of one epoch is all first.
        """
        o = self.options
        if epoch >= o.warmup_epochs:
            return o.teacher_temperature
        share = epoch / max(o.warmup_epochs - 1, 1)
        return o.warmup_temperature + share * (o.teacher_temperature - o.warmup_temperature)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        o = self.options
        follow(self.teacher, self.backbone, self.head, progress=progress, start=o.ema_start)
        self.centre.lerp_(torch.cat(self._newest).mean(dim=0), 1 - o.centre_momentum)
        self._newest = []

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        """Of the network that `evaluate` names; scores are not centred."""
        pair = self.teacher if self.options.evaluate == "teacher" else (self.backbone, self.head)
        backbone, head = pair
        features = backbone(images)
        h = head.embed(features)
        return Description(features, h, head.scores(h) / self.options.student_temperature)
