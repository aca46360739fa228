"""The unified two-branch objective of paper B: contrastive or similarity, with augmented features.

Online branch z1 = projector(backbone(x1)); target branch z2 = projector(encoder_t(x2)), where
encoder_t is shared or an exponential moving average. A placement says where the predictor and the
feature augmentation FA stand:

    placement        online side         target side   its own baseline
    none             z1                  z2
    none+predictor   predictor(z1)       z2
    basic            z1                  FA(z2)        none
    predictor>fa     FA(predictor(z1))   z2            none+predictor
    fa>predictor     predictor(FA(z1))   z2            none+predictor
    parallel         predictor(z1)       FA(z2)        none+predictor

Named methods (SimCLR, BYOL) are points of this space: config/presets.yaml. arXiv 2410.12396 has
the framework; definitions are declared in feature-augmentation.md, section 2.
"""

import copy
import math
from typing import Literal

import torch
from pydantic import Field, model_validator
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
)
from peregrine.methods.feature_augmentation import FeatureQueue, cosines, mask, nearest
from peregrine.nets.heads import mlp


class Options(MethodOptions):
    criterion: Literal["infonce", "nt_xent", "cosine", "squared"] = Field(
        "infonce", description="cosine: -cos; squared: 2 - 2 cos; nt_xent: SimCLR's own 2N - 2."
    )
    directions: Literal["mean", "sum", "one"] = Field(
        "mean", description="Over both view orders; one: source view online, target view target."
    )
    temperature: float = Field(0.2, gt=0, description="InfoNCE and nt_xent.")
    target: Literal["shared", "ema"] = "shared"
    ema_start: float = Field(0.99, ge=0, le=1, description="Rises to 1 along a cosine.")
    detach_target: bool = Field(False, description="Stop-gradient on z2; an EMA target has it.")
    placement: Literal[
        "none", "none+predictor", "basic", "predictor>fa", "fa>predictor", "parallel"
    ] = "none"
    operator: Literal["none", "nn", "mask"] = "none"
    stop_gradient: bool = Field(True, description="Detach the input of FA.")
    queue: int = Field(65536, ge=1, description="Length of the queue that nn searches.")
    mask_ratio: float = Field(0.3, ge=0, lt=1)
    projector_hidden: int = Field(2048, ge=1)
    projector_layers: int = Field(2, ge=1)
    projector_norm: bool = Field(False, description="BatchNorm after the projector's last layer.")
    embedding: int = Field(256, ge=1, description="d, the width of z.")
    predictor_hidden: int = Field(4096, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> "Options":
        augmented = not self.placement.startswith("none")
        if augmented == (self.operator == "none"):
            need = "an operator (nn, mask)" if augmented else "operator none"
            raise ValueError(f"placement {self.placement} needs {need}")
        if self.criterion == "nt_xent" and (
            self.placement != "none" or self.target == "ema" or self.detach_target
        ):
            raise ValueError(
                "criterion nt_xent is SimCLR's own: placement none, target shared, not detached"
            )
        # Only FA on the online side can cut that side off; then the target must be attached.
        online_cut = self.placement in ("predictor>fa", "fa>predictor") and self.stop_gradient
        if online_cut and (self.target == "ema" or self.detach_target):
            raise ValueError(
                f"no gradient reaches the backbone: placement {self.placement} with stop_gradient"
                f" and a detached target; set stop_gradient: false or attach the target"
            )
        return self


def infonce(online: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """-mean_i log softmax_j(cos(a_i, b_j) / T) at j = i: the batch's other targets are negatives.

    Args:
        online, target: [n, d], of any length; scalar result. Source: feature-augmentation.md, 2.
    """
    logits = cosines(online, target) / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def nt_xent(za: Tensor, zb: Tensor, *, temperature: float) -> Tensor:
    """SimCLR's loss: every view is an anchor, the other 2N - 2 views of both sides are negatives.

    Args:
        za, zb: [n, d]. Source: Chen et al. 2020, equation 1, mean over 2N anchors.
    """
    n = len(za)
    z = torch.cat([za, zb])
    logits = (cosines(z, z) / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def cosine(online: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of paired rows, a scalar; SimSiam minimises its negative, BYOL 2 - 2 of it."""
    return F.cosine_similarity(online, target, dim=1).mean()


class TwoBranch(Method):
    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        o = options
        self.projector = mlp(
            backbone.features,
            o.projector_hidden,
            o.embedding,
            layers=o.projector_layers,
            last_norm=o.projector_norm,
        )
        has_predictor = o.placement not in ("none", "basic")
        self.predictor = (
            mlp(o.embedding, o.predictor_hidden, o.embedding) if has_predictor else nn.Identity()
        )
        self.target = None
        if o.target == "ema":
            self.target = nn.ModuleList([copy.deepcopy(backbone), copy.deepcopy(self.projector)])
            self.target.requires_grad_(False)
        uses_queue = o.operator == "nn"
        self.queue = FeatureQueue(o.queue, o.embedding, setting.seed) if uses_queue else None
        self._newest: list[Tensor] = []

    def encode(self, views: Views) -> Encoded:
        encoded = super().encode(views)
        if self.target is not None:
            with torch.no_grad():
                encoded.target = features_of(self.target[0], by_role(views))
        return encoded

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        z = [self.projector(features) for features in encoded.online]
        if self.target is not None:
            with torch.no_grad():
                targets = [self.target[1](features) for features in encoded.target]
        else:
            targets = [each.detach() for each in z] if self.options.detach_target else z
        self._newest.append(targets[0].detach())
        o = self.options
        if o.criterion == "nt_xent":
            value = nt_xent(z[0].float(), z[1].float(), temperature=o.temperature)
            return {"contrastive": value}
        draws = progress.generator(z[0].device)
        orders = [(0, 1)] if o.directions == "one" else [(0, 1), (1, 0)]
        terms = [self._criterion(*self._branches(z[s], targets[t], draws)) for s, t in orders]
        total = torch.stack(terms).sum()
        name = "contrastive" if o.criterion == "infonce" else "similarity"
        return {name: total / len(terms) if o.directions == "mean" else total}

    def _branches(self, z1: Tensor, z2: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Online and target side of one view order, [n, d] each."""
        placement = self.options.placement
        if placement == "predictor>fa":
            return self._augment(self.predictor(z1), draws, same_branch=True), z2
        if placement == "fa>predictor":
            return self.predictor(self._augment(z1, draws, same_branch=True)), z2
        if placement in ("basic", "parallel"):
            return self.predictor(z1), self._augment(z2, draws, same_branch=False)
        return self.predictor(z1), z2

    def _augment(self, z: Tensor, draws: torch.Generator, *, same_branch: bool) -> Tensor:
        z = z.detach() if self.options.stop_gradient else z
        if self.options.operator == "nn":
            return nearest(z, self.queue, straight_through=same_branch)
        return mask(z, self.options.mask_ratio, draws)

    def _criterion(self, online: Tensor, target: Tensor) -> Tensor:
        online, target = online.float(), target.float()
        if self.options.criterion == "infonce":
            return infonce(online, target, temperature=self.options.temperature)
        similarity = cosine(online, target)
        return 2 - 2 * similarity if self.options.criterion == "squared" else -similarity

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        if self.target is not None:
            share = math.cos(math.pi * progress.step / max(progress.total_steps, 1))
            momentum = 1 - (1 - self.options.ema_start) * (share + 1) / 2
            online = [*self.backbone.parameters(), *self.projector.parameters()]
            for slow, fast in zip(self.target.parameters(), online, strict=True):
                slow.lerp_(fast, 1 - momentum)
        if self.queue is not None and self._newest:
            self.queue.push(torch.cat(self._newest))
        self._newest = []

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        return Description(features, self.projector(features))
