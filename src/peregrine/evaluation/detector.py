"""A Faster R-CNN (Ren and others, arXiv 1506.01497) of torchvision on a pretrained backbone.

Two heads. C4, as MoCo transfers (arXiv 1911.05722, section 4.2): regions are cut out of the map of
the last stage but one, and the last stage sees each of them. FPN (arXiv 1612.03144): a pyramid of
all stages, and two fully connected layers for each region. What is not of the backbone is drawn
from the seed.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from peregrine.config.detection import Detection
from peregrine.nets.backbones import SLOPE, ResNet8

RATIOS = (0.5, 1.0, 2.0)
PYRAMID = 256
"""Channels of every map of a pyramid."""
HIDDEN = 1024
"""Width of the fully connected layers of an FPN's head."""


class _Map(nn.Module):
    """Some stages of a backbone as a body that yields one map."""

    def __init__(self, stages: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"0": self.stages(x)}


class _Pyramid(nn.Module):
    """All stages of a backbone, and the pyramid on their maps."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], channels: list[int]) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.pyramid = FeaturePyramidNetwork(channels, PYRAMID, extra_blocks=LastLevelMaxPool())
        self.out_channels = PYRAMID

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, maps = self.stem(x), OrderedDict()
        for number, stage in enumerate(self.stages):
            maps[str(number)] = x = stage(x)
        return self.pyramid(maps)


class _LastStage(nn.Module):
    """A backbone's last stage on the map of each region: [k, c, s, s] -> [k, f]."""

    def __init__(self, stage: nn.Module, slope: float | None) -> None:
        super().__init__()
        self.stage, self.slope = stage, slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(x)
        return (x if self.slope is None else F.leaky_relu(x, self.slope)).mean(dim=(2, 3))


def build_detector(
    backbone: nn.Module, spec: Detection, classes: int, mean: Sequence[float], sd: Sequence[float]
) -> FasterRCNN:
    """The detector; its new weights come from the current RNG.

    Args:
        backbone: a ResNet of peregrine.nets, which becomes part of the detector.
        classes: without the background.
        mean, sd: of the images that the backbone was trained on.
    """
    if isinstance(backbone, ResNet8):
        *body, last = backbone.blocks
        stem, channels, slope = nn.Identity(), [backbone.features] * len(body), SLOPE
    else:
        stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
        body = [backbone.layer1, backbone.layer2, backbone.layer3]
        last, slope = backbone.layer4, None
        channels = [backbone.features // 2**k for k in (3, 2, 1, 0)]
    if spec.head == "c4":
        net = _Map([stem, *body], channels[len(body) - 1])
        head, features, sides = _LastStage(last, slope), backbone.features, (spec.anchors,)
    else:
        net = _Pyramid(stem, [*body, last], channels)
        head, features = TwoMLPHead(PYRAMID * spec.pooled**2, HIDDEN), HIDDEN
        sides = tuple((side,) for side in spec.anchors)
    maps = ["0"] if spec.head == "c4" else ["0", "1", "2", "3"]
    detector = FasterRCNN(
        net,
        min_size=list(spec.short_sides),
        max_size=spec.long_side,
        image_mean=list(mean),
        image_std=list(sd),
        rpn_anchor_generator=AnchorGenerator(sides, (RATIOS,) * len(sides)),
        rpn_pre_nms_top_n_train=spec.proposals,
        rpn_post_nms_top_n_train=spec.proposals,
        rpn_pre_nms_top_n_test=max(1, spec.proposals // 2),
        rpn_post_nms_top_n_test=max(1, spec.proposals // 2),
        box_roi_pool=MultiScaleRoIAlign(maps, spec.pooled, sampling_ratio=2),
        box_head=head,
        box_predictor=_Predictor(features, classes + 1),
        box_batch_size_per_image=spec.regions,
    )
    return detector


class _Predictor(nn.Module):
    """Class scores and boxes of each region, small at first, as Fast R-CNN (arXiv 1504.08083)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.scores = nn.Linear(features, classes)
        self.boxes = nn.Linear(features, 4 * classes)
        for layer, sd in ((self.scores, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(layer.weight, std=sd)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(x), self.boxes(x)


def to_train(detector: nn.Module, batch_norm: str) -> nn.Module:
    """Training mode; frozen, BatchNorm keeps the statistics of pretraining and learns its scale."""
    detector.train()
    for module in detector.modules():
        if batch_norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return detector


@torch.no_grad()
def detections(detector: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """boxes [m, 4] in px of the image, labels [m], scores [m], best first, of one image."""
    return detector.eval()([image])[0]
