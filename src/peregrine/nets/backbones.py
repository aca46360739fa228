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


def resnet(spec: BackboneSpec, channels: int) -> nn.Module:
    """torchvision's ResNet-18 or -50 without its classifier: F = 512 or 2048.

    The CIFAR stem is one 3x3 convolution of stride 1 and no max-pool. Of the code bases that the
    released code descends from it has the padding (2) and the initialisation: torch's default for
    a convolution, where torchvision draws the others from He's normal distribution.
    """
    from torchvision.models import resnet as resnets  # here: the import takes a second

    net = getattr(resnets, spec.name)(weights=None)
    net.features = net.fc.in_features
    net.fc = nn.Identity()
    if spec.stem == "cifar":
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=spec.stem_padding, bias=False)
        net.maxpool = nn.Identity()
    elif channels != net.conv1.in_channels:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


def build_backbone(spec: BackboneSpec, channels: int) -> nn.Module:
    """The backbone of a run, with an attribute `features` = F; weights from the current RNG."""
    net = ResNet8(channels, spec.width) if spec.name == "resnet8" else resnet(spec, channels)
    return net.to(memory_format=torch.channels_last)
