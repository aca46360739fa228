"""The two-branch objective against a float64 derivation written out from
feature-augmentation.md, section 2: values, gradients, and who receives one."""

import copy
import hashlib
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from peregrine.config.load import validate
from peregrine.data.views import ViewGroup, Views
from peregrine.errors import UserError
from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.two_branch import Options, TwoBranch, cosine, infonce, nt_xent
from peregrine.nets.backbones import ResNet8

N, INPUTS, HIDDEN, WIDTH, QUEUE = 6, 5, 9, 4, 16
SMALL = {"projector_hidden": HIDDEN, "embedding": WIDTH, "predictor_hidden": 7, "queue": QUEUE}
PLACEMENTS = ["none", "none+predictor", "basic", "predictor>fa", "fa>predictor", "parallel"]
NOW = Progress(seed=0, epoch=2, step=11, total_steps=20)


class Plain(nn.Module):
    """A backbone with a parameter of its own."""

    features = INPUTS

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(INPUTS, INPUTS)

    def forward(self, x):
        return self.linear(x.flatten(1)[:, :INPUTS])


def make_method(unchecked=False, **changes):
    """A method in float64 whose weights, target network and queue are all different numbers."""
    given = {**SMALL, "temperature": 0.3, **changes}
    options = Options.model_construct(**given) if unchecked else Options(**given)
    method = TwoBranch(Plain(), options, Setting(N, 100, 0)).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.7)
    return method


