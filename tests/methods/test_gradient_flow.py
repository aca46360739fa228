"""Who receives gradient, placement by placement: the rules of feature-augmentation.md, section 2.

Each view order is looked at by itself (directions: one): the backbone's features of view 1 feed
the online side, those of view 2 the target side.
"""

import itertools

import pytest
import torch
from by_hand import NOW, OPERATORS, PLACEMENTS, encoded, furthest, leaves, make_method, slopes

from peregrine.config.load import validate
from peregrine.errors import UserError
from peregrine.methods.two_branch import Options

TARGETS = ["shared", "ema"]
SWITCH = [True, False]
SAME_BRANCH = ["predictor>fa", "fa>predictor"]


def reached(target, detached, placement, operator, stop):
    """(view 1, view 2, predictor, projector) that gradient reaches, by reasoning.

    - The target side is attached with a shared encoder that is not detached.
    - FA on the target side passes gradient if the side is attached and the switch is off; a
      neighbour from the queue never does, the way towards one (interpolate) does. What
      extrapolate leaves behind is a constant, so view 1 gets nothing through it.
    - FA on the online side: the switch cuts it off; without the switch every operator passes
      gradient, nn as a straight-through neighbour. The target side stays as it is.
    - The predictor learns wherever it stands behind FA or FA behind it is not cut.
    - The projector of the online branch learns where either view is reached.
    """
    attached = target == "shared" and not detached
    if placement == "none" or placement == "basic":
        predictor = None
    elif placement == "predictor>fa":
        predictor = not stop
    else:
        predictor = True
    first = not (placement in SAME_BRANCH and stop)
    second = attached
    if placement in ("basic", "parallel"):
        second = attached and not stop and operator != "nn"
    return first, second, predictor, first or second


SPACE = list(itertools.product(TARGETS, [False, True], PLACEMENTS, ["none", *OPERATORS], SWITCH))


def given(case, **more):
    names = ("target", "detach_target", "placement", "operator", "stop_gradient")
    return dict(zip(names, case, strict=True)) | {"directions": "one"} | more


def touched(gradients):
    return any(float(each.abs().max()) > 1e-5 for each in gradients)


# SimCLR's criterion has neither FA nor a target of its own; its few options come below.
@pytest.mark.parametrize("criterion", ["infonce", "infonce_reversed", "cosine", "squared"])
def test_gradient_reaches_exactly_what_the_rules_say(criterion):
    counts = {"accepted": 0, "no gradient": 0, "needs": 0}
    for case in SPACE:
        target, detached, placement, operator, stop = case
        options = given(case, criterion=criterion)
        try:
            validate(Options, options, "study x, row y")
            verdict = "accepted"
        except UserError as error:
            assert "\n" not in str(error)
            assert str(error).startswith("study x, row y: ")
            verdict = next(key for key in counts if key in str(error))
        counts[verdict] += 1
        fits = placement.startswith("none") == (operator == "none")
        assert (verdict == "needs") == (not fits), case
        if not fits:
            continue
        # What really happens, also where the check refuses it.
        method, online, theirs = make_method(unchecked=True, **options), leaves(), leaves(seed=8)
        value = sum(method.losses(encoded(method, online, theirs), NOW).values())
        heads = {
            name: slopes(value, list(getattr(method, name).parameters()))
            for name in ("predictor", "projector")
        }
        got = (
            *(touched([each]) for each in slopes(value, online)),
            touched(heads["predictor"]) if heads["predictor"] else None,
            touched(heads["projector"]),
        )
        assert got == reached(*case), case
        assert not touched(slopes(value, theirs)), case
        if method.target is not None:
            assert not any(each.requires_grad for each in method.target.parameters())
        assert (verdict == "no gradient") == (not any(got[:2])), case
    # 2 targets x 2 x 6 placements x 7 operators x 2 = 336. Fitting: 2 + 4 x 6 of 6 x 7, x 8 = 208.
    # Refused for want of gradient: 2 placements x 6 operators, switch on, 3 of 4 targets = 36.
    assert counts == {"accepted": 172, "no gradient": 36, "needs": 128}


