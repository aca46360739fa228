"""Views against torchvision: every piece with the same parameters, every draw in distribution."""

import math

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from peregrine.config.load import read_yaml
from peregrine.config.models import ViewSpec
from peregrine.data import views as module
from peregrine.data.colour import blends_before_hue, jitter_colours_
from peregrine.data.views import ORDERS, draw_parameters, make_views

ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0}
PLAIN = ViewSpec(**STILL, grey=0.0, size=16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uint8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng(seed))


def make(images, *spec, seed=0):
    c = images.shape[1]
    return make_views(images, spec, rng(seed), mean=[0.0] * c, std=[1.0] * c)


def crop(image, box, flip, size):
    bicubic = InterpolationMode.BICUBIC
    image = F.resized_crop(image, *box, size, interpolation=bicubic, antialias=True)
    return F.horizontal_flip(image) if flip else image


def jittered(images, chosen, order, factors, active):
    """Images in the order in which they came, whatever jitter_colours_ asks for."""
    rank = blends_before_hue(chosen, order, active, images.shape[1]).argsort(descending=True)
    moved = images[rank]
    jitter_colours_(moved, chosen[rank], order[rank], factors[rank], active)
    return moved[rank.argsort()]


def colourful(n: int) -> torch.Tensor:
    """Images of [0, 1] in which grey, black, white and pixels with tied channels abound."""
    coarse = torch.randint(0, 4, (n, 3, 9, 11), generator=rng(1)) / 3
    fine = torch.rand(n, 3, 9, 11, generator=rng(2))
    return torch.where(torch.rand(n, 1, 9, 11, generator=rng(3)) < 0.5, coarse, fine)


# The pieces


