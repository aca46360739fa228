"""Losses of the baselines beside lightly's, in value and gradient, in float64.

All conventions are the same: SwAV and DINO average over the pairs of views, VICReg averages the
squared difference over coordinates and halves the hinge. lightly keeps DINO's centre itself, so it
is put there. Self-Classifier and GEDI are not in lightly.
"""

import pytest
import torch
from lightly.loss import DINOLoss, SwaVLoss, VICRegLoss

from peregrine.methods.dino import dino_loss
from peregrine.methods.swav import sinkhorn, swav_loss
from peregrine.methods.vicreg import vicreg_loss

N, CODES = 8, 12


def draw(count, width, seed):
    draws = torch.Generator().manual_seed(seed)
    return [
        torch.randn(N, width, generator=draws, dtype=torch.float64).div(3).requires_grad_()
        for _ in range(count)
    ]


def compare(ours, theirs, leaves):
    torch.testing.assert_close(ours.squeeze(), theirs.squeeze(), rtol=1e-5, atol=0)
    slopes = [torch.autograd.grad(value.squeeze(), leaves) for value in (ours, theirs)]
    for a, b in zip(*slopes, strict=True):
        assert float(a.abs().max()) > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("local", [0, 2])
@pytest.mark.parametrize("queue", [False, True])
def test_swav(local, queue):
    scores = draw(2 + local, CODES, 0)
    earlier = [each.detach() for each in draw(2, CODES, 1)] if queue else None
    theirs = SwaVLoss()(scores[:2], scores[2:], earlier)
    rows = [
        torch.cat([s, *(earlier[v : v + 1] if queue else [])]) for v, s in enumerate(scores[:2])
    ]
    q = [sinkhorn(each.detach(), epsilon=0.05, iterations=3)[:N] for each in rows]
    compare(swav_loss(scores, q, temperature=0.1), theirs, scores)


@pytest.mark.parametrize("local", [0, 2])
def test_dino(local):
    student, teacher = draw(2 + local, CODES, 2), [x.detach() for x in draw(2, CODES, 3)]
    centre = draw(1, CODES, 4)[0].detach()[0]
    library = DINOLoss(CODES, teacher_temp=0.07, student_temp=0.1).double()
    library.center.copy_(centre)
    ours = dino_loss(student, teacher, centre, student_temperature=0.1, teacher_temperature=0.07)
    compare(ours, library(teacher, student), student)
    moved = 0.9 * centre + 0.1 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(library.center.flatten(), moved)  # test_dino.py: so is ours


def test_vicreg():
    pair = draw(2, 5, 5)
    ours = vicreg_loss(*pair, invariance=25.0, variance=25.0, covariance=1.0)
    compare(sum(ours.values()), VICRegLoss()(*pair), pair)
