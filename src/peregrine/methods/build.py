"""From a run to its network, and from saved weights back to it."""

from collections.abc import Mapping

import numpy as np
import torch

from peregrine.config.identity import run_id
from peregrine.config.models import Run
from peregrine.config.options import method_class, method_options
from peregrine.errors import UserError
from peregrine.methods.base import Method, Setting
from peregrine.nets.backbones import build_backbone
from peregrine.streams import seeded_init


def loss_batch(run: Run) -> int:
    """Images over which a loss is taken: the micro-batch where losses are accumulated."""
    plain = run.accumulate.mode == "plain"
    return run.batch_size // (run.accumulate.steps if plain else 1)


def build_method(run: Run, seed: int, *, channels: int, train_images: int) -> Method:
    """The untrained network of a run; equal backbones and seeds start from equal weights.

    Raises:
        UserError: the run makes another number of views, or of local ones, than the method takes.
    """
    options = {key: value for key, value in run.method.items() if key != "name"}
    setting = Setting(batch_size=loss_batch(run), train_images=train_images, seed=seed)
    with seeded_init(seed, "init/backbone"):
        backbone = build_backbone(run.backbone, channels)
    with seeded_init(seed, "init/method"):
        checked = method_options(run.method["name"])(**options)
        built = method_class(run.method["name"])(backbone, checked, setting)
    views = sum(group.count for group in run.views)
    if views != built.views:
        raise UserError(
            f"run {run_id(run)}: method {run.method['name']} takes {built.views} views,"
            f" `views` makes {views}"
        )
    local = sum(group.count for group in run.views if group.role == "local")
    wanted = getattr(checked, "local_views", 0)
    if local != wanted:
        raise UserError(
            f"run {run_id(run)}: method {run.method['name']} takes {wanted} local views,"
            f" `views` has {local} with role local; set one to the other"
        )
    return built


def split_state(method: Method) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(backbone, everything else) as arrays on the host."""
    prefix = "backbone."
    backbone, rest = {}, {}
    for key, value in method.state_dict().items():
        part, name = (backbone, key[len(prefix) :]) if key.startswith(prefix) else (rest, key)
        part[name] = value.detach().cpu().numpy()
    return backbone, rest


def load_state(
    method: Method, backbone: Mapping[str, np.ndarray], rest: Mapping[str, np.ndarray]
) -> None:
    """Put weights saved by `split_state` back; every tensor must be there and fit."""
    state = {f"backbone.{key}": value for key, value in backbone.items()} | dict(rest)
    method.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()})
