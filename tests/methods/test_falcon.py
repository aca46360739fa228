"""FALCON against a float64 derivation written out from falcon.md, section 1."""

import itertools
import math

import numpy as np
import pytest
import torch
from derivations import central_differences, softmax
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from peregrine.data.views import ViewGroup, Views
from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.dictionaries import pack, unpack
from peregrine.methods.falcon import Falcon, FalconHead, Options, falcon_loss, temperature

N, INPUTS, WIDTH, CODES = 5, 4, 6, 11  # f c = 66 signs: the last byte is not full
EPS, BETA = 1e-8, 0.7
SWITCHES = list(itertools.product(["l2", "tanh"], ["forward", "reverse"], [False, True]))
NOW = Progress(seed=0, epoch=0, step=0, total_steps=1)


def options(norm="l2", prior="forward", symmetric=False, **changes):
    given = {"codes": CODES, "embedding": WIDTH, "beta": BETA, "epsilon": EPS} | changes
    return Options(norm=norm, prior=prior, symmetric=symmetric, **given)


def make_head(norm="l2", seed=3, n=N, **changes):
    """A head in float64 whose BatchNorm is not the identity."""
    draws = torch.Generator().manual_seed(seed)
    head = FalconHead(INPUTS, options(norm, **changes), Setting(n, 100, seed)).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return head


def features(rows=N, seed=7):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, INPUTS, generator=draws, dtype=torch.float64) for _ in range(2)]


def dictionary(head):
    """W in {-1, +1}^{f x c} from the saved bits, the lowest bit of a byte first."""
    flat = np.unpackbits(head.bits.numpy(), bitorder="little")[: WIDTH * CODES]
    return torch.from_numpy(flat.reshape(WIDTH, CODES) * 2.0 - 1.0)


def derive(z, parameters, signs, norm, prior, symmetric, wrong=None):
    """(invariance, prior) of two views from backbone features, by the written formulas.

    `wrong` multiplies one quantity: what a slip in the code would do.
    """
    k = dict.fromkeys(("beta", "prior", "tau", "average", "scale"), 1.0) | (wrong or {})
    weight, bias, gamma, shift = parameters
    f, c = signs.shape
    tau = k["tau"] * f / (math.sqrt(N) * math.log((1 - EPS * (c - 1)) / EPS))

    def assignments(z):
        u = z @ weight.T + bias
        mean = u.sum(0) / len(u)
        variance = ((u - mean) ** 2).sum(0) / len(u)
        h = (u - mean) / torch.sqrt(variance + 1e-5) * gamma + shift
        if norm == "tanh":
            h = (torch.exp(h) - torch.exp(-h)) / (torch.exp(h) + torch.exp(-h))
        else:
            h = k["scale"] * math.sqrt(f / N) * h / torch.sqrt((h**2).sum(1, keepdim=True))
        e = torch.exp(h @ signs / tau)
        return e / e.sum(1, keepdim=True)

    def invariance(p, q):
        total = 0.0
        for i in range(len(p)):
            for j in range(c):
                total = total - p[i, j] * torch.log(q[i, j])
        return k["beta"] * BETA / len(p) * total

    def match(p):
        total = 0.0
        for j in range(c):
            mean = sum(p[i, j] for i in range(len(p))) / len(p)
            if prior == "forward":
                total = total - torch.log(mean) / c
            else:
                total = total + mean * torch.log(mean * c)
        return k["prior"] * total

    p, q = (assignments(each) for each in z)
    if not symmetric:
        return invariance(p, q), match(p)
    half = k["average"] / 2
    return half * (invariance(p, q) + invariance(q, p)), half * (match(p) + match(q))


def by_code(head, z, norm, prior, symmetric):
    leaves = [each.clone().requires_grad_() for each in z]
    scores = [head.scores(head.embed(each)) for each in leaves]
    terms = falcon_loss(*scores, beta=BETA, prior=prior, symmetric=symmetric)
    values = [terms["invariance"], terms["prior"]]
    wanted = [*leaves, head.linear.weight, head.linear.bias, head.norm.weight, head.norm.bias]
    return values, torch.autograd.grad(sum(values), wanted)


