"""What jobs ask for, against the operations of a training counted by hand."""

from pathlib import Path
from typing import get_args

import pytest

from peregrine.config.load import build_run, load
from peregrine.config.models import BackboneSpec
from peregrine.config.resources import (
    IMAGES,
    LARGE,
    NEEDS,
    needs,
    obstacle,
    processes,
    training_hours,
)
from peregrine.data.sources import DIGITS_TRAIN, SOURCES
from peregrine.data.svhn import UNPACKED

CONFIG = Path(__file__).parents[2] / "config"


def run(dataset, backbone, size, count=2, epochs=100, **more):
    views = [{"count": count, "size": size}]
    layer = {"dataset": {"name": dataset}, "backbone": backbone, "views": views, "epochs": epochs}
    return build_run([layer, {"method": {"name": "falcon"}}, more], "a test")


def test_hours_follow_images_epochs_views_and_net():
    # 4.1e9 multiplications are 8.2e9 operations forward and 24.6e9 with the way back, for each of 2
    # views of 1,281,167 images, 200 times, at 3e13 a second.
    resnet50 = run("imagenet1k", {"name": "resnet50", "stem": "imagenet"}, 224, epochs=200)
    expected = 24.6e9 * 2 * 1_281_167 * 200 / 3e13 / 3600
    assert training_hours(resnet50) == pytest.approx(expected)
    assert expected == pytest.approx(116.7, abs=0.1)
    half = run("imagenet1k", {"name": "resnet50", "stem": "imagenet"}, 112, epochs=200)
    assert training_hours(half) == pytest.approx(expected / 4)
    # At 32 px a CIFAR stem leaves 16 times the positions: 1.8e9 x 16 / 49 multiplications.
    cifar = run("cifar10", {"name": "resnet18"}, 32, epochs=1000)
    assert training_hours(cifar) == pytest.approx(6e9 * 1.8 * 16 / 49 * 2 * 73_257e3 / 1.08e17)
    narrow = run("cifar10", {"name": "resnet8", "width": 64}, 32)
    wide = run("cifar10", {"name": "resnet8", "width": 256}, 32)
    assert training_hours(wide) == pytest.approx(16 * training_hours(narrow))


def test_images_are_those_of_the_data_sets():
    assert set(IMAGES) == set(SOURCES)
    for name, source in SOURCES.items():
        if source.folders:
            assert IMAGES[name] == source.folders.counts["train"]
    assert IMAGES["digits"] == DIGITS_TRAIN
    # Bytes of colour images of 32 px, 3,072 each, and fewer of tags.
    assert IMAGES["svhn"] == UNPACKED // 3072


def test_no_limit_is_closer_than_svhns():
    def hours(dataset):
        return training_hours(run(dataset, {"name": "resnet18"}, 32))

    assert len({hours(name) for name in SOURCES if not name.startswith("imagenet1")}) == 1
    assert hours("imagenet100") == pytest.approx(hours("svhn") * 126_689 / 73_257)
    assert hours("imagenet1k") == pytest.approx(hours("svhn") * 1_281_167 / 73_257)


def test_a_slice_is_half_of_a_training_within_bounds():
    long = {"name": "resnet50", "stem": "imagenet"}
    assert needs("pretrain", run("imagenet1k", long, 224, epochs=200)).hours == 48
    assert needs("pretrain", run("imagenet1k", long, 224, epochs=50)).hours == 15  # 29.2 / 2
    small = needs("pretrain", run("digits", {"name": "resnet8"}, 16))
    assert small == (3000, 8, True) == NEEDS["pretrain"]
    assert needs("evaluate", run("cifar10", {"name": "resnet18"}, 32)) == (2000, 1, False)


def test_image_net_gets_more_of_everything():
    assert {name for name, _ in LARGE} <= set(SOURCES) and {step for _, step in LARGE} <= set(NEEDS)
    one = run("imagenet1k", {"name": "resnet50", "stem": "imagenet"}, 224)
    for step, common in NEEDS.items():
        assert needs(step, one).mem_mb > common.mem_mb and needs(step, one).hours > common.hours
    assert needs("evaluate", one).gpu  # 1.28 million features are read in blocks


def test_every_shipped_row_has_its_needs():
    project = load(CONFIG, scale="paper")
    for each in project.runs().values():
        asked = needs("pretrain", each)
        assert 8 <= asked.hours <= 48
        assert (asked.mem_mb > 3000) == each.dataset.name.startswith("imagenet")


def in_parts(steps, mode="cached"):
    return {"accumulate": {"steps": steps, "mode": mode}}


@pytest.mark.parametrize(
    ("backbone", "more", "count", "remedy"),
    [
        ({}, {}, 3, "batch_size 256"),
        ({}, in_parts(4, "plain"), 2, "mode: cached"),
        ({}, in_parts(4), 8, "multiple of 8, not 4"),
        ({"name": "resnet18"}, {}, 2, "{mode: cached, steps: N} with N a multiple of 2, not 1"),
        ({"name": "resnet50"}, in_parts(4), 8, "multiple of 8"),
        ({"name": "vit_small", "drop_path": 0.1}, {}, 4, "multiple of 4, not 1"),
    ],
)
def test_a_run_that_would_be_another_in_several_processes_is_refused(backbone, more, count, remedy):
    refused = run("cifar10", backbone, 32, **more)
    assert remedy in obstacle(refused, count)
    assert obstacle(refused, 1) is None


def test_processes_are_as_many_as_run_scale_and_gpus_allow():
    alone = run("cifar10", {"name": "resnet18"}, 32)
    parts = run("imagenet100", {"name": "resnet18"}, 224, **in_parts(4))
    plain = run("cifar10", {}, 32, batch_size=48)
    vit = run("cifar10", {"name": "vit_small"}, 32)
    assert [processes(each, 8, 0) for each in (alone, parts, plain, vit)] == [1, 4, 8, 8]
    assert [processes(each, 3, 0) for each in (alone, parts, plain, vit)] == [1, 2, 3, 2]
    assert [processes(each, 8, 2) for each in (alone, parts, plain, vit)] == [1, 2, 2, 2]


NETS = get_args(BackboneSpec.model_fields["name"].annotation)


@pytest.mark.parametrize(
    "spec", [*({"name": name} for name in NETS), {"name": "vit_small", "drop_path": 0.1}]
)
def test_planning_knows_which_nets_take_images_together(spec):
    """Without torch, from names; here the modules are looked at."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from peregrine.nets.backbones import build_backbone
    from peregrine.nets.drop_path import DropPath

    planned = run("cifar10", spec, 32)
    modules = build_backbone(planned.backbone, 3).modules()
    together = any(isinstance(module, _BatchNorm | DropPath) for module in modules)
    assert (obstacle(planned, 2) is not None) == together
