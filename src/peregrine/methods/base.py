"""What a method is: an encoder, a loss, and something to evaluate. The loop knows no more."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peregrine.data.views import Views
from peregrine.streams import generator


@dataclass(frozen=True)
class Setting:
    """What a method may know of its run besides its options."""

    batch_size: int
    train_images: int
    seed: int


@dataclass(frozen=True)
class Progress:
    """Where the run is: epoch and step count from 0, `step` over the whole run."""

    seed: int
    epoch: int
    step: int
    total_steps: int

    def generator(self, device: torch.device) -> torch.Generator:
        """The `method` stream of this step."""
        return generator(self.seed, "method", self.epoch, self.step, device)


@dataclass
class Encoded:
    """Backbone features [n, f], one tensor a view: the trained encoder's, and the target's."""

    online: list[Tensor]
    target: list[Tensor]


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


class Method(nn.Module):
    """Base of all methods. A subclass stands beside a class `Options` of its own."""

    def __init__(self, backbone: nn.Module, options, setting: Setting) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.setting = setting

    def encode(self, views: Views) -> Encoded:
        """Backbone features of every view, one after the other in the order of by_role."""
        return Encoded(online=[self.backbone(view) for view in by_role(views)], target=[])

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        """Loss terms of the whole batch, scalars by name; their sum is minimised."""
        raise NotImplementedError

    def after_step(self, progress: Progress) -> None:
        """Called after each optimiser step: moving averages and queues."""

    def describe(self, images: Tensor) -> Description:
        """Features, embeddings and scores of images [n, c, h, w]; the caller sets eval mode."""
        raise NotImplementedError
