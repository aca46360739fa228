"""The two-branch objective written out from feature-augmentation.md, section 2, in float64 and with
loops over samples; what the tests hold the code against."""

import hashlib

import torch
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.two_branch import Options, TwoBranch

N, INPUTS, HIDDEN, WIDTH, QUEUE = 6, 5, 9, 4, 16
SMALL = {"projector_hidden": HIDDEN, "embedding": WIDTH, "predictor_hidden": 7, "queue": QUEUE}
PLACEMENTS = ["none", "none+predictor", "basic", "predictor>fa", "fa>predictor", "parallel"]
OPERATORS = ["nn", "mask", "noise", "mix", "interpolate", "extrapolate"]
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


def slopes(value, inputs):
    if not (inputs and value.requires_grad):
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def furthest(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def unit(x):
    return torch.stack([row / torch.sqrt((row * row).sum()) for row in x])


def cos(u, v):
    return (u * v).sum() / torch.sqrt((u * u).sum()) / torch.sqrt((v * v).sum())


# Criteria ----------------------------------------------------------------------------------------


def softmax_loss(logits, positive):
    return torch.log(sum(torch.exp(each) for each in logits)) - logits[positive]


def infonce(a, b, t):
    a, b = unit(a), unit(b)
    rows = [[(a[i] * b[j]).sum() / t for j in range(len(b))] for i in range(len(a))]
    return sum(softmax_loss(row, i) for i, row in enumerate(rows)) / len(a)


def infonce_queue(a, b, memory, t):
    total = 0.0
    for anchor, positive in zip(a, b, strict=True):
        logits = [cos(anchor, other) / t for other in [positive, *memory]]
        total = total + softmax_loss(logits, 0)
    return total / len(a)


def nt_xent(a, b, t):
    views = [*a, *b]
    total = 0.0
    for i, anchor in enumerate(views):
        others = [j for j in range(len(views)) if j != i]
        positive = others.index((i + len(a)) % len(views))
        total = total + softmax_loss([cos(anchor, views[j]) / t for j in others], positive)
    return total / len(views)


def mean_cosine(a, b):
    return sum(map(cos, a, b)) / len(a)


# Heads -------------------------------------------------------------------------------------------


def batch_norm(u, gamma, shift):
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    return (u - mean) / torch.sqrt(variance + 1e-5) * gamma + shift


def mlp(x, parameters, last_norm=False):
    """Linear without bias, BatchNorm of the batch, ReLU for every hidden layer; then Linear, with
    a bias or a BatchNorm: projectors and predictors alike."""
    parameters = list(parameters)
    tail = 3 if last_norm else 2
    while len(parameters) > tail:
        weight, gamma, shift = parameters[:3]
        u = batch_norm(x @ weight.T, gamma, shift)
        x = torch.where(u > 0, u, 0 * u)
        parameters = parameters[3:]
    if last_norm:
        weight, gamma, shift = parameters
        return batch_norm(x @ weight.T, gamma, shift)
    weight, bias = parameters
    return x @ weight.T + bias


# The objective -----------------------------------------------------------------------------------


def method_stream(now):
    """A new generator at the `method` stream of this step, from its declared key."""
    key = f"{now.seed}/method/{now.epoch}/{now.step}".encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


def neighbours(row, memory, k):
    """The k stored vectors of highest cosine with a row, nearest first."""
    similar = [float(cos(row.detach(), stored)) for stored in memory]
    order = sorted(range(len(memory)), key=similar.__getitem__, reverse=True)
    return [memory[place] for place in order[:k]]


def augmented(x, other, o, memory, draws, same_branch):
    """FA of x as a list of K tensors, by the table of operators."""
    x = x.detach() if o.stop_gradient else x
    other, k, (n, _) = other.detach(), o.samples, x.shape
    if o.operator == "nn":
        found = [neighbours(row, memory, k) for row in x]
        samples = [torch.stack([each[s] for each in found]) for s in range(k)]
        return [x + (s - x).detach() if same_branch else s for s in samples]
    u = unit(x)
    if o.operator == "mask":
        return [unit(x * keep) for keep in torch.rand((k, *x.shape), generator=draws) >= 0.3]
    if o.operator == "noise":
        held = u.detach()
        mean = held.sum(0) / n
        sd = torch.sqrt(((held - mean) ** 2).sum(0) / n)
        return [unit(u + 0.1 * sd * e) for e in torch.randn((k, *x.shape), generator=draws)]
    if o.operator == "mix":
        steps = torch.randint(1, n, (k, n), generator=draws)
        weights = torch.rand((k, n, 1), generator=draws)
        out = []
        for step, weight in zip(steps, weights, strict=True):
            mixed = []
            for i in range(n):
                w = max(float(weight[i]), 1 - float(weight[i]))
                mixed.append(w * u[i] + (1 - w) * u[(i + int(step[i])) % n])
            out.append(unit(torch.stack(mixed)))
        return out
    if o.operator == "interpolate":
        nearest = torch.stack([neighbours(row, memory, 1)[0] for row in x])
        weights = torch.rand((k, n, 1), generator=draws) / 2
        return [unit((1 - w) * u + w * nearest) for w in weights]
    weights = 1 + torch.rand((3, k, n, 1), generator=draws).sort(dim=0).values[1]
    return [unit(w * u + (1 - w) * unit(other)) for w in weights]


def derive(method, online, target, wrong=None, now=NOW):
    """Loss from backbone features; `wrong` multiplies or replaces one quantity."""
    o = method.options
    k = {"temperature": 1.0, "total": 1.0, "directions": o.directions, "reduction": o.reduction}
    k |= wrong or {}
    draws, t = method_stream(now), o.temperature * k["temperature"]
    memory = None if method.queue is None else method.queue.features.double()
    projector = [p.detach() for p in method.projector.parameters()]
    predictor = [p.detach() for p in method.predictor.parameters()]
    z = [mlp(x, projector, o.projector_norm) for x in online]
    if o.target == "ema":
        slow = list(method.target[1].parameters())
        goals = [mlp(x, slow, o.projector_norm).detach() for x in target]
    else:
        goals = [each.detach() if o.detach_target else each for each in z]
    if o.criterion == "nt_xent":
        return k["total"] * nt_xent(*z, t)

    def predicted(x):
        return mlp(x, predictor) if predictor else x

    def sides(z1, z2):
        if o.placement == "predictor>fa":
            return [(a, z2) for a in augmented(predicted(z1), z2, o, memory, draws, True)]
        if o.placement == "fa>predictor":
            return [(predicted(a), z2) for a in augmented(z1, z2, o, memory, draws, True)]
        if o.placement in ("basic", "parallel"):
            return [(predicted(z1), b) for b in augmented(z2, z1, o, memory, draws, False)]
        return [(predicted(z1), z2)]

    def criterion(a, b):
        if o.criterion == "infonce":
            return infonce(a, b, t)
        if o.criterion == "infonce_reversed":
            return infonce(b, a, t)
        if o.criterion == "infonce_queue":
            return infonce_queue(a, b, memory, t)
        return 2 - 2 * mean_cosine(a, b) if o.criterion == "squared" else -mean_cosine(a, b)

    def one(z1, z2):
        values = [criterion(*pair) for pair in sides(z1, z2)]
        return sum(values) / (1 if k["reduction"] == "free" else len(values))

    total = one(z[0], goals[1])
    if k["directions"] != "one":
        total = total + one(z[1], goals[0])
        total = total / 2 if k["directions"] == "mean" else total
    return k["total"] * (2 * t if o.times_2t else 1) * total
