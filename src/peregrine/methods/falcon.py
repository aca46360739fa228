"""FALCON / CPLearn: a projector onto a frozen random dictionary, and a loss that fills it evenly.

Sansone, Lebailly, Tuytelaars, arXiv 2410.04959. Features z in R^f' go through
h = norm(BN(Linear(z))) and are scored against a dictionary W in {-1, +1}^{f x c}:
p = softmax(h W / tau). The loss asks two views for the same assignment (invariance) and the batch
for a uniform one (prior). Three switches tell the published form from the released code.

Feature augmentation (arXiv 2410.12396), which neither paper has on FALCON, stands on the embedding
h' of the second view: p' is taken from the operator's vector at the length of h', the prior from
p as before. `symmetric` takes both view orders. Neighbours come from past h of the first view.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.augmentation import TargetAugmentationOptions
from peregrine.methods.base import Description, Encoded, Method, Progress, Setting
from peregrine.methods.falcon_streamed import streamed_falcon_loss
from peregrine.methods.feature_augmentation import SEARCHING, FeatureQueue, augment
from peregrine.streams import generator


class Options(TargetAugmentationOptions):
    codes: int = Field(16384, ge=2, description="c, the size of the dictionary.")
    embedding: int = Field(2048, ge=1, description="f, the width of the embedding h.")
    norm: Literal["l2", "tanh"] = Field("l2", description="Published l2, released tanh.")
    prior: Literal["forward", "reverse"] = Field(
        "forward", description="KL(q || p-bar) as published, KL(p-bar || q) as released."
    )
    symmetric: bool = Field(False, description="Average both view orders, as released.")
    beta: float = Field(1.0, gt=0, description="Weight of the invariance term.")
    prior_weight: float = Field(
        1.0, ge=0, description="Weight of the prior term; 0 is a control that must collapse."
    )
    batch_norm: bool = Field(True, description="In the projector; false is a control.")
    epsilon: float = Field(1e-8, gt=0, lt=1, description="Mass of a code that is not chosen.")
    chunk: int = Field(
        0, ge=0, description="Codes scored at a time, 8192 say, where [n, c] does not fit; 0: all."
    )

    stop_gradient: bool = Field(True, description="Detach the embedding that is augmented.")

    @model_validator(mode="after")
    def _aligned_code_is_largest(self) -> "Options":
        if self.epsilon * self.codes >= 1:
            raise ValueError(
                f"epsilon {self.epsilon} is too large for {self.codes} codes: keep it below 1/codes"
            )
        return self


def temperature(embedding: int, batch: int, codes: int, epsilon: float) -> float:
    """tau = f / (sqrt(n) log((1 - eps (c - 1)) / eps)), so that an aligned h puts eps elsewhere.

    Source: released code; the only reading consistent with the stated optimum (falcon.md, 1).

    Raises:
        ValueError: eps (c - 1) >= 1 - eps, where the aligned code would not be the largest.
    """
    rest = epsilon * (codes - 1)
    if rest >= 1 - epsilon:
        raise ValueError(f"epsilon {epsilon} is too large for {codes} codes")
    return embedding / (math.sqrt(batch) * math.log((1 - rest) / epsilon))


def falcon_loss(
    scores_a: Tensor,
    scores_b: Tensor,
    *,
    beta: float = 1.0,
    prior: Literal["forward", "reverse"] = "forward",
    symmetric: bool = True,
) -> dict[str, Tensor]:
    """Invariance and prior term of two views, in log space.

    With p = softmax(a), p' = softmax(b) over codes and p-bar the batch mean of p:
    invariance = -(beta/n) sum_i sum_j p_ij log p'_ij;
    prior = -(1/c) sum_j log p-bar_j (forward) or sum_j p-bar_j log(c p-bar_j) (reverse).
    `symmetric` averages both terms over both view orders.

    Args:
        scores_a, scores_b: h W / tau, [n, c].

    Returns:
        Scalars `invariance` and `prior`. Lower bound of the sum for n >= c: ln c (forward,
        eps -> 0), 0 (reverse).

    Source: arXiv 2410.04959, equations of the objective; falcon.md, section 1. p * log(p) taken
    directly is 0 * -inf once a code underflows for a whole batch, hence logsumexp throughout.
    """
    if scores_a.shape != scores_b.shape or scores_a.ndim != 2:
        raise ValueError(f"scores must be two [n, c], not {scores_a.shape} and {scores_b.shape}")
    log_a = F.log_softmax(scores_a, dim=1)
    log_b = F.log_softmax(scores_b, dim=1)
    if not symmetric:
        return {"invariance": beta * _cross_entropy(log_a, log_b), "prior": _prior(log_a, prior)}
    invariance = (_cross_entropy(log_a, log_b) + _cross_entropy(log_b, log_a)) / 2
    match = (_prior(log_a, prior) + _prior(log_b, prior)) / 2
    return {"invariance": beta * invariance, "prior": match}


def _cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    return -(log_p.exp() * log_q).sum(dim=1).mean()


def _prior(log_p: Tensor, kind: str) -> Tensor:
    samples, codes = log_p.shape
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(samples)
    if kind == "forward":
        return -log_mean.mean()
    return (log_mean.exp() * (log_mean + math.log(codes))).sum()


class FalconHead(nn.Module):
    """z [n, f'] -> h [n, f] -> scores h W / tau [n, c].

    The dictionary is kept as packed bits; the +-1 matrix is unpacked when first needed, or with
    the option `chunk` a few codes at a time. n in tau is the training batch, also in evaluation.
    """

    bits: Tensor

    def __init__(self, inputs: int, options: Options, setting: Setting) -> None:
        super().__init__()
        f, c, n = options.embedding, options.codes, setting.batch_size
        self.linear = nn.Linear(inputs, f)
        self.norm = nn.BatchNorm1d(f) if options.batch_norm else nn.Identity()
        self.shape = (f, c)
        self.chunk = options.chunk
        self.squash = options.norm
        self.scale = math.sqrt(f / n)
        self.tau = temperature(f, n, c, options.epsilon)
        draws = generator(setting.seed, "init/dictionary")
        signs = torch.randint(2, (f, c), generator=draws, dtype=torch.uint8)
        self.register_buffer("bits", pack(signs))
        self._signs: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    def _forget(self) -> None:
        self._signs = None

    def signs(self, like: Tensor) -> Tensor:
        """W as +-1, [f, c], of the type and on the device of `like`."""
        if self._signs is None or self._signs.device != like.device:
            self._signs = unpack(self.bits, self.shape).to(torch.float32) * 2 - 1
        return self._signs.to(like.dtype)

    def embed(self, features: Tensor) -> Tensor:
        h = self.norm(self.linear(features))
        if self.squash == "tanh":
            return torch.tanh(h)
        return F.normalize(h, dim=1) * self.scale

    def scores(self, h: Tensor) -> Tensor:
        if not self.chunk:
            return h @ self.signs(h) / self.tau
        out = h.new_empty(len(h), self.shape[1])
        for start in range(0, self.shape[1], self.chunk):
            part = out[:, start : start + self.chunk]
            part[:] = h @ self.columns(start, start + part.shape[1]).to(h.dtype) / self.tau
        return out

    def columns(self, start: int, stop: int) -> Tensor:
        """Codes start to stop of W as +-1, float32 [f, stop - start]."""
        f, c = self.shape
        rows = torch.arange(f, device=self.bits.device)[:, None] * c
        place = rows + torch.arange(start, stop, device=self.bits.device)
        signs = self.bits[place >> 3] >> (place & 7).to(torch.uint8) & 1
        return signs.to(torch.float32) * 2 - 1


def pack(signs: Tensor) -> Tensor:
    """0/1 [f, c] -> uint8 [ceil(f c / 8)], eight signs a byte."""
    flat = F.pad(signs.flatten(), (0, -signs.numel() % 8)).view(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=signs.device)
    return (flat << places).sum(1, dtype=torch.uint8)  # int64 would take 8 f c bytes


def unpack(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack`."""
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flat.flatten()[: shape[0] * shape[1]].view(shape)


class Falcon(Method):
    readings = ("corrected", "released")  # the same outputs in both

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        self.head = FalconHead(backbone.features, options, setting)
        o = options
        searched = o.operator in SEARCHING
        self.memory = FeatureQueue(o.memory, o.embedding, setting.seed) if searched else None

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        o = self.options
        first, second = map(self.head.embed, encoded.online)
        if o.operator == "none":
            return self._terms(first, second, symmetric=o.symmetric)
        if self.memory is not None:
            self.memory.collect(first)
        draws = progress.generator(first.device)
        orders = [(first, second), (second, first)] if o.symmetric else [(first, second)]
        found = [
            self._terms(online, sample, symmetric=False)
            for online, target in orders
            for sample in self._augmented(target, online, draws)
        ]
        means = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        # One batch, so one prior, for all samples.
        times = o.samples if o.reduction == "free" else 1
        return means | {"invariance": times * means["invariance"]}

    def _augmented(self, h: Tensor, other: Tensor, draws: torch.Generator) -> Tensor:
        """Samples [K, n, f] of h [n, f], at the length of h."""
        h = h.detach() if self.options.stop_gradient else h
        return augment(h, other, self.options, self.memory, draws) * h.norm(dim=1, keepdim=True)

    def _terms(self, h_a: Tensor, h_b: Tensor, symmetric: bool) -> dict[str, Tensor]:
        o, head = self.options, self.head
        form = {"beta": o.beta, "prior": o.prior, "symmetric": symmetric}
        if o.chunk:
            sizes = {"codes": o.codes, "tau": head.tau, "chunk": o.chunk}
            terms = streamed_falcon_loss(h_a, h_b, head.columns, **sizes, **form)
        else:
            terms = falcon_loss(head.scores(h_a).float(), head.scores(h_b).float(), **form)
        return terms | {"prior": o.prior_weight * terms["prior"]}

    def after_step(self, progress: Progress) -> None:
        if self.memory is not None:
            self.memory.flush()

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        h = self.head.embed(features)
        return Description(features, h, self.head.scores(h))