@pytest.mark.parametrize("height, width", [(32, 32), (20, 45), (50, 7)])
@pytest.mark.parametrize("size", [(32, 32), (9, 5), (61, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_equal_torchvision(height, width, size, channels):
    images = torch.randint(0, 2, (30, channels, height, width), generator=rng()).float()
    u = torch.rand(60, 4, generator=rng(1))  # two boxes an image
    boxes = torch.empty(60, 4, dtype=torch.long)
    extent = torch.tensor([height, width])
    boxes[:, 2:] = 1 + (u[:, 2:] * extent).long()
    boxes[:8, 2:] = torch.tensor([[1, 1], [1, width], [height, 1], [height, width]] * 2)
    boxes[:, :2] = (u[:, :2] * (extent - boxes[:, 2:] + 1)).long()
    flip = torch.rand(60, generator=rng(2)) < 0.5
    got = module.resized_crop(images.repeat_interleave(2, 0), boxes, flip, size)
    expected = [crop(images[k // 2], box.tolist(), flip[k], size) for k, box in enumerate(boxes)]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=0)
    assert got.min() < -0.05  # overshoot is kept, as torchvision keeps it


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_colour_operation_equals_torchvision(operation, channels):
    images = colourful(40)[:, :channels]
    if operation != HUE:
        images = images * 1.4 - 0.2  # as a bicubic crop leaves them
    factors = torch.rand(40, 4, generator=rng(4)) * 1.8
    factors[:, HUE] = factors[:, HUE] / 1.8 - 0.5
    factors[:2, HUE] = torch.tensor([-0.5, 0.5])
    factors[0, :HUE] = 0
    chosen = torch.arange(40) % 5 != 3
    order = torch.arange(40) % 24
    got = jittered(images, chosen, order, factors, (operation,))
    adjusted = [ADJUST[operation](i, f[operation].item()) for i, f in zip(images, factors)]
    expected = torch.where(chosen[:, None, None, None], torch.stack(adjusted), images)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    if channels == 1 and operation in (SATURATION, HUE):
        assert torch.equal(got, images)
    else:
        assert (got - images)[chosen].abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize(
    "active", [(0, 1, 2, 3), (BRIGHTNESS, CONTRAST, SATURATION), (CONTRAST, HUE), (HUE,)]
)
def test_jitter_follows_the_order_of_each_image(active):
    images = colourful(1).expand(48, -1, -1, -1).contiguous()
    factors = torch.tensor([[1.5, 0.4, 1.7, 0.3]]).expand(48, 4)
    order = torch.arange(48) % 24
    got = jittered(images, torch.ones(48, dtype=torch.bool), order, factors, active)
    for image, o, result in zip(images, order.tolist(), got):
        for operation in ORDERS[o]:
            if operation in active:
                image = ADJUST[operation](image, factors[0, operation].item())
        torch.testing.assert_close(result, image, atol=1e-5, rtol=0)
    distinct = {round(x, 4) for x in got.double().pow(2).sum((1, 2, 3)).tolist()}
    assert len(distinct) == math.factorial(len(active))  # no two orders look the same


def test_hue_first_survives_the_overshoot_of_a_crop():
    image = torch.tensor([0.0, 0.0, -0.1]).view(1, 3, 1, 1)
    assert F.adjust_hue(image, 0.1).isnan().any()  # why the module clamps
    everyone, order = torch.ones(1, dtype=torch.bool), torch.tensor([ORDERS.index((3, 0, 1, 2))])
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.1]])
    assert torch.equal(jittered(image, everyone, order, factors, (0, 1, 2, 3)), image * 0)


@pytest.mark.parametrize("height, width", [(16, 16), (9, 21)])
@pytest.mark.parametrize("kernel_size", [3, 5, 17])
def test_blur_equals_torchvision(height, width, kernel_size):
    images = torch.rand(12, 3, height, width, generator=rng())
    sigma = torch.linspace(0.1, 4, 12)
    got = module.gaussian_blur(images, sigma, kernel_size)
    expected = [F.gaussian_blur(i, kernel_size, s.item()) for i, s in zip(images, sigma)]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)


def test_blur_kernel_is_simclrs_and_must_fit():
    assert [module.blur_kernel_size(size) for size in (224, 96, 32, 16, 8)] == [23, 11, 5, 3, 3]
    for kernel_size in (4, 19):
        with pytest.raises(ValueError, match=f"blur of {kernel_size} taps does not fit"):
            module.gaussian_blur(torch.rand(1, 1, 9, 12), torch.ones(1), kernel_size)


def test_grey_and_solarise_equal_torchvision():
    images = colourful(20) * 1.4 - 0.2
    grey = module.to_grey(images)
    torch.testing.assert_close(grey, F.rgb_to_grayscale(images), atol=1e-6, rtol=0)
    assert torch.equal(module.to_grey(grey), grey)
    images[0, 0, 0, 0] = 0.25  # the threshold itself is inverted
    for threshold in (0.0, 0.25, 0.5):
        expected = F.solarize(images, threshold)
        torch.testing.assert_close(module.solarise(images, threshold), expected, atol=1e-6, rtol=0)


# The whole


def by_torchvision(image, spec, p, mean, std):
    """One view of one float image by torchvision, with parameters drawn by the module."""
    image = crop(image, p["box"].tolist(), p["flip"], (spec.size, spec.size))
    if p["jitter"]:
        strengths = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
        for operation in ORDERS[p["order"]]:
            if strengths[operation]:
                image = image.clamp(0, 1) if operation == HUE and len(image) == 3 else image
                image = ADJUST[operation](image, p["factors"][operation].item())
    if p["grey"]:
        image = F.rgb_to_grayscale(image, len(image))
    if p["blur"]:
        image = F.gaussian_blur(image, module.blur_kernel_size(spec.size), p["sigma"].item())
    if p["solarise"]:
        image = F.solarize(image, spec.solarise_threshold)
    return F.normalize(image, mean, std)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_equal_torchvisions_chain(channels, monkeypatch):
    monkeypatch.setattr(module, "CPU_CHUNK", 20_000)  # several chunks, of uneven sizes
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5}
    spec = [
        ViewSpec(role="source", size=20, solarise=0.5),
        ViewSpec(role="local", size=10, count=2, **strong, crop_scale=(0.05, 0.3), flip=0.0),
        ViewSpec(role="target", size=20, grey=0.5, solarise=0.3),
        ViewSpec(role="target", size=20, solarise=0.5, solarise_threshold=0.3),
        ViewSpec(role="source", size=20, brightness=0.0, hue=0.0),
    ]
    images = uint8(13, channels, 24, 30)
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.3][:channels]
    made = make_views(images, spec, rng(5), mean=mean, std=std)
    parameters = draw_parameters(spec, 13, 24, 30, rng(5))
    assert [g.role for g in made] == ["source", "local", "target", "target", "source"]
    assert [tuple(g.images.shape[:2]) for g in made] == [(s.count, 13) for s in spec]
    assert [g.images.shape[-1] for g in made.by_role("target")] == [20, 20]
    assert made.by_role("nobody") == []
    every = [(s, view) for s, group in zip(spec, made) for view in group.images]
    for number, (s, view) in enumerate(every):
        for n, image in enumerate(images.float() / 255):
            p = {name: value[n, number] for name, value in vars(parameters).items()}
            expected = by_torchvision(image, s, p, mean, std)
            torch.testing.assert_close(view[n], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_0_and_1_and_normalisation(channels):
    images = uint8(6, channels, 16, 16)
    mean, std = [0.1, 0.2, 0.3][:channels], [0.5, 0.25, 2.0][:channels]
    expected = F.normalize(images / 255, mean, std)
    got = make_views(images, [PLAIN], rng(), mean=mean, std=std).groups[0].images
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=0)
    always = ViewSpec(**STILL | {"flip": 1.0}, grey=1.0, solarise=1.0, size=16)
    grey = (images / 255).flip(3)
    if channels == 3:
        grey = F.rgb_to_grayscale(grey, 3)
    expected = F.normalize(torch.where(grey >= 0.5, 1 - grey, grey), mean, std)
    got = make_views(images, [always], rng(), mean=mean, std=std).groups[0].images
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=0)