def leaves(seed=3):
    draws = torch.Generator().manual_seed(seed)
    return [
        torch.randn(N, INPUTS, generator=draws, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    ]


def encoded(method, online, target):
    return Encoded(online, target if method.target is not None else [])


# The derivation ----------------------------------------------------------------------------------


def cos(u, v):
    return (u * v).sum() / torch.sqrt((u * u).sum()) / torch.sqrt((v * v).sum())


def softmax_loss(logits, positive):
    return torch.log(sum(torch.exp(each) for each in logits)) - logits[positive]


def infonce64(a, b, t):
    a, b = unit(a), unit(b)
    rows = [[(a[i] * b[j]).sum() / t for j in range(len(b))] for i in range(len(a))]
    return sum(softmax_loss(row, i) for i, row in enumerate(rows)) / len(a)


def nt_xent64(a, b, t):
    views = [*a, *b]
    total = 0.0
    for i, anchor in enumerate(views):
        others = [j for j in range(len(views)) if j != i]
        positive = others.index((i + len(a)) % len(views))
        total = total + softmax_loss([cos(anchor, views[j]) / t for j in others], positive)
    return total / len(views)


def mlp64(x, parameters):
    """Linear without bias, BatchNorm of the batch, ReLU, Linear: projector and predictor alike."""
    first, gamma, shift, second, bias = parameters
    u = x @ first.T
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    u = (u - mean) / torch.sqrt(variance + 1e-5) * gamma + shift
    return torch.where(u > 0, u, 0 * u) @ second.T + bias


def unit(x):
    return torch.stack([row / torch.sqrt((row * row).sum()) for row in x])


def method_stream(now):
    """A new generator at the `method` stream of this step, from its declared key."""
    key = f"{now.seed}/method/{now.epoch}/{now.step}".encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


def derive(method, online, target, criterion, directions, wrong=None):
    """Loss from backbone features, by the table of placements; `wrong` multiplies one quantity."""
    o = method.options
    k = dict.fromkeys(("temperature", "total"), 1.0) | (wrong or {})
    draws = method_stream(NOW)
    projector = [p.detach() for p in method.projector.parameters()]
    predictor = [p.detach() for p in method.predictor.parameters()]
    z = [mlp64(x, projector) for x in online]
    if o.target == "ema":
        t = [mlp64(x, list(method.target[1].parameters())).detach() for x in target]
    else:
        t = [each.detach() if o.detach_target else each for each in z]

    def augmented(x, same_branch):
        x = x.detach() if o.stop_gradient else x
        if o.operator == "mask":
            keep = torch.rand(x.shape, generator=draws) >= o.mask_ratio
            return unit(x * keep)
        memory = method.queue.features.double()
        found = []
        for row in x:
            similar = [float(cos(row.detach(), stored)) for stored in memory]
            found.append(memory[max(range(len(memory)), key=similar.__getitem__)])
        found = torch.stack(found)
        return x + (found - x).detach() if same_branch else found

    def predicted(x):
        return mlp64(x, predictor)

    def sides(z1, z2):
        return {
            "none": lambda: (z1, z2),
            "none+predictor": lambda: (predicted(z1), z2),
            "basic": lambda: (z1, augmented(z2, False)),
            "predictor>fa": lambda: (augmented(predicted(z1), True), z2),
            "fa>predictor": lambda: (predicted(augmented(z1, True)), z2),
            "parallel": lambda: (predicted(z1), augmented(z2, False)),
        }[o.placement]()

    def one(z1, z2):
        a, b = sides(z1, z2)
        if criterion == "infonce":
            return infonce64(a, b, o.temperature * k["temperature"])
        mean = sum(cos(u, v) for u, v in zip(a, b, strict=True)) / len(a)
        return 2 - 2 * mean if criterion == "squared" else -mean

    forth = one(z[0], t[1])
    if directions == "one":
        return k["total"] * forth
    both = forth + one(z[1], t[0])
    return k["total"] * (both / 2 if directions == "mean" else both)


def slopes(value, inputs):
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def furthest(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


# Losses ------------------------------------------------------------------------------------------

CRITERIA = {
    "infonce": (lambda a, b, t: infonce(a, b, temperature=t), infonce64),
    "nt_xent": (lambda a, b, t: nt_xent(a, b, temperature=t), nt_xent64),
    "cosine": (lambda a, b, t: cosine(a, b) / t,
               lambda a, b, t: sum(map(cos, a, b)) / len(a) / t),
}  # fmt: skip


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


WHOLE = [
    ({"placement": p, "operator": q, "stop_gradient": s, **target}, criterion, directions)
    for p in PLACEMENTS
    for q in (["none"] if p.startswith("none") else ["nn", "mask"])
    for s in ([True] if p.startswith("none") else [True, False])
    for target in ({"target": "shared"}, {"detach_target": True}, {"target": "ema"})
    if not (p in ("predictor>fa", "fa>predictor") and s and target != {"target": "shared"})
    for criterion in ("infonce", "squared", "cosine")
    for directions in ("mean", "sum", "one")
]


@pytest.mark.parametrize("criterion", ["infonce", "squared", "cosine"])
@pytest.mark.parametrize("directions", ["mean", "sum", "one"])
def test_the_whole_objective_equals_the_derivation(criterion, directions):
    cases = [changes for changes, c, d in WHOLE if (c, d) == (criterion, directions)]
    assert len(cases) == 6 + 24 + 16  # without FA, FA on the target side, FA on the online side
    for changes in cases:
        method = make_method(criterion=criterion, directions=directions, **changes)
        online, target = leaves(), leaves(seed=8)
        terms = method.losses(encoded(method, online, target), NOW)
        assert list(terms) == ["contrastive" if criterion == "infonce" else "similarity"]
        value = sum(terms.values())
        expected = derive(method, online, target, criterion, directions)
        # The criterion itself runs in float32.
        assert furthest([value], [expected]) < 3e-6, changes
        given, wanted = slopes(value, online + target), slopes(expected, online + target)
        assert furthest(given, wanted) < 3e-6, changes
        for slip in [{"total": 2.0}, {"temperature": 2.0}][: 2 if criterion == "infonce" else 1]:
            other = derive(method, online, target, criterion, directions, slip)
            assert furthest([value], [other]) > 1e-3, (changes, slip)
            assert furthest(given, slopes(other, online + target)) > 1e-3, (changes, slip)


def test_nt_xent_through_the_method():
    method, online = make_method(criterion="nt_xent"), leaves()
    value = method.losses(Encoded(online, []), NOW)["contrastive"]
    projector = [p.detach() for p in method.projector.parameters()]
    expected = nt_xent64(*(mlp64(x, projector) for x in online), 0.3)
    assert furthest([value], [expected]) < 3e-6
    assert furthest(slopes(value, online), slopes(expected, online)) < 3e-6


@pytest.mark.parametrize("criterion", ["infonce", "nt_xent"])
def test_the_criterion_stays_in_float32_under_autocast(criterion):
    # Cosines near 1, where bfloat16 steps by 2^-8.
    draws = torch.Generator().manual_seed(0)
    a, b = 1 + 0.02 * torch.randn(2, 32, 16, generator=draws)
    ours = CRITERIA[criterion][0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours(a, b, 0.01)
    assert float(rounded) == pytest.approx(float(ours(a.double(), b.double(), 0.01)), rel=1e-4)


# Who receives gradient ---------------------------------------------------------------------------


def reached(target, detached, placement, operator, stop):
    """(online side, target side) by which gradient reaches the backbone: the reference's text."""
    attached = target == "shared" and not detached
    if placement in ("predictor>fa", "fa>predictor"):
        # FA on the online side: the switch cuts it, the straight-through neighbour does not, and
        # the other branch stays attached with the shared encoder only.
        return not stop, attached
    if placement in ("basic", "parallel"):
        # FA on the target side: a neighbour is a constant whatever the switch says.
        return True, attached and operator == "mask" and not stop
    return True, attached


SPACE = list(
    itertools.product(
        ["shared", "ema"], [False, True], PLACEMENTS, ["none", "nn", "mask"], [True, False]
    )
)


@pytest.mark.parametrize("criterion", ["infonce", "nt_xent", "cosine", "squared"])
def test_exactly_the_configurations_without_gradient_are_refused(criterion):
    counts = {"accepted": 0, "no gradient": 0, "needs": 0, "SimCLR": 0}
    for case in SPACE:
        target, detached, placement, operator, stop = case
        given = {
            "criterion": criterion, "target": target, "detach_target": detached,
            "placement": placement, "operator": operator, "stop_gradient": stop,
        }  # fmt: skip
        try:
            validate(Options, given, "study x, row y")
            verdict, line = "accepted", ""
        except UserError as error:
            line = str(error)
            verdict = next(key for key in counts if key in line)
            assert "\n" not in line
            assert line.startswith("study x, row y: ")
        counts[verdict] += 1

        fits = placement.startswith("none") == (operator == "none")
        simclr = criterion != "nt_xent" or (
            placement == "none" and target == "shared" and not detached
        )
        assert (verdict == "needs") == (not fits), case
        if not fits or not simclr:
            assert verdict != "accepted", case
            continue
        # What really happens, also where the check refuses it.
        method = make_method(unchecked=True, **given, directions="one")
        online, theirs = leaves(), leaves(seed=8)
        value = sum(method.losses(encoded(method, online, theirs), NOW).values())
        if value.requires_grad:
            value.backward()
        got = tuple(x.grad is not None and float(x.grad.abs().max()) > 1e-4 for x in online)
        assert got == reached(*case), case
        assert all(x.grad is None for x in theirs), case
        assert (verdict == "accepted") == any(got), (case, line)
        assert (verdict == "no gradient") == (not any(got)), (case, line)
    # 144 in all. Operator fits: 2 + 4 x 2 of 6 x 3, x 8. Refused for want of gradient: 2
    # placements x 2 operators with the switch on, unless shared and attached: 3 of 4.
    if criterion != "nt_xent":
        assert counts == {"accepted": 68, "no gradient": 12, "needs": 64, "SimCLR": 0}
    else:
        assert counts == {"accepted": 2, "no gradient": 0, "needs": 64, "SimCLR": 78}


@pytest.mark.parametrize("placement", ["basic", "parallel"])
@pytest.mark.parametrize("target", ["shared", "ema"])
def test_with_a_neighbour_on_the_target_side_the_switch_changes_nothing(placement, target):
    results = []
    for stop in (True, False):
        method = make_method(placement=placement, operator="nn", stop_gradient=stop, target=target)
        online, theirs = leaves(), leaves(seed=8)
        value = sum(method.losses(encoded(method, online, theirs), NOW).values())
        results.append([value, *slopes(value, online)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


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
        mlp64(mlp64(x, list(method.projector.parameters())), list(method.predictor.parameters()))
        for x in seen.online
    ]
    t = [mlp64(x, list(method.target[1].parameters())) for x in seen.target]
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
        stored = unit(mlp64((target if changes else online)[0], list(weights)).detach())
        method.after_step(NOW)
        assert furthest([method.queue.features[:N]], [stored]) < 1e-6
        assert torch.equal(method.queue.features[N:], before[N:])
        assert not method.queue.features.requires_grad
