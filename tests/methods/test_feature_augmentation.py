"""Mask, neighbours and their queue against brute force; the other operators: test_operators.py."""

import math

import numpy as np
import pytest
import torch

from peregrine.errors import UserError
from peregrine.methods import feature_augmentation
from peregrine.methods.base import Progress
from peregrine.methods.feature_augmentation import FeatureQueue, nearest


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(step, seed=0, epoch=0):
    return Progress(seed, epoch, step, 100).generator(torch.device("cpu"))


def mask(*given):
    """The one sample of K = 1."""
    (out,) = feature_augmentation.mask(*given)
    return out


# Mask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7])
def test_mask_keeps_each_coordinate_with_its_probability_and_renormalises(ratio):
    n, d = 2000, 40
    z = rows(n, d) * 5
    out = mask(z, ratio, at(0))
    kept = out != 0
    sd = math.sqrt(ratio * (1 - ratio))
    assert abs(float(kept.double().mean()) - (1 - ratio)) < 5 * sd / math.sqrt(n * d)
    # Independent in both directions: rows and columns of the pattern scatter binomially.
    assert float(kept.double().sum(1).var()) == pytest.approx(d * sd**2, rel=0.2)
    assert float(kept.double().sum(0).var()) == pytest.approx(n * sd**2, rel=1.2)
    for before, after, keep in zip(z[:50], out[:50], kept[:50], strict=True):
        chosen = before * keep
        assert float((after - chosen / math.sqrt(float((chosen**2).sum()))).abs().max()) < 1e-12


def test_mask_of_ratio_0_only_normalises_and_an_empty_row_stays_finite():
    z = rows(4, 3)
    torch.testing.assert_close(mask(z, 0.0, at(0)), z / z.norm(dim=1, keepdim=True))
    leaf = rows(500, 1).requires_grad_()  # one coordinate: many rows lose everything
    out = mask(leaf, 0.7, at(0))
    out.sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert set(out.detach().abs().flatten().tolist()) == {0.0, 1.0}


def test_mask_gradient_is_that_of_the_kept_coordinates():
    z = rows(3, 6)
    keep = (mask(z, 0.4, at(1)) != 0).double()
    weights = rows(3, 6, seed=9)
    leaf = z.clone().requires_grad_()
    (mask(leaf, 0.4, at(1)) * weights).sum().backward()
    h = 1e-6
    for i in range(3):
        for j in range(6):
            ends = []
            for sign in (1, -1):
                x = z.clone()
                x[i, j] += sign * h
                x = x * keep
                ends.append(float((x / (x**2).sum(1, keepdim=True).sqrt() * weights).sum()))
            assert float(leaf.grad[i, j]) == pytest.approx((ends[0] - ends[1]) / 2 / h, abs=1e-7)