def test_chunks_and_autocast_change_nothing(monkeypatch):
    spec = [ViewSpec(count=2, blur=0.5, solarise=0.2), ViewSpec(size=16, role="local")]
    images = uint8(11, 3, 32, 32)
    whole = make(images, *spec)
    monkeypatch.setattr(module, "CPU_CHUNK", 1)
    with torch.autocast("cpu", torch.bfloat16):
        pieces = make(images, *spec)
    for a, b in zip(whole, pieces):
        assert b.images.dtype == torch.float32
        torch.testing.assert_close(a.images, b.images, atol=1e-5, rtol=0)


def test_the_device_is_never_asked_for_a_value():
    """A meta tensor has none: this fails where a GPU would be waited for or a host tensor used."""
    spec = [ViewSpec(count=2, blur=0.5, solarise=0.2)]
    parameters = draw_parameters(spec, 9, 20, 24, rng()).of([0, 1])
    parameters = parameters[parameters.order.argsort()]
    for channels in (1, 3):
        images = uint8(18, channels, 20, 24).to("meta")
        made = module._transform(images, parameters, 16, (0, 1, 2, 3), 0.5)
        assert made.shape == (18, channels, 16, 16) and made.device.type == "meta"


def test_same_generator_same_bits_whatever_the_global_state():
    images, spec = uint8(9, 3, 32, 32), [ViewSpec(blur=0.5), ViewSpec(randaugment=2, count=2)]
    torch.manual_seed(1)
    first = make(images, *spec, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = make(images, *spec, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second))
    other = make(images, *spec, seed=8)
    assert not torch.equal(first.groups[0].images, other.groups[0].images)
    assert not torch.equal(first.groups[1].images[0], first.groups[1].images[1])


