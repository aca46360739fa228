"""What a small adversarial change of an image does to its neighbour and its augmented features.

The attack is projected gradient ascent in the L-infinity ball (Madry et al. 2018, arXiv 1706.06083)
on the angle between the projected feature of the changed image and that of the clean one. It knows
no labels; they are used to measure afterwards. The control is a random corner of the same ball.
Beside the weights' own operator, all operators of feature-augmentation.md, section 2, are applied
to the same features, so that rows and operators can be compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from peregrine.config.augmentation import AugmentationOptions, Operator
from peregrine.config.models import AttackSpec, Protocol
from peregrine.data.batches import held
from peregrine.data.prepare import Prepared
from peregrine.data.views import largest_side, make_views
from peregrine.evaluation.features import load_method, load_run, trained_on
from peregrine.frozen import UNMEASURED, weight_facts, write_result
from peregrine.methods.base import by_role
from peregrine.methods.feature_augmentation import FeatureQueue, augment, cosines
from peregrine.pretrain.device import set_precision
from peregrine.streams import generator

BATCH = 512
Encoder = Callable[[Tensor], Tensor]
"""Images [n, c, h, w] in [0, 1] -> projected features [n, d]."""


def robustness(
    folder: Path, data: Prepared, device: torch.device, name: str, protocol: Protocol
) -> None:
    """Write corrected/robustness-{name}.json of a seed folder; a run of NaN has no numbers.

    Anchors are test images, neighbours are searched among training images: fixed samples of both,
    the same for every run, as evaluation sees them, in eval mode. See `report` for the numbers.
    """
    run, outcome = load_run(folder)
    trained_on(folder, run, outcome, data)
    facts = weight_facts(outcome, run.method["name"])
    result: dict = {}
    if facts["status"] not in UNMEASURED:
        set_precision(device, "float32")
        method = load_method(run, outcome, folder, data).to(device).requires_grad_(False)
        mean, sd = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (data.mean, data.sd))
        side, spec = largest_side(run.views), protocol.attack
        train, test = (
            held(data.images[split], device, side, protocol.centre_share, resident=False)
            for split in ("train", "test")
        )

        def encode(images: Tensor) -> Tensor:
            return method.describe((images - mean) / sd).embeddings

        stored = _picks(len(train), spec.stored, "robustness/stored")
        anchors = _picks(len(test), spec.anchors, "robustness/anchors")
        with torch.no_grad():
            bank = torch.cat([encode(train.whole(part)) for part in stored.split(BATCH)])
        parts: dict[str, list[Tensor]] = {"clean": [], "attack": [], "random": [], "other": []}
        draws, views = generator(0, "robustness/start"), generator(0, "robustness/views")
        for part in anchors.split(BATCH):
            clean = test.whole(part)
            drawn = make_views(test.take(part), run.views, views, mean=data.mean, std=data.sd)
            images = {
                "clean": clean,
                "attack": attack(encode, clean, spec, draws),
                "random": corner(clean, spec.epsilon, draws),
            }
            with torch.no_grad():
                for key, batch in images.items():
                    parts[key].append(encode(batch))
                parts["other"].append(method.describe(by_role(drawn)[0]).embeddings)
        labels = {split: torch.from_numpy(data.labels[split]) for split in ("train", "test")}
        classes = labels["train"][stored].to(device), labels["test"][anchors].to(device)
        result = report({key: torch.cat(each) for key, each in parts.items()}, bank, *classes, spec)
    write_result(folder, "corrected", "robustness", (name, protocol), facts, result)


def attack(encode: Encoder, images: Tensor, spec: AttackSpec, draws: torch.Generator) -> Tensor:
    """Images within epsilon of `images`, in [0, 1], whose features point elsewhere.

    Signed gradient steps of 2.5 epsilon / steps down the cosine with the clean feature, from a
    random point of the ball: at the clean image itself the gradient is 0. A feature depends on its
    own image alone, so that the images of a batch are attacked independently.
    """
    eps = spec.epsilon
    with torch.no_grad():
        clean = encode(images)
    start = 2 * torch.rand(images.shape, generator=draws).to(images) - 1
    changed = (images + eps * start).clamp(0, 1)
    for _ in range(spec.steps):
        changed.requires_grad_(True)
        similar = F.cosine_similarity(encode(changed), clean, dim=1).sum()
        (slope,) = torch.autograd.grad(similar, changed)
        with torch.no_grad():
            step = changed - 2.5 * eps / spec.steps * slope.sign()
            changed = step.clamp(images - eps, images + eps).clamp(0, 1)
    return changed.detach()


def corner(images: Tensor, epsilon: float, draws: torch.Generator) -> Tensor:
    """Every pixel moved by epsilon, up or down at random, and kept in [0, 1]."""
    sign = 2 * torch.randint(2, images.shape, generator=draws).to(images) - 1
    return (images + epsilon * sign).clamp(0, 1)


@torch.no_grad()
def report(
    z: dict[str, Tensor], bank: Tensor, stored: Tensor, labels: Tensor, spec: AttackSpec
) -> dict:
    """What the changes do, operator by operator, with the same draws before and after.

    Args:
        z: [n, d] each, features of the `clean` anchors, under `attack` and at a `random` corner,
            and of one clean view (`other`), from which extrapolate points away.
        bank: [m, d], features in which neighbours are searched; `stored` [m] their classes.
        labels: [n], classes of the anchors.

    Returns:
        {clean: {operator: {purity}}, attack and random: {operator: {cosine, changed, purity}}, ...}
        for `none` and every operator. Purity is the share of augmented features whose nearest
        stored one is of the anchor's class, `changed` the share for which it is another than
        before, cosine the mean similarity of the augmented features before and after.
    """
    queue = FeatureQueue(len(bank), bank.shape[1], 0).to(bank.device)
    queue.push(bank)
    out: dict = {
        "n": len(labels),
        "stored": len(bank),
        "purity_chance": float((labels[:, None] == stored).double().mean()),
    }
    before, at = {}, {}
    for change in ("clean", "attack", "random"):
        out[change] = {}
        for operator, target in augmented(z[change], z["other"], queue, spec).items():
            found = cosines(target, bank).argmax(dim=1)
            numbers = {"purity": float((stored[found] == labels).double().mean())}
            if change == "clean":
                before[operator], at[operator] = target, found
            else:
                similar = F.cosine_similarity(target, before[operator], dim=1)
                numbers["cosine"] = float(similar.double().mean())
                numbers["changed"] = float((found != at[operator]).double().mean())
            out[change][operator] = numbers
    return out


def augmented(z: Tensor, other: Tensor, queue: FeatureQueue, spec: AttackSpec) -> dict[str, Tensor]:
    """Operator -> one augmented feature [n, d] of each z; `none` are the features themselves."""

    given = {"mask_ratio": spec.mask_ratio, "noise_sd": spec.noise_sd, "mix_alpha": spec.mix_alpha}
    out = {"none": z}
    for operator in get_args(Operator):
        if operator != "none":
            options = AugmentationOptions(operator=operator, **given)
            draws = generator(0, f"robustness/{operator}", device=z.device)
            out[operator] = augment(z, other, options, queue, draws)[0]
    return out


def _picks(n: int, most: int, stream: str) -> Tensor:
    """A random sample of `most` of n indices, in order."""
    return torch.randperm(n, generator=generator(0, stream))[:most].sort().values
