"""Named methods of config/presets.yaml: each equals the formula of its paper, written out here with
loops in float64, and the loss of lightly where that means the same one.

Formulas: the table of presets in feature-augmentation.md, section 2.
"""

from pathlib import Path

import by_hand as hand
import pytest
import torch
from by_hand import N, cos, encoded, furthest, leaves, make_method, mlp, slopes, softmax_loss, unit
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import NNMemoryBankModule

from peregrine.config.load import read_yaml
from peregrine.config.options import method_options
from peregrine.methods.base import Progress

PRESETS = read_yaml(Path(__file__).parents[2] / "config" / "presets.yaml")["methods"]
NAMES = ["simclr", "moco-v2", "moco-v3", "nnclr", "byol", "simsiam", "nnbyol", "nnsiam"]
NOW = Progress(seed=0, epoch=1, step=3, total_steps=10)
T = 0.3


def named(name):
    """The preset at small widths and another temperature; its shape of heads is kept."""
    options = {key: value for key, value in PRESETS[name].items() if key != "name"}
    return make_method(**options | hand.SMALL | {"temperature": T})


def outputs(method, online, target):
    """Projections and predictions of both views, and what the target encoder makes of them."""
    o = method.options
    z = [mlp(x, list(method.projector.parameters()), o.projector_norm) for x in online]
    head = list(method.predictor.parameters())
    p = [mlp(each, head) for each in z] if head else z
    if method.target is not None:
        slow = list(method.target[1].parameters())
        return z, p, [mlp(x, slow, o.projector_norm).detach() for x in target]
    return z, p, [each.detach() for each in z]


def neighbours(z, method):
    memory = method.queue.features
    return torch.stack([hand.neighbours(row, memory, 1)[0] for row in z])


# The papers' formulas; t multiplies the temperature, w the weight of the second direction.


def simclr(z, p, goals, method, t, w):
    """Chen et al. 2020, eq. 1: each of 2N views against the 2N - 1 others, mean over 2N."""
    views, total = [*z[0], *z[1]], 0.0
    for i in range(2 * N):
        row = [cos(views[i], views[j]) / (t * T) for j in range(2 * N) if j != i]
        positive = (i + N) % (2 * N)
        total = total + (1 if i < N else w) * softmax_loss(row, positive - (positive > i))
    return total / (2 * N)


def moco_v2(z, p, goals, method, t, w):
    """He et al. 2020, eq. 1: query of view 1, key of view 2, negatives from the queue."""
    total = 0.0
    for query, key in zip(z[0], goals[1], strict=True):
        row = [cos(query, k) / (t * T) for k in [key, *method.queue.features]]
        total = total + softmax_loss(row, 0)
    return total / N


def ctr(anchors, candidates, t):
    """Mean cross-entropy of row i of cos / T at place i."""
    return sum(
        softmax_loss([cos(anchors[i], c) / (t * T) for c in candidates], i) for i in range(N)
    ) / N  # fmt: skip


def moco_v3(z, p, goals, method, t, w):
    """Chen et al. 2021, algorithm 1: 2 T (ctr(q1, k2) + ctr(q2, k1))."""
    return 2 * t * T * (ctr(p[0], goals[1], t) + w * ctr(p[1], goals[0], t))


def nnclr(z, p, goals, method, t, w):
    """Dwibedi et al. 2021, eq. 3 and algorithm 1: NN(z1) against p2, NN(z2) against p1, halved."""
    near = [neighbours(each.detach(), method) for each in z]
    return (ctr(near[0], p[1], t) + w * ctr(near[1], p[0], t)) / 2


def byol(z, p, goals, method, t, w):
    """Grill et al. 2020, eq. 2: squared distance of unit vectors, both directions added."""

    def distance(a, b):
        return sum(((u - v) ** 2).sum() for u, v in zip(unit(a), unit(b), strict=True)) / N

    return distance(p[0], goals[1]) + w * distance(p[1], goals[0])


def simsiam(z, p, goals, method, t, w):
    """Chen, He 2021, eq. 2: D(p1, stopgrad z2) / 2 + D(p2, stopgrad z1) / 2."""
    forth = -sum(map(cos, p[0], goals[1])) / N
    return forth / 2 + w * -sum(map(cos, p[1], goals[0])) / N / 2


def nnbyol(z, p, goals, method, t, w):
    return byol(z, p, [neighbours(each, method) for each in goals], method, t, w)


