"""Optimisers and the learning-rate schedule, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from peregrine.config.models import OptimizerSpec
from peregrine.pretrain.optim import Schedule, build_optimizer, effective_lr, set_rates


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