def test_a_part_of_a_batch_has_the_views_that_it_has_in_the_whole():
    images = uint8(12, 3, 24, 20)
    spec = [ViewSpec(count=2, blur=0.5, size=16), ViewSpec(size=8, randaugment=2)]
    whole = make(images, *spec)
    for index in range(3):
        rows, mean, std = slice(4 * index, 4 * index + 4), [0.0] * 3, [1.0] * 3
        part = make_views(images[rows], spec, rng(), mean=mean, std=std, part=(index, 3))
        for a, b in zip(part, whole, strict=True):
            torch.testing.assert_close(a.images, b.images[:, rows], atol=1e-5, rtol=0)


def test_draws_do_not_depend_on_data_or_probabilities():
    shapes = [(5, 3, 32, 32), (5, 1, 10, 90)]
    specs = [ViewSpec(), ViewSpec(**STILL, grey=0.0, blur=1.0, size=8, hue=0.0)]
    states = []
    for shape in shapes:
        for spec in specs:
            generator, c = rng(3), shape[1]
            make_views(uint8(*shape), [spec] * 2, generator, mean=[0.0] * c, std=[1.0] * c)
            states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    expected = rng(3)
    torch.rand(5, 2, module.DRAWS, generator=expected, dtype=torch.float64)
    assert torch.equal(states[0], expected.get_state())


# The distributions


def test_boxes_follow_torchvisions_arithmetic():
    """RandomResizedCrop.make_params in plain Python, fed with the same uniform numbers."""
    height, width, scale, ratio = 17, 40, (0.1, 0.9), (0.5, 3.0)
    u = torch.rand(500, 1, 2 * module.ATTEMPTS + 2, generator=rng(), dtype=torch.float64)
    low, high = torch.tensor([scale, ratio], dtype=torch.float64).T[:, None]
    boxes = module.crop_boxes(u, height, width, low, high)[:, 0].tolist()
    later = 0
    for box, numbers in zip(boxes, u[:, 0].tolist()):
        for attempt in range(module.ATTEMPTS):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
            aspect = ratio[0] * (ratio[1] / ratio[0]) ** numbers[module.ATTEMPTS + attempt]
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                break
        later += attempt > 0
        top, left = int(numbers[-2] * (height - h + 1)), int(numbers[-1] * (width - w + 1))
        assert box == [top, left, h, w]
    assert later > 50


@pytest.mark.parametrize("height, width", [(64, 64), (61, 97), (120, 40)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(32, scale=(0.08, 1.0))
    image, n = [torch.empty(1, height, width)], 4000
    drawn = [tuple(transform.make_params(image).values()) for _ in range(n)]
    theirs = torch.tensor(drawn, dtype=torch.float64)
    ours = draw_parameters([ViewSpec()], n, height, width, rng()).box[:, 0].double()
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()
    for statistic in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] + b[:, 2],
        lambda b: b[:, 1] + b[:, 3],
    ):
        a, b = statistic(ours).numpy(), statistic(theirs).numpy()
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    moments = [torch.cat([b, b.log1p()], 1).T.corrcoef() for b in (ours, theirs)]
    torch.testing.assert_close(*moments, atol=6 * math.sqrt(2 / n), rtol=0)


@pytest.mark.parametrize("height, width", [(10, 200), (200, 10), (30, 31)])
def test_box_that_never_fits_is_central(height, width):
    transform = v2.RandomResizedCrop(8, scale=(2.0, 3.0))  # more than the image
    expected = list(transform.make_params([torch.empty(1, height, width)]).values())
    spec = ViewSpec.model_construct(**ViewSpec().model_dump() | {"crop_scale": (2.0, 3.0)})
    boxes = draw_parameters([spec], 20, height, width, rng()).box
    assert (boxes == torch.tensor(expected)).all()