def test_mask_depends_on_the_step_alone():
    z = rows(20, 10)
    torch.manual_seed(1)
    first = mask(z, 0.3, at(5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(mask(z, 0.3, at(5)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (at(6), at(5, seed=1), at(5, epoch=1)):
        assert float(((mask(z, 0.3, other) != 0) != (first != 0)).double().mean()) > 0.2
    draws = at(5)  # the second view of a step has its own mask
    assert not torch.equal(mask(z, 0.3, draws), mask(z, 0.3, draws))


# Queue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 1, 4, 4], [7], [20], [2, 15, 3], [6, 8], [14]])
def test_the_queue_is_first_in_first_out(sizes):
    length, d = 7, 3
    queue = FeatureQueue(length, d, seed=0)
    expected = list(queue.features.clone())  # oldest first: slot 0 goes first
    pushed = 0
    for step, size in enumerate(sizes):
        new = rows(size, d, seed=step) * 4
        queue.push(new)
        pushed += min(size, length)
        expected += [(row / row.norm()).float() for row in new]
        expected = expected[-length:]
    # The slot that goes next holds the oldest entry.
    order = (torch.arange(length) + pushed) % length
    torch.testing.assert_close(queue.features[order], torch.stack(expected), rtol=0, atol=1e-7)
    assert int(queue.position) == pushed % length


def test_the_queue_starts_with_random_directions_of_its_seed():
    one, again, other = FeatureQueue(400, 8, 1), FeatureQueue(400, 8, 1), FeatureQueue(400, 8, 2)
    assert torch.equal(one.features, again.features)
    assert not torch.equal(one.features, other.features)
    torch.testing.assert_close(one.features.norm(dim=1), torch.ones(400))
    # Isotropic: mean 0, second moment I / 8; 5 standard deviations.
    assert float(one.features.mean(0).abs().max()) < 5 / math.sqrt(8 * 400)
    moment = one.features.T @ one.features / 400
    assert float((moment - torch.eye(8) / 8).abs().max()) < 5 * math.sqrt(2) / 8 / math.sqrt(400)


def test_neighbours_are_those_of_highest_cosine():
    queue = FeatureQueue(50, 4, seed=3)
    z = rows(30, 4, seed=4) * torch.logspace(-3, 3, 30, dtype=torch.float64)[:, None]
    memory = queue.features.double().numpy()
    for row, found in zip(z.numpy(), queue.neighbours(z)[0].numpy(), strict=True):
        angles = [np.dot(row, m) / np.linalg.norm(row) / np.linalg.norm(m) for m in memory]
        assert np.array_equal(found, memory[int(np.argmax(angles))])
    assert queue.neighbours(z.float()).dtype == torch.float32


def test_several_neighbours_come_nearest_first():
    queue, k = FeatureQueue(50, 4, seed=3), 5
    z = rows(30, 4, seed=4) * 3
    found = queue.neighbours(z, k)
    assert found.shape == (k, 30, 4)
    assert torch.equal(found[0], queue.neighbours(z)[0])
    memory = queue.features.double().numpy()
    for i, row in enumerate(z.numpy()):
        order = sorted(range(50), key=lambda j: -np.dot(row, memory[j]) / np.linalg.norm(memory[j]))
        assert np.array_equal(found[:, i].numpy(), memory[order[:k]])
    leaf = z.clone().requires_grad_()
    through = nearest(leaf, queue, k, straight_through=True)
    assert torch.equal(through, found)
    weights = rows(k * 30, 4, seed=6).view(k, 30, 4)
    (through * weights).sum().backward()
    assert torch.allclose(leaf.grad, weights.sum(0), rtol=0, atol=1e-12)
    assert not nearest(leaf, queue, k, straight_through=False).requires_grad


def test_neighbours_under_autocast_are_those_of_float32():
    # Features with a common mean, as early in training: bfloat16 cannot tell their cosines apart.
    queue = FeatureQueue(256, 16, seed=0)
    queue.push(1 + 0.05 * rows(256, 16))
    z = (1 + 0.05 * rows(64, 16, seed=1)).float()
    expected = queue.neighbours(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(queue.neighbours(z), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_neighbour_is_a_constant_and_straight_through_passes_the_gradient_unchanged(dtype):
    queue = FeatureQueue(20, 5, seed=1)
    z = (rows(6, 5) * 40).to(dtype).requires_grad_()
    constant = nearest(z, queue, straight_through=False)
    assert not constant.requires_grad
    through = nearest(z, queue, straight_through=True)
    assert torch.equal(through, constant)  # to the last bit, however long z is
    weights = rows(6, 5, seed=2).to(dtype)
    (through[0] * weights).sum().backward()
    assert torch.equal(z.grad, weights)  # d(z + detach(nn(z) - z)) / dz = 1
    assert queue.features.grad is None


def test_older_neighbours_are_those_of_a_search_through_what_was_stored_before():
    """Brute force over the history of all pushes: 9 steps of 5 vectors into a queue of 43."""
    queue = FeatureQueue(43, 6, seed=0)
    start = [(vector, -1) for vector in queue.features.clone()]  # random directions, no image
    history = list(reversed(start))
    for step in range(9):
        z, images = rows(5, 6, seed=step).float(), torch.arange(5) + 10 * step
        queue.push(z, images)
        history += zip(torch.nn.functional.normalize(z, dim=1), images.tolist())
    found = queue.older(most=11)  # a quarter of 43 is 10: two whole steps
    assert found.images.tolist() == [84, 83, 82, 81, 80, 74, 73, 72, 71, 70]
    assert set(found.found) == {32, None}  # 64 vectors older than both steps are not stored
    for limit, got in found.found.items():
        expected = []
        for back in range(10):
            vector, begin = history[-1 - back][0], len(history) - 5 * (back // 5 + 1)
            oldest = len(history) - 43 if limit is None else begin - limit
            candidates = history[oldest:begin][::-1]
            cosine = [float(vector @ other) for other, _ in candidates]
            expected.append(candidates[int(np.argmax(cosine))][1])
        assert got.tolist() == expected


def test_neighbours_are_not_looked_for_where_nothing_older_is_left():
    queue = FeatureQueue(8, 3, seed=0)
    assert queue.older() is None  # nothing was pushed yet
    queue.push(rows(12, 3), torch.arange(12))
    assert queue.images.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert queue.older() is None  # one step fills it
    queue.push(rows(3, 3))  # of no image
    assert sorted(queue.images.tolist()) == [-1, -1, -1, 7, 8, 9, 10, 11]
    assert queue.older().images.tolist() == [-1, -1, -1]


def test_weights_of_before_the_queue_knew_images_can_be_read():
    saved = FeatureQueue(7, 3, seed=0).state_dict()
    del saved["images"]
    ours = FeatureQueue(7, 3, seed=1)
    ours.load_state_dict(saved)
    assert ours.images.tolist() == [-1] * 7
    assert torch.equal(ours.features, saved["features"])


def test_the_queue_is_saved_and_restored():
    ours, theirs = FeatureQueue(7, 3, seed=0), FeatureQueue(7, 3, seed=1)
    ours.push(rows(10, 3))
    ours.push(rows(5, 3, seed=1))
    assert set(ours.state_dict()) == {"features", "images", "position"}
    assert not list(ours.parameters())
    theirs.load_state_dict(ours.state_dict())
    for queue in (ours, theirs):
        queue.push(rows(4, 3, seed=2))
    assert torch.equal(ours.features, theirs.features)
    assert int(ours.position) == int(theirs.position) == (7 + 5 + 4) % 7


@pytest.mark.parametrize(("length", "width"), [(6, 3), (7, 4), (8, 2)])
def test_a_saved_queue_of_another_shape_is_refused_in_one_line(length, width):
    saved = FeatureQueue(length, width, seed=0).state_dict()
    ours = FeatureQueue(7, 3, seed=1)
    before = ours.features.clone()
    with pytest.raises(UserError) as caught:
        ours.load_state_dict(saved)
    line = str(caught.value)
    assert f"{length} vectors of width {width}, that of this run 7 of 3" in line
    assert "method.queue" in line
    assert "\n" not in line
    assert torch.equal(ours.features, before)
    # Also as a part of a whole network, where it is named in full.
    whole = torch.nn.ModuleDict({"queue": ours})
    with pytest.raises(UserError, match=r"^queue\.features: "):
        whole.load_state_dict({f"queue.{key}": value for key, value in saved.items()})
