"""Feature augmentation on FALCON and SwAV: value and gradient against loops in float64, who
receives gradient, the memory of neighbours. The operators by themselves: test_operators.py."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from by_hand import NOW, OPERATORS, augmented, furthest, method_stream, slopes
from pydantic import ValidationError
from torch import nn

from peregrine.errors import UserError
from peregrine.methods import falcon, swav
from peregrine.methods.base import Encoded, Setting

N, INPUTS, WIDTH, CODES, MEMORY = 5, 4, 6, 11, 16


class Plain(nn.Module):
    features = INPUTS

    def forward(self, x):
        return x.flatten(1)


def make_falcon(**changes):
    given = {"codes": CODES, "embedding": WIDTH, "beta": 0.7, "memory": MEMORY} | changes
    method = falcon.Falcon(Plain(), falcon.Options(**given), Setting(N, 100, 0)).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return method


def make_swav(**changes):
    given = {"codes": CODES, "projector_hidden": 7, "embedding": WIDTH, "memory": MEMORY} | changes
    torch.manual_seed(0)
    return swav.SwAV(Plain(), swav.Options(**given), Setting(N, 100, 0))  # z is float32 at most


def leaves(views=2, seed=3, dtype=torch.float64):
    draws = torch.Generator().manual_seed(seed)
    made = (torch.randn(N, INPUTS, generator=draws, dtype=torch.float64) for _ in range(views))
    return [each.to(dtype).requires_grad_() for each in made]


def leaves_of(method, **given):
    return leaves(dtype=next(method.parameters()).dtype, **given)


def past(method):
    return None if method.memory is None else method.memory.features.double()


def softmax(logits):
    e = torch.exp(logits)
    return e / e.sum()


def of_falcon(method, online, slip=None):
    """(invariance, prior) by loops over images and codes; `slip` is what a mistake would do."""
    o, head = method.options, method.head
    k = {"length": 1.0, "prior": 1.0, "free": o.reduction == "free"} | (slip or {})
    draws, signs = method_stream(NOW), head.signs(torch.zeros(1).double())
    tau = WIDTH / (math.sqrt(N) * math.log((1 - 1e-8 * (CODES - 1)) / 1e-8))
    h = [head.embed(z) for z in online]

    def one_way(own, other):
        source = other.detach() if o.stop_gradient else other
        total, prior = 0.0, 0.0
        p = [softmax(row @ signs / tau) for row in own]
        samples = augmented(other, own, o, past(method), draws, False)
        for sample in samples:
            for i in range(N):
                # The unit vector of the operator, as long as what it stands for.
                long = k["length"] * torch.sqrt((source[i] ** 2).sum())
                q = softmax(long * sample[i] @ signs / tau)
                for j in range(CODES):
                    total = total - 0.7 * p[i][j] * torch.log(q[j]) / N
        for j in range(CODES):
            mean = sum(row[j] for row in p) / N
            if o.prior == "forward":
                prior = prior - torch.log(mean) / CODES
            else:
                prior = prior + mean * torch.log(CODES * mean)
        return torch.stack([total / (1 if k["free"] else len(samples)), k["prior"] * prior])

    if not o.symmetric:
        return one_way(h[0], h[1])
    return (one_way(h[0], h[1]) + one_way(h[1], h[0])) / 2


FORMS = [
    {"norm": "l2", "prior": "forward", "symmetric": False},
    {"norm": "tanh", "prior": "reverse", "symmetric": True},
    {"norm": "l2", "prior": "reverse", "symmetric": True, "chunk": 4},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("stop", [True, False])
def test_falcon_equals_the_derivation(form, operator, stop):
    for samples, reduction in ((1, "mean"), (3, "mean"), (3, "free")):
        more = {"samples": samples, "reduction": reduction, "stop_gradient": stop}
        method, online = make_falcon(operator=operator, **form, **more), leaves()
        terms = method.losses(Encoded(online, []), NOW)
        assert list(terms) == ["invariance", "prior"]
        expected = of_falcon(method, online)
        assert furthest(terms.values(), expected) < 3e-6
        wanted = [*online, *method.head.parameters()]
        given, derived = (slopes(v, wanted) for v in (sum(terms.values()), expected.sum()))
        steepest = max(float(slope.abs().max()) for slope in derived)  # scores are float32
        assert furthest(given, derived) < 3e-6 * max(steepest, 1)
        if samples == 3:
            other = of_falcon(method, online, {"free": reduction == "mean"})
            assert furthest(terms.values(), other) > 1e-2
        for slip in ({"length": 2.0}, {"prior": 2.0}):
            assert furthest(terms.values(), of_falcon(method, online, slip)) > 1e-3


@pytest.mark.parametrize("form", FORMS[:1])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("stop", [True, False])
def test_gradient_reaches_the_second_view_of_falcon_where_fa_passes_it(form, operator, stop):
    """One-sided: the first view through p always, the second through the operator alone. A queued
    neighbour has none, but its length is that of h', which the L2 form keeps constant."""
    method, online = make_falcon(operator=operator, stop_gradient=stop, **form), leaves()
    first, second = slopes(sum(method.losses(Encoded(online, []), NOW).values()), online)
    assert float(first.abs().max()) > 1e-4
    assert (float(second.abs().max()) > 1e-6) == (not stop and operator != "nn")


