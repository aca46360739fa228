"""The attack where its best is known in closed form, and the report against brute force."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from peregrine.config.models import AttackSpec, Protocol
from peregrine.evaluation.robustness import attack, augmented, corner, report, robustness
from peregrine.files import read_json
from peregrine.frozen import STEPS
from peregrine.methods.feature_augmentation import FeatureQueue
from peregrine.pretrain.loop import pretrain
from peregrine.streams import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(
    linear_c_grid=(0.1,),
    linear_validation_share=0.25,
    linear_max_iter=50,
    few_labels_per_class=3,
    few_label_draws=1,
    split_seed=0,
    knn_k=5,
    knn_temperature=0.07,
    kmeans_restarts=1,
    chance_permutations=3,
    embedding_sample=40,
)


def flat(images):
    """The encoder whose feature is the image: a linear one."""
    return images.flatten(1)


def draws(seed=0):
    return generator(seed, "test")


@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_the_attack_finds_the_corner_of_a_linear_encoder(eps):
    """x = (a, a): the farthest directions in the box are (a + e, a - e) and its mirror, whose
    cosine with x is 2 a^2 / (a sqrt(2) sqrt(2 a^2 + 2 e^2)) = a / sqrt(a^2 + e^2)."""
    a = torch.tensor([0.3, 0.5, 0.8])
    images = a[:, None, None, None].expand(3, 1, 1, 2)
    found = attack(flat, images, AttackSpec(epsilon=eps), draws())
    cosine = F.cosine_similarity(flat(found), flat(images), dim=1)
    np.testing.assert_allclose(cosine, a / (a**2 + eps**2).sqrt(), rtol=1e-6)
    np.testing.assert_allclose((found - images).abs(), eps, rtol=1e-5)
    assert (flat(found - images).sum(dim=1).abs() < 1e-6).all()  # one up, one down


def test_pixels_stay_in_range_and_in_the_ball():
    """x = (0.05, 1): the second pixel cannot rise, so one way leads to (0.15, 0.9); on the other
    the first pixel ends at 0, where the feature points along the second axis."""
    images = torch.tensor([0.05, 1.0]).view(1, 1, 1, 2).repeat(8, 1, 1, 1)
    found = flat(attack(flat, images, AttackSpec(epsilon=0.1), draws()))
    up = found[:, 0] > 0.05
    assert 0 < up.sum() < 8
    np.testing.assert_allclose(found[up], [[0.15, 0.9]] * int(up.sum()), atol=1e-6)
    assert (found[~up, 0] == 0).all()
    random = torch.rand((6, 1, 4, 4), generator=torch.manual_seed(0))
    for changed in (
        attack(flat, random, AttackSpec(epsilon=0.3, steps=3), draws()),
        corner(random, 0.3, draws()),
    ):
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float((changed - random).abs().max()) <= 0.3 + 1e-6
    inside = (random > 0.3) & (random < 0.7)
    moved = (corner(random, 0.3, draws()) - random)[inside]
    np.testing.assert_allclose(moved.abs(), 0.3, rtol=1e-5)
    assert 0 < (moved > 0).double().mean() < 1


def test_an_image_is_attacked_the_same_whatever_the_batch_it_is_in():
    images = torch.rand((4, 1, 2, 2), generator=torch.manual_seed(1))
    together = attack(flat, images, AttackSpec(), draws())
    alone = attack(flat, images[:1], AttackSpec(), draws())  # the first of the same draws
    assert torch.equal(together[:1], alone)


def test_the_report_by_hand():
    """Stored directions at 0, 90 and 180 degrees of classes 0, 1, 0; anchors at 10 and 80 degrees,
    turned to 50 and 60 by the attack, and by 5 degrees at random."""

    def at(*degrees):
        turned = torch.tensor([math.radians(d) for d in degrees])
        return 3 * torch.stack([turned.cos(), turned.sin()], dim=1)

    z = {"clean": at(10, 80), "attack": at(50, 60), "random": at(15, 85), "other": at(20, 70)}
    stored, labels = torch.tensor([0, 1, 0]), torch.tensor([0, 1])
    seen = report(z, at(0, 90, 180), stored, labels, AttackSpec())
    assert (seen["n"], seen["stored"]) == (2, 3)
    assert seen["purity_chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    for operator in ("none", "nn"):
        assert seen["clean"][operator] == {"purity": 1.0}
        attacked, random = seen["attack"][operator], seen["random"][operator]
        assert (attacked["changed"], attacked["purity"]) == (0.5, 0.5)  # 50 is nearer to 90
        assert (random["changed"], random["purity"]) == (0.0, 1.0)
    turned = [math.cos(math.radians(d)) for d in (40, 20)]
    assert seen["attack"]["none"]["cosine"] == pytest.approx(np.mean(turned), abs=1e-6)
    assert seen["random"]["none"]["cosine"] == pytest.approx(math.cos(math.radians(5)), abs=1e-6)
    assert seen["attack"]["nn"]["cosine"] == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert seen["random"]["nn"]["cosine"] == pytest.approx(1)


def test_operators_draw_the_same_before_and_after():
    queue = FeatureQueue(9, 5, seed=1)
    z, other = torch.randn((2, 6, 5), generator=torch.manual_seed(0))
    first, again = (augmented(z, other, queue, AttackSpec()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    kept = first["mask"] != 0
    assert torch.equal(kept, augmented(-2 * z, other, queue, AttackSpec())["mask"] != 0)


def test_the_file_is_bound_to_weights_and_is_the_same_bytes_again(tiny_run, tiny_data, tmp_path):
    for method in ("two_branch", "falcon"):
        folder = tmp_path / method
        run = tiny_run(method, epochs=1)
        pretrain(run, 0, tiny_data, folder, CPU)
        robustness(folder, tiny_data, CPU, "standard", PROTOCOL)
        path = folder / "corrected/robustness-standard.json"
        first, found = path.read_bytes(), read_json(path)
        assert (found["kind"], found["seed"], found["status"]) == ("robustness", 0, "finished")
        assert STEPS["robustness"] == "robustness"
        assert {"weights", "data", "step", "protocol"} == set(found["provenance"])
        assert (found["n"], found["stored"]) == (32, 96)
        assert found["attack"]["none"]["cosine"] < found["random"]["none"]["cosine"] < 1
        robustness(folder, tiny_data, CPU, "standard", PROTOCOL)
        assert path.read_bytes() == first
