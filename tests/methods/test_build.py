"""From a run to its network and back: seeds, streams, saved weights."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from peregrine.config.models import Run
from peregrine.errors import UserError
from peregrine.methods.build import build_method, load_state, split_state
from peregrine.streams import generator, stream_seed

FALCON = {"name": "falcon", "codes": 24, "embedding": 8}
BRANCHES = {
    "name": "two_branch", "placement": "parallel", "operator": "nn", "target": "ema", "queue": 10,
    "projector_hidden": 7, "embedding": 5, "predictor_hidden": 6,
}  # fmt: skip


def build(method, seed=0, **changes):
    run = Run(
        dataset={"name": "digits"},
        backbone={"width": 4},
        method=method,
        views=({"role": "source"}, {"role": "target"}),
        batch_size=6,
        **changes,
    )
    return build_method(run, seed, channels=1, train_images=100)


def images(n=6):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_equal_seeds_start_all_methods_from_equal_backbones():
    first, _ = split_state(build(FALCON))
    for other in (BRANCHES, FALCON | {"codes": 99}, {"name": "two_branch"}):
        assert equal(first, split_state(build(other))[0])
    other, _ = split_state(build(FALCON, seed=1))
    assert first.keys() == other.keys()
    assert not any(np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("method", [FALCON, BRANCHES])
def test_the_network_depends_on_the_seed_alone(method):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    backbone, rest = split_state(build(method, seed=3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(2)
    again = split_state(build(method, seed=3))
    assert equal(backbone, again[0])
    assert equal(rest, again[1])
    other = split_state(build(method, seed=4))[1]
    drawn = [key for key, value in rest.items() if np.ptp(value.astype(float)) > 0]
    assert len(drawn) >= 3  # a Linear, and a dictionary or a queue
    assert not any(np.array_equal(rest[key], other[key]) for key in drawn)


def test_streams_are_keyed_by_every_part_and_differ():
    key = hashlib.sha256(b"3/order/5/7").digest()
    assert stream_seed(3, "order", 5, 7) == int.from_bytes(key[:8], "little") >> 1
    near = [(3, "order", 5, 7), (4, "order", 5, 7), (3, "views", 5, 7), (3, "order", 6, 7),
            (3, "order", 5, 8), (3, "order", 57, 0), (35, "order", 0, 7)]  # fmt: skip
    firsts = {float(torch.rand((), generator=generator(*each))) for each in near}
    assert len(firsts) == len(near)
    for each in near:
        a, b = (torch.rand(5, generator=generator(*each)) for _ in range(2))
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", [FALCON, BRANCHES])
def test_saved_weights_come_back_exactly(method):
    ours, theirs = build(method, seed=0).eval(), build(method, seed=1).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1)  # also where both seeds start alike
        before, wanted = theirs.describe(images()), ours.describe(images())
    backbone, rest = split_state(ours)
    assert not any(key.startswith("backbone.") for key in [*backbone, *rest])
    assert len(backbone) + len(rest) == len(ours.state_dict())
    for value in [*backbone.values(), *rest.values()]:
        value.setflags(write=False)  # as memory-mapped files are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(theirs, backbone, rest)
    for key, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key
    with torch.no_grad():
        now = theirs.describe(images())
    for name in ("features", "embeddings", "scores"):
        if getattr(wanted, name) is not None:
            assert torch.equal(getattr(now, name), getattr(wanted, name))
            assert not torch.equal(getattr(now, name), getattr(before, name))
    # Loading copies: training on does not change the arrays that were loaded.
    kept = {key: value.copy() for key, value in rest.items()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1)
    assert equal(kept, rest)
    for part in (backbone, rest):
        missing = dict(part)
        missing.pop(next(iter(part)))
        with pytest.raises(RuntimeError, match="Missing key"):
            load_state(theirs, *((missing, rest) if part is backbone else (backbone, missing)))


def test_the_saved_part_of_falcon_is_small_and_that_of_the_queue_complete():
    _, rest = split_state(build(FALCON))
    assert rest["head.bits"].dtype == np.uint8
    assert rest["head.bits"].nbytes == 24 * 8 // 8
    _, rest = split_state(build(BRANCHES))
    assert rest["queue.features"].shape == (10, 5)
    assert rest["queue.position"] == 0
    assert {key.split(".")[0] for key in rest} == {"projector", "predictor", "target", "queue"}


@pytest.mark.parametrize(("method", "width", "codes"), [(FALCON, 8, 24), (BRANCHES, 5, None)])
def test_description_in_eval_mode_is_of_each_image_alone(method, width, codes):
    net = build(method).eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        whole, part = net.describe(images()), net.describe(images()[2:4])
    assert whole.features.shape == (6, 4)
    assert whole.embeddings.shape == (6, width)
    assert whole.scores is None if codes is None else whole.scores.shape == (6, codes)
    for name in ("features", "embeddings", "scores")[: 2 if codes is None else 3]:
        torch.testing.assert_close(getattr(whole, name)[2:4], getattr(part, name))
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_the_batch_of_the_run_is_the_n_of_falcon():
    # Released form: aligned logit sqrt(n) log((1 - eps (c - 1)) / eps); n is the mini-batch.
    net = build(FALCON | {"norm": "tanh", "epsilon": 1e-3}).eval()
    w = net.head.signs(torch.zeros(1, dtype=torch.float64))
    logit = float(net.head.scores(w[:, :1].T)[0, 0])
    assert logit == pytest.approx(6**0.5 * np.log((1 - 1e-3 * 23) / 1e-3), rel=1e-9)


def test_an_unknown_method_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"'simsiam' is unknown.*falcon,.* two_branch") as caught:
        build({"name": "simsiam"})
    assert "\n" not in str(caught.value)
