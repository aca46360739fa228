"""DINO: loss, centre, moving average and who sees which view, against loops in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from derivations import distance, draw, softmax, unit
from torch import nn

from peregrine.data.views import ViewGroup, Views
from peregrine.methods.base import Progress, Setting
from peregrine.methods.dino import Dino, Options, dino_loss

N, INPUTS, WIDTH, CODES = 5, 4, 3, 6
SMALL = {"codes": CODES, "projector_hidden": 7, "embedding": WIDTH, "frozen_epochs": 0}
NOW = Progress(seed=0, epoch=0, step=3, total_steps=8)


def distillation64(student, teacher, centre, student_t, teacher_t):
    total, terms = 0.0, 0
    for v, t in enumerate(teacher):
        q = softmax((t - centre) / teacher_t, 1)
        for w, s in enumerate(student):
            if w == v:
                continue
            p = softmax(s / student_t, 1)
            for i in range(len(q)):
                for j in range(q.shape[1]):
                    total -= q[i, j] * np.log(p[i, j]) / len(q)
            terms += 1
    return total / terms


@pytest.mark.parametrize("views", [2, 4])  # 4: two of them local
def test_value_and_gradient_equal_the_derivation(views):
    student = [draw(N, CODES, seed=v) / 3 for v in range(views)]
    teacher = [draw(N, CODES, seed=9 + v) / 3 for v in range(2)]
    centre = draw(CODES, seed=20) / 5

    def ours(*leaves):
        sides = [torch.from_numpy(each) for each in teacher]
        return dino_loss(
            list(leaves), sides, torch.from_numpy(centre),
            student_temperature=0.1, teacher_temperature=0.07,
        )  # fmt: skip

    def theirs(student_t=0.1, teacher_t=0.07, factor=1.0, mean=centre):
        return lambda *s: factor * distillation64(s, teacher, mean, student_t, teacher_t)

    value, gradient = distance(ours, theirs(), *student)
    assert value < 1e-6
    assert gradient < 1e-6
    pairs = 2 * (views - 1)
    for slip in (
        theirs(student_t=0.2),
        theirs(student_t=0.05),
        theirs(teacher_t=0.14),
        theirs(teacher_t=0.035),
        theirs(factor=2.0),
        theirs(factor=pairs),  # a sum over the pairs
        theirs(mean=2 * centre),
        theirs(mean=0 * centre),
    ):
        value, gradient = distance(ours, slip, *student)
        assert value > 1e-3
        assert gradient > 1e-3


def test_the_teacher_is_a_constant():
    student, teacher = (
        [torch.from_numpy(draw(N, CODES, seed=s + v)).requires_grad_() for v in range(2)]
        for s in (0, 5)
    )
    options = {"student_temperature": 0.1, "teacher_temperature": 0.07}
    dino_loss(student, teacher, torch.zeros(CODES).double(), **options).backward()
    assert all(each.grad is None for each in teacher)
    assert all(float(abs(each.grad).max()) > 1e-3 for each in student)


# The method --------------------------------------------------------------------------------------


class Plain(nn.Module):
    features = INPUTS

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(INPUTS, INPUTS)
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.linear(x.flatten(1)[:, :INPUTS])


def make(**changes):
    """A method whose teacher is another network by now."""
    torch.manual_seed(0)
    method = Dino(Plain(), Options(**{**SMALL, **changes}), Setting(N, 100, 0))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        method.centre.copy_(torch.randn(CODES) / 5)
    return method


def views(local=0, seed=0):
    whole = torch.from_numpy(draw(2, N, 1, 2, 2, seed=seed)).float()
    groups = [ViewGroup("source", whole)]
    if local:  # of another size, and listed first
        small = torch.from_numpy(draw(local, N, 1, 1, 4, seed=1)).float()
        groups.insert(0, ViewGroup("local", small))
    return Views(groups)


def head64(head, x):
    """(unit bottleneck, cosines with the prototypes): linear layers with the exact GELU between."""
    *layers, prototypes = (p.detach().double().numpy() for p in head.parameters())
    for number, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
        x = x @ weight.T + bias
        if number < 2:
            x = x * np.vectorize(lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2))))(x)
    h = unit(x)
    return h, h @ unit(prototypes).T


def scores64(backbone, head, images):
    weight, bias = (p.detach().double().numpy() for p in backbone.parameters())
    return head64(head, images.double().numpy().reshape(N, -1) @ weight.T + bias)[1]


@pytest.mark.parametrize("local", [0, 2])
def test_local_views_go_through_the_student_only(local):
    method = make(local_views=local)
    assert method.views == 2 + local
    given = views(local)
    encoded = method.encode(given)
    assert sum(method.backbone.seen) == (2 + local) * N
    assert sum(method.teacher[0].seen) == 2 * N
    assert not any(each.requires_grad for each in encoded.target)
    images = [x for role in ("source", "local") for g in given.by_role(role) for x in g.images]
    student = [scores64(method.backbone, method.head, x) for x in images]
    teacher = [scores64(*method.teacher, x) for x in images[:2]]
    loss = method.losses(encoded, NOW)["distillation"]
    expected = distillation64(student, teacher, method.centre.double().numpy(), 0.1, 0.07)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(float(abs(p.grad).max()) > 0 for p in method.backbone.parameters())
    assert all(float(abs(p.grad).max()) > 0 for p in method.head.parameters())


def test_centre_and_teacher_are_moving_averages_updated_after_the_step():
    method = make(ema_start=0.9, centre_momentum=0.8)
    slow = [p.detach().double().numpy() for p in copy.deepcopy(method.teacher).parameters()]
    centre = method.centre.double().numpy()
    for step in range(3):
        before, outputs = method.centre.clone(), []
        for part in range(1 + step):  # losses of several micro-batches may make a step
            given = views(seed=part)
            method.losses(method.encode(given), NOW)
            outputs += [scores64(*method.teacher, x) for x in given.groups[0].images]
        assert torch.equal(method.centre, before)
        centre = 0.8 * centre + 0.2 * np.concatenate(outputs).mean(0)
        m = 1 - 0.1 * (math.cos(math.pi * step / 8) + 1) / 2
        fast = [*method.backbone.parameters(), *method.head.parameters()]
        slow = [m * a + (1 - m) * b.detach().double().numpy() for a, b in zip(slow, fast)]
        method.after_step(Progress(0, 0, step, 8))
        assert abs(method.centre.numpy() - centre).max() < 1e-6
        for a, b in zip(method.teacher.parameters(), slow):
            assert abs(a.numpy() - b).max() < 1e-5
    assert abs(slow[0] - fast[0].detach().numpy()).max() > 1e-2


def test_the_teacher_starts_as_a_copy_of_the_student():
    method = Dino(Plain(), Options(**SMALL), Setting(N, 100, 0))
    student = [*method.backbone.parameters(), *method.head.parameters()]
    for a, b in zip(method.teacher.parameters(), student, strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
        assert not a.requires_grad
    assert not method.centre.any()
    head = method.head.mlp
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in head)
    assert Options().ema_start == 0.9995


def test_the_teachers_temperature_warms_up_linearly():
    method = make(warmup_epochs=4, warmup_temperature=0.04)
    found = [method.teacher_temperature(epoch) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert make().teacher_temperature(0) == 0.07
    assert make(warmup_epochs=1).teacher_temperature(0) == 0.04
    given = views()
    first, later = (
        method.losses(method.encode(given), Progress(0, epoch, 3, 8))["distillation"].item()
        for epoch in (0, 5)
    )
    assert abs(first - later) > 1e-3


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_prototypes_rest_while_frozen(kind):
    method = make(frozen_epochs=1)
    optimizer = getattr(torch.optim, kind)(method.parameters(), lr=0.1, weight_decay=0.5)
    before = method.head.prototypes.weight.detach().clone()
    for epoch, equal in ((0, True), (0, True), (1, False)):
        loss = method.losses(method.encode(views()), Progress(0, epoch, 0, 8))["distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.equal(method.head.prototypes.weight, before) == equal


def test_student_or_teacher_is_evaluated():
    images = views().groups[0].images[0]
    for who in ("student", "teacher"):
        method = make(evaluate=who).eval()
        pair = method.teacher if who == "teacher" else (method.backbone, method.head)
        with torch.no_grad():
            corrected, released = (method.describe(images, r) for r in method.readings)
        torch.testing.assert_close(corrected.features, pair[0](images))
        h, scores = head64(pair[1], corrected.features.double().numpy())
        assert abs(corrected.embeddings.numpy() - h).max() < 1e-5
        assert abs(corrected.scores.numpy() - 10 * scores).max() < 1e-4  # over T = .1
        assert torch.equal(corrected.scores, released.scores)
        assert torch.equal(corrected.embeddings, released.embeddings)
