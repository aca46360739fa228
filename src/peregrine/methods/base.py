"""What a method is: an encoder, a loss, and something to evaluate. The loop knows no more."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from peregrine.data.views import Views
from peregrine.nets.drop_path import DropPath
from peregrine.streams import generator


@dataclass(frozen=True)
class Setting:
    """What a method may know of its run besides its options."""

    batch_size: int
    """Images over which a loss is taken, n of FALCON's tau; see build.loss_batch."""
    train_images: int
    seed: int


@dataclass(frozen=True)
class Progress:
    """Where the run is: epoch and step count from 0, `step` over the whole run."""

    seed: int
    epoch: int
    step: int
    total_steps: int
    micro: int = 0
    """Which micro-batch of the step, where gradients are accumulated over several losses."""

    def generator(self, device: torch.device, stream: str = "method") -> torch.Generator:
        """The stream of this step and micro-batch."""
        stream = f"{stream}/{self.micro}" if self.micro else stream
        return generator(self.seed, stream, self.epoch, self.step, device)


@dataclass
class Encoded:
    """Backbone features [n, f], one tensor a view: the trained encoder's, and the target's."""

    online: list[Tensor]
    target: list[Tensor]
    rows: Tensor | None = None
    """Which images of the training set these are, [n]; for the record, never for a loss."""
    noted: dict[str, Tensor] = field(default_factory=dict)
    """Scalars that `losses` leaves for history.csv, by name; no part of the loss."""


@dataclass
class Neighbours:
    """Images [m] whose nearest stored feature is looked for, and the images [m] of what is found.

    Indices of the training set, -1 for a feature of none; `found` by the number of newest features
    that were searched, and under None among all of them.
    """

    images: Tensor
    found: dict[int | None, Tensor]


@dataclass
class Description:
    """What evaluation sees: features [n, f], embeddings [n, d], scores [n, c] if any."""

    features: Tensor
    embeddings: Tensor
    scores: Tensor | None = None


def by_role(views: Views) -> list[Tensor]:
    """Images [n, c, h, w] of every view: sources first, whatever order the run lists them in."""
    roles = ("source", "target", "local")
    return [view for role in roles for group in views.by_role(role) for view in group.images]


def features_of(backbone: nn.Module, images: list[Tensor]) -> list[Tensor]:
    """Backbone features [n, f] of each view [n, c, h, w].

    Views of one size go through together, which halves the number of small operations - unless
    the backbone has batch statistics, which every view is to have for itself.
    """
    if any(isinstance(each, _BatchNorm) for each in backbone.modules()):
        return [backbone(view) for view in images]
    features: list[Tensor] = []
    for _, group in groupby(images, key=lambda view: view.shape):
        same = list(group)
        features += backbone(torch.cat(same)).chunk(len(same))
    return features


@torch.no_grad()
def follow(
    slow: nn.Module, *fast: nn.Module, progress: Progress, start: float, end: float = 1.0
) -> None:
    """Exponential moving average: `slow` holds copies of `fast`, in their order.

    The momentum rises from `start` to `end` along a cosine over the run (Grill et al. 2020).
    """
    share = math.cos(math.pi * progress.step / max(progress.total_steps, 1))
    momentum = end - (end - start) * (share + 1) / 2
    online = [parameter for module in fast for parameter in module.parameters()]
    torch._foreach_lerp_([*slow.parameters()], online, 1 - momentum)


class Method(nn.Module, ABC):
    """Base of all methods. A subclass stands beside a class `Options` of its own.

    Gradient accumulation asks two things of it. `losses` may be called several times between two
    `after_step`: what a queue takes is collected there and pushed in after_step, all of it. And
    the backbone may be asked for the same images twice, first without gradient, so `encode` and
    `online` change nothing but batch statistics, and `losses` does not call the backbone.
    """

    views = 2
    """How many views of an image the method takes."""

    readings: tuple[str, ...] = ("corrected",)
    """What `describe` can be asked for; 'released' where falcon.md, section 4, defines it."""

    def __init__(self, backbone: nn.Module, options, setting: Setting) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.setting = setting

    def reseed(self, progress: Progress) -> None:
        """Called before each pass of the backbone that trains it; a second one draws the same."""
        layers = [each for each in self.backbone.modules() if isinstance(each, DropPath)]
        if layers:
            draws = progress.generator(torch.device("cpu"), "backbone")
            for layer in layers:
                layer.generator = draws

    def online(self, views: Views) -> list[Tensor]:
        """The trained encoder's features of every view, in the order of by_role."""
        return features_of(self.backbone, by_role(views))

    def encode(self, views: Views) -> Encoded:
        """`online`, and what the method's target encoder makes of the views, if it has one."""
        return Encoded(online=self.online(views), target=[], rows=views.rows)

    @abstractmethod
    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        """Loss terms of the batch `encoded`, scalars by name; their sum is minimised."""

    def after_step(self, progress: Progress) -> None:
        """Called after each optimiser step: moving averages and queues."""

    def neighbours(self) -> Neighbours | None:
        """What a method that stores features of earlier images finds among them now.

        For the record only: labels join it in peregrine.pretrain.monitor.
        """
        return None

    @abstractmethod
    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        """Features, embeddings and scores of images [n, c, h, w]; the caller sets eval mode.

        In the released reading, embeddings and scores are those that the released code of
        FALCON draws its spectra from and takes the argmax of (falcon.md, section 4).
        """
