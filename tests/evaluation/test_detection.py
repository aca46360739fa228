"""The detector and its fine-tuning, on patches of 16 px: seconds, and everything by the step."""

from io import BytesIO

import numpy as np
import pytest
import torch
from boxes import write_patches
from PIL import Image

from peregrine.config.detection import BoxData, Chosen, Detection, Planned
from peregrine.config.models import BackboneSpec
from peregrine.errors import UserError
from peregrine.evaluation import detection
from peregrine.evaluation.average_precision import Found, Truth
from peregrine.evaluation.detection import detect, rate
from peregrine.evaluation.detector import build_detector, detections, to_train
from peregrine.evaluation.sheet import GAP, WIDTH, sheet
from peregrine.files import read_json, sha256
from peregrine.nets.backbones import build_backbone
from peregrine.pretrain.loop import pretrain

CPU = torch.device("cpu")


def spec(**more):
    given = {
        "data": "patches",
        "head": "c4",
        "short_sides": [32],
        "long_side": 64,
        "anchors": [16],
        "regions": 16,
        "proposals": 40,
        "iterations": 6,
        "batch_size": 2,
        "lr": 0.01,
        "warmup": 2,
        "clip": 10.0,
        "pictures": 2,
        "shown_score": 0.0,
    }
    return Detection(**given | more)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write_patches(folder)
    return folder


@pytest.fixture
def planned(patches):
    data = BoxData(title="t", licence="l", classes=["patch"], train=["train"], test=["test"])
    return lambda **more: Planned("p", Chosen(data=data, detection=spec(**more)), patches)


def test_the_rate_warms_up_and_falls():
    plan = spec(iterations=100, warmup=10, milestones=[0.5, 0.9])
    assert rate(0, plan) == pytest.approx(0.001)
    assert rate(5, plan) == pytest.approx(0.5005)
    assert [rate(step, plan) for step in (10, 49, 50, 89, 90, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("net", "head", "channels", "side", "features"),
    [
        # At 64 px: resnet8 halves twice; the third stage of an ImageNet ResNet is at a sixteenth.
        ({"name": "resnet8", "width": 8}, "c4", 8, 16, 8),
        ({"name": "resnet18", "stem": "imagenet"}, "c4", 256, 4, 512),
        ({"name": "resnet18"}, "c4", 256, 16, 512),
        ({"name": "resnet18", "stem": "imagenet"}, "fpn", 256, 16, 1024),
    ],
)
def test_heads_on_backbones(net, head, channels, side, features):
    anchors = [16] if head == "c4" else [8, 16, 32, 64, 128]
    plan = spec(head=head, anchors=anchors, short_sides=[64], long_side=128)
    built = build_detector(build_backbone(BackboneSpec(**net), 3), plan, 2, [0.5] * 3, [0.2] * 3)
    maps = built.backbone(torch.zeros(1, 3, 64, 64))
    assert maps["0"].shape == (1, channels, side, side)
    assert len(maps) == (1 if head == "c4" else 5)
    regions = built.roi_heads.box_head(torch.zeros(3, channels, 7, 7))
    assert regions.shape == (3, features)
    assert built.roi_heads.box_predictor(regions)[1].shape == (3, 4 * 3)
    found = detections(built, torch.rand(3, 40, 50))
    assert found["boxes"].shape[1:] == (4,) and len(found["scores"]) <= 100


def test_frozen_statistics_stay_and_weights_learn():
    net = build_backbone(BackboneSpec(name="resnet18"), 3)
    built = build_detector(net, spec(), 1, [0.5] * 3, [0.2] * 3)
    for how, trained in (("frozen", False), ("trained", True)):
        to_train(built, how)
        assert built.training and net.bn1.training is trained
        assert net.bn1.weight.requires_grad


def test_all_of_the_backbone_is_in_the_detector():
    net = build_backbone(BackboneSpec(name="resnet8", width=4), 3)
    own = {id(parameter) for parameter in net.parameters()}
    built = build_detector(net, spec(), 1, [0.5] * 3, [0.2] * 3)
    assert own <= {id(parameter) for parameter in built.parameters()}


def test_a_killed_fine_tuning_goes_on_to_the_same_weights(patches, planned, tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "CHECKPOINT", 2)
    train, _ = detection.read(patches, planned().chosen.data)

    def tuning(iterations=6):
        torch.manual_seed(0)
        net = build_backbone(BackboneSpec(name="resnet8", width=4), 3)
        built = build_detector(net, spec(), 1, [0.5] * 3, [0.2] * 3)
        return detection._Tuning(built, spec(iterations=iterations), train, 3, 3, CPU)

    whole = tuning()
    assert whole.run(tmp_path / "whole", "key") is None
    broken, step = tuning(), detection._Tuning._step

    def killed(self, number, *batch):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, *batch)

    monkeypatch.setattr(detection._Tuning, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path / "broken", "key")
    monkeypatch.setattr(detection._Tuning, "_step", step)
    again = tuning()
    again.run(tmp_path / "broken", "key")
    assert again.losses == whole.losses and len(whole.losses) == 6
    state = again.detector.state_dict()
    for name, value in whole.detector.state_dict().items():
        assert torch.equal(value, state[name]), name
    other = tuning()
    assert other._resumed(tmp_path / "broken", "other key") == 0


