"""The two-branch objective against the derivation of by_hand.py: values, gradients, the moving
average and the queue. Who receives gradient: test_gradient_flow.py."""

import copy
import itertools
import math

import by_hand as hand
import pytest
import torch
from by_hand import (
    INPUTS,
    NOW,
    OPERATORS,
    PLACEMENTS,
    SMALL,
    N,
    Plain,
    cos,
    derive,
    encoded,
    furthest,
    leaves,
    make_method,
    mlp,
    slopes,
    unit,
)
from pydantic import ValidationError
from torch import nn

from peregrine.config.load import validate
from peregrine.data.views import ViewGroup, Views
from peregrine.errors import UserError
from peregrine.methods.base import Progress, Setting
from peregrine.methods.criteria import cosine, infonce, infonce_queue, nt_xent
from peregrine.methods.two_branch import Options, TwoBranch
from peregrine.nets.backbones import ResNet8

# Losses ------------------------------------------------------------------------------------------

MEMORY = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CRITERIA = {
    "infonce": (lambda a, b, t: infonce(a, b, temperature=t), hand.infonce),
    "infonce_queue": (
        lambda a, b, t: infonce_queue(a, b, MEMORY.to(a.dtype), temperature=t),
        lambda a, b, t: hand.infonce_queue(a, b, MEMORY, t),
    ),
    "nt_xent": (lambda a, b, t: nt_xent(a, b, temperature=t), hand.nt_xent),
    "cosine": (lambda a, b, t: cosine(a, b) / t, lambda a, b, t: hand.mean_cosine(a, b) / t),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_equal_the_derivation_in_value_and_gradient(name):
    ours, theirs = CRITERIA[name]
    pair = [each.detach() * 3 for each in leaves()]
    pair[1] = pair[1] + 0.5 * pair[0]
    pair = [each.requires_grad_() for each in pair]
    value, expected = ours(*pair, 0.2), theirs(*pair, 0.2)
    assert furthest([value], [expected]) < 1e-6
    assert furthest(slopes(value, pair), slopes(expected, pair)) < 1e-6
    for t in (0.1, 0.4):  # a wrong factor of 2 in the temperature, or in the whole
        assert furthest([value], [theirs(*pair, t)]) > 1e-3
        assert furthest(slopes(value, pair), slopes(theirs(*pair, t), pair)) > 1e-3
        assert furthest([value], [expected * t / 0.2]) > 1e-3


def test_infonce_of_known_numbers():
    # Orthogonal pairs: the positive has cosine 1, the n - 1 negatives 0.
    eye = torch.eye(4, dtype=torch.float64)
    assert float(infonce(2 * eye, 3 * eye, temperature=0.2)) == pytest.approx(
        math.log(1 + 3 * math.exp(-5)), rel=1e-12
    )
    # SimCLR: 2N - 2 = 6 negatives; with one sample there are none and the loss is 0.
    assert float(nt_xent(eye, eye, temperature=0.2)) == pytest.approx(
        math.log(1 + 6 * math.exp(-5)), rel=1e-12
    )
    assert float(nt_xent(eye[:1], eye[1:2], temperature=0.2)) == 0


ON_TARGET = ["basic", "parallel"]
TARGETS = [{"target": "shared"}, {"detach_target": True}, {"target": "ema"}]


def possible(placement, stop, target):
    """FA on the online side cuts it off: then gradient needs a target that is attached."""
    return placement in ON_TARGET or not stop or target == TARGETS[0]


PLAIN = [{"placement": p, **target} for p in PLACEMENTS[:2] for target in TARGETS]
AUGMENTED = [
    {"placement": p, "operator": q, "stop_gradient": s, **target}
    for p, q, s, target in itertools.product(PLACEMENTS[2:], OPERATORS, [True, False], TARGETS)
    if possible(p, s, target)
]
FORMS = list(itertools.product(["infonce", "squared", "cosine"], ["mean", "sum", "one"]))


def check(changes, slips):
    """Value and gradient to 1e-6 of the derivation; every slip shows in both."""
    method = make_method(**changes)
    online, target = leaves(), leaves(seed=8)
    terms = method.losses(encoded(method, online, target), NOW)
    contrastive = "infonce" in method.options.criterion
    assert list(terms) == ["contrastive" if contrastive else "similarity"]
    value = sum(terms.values())
    expected = derive(method, online, target)
    given, wanted = slopes(value, online + target), slopes(expected, online + target)
    # Draws and stored vectors are float32 numbers, everything computed from them float64.
    assert furthest([value], [expected]) < 1e-6, changes
    assert furthest(given, wanted) < 1e-6, changes
    for slip in slips:
        other = derive(method, online, target, slip)
        assert furthest([value], [other]) > 1e-3, (changes, slip)
        assert furthest(given, slopes(other, online + target)) > 1e-3, (changes, slip)


def test_every_placement_operator_switch_and_target_equals_the_derivation():
    assert len(AUGMENTED) == 2 * 6 * 2 * 3 + 2 * 6 * (3 + 1)
    for changes in AUGMENTED:
        check(changes | {"criterion": "squared"}, [{"total": 2.0}])


@pytest.mark.parametrize(("criterion", "directions"), FORMS)
def test_every_criterion_and_direction_equals_the_derivation(criterion, directions):
    slips = [{"total": 2.0}] + [{"temperature": 2.0}] * (criterion == "infonce")
    slips += [{"directions": "mean" if directions == "sum" else "sum"}]
    same_branch = {"placement": "fa>predictor", "operator": "nn", "stop_gradient": False}
    for changes in [*PLAIN, *AUGMENTED[:2], same_branch]:
        check(changes | {"criterion": criterion, "directions": directions}, slips)


@pytest.mark.parametrize("criterion", ["infonce", "infonce_reversed", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "free"])
def test_several_samples_are_averaged_or_with_the_free_loss_added(criterion, reduction):
    other = {"mean": "free", "free": "mean"}[reduction]
    operators = OPERATORS if criterion == "cosine" else ["mask"]
    for placement, operator in itertools.product(PLACEMENTS[2:], operators):
        form = {"criterion": criterion, "samples": 3, "reduction": reduction}
        check(form | {"placement": placement, "operator": operator}, [{"reduction": other}])


def test_the_free_loss_is_k_times_the_mean_and_the_same_for_one_sample():
    def loss(samples, reduction):
        form = {"samples": samples, "reduction": reduction}
        method = make_method(placement="parallel", operator="mask", **form)
        return method.losses(encoded(method, leaves(), []), NOW)["contrastive"].item()

    for samples in (1, 4):
        free, mean = loss(samples, "free"), loss(samples, "mean")
        assert free == pytest.approx(samples * mean, rel=1e-12)


def test_all_batches_between_two_steps_enter_the_queue_in_their_order():
    method = make_method(placement="parallel", operator="interpolate", queue=10)
    before = method.queue.features.clone()
    for seed in range(3):
        method.losses(encoded(method, leaves(seed), []), NOW)
    assert torch.equal(method.queue.features, before)
    method.after_step(NOW)
    # 3 batches of 6 rows into 10 places: the newest 10 are left.
    rows = [unit(mlp(leaves(seed)[0], method.projector.parameters())) for seed in range(3)]
    assert furthest([method.queue.features], [torch.cat(rows)[-10:]]) < 1e-12
    stored = method.queue.features.clone()
    method.after_step(NOW)  # nothing new since
    assert torch.equal(method.queue.features, stored)


@pytest.mark.parametrize("criterion", ["infonce", "nt_xent"])
def test_the_criterion_stays_in_float32_under_autocast(criterion):
    # Cosines near 1, where bfloat16 steps by 2^-8.
    draws = torch.Generator().manual_seed(0)
    a, b = 1 + 0.02 * torch.randn(2, 32, 16, generator=draws)
    ours = CRITERIA[criterion][0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours(a, b, 0.01)
    assert float(rounded) == pytest.approx(float(ours(a.double(), b.double(), 0.01)), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"criterion": "nt_xent", "detach_target": True}, "not detached"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"temperature": 0.0}, "temperature"),
        ({"ema_start": 1.1}, "ema_start"),
        ({"queue": 0}, "queue"),
        ({"operators": "nn"}, "did you mean 'operator'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(given, key):
    with pytest.raises(UserError, match=key) as caught:
        validate(Options, given, "here")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        Options(**given)


# The moving average ------------------------------------------------------------------------------


def test_the_ema_target_follows_its_schedule_and_nothing_else_moves_it():
    method = make_method(target="ema", criterion="squared", ema_start=0.9)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.3)
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    slow = [*method.target.parameters()]
    expected = [each.clone() for each in slow]
    k_total = 8
    images = torch.randn(2, N, INPUTS, generator=torch.Generator().manual_seed(1)).double()
    views = Views([ViewGroup("source", images)])
    for k in range(k_total):
        now = Progress(0, 0, k, k_total)
        sum(method.losses(method.encode(views), now).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(slow, expected, strict=True))
        method.after_step(now)
        m = 1 - (1 - 0.9) * (math.cos(math.pi * k / k_total) + 1) / 2
        expected = [
            m * old + (1 - m) * new.detach() for old, new in zip(expected, online, strict=True)
        ]
        assert furthest(slow, expected) < 1e-12
        assert furthest(slow, online) > 1e-3
        expected = [each.clone() for each in slow]
    assert all(each.grad is None and not each.requires_grad for each in slow)


