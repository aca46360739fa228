"""Methods put together from lightly's building blocks, for against_lightly.py.

Each has `loss` of two views [n, c, h, w], a scalar. `matched` replaces the one part that differs
by definition or is drawn otherwise: VARIANTS. All else is lightly's, used as in its examples.
"""

import copy

import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.models import modules as parts
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torch.nn import functional as F

from peregrine.methods.feature_augmentation import FeatureQueue

HIDDEN, EMBEDDING, QUEUE, EMA = 256, 128, 512, 0.97
SWAV_CODES, DINO_CODES = 300, 512
VARIANTS = {
    "swav": "prototypes without the bias that lightly's layer has",
    "dino": "initial weights drawn by torch's trunc_normal_",
    "nnclr": "the paper's softmax over the predictions; the queue takes view 1, starts as ours",
    "simsiam": "a last BatchNorm with trained scale and shift",
}


class Plain(nn.Module):
    """A backbone and lightly's parts; `loss` of two views. Matrix products may be in bfloat16, as
    in this repository's loop; losses, unit vectors and prototypes are float32 there too."""

    def __init__(self, backbone: nn.Module, matched: bool, precision: str, seed: int) -> None:
        super().__init__()
        self.backbone, self.matched, self.precision, self.seed = backbone, matched, precision, seed
        self.build(backbone.features)

    def through(self, x: Tensor, *modules: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            for module in modules:
                x = module(x)
        return x.float()

    def before_step(self, step: int, total: int) -> None: ...

    def after_backward(self, epoch: int) -> None: ...


class BarlowTwins(Plain):
    def build(self, f: int) -> None:
        self.head = parts.BarlowTwinsProjectionHead(f, HIDDEN, EMBEDDING)
        self.criterion = BarlowTwinsLoss(lambda_param=0.0051)

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        z = [self.through(x, self.backbone, self.head) for x in (a, b)]
        return 0.1 * self.criterion(*z)


class SwAV(Plain):
    def build(self, f: int) -> None:
        self.head = parts.SwaVProjectionHead(f, HIDDEN, EMBEDDING)
        self.prototypes = parts.SwaVPrototypes(EMBEDDING, SWAV_CODES, n_steps_frozen_prototypes=1)
        if self.matched:
            self.prototypes.heads[0].bias = None
        self.banks = nn.ModuleList([MemoryBankModule((QUEUE, EMBEDDING)) for _ in range(2)])
        self.criterion = SwaVLoss()

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        self.prototypes.normalize()
        z = [F.normalize(self.through(x, self.backbone, self.head), dim=1) for x in (a, b)]
        scores = [self.prototypes(each, epoch) for each in z]
        stored = [bank(each, update=True)[1].T for bank, each in zip(self.banks, z, strict=True)]
        queue = [self.prototypes(each, epoch) for each in stored] if epoch >= 2 else None
        return self.criterion(scores, [], queue).squeeze()


class TorchDrawnHead(parts.DINOProjectionHead):
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


class DINO(Plain):
    def build(self, f: int) -> None:
        kind = TorchDrawnHead if self.matched else parts.DINOProjectionHead
        shape = {"output_dim": DINO_CODES, "freeze_last_layer": 1}
        self.head = kind(f, HIDDEN, EMBEDDING, **shape)
        self.slow_backbone = copy.deepcopy(self.backbone)
        self.slow_head = kind(f, HIDDEN, EMBEDDING, **shape)
        self.slow_head.load_state_dict(self.head.state_dict())
        for slow in (self.slow_backbone, self.slow_head):
            deactivate_requires_grad(slow)
        self.criterion = DINOLoss(DINO_CODES, teacher_temp=0.07, warmup_teacher_temp_epochs=0)

    def before_step(self, step: int, total: int) -> None:
        momentum = cosine_schedule(step, total, EMA, 1.0)
        update_momentum(self.backbone, self.slow_backbone, momentum)
        update_momentum(self.head, self.slow_head, momentum)

    def scores(self, x: Tensor, backbone: nn.Module, head: nn.Module) -> Tensor:
        # The head's forward, with unit vectors and prototypes in float32.
        return head.last_layer(F.normalize(self.through(x, backbone, head.layers), dim=-1))

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        with torch.no_grad():
            teacher = [self.scores(x, self.slow_backbone, self.slow_head) for x in (a, b)]
        student = [self.scores(x, self.backbone, self.head) for x in (a, b)]
        return self.criterion(teacher, student)

    def after_backward(self, epoch: int) -> None:
        self.head.cancel_last_layer_gradients(epoch)


class SimCLR(Plain):
    def build(self, f: int) -> None:
        self.head = parts.SimCLRProjectionHead(f, HIDDEN, EMBEDDING)
        self.criterion = NTXentLoss(temperature=0.2)

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        return self.criterion(*(self.through(x, self.backbone, self.head) for x in (a, b)))


class NNCLR(Plain):
    def build(self, f: int) -> None:
        self.head = parts.NNCLRProjectionHead(f, HIDDEN, EMBEDDING)
        self.predictor = parts.NNCLRPredictionHead(EMBEDDING, HIDDEN, EMBEDDING)
        self.bank = parts.NNMemoryBankModule((QUEUE, EMBEDDING))
        if self.matched:
            self.bank.bank = FeatureQueue(QUEUE, EMBEDDING, self.seed).features.clone()
        self.criterion = NTXentLoss(temperature=0.2)

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        z = [self.through(x, self.backbone, self.head) for x in (a, b)]
        p = [self.through(each, self.predictor) for each in z]
        one = self.bank(z[0].detach(), update=False)
        two = self.bank(z[1].detach(), update=not self.matched)
        if self.matched:
            self.bank(z[0].detach(), update=True)
            return 0.5 * (_paper(one, p[1]) + _paper(two, p[0]))
        return 0.5 * (self.criterion(one, p[1]) + self.criterion(two, p[0]))


def _paper(near: Tensor, predicted: Tensor) -> Tensor:
    """NNCLR, Dwibedi et al. 2021, equation 3."""
    logits = F.normalize(near, dim=1) @ F.normalize(predicted, dim=1).T / 0.2
    return F.cross_entropy(logits, torch.arange(len(logits)))


class BYOL(Plain):
    def build(self, f: int) -> None:
        self.head = parts.BYOLProjectionHead(f, HIDDEN, EMBEDDING)
        self.predictor = parts.BYOLPredictionHead(EMBEDDING, HIDDEN, EMBEDDING)
        self.slow = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.head))
        deactivate_requires_grad(self.slow)
        self.criterion = NegativeCosineSimilarity()

    def before_step(self, step: int, total: int) -> None:
        momentum = cosine_schedule(step, total, EMA, 1.0)
        update_momentum(nn.Sequential(self.backbone, self.head), self.slow, momentum)

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        with torch.no_grad():
            goals = [self.through(x, *self.slow) for x in (a, b)]
        p = [self.through(x, self.backbone, self.head, self.predictor) for x in (a, b)]
        # 2 - 2 cos of the paper in both directions; lightly's examples take half the cosines' sum.
        return 4 + 2 * (self.criterion(p[0], goals[1]) + self.criterion(p[1], goals[0]))


class SimSiam(Plain):
    def build(self, f: int) -> None:
        self.head = parts.SimSiamProjectionHead(f, HIDDEN, EMBEDDING)
        if self.matched:
            self.head.layers[-1] = nn.BatchNorm1d(EMBEDDING)
        self.predictor = parts.SimSiamPredictionHead(EMBEDDING, HIDDEN, EMBEDDING)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, a: Tensor, b: Tensor, epoch: int) -> Tensor:
        z = [self.through(x, self.backbone, self.head) for x in (a, b)]
        p = [self.through(each, self.predictor) for each in z]
        goals = [each.detach() for each in z]
        return 0.5 * (self.criterion(p[0], goals[1]) + self.criterion(p[1], goals[0]))


METHODS = {
    "barlow_twins": BarlowTwins,
    "swav": SwAV,
    "dino": DINO,
    "simclr": SimCLR,
    "nnclr": NNCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
}