def nnsiam(z, p, goals, method, t, w):
    return simsiam(z, p, [neighbours(each, method) for each in goals], method, t, w)


FORMULAS = dict(
    zip(NAMES, [simclr, moco_v2, moco_v3, nnclr, byol, simsiam, nnbyol, nnsiam], strict=True)
)


def both(name, t=1.0, w=1.0, factor=1.0):
    """(value, gradients) of the method and of its formula, to features, projector, predictor."""
    method, online, target = named(name), leaves(), leaves(seed=8)
    inputs = [*online, *method.projector.parameters(), *method.predictor.parameters()]
    ours = sum(method.losses(encoded(method, online, target), NOW).values())
    theirs = factor * FORMULAS[name](*outputs(method, online, target), method, t, w)
    return (ours, slopes(ours, inputs)), (theirs, slopes(theirs, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_formula_of_the_paper(name):
    (value, gradient), (expected, wanted) = both(name)
    assert furthest([value], [expected]) < 1e-9
    assert furthest(gradient, wanted) < 1e-9
    assert float(wanted[0].abs().max()) > 1e-3  # nothing vacuous


SLIPS = [
    *((name, slip) for name in NAMES for slip in ({"factor": 2.0}, {"factor": 0.5})),
    *((name, slip) for name in NAMES[:4] for slip in ({"t": 2.0}, {"t": 0.5})),
    # A direction that counts twice, or not at all.
    *((name, slip) for name in NAMES if name != "moco-v2" for slip in ({"w": 2.0}, {"w": 0.0})),
]


@pytest.mark.parametrize(("name", "slip"), SLIPS)
def test_a_wrong_factor_of_two_is_seen(name, slip):
    (value, gradient), (expected, wanted) = both(name, **slip)
    assert furthest([value], [expected]) > 1e-3
    assert furthest(gradient, wanted) > 1e-3


def test_the_heads_of_the_presets_have_the_published_shapes():
    """Widths: feature-augmentation.md, section 3; True: BatchNorm after the last layer."""
    shapes = {}
    for name in NAMES:
        options = {key: value for key, value in PRESETS[name].items() if key != "name"}
        o = method_options("two_branch")(**options)
        widths = [o.projector_hidden] * (o.projector_layers - 1) + [o.embedding]
        predictor = None if o.placement == "none" else (o.predictor_hidden, o.embedding)
        shapes[name] = (widths, o.projector_norm, predictor)
    assert shapes == {
        "simclr": ([2048, 256], False, None),
        "moco-v2": ([2048, 256], False, None),
        "moco-v3": ([4096, 256], True, (4096, 256)),
        "nnclr": ([2048, 2048, 256], True, (4096, 256)),
        "byol": ([4096, 256], False, (4096, 256)),
        "simsiam": ([2048, 2048, 2048], True, (512, 2048)),
        "nnbyol": ([4096, 256], False, (4096, 256)),
        "nnsiam": ([2048, 2048, 2048], True, (512, 2048)),
    }


# Queues ------------------------------------------------------------------------------------------


def step(method, seed):
    """One step without an optimiser: (z of both views, target's z of both views)."""
    online, target = leaves(seed), leaves(seed + 100)
    method.losses(encoded(method, online, target), NOW)
    z, _, goals = outputs(method, online, target)
    method.after_step(NOW)
    return [unit(each.detach()) for each in z], [unit(each) for each in goals]


def test_the_queue_of_moco_v2_takes_the_keys_oldest_out_first():
    method = named("moco-v2")
    start = method.queue.features.clone()  # random directions, QUEUE = 16 of them
    with torch.no_grad():  # the key encoder stays put, so that its keys can be asked for again
        method.options = method.options.model_copy(update={"ema_start": 1.0, "ema_end": 1.0})
    keys = [step(method, seed)[1][1] for seed in range(2)]  # target features of view 2
    assert furthest([method.queue.features[:12]], [torch.cat(keys)]) < 1e-9
    assert torch.equal(method.queue.features[12:], start[12:])
    keys += [step(method, seed)[1][1] for seed in (2, 3, 4)]
    # 30 keys in 16 places: the last 16, the oldest of them where the next one will be written.
    assert int(method.queue.position) == 30 % 16
    order = (torch.arange(16) + 14) % 16
    assert furthest([method.queue.features[order]], [torch.cat(keys)[-16:]]) < 1e-9


def test_in_both_directions_the_queue_of_moco_takes_both_keys():
    method = named("moco-v2")
    method.options = method.options.model_copy(
        update={"directions": "mean", "ema_start": 1.0, "ema_end": 1.0}
    )
    _, goals = step(method, 0)
    assert furthest([method.queue.features[:12]], [torch.cat([goals[1], goals[0]])]) < 1e-9


@pytest.mark.parametrize("name", ["nnclr", "nnsiam"])
def test_the_queue_of_nnclr_takes_view_1(name):
    method = named(name)
    views = [step(method, seed)[0][0] for seed in range(2)]
    assert furthest([method.queue.features[:12]], [torch.cat(views)]) < 1e-9


def test_the_momentum_of_moco_v2_ends_at_its_own_value():
    """m = end - (end - start) (1 + cos(pi k / K)) / 2: .99 at first, .9945 half way, .999 last."""
    for step_, expected in ((0, 0.99), (5, 0.9945), (10, 0.999)):
        method = named("moco-v2")
        slow = [each.clone() for each in method.target.parameters()]
        method.after_step(Progress(0, 0, step_, 10))
        fast = [*method.backbone.parameters(), *method.projector.parameters()]
        wanted = [expected * a + (1 - expected) * b for a, b in zip(slow, fast, strict=True)]
        assert furthest(method.target.parameters(), wanted) < 1e-12


# lightly -----------------------------------------------------------------------------------------


def views(name):
    method, online, target = named(name), leaves(), leaves(seed=8)
    ours = sum(method.losses(encoded(method, online, target), NOW).values())
    return method, online, ours, *outputs(method, online, target)


def same(ours, theirs, online):
    assert furthest([ours], [theirs]) < 1e-5
    assert furthest(slopes(ours, online), slopes(theirs, online)) < 1e-5


def test_simclr_is_the_ntxent_loss_of_lightly():
    _, online, ours, z, _, _ = views("simclr")
    same(ours, NTXentLoss(temperature=T)(*z), online)


def test_moco_v2_is_the_ntxent_loss_of_lightly_with_a_memory_bank():
    """The loss is the same; the banks are not: lightly's drops what does not fit before its end."""
    method, online, ours, z, _, goals = views("moco-v2")
    loss = NTXentLoss(temperature=T, memory_bank_size=tuple(method.queue.features.shape))
    loss.memory_bank.bank = method.queue.features.clone()
    same(ours, loss(z[0], goals[1]), online)


def test_byol_is_four_plus_twice_the_negative_cosines_of_lightly():
    """2 - 2 cos in two directions is 4 - 2 (cos + cos): the same up to scale and shift."""
    _, online, ours, _, p, goals = views("byol")
    loss = NegativeCosineSimilarity()
    same(ours, 4 + 2 * (loss(p[0], goals[1]) + loss(p[1], goals[0])), online)


def test_simsiam_is_half_of_the_two_negative_cosines_of_lightly():
    _, online, ours, _, p, goals = views("simsiam")
    loss = NegativeCosineSimilarity()
    same(ours, (loss(p[0], goals[1]) + loss(p[1], goals[0])) / 2, online)


@pytest.mark.parametrize("name", ["nnbyol", "nnsiam"])
def test_neighbours_as_targets_are_those_of_lightly(name):
    method, online, ours, _, p, goals = views(name)
    bank, loss = NNMemoryBankModule(size=tuple(method.queue.features.shape)), None
    bank.bank = method.queue.features.clone()
    loss = NegativeCosineSimilarity()
    near = [bank(each, update=False) for each in goals]
    total = loss(p[0], near[1]) + loss(p[1], near[0])
    same(ours, 4 + 2 * total if name == "nnbyol" else total / 2, online)


def test_nnclr_is_not_what_lightly_makes_of_it():
    """lightly puts neighbours and predictions into SimCLR's loss, with 2N - 2 negatives and the
    predictions as anchors too; the paper's softmax runs over the N predictions only."""
    method, online, ours, z, p, _ = views("nnclr")
    near = [neighbours(each.detach(), method) for each in z]
    loss = NTXentLoss(temperature=T)
    theirs = (loss(near[0], p[1]) + loss(near[1], p[0])) / 2
    assert furthest([ours], [theirs]) > 0.1
    assert furthest(slopes(ours, online), slopes(theirs, online)) > 1e-2


# MoCo v3 and the unified InfoNCE have no counterpart in lightly: its NTXentLoss always adds the
# other views of the own side as negatives, or takes them from a bank.
