"""ResNet-8 and the heads against numpy restatements of their layer lists (falcon.md, section 3)."""

import numpy as np
import pytest
import torch
from torch import nn

from peregrine.config.models import BackboneSpec
from peregrine.nets.backbones import build_backbone
from peregrine.nets.heads import mlp


def conv(x, weight, bias):
    """Cross-correlation with zero padding that keeps the size; weight [out, in, k, k]."""
    k = weight.shape[-1]
    n, _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((n, len(weight), h, w)) + bias[:, None, None]
    for dy in range(k):
        for dx in range(k):
            patch = padded[:, :, dy : dy + h, dx : dx + w]
            out += np.einsum("nchw,oc->nohw", patch, weight[:, :, dy, dx])
    return out


def pool(x):
    """Mean over squares of 2 x 2; an odd last row or column is dropped."""
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def act(x):
    return np.where(x > 0, x, 0.2 * x)


def resnet8(x, weights):
    """Block 1: conv-act-conv-pool, shortcut pool-1x1conv; block 2: act-conv-act-conv-pool,
    shortcut pool; blocks 3 and 4 without pooling; act, mean over pixels."""
    weights = iter(weights)

    def c(x):
        return conv(x, next(weights), next(weights))

    inner = pool(c(act(c(x))))
    x = inner + c(pool(x))
    x = pool(c(act(c(act(x))))) + pool(x)
    x = c(act(c(act(x)))) + x
    x = c(act(c(act(x)))) + x
    assert next(weights, None) is None
    return act(x).mean(axis=(2, 3))


def make(channels, width, seed=0):
    torch.manual_seed(seed)
    net = build_backbone(BackboneSpec(name="resnet8", width=width), channels).double()
    with torch.no_grad():  # larger than by default, so that both sides of each kink are visited
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return net


@pytest.mark.parametrize(
    ("channels", "width", "size"),
    [(3, 6, (8, 12)), (1, 5, (16, 16)), (2, 3, (7, 9)), (3, 4, (4, 4))],
)
def test_resnet8_equals_the_layer_list(channels, width, size):
    net = make(channels, width)
    x = torch.randn(3, channels, *size, dtype=torch.float64, requires_grad=True)
    out = net(x)
    weights = [parameter.detach().numpy() for parameter in net.parameters()]
    expected = resnet8(x.detach().numpy(), weights)
    assert out.shape == (3, width)
    assert np.abs(out.detach().numpy() - expected).max() < 1e-10
    # Gradient: slope along random directions of the image and of all weights.
    draws = np.random.default_rng(0)
    mix = draws.normal(size=expected.shape)
    grads = torch.autograd.grad((out * torch.from_numpy(mix)).sum(), [x, *net.parameters()])
    h = 1e-6
    for _ in range(3):
        ways = [draws.normal(size=g.shape) for g in grads]
        ends = [
            (
                resnet8(
                    x.detach().numpy() + s * ways[0],
                    [w + s * v for w, v in zip(weights, ways[1:], strict=True)],
                )
                * mix
            ).sum()
            for s in (h, -h)
        ]
        slope = sum(float((g.numpy() * v).sum()) for g, v in zip(grads, ways, strict=True))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize(("channels", "width"), [(3, 128), (3, 256), (1, 32)])
def test_resnet8_parameters_normalisation_and_width(channels, width):
    net = build_backbone(BackboneSpec(width=width), channels)
    # Eight 3x3 convolutions, the first on the image, and one 1x1 shortcut; all with bias.
    first = 9 * channels * width + width
    others = 7 * (9 * width * width + width)
    assert sum(p.numel() for p in net.parameters()) == first + others + channels * width + width
    assert net.features == width
    assert not list(net.buffers())  # no running statistics
    assert {type(m) for m in net.modules() if not list(m.children())} <= {nn.Conv2d, nn.Identity}


def test_resnet8_treats_every_image_on_its_own():
    net = make(1, 4)
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=0, atol=1e-12)
    net.eval()
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=0, atol=1e-12)


# Heads -------------------------------------------------------------------------------------------


def kinds(head):
    return [type(module).__name__ for module in head]


def test_mlp_is_the_declared_list_of_layers():
    assert kinds(mlp(5, 7, 3)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(mlp(5, 7, 3, layers=1)) == ["Linear"]
    # NNCLR's projector: three layers, BatchNorm last.
    deep = mlp(5, 7, 3, layers=3, last_norm=True)
    assert kinds(deep) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    sizes = [(m.in_features, m.out_features) for m in deep if isinstance(m, nn.Linear)]
    assert sizes == [(5, 7), (7, 7), (7, 3)]


@pytest.mark.parametrize("last_norm", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_mlp_values(layers, last_norm):
    torch.manual_seed(layers)
    head = mlp(5, 7, 3, layers=layers, last_norm=last_norm).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
    # A bias stands exactly where no BatchNorm would take it away again.
    assert [m.bias is not None for m in linears] == [False] * (layers - 1) + [not last_norm]
    x = torch.randn(6, 5, dtype=torch.float64)
    u = x.numpy()
    for index, linear in enumerate(linears):
        u = u @ linear.weight.detach().numpy().T
        if linear.bias is not None:
            u = u + linear.bias.detach().numpy()
        if index < len(norms):
            gamma, shift = (p.detach().numpy() for p in norms[index].parameters())
            u = (u - u.mean(0)) / np.sqrt(((u - u.mean(0)) ** 2).mean(0) + 1e-5) * gamma + shift
        if index < layers - 1:
            u = np.maximum(u, 0)
    assert np.abs(head(x).detach().numpy() - u).max() < 1e-10
