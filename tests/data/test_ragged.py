"""Batches of images that differ in size: views, the evaluated centre, and where images lie."""

import numpy as np
import pytest
import torch
from image_folders import entry, write
from test_views import by_torchvision
from torchvision.transforms.v2 import functional as F

from peregrine.config.load import read_yaml
from peregrine.config.models import SourceSpec, ViewSpec
from peregrine.data import batches, views
from peregrine.data.batches import Uniform, Varying, held
from peregrine.data.packed import Packed
from peregrine.data.prepare import load, prepare
from peregrine.data.sources import SOURCES
from peregrine.data.views import draw_parameters, make_views

CPU = torch.device("cpu")
SIZES = [(40, 60), (61, 37), (50, 50), (120, 33), (30, 200), (64, 64), (44, 45)]
MEAN, SD = [0.4, 0.5, 0.3], [0.2, 0.25, 0.3]


def pack(sizes=SIZES, seed=0):
    """(packed images, each of them as [3, h, w])."""
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (3, h, w), np.uint8) for h, w in sizes]
    flat = np.concatenate([image.transpose(1, 0, 2).ravel() for image in images])
    ends = np.cumsum([image.size for image in images])
    heights, widths = np.array(sizes).T
    return Packed(flat, ends - np.array([i.size for i in images]), heights, widths), images


def ragged(**options):
    packed, images = pack()
    rows = torch.arange(len(images))
    return Varying(packed, CPU, 32, **options).take(rows), list(map(torch.from_numpy, images))


@pytest.mark.parametrize("chunk", [1, 2**18, 2**40], ids=["one", "some", "all"])
def test_every_view_equals_torchvision(monkeypatch, chunk):
    monkeypatch.setattr(views, "CPU_CHUNK", chunk)
    batch, images = ragged()
    spec = [
        ViewSpec(size=32, blur=0.5, solarise=0.5),
        ViewSpec(size=32, count=2, crop_scale=(0.4, 1.0), blur=0.5),
        ViewSpec(role="local", size=16, count=2, crop_scale=(0.05, 0.4)),
    ]
    made = make_views(batch, spec, torch.Generator().manual_seed(5), mean=MEAN, std=SD)
    heights, widths = (x.double()[:, None, None] for x in (batch.heights, batch.widths))
    drawn = draw_parameters(spec, len(images), heights, widths, torch.Generator().manual_seed(5))
    flat = [(group, k) for group in made for k in range(len(group.images))]
    each = [s for s in spec for _ in range(s.count)]
    for number, ((group, k), one) in enumerate(zip(flat, each, strict=True)):
        for row, image in enumerate(images):
            p = {name: value[row, number] for name, value in vars(drawn).items()}
            expected = by_torchvision(image.float() / 255, one, p, MEAN, SD)
            torch.testing.assert_close(group.images[k, row], expected, atol=2e-4, rtol=0)


def test_boxes_of_an_image_are_those_of_a_batch_of_its_size():
    height, width = torch.tensor(SIZES, dtype=torch.float64).T
    spec = [ViewSpec(), ViewSpec(crop_scale=(0.9, 1.0), crop_ratio=(2.0, 3.0))]
    n = len(SIZES)
    mixed = draw_parameters(
        spec, n, height[:, None, None], width[:, None, None], torch.Generator().manual_seed(1)
    )
    for row, (h, w) in enumerate(SIZES):
        alike = draw_parameters(spec, n, h, w, torch.Generator().manual_seed(1))
        assert torch.equal(mixed.box[row], alike.box[row])


