"""Combinations of values that a run refuses, in one line that names the key."""

import pytest

from peregrine.config.identity import run_id
from peregrine.config.load import build_run
from peregrine.config.models import Protocol
from peregrine.errors import UserError
from peregrine.methods.build import loss_batch

BASE = {"dataset": {"name": "digits"}, "views": [{"count": 2}], "method": {"name": "falcon"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": {"name": "resnet18", "width": 64}}, "backbone: width is no option of resnet"),
        ({"backbone": {"stem": "imagenet"}}, "backbone: stem is no option of resnet8; remove it"),
        ({"backbone": {"stem_padding": 2}}, "stem_padding is no option of resnet8"),
        (
            {"backbone": {"name": "resnet50", "stem": "imagenet", "stem_padding": 2}},
            "stem_padding is the CIFAR stem's",
        ),
        ({"batch_size": 64, "accumulate": {"steps": 3}}, "3 must cut batch_size 64 into equal"),
        ({"batch_size": 4, "accumulate": {"steps": 4}}, "parts of at least 2 images"),
        ({"accumulate": {"steps": 0}}, "accumulate.steps"),
        ({"method": {"codes": 10**400}}, "method falcon: codes: an integer of more than 64 bits"),
        ({"views": [{"size": 10**400}]}, "views.0.size: an integer of more than 64 bits"),
        ({"optimizer": {"eta": 0}}, "optimizer.eta"),
        ({"dataset": {"imbalance": 0.5}}, "dataset.imbalance: input should be greater than or eq"),
        ({"dataset": {"imbalance": "x"}}, "dataset.imbalance"),
        (
            {"method": {"dictionary": "hadamard", "embedding": 96}},
            "hadamard needs an embedding of 2, 4, 8, ..., not 96",
        ),
        ({"method": {"dictionary": "learned", "chunk": 8}}, "remove it or dictionary: learned"),
        ({"method": {"dictionary": "hybrid", "chunk": 8}}, "chunk gives no gradient to codes"),
        (
            {"method": {"dictionary": "kmeans", "codes": 64, "kmeans_memory": 63}},
            "kmeans_memory 63 is too small for 64 codes",
        ),
        (
            {"method": {"kmeans_memory": 20000}},
            "kmeans_memory is an option of dictionary: kmeans; remove it",
        ),
        (
            {"method": {"dictionary": "learned", "refit_epochs": 2}},
            "refit_epochs is an option of dictionary: kmeans",
        ),
        ({"method": {"dictionary": "hadamar"}}, "dictionary"),
        ({"method": {"prior_frequencies": [1]}}, "prior_frequencies"),
        ({"method": {"prior_frequencies": [1, 0]}}, "prior_frequencies.1: input should be greater"),
        ({"method": {"prior_frequencies": [1, 2e6]}}, "by more than a factor of a million"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(UserError, match=message) as error:
        build_run([BASE, fields], "a run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "slug"),
    [
        ({}, "digits-resnet8x128-falcon"),
        ({"width": 16}, "digits-resnet8x16-falcon"),
        ({"name": "resnet18"}, "digits-resnet18-falcon"),
        ({"name": "resnet50", "stem": "imagenet"}, "digits-resnet50-falcon"),
    ],
)
def test_only_resnet8_has_its_width_in_the_id(backbone, slug):
    assert run_id(build_run([BASE, {"backbone": backbone}], "x")).rpartition("-")[0] == slug


def test_what_of_the_protocol_features_depend_on():
    protocol = Protocol.model_construct(embedding_sample=5, view_sample=7, centre_share=0.5)
    assert protocol.of_features(sizes_differ=True) == [5, 7, 0.5]
    assert protocol.of_features(sizes_differ=False) == [5, 7]


def test_the_batch_of_a_loss():
    """64 images in 4 parts: 16 where every part has a loss of its own, 64 where all have one."""
    for accumulate, expected in (
        ({}, 64),
        ({"steps": 4}, 16),
        ({"steps": 4, "mode": "cached"}, 64),
    ):
        run = build_run([BASE, {"batch_size": 64, "accumulate": accumulate}], "x")
        assert loss_batch(run) == expected
