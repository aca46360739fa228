"""Floating-point operations of a pass through a backbone, counted and not estimated."""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from peregrine.config.models import BackboneSpec
from peregrine.nets.backbones import build_backbone


@cache
def forward_flops(spec: BackboneSpec, channels: int, side: int) -> int:
    """Of one image [channels, side, side]: products and sums of convolutions and matrix products.

    A training pass takes three times as many. Counted on tensors without values.
    """
    with torch.device("meta"):
        net = build_backbone(spec, channels).eval()
        image = torch.empty(1, channels, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops()