def by_derivation(head, z, norm, prior, symmetric, wrong=None):
    leaves = [each.clone().requires_grad_() for each in z]
    owned = [head.linear.weight, head.linear.bias, head.norm.weight, head.norm.bias]
    owned = [each.detach().clone().requires_grad_() for each in owned]
    values = derive(leaves, owned, dictionary(head), norm, prior, symmetric, wrong)
    return values, torch.autograd.grad(sum(values), [*leaves, *owned])


def furthest(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_value_and_gradient_equal_the_derivation(norm, prior, symmetric):
    head, z = make_head(norm), features()
    values, gradients = by_code(head, z, norm, prior, symmetric)
    expected, slopes = by_derivation(head, z, norm, prior, symmetric)
    assert furthest(values, expected) < 1e-6
    assert furthest(gradients, slopes) < 1e-6
    assert min(float(slope.abs().max()) for slope in slopes[:3]) > 1e-2  # nothing vacuous


SLIPS = [
    (switches, which, factor)
    for switches in SWITCHES
    for which in ("beta", "prior", "tau", "scale", "average")
    for factor in (0.5, 2.0)
    if (which != "scale" or switches[0] == "l2") and (which != "average" or switches[2])
]


@pytest.mark.parametrize(("switches", "which", "factor"), SLIPS)
def test_a_wrong_factor_of_two_anywhere_is_seen(switches, which, factor):
    head, z = make_head(switches[0]), features()
    values, gradients = by_code(head, z, *switches)
    expected, slopes = by_derivation(head, z, *switches, wrong={which: factor})
    assert furthest(values, expected) > 1e-3
    assert furthest(gradients, slopes) > 1e-3


@pytest.mark.parametrize("prior", ["forward", "reverse"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_prior_of_class_frequencies_equals_its_derivation(prior, symmetric):
    """CE(q, p-bar) and KL(p-bar || q) over 11 codes of 3 classes with 6, 3 and 2 images.

    By hand: a class has 11/3 codes, so codes 0-2 are the first one's, of code 3 two thirds, codes
    4-6 the second one's, with a third of code 3 and of code 7; each code has 3/11 of its class.
    """
    classes = np.array([6.0, 3.0, 2.0]) / 11
    owned = np.zeros((3, CODES))
    owned[0, :3], owned[1, 4:7], owned[2, 8:] = 1, 1, 1
    owned[0, 3], owned[1, 3], owned[1, 7], owned[2, 7] = 2 / 3, 1 / 3, 1 / 3, 2 / 3
    q = classes @ owned * 3 / 11
    assert q.sum() == pytest.approx(1)

    def derived(a, b):
        def match(x):
            p = softmax(x, 1).mean(0)
            return -q @ np.log(p) if prior == "forward" else p @ (np.log(p) - np.log(q))

        return (match(a) + match(b)) / 2 if symmetric else match(a)

    head = Falcon(Halves(), options(prior_frequencies=[6, 3, 2]), Setting(N, 100, 3))

    def ours(a, b):
        return falcon_loss(a, b, prior=prior, symmetric=symmetric, q=head.q.double())["prior"]

    a, b = np.random.default_rng(0).normal(size=(2, N, CODES)) * 2
    leaves = [torch.from_numpy(each).requires_grad_() for each in (a, b)]
    value = ours(*leaves)
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    expected = central_differences(derived, [a, b])
    assert float(value.detach()) == pytest.approx(derived(a, b), abs=1e-6)
    for slope, wanted in zip(slopes, expected, strict=True):
        found = torch.zeros(1) if slope is None else slope
        assert abs(found.numpy() - wanted).max() < 1e-6
    assert abs(expected[0]).max() > 1e-2


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_equal_frequencies_are_the_uniform_prior_and_others_reach_the_loss(norm, prior, symmetric):
    """Nothing but the prior term may change, also where classes do not divide the codes."""
    z, terms = features(), []
    for frequencies in (None, [0.25] * 4, [7, 7, 7], [100, 10, 1]):
        given = {} if frequencies is None else {"prior_frequencies": frequencies}
        method = Falcon(Halves(), options(norm, prior, symmetric, **given), Setting(N, 100, 3))
        method.double().head.load_state_dict(make_head(norm).state_dict())
        terms.append(method.losses(Encoded([*z], []), NOW))
    for same in terms[1:3]:
        assert furthest(same.values(), terms[0].values()) < 1e-5  # scores pass through float32
    assert torch.equal(terms[3]["invariance"], terms[0]["invariance"])
    assert (terms[3]["prior"] - terms[0]["prior"]).abs().item() > 0.1
    assert not [key for key in method.state_dict() if key.endswith("q")]


class Halves(nn.Module):
    """A backbone of known features: the first INPUTS numbers of an image, halved."""

    features = INPUTS

    def forward(self, x):
        return x.flatten(1)[:, :INPUTS] / 2


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_the_method_hands_views_and_options_to_the_loss(norm, prior, symmetric):
    method = Falcon(Halves(), options(norm, prior, symmetric), Setting(N, 100, 3)).double()
    method.head.load_state_dict(make_head(norm).state_dict())
    z = features()
    source, target = (
        ViewGroup(role, 2 * each.view(1, N, 1, 2, 2))
        for role, each in zip(("source", "target"), z, strict=True)
    )
    expected, _ = by_derivation(method.head, z, norm, prior, symmetric)
    for groups in ([source, target], [target, source]):  # roles decide, not the order
        terms = method.losses(method.encode(Views(groups)), NOW)
        assert list(terms) == ["invariance", "prior"]
        assert furthest(terms.values(), expected) < 1e-5  # scores pass through float32


def test_symmetry_is_invariance_under_swapping_the_views():
    a, b = torch.randn(2, N, CODES, generator=torch.Generator().manual_seed(1)).double() * 4
    for prior in ("forward", "reverse"):
        one, other = (
            [falcon_loss(*pair, prior=prior, symmetric=s) for pair in ((a, b), (b, a))]
            for s in (True, False)
        )
        assert furthest(one[0].values(), one[1].values()) < 1e-12
        assert furthest(other[0].values(), other[1].values()) > 1e-3
        assert float(one[0]["prior"]) == pytest.approx(
            (float(other[0]["prior"]) + float(other[1]["prior"])) / 2, rel=1e-12
        )
    with pytest.raises(ValueError, match="scores must be two"):
        falcon_loss(a, b[:-1])


# tau -------------------------------------------------------------------------------------------


def with_dictionary(head, signs):
    """The head with W = signs, put there the way saved weights are."""
    bits = np.packbits((signs.numpy() > 0).astype(np.uint8).ravel(), bitorder="little")
    head.load_state_dict(head.state_dict() | {"bits": torch.from_numpy(bits)})
    return head


def normalising_head(norm, f, c, n, eps):
    """A head in eval mode that only normalises: Linear is the identity, so is BatchNorm."""
    head = FalconHead(f, options(norm, codes=c, embedding=f, epsilon=eps), Setting(n, 99, 0))
    nn.init.eye_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    return head.double().eval().requires_grad_(False)


def test_an_aligned_embedding_leaves_exactly_epsilon_to_every_other_code():
    # Sylvester's Hadamard matrix: 8 codes at right angles, so all other logits are 0.
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    codes = torch.kron(torch.kron(two, two), two)
    n, eps = 5, 1e-3
    head = with_dictionary(normalising_head("l2", 8, 8, n, eps), codes)
    h = head.embed(codes.T * 3)
    torch.testing.assert_close(h, codes.T / math.sqrt(n))
    logits = head.scores(h)
    wanted = math.log((1 - 7 * eps) / eps)
    assert float((logits - wanted * torch.eye(8).double()).abs().max()) < 1e-12
    p = torch.softmax(logits, 1)
    expected = torch.full((8, 8), eps, dtype=torch.float64).fill_diagonal_(1 - 7 * eps)
    assert float((p - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(("norm", "aligned"), [("l2", 18.4), ("tanh", 147.4)])
def test_aligned_logits_of_the_two_forms(norm, aligned):
    f, c, n = 16, 16384, 64
    head = normalising_head(norm, f, c, n, 1e-8)
    code = head.signs(torch.zeros(1, dtype=torch.float64))[:, 77]
    logit = float(head.scores(head.embed(50 * code[None]))[0, 77])
    assert round(logit, 1) == aligned
    exact = math.log((1 - 1e-8 * 16383) / 1e-8) * (1 if norm == "l2" else 8)
    assert logit == pytest.approx(exact, rel=1e-12)
    assert temperature(f, n, c, 1e-8) == pytest.approx(16 / (8 * 18.42051691))


def test_the_l2_form_does_not_depend_on_n_and_the_tanh_form_keeps_its_training_n():
    (z, _), (more, _) = features(), features(rows=3, seed=9)
    for norm, ratio in (("l2", 1.0), ("tanh", 2.0)):
        small, large = make_head(norm, n=N), make_head(norm, n=4 * N)
        scores = small.scores(small.embed(z))
        torch.testing.assert_close(large.scores(large.embed(z)), ratio * scores)
        small.eval()  # 3 rows, running statistics of the batch just seen, tau of n = 5
        u = z @ small.linear.weight.T + small.linear.bias
        mean, variance = 0.1 * u.mean(0), 0.9 + 0.1 * u.var(0, correction=1)
        v = more @ small.linear.weight.T + small.linear.bias
        h = (v - mean) / (variance + 1e-5).sqrt() * small.norm.weight + small.norm.bias
        unit = h / h.norm(dim=1, keepdim=True)
        h = torch.tanh(h) if norm == "tanh" else unit * math.sqrt(WIDTH / N)
        tau = WIDTH / (math.sqrt(N) * math.log((1 - EPS * 10) / EPS))
        torch.testing.assert_close(small.scores(small.embed(more)), h @ dictionary(small) / tau)


def test_an_epsilon_that_leaves_no_mass_to_the_aligned_code_is_refused_in_one_line():
    options(codes=10, epsilon=0.099)
    for eps in (0.1, 0.5):
        with pytest.raises(ValidationError, match=r"too large for 10 codes") as caught:
            options(codes=10, epsilon=eps)
        assert "\n" not in caught.value.errors()[0]["msg"]
        with pytest.raises(ValueError, match="too large"):
            temperature(WIDTH, N, 10, eps)


# Bounds ----------------------------------------------------------------------------------------


def total(log_p, beta, prior):
    terms = falcon_loss(log_p, log_p.clone(), beta=beta, prior=prior, symmetric=True)
    return float(terms["invariance"] + terms["prior"])


def private_codes(n, c, own, eps):
    """Log-probabilities [n, c]: sample i puts mass `own` on the first of its c/n private codes and
    the rest evenly on the others of its own; every foreign code has eps."""
    per = c // n
    log_p = torch.full((n, c), math.log(eps), dtype=torch.float64)
    kept = 1 - eps * (c - per)
    for i in range(n):
        log_p[i, i * per : (i + 1) * per] = math.log(kept * (1 - own) / (per - 1))
        log_p[i, i * per] = math.log(kept * own)
    return log_p


def test_constructed_assignments_at_n_64_and_c_16384():
    n, c, eps = 64, 16384, 1e-8
    share = 1 - eps * (c - 1)
    one_hot = torch.full((n, c), math.log(eps), dtype=torch.float64)
    one_hot[torch.arange(n), 256 * torch.arange(n)] = math.log(share)
    spread = private_codes(n, c, own=n / c, eps=eps)

    # Reverse, disjoint supports (eps -> 0): ln(c/n), however the mass is spread.
    for own in (1 - 1e-12, 0.4, n / c):
        assert total(private_codes(n, c, own, 1e-300), 1.0, "reverse") == pytest.approx(
            math.log(256), abs=1e-6
        )
    assert round(math.log(256), 3) == 5.545
    # Forward, unused codes at eps.
    assert total(one_hot, 1.0, "forward") == pytest.approx(18.37, abs=5e-3)
    assert total(spread, 1.0, "forward") == pytest.approx(15.25, abs=5e-3)
    entropy = -share * math.log(share) - (c - 1) * eps * math.log(eps)
    used = (share + (n - 1) * eps) / n
    prior = -(n * math.log(used) + (c - n) * math.log(eps)) / c
    assert total(one_hot, 1.0, "forward") == pytest.approx(entropy + prior, rel=1e-12)
    assert total(one_hot, 1.563, "forward") == pytest.approx(
        total(spread, 1.563, "forward"), abs=5e-3
    )
    # Neither is a minimum: 12.82 with a share .135 of the mass off each sample's own code.
    best, less, more = (
        total(private_codes(n, c, 1 - s, eps), 1.0, "forward") for s in (0.135, 0.125, 0.145)
    )
    assert best == pytest.approx(12.82, abs=5e-3)
    assert best < min(less, more)


def test_equal_blocks_reach_the_lower_bounds_and_nothing_goes_below():
    n, c = 24, 8
    blocks = torch.full((n, c), -700.0, dtype=torch.float64)
    blocks[torch.arange(n), torch.arange(n) % c] = 0.0
    assert total(blocks, 1.0, "forward") == pytest.approx(math.log(8), abs=1e-12)
    assert total(blocks, 1.0, "reverse") == pytest.approx(0.0, abs=1e-12)
    draws = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 5.0, 50.0):
        for _ in range(20):
            pair = torch.randn(2, n, c, generator=draws, dtype=torch.float64) * scale
            for prior, bound in (("forward", math.log(8)), ("reverse", 0.0)):
                terms = falcon_loss(*pair, prior=prior, symmetric=True)
                assert float(terms["prior"]) >= bound - 1e-12
                assert float(terms["invariance"]) > 0


# Extreme numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prior", ["forward", "reverse"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_saturated_scores_and_codes_that_underflow_for_a_whole_batch(prior, symmetric, dtype):
    pair = 1e4 * torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
    pair[:, :, ::2] -= 6e4  # every second code: exp is 0 in float32 and in float64
    leaf = pair.to(dtype).requires_grad_()
    p = torch.softmax(leaf[0].detach().float(), 1).mean(0)
    assert torch.isnan(p * torch.log(len(p) * p)).any()  # the hazard is there
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        terms = falcon_loss(leaf[0].float(), leaf[1].float(), prior=prior, symmetric=symmetric)
    value = terms["invariance"] + terms["prior"]
    (slope,) = torch.autograd.grad(value, leaf)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0

    log_p = leaf.detach().double()
    log_p = log_p - log_p.amax(2, keepdim=True)
    log_p = log_p - log_p.exp().sum(2, keepdim=True).log()

    def one(a, b):
        peak = a.amax(0)
        mean = peak + ((a - peak).exp().sum(0) / len(a)).log()
        match = -mean.mean() if prior == "forward" else (mean.exp() * (mean + math.log(32))).sum()
        return -(a.exp() * b).sum() / len(a) + match

    expected = one(log_p[0], log_p[1])
    if symmetric:
        expected = (expected + one(log_p[1], log_p[0])) / 2
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_training_in_bfloat16_stays_near_float32(norm, prior, symmetric):
    n, f, c = 64, 48, 512
    o = options(norm, prior, symmetric, codes=c, embedding=f)
    torch.manual_seed(0)
    method = Falcon(Halves(), o, Setting(n, 100, 0))
    z = [torch.randn(n, INPUTS).requires_grad_() for _ in range(2)]
    results = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = method.losses(Encoded(z, []), NOW)
        assert all(value.dtype == torch.float32 for value in terms.values())
        value = sum(terms.values())
        results.append((value, torch.cat(torch.autograd.grad(value, z))))
    (exact, slope), (rounded, rough) = results
    assert torch.isfinite(rough).all()
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert float(F.cosine_similarity(slope.flatten(), rough.flatten(), dim=0)) > 0.98


# The dictionary --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 9)])
def test_packed_signs_come_back_and_have_the_declared_layout(shape):
    signs = torch.randint(2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    bits = pack(signs)
    assert bits.dtype == torch.uint8
    assert bits.tolist() == np.packbits(signs.numpy().ravel(), bitorder="little").tolist()
    assert torch.equal(unpack(bits, shape), signs)


def test_codes_are_rademacher_and_quasi_orthogonal():
    f, c = 256, 512
    head = FalconHead(4, options(codes=c, embedding=f), Setting(8, 99, 5))
    w = head.signs(torch.zeros(1, dtype=torch.float64)).numpy()
    assert set(np.unique(w)) == {-1.0, 1.0}
    assert w.shape == (f, c)
    pairs = c * (c - 1) / 2
    cosines = (w.T @ w / f)[np.triu_indices(c, 1)]
    # Mean 0 and second moment 1/f; cosines of different pairs are uncorrelated, so are squares.
    assert abs(cosines.mean()) < 5 / math.sqrt(f * pairs)
    assert abs((cosines**2).mean() * f - 1) < 5 * math.sqrt(2 / pairs)
    assert abs(w.mean()) < 5 / math.sqrt(f * c)


def test_the_saved_state_holds_bits_and_loading_it_changes_the_scores():
    f, c = 16, 24
    z = features(seed=4)[0]
    ours, theirs = (make_head(seed=s, codes=c, embedding=f) for s in (0, 1))
    state = theirs.state_dict()
    assert state["bits"].dtype == torch.uint8
    assert state["bits"].shape == (f * c // 8,)
    assert all(value.shape != (f, c) for value in state.values())
    assert not torch.equal(ours.bits, theirs.bits)
    h = theirs.embed(z).detach()
    before, wanted = ours.scores(h), theirs.scores(h)
    assert float((before - wanted).abs().max()) > 1  # both have unpacked their matrix by now
    parent = nn.ModuleDict({"head": ours})
    parent.load_state_dict({f"head.{key}": value for key, value in state.items()})
    assert torch.equal(ours.scores(h), wanted)
    assert torch.equal(ours.scores(h.float()), theirs.scores(h.float()))
    assert not any(parameter.shape == (f, c) for parameter in ours.parameters())  # W is frozen


@pytest.mark.parametrize("width", [32, 64, 128])
def test_where_views_hardly_agree_one_point_for_all_images_has_the_lower_loss(width):
    """docs/evidence.md: at n = 64, c = 4096 the way to the optimum leads past a collapse."""
    draws = torch.Generator().manual_seed(0)
    n, codes = 64, 4096
    dictionary = torch.randint(0, 2, (width, codes), generator=draws).double() * 2 - 1
    tau = temperature(width, n, codes, 1e-8)
    a, b = (torch.randn(n, width, generator=draws).double() for _ in range(2))

    def loss(one, other):
        scores = [
            F.normalize(h, dim=1) * math.sqrt(width / n) @ dictionary / tau for h in (one, other)
        ]
        return float(sum(falcon_loss(*scores, symmetric=False).values()))

    point = a[:1].expand(n, width)
    at_cosine = {c: loss(a, c * a + math.sqrt(1 - c * c) * b) for c in (0.25, 0.75)}
    assert loss(a, a) < at_cosine[0.75] < loss(point, point) < at_cosine[0.25] < loss(a, b)
