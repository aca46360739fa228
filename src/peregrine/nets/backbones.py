"""Backbones: image [n, c, h, w] -> features [n, f]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.models import BackboneSpec
from peregrine.nets.drop_path import DropPath

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
        y = F.leaky_relu(y, SLOPE, inplace=True)
        if not self.pool:
            return self.conv2(y) + x
        x = F.avg_pool2d(x, 2)
        # The 1x1 convolution comes after pooling, on a quarter of the pixels.
        return _pooled(self.conv2, y) + (self.shortcut(x) if self.first else x)


def _pooled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """avg_pool2d(conv(x), 2) of a padded 3x3 convolution, as one of 4x4 with stride 2.

    Its kernel is the mean of the four places that the 3x3 one takes: the same sums with 4/9 of the
    multiplications, and no map of the full size is written, pooled and sent back.
    """
    weight = F.avg_pool2d(F.pad(conv.weight, (1, 1, 1, 1)), 2, stride=1)
    return F.conv2d(x, weight, conv.bias, stride=2, padding=1)


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


def vit(spec: BackboneSpec, channels: int) -> nn.Module:
    """timm's ViT-S/16 without its classifier: F = 384, the class token after the last norm.

    Positions are learned on the grid of 224 px and interpolated to that of other sizes, so that
    crops of 96 px go through the same net. Images of no multiple of 16 px are padded with zeros.
    """
    from timm import create_model  # here: the import takes a second

    net = create_model(
        "vit_small_patch16_224",
        num_classes=0,
        in_chans=channels,
        dynamic_img_size=True,
        dynamic_img_pad=True,
        drop_path_rate=spec.drop_path,
    )
    for block in net.blocks:
        for name in ("drop_path1", "drop_path2"):
            rate = getattr(getattr(block, name), "drop_prob", 0.0)
            if rate:
                setattr(block, name, DropPath(rate))
    net.features = net.num_features
    return net


BUILDERS = {"resnet8": lambda spec, channels: ResNet8(channels, spec.width), "vit_small": vit}


def build_backbone(spec: BackboneSpec, channels: int) -> nn.Module:
    """The backbone of a run, with an attribute `features` = F; weights from the current RNG."""
    net = BUILDERS.get(spec.name, resnet)(spec, channels)
    return net.to(memory_format=torch.channels_last)