def test_byol_through_real_modules_is_the_sum_of_both_directions():
    options = Options(
        criterion="squared", directions="sum", target="ema", placement="none+predictor", **SMALL
    )
    torch.manual_seed(0)
    method = TwoBranch(ResNet8(1, INPUTS), options, Setting(N, 100, 0)).double()
    with torch.no_grad():  # the target is another network by now
        for parameter in method.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    first, second = torch.randn(2, N, 1, 8, 8, dtype=torch.float64)
    groups = [ViewGroup("target", second[None]), ViewGroup("source", first[None])]
    seen = method.encode(Views(groups))  # roles decide which is view 1, not their order
    for view, online, target in zip((first, second), seen.online, seen.target, strict=True):
        assert furthest([online], [method.backbone(view)]) < 1e-12
        assert furthest([target], [method.target[0](view)]) < 1e-12
        assert not target.requires_grad
        assert furthest([online], [target]) > 1e-3
    value = method.losses(seen, NOW)["similarity"]
    p = [
        mlp(mlp(x, method.projector.parameters()), method.predictor.parameters())
        for x in seen.online
    ]
    t = [mlp(x, method.target[1].parameters()) for x in seen.target]
    expected = sum(
        (2 - 2 * cos(p[a][i], t[b][i])) / N for a, b in ((0, 1), (1, 0)) for i in range(N)
    )
    assert furthest([value], [expected]) < 3e-6
    weights = list(method.backbone.parameters())
    assert furthest(slopes(value, weights), slopes(expected, weights)) < 3e-6


