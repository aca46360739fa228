"""ViT-S/16 and drop path: sizes, random numbers, what is decayed, both passes of cached steps."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from peregrine.config.models import AccumulateSpec, BackboneSpec, OptimizerSpec
from peregrine.data.views import ViewGroup, Views
from peregrine.errors import UserError
from peregrine.methods.base import Encoded, Method, Progress, Setting, features_of
from peregrine.methods.build import build_method
from peregrine.nets.backbones import build_backbone
from peregrine.nets.drop_path import DropPath
from peregrine.pretrain.accumulate import accumulate
from peregrine.pretrain.optim import build_optimizer
from peregrine.streams import seeded_init

NOW = Progress(seed=3, epoch=0, step=5, total_steps=10)
GLOBAL = {"count": 2, "size": 32, "crop_scale": [0.4, 1.0]}


@pytest.fixture(scope="module")
def vit():
    with seeded_init(0, "test"):
        return build_backbone(BackboneSpec(name="vit_small", drop_path=0.1), 3)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_it_is_vit_small_of_16_px_patches(vit):
    # Patches 3 * 16^2 * 384 + 384; class token and 197 positions; 12 blocks of two norms, q k v,
    # projection and an MLP of 1536; a last norm. 21.67 million, as DeiT-S without its classifier.
    d, hidden = 384, 1536
    block = 4 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * hidden + hidden) + (hidden * d + d)
    expected = 3 * 256 * d + d + d + 197 * d + 12 * block + 2 * d
    assert sum(p.numel() for p in vit.parameters()) == expected == 21_665_664
    rates = [each.rate for each in vit.modules() if isinstance(each, DropPath)]
    steps = [0.1 * block / 11 for block in range(1, 12) for _ in range(2)]  # two branches a block
    assert rates == pytest.approx(steps)


def test_sizes_that_are_no_224_px_interpolate_positions(vit):
    vit.eval()
    with torch.no_grad():
        for size in (32, 96, 40):  # 40 is padded to 48
            assert vit(noise(2, 3, size, size)).shape == (2, 384)
        image = noise(1, 3, 40, 40)
        padded = nn.functional.pad(image, (0, 8, 0, 8))
        torch.testing.assert_close(vit(image), vit(padded), atol=1e-5, rtol=0)
    assert vit.features == 384


def test_views_of_one_size_go_through_together(vit):
    calls = []

    class Spy(nn.Module):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return x.mean(dim=(2, 3))

    sizes = [32, 32, 16, 16, 16]
    images = [noise(4, 3, s, s) + k for k, s in enumerate(sizes)]
    features = features_of(Spy(), images)
    assert calls == [(8, 3, 32, 32), (12, 3, 16, 16)]
    for each, image in zip(features, images, strict=True):
        torch.testing.assert_close(each, image.mean(dim=(2, 3)))


def test_drop_path_keeps_the_expectation_and_is_off_elsewhere():
    layer, x = DropPath(0.25), torch.ones(40_000, 2, 3)
    assert layer(x) is x
    layer.generator = torch.Generator().manual_seed(0)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out.amin(dim=(1, 2)), out.amax(dim=(1, 2)))  # a whole image or none of it
    dropped = (out[:, 0, 0] == 0).double().mean().item()
    assert dropped == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 40_000) ** 0.5)
    layer.eval()
    assert layer(x) is x


class Two(Method):
    """One linear layer behind drop path; the loss sees the whole batch."""

    def losses(self, encoded: Encoded, progress):
        first, second = encoded.online
        return {"loss": ((first - second) ** 2).mean() + (first.mean(0) * second.mean(0)).sum()}

    def describe(self, images, reading="corrected"):
        raise NotImplementedError


class Net(nn.Module):
    features = 5

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 5), DropPath(0.5)

    def forward(self, x):
        return self.drop(self.layer(x.flatten(1)))


def two():
    with seeded_init(0, "test"):
        return Two(Net(), None, Setting(8, 8, 0)).train()


def crops():
    return Views([ViewGroup("source", noise(2, 8, 6, 1, 1))])


@pytest.mark.parametrize("mode", ["cached", "plain"])
def test_both_passes_of_a_step_drop_the_same(mode):
    method = two()
    no_autocast = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    accumulate(method, crops(), NOW, AccumulateSpec(steps=2, mode=mode), no_autocast)
    by_hand = two()
    images, parts = crops().groups[0].images, []
    for micro in range(2):  # views of a part go through together, the first one's images first
        rows = slice(4 * micro, 4 * micro + 4)
        draws = replace(NOW, micro=micro).generator(torch.device("cpu"), "backbone")
        kept = (torch.rand(8, generator=draws) >= 0.5) / 0.5
        z = by_hand.backbone.layer(torch.cat([images[0, rows], images[1, rows]]).flatten(1))
        parts.append((z * kept[:, None]).chunk(2))
    if mode == "cached":
        whole = [torch.cat(views) for views in zip(*parts)]
        loss = by_hand.losses(Encoded(whole, []), NOW)["loss"]
    else:
        loss = sum(by_hand.losses(Encoded(list(part), []), NOW)["loss"] for part in parts) / 2
    loss.backward()
    wanted = by_hand.backbone.layer.weight.grad
    torch.testing.assert_close(method.backbone.layer.weight.grad, wanted, atol=1e-6, rtol=1e-5)
    assert wanted.abs().max() > 0


def test_drop_path_follows_from_the_step_and_nothing_else():
    method, seen = two(), []
    for now in (NOW, NOW, replace(NOW, step=6)):
        torch.manual_seed(len(seen))
        method.reseed(now)
        seen.append(method.online(crops())[0])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_teacher_drops_nothing(tiny_run):
    run = tiny_run(
        backbone={"name": "vit_small", "drop_path": 0.5},
        method={"name": "dino", "codes": 8, "projector_hidden": 8, "embedding": 4},
        views=[GLOBAL],
    )
    method = build_method(run, 0, channels=3, train_images=8).train()
    method.reseed(NOW)
    encoded = method.encode(Views([ViewGroup("source", noise(2, 4, 3, 32, 32))]))
    still = copy.deepcopy(method.teacher[0]).eval()(noise(2, 4, 3, 32, 32)[0])
    torch.testing.assert_close(encoded.target[0], still, atol=1e-5, rtol=1e-4)
    assert (encoded.online[0] - still).abs().max() > 0.1


def test_adamw_decays_matrices_and_positions_only(vit):
    spec = OptimizerSpec(name="adamw", exclude_bias_and_norm=True, weight_decay=0.04)
    decayed, excluded = build_optimizer(spec, vit.parameters(), 1e-3).param_groups
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    out = {names[id(each)] for each in excluded["params"]}
    assert (decayed["weight_decay"], excluded["weight_decay"]) == (0.04, 0.0)
    assert out == {n for n in names.values() if n.endswith(".bias") or "norm" in n}
    assert {"cls_token", "pos_embed"} <= {names[id(each)] for each in decayed["params"]}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"backbone": {"name": "vit_small", "width": 64}}, "width is no option of vit_small"),
        ({"backbone": {"name": "vit_small", "stem": "imagenet"}}, "stem is no option of vit_small"),
        ({"backbone": {"name": "resnet18", "drop_path": 0.1}}, "drop_path is no option of resnet1"),
        ({"backbone": {"name": "vit_small"}, "views": [{"size": 40}]}, "views of 40 px .* of 16"),
    ],
)
def test_what_it_does_not_take_is_named(tiny_run, fields, words):
    with pytest.raises(UserError, match=words) as error:
        tiny_run(**fields)
    assert "\n" not in str(error.value)
