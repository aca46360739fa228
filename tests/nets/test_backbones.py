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


# ResNet-18 and -50 -------------------------------------------------------------------------------


def convolutions(name):
    """(stage, inputs, outputs, kernel) of every convolution but the stem: He et al. 2016, table 1,
    with a 1x1 shortcut where a stage changes the width."""
    blocks, wide = ((2, 2, 2, 2), 1) if name == "resnet18" else ((3, 4, 6, 3), 4)
    inputs = 64
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        for block in range(count):
            if wide == 1:
                yield from ((stage, inputs, inner, 3), (stage, inner, inner, 3))
            else:
                yield from ((stage, inputs, inner, 1), (stage, inner, inner, 3))
                yield (stage, inner, inner * wide, 1)
            if block == 0 and inputs != inner * wide:
                yield (stage, inputs, inner * wide, 1)
            inputs = inner * wide


@pytest.mark.parametrize(
    ("name", "published", "features"),
    [("resnet18", 11_689_512, 512), ("resnet50", 25_557_032, 2048)],
)
def test_resnet_parameters(name, published, features):
    """The whole count is the one that torchvision's documentation prints for 1,000 classes."""
    body = sum(i * o * k * k + 2 * o for _, i, o, k in convolutions(name))
    assert body + 3 * 49 * 64 + 2 * 64 + 1000 * (features + 1) == published
    for stem, channels, kernel in (("cifar", 3, 9), ("cifar", 1, 9), ("imagenet", 3, 49)):
        net = build_backbone(BackboneSpec(name=name, stem=stem), channels)
        expected = body + channels * kernel * 64 + 2 * 64
        assert sum(p.numel() for p in net.parameters()) == expected
        assert net.features == features
    assert build_backbone(BackboneSpec(name=name, stem="imagenet"), 1).conv1.in_channels == 1


def maps(net, image):
    """Side of the output of each stage, and multiplications of all convolutions for one image."""
    sides, products, hooks = [], 0, []

    def count(module, _, out):
        nonlocal products
        products += module.weight.numel() * out.shape[2] * out.shape[3]

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(count))
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        hooks.append(stage.register_forward_hook(lambda _, __, out: sides.append(out.shape[2])))
    features = net(image)
    for hook in hooks:
        hook.remove()
    return features, sides, products


@pytest.mark.parametrize(
    ("spec", "size", "sides"),
    [
        ({}, 32, [32, 16, 8, 4]),
        # 32 + 2 * 2 - 2 = 34, then each stage ceil(side / 2).
        ({"stem_padding": 2}, 32, [34, 17, 9, 5]),
        # (64 + 6 - 7) // 2 + 1 = 32, pooled to 16.
        ({"stem": "imagenet"}, 64, [16, 8, 4, 2]),
    ],
)
@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnet_maps(name, features, spec, size, sides):
    net = build_backbone(BackboneSpec(name=name, **spec), 3).eval()
    out, seen, _ = maps(net, torch.randn(2, 3, size, size))
    assert out.shape == (2, features)
    assert seen == sides
    assert (out >= 0).all()  # the mean over pixels of what left a ReLU


def test_the_released_padding_costs_27_percent():
    """Multiplications: parameters of the 3x3 and 1x1 kernels of a stage times its pixels."""
    stages = [0] * 4
    for stage, inputs, outputs, kernel in convolutions("resnet18"):
        stages[stage] += inputs * outputs * kernel**2
    assert stages == [147_456, 524_288, 2_097_152, 8_388_608]
    expected = {}
    for padding, sides in ((1, (32, 16, 8, 4)), (2, (34, 17, 9, 5))):
        body = sum(each * side**2 for each, side in zip(stages, sides, strict=True))
        expected[padding] = 27 * 64 * sides[0] ** 2 + body
    assert expected == {1: 555_417_600, 2: 703_560_448}
    for padding, products in expected.items():
        net = build_backbone(BackboneSpec(name="resnet18", stem_padding=padding), 3).eval()
        assert maps(net, torch.randn(1, 3, 32, 32))[2] == products
    assert expected[2] / expected[1] == pytest.approx(1.27, abs=0.005)


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