def test_a_flip_turns_boxes_with_the_image(patches, planned):
    train, _ = detection.read(patches, planned().chosen.data)
    net = build_backbone(BackboneSpec(name="resnet8", width=4), 3)
    built = build_detector(net, spec(), 1, [0.5] * 3, [0.2] * 3)
    tuning = detection._Tuning(built, spec(), train, 0, 3, CPU)
    turned = 0
    for step in range(6):
        for image, target in zip(*tuning._batch(step)):
            x1, y1, x2, y2 = target["boxes"][0].int().tolist()
            assert (x2 - x1, y2 - y1) == (16, 16)
            assert image[:, y1:y2, x1:x2].mean() > 0.8  # the patch, 220 of 255
            starts = [int(each.boxes[0, 0]) for each in train.examples]
            turned += x1 not in starts
    assert turned


def test_a_run_is_detected_with_and_bound_to_its_images(tiny_data, tiny_run, planned, tmp_path):
    run = tiny_run("falcon", epochs=0)
    data = tiny_data
    folder = tmp_path / "seed-0"
    pretrain(run, 0, data, folder, CPU)
    path = detect(folder, data, CPU, planned(), "standard")
    first = path.read_bytes(), path.with_suffix(".png").read_bytes()
    found = read_json(path)
    assert path.name == "detection-standard.json" and found["kind"] == "detection"
    assert found["train"]["images"] == 6 and found["test"]["objects"] == 4
    assert 0 <= found["AP"] <= found["AP50"] <= 1
    assert [each["image"] for each in found["shown"]] == ["i6", "i9"]
    assert found["picture_sha256"] == sha256(path.with_suffix(".png"))
    assert len(found["provenance"]["images"]) == 64 and "extract" not in found["provenance"]
    detect(folder, data, CPU, planned(), "standard")
    assert (path.read_bytes(), path.with_suffix(".png").read_bytes()) == first
    detect(folder, data, CPU, planned(lr=0.02), "standard")
    assert read_json(path)["provenance"]["protocol"] != found["provenance"]["protocol"]
    detect(folder, data, CPU, planned(lr=1e20, clip=None, warmup=0), "standard")
    assert "AP" not in read_json(path) and read_json(path)["diverged_at"] <= 5
    with pytest.raises(UserError, match="no detection data configured"):
        detect(folder, data, CPU, None, "standard")


def test_the_sheet_shows_objects_in_white_and_what_was_found_in_colour():
    image = np.zeros((10, WIDTH // 10, 3), np.uint8)
    truth = Truth(np.array([[2, 2, 6, 6]]), np.array([1]), np.array([False]))
    found = Found(np.array([[20, 1, 30, 9]]), np.array([2]), np.array([0.9]))
    with Image.open(BytesIO(sheet([image] * 4, [truth] * 4, [found] * 4, ["a", "b"]))) as opened:
        pixels = np.asarray(opened)
    assert pixels.shape == (2 * 100 + GAP, 3 * (WIDTH + GAP) - GAP, 3)
    assert tuple(pixels[21, 40]) == (255, 255, 255)  # inner line of the object, ten times enlarged
    assert tuple(pixels[20, 40]) == (0, 0, 0)
    assert tuple(pixels[90, 250]) == (0x56, 0xB4, 0xE9)  # lower edge of class b
    assert tuple(pixels[150, WIDTH + GAP + 100]) == (255, 255, 255)  # the empty place