def test_gradient_reaches_the_weights_of_the_backbone_or_the_run_is_refused():
    """The same through a real backbone: what is accepted trains it."""
    images = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    for case in SPACE:
        try:
            method = make_method(**given(case))
        except ValueError:
            continue
        online = [method.backbone(view) for view in images]
        theirs = [method.target[0](view).detach() for view in images] if method.target else []
        value = sum(method.losses(encoded(method, online, theirs), NOW).values())
        assert touched(slopes(value, list(method.backbone.parameters()))), case


def gradients(**changes):
    method, online, theirs = make_method(**changes), leaves(), leaves(seed=8)
    value = sum(method.losses(encoded(method, online, theirs), NOW).values())
    return [value, *slopes(value, [*online, *method.predictor.parameters()])]


CONSTANT = [
    {"placement": placement, "operator": operator, **side}
    for placement in ("basic", "parallel")
    for operator in OPERATORS
    for side in ({"target": "ema"}, {"detach_target": True}, {"target": "shared"})
    if operator == "nn" or side != {"target": "shared"}
]


@pytest.mark.parametrize("criterion", ["infonce", "infonce_reversed", "squared"])
def test_where_fa_sees_a_constant_the_switch_is_identical_to_the_last_bit(criterion):
    assert len(CONSTANT) == 2 * (6 * 2 + 1)
    for changes in CONSTANT:
        on, off = (gradients(criterion=criterion, stop_gradient=s, **changes) for s in SWITCH)
        assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True)), changes


def test_everywhere_else_the_switch_changes_the_gradient_but_never_the_loss():
    for placement, operator in itertools.product(PLACEMENTS[2:], OPERATORS):
        if placement in ("basic", "parallel") and operator == "nn":
            continue
        on, off = (
            gradients(placement=placement, operator=operator, stop_gradient=s) for s in SWITCH
        )
        assert torch.equal(on[0], off[0]), (placement, operator)
        assert furthest(on[1:], off[1:]) > 1e-3, (placement, operator)


@pytest.mark.parametrize("samples", [1, 3])
def test_straight_through_hands_the_gradient_at_the_neighbour_to_z(samples):
    """fa>predictor: d loss / d z1 is the sum over samples of d loss / d neighbour."""
    method = make_method(
        placement="fa>predictor",
        operator="nn",
        stop_gradient=False,
        detach_target=True,
        directions="one",
        samples=samples,
        reduction="free",
    )
    seen = []
    method.predictor.register_full_backward_hook(lambda m, i, o: seen.append(i[0]))
    online = leaves()
    z1 = []

    def keep(module, given, out):
        out.retain_grad()
        z1.append(out)

    method.projector.register_forward_hook(keep)
    sum(method.losses(encoded(method, online, []), NOW).values()).backward()
    assert len(seen) == samples
    assert furthest([z1[0].grad], [sum(seen)]) < 1e-12
    assert z1[1].grad is None  # the detached target


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"placement": "predictor>fa", "operator": "mask", "target": "ema"}, "no gradient reaches"),
        ({"placement": "fa>predictor", "operator": "nn", "detach_target": True}, "no gradient"),
        ({"criterion": "nt_xent", "placement": "parallel", "operator": "nn"}, "SimCLR's own"),
        ({"criterion": "nt_xent", "target": "ema"}, "SimCLR's own"),
        ({"criterion": "nt_xent", "detach_target": True}, "not detached"),
        ({"criterion": "infonce_queue", "placement": "basic", "operator": "nn"}, "among its neg"),
        ({"criterion": "cosine", "times_2t": True}, "times_2t"),
        ({"samples": 2}, "need an operator"),
        ({"placement": "basic", "operator": "nn", "samples": 5, "queue": 4}, "a queue of at least"),
        ({"placement": "basic", "operator": "mask", "samples": 0}, "samples"),
        ({"placement": "basic", "operator": "noise", "noise_sd": 0.0}, "noise_sd"),
        ({"placement": "basic", "operator": "mix", "mix_alpha": 0.0}, "mix_alpha"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(changes, key):
    with pytest.raises(UserError, match=key) as caught:
        validate(Options, changes, "study x, row y")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("study x, row y: ")
