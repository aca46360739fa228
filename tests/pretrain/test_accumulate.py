"""Micro-batches: cached equals the large batch, plain the mean of small ones."""

import csv
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peregrine.config.models import AccumulateSpec
from peregrine.data.views import make_views
from peregrine.files import read_tensors
from peregrine.methods.base import Encoded, Progress, by_role
from peregrine.methods.build import build_method
from peregrine.methods.falcon import temperature
from peregrine.pretrain.accumulate import accumulate, cut
from peregrine.pretrain.device import autocast
from peregrine.pretrain.loop import pretrain
from peregrine.pretrain.trainer import Trainer
from peregrine.streams import generator

CPU = torch.device("cpu")
NOW = Progress(seed=0, epoch=0, step=0, total_steps=10)
SPECS = {
    name: AccumulateSpec(steps=3, mode=name) if name != "whole" else AccumulateSpec()
    for name in ("whole", "plain", "cached")
}
RESNET18 = {"name": "resnet18"}


def views_of(run, data):
    images = torch.from_numpy(data.images["train"][: run.batch_size])
    draws = generator(0, "views", 0, 0)
    return make_views(images, run.views, draws, mean=data.mean, std=data.sd)


def method_of(run):
    return build_method(run, 0, channels=1, train_images=96).train()


def taken(run, data, spec, context=nullcontext):
    """(method with gradients, terms, online features) of the first step."""
    method = method_of(run)
    return method, *accumulate(method, views_of(run, data), NOW, spec, context)


def gradients(method):
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def assert_equal_gradients(found, expected, tolerance=1e-5):
    """Against the largest gradient of the net: that of a bias before BatchNorm is rounding only."""
    assert set(found) == set(expected)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * scale, name
    assert max(float(expected[n].abs().max()) for n in expected if "backbone" in n) > 0.01 * scale


@pytest.mark.parametrize("method", ["falcon", "two_branch"])
def test_cached_gradients_are_those_of_the_large_batch(method, tiny_run, tiny_data):
    large, terms, online = taken(tiny_run(method), tiny_data, SPECS["whole"])
    small, same_terms, same_online = taken(
        tiny_run(method, accumulate={"steps": 3, "mode": "cached"}), tiny_data, SPECS["cached"]
    )
    assert_equal_gradients(gradients(small), gradients(large))
    torch.testing.assert_close(same_terms, terms, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same_online, online, rtol=1e-5, atol=1e-6)
    assert not any(features.requires_grad for features in same_online)


def test_cached_gradients_reach_the_backbone_under_autocast(tiny_run, tiny_data):
    """autocast keeps the weights that it cast in the pass without a graph."""
    context = partial(autocast, CPU, "bfloat16")
    large, *_ = taken(tiny_run(), tiny_data, SPECS["whole"], context)
    small, *_ = taken(
        tiny_run(accumulate={"steps": 3, "mode": "cached"}), tiny_data, SPECS["cached"], context
    )
    # The parts' gradients are summed in float32, those of the batch within one product.
    assert_equal_gradients(gradients(small), gradients(large), tolerance=0.02)


def trained(run, data, folder):
    pretrain(run, 0, data, folder, CPU)
    rows = list(csv.DictReader((folder / "history.csv").open()))
    return read_tensors(folder / "backbone.safetensors")[0], rows


@pytest.mark.parametrize("method", ["falcon", "two_branch"])
def test_cached_training_is_that_of_the_large_batch(method, tiny_run, tiny_data, tmp_path):
    """Eight steps, loss terms and online probe included."""
    options = {"optimizer": {"name": "sgd", "lr": 0.02}, "epochs": 2}
    expected, rows = trained(tiny_run(method, **options), tiny_data, tmp_path / "large")
    run = tiny_run(method, accumulate={"steps": 4, "mode": "cached"}, **options)
    found, same = trained(run, tiny_data, tmp_path / "cached")
    start = method_of(run).backbone.state_dict()
    for name, value in expected.items():
        assert abs(found[name] - value).max() < 1e-5, name
        assert abs(start[name].numpy() - value).max() > 1e-4 or "bias" in name, name
    for row, other in zip(rows, same, strict=True):
        for key in ("loss", "probe_accuracy", "features_rank"):
            assert float(other[key]) == pytest.approx(float(row[key]), rel=1e-4)


