"""Optimisers and the learning-rate schedule, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from peregrine.config.models import OptimizerSpec
from peregrine.pretrain.optim import (
    Schedule,
    build_optimizer,
    clip_gradients,
    decay_at,
    effective_lr,
    set_rates,
)


def test_linear_scaling_rule():
    assert effective_lr(0.3, 64) == pytest.approx(0.075)
    assert effective_lr(0.001, 256) == 0.001


def test_warm_up_then_cosine_to_zero():
    schedule = Schedule(base=1.0, start=0.1, warmup_steps=3, total_steps=9)
    # 0.1 + 0.9 i / 3; then (1 + cos(k pi / 6)) / 2 with cos = 1, .8660, .5, 0, -.5, -.8660.
    expected = [0.1, 0.4, 0.7, 1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]
    assert [schedule.at(step) for step in range(9)] == pytest.approx(expected, abs=1e-7)
    assert schedule.at(9) == pytest.approx(0, abs=1e-12)


def test_without_warm_up_it_starts_at_the_peak():
    schedule = Schedule(base=2.0, start=0.1, warmup_steps=0, total_steps=4)
    assert [schedule.at(step) for step in (0, 2, 4)] == pytest.approx([2.0, 1.0, 0.0], abs=1e-12)


def test_a_run_shorter_than_its_warm_up():
    schedule = Schedule(base=1.0, start=0.0, warmup_steps=10, total_steps=5)
    assert [schedule.at(step) for step in range(5)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert Schedule(1.0, 0.0, 0, 0).at(0) == 1.0


def test_the_cosine_ends_where_it_is_told():
    schedule = Schedule(base=1.0, start=0.0, warmup_steps=0, total_steps=6, end=0.2)
    # .2 + .8 (1 + cos(k pi / 6)) / 2 at k = 0, 2, 3, 6.
    assert [schedule.at(step) for step in (0, 2, 3, 6)] == pytest.approx([1.0, 0.8, 0.6, 0.2])


def test_gradients_are_clipped_each_by_itself():
    long, short, without = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    long.grad, short.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_gradients([long, short, without], 1.0)
    assert long.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)  # norm 5
    assert short.grad.tolist() == pytest.approx([0.3, 0.4])  # norm .5 is left alone
    assert without.grad is None
    clip_gradients([long], 0.0)
    assert long.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_one_step_by_hand(name):
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
    spec = OptimizerSpec(name=name, weight_decay=0.5, momentum=0.9)
    optimizer = build_optimizer(spec, [weight, frozen], lr=123.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
    set_rates(optimizer, 0.1)
    for _ in range(2):
        weight.grad = torch.tensor([1.0, 0.5])
        optimizer.step()
    if name == "sgd":
        # g = grad + w / 2: 2, 0 -> w = 1.8, -1; g = 1.9, 0, v = .9 * 2 + 1.9 = 3.7 -> w = 1.43, -1.
        expected = [1.43, -1.0]
    else:
        # Step 1: m/(1-.9) / sqrt(v/(1-.999)) = sign(g) -> 1.9; g = 0 for the second, which rests.
        # Step 2: g = 1.95; m = (.9*.1*2 + .1*1.95)/.19 = 1.9736842; v = (.999*.001*4 +
        # .001*1.95^2)/.001999 = 3.9012006; ratio .9992592 -> 1.8000741.
        expected = [1.8000741, -1.0]
    assert weight.tolist() == pytest.approx(expected, abs=2e-6)
    assert frozen.item() == 5.0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_what_a_method_marks_is_never_decayed(name):
    """Without a gradient only decay moves a weight; the schedule of the decay leaves it out too."""
    marked, plain = (nn.Parameter(torch.tensor([[2.0, -1.0]])) for _ in range(2))
    marked.undecayed = True
    spec = OptimizerSpec(name=name, weight_decay=0.5)
    optimizer = build_optimizer(spec, [marked, plain], lr=0.1)
    set_rates(optimizer, 0.1, 0.5)
    for each in (marked, plain):
        each.grad = torch.zeros_like(each)
    optimizer.step()
    assert marked.tolist() == [[2.0, -1.0]]
    assert abs(plain[0, 0].item()) < 2.0


def test_lars_by_hand():
    """|w| = 5, |g| = 1: rate .02 * 5 / (1 + .1 * 5) = 1/15 of lr 1, g + .1 w = (.9, 1.2)."""
    spec = OptimizerSpec(name="lars", weight_decay=0.1, exclude_bias_and_norm=True)
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer(spec, [weight, bias], lr=1.0)
    weight.grad, bias.grad = torch.tensor([[0.6, 0.8]]), torch.tensor([0.5, 0.5])
    optimizer.step()
    assert weight.tolist()[0] == pytest.approx([2.94, 3.92], abs=1e-6)
    assert bias.tolist() == pytest.approx([0.5, -2.5])  # no decay, no adaptation
    # |w| = 4.9: rate .098 / 1.49; (1.094, -.208) of it, and .9 of the step before.
    weight.grad = torch.tensor([[0.8, -0.6]])
    optimizer.step()
    assert weight.tolist()[0] == pytest.approx([2.8140456, 3.8616805], abs=1e-6)
    assert bias.tolist() == pytest.approx([-0.45, -3.45])


@pytest.mark.parametrize(("lr", "expected"), [(0.1, [2.94, 3.92]), (0.05, [2.955, 3.94])])
def test_lars_clips_at_the_learning_rate(lr, expected):
    """The layer's rate is 1/15, or lr where that is less; without clip it is lr times 1/15."""
    spec = OptimizerSpec(name="lars", weight_decay=0.1, clip=True)
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = build_optimizer(spec, [weight], lr=lr)
    weight.grad = torch.tensor([[0.6, 0.8]])
    optimizer.step()
    assert weight.tolist()[0] == pytest.approx(expected, abs=1e-6)


