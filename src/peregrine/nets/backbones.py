"""Backbones: image [n, c, h, w] -> features [n, f]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import BackboneSpec

SLOPE = 0.2
"""Of every LeakyReLU."""


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; halves the image where `pool` says so."""

    def __init__(self, channels: int, width: int, *, pool: bool, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if first:
            self.shortcut = nn.Conv2d(channels, width, 1)
        self.pool = pool
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.leaky_relu(x, SLOPE))
        y = self.conv2(F.leaky_relu(y, SLOPE, inplace=True))
        if not self.pool:
            return y + x
        if self.first:  # 1x1 convolution after pooling, on a quarter of the pixels
            return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return F.avg_pool2d(y + x, 2)  # both sides are pooled, so their sum may be


class ResNet8(nn.Module):
    """Residual net of four blocks of two 3x3 convolutions, without normalisation.

    Block 1: conv, act, conv, pool; shortcut pool, 1x1 conv. Block 2: act, conv, act, conv, pool;
    shortcut pool. Blocks 3 and 4 the same without pooling. Then act and the mean over pixels.
    LeakyReLU 0.2 throughout. The paper names "ResNet-8" only; this layer list is a declared
    assumption (falcon.md, section 3).

    Args:
        channels: of the image.
        width: F, the channels of every block and the number of features.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = width
        self.blocks = nn.Sequential(
            _Block(channels, width, pool=True, first=True),
            _Block(width, width, pool=True, first=False),
            _Block(width, width, pool=False, first=False),
            _Block(width, width, pool=False, first=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, F]; h and w are at least 4."""
        return F.leaky_relu(self.blocks(x), SLOPE).mean(dim=(2, 3))


def build_backbone(spec: BackboneSpec, channels: int) -> nn.Module:
    """The backbone of a run, with an attribute `features` = F; weights from the current RNG."""
    nets = {"resnet8": ResNet8}
    return nets[spec.name](channels, spec.width).to(memory_format=torch.channels_last)
