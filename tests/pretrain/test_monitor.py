"""Collapse monitors against numpy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from peregrine.methods.base import Neighbours
from peregrine.pretrain.monitor import (
    chance_purity,
    direction_sd,
    effective_rank,
    monitors,
    neighbour_monitors,
)


def test_direction_sd_against_numpy():
    x = np.random.default_rng(0).normal(0.3, 1, (50, 7))
    unit = x / np.sqrt((x**2).sum(1, keepdims=True))
    # d times the mean over d directions of the variance over samples.
    expected = np.sqrt(7 * np.mean([np.mean((c - c.mean()) ** 2) for c in unit.T]))
    assert direction_sd(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-12)


def test_direction_sd_of_known_clouds():
    both_ways = torch.cat([torch.eye(4), -torch.eye(4)]) * 3
    assert direction_sd(both_ways) == pytest.approx(1, abs=1e-12)
    assert direction_sd(torch.full((9, 4), 0.1)) == pytest.approx(0, abs=1e-6)
    # Two directions at right angles: mean (1/2, 1/2), so the variances are 1/4 each.
    assert direction_sd(torch.eye(2)) == pytest.approx(math.sqrt(0.5))
    assert math.isnan(direction_sd(torch.tensor([[float("nan"), 1.0]])))


def test_effective_rank_against_numpy():
    x = np.random.default_rng(1).normal(size=(40, 6)) * [9, 5, 1, 1, 0.1, 0.01] + 3
    values = np.sqrt(np.linalg.eigvalsh(np.cov(x.T) * 39))
    share = values / values.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.cat([torch.eye(5), -torch.eye(5)])) == pytest.approx(5)
    assert effective_rank(torch.linspace(0, 1, 9)[:, None] * torch.ones(3)) == pytest.approx(1)
    # Values 3 : 1, shares 3/4 and 1/4: exp(.75 ln(4/3) + .25 ln 4) = 4 / 3^.75.
    x = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    assert effective_rank(x) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.full((5, 3), 0.25)) == 0
    assert effective_rank(torch.tensor([[1.0, math.inf], [0, 1]])) == 0


def test_monitors_look_in_eval_mode_and_put_training_back():
    class Fake(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def describe(self, images):
            features = images.flatten(1)
            return SimpleNamespace(features=features, embeddings=self.norm(features))

    method, images = Fake().train(), torch.randn(8, 3, 1, 1, generator=torch.manual_seed(0)) + 9
    seen = monitors(method, images)
    assert method.training
    assert method.norm.training
    assert method.norm.num_batches_tracked == 0
    flat = images.flatten(1)
    # Fresh running statistics are 0 and 1: embeddings are the features, up to BatchNorm's 1e-5.
    assert seen["features_sd"] == direction_sd(flat)
    assert seen["embeddings_sd"] == pytest.approx(direction_sd(flat), rel=1e-4)
    assert seen["features_rank"] == effective_rank(flat)
    assert set(seen) == {f"{a}_{b}" for a in ("features", "embeddings") for b in ("sd", "rank")}


def test_neighbours_are_older_views_of_the_same_class_or_of_no_image():
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = {32: torch.tensor([0, 2, -1, 4]), None: torch.tensor([0, 1, 3, 3])}
    images = torch.tensor([0, 1, 2, 4])
    method, chance = (
        SimpleNamespace(neighbours=lambda: Neighbours(images, found)),
        chance_purity(labels),
    )
    seen = neighbour_monitors(method, labels, chance)
    assert {name: float(value) for name, value in seen.items()} == {
        "neighbour_chance": pytest.approx((9 + 4) / 25),  # (3/5)^2 + (2/5)^2
        "neighbour_same_image_L32": 0.5,  # 0 and 4
        "neighbour_purity_L32": 0.75,  # 0, 2 of class 0, 4; -1 is no image of the last class
        "neighbour_same_image": 0.5,  # 0 and 1
        "neighbour_purity": 0.75,  # 0, 1, and 3 for image 4; 3 is of another class than 2
    }
    assert neighbour_monitors(SimpleNamespace(neighbours=lambda: None), labels, chance) == {}
