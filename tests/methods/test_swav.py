"""SwAV: assignments, swapped prediction, queue and frozen prototypes against loops in float64."""

import numpy as np
import pytest
import torch
from derivations import distance, draw, projected, softmax, unit
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.swav import Options, SwAV, sinkhorn, swav_loss

N, INPUTS, WIDTH, CODES, QUEUE = 5, 4, 3, 6, 10
SMALL = {"codes": CODES, "projector_hidden": 7, "embedding": WIDTH, "queue": QUEUE}


def sinkhorn64(scores, epsilon, iterations):
    """The authors' form: a matrix that sums to 1, then codes to 1/c each, then images to 1/n."""
    q = np.exp(scores / epsilon)
    q = q / q.sum()
    n, c = q.shape
    for _ in range(iterations):
        for j in range(c):
            q[:, j] = q[:, j] / q[:, j].sum() / c
        for i in range(n):
            q[i] = q[i] / q[i].sum() / n
    return q * n


def swapped64(scores, assignments, temperature):
    total, terms = 0.0, 0
    for v, q in enumerate(assignments):
        for w, s in enumerate(scores):
            if w == v:
                continue
            p = softmax(s / temperature, 1)
            for i in range(len(q)):
                for j in range(q.shape[1]):
                    total -= q[i, j] * np.log(p[i, j]) / len(q)
            terms += 1
    return total / terms


@pytest.mark.parametrize("views", [2, 4])  # 4: two of them local
def test_value_and_gradient_equal_the_derivation(views):
    scores = [draw(N, CODES, seed=v) / 3 for v in range(views)]
    q = [sinkhorn64(each, 0.05, 3) for each in scores[:2]]
    targets = [torch.from_numpy(each) for each in q]

    def ours(*leaves):
        return swav_loss(list(leaves), targets, temperature=0.1)

    value, gradient = distance(ours, lambda *s: swapped64(s, q, 0.1), *scores)
    assert value < 1e-6
    assert gradient < 1e-6
    pairs = 2 * (views - 1)
    for slip in (
        lambda *s: swapped64(s, q, 0.2),
        lambda *s: swapped64(s, q, 0.05),
        lambda *s: 2 * swapped64(s, q, 0.1),
        lambda *s: pairs * swapped64(s, q, 0.1),  # a sum over the pairs
    ):
        value, gradient = distance(ours, slip, *scores)
        assert value > 1e-3
        assert gradient > 1e-3


@pytest.mark.parametrize("iterations", [1, 3])
def test_assignments_equal_the_plain_algorithm(iterations):
    scores = draw(N, CODES) / 3
    ours = sinkhorn(torch.from_numpy(scores), epsilon=0.05, iterations=iterations).numpy()
    assert abs(ours - sinkhorn64(scores, 0.05, iterations)).max() < 1e-12
    for other in ((0.1, iterations), (0.025, iterations), (0.05, iterations + 1)):
        assert abs(ours - sinkhorn64(scores, *other)).max() > 1e-3


def test_assignments_spread_evenly():
    q = sinkhorn(torch.from_numpy(draw(12, 4)), epsilon=0.5, iterations=200)
    torch.testing.assert_close(q.sum(1), torch.ones(12).double())
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0).double())
    uneven = sinkhorn(torch.from_numpy(draw(12, 4)), epsilon=0.5, iterations=1)
    torch.testing.assert_close(uneven.sum(1), torch.ones(12).double())
    assert abs(uneven.sum(0) - 3).max() > 0.01


def test_extreme_scores_stay_finite():
    scores = torch.from_numpy(draw(8, 5)).float() * 1e4
    assert not torch.isfinite(torch.exp(scores / 0.05)).all()  # the hazard is there
    q = sinkhorn(scores, epsilon=0.05, iterations=3)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))
    same = sinkhorn(torch.full((8, 4), 1e6), epsilon=0.05, iterations=3)
    torch.testing.assert_close(same, torch.full((8, 4), 0.25))
    leaf = scores.clone().requires_grad_()
    swav_loss([leaf, leaf], [q, q], temperature=0.1).backward()
    assert torch.isfinite(leaf.grad).all()


# The method --------------------------------------------------------------------------------------


class Plain(nn.Module):
    features = INPUTS

    def forward(self, x):
        return x.flatten(1)


def make(**changes):
    torch.manual_seed(0)
    return SwAV(Plain(), Options(**{**SMALL, **changes}), Setting(N, 100, 0))


def at(epoch, step):
    return Progress(seed=0, epoch=epoch, step=step, total_steps=99)


def features(seed, views=2):
    return [draw(N, INPUTS, seed=10 * seed + v) for v in range(views)]


def lose(method, given, now):
    online = [torch.from_numpy(each).float().requires_grad_() for each in given]
    return online, method.losses(Encoded(online, []), now)["swapped"]