def test_images_of_one_size_give_the_same_views_packed_or_not():
    packed, images = pack([(48, 40)] * 6)
    spec = [ViewSpec(size=24, count=2, blur=0.5)]
    both = [
        make_views(
            store.take(slice(0, 6)), spec, torch.Generator().manual_seed(2), mean=MEAN, std=SD
        )
        for store in (Varying(packed, CPU, 24), Uniform(np.stack(images), CPU))
    ]
    torch.testing.assert_close(*(v.groups[0].images for v in both), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size, share", [(28, 0.875), (32, 0.5), (30, 1.0)])
def test_the_centre_is_torchvisions_resize_and_crop(size, share):
    batch, images = ragged()
    short = round(size / share)
    for ours, image in zip(batch.central(size, share), images):
        image = F.resize(image.float() / 255, [short], F.InterpolationMode.BICUBIC, antialias=True)
        expected = F.center_crop(image, [size, size]).clamp(0, 1)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_batches_ahead_are_the_images_asked_for():
    packed, images = pack(SIZES * 3)
    store = Varying(packed, CPU, 32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.split(4)
    for part, batch in zip(parts, store.batches(parts), strict=True):
        for row, index in enumerate(part.tolist()):
            assert np.array_equal(batch.image(row).numpy(), images[index])
    store.pixels = torch.from_numpy(packed.pixels)  # as where all are on the device
    taken = store.take(parts[0])
    assert taken.pixels is store.pixels
    assert np.array_equal(taken.image(3).numpy(), images[parts[0][3]])


def test_an_unfinished_epoch_reads_only_a_little_ahead(monkeypatch):
    packed, images = pack(SIZES * 30)
    store, read = Varying(packed, CPU, 32), []
    found = store._found
    monkeypatch.setattr(store, "_found", lambda rows: (read.append(rows), found(rows))[1])
    epoch = store.batches(torch.arange(len(images)).split(2))
    next(epoch)
    epoch = None
    assert 1 <= len(read) <= 2 * batches.READERS


def test_the_multi_crop_presets_are_dinos(pytestconfig):
    presets = read_yaml(pytestconfig.rootpath / "config/presets.yaml")["views"]
    crops = [ViewSpec(**each) for each in presets["multicrop"]]
    assert [(s.role, s.count, s.size) for s in crops] == [
        ("source", 1, 224), ("target", 1, 224), ("local", 8, 96)
    ]  # fmt: skip
    assert [s.crop_scale for s in crops] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert [s.blur for s in crops] == [1.0, 0.1, 0.5]
    assert [s.solarise for s in crops] == [0.0, 0.2, 0.0]
    assert [ViewSpec(**each) for each in presets["global-crops"]] == crops[:2]
    made = make_views(ragged()[0], crops, torch.Generator(), mean=MEAN, std=SD)
    shapes = [tuple(group.images.shape) for group in made]
    assert shapes == [(1, 7, 3, 224, 224)] * 2 + [(8, 7, 3, 96, 96)]


def test_a_run_trains_on_folders_and_is_evaluated(tmp_path, monkeypatch, tiny_run):
    """Loss, history and features come about, and a second time the same bytes."""
    from peregrine.evaluation.features import extract
    from peregrine.files import read_tensors
    from peregrine.pretrain.loop import pretrain

    monkeypatch.setitem(SOURCES, "imagenette", entry(short_side=24))
    raw = write(tmp_path / "raw")
    data = load(prepare("imagenette", tmp_path, SourceSpec(folder=str(raw))))
    view = {"count": 2, "size": 16, "crop_scale": [0.5, 1.0]}
    run = tiny_run(views=[view], epochs=2, batch_size=16)
    sums = []
    for number in range(2):
        outcome = pretrain(run, 0, data, tmp_path / str(number), CPU)
        assert outcome["status"] == "finished" and outcome["step"] == 2 * (50 // 16)
        sums.append(outcome["files"])
    assert sums[0] == sums[1]
    arrays, _ = read_tensors(extract(tmp_path / "0", data, CPU, 30, 10))
    assert arrays["train_features"].shape == (50, 8) and arrays["test_features"].shape == (20, 8)
    centre = held(data.images["test"], CPU, 16).whole(slice(0, 2))
    assert centre.shape == (2, 3, 16, 16)
    other, _ = read_tensors(extract(tmp_path / "0", data, CPU, 30, 10, 0.5))
    assert not np.allclose(arrays["test_features"], other["test_features"])
