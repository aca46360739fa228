"""FALCON's dictionaries besides the frozen random one: what they hold, what changes them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.dictionaries import Dictionary, code_prior, hadamard, kmeans
from peregrine.methods.falcon import Falcon, Options
from peregrine.streams import generator

F, C, N = 8, 20, 6
NOW = Progress(seed=0, epoch=0, step=0, total_steps=40)
KINDS = ("random", "hadamard", "learned", "hybrid", "kmeans")
ONE = torch.zeros(1)


class Flat(nn.Module):
    features = 4

    def forward(self, x):
        return x.flatten(1)


def falcon(kind, seed=1, **changes):
    more = {"kmeans_memory": C} if kind == "kmeans" else {}
    given = {"codes": C, "embedding": F, "dictionary": kind, "epsilon": 1e-3, **more, **changes}
    return Falcon(Flat(), Options(**given), Setting(N, 100, seed))


def views(seed=0, n=N):
    draws = torch.Generator().manual_seed(seed)
    return Encoded([torch.randn(n, 4, generator=draws) for _ in range(2)], [])


def hand_over(method, *batches, epoch=0, step=0):
    """One step without an optimiser: losses of each batch, then after_step."""
    now = replace(NOW, epoch=epoch, step=step)
    for batch in batches:
        method.losses(batch, now)
    method.after_step(now)


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_has_the_norm_of_signs_and_only_hadamard_starts_elsewhere(kind):
    w = Dictionary(kind, (F, C), 1, memory=C).matrix(ONE)
    assert w.shape == (F, C)
    assert set(w.unique().tolist()) == {-1.0, 1.0}
    published = Dictionary("random", (F, C), 1).matrix(ONE)
    assert torch.equal(w, published) == (kind != "hadamard")


@pytest.mark.parametrize(
    ("kind", "bits", "floats"),
    [
        ("random", F * C // 8, None),
        ("hadamard", F * C // 8, None),
        ("learned", None, C),
        ("hybrid", F * C // 16, C // 2),
        ("kmeans", None, C),
    ],
)
def test_frozen_signs_are_saved_as_bits_and_the_others_as_floats(kind, bits, floats):
    state = falcon(kind).head.state_dict()
    if bits is None:
        assert "bits" not in state
    else:
        assert state["bits"].dtype == torch.uint8
        assert state["bits"].shape == (bits,)
    assert ("codes" in state) == (floats is not None)
    if floats is not None:
        assert state["codes"].dtype == torch.float32
        assert state["codes"].shape == (F, floats)
    assert ("memory" in state) == (kind == "kmeans")


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_those_of_the_matrix_and_saved_state_comes_back(kind):
    one, other = falcon(kind, seed=1).head, falcon(kind, seed=2).head
    if one.codes is not None:
        with torch.no_grad():
            one.codes.mul_(torch.rand(one.codes.shape, generator=generator(0, "test")))
    w = one.matrix(ONE).detach()
    assert not torch.equal(other.matrix(ONE), w)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.matrix(ONE), w)
    for start, stop in ((0, 7), (7, 14), (9, 11), (14, C)):
        assert torch.equal(other.columns(start, stop), w[:, start:stop])


# Hadamard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [1, 2, 16, 64])
def test_codes_of_a_block_are_orthogonal(f):
    c = 2 * f + f // 2
    w = (hadamard(f, c, generator(3, "test")).double() * 2 - 1).numpy()
    assert w.shape == (f, c)
    for start in (0, f, 2 * f):
        block = w[:, start : start + f]
        np.testing.assert_array_equal(block.T @ block, f * np.eye(block.shape[1]))


def test_blocks_are_random_to_one_another_and_to_other_seeds():
    f = 64
    w, v = (hadamard(f, 4 * f, generator(seed, "test")).double() * 2 - 1 for seed in (0, 1))
    cosines = (w.T @ w / f).view(4, f, 4, f)
    for a in range(4):
        for b in range(4):
            if a != b:
                # A code's squared cosines with an orthogonal basis add up to 1 (Parseval).
                np.testing.assert_allclose((cosines[a, :, b] ** 2).sum(1), 1)
                assert float(cosines[a, :, b].abs().max()) < 0.75  # no code stands twice
    assert abs(float(cosines[0, :, 1].mean())) < 5 / f / math.sqrt(f)
    assert abs(float(w.mean())) < 0.05
    assert not torch.equal(w, v)


# Learned and hybrid ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned", "hybrid"])
def test_the_loss_trains_the_learned_codes_and_their_norm_comes_back(kind):
    method, frozen = falcon(kind), 0 if kind == "learned" else C // 2
    plain = falcon("random")
    plain.head.linear.load_state_dict(method.head.linear.state_dict())
    terms, same = method.losses(views(), NOW), plain.losses(views(), NOW)
    for name, value in terms.items():  # it starts at the published form
        assert value.item() == pytest.approx(same[name].item(), rel=1e-6)
    sum(terms.values()).backward()
    before = method.head.matrix(ONE).detach().clone()
    slope = method.head.codes.grad
    assert slope.shape == (F, C - frozen)
    assert (slope.abs().sum(0) > 0).all()
    with torch.no_grad():
        method.head.codes -= 5 * slope
    moved = method.head.codes.detach().clone()
    method.after_step(NOW)
    w = method.head.matrix(ONE).detach()
    assert torch.equal(w[:, :frozen], before[:, :frozen])
    assert (w[:, frozen:] != before[:, frozen:]).any(0).all()
    torch.testing.assert_close(w.norm(dim=0), torch.full((C,), math.sqrt(F)))
    torch.testing.assert_close(w[:, frozen:] * moved.norm(dim=0) / math.sqrt(F), moved)


def test_the_gradient_of_a_code_is_that_of_finite_differences():
    method = falcon("learned").double().eval()  # running statistics: the same head at every call

    def value(codes):
        scores = [method.head.embed(z.double()) @ codes / method.head.tau for z in views().online]
        p, r = (torch.softmax(each, 1) for each in scores)
        return -(p * r.log()).sum(1).mean() - p.mean(0).log().mean()

    codes = method.head.codes.detach().clone()
    sum(method.losses(Encoded([z.double() for z in views().online], []), NOW).values()).backward()
    direction = torch.randn(F, C, generator=generator(0, "test"), dtype=torch.float64)
    ends = [value(codes + step * direction).item() for step in (1e-5, -1e-5)]
    slope = float((method.head.codes.grad * direction).sum())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)  # scores pass float32
    assert abs(slope) > 1e-2


# k-means -----------------------------------------------------------------------------------------


def test_kmeans_finds_well_separated_groups():
    """Around 5 orthogonal axes, 40 points each; from random points, 5 groups are found or halved,
    so from every start the centres are axes or means of axes; a good start is among ten."""
    draws = torch.Generator().manual_seed(0)
    axes = torch.eye(F)[:5].repeat_interleave(40, 0)
    points = nn.functional.normalize(axes + 0.05 * torch.randn(200, F, generator=draws), dim=1)
    found = [kmeans(points, 5, generator(seed, "test")) for seed in range(10)]
    inertia = [float((1 - (points @ centres.T).amax(1)).mean()) for centres in found]
    best = found[int(np.argmin(inertia))]
    means = nn.functional.normalize(points.view(5, 40, F).sum(1), dim=1)
    nearest = (best @ means.T).argmax(1)
    assert sorted(nearest.tolist()) == list(range(5))
    torch.testing.assert_close(best, means[nearest])


def test_kmeans_ends_where_lloyds_algorithm_does_by_loops():
    points = nn.functional.normalize(torch.randn(40, 3, generator=generator(5, "test")), dim=1)
    draws = generator(1, "test")
    centres = points[torch.randperm(40, generator=generator(1, "test"))[:7]].double().numpy()
    for _ in range(10):
        nearest = [int(np.argmax(centres @ x)) for x in points.double().numpy()]
        for k in range(7):
            own = [x for x, near in zip(points.double().numpy(), nearest, strict=True) if near == k]
            if own:
                centres[k] = sum(own) / np.linalg.norm(sum(own))
    np.testing.assert_allclose(kmeans(points, 7, draws).numpy(), centres, atol=1e-6)


def test_kmeans_in_parts_is_the_same_and_repeated_points_leave_a_centre_where_it_is(monkeypatch):
    points = nn.functional.normalize(torch.randn(30, 4, generator=generator(5, "test")), dim=1)
    whole = kmeans(points, 6, generator(1, "test"))
    monkeypatch.setattr("peregrine.methods.dictionaries.ENTRIES", 6 * 7)
    torch.testing.assert_close(kmeans(points, 6, generator(1, "test")), whole)
    same = points[:1].expand(30, 4)
    torch.testing.assert_close(kmeans(same, 6, generator(1, "test")), same[:6])


def test_codes_are_refitted_when_an_epoch_begins_and_enough_is_remembered():
    """20 codes, 12 embeddings a step: too few in epoch 1, enough after its first step."""
    method = falcon("kmeans", refit_epochs=2)
    head, start = method.head, method.head.matrix(ONE).clone()
    history = []
    for epoch, step in ((0, 0), (2, 1), (2, 2), (3, 3), (4, 4), (4, 5)):
        hand_over(method, views(step), epoch=epoch, step=step)
        history.append(head.matrix(ONE).clone())
    changed = [not torch.equal(a, b) for a, b in zip([start, *history], history)]
    assert changed == [False, True, False, False, True, False]
    assert (int(head.stored), int(head.fitted)) == (72, 4)
    torch.testing.assert_close(head.codes.norm(dim=0), torch.full((C,), math.sqrt(F)))
    assert not head.codes.requires_grad


def test_the_memory_holds_the_newest_directions_of_every_loss_of_a_step():
    method = falcon("kmeans", kmeans_memory=30).train()
    seen = []
    real = method.head.embed
    method.head.embed = lambda z: seen.append(real(z)) or seen[-1]
    hand_over(method, views(0), views(1))  # two micro-batches of 2 x 6: 24 embeddings
    assert not method.head._newest
    hand_over(method, views(2), step=1)  # 12 more: over the end of 30
    rows = nn.functional.normalize(torch.cat(seen).detach(), dim=1)
    assert len(rows) == 36
    torch.testing.assert_close(method.head.memory[6:], rows[6:30])
    torch.testing.assert_close(method.head.memory[:6], rows[30:])


def test_a_step_larger_than_the_memory_leaves_its_last_embeddings():
    method = falcon("kmeans", kmeans_memory=C)
    hand_over(method, views(0), views(1), views(2))  # 36
    assert int(method.head.stored) == C
    assert (method.head.memory.norm(dim=1) - 1).abs().max() < 1e-6


def test_fitted_codes_are_the_centres_of_what_is_remembered():
    method = falcon("kmeans", kmeans_memory=48)
    for step in range(4):
        hand_over(method, views(step), epoch=step // 3, step=step)
    now = replace(NOW, epoch=1, step=3)
    draws = now.generator(torch.device("cpu"), "dictionary")
    centres = kmeans(method.head.memory, C, draws)
    torch.testing.assert_close(method.head.codes.T / math.sqrt(F), centres)


# The prior ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [2, 10, 4096, 4097])
def test_equal_classes_give_exactly_equal_codes(codes):
    torch.testing.assert_close(code_prior([3.0] * 10, codes), torch.full((codes,), 1 / codes))


def test_each_class_has_its_frequency_on_its_share_of_the_codes():
    q = code_prior([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 40)
    assert float(q.sum()) == pytest.approx(1, abs=1e-6)
    assert q[:4].tolist() == pytest.approx([5000 / 12406 / 4] * 4)
    assert q[36:].tolist() == pytest.approx([50 / 12406 / 4] * 4)
    # 3 codes of 2 classes: the middle one is half of each.
    assert code_prior([1, 3], 3).tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2])
