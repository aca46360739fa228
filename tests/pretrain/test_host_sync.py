"""A step never makes the host wait for the device: no value is read, no size asked of it."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peregrine.config.models import ViewSpec
from peregrine.data import views as views_module
from peregrine.data.views import make_views
from peregrine.methods.registry import METHODS
from peregrine.pretrain import trainer as module
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.trainer import Trainer

CPU = torch.device("cpu")
WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select",
    "bincount", "unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "histc",
}  # fmt: skip
"""Operations of ATen that read a CUDA tensor's values on the host before they return."""
SMALL = {"projector_hidden": 16, "embedding": 8}
SETTINGS = {
    "barlow_twins": [SMALL],
    "vicreg": [SMALL],
    "self_classifier": [SMALL | {"codes": 12}],
    "gedi": [{"codes": 12, "embedding": 8}],
    "dino": [SMALL | {"codes": 12}],
    "swav": [
        SMALL | {"codes": 12, "queue": 48, "queue_epoch": 0, "frozen_epochs": 0},
        SMALL | {"codes": 12, "queue": 24, "operator": "nn", "memory": 50},
    ],
    "falcon": [
        {"codes": 64, "embedding": 8, "symmetric": True, "norm": "tanh"},
        {"codes": 64, "embedding": 8, "operator": "nn", "samples": 2, "memory": 50},
        {"codes": 64, "embedding": 8, "chunk": 30},
        {"codes": 64, "embedding": 8, "dictionary": "hybrid"},
        {"codes": 64, "embedding": 8, "dictionary": "kmeans", "kmeans_memory": 64},
    ],
    "two_branch": [
        SMALL
        | {"predictor_hidden": 16, "queue": 50, "placement": "parallel", "target": "ema"}
        | {"operator": operator}
        for operator in ("nn", "mask", "noise", "mix", "interpolate", "extrapolate")
    ]
    + [
        SMALL | {"criterion": "infonce_queue", "queue": 50, "target": "ema"},
        SMALL | {"criterion": "nt_xent"},
    ],
}
"""Options of every registered method, with all that a step can do of its own."""
CASES = [({"name": name} | options) for name in METHODS for options in SETTINGS[name]]


class Guard(TorchDispatchMode):
    """Notes the operations of WAITS, but on the host's own tensors (see `at_home`)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.host = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            each is not None and each.dtype == torch.bool
            for each in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if not self.host and (name in WAITS or masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    def at_home(self, function):
        """`function`, whose tensors are on the host also where training is on a GPU."""

        def call(*args, **kwargs):
            self.host = True
            try:
                return function(*args, **kwargs)
            finally:
                self.host = False

        return call


def test_every_registered_method_is_looked_at():
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("planted", [lambda x: x.sum().item(), lambda x: x[x > 0], torch.nonzero])
def test_the_guard_sees_what_waits(planted):
    with Guard() as guard:
        planted(torch.ones(3))
    assert guard.found


@pytest.mark.parametrize("method", CASES, ids=lambda m: "-".join(map(str, list(m.values())[:4])))
@pytest.mark.parametrize("mode", ["plain", "cached"])
def test_no_step_of_any_method_waits(method, mode, tiny_run, tiny_data, monkeypatch):
    """Steps 1 to 3: the first allocates; the epoch's end may wait. Views have a test of their own.

    Like on CUDA the probe's Adam is fused: on the host it keeps its count of steps elsewhere.
    """
    accumulate = {"steps": 2, "mode": mode} if mode == "cached" else {}
    run = tiny_run(
        method=method, accumulate=accumulate, optimizer={"name": "adamw", "clip_norm": 0.3}
    )
    trainer = Trainer(run, 0, tiny_data, CPU)
    trainer.probe_optimizer = torch.optim.Adam(trainer.probe.parameters(), lr=0.1, fused=True)
    guard, sums = Guard(), {}
    monkeypatch.setattr(module, "make_views", guard.at_home(make_views))
    steps = trainer.epoch(Position("", 0, "", {}), sums)
    next(steps)
    for _ in range(3):
        with guard:
            next(steps)
    assert guard.found == []
    assert sums["loss"].isfinite()


def test_views_send_and_never_fetch(monkeypatch):
    """Images on the meta device have no values: whatever asked for one would fail."""
    monkeypatch.setattr(views_module.torch, "autocast", lambda *_, **__: nullcontext())
    full = {"blur": 0.5, "solarise": 0.5, "jitter": 0.8, "grey": 0.2, "randaugment": 2}
    spec = [ViewSpec(size=16, count=2, **full), ViewSpec(size=8, role="local", blur=0.5)]
    images = torch.zeros(12, 3, 16, 16, dtype=torch.uint8, device="meta")
    draws = torch.Generator().manual_seed(0)
    made = make_views(images, spec, draws, mean=[0.5] * 3, std=[0.25] * 3)
    assert [tuple(group.images.shape) for group in made] == [(2, 12, 3, 16, 16), (1, 12, 3, 8, 8)]
    assert all(group.images.device.type == "meta" for group in made)
