"""One optimiser step from micro-batches: plain accumulation, or gradient caching.

Plain: every micro-batch has a loss of its own, and gradients are averaged; contrastive negatives
and batch means then come from the micro-batch. Cached (Gao et al., arXiv 2101.06983): backbone
features of all micro-batches are computed without a graph, heads, queues and criterion see them
as one batch, and each micro-batch goes through the backbone again to take its share of the
gradient. It equals the large batch for backbones without batch statistics; with BatchNorm every
micro-batch is normalised by itself, a ghost batch. Memory is that of one micro-batch's backbone.

Several processes cache: each encodes parts of its own, and all see the features of all parts.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from peregrine.config.models import AccumulateSpec
from peregrine.data.views import Views
from peregrine.methods.base import Encoded, Method, Progress
from peregrine.pretrain.distributed import ALONE, World

Autocast = Callable[[], AbstractContextManager]


def accumulate(
    method: Method,
    views: Views,
    now: Progress,
    spec: AccumulateSpec,
    autocast: Autocast,
    world: World = ALONE,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Add the gradient of one step to the parameters.

    Args:
        views: of the whole batch, whose n images are a multiple of spec.steps, or of this
            process's part of it.
        autocast: makes the context of a forward pass.

    Returns:
        (detached loss terms, `loss` their sum first, then what the method noted; detached online
        features [n, f], one a view).
    """
    if world.size > 1:
        parts = cut(views, max(spec.steps // world.size, 1))
        terms, online = cached(method, parts, now, autocast, world)
        world.sum_gradients(method)
    else:
        step = cached if spec.mode == "cached" and spec.steps > 1 else plain
        terms, online = step(method, cut(views, spec.steps), now, autocast)
    return terms, [features.detach() for features in online]


def cut(views: Views, parts: int) -> list[Views]:
    """The views of consecutive, equal parts of the batch."""
    pieces = [group.images.chunk(parts, dim=1) for group in views]
    rows = [None] * parts if views.rows is None else views.rows.chunk(parts)
    return [
        Views([replace(group, images=piece[i]) for group, piece in zip(views, pieces)], rows[i])
        for i in range(parts)
    ]


def plain(
    method: Method, parts: list[Views], now: Progress, autocast: Autocast
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Means over the micro-batches of loss terms and gradients."""
    terms, online = [], []
    for micro, part in enumerate(parts):
        here = replace(now, micro=micro)
        method.reseed(here)
        with autocast():
            encoded = method.encode(part)
            losses = method.losses(encoded, here)
        terms.append(_backward(losses, len(parts)) | encoded.noted)
        online.append([features.detach() for features in encoded.online])
    means = {name: sum(each[name] for each in terms) / len(parts) for name in terms[0]}
    return means, _joined(online)


def cached(
    method: Method,
    parts: list[Views],
    now: Progress,
    autocast: Autocast,
    world: World = ALONE,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Loss terms of the whole batch, its gradient brought to the backbone part by part."""
    # A single part, where other processes have the others, keeps its graph: one pass will do.
    graph = len(parts) == 1
    numbered = list(enumerate(parts, world.rank * len(parts)))
    # A context for each pass: autocast keeps the weights that it has cast, here without a graph.
    encoded = []
    with torch.set_grad_enabled(graph), autocast(), world.statistics(method):
        for micro, part in numbered:
            method.reseed(replace(now, micro=micro))
            encoded.append(method.encode(part))
    online = world.gathered(_joined([each.online for each in encoded]))
    online = [each.detach().requires_grad_() for each in online]
    target = world.gathered(_joined([each.target for each in encoded]))
    rows = [each.rows for each in encoded]
    rows = None if rows[0] is None else world.gathered([torch.cat(rows)])[0]
    whole = Encoded(online, target, rows)
    with autocast():
        losses = method.losses(whole, now)
    terms = _backward(losses) | whole.noted
    gradients = [features.grad for features in online if features.grad is not None]
    shares = [world.part(gradient).chunk(len(parts)) for gradient in gradients]
    with _statistics_kept(method):
        for index, (micro, part) in enumerate(numbered):
            again = encoded[index].online
            if not graph:
                method.reseed(replace(now, micro=micro))
                with autocast():
                    again = method.online(part)
            reached = [x for x, features in zip(again, online) if features.grad is not None]
            torch.autograd.backward(reached, [share[index] for share in shares])
    return terms, online


def _backward(losses: dict[str, Tensor], parts: int = 1) -> dict[str, Tensor]:
    """Add the gradient of the summed terms over `parts`; the terms, detached."""
    loss = torch.stack(list(losses.values())).sum()
    (loss / parts).backward()
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}


def _joined(parts: list[list[Tensor]]) -> list[Tensor]:
    """View by view, the micro-batches' features behind one another: [n, f] each."""
    return [torch.cat(views) if len(views) > 1 else views[0] for views in zip(*parts, strict=True)]


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm uses the batch's statistics inside, but its running ones stay: they have seen
    these images already."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, was in zip(norms, tracked):
            norm.track_running_stats = was
