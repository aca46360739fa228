"""Free embeddings where codes are exactly orthogonal, and metrics of solutions made by hand."""

import math

import pytest
import torch
from torch import nn

from peregrine.methods.falcon import temperature
from peregrine.theory.free_embeddings import (
    _described,
    _distance_from_spread,
    _loss,
    aligned_start,
    embed,
    measure_embeddings,
)
from peregrine.theory.minimise import Minimum, minimise

EPS = 1e-4


def hadamard(f):
    """Sylvester: f codes of length f at right angles."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    out = torch.ones(1, 1).double()
    while len(out) < f:
        out = torch.kron(out, two)
    return out


def described(h, codes, prior="forward", eps=EPS, lowest=None):
    tau = temperature(len(codes), len(h), codes.shape[1], eps)
    found = Minimum(h, 7.0, 3, True)
    return dict(_described(h, codes, tau, prior, found, lowest or {}))


@pytest.mark.parametrize("norm", ["l2", "tanh"])
def test_the_aligned_start_stands_on_the_codes(norm):
    codes = hadamard(8)
    h = embed(aligned_start(codes, 16, norm), norm)
    torch.testing.assert_close(h, codes.T.repeat(2, 1) / 4)  # w / sqrt(n)


@pytest.mark.parametrize("norm", ["l2", "tanh"])
@pytest.mark.parametrize("prior", ["forward", "reverse"])
def test_orthogonal_codes_leave_epsilon_and_the_minimiser_goes_below(norm, prior):
    n, codes = 16, hadamard(8)
    loss = _loss(codes, temperature(8, n, 8, EPS), norm, prior)
    start = aligned_start(codes, n, norm)
    own = 1 - 7 * EPS
    entropy = -own * math.log(own) - 7 * EPS * math.log(EPS)
    bound = math.log(8) if prior == "forward" else 0.0
    assert float(loss(start)) == pytest.approx(bound + entropy, abs=1e-10)
    found = minimise(loss, start, 200, 1e-8)
    assert bound - 1e-12 <= found.loss <= bound + entropy + 1e-12


def test_metrics_of_equal_and_of_unequal_blocks():
    codes = hadamard(8)[:, :2]
    for counts, mismatch, equal in (([2, 2], 0.0, 1.0), ([3, 1], None, 0.0)):
        own = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        h = codes.T[own] / 2
        for prior in ("forward", "reverse"):
            found = described(h, codes, prior)
            bound = math.log(2) if prior == "forward" else 0.0
            assert found["excess"] == pytest.approx(7 - bound)
            if mismatch is None:
                # Shares 3/4 and 1/4: cross-entropy with, or divergence from, the uniform one.
                wanted = {
                    "forward": -(math.log(0.75) + math.log(0.25)) / 2 - math.log(2),
                    "reverse": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
                }[prior]
                assert found["block_mismatch"] == pytest.approx(wanted, rel=1e-9)
            else:
                assert found["block_mismatch"] == pytest.approx(0, abs=1e-12)
        assert [found["block_smallest"], found["block_largest"]] == [min(counts), max(counts)]
        assert found["equal_blocks"] == equal
        assert found["own_share_min"] == pytest.approx(1 - EPS, rel=1e-9)
        assert found["own_cosine_min"] == pytest.approx(1)
        assert found["within_cosine_min"] == pytest.approx(1)
        assert found["alone_share"] == (0.25 if counts == [3, 1] else 0)
        # H^T H = (1/n) sum of w w^T: an off-diagonal entry is 1 or (n1 - n2)/n.
        difference = (counts[0] - counts[1]) / 4
        off = [
            1.0 if (codes[i] == codes[j]).all() else difference
            for i in range(8)
            for j in range(8)
            if i != j
        ]
        assert found["gram_off_sd"] == pytest.approx(
            math.sqrt(sum(x * x for x in off) / len(off)), rel=1e-9
        )
        assert found["gram_diagonal_sd"] == pytest.approx(0, abs=1e-12)


def test_an_empty_code_has_no_finite_forward_mismatch():
    codes = hadamard(4)[:, :2]
    h = codes.T[torch.zeros(4, dtype=int)] / 2
    assert "block_mismatch" not in described(h, codes, "forward")
    assert described(h, codes, "reverse")["block_mismatch"] == pytest.approx(math.log(2))


def test_fewer_samples_than_codes_are_held_against_assignments():
    codes = hadamard(8)
    h = codes.T[:2] / math.sqrt(2)
    forward = described(h, codes, "forward", lowest={8: 5.5})
    assert forward["excess"] == pytest.approx(1.5)
    assert described(h, codes, "reverse")["excess"] == pytest.approx(7 - math.log(4))
    own = 1 - 7 * EPS
    entropy = -own * math.log(own) - 7 * EPS * math.log(EPS)
    assert forward["codes_per_sample"] == pytest.approx(math.exp(entropy), rel=1e-9)
    assert forward["alone_share"] == 1


def test_a_spread_over_two_orthogonal_codes_is_reached_up_to_the_mass_elsewhere():
    """h halfway between two codes has cosine 1/sqrt(2) with both and 0 with the rest."""
    n, codes = 4, hadamard(8)
    tau = temperature(8, n, 8, EPS)
    logit = math.log((1 - 7 * EPS) / EPS) / math.sqrt(2)
    elsewhere = 6 * math.exp(0) / (2 * math.exp(logit) + 6)
    reached = _distance_from_spread(codes, tau, "l2", n, 200)
    assert 0 < reached <= -math.log(1 - elsewhere) + 1e-9
    # No unit vector has a larger cosine with both, so leaning away from the rest is all that helps.
    assert reached > 0.3 * elsewhere


def test_what_is_measured(tiny):
    sizes, cosines = tiny(), []
    lines = list(measure_embeddings(sizes, {8: 0.0, 16: 0.0}, cosines))
    table = {line[:-1]: line[-1] for line in lines}
    assert len(table) == len(lines)
    runs = {line[:-2] for line in lines if line[2] != "none"}
    assert len(runs) == 2 * 2 * 4 * 2  # norms, priors, sizes, starts
    for norm, prior in (("l2", "forward"), ("tanh", "reverse")):
        aligned = table["blocks", norm, prior, 8, 4, 16, "aligned", "excess"]
        assert -1e-9 < aligned < 1e-3
        assert table["blocks", norm, prior, 8, 4, 16, "aligned", "equal_blocks"] == 1
    assert {line[:3] for line in cosines} == {
        (norm, prior, start)
        for norm in ("l2", "tanh")
        for prior in ("forward", "reverse")
        for start in ("aligned", "random-0")
    }
    assert len(cosines) == 8 * 8 * 8
    of_one = {line[3:5]: line[5] for line in cosines if line[:3] == ("l2", "forward", "aligned")}
    assert all(of_one[i, i] == pytest.approx(1) for i in range(8))
    assert of_one[0, 1] > 0.99 > of_one[1, 2]  # the samples of a code stand together


def test_the_minimiser_minimises():
    matrix = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    target = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)

    def bowl(x):
        return ((x - target).T @ matrix @ (x - target)).sum() + 4

    found = minimise(bowl, torch.zeros(2, 1), 50, 1e-9)
    torch.testing.assert_close(found.point, target, atol=1e-6, rtol=0)
    assert found.loss == pytest.approx(4, abs=1e-10)
    assert found.converged
    assert not minimise(bowl, torch.zeros(2, 1), 1, 1e-12).converged


def test_embeddings_have_the_length_of_their_norm():
    raw = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    length = embed(raw, "l2").norm(dim=1)
    torch.testing.assert_close(length, torch.full((6,), math.sqrt(5 / 6)).double())
    torch.testing.assert_close(embed(raw, "tanh"), nn.Tanh()(raw))