def derived(spec, w, gradients, lr, *, excluded):
    """Weights after the gradients, from the published update rules, in numpy and float64.

    Kingma, Ba 2015; Loshchilov, Hutter 2019; You et al. 2017 with the clip of LARC.
    """
    m, v = np.zeros_like(w), np.zeros_like(w)
    decay = 0.0 if excluded else spec.weight_decay
    for t, g in enumerate(gradients, 1):
        if spec.name in ("sgd", "lars"):
            share = 1.0
            if spec.name == "lars" and not excluded:
                size, slope = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
                trust = spec.eta * size / (slope + decay * size) if size and slope else 1.0
                share = min(trust / lr, 1.0) if spec.clip else trust
            m = spec.momentum * m + share * (g + decay * w)
            w = w - lr * m
            continue
        if spec.name == "adamw":
            w = w - lr * decay * w
        else:
            g = g + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "adam"},
        {"name": "adamw"},
        {"name": "sgd"},
        {"name": "lars", "clip": True},
        {"name": "lars", "eta": 1e-3},
        {"name": "lars", "weight_decay": 0.0, "momentum": 0.5},
    ],
)
def test_two_steps_against_the_update_rule(options, exclude):
    options = {"weight_decay": 0.3, "exclude_bias_and_norm": exclude} | options
    spec = OptimizerSpec(**options)
    draws = np.random.default_rng(3)
    shapes = {"kernel": (4, 3, 3, 3), "linear": (5, 4), "bias": (5,), "new": (6,)}
    starts = {name: draws.normal(size=shape) for name, shape in shapes.items()}
    starts["new"] *= 0  # as biases begin: a norm of 0
    gradients = {name: draws.normal(size=(2, *shape)) for name, shape in shapes.items()}
    parameters = {name: nn.Parameter(torch.from_numpy(w.copy())) for name, w in starts.items()}
    kernel = parameters["kernel"]
    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(spec, parameters.values(), lr=0.2)
    for step in range(2):
        for name, parameter in parameters.items():
            parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(torch.from_numpy(gradients[name][step]))
        optimizer.step()
    for name, parameter in parameters.items():
        out = exclude and len(shapes[name]) == 1
        expected = derived(spec, starts[name], gradients[name], 0.2, excluded=out)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_weight_decay_may_follow_a_cosine():
    """.04 to .4 over 4 steps: halfway .22, at a quarter .4 - .36 (1 + sqrt(1/2)) / 2."""
    spec = OptimizerSpec(name="adamw", weight_decay=0.04, weight_decay_end=0.4)
    expected = [0.04, 0.0927208, 0.22, 0.3472792, 0.4]
    assert [decay_at(spec, step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-7)
    constant = OptimizerSpec(name="adamw", weight_decay=0.04)
    assert {decay_at(constant, step, 4) for step in range(5)} == {0.04}


def test_excluded_parameters_stay_without_decay():
    spec = OptimizerSpec(name="adamw", exclude_bias_and_norm=True)
    optimizer = build_optimizer(spec, nn.Linear(3, 2).parameters(), lr=1.0)
    set_rates(optimizer, 0.5, 0.4)
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [(0.5, 0.4), (0.5, 0.0)]
