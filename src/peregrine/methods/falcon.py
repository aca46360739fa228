"""FALCON / CPLearn: a projector onto a frozen random dictionary, and a loss that fills it evenly.

Sansone, Lebailly, Tuytelaars, arXiv 2410.04959. Features z in R^f' go through
h = norm(BN(Linear(z))) and are scored against a dictionary W in {-1, +1}^{f x c}:
p = softmax(h W / tau). The loss asks two views for the same assignment (invariance) and the batch
for a uniform one (prior). Three switches tell the published form from the released code. Other
dictionaries, and priors that are not uniform, are ours: see peregrine.methods.dictionaries.

Feature augmentation (arXiv 2410.12396), which neither paper has on FALCON, stands on the embedding
h' of the second view: p' is taken from the operator's vector at the length of h', the prior from
p as before. `symmetric` takes both view orders. Neighbours come from past h of the first view.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.config.augmentation import TargetAugmentationOptions
from peregrine.methods.base import Description, Encoded, Method, Neighbours, Progress, Setting
from peregrine.methods.dictionaries import Dictionary, code_prior
from peregrine.methods.falcon_streamed import streamed_falcon_loss
from peregrine.methods.feature_augmentation import SEARCHING, FeatureQueue, augment


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
    dictionary: Literal["random", "hadamard", "learned", "hybrid", "kmeans"] = Field(
        "random", description="Frozen signs as published; the others are ours, see dictionaries.py."
    )
    kmeans_memory: int = Field(
        16384, ge=2, description="Recent embeddings that kmeans is fitted to."
    )
    refit_epochs: int = Field(1, ge=1, description="Epochs between two fits, kmeans only.")
    prior_frequencies: tuple[Annotated[float, Field(gt=0, le=1e15)], ...] | None = Field(
        None, min_length=2, description="Of the classes, counts or shares; none: a uniform prior."
    )
    stop_gradient: bool = Field(True, description="Detach the embedding that is augmented.")

    @model_validator(mode="after")
    def _aligned_code_is_largest(self) -> "Options":
        if self.epsilon * self.codes >= 1:
            raise ValueError(
                f"epsilon {self.epsilon} is too large for {self.codes} codes: keep it below 1/codes"
            )
        return self

    @model_validator(mode="after")
    def _dictionary_can_be_had(self) -> "Options":
        kind = self.dictionary
        if kind == "hadamard" and self.embedding & (self.embedding - 1):
            raise ValueError(f"hadamard needs an embedding of 2, 4, 8, ..., not {self.embedding}")
        if kind in ("learned", "hybrid") and self.chunk:
            raise ValueError(f"chunk gives no gradient to codes; remove it or dictionary: {kind}")
        if kind == "kmeans" and self.kmeans_memory < self.codes:
            raise ValueError(
                f"kmeans_memory {self.kmeans_memory} is too small for {self.codes} codes"
            )
        for key in ("kmeans_memory", "refit_epochs"):
            if kind != "kmeans" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is an option of dictionary: kmeans; remove it")
        if self.prior_frequencies and min(self.prior_frequencies) < 1e-6 * max(
            self.prior_frequencies
        ):
            raise ValueError("prior_frequencies must not differ by more than a factor of a million")
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
    q: Tensor | None = None,
) -> dict[str, Tensor]:
    """Invariance and prior term of two views, in log space.

    With p = softmax(a), p' = softmax(b) over codes and p-bar the batch mean of p:
    invariance = -(beta/n) sum_i sum_j p_ij log p'_ij;
    prior = -sum_j q_j log p-bar_j (forward) or sum_j p-bar_j log(p-bar_j / q_j) (reverse).
    `symmetric` averages both terms over both view orders.

    Args:
        scores_a, scores_b: h W / tau, [n, c].
        q: prior of the codes, [c], positive and of sum 1; uniform by default.

    Returns:
        Scalars `invariance` and `prior`. Lower bound of the sum for n >= c: the entropy of q, ln c
        if uniform (forward, eps -> 0), 0 (reverse).

    Source: arXiv 2410.04959, equations of the objective; falcon.md, section 1. p * log(p) taken
    directly is 0 * -inf once a code underflows for a whole batch, hence logsumexp throughout.
    """
    if scores_a.shape != scores_b.shape or scores_a.ndim != 2:
        raise ValueError(f"scores must be two [n, c], not {scores_a.shape} and {scores_b.shape}")
    log_a = F.log_softmax(scores_a, dim=1)
    log_b = F.log_softmax(scores_b, dim=1)
    if not symmetric:
        return {"invariance": beta * _cross_entropy(log_a, log_b), "prior": _prior(log_a, prior, q)}
    invariance = (_cross_entropy(log_a, log_b) + _cross_entropy(log_b, log_a)) / 2
    match = (_prior(log_a, prior, q) + _prior(log_b, prior, q)) / 2
    return {"invariance": beta * invariance, "prior": match}


def _cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    return -(log_p.exp() * log_q).sum(dim=1).mean()


def _prior(log_p: Tensor, kind: str, q: Tensor | None) -> Tensor:
    samples, codes = log_p.shape
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(samples)
    if kind == "forward":
        return -log_mean.mean() if q is None else -(q * log_mean).sum()
    return (log_mean.exp() * (log_mean + (math.log(codes) if q is None else -q.log()))).sum()


class FalconHead(Dictionary):
    """z [n, f'] -> h [n, f] -> scores h W / tau [n, c].

    The frozen part of W is unpacked when first needed, or with the option `chunk` a few codes at a
    time. n in tau is the training batch, also in evaluation.
    """

    def __init__(self, inputs: int, options: Options, setting: Setting) -> None:
        f, c, n = options.embedding, options.codes, setting.batch_size
        of_kmeans = options.kmeans_memory, options.refit_epochs
        super().__init__(options.dictionary, (f, c), setting.seed, *of_kmeans)
        self.linear = nn.Linear(inputs, f)
        self.norm = nn.BatchNorm1d(f) if options.batch_norm else nn.Identity()
        self.chunk = options.chunk
        self.squash = options.norm
        self.scale = math.sqrt(f / n)
        self.tau = temperature(f, n, c, options.epsilon)

    def embed(self, features: Tensor) -> Tensor:
        h = self.norm(self.linear(features))
        if self.squash == "tanh":
            return torch.tanh(h)
        return F.normalize(h, dim=1) * self.scale

    def scores(self, h: Tensor) -> Tensor:
        if not self.chunk:
            return h @ self.matrix(h) / self.tau
        out = h.new_empty(len(h), self.shape[1])
        for start in range(0, self.shape[1], self.chunk):
            part = out[:, start : start + self.chunk]
            part[:] = h @ self.columns(start, start + part.shape[1]).to(h.dtype) / self.tau
        return out


class Falcon(Method):
    readings = ("corrected", "released")  # the same outputs in both

    def __init__(self, backbone: nn.Module, options: Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        self.head = FalconHead(backbone.features, options, setting)
        o = options
        searched = o.operator in SEARCHING
        self.memory = FeatureQueue(o.memory, o.embedding, setting.seed) if searched else None
        given = options.prior_frequencies
        q = code_prior(given, options.codes) if given else None
        self.register_buffer("q", q, persistent=False)  # follows from the options

    def losses(self, encoded: Encoded, progress: Progress) -> dict[str, Tensor]:
        o = self.options
        first, second = map(self.head.embed, encoded.online)
        self.head.remember([first, second])
        if o.operator == "none":
            return self._terms(first, second, symmetric=o.symmetric)
        if self.memory is not None:
            self.memory.collect(first, encoded.rows)
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
        form = {"beta": o.beta, "prior": o.prior, "symmetric": symmetric, "q": self.q}
        if o.chunk:
            sizes = {"codes": o.codes, "tau": head.tau, "chunk": o.chunk}
            terms = streamed_falcon_loss(h_a, h_b, head.columns, **sizes, **form)
        else:
            terms = falcon_loss(head.scores(h_a).float(), head.scores(h_b).float(), **form)
        return terms | {"prior": o.prior_weight * terms["prior"]}

    def neighbours(self) -> Neighbours | None:
        return self.memory.older() if self.memory is not None else None

    def after_step(self, progress: Progress) -> None:
        self.head.after_step(progress)
        if self.memory is not None:
            self.memory.flush()

    def describe(self, images: Tensor, reading: str = "corrected") -> Description:
        features = self.backbone(images)
        h = self.head.embed(features)
        return Description(features, h, self.head.scores(h))