def test_every_view_has_its_own_batch_statistics_in_the_backbone():
    backbone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(INPUTS))
    backbone.features = INPUTS
    method = TwoBranch(backbone, Options(target="ema", **SMALL), Setting(N, 100, 0)).double()
    first, second = leaves()
    views = Views([ViewGroup("source", torch.stack([first, 3 * second + 2]).detach())])
    seen = method.encode(views)
    for each in (seen.online, seen.target):
        for features, view in zip(each, views.groups[0].images, strict=True):
            spread = torch.sqrt(((view - view.mean(0)) ** 2).mean(0) + 1e-5)
            assert furthest([features], [(view - view.mean(0)) / spread]) < 1e-12


def test_the_target_starts_as_a_copy_that_shares_no_memory():
    method = TwoBranch(Plain(), Options(target="ema", **SMALL), Setting(N, 100, 0))
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    before = copy.deepcopy(list(method.target.parameters()))
    assert furthest(before, online) == 0
    with torch.no_grad():
        for parameter in online:
            parameter.add_(1)
    assert furthest(before, method.target.parameters()) == 0


def test_the_newest_features_enter_the_queue_after_the_step_from_the_target_of_view_1():
    for changes in ({}, {"target": "ema"}):
        method = make_method(placement="parallel", operator="nn", **changes)
        online, target = leaves(), leaves(seed=8)
        before = method.queue.features.clone()
        method.losses(encoded(method, online, target), NOW)
        assert torch.equal(method.queue.features, before)  # never its own neighbour
        weights = (method.target[1] if changes else method.projector).parameters()
        stored = unit(mlp((target if changes else online)[0], weights).detach())
        method.after_step(NOW)
        assert furthest([method.queue.features[:N]], [stored]) < 1e-6
        assert torch.equal(method.queue.features[N:], before[N:])
        assert not method.queue.features.requires_grad