def test_chances_strengths_and_orders():
    n = 20_000
    chances = {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 0.35, "solarise": 0.1}
    spec = ViewSpec(**chances, count=2, brightness=1.4, contrast=0.3, saturation=0.5, hue=0.2)
    p = draw_parameters([spec, PLAIN], n, 32, 32, rng())
    for name, chance in chances.items():
        low, high = stats.binom.interval(1 - 1e-5, 2 * n, chance)
        assert low <= getattr(p, name)[:, :2].sum() <= high, name
        assert not getattr(p, name)[:, 2].any(), name  # PLAIN never
    counts = p.order[:, :2].flatten().bincount(minlength=24).numpy()
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3
    bounds = [(0.0, 2.4), (0.7, 1.3), (0.5, 1.5), (-0.2, 0.2), (0.1, 2.0)]
    drawn = [*p.factors[:, :2].unbind(2), p.sigma[:, :2]]
    for (low, high), values in zip(bounds, drawn):
        uniform = stats.uniform(low, high - low)
        assert stats.kstest(values.flatten().double().numpy(), uniform.cdf).pvalue > 1e-3
    # Everything is independent of everything else, other views and neighbouring images included.
    flags = [getattr(p, name)[:, :2].double() for name in chances]
    columns = torch.cat([*flags, p.order[:, :2], *drawn, p.box[:, :2, 2].log()], 1).double()
    columns = torch.cat([columns, columns.roll(1, 0)], 1)
    correlation = columns.T.corrcoef().fill_diagonal_(0).abs().max()
    assert correlation < 5.5 / math.sqrt(n)


# Mistakes


@pytest.mark.parametrize(
    "images, spec, mean, std, message",
    [
        (torch.rand(2, 3, 8, 8), [PLAIN], [0] * 3, [1] * 3, "images must be uint8, not float32"),
        (uint8(3, 8, 8), [PLAIN], [0] * 3, [1] * 3, r"must be \[n, c, h, w\].* not \[3, 8, 8\]"),
        (uint8(0, 3, 8, 8), [PLAIN], [0] * 3, [1] * 3, r"none of them 0, not \[0, 3, 8, 8\]"),
        (uint8(2, 4, 8, 8), [PLAIN], [0] * 4, [1] * 4, "must have 1 or 3 channels, not 4"),
        (uint8(2, 3, 8, 8), [PLAIN], [0], [1] * 3, "must have 3 values each, not 1 and 3"),
        (uint8(2, 3, 8, 8), [PLAIN], [0] * 3, [1, 0, 1], "std must be positive"),
        (uint8(2, 3, 8, 8), [], [0] * 3, [1] * 3, "specification is empty"),
    ],
)
def test_bad_input_is_named_in_one_line(images, spec, mean, std, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_views(images, spec, rng(), mean=mean, std=std)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [28, 32])
def test_grey_images_of_28_px_at_their_own_size_and_enlarged(size):
    """As Fashion-MNIST: odd ratios of sizes, one channel, no colour to change."""
    images = uint8(5, 1, 28, 28)
    spec = ViewSpec(**STILL, grey=0.0, size=size)
    [group] = make(images, spec)
    assert group.images.shape == (1, 5, 1, size, size)
    whole = crop(images.float() / 255, (0, 0, 28, 28), False, [size, size])
    torch.testing.assert_close(group.images[0], whole, atol=2e-6, rtol=0)
    busy = ViewSpec(count=2, size=size, blur=1.0, solarise=1.0, hue=0.0, saturation=0.0)
    [group] = make(images, busy)
    assert group.images.shape == (2, 5, 1, size, size)
    assert group.images.isfinite().all()


def test_presets_of_views_suit_their_data(pytestconfig):
    presets = read_yaml(pytestconfig.rootpath / "config/presets.yaml")["views"]
    views = {name: [ViewSpec(**each) for each in found] for name, found in presets.items()}
    plain, noflip = views["asymmetric"], views["asymmetric-noflip"]
    assert [each.model_copy(update={"flip": 0.5}) for each in noflip] == plain
    assert {each.flip for each in noflip} == {0.0}
    [fashion] = views["fashion"]
    assert (fashion.size, fashion.count) == (28, 2)
    assert (fashion.saturation, fashion.hue, fashion.grey) == (0, 0, 0)
    images = uint8(4, 1, 28, 28)
    assert make(images, fashion).groups[0].images.shape == (2, 4, 1, 28, 28)
