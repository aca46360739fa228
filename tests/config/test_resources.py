"""What jobs ask for, against the operations of a training counted by hand."""

from pathlib import Path

import pytest

from peregrine.config.load import build_run, load
from peregrine.config.resources import LARGE, NEEDS, needs, training_hours
from peregrine.data.sources import SOURCES

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
