"""The streamed FALCON loss against the direct one, which is held against its derivation."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from peregrine.methods.base import Encoded, Progress, Setting
from peregrine.methods.falcon import Falcon, FalconHead, Options, falcon_loss, temperature
from peregrine.methods.falcon_streamed import streamed_falcon_loss

N, WIDTH, CODES, EPS = 6, 5, 22, 1e-8
SWITCHES = list(itertools.product(["l2", "tanh"], ["forward", "reverse"], [False, True]))
CHUNKS = (1, 7, 11, CODES, 100)
NOW = Progress(seed=0, epoch=0, step=0, total_steps=1)
ANY = {"check_dtype": False}
TAU = temperature(WIDTH, N, CODES, EPS)


def draw(*shape, seed=5):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64)


SIGNS = draw(WIDTH, CODES, seed=2).sign()


def embed(raw, norm):
    if norm == "tanh":
        return torch.tanh(raw)
    return nn.functional.normalize(raw, dim=1) * math.sqrt(WIDTH / N)


def terms_and_gradients(loss, norm, weights=(0.3, 1.7), times=1.0):
    """Terms, and the gradient of a weighted sum of them in the raw embeddings of both views.

    The weights differ, so a gradient that went to the wrong term would be seen.
    """
    raw = [each.requires_grad_() for each in draw(2, N, WIDTH) * times]
    terms = loss(*(embed(each, norm) for each in raw))
    total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
    return list(terms.values()), torch.autograd.grad(total, raw)


def direct(a, b, **form):
    return falcon_loss(a @ SIGNS / TAU, b @ SIGNS / TAU, beta=0.7, **form)


def streamed(a, b, chunk, **form):
    sizes = {"codes": CODES, "tau": TAU, "chunk": chunk}
    return streamed_falcon_loss(a, b, lambda i, j: SIGNS[:, i:j], beta=0.7, **sizes, **form)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_value_and_gradient_equal_the_direct_loss(norm, prior, symmetric, chunk):
    form = {"prior": prior, "symmetric": symmetric}
    values, slopes = terms_and_gradients(lambda a, b: direct(a, b, **form), norm)
    ours, gradients = terms_and_gradients(lambda a, b: streamed(a, b, chunk, **form), norm)
    torch.testing.assert_close(ours, values, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, slopes, rtol=0, atol=1e-12)
    assert min(float(slope.abs().max()) for slope in slopes) > 1e-2


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES[:4])
def test_gradient_equals_finite_differences(norm, prior, symmetric):
    raw = [each.requires_grad_() for each in draw(2, N, WIDTH) / 2]
    form = {"prior": prior, "symmetric": symmetric}
    assert torch.autograd.gradcheck(lambda a, b: tuple(streamed(a, b, 9, **form).values()), raw)


@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_finite_and_equal_to_the_direct_loss_where_logits_saturate(norm, prior, symmetric):
    """Float32 and logits of thousands: most codes underflow for the whole batch."""
    h = [embed(each, norm).float().requires_grad_() for each in draw(2, N, WIDTH) * 50]
    twin = [each.detach().double().requires_grad_() for each in h]
    form, sizes = {"prior": prior, "symmetric": symmetric}, {"codes": CODES, "tau": TAU / 400}
    signs = SIGNS.float()
    terms = streamed_falcon_loss(*h, lambda i, j: signs[:, i:j], chunk=7, **sizes, **form)
    expected = falcon_loss(*(each @ SIGNS / (TAU / 400) for each in twin), **form)
    gradients = torch.autograd.grad(sum(terms.values()), h)
    slopes = torch.autograd.grad(sum(expected.values()), twin)
    unused = (twin[0] @ SIGNS / (TAU / 400)).log_softmax(1).exp().float().sum(0) == 0
    assert unused.sum() > 8
    torch.testing.assert_close([*terms.values()], [*expected.values()], rtol=1e-5, atol=0, **ANY)
    largest = max(float(slope.abs().max()) for slope in slopes)
    torch.testing.assert_close(gradients, slopes, rtol=0, atol=1e-3 * largest, **ANY)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize(("norm", "prior", "symmetric"), SWITCHES)
def test_a_prior_that_is_not_uniform_equals_the_direct_one(norm, prior, symmetric, chunk):
    q = draw(CODES, seed=8).softmax(0)
    form = {"prior": prior, "symmetric": symmetric, "q": q}
    values, slopes = terms_and_gradients(lambda a, b: direct(a, b, **form), norm)
    ours, gradients = terms_and_gradients(lambda a, b: streamed(a, b, chunk, **form), norm)
    torch.testing.assert_close(ours, values, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, slopes, rtol=0, atol=1e-12)


def test_no_view_may_be_missing_a_row():
    with pytest.raises(ValueError, match="embeddings must be two"):
        streamed(draw(N, WIDTH), draw(N - 1, WIDTH), 5)


class Identity(nn.Module):
    features = 4

    def forward(self, x):
        return x


def method(norm="l2", chunk=0, codes=CODES, seed=1, **form):
    options = Options(codes=codes, embedding=WIDTH, norm=norm, chunk=chunk, **form)
    return Falcon(Identity(), options, Setting(N, 100, seed)).double()


FORMS = [dict(zip(("norm", "prior", "symmetric"), each, strict=True)) for each in SWITCHES]
FORMS += [{"prior_frequencies": [3, 2, 1], "prior": prior} for prior in ("forward", "reverse")]
FORMS += [{"dictionary": "kmeans", "kmeans_memory": 30}]


@pytest.mark.parametrize("form", FORMS)
def test_the_method_trains_and_describes_alike_with_and_without_chunks(form):
    form = form | {"beta": 0.7}
    whole, chunked = method(**form), method(chunk=5, **form)
    chunked.load_state_dict(whole.state_dict())
    z = [*draw(2, N, 4)]
    found = []
    for each in (whole, chunked):
        terms = each.losses(Encoded([*z], []), NOW)
        gradients = torch.autograd.grad(sum(terms.values()), [*each.head.parameters()])
        found.append([*terms.values(), *gradients])
        assert list(terms) == ["invariance", "prior"]
    for ours, theirs in zip(*reversed(found), strict=True):
        # The direct scores pass through float32.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, **ANY)
    seen, again = (each.eval().describe(z[0]).scores for each in (whole, chunked))
    torch.testing.assert_close(again, seen, rtol=1e-12, atol=1e-12)


def test_columns_are_the_columns_of_the_saved_bits():
    head = FalconHead(4, Options(codes=CODES, embedding=WIDTH, chunk=5), Setting(N, 100, 3))
    flat = np.unpackbits(head.bits.numpy(), bitorder="little")[: WIDTH * CODES]
    signs = flat.reshape(WIDTH, CODES) * 2.0 - 1.0
    for start, stop in ((0, 5), (5, 10), (19, 22), (0, 22)):
        assert (head.columns(start, stop).numpy() == signs[:, start:stop]).all()
    assert not head._signs  # the whole dictionary is never unpacked
    head.scores(draw(3, WIDTH).float())
    assert not head._signs


def test_bfloat16_computes_both_passes_in_one_type():
    """Under autocast the forward pass casts; the backward pass, outside of it, must do the same."""
    h = [each.float().requires_grad_() for each in draw(2, N, WIDTH)]
    sizes = {"codes": CODES, "tau": TAU, "chunk": 7}
    asked = []

    def columns(start, stop):
        asked.append(SIGNS[:, start:stop].float())
        return asked[-1]

    with torch.autocast("cpu", torch.bfloat16):
        terms = streamed_falcon_loss(*h, columns, **sizes)
    gradients = torch.autograd.grad(sum(terms.values()), h)
    rounded = [each.detach().bfloat16() for each in h]
    scores = [((each @ SIGNS.bfloat16()).float() / TAU).requires_grad_() for each in rounded]
    expected = falcon_loss(*scores)
    slopes = torch.autograd.grad(sum(expected.values()), scores)
    assert len(asked) == 3 * math.ceil(CODES / 7)
    for name, value in expected.items():
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name], value)
    for gradient, slope in zip(gradients, slopes):
        wanted = slope @ SIGNS.float().T / TAU
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)
