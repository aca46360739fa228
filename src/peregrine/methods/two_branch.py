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

FA makes K samples of each feature; the criterion is averaged or, as the free loss, summed over K.
Named methods (SimCLR, MoCo, NNCLR, BYOL, SimSiam) are points of this space: config/presets.yaml.
arXiv 2410.12396 has the framework; definitions are declared in feature-augmentation.md, section 2.
"""

import copy
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.augmentation import AugmentationOptions
from peregrine.data.views import Views
from peregrine.methods.base import (
    Description,
    Encoded,
    Method,
    Neighbours,
    Progress,
    Setting,
    by_role,
    features_of,
    follow,
)
from peregrine.methods.criteria import cosine, infonce, infonce_queue, nt_xent
from peregrine.methods.feature_augmentation import SEARCHING, FeatureQueue, augment
from peregrine.nets.heads import mlp


class Options(AugmentationOptions):
    criterion: Literal[
        "infonce", "infonce_reversed", "infonce_queue", "nt_xent", "cosine", "squared"
    ] = Field(
        "infonce",
        description="infonce_reversed: the target is the anchor (NNCLR); infonce_queue: past"
        " targets as negatives (MoCo); nt_xent: SimCLR's 2N - 2; cosine: -cos; squared: 2 - 2 cos.",
    )
    directions: Literal["mean", "sum", "one"] = Field(
        "mean", description="Over both view orders; one: source view online, target view target."
    )
    temperature: float = Field(0.2, gt=0, description="InfoNCE and nt_xent.")
    times_2t: bool = Field(False, description="InfoNCE times twice its temperature (MoCo v3).")
    target: Literal["shared", "ema"] = "shared"
    ema_start: float = Field(0.99, ge=0, le=1, description="Rises to ema_end along a cosine.")
    ema_end: float = Field(1.0, ge=0, le=1)
    detach_target: bool = Field(False, description="Stop-gradient on z2; an EMA target has it.")
    placement: Literal[
        "none", "none+predictor", "basic", "predictor>fa", "fa>predictor", "parallel"
    ] = "none"
    stop_gradient: bool = Field(True, description="Detach the input of FA.")
    queue: int = Field(
        65536, ge=1, description="Length of the queue of nn, interpolate and infonce_queue."
    )
    projector_hidden: int = Field(2048, ge=1)
    projector_layers: int = Field(2, ge=1)
    projector_norm: bool = Field(False, description="BatchNorm after the projector's last layer.")
    embedding: int = Field(256, ge=1, description="d, the width of z.")
    predictor_hidden: int = Field(4096, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> "Options":
        augmented = not self.placement.startswith("none")
        if augmented == (self.operator == "none"):
            need = "an operator (nn, mask, ...)" if augmented else "operator none"
            raise ValueError(f"placement {self.placement} needs {need}")
        if self.operator == "nn" and self.samples > self.queue:
            raise ValueError(f"{self.samples} neighbours need a queue of at least as many")
        if self.operator == "nn" and self.criterion == "infonce_queue":
            raise ValueError(
                "criterion infonce_queue has the neighbours among its negatives; take another"
                " operator than nn"
            )
        if self.times_2t and not self.criterion.startswith("infonce"):
            raise ValueError(f"times_2t is for InfoNCE; leave it out with {self.criterion}")
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
        searched = o.operator in SEARCHING or o.criterion == "infonce_queue"
        self.queue = FeatureQueue(o.queue, o.embedding, setting.seed) if searched else None
        self._similar: list[Tensor] = []

    def encode(self, views: Views) -> Encoded:
        encoded = super().encode(views)
        if self.target is not None:
            with torch.no_grad():
                encoded.target = features_of(self.target[0], by_role(views))
        return encoded

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        o = self.options
        z = [self.projector(features) for features in encoded.online]
        if self.target is not None:
            with torch.no_grad():
                targets = [self.target[1](features) for features in encoded.target]
        else:
            targets = [each.detach() for each in z] if o.detach_target else z
        if o.criterion == "nt_xent":
            value = nt_xent(*map(_precise, z), temperature=o.temperature)
            return {"contrastive": value}
        draws = progress.generator(z[0].device)
        orders = [(0, 1)] if o.directions == "one" else [(0, 1), (1, 0)]
        if self.queue is not None:
            # Neighbours are those of view 1, as in NNCLR; negatives are all targets, as in MoCo.
            kept = [t for _, t in orders] if o.criterion == "infonce_queue" else [0]
            for t in kept:
                self.queue.collect(targets[t], encoded.rows)
        self._similar = []
        total = torch.stack([self._one_way(z[s], targets[t], draws) for s, t in orders]).sum()
        if self._similar:
            encoded.noted["augmented_similarity"] = torch.stack(self._similar).mean()
        total = total / len(orders) if o.directions == "mean" else total
        if o.times_2t:
            total = 2 * o.temperature * total
        return {"contrastive" if o.criterion.startswith("infonce") else "similarity": total}

    def _one_way(self, z1: Tensor, z2: Tensor, draws: torch.Generator) -> Tensor:
        """The criterion of one view order, reduced over the K samples."""
        values = torch.stack([self._criterion(*sides) for sides in self._sides(z1, z2, draws)])
        return values.sum() if self.options.reduction == "free" else values.mean()

    def _sides(self, z1: Tensor, z2: Tensor, draws: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Online and target side, [n, d] each, of every sample: the table of placements."""
        placement = self.options.placement
        if placement == "predictor>fa":
            return [(a, z2) for a in self._augment(self.predictor(z1), z2, draws, True)]
        if placement == "fa>predictor":
            return [(self.predictor(a), z2) for a in self._augment(z1, z2, draws, True)]
        online = self.predictor(z1)
        if placement in ("basic", "parallel"):
            return [(online, b) for b in self._augment(z2, z1, draws, False)]
        return [(online, z2)]

    def _augment(
        self, z: Tensor, other: Tensor, draws: torch.Generator, same_branch: bool
    ) -> Tensor:
        """FA of z [n, d] as [K, n, d]; `other` is what the other branch has projected."""
        o = self.options
        z = z.detach() if o.stop_gradient else z
        augmented = augment(z, other, o, self.queue, draws, straight_through=same_branch)
        with torch.no_grad():
            similar = F.cosine_similarity(_precise(augmented), _precise(z), dim=-1)
            self._similar.append(similar.mean())
        return augmented

    def _criterion(self, online: Tensor, target: Tensor) -> Tensor:
        online, target, t = _precise(online), _precise(target), self.options.temperature
        if self.options.criterion == "infonce":
            return infonce(online, target, temperature=t)
        if self.options.criterion == "infonce_reversed":
            return infonce(target, online, temperature=t)
        if self.options.criterion == "infonce_queue":
            return infonce_queue(online, target, self.queue.features, temperature=t)
        similarity = cosine(online, target)
        return 2 - 2 * similarity if self.options.criterion == "squared" else -similarity

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        o = self.options
        if self.target is not None:
            fast = self.backbone, self.projector
            follow(self.target, *fast, progress=progress, start=o.ema_start, end=o.ema_end)
        if self.queue is not None:
            self.queue.flush()

    def neighbours(self) -> Neighbours | None:
        """Of features of view 1, which the queue holds, whichever view or branch FA stands on."""
        searched = self.options.operator in SEARCHING
        return self.queue.older() if searched else None

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        return Description(features, self.projector(features))


def _precise(x: Tensor) -> Tensor:
    """At least float32: cosines near 1 are too close for bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