def assigned(scores, epsilon, iterations):
    """Sinkhorn in the authors' form, loops left to the matrix: columns to 1/c, rows to 1/n."""
    q = torch.exp(scores / epsilon)
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(0) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * len(q)


def of_swav(method, online, slip=None):
    o = method.options
    k = {"temperature": o.temperature, "free": o.reduction == "free"} | (slip or {})
    z = [method.embed(each).double() for each in online]
    prototypes, draws = method.prototypes.double(), method_stream(NOW)
    if o.operator == "none":
        samples = [[each.detach()] for each in z[:2]]
    else:
        given = SimpleNamespace(**o.model_dump(), stop_gradient=True)
        pairs = ((z[0], z[1]), (z[1], z[0]))
        samples = [augmented(a, b, given, past(method), draws, False) for a, b in pairs]
    total = 0.0
    for targets in zip(*samples, strict=True):
        q = [assigned(each @ prototypes.detach().T, 0.05, 3).detach() for each in targets]
        terms = []
        for v, w in itertools.product(range(2), range(len(z))):
            if v != w:
                p = [softmax(row @ prototypes.T / k["temperature"]) for row in z[w]]
                terms.append(-sum(q[v][i] @ torch.log(p[i]) for i in range(N)) / N)
        total = total + sum(terms) / len(terms)
    return total / (1 if k["free"] else len(samples[0]))


@pytest.mark.parametrize("local", [0, 2])
@pytest.mark.parametrize("operator", OPERATORS)
def test_swav_equals_the_derivation(operator, local):
    for samples, reduction in ((1, "mean"), (3, "mean"), (3, "free")):
        more = {"operator": operator, "samples": samples, "reduction": reduction}
        method = make_swav(local_views=local, **more)
        online = leaves_of(method, views=2 + local)
        value = method.losses(Encoded(online, []), NOW)["swapped"]  # epoch 2: prototypes learn
        expected = of_swav(method, online)
        wanted = [*online, *method.projector.parameters(), method.prototypes]
        assert furthest([value], [expected]) < 1e-5
        assert furthest(slopes(value, wanted), slopes(expected, wanted)) < 1e-4
        assert furthest([value], [of_swav(method, online, {"temperature": 0.2})]) > 1e-2
        if samples == 3:
            other = of_swav(method, online, {"free": reduction == "mean"})
            assert furthest([value], [other]) > 1e-2
        plain = of_swav(make_swav(local_views=local), online)
        assert furthest([value], [plain]) > 1e-4  # the operator makes a difference


@pytest.mark.parametrize("make", [make_falcon, make_swav])
def test_operator_none_has_no_memory_and_draws_nothing(make):
    class NoDraws(type(NOW)):
        def generator(self, *_):
            raise AssertionError("nothing is drawn")

    method = make()
    assert not any(name.startswith("memory") for name in method.state_dict())
    now = NoDraws(seed=0, epoch=2, step=11, total_steps=20)
    method.losses(Encoded(leaves_of(method), []), now)
    method.after_step(now)
    if make is make_swav:
        value = method.losses(Encoded(online := leaves_of(method), []), now)["swapped"]
        assert furthest([value], [of_swav(method, online)]) < 1e-5


@pytest.mark.parametrize("make", [make_falcon, make_swav])
@pytest.mark.parametrize("operator", ["nn", "interpolate"])
def test_the_memory_takes_every_micro_batch_of_view_1_after_the_step(make, operator):
    method = make(operator=operator)
    before = method.memory.features.clone()
    assert "memory.features" in method.state_dict()
    stored = []
    for seed in (3, 4):
        online = leaves_of(method, seed=seed)
        method.losses(Encoded(online, []), NOW)
        assert torch.equal(method.memory.features, before)  # never its own neighbour
        h = (method.head.embed if make is make_falcon else method.embed)(online[0]).detach()
        stored += [row / torch.sqrt((row * row).sum()) for row in h]
    method.after_step(NOW)
    assert furthest([method.memory.features[: 2 * N]], [torch.stack(stored).double()]) < 1e-6
    assert torch.equal(method.memory.features[2 * N :], before[2 * N :])
    method.after_step(NOW)  # nothing new
    assert int(method.memory.position) == 2 * N


@pytest.mark.parametrize("make", [make_falcon, make_swav])
def test_a_memory_that_does_not_fit_is_refused_in_one_line(make):
    state = make(operator="nn").state_dict()
    make(operator="nn").load_state_dict(state)
    with pytest.raises(UserError) as error:
        make(operator="nn", memory=MEMORY // 2).load_state_dict(state)
    assert "memory.features: the saved queue holds 16 vectors" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*memory\.features"):
        make().load_state_dict(state)


@pytest.mark.parametrize("options", [falcon.Options, swav.Options])
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValidationError, match="4 samples need an operator"):
        options(samples=4)
    with pytest.raises(ValidationError, match="4 neighbours need a memory"):
        options(operator="nn", samples=4, memory=3)
    options(operator="mask", samples=4, memory=3)