def derived(method, given, queue=None):
    """(loss, assignments) of the method; `queue` is [2, m, d] of earlier embeddings."""
    o, prototypes = method.options, method.prototypes.detach().double().numpy()
    z = [unit(projected(method.projector, each)[1]) for each in given]
    scores = [each @ prototypes.T for each in z]
    q = []
    for v in range(2):
        earlier = scores[v][:0] if queue is None else queue[v] @ prototypes.T
        both = np.concatenate([scores[v], earlier])
        q.append(sinkhorn64(both, o.sinkhorn_epsilon, o.sinkhorn_iterations)[:N])
    return swapped64(scores, q, o.temperature), q


@pytest.mark.parametrize("local", [0, 2])
def test_the_method_is_the_derivation_with_detached_assignments(local):
    method = make(local_views=local)
    assert method.views == 2 + local
    given = features(1, 2 + local)
    online, loss = lose(method, given, at(0, 0))
    value, q = derived(method, given)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-5)
    constants = [torch.from_numpy(each).float() for each in q]
    z = [method.embed(each) for each in online]
    again = swav_loss([each @ method.prototypes.T for each in z], constants, temperature=0.1)
    for a, b in zip(*(torch.autograd.grad(x, online) for x in (loss, again)), strict=True):
        assert float(abs(a).max()) > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_queue_holds_the_newest_first_and_is_used_once_it_is_full():
    method = make(queue_epoch=1, frozen_epochs=9)
    stored = np.zeros((2, 0, WIDTH))
    for step in range(4):
        given = features(step)
        # Two batches of 5 fill it; epoch 1 begins at step 1.
        used = stored if step >= 2 else None
        _, loss = lose(method, given, at(min(step, 1), step))
        expected, _ = derived(method, given, used)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        if used is not None:
            assert abs(expected - derived(method, given)[0]) > 1e-3  # the queue makes a difference
        method.after_step(at(min(step, 1), step))
        z = np.stack([unit(projected(method.projector, each)[1]) for each in given])
        stored = np.concatenate([z, stored], axis=1)[:, :QUEUE]
        assert abs(method.queue[:, : stored.shape[1]].numpy() - stored).max() < 1e-5
        assert not method.queue[:, stored.shape[1] :].any()
    late = make(queue_epoch=3)
    late.queue.normal_()
    _, loss = lose(late, features(1), at(2, 50))
    assert float(loss.detach()) == pytest.approx(derived(late, features(1))[0], rel=1e-5)


def test_all_micro_batches_of_a_step_enter_the_queue():
    method, stored = make(), []
    for part in range(2):
        given = features(part)
        lose(method, given, at(0, 0))
        stored.append(np.stack([unit(projected(method.projector, each)[1]) for each in given]))
    method.after_step(at(0, 0))
    assert abs(method.queue.numpy() - np.concatenate(stored, axis=1)).max() < 1e-5
    lose(method, features(2), at(0, 1))
    method.after_step(at(0, 1))
    assert abs(method.queue[:, N:].numpy() - stored[0]).max() < 1e-5


def test_a_queue_shorter_than_the_batch_keeps_the_first_of_it_and_none_is_possible():
    for length in (0, 3):
        method = make(queue=length, queue_epoch=0)
        for step in range(2):
            given = features(step)
            lose(method, given, at(0, step))
            method.after_step(at(0, step))
        z = np.stack([unit(projected(method.projector, each)[1]) for each in given])[:, :length]
        assert method.queue.shape == (2, length, WIDTH)
        assert length == 0 or abs(method.queue.numpy() - z).max() < 1e-5


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_prototypes_rest_while_frozen_and_are_of_unit_length_afterwards(kind):
    method = make(frozen_epochs=2)
    optimizer = getattr(torch.optim, kind)(method.parameters(), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(CODES))
    before = method.prototypes.detach().clone()
    weights = method.projector[0].weight.detach().clone()
    for step in range(6):
        now = at(step // 2, step)
        _, loss = lose(method, features(step), now)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(now)
        assert torch.equal(method.prototypes, before) == (step < 4)
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(CODES))
    assert not torch.equal(weights, method.projector[0].weight)


def test_released_scores_are_the_embedding_and_corrected_ones_those_of_the_prototypes():
    method = make().eval()
    images = torch.from_numpy(draw(N, INPUTS)).float()
    with torch.no_grad():
        corrected, released = method.describe(images), method.describe(images, "released")
    assert torch.equal(released.scores, released.embeddings)
    assert torch.equal(released.embeddings, corrected.embeddings)
    torch.testing.assert_close(corrected.embeddings.norm(dim=1), torch.ones(N))
    expected = corrected.embeddings @ method.prototypes.detach().T * 10  # over T = .1
    torch.testing.assert_close(corrected.scores, expected)