@pytest.mark.parametrize("method", ["falcon", "two_branch"])
def test_with_batch_statistics_cached_means_ghost_batches(method, tiny_run, tiny_data):
    """Gradient and running statistics of one graph in which every part is normalised by itself."""
    run = tiny_run(
        method, backbone=RESNET18, batch_size=12, accumulate={"steps": 3, "mode": "cached"}
    )
    small, terms, _ = taken(run, tiny_data, SPECS["cached"])
    reference = method_of(run)
    parts = cut(views_of(run, tiny_data), 3)
    encoded = [reference.encode(part) for part in parts]  # with a graph, once
    online = [torch.cat([each.online[view] for each in encoded]) for view in range(2)]
    sides = range(len(encoded[0].target))
    target = [torch.cat([each.target[view] for each in encoded]) for view in sides]
    losses = reference.losses(Encoded(online, target), NOW)
    sum(losses.values()).backward()
    assert_equal_gradients(gradients(small), gradients(reference))
    for name, value in losses.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)
    buffers = dict(small.named_buffers())
    for name, value in reference.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert buffers["backbone.bn1.num_batches_tracked"] == 6  # 3 parts of 2 views, once each
    assert all(m.track_running_stats for m in small.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("backbone", [{"width": 8}, RESNET18])
def test_plain_is_the_mean_of_the_micro_batches(backbone, tiny_run, tiny_data):
    run = tiny_run(backbone=backbone, batch_size=12, accumulate={"steps": 3})
    small, terms, online = taken(run, tiny_data, SPECS["plain"])
    reference = method_of(run)
    weights = dict(reference.named_parameters())
    totals, losses, features = dict.fromkeys(weights, 0), [], []
    images = by_role(views_of(run, tiny_data))
    for micro in range(3):
        rows = slice(4 * micro, 4 * micro + 4)
        z = [reference.backbone(view[rows]) for view in images]
        part = reference.losses(Encoded(z, []), replace(NOW, micro=micro))
        slopes = torch.autograd.grad(sum(part.values()), [*weights.values()])
        totals = {name: totals[name] + g for name, g in zip(weights, slopes, strict=True)}
        losses.append(sum(part.values()).item())
        features.append(z)
    assert_equal_gradients(gradients(small), {name: g / 3 for name, g in totals.items()})
    assert terms["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    for view in range(2):
        expected = torch.cat([z[view] for z in features])
        torch.testing.assert_close(online[view], expected, rtol=1e-4, atol=1e-5)


def test_tau_has_the_batch_over_which_the_loss_is_taken(tiny_run):
    """n = 24 images, in 3 parts 8 where each has a loss of its own."""
    for accumulate_, n in (({}, 24), ({"steps": 3}, 8), ({"steps": 3, "mode": "cached"}, 24)):
        head = method_of(tiny_run(accumulate=accumulate_)).head
        assert head.tau == temperature(8, n, 64, 1e-8)


def test_every_micro_batch_draws_for_itself():
    """And the first one what a step without micro-batches draws."""
    draws = [
        torch.rand(4, generator=replace(NOW, micro=micro).generator(CPU)).tolist()
        for micro in range(3)
    ]
    assert draws[0] == torch.rand(4, generator=generator(0, "method", 0, 0)).tolist()
    assert len(set(map(tuple, draws))) == 3


@pytest.mark.parametrize("mode", ["plain", "cached"])
def test_a_queue_takes_every_micro_batch_once(mode, tiny_run, tiny_data):
    """The 24 newest rows are the target branch's z of view 1, in the order of the images."""
    run = tiny_run("two_branch", accumulate={"steps": 3, "mode": mode})
    method, *_ = taken(run, tiny_data, SPECS[mode])
    before = method.queue.features.clone()
    reference = method_of(run)
    view = by_role(views_of(run, tiny_data))[0]
    with torch.no_grad():
        parts = view.chunk(3) if mode == "plain" else [view]
        backbone, projector = reference.target
        z = torch.cat([projector(backbone(part)) for part in parts])
    method.after_step(NOW)
    assert method.queue.position == 24
    torch.testing.assert_close(method.queue.features[:24], F.normalize(z), rtol=1e-4, atol=1e-5)
    assert (method.queue.features[24:] == before[24:]).all()
    method.after_step(NOW)  # nothing new since
    assert method.queue.position == 24


def test_one_micro_batch_is_cut_from_nothing(tiny_run, tiny_data):
    run = tiny_run()
    views = views_of(run, tiny_data)
    (whole,) = cut(views, 1)
    assert all((a.images == b.images).all() for a, b in zip(whole, views, strict=True))
    parts = cut(views, 4)
    joined = torch.cat([group.images for part in parts for group in part], dim=1)
    assert (joined == views.groups[0].images).all()
    assert [len(part.groups[0].images[0]) for part in parts] == [6] * 4


def test_one_optimiser_step_for_all_micro_batches(tiny_run, tiny_data, monkeypatch):
    calls = []
    trainer = Trainer(tiny_run(accumulate={"steps": 3}), 0, tiny_data, CPU)
    real = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (calls.append("step"), real()))
    monkeypatch.setattr(trainer.method, "after_step", lambda now: calls.append(now.micro))
    trainer.method.train()
    out = trainer.step(torch.arange(24), trainer.images.take(torch.arange(24)), NOW, 0)
    assert calls == ["step", 0]
    assert out["loss"] == pytest.approx(float(out["invariance"] + out["prior"]), rel=1e-6)
