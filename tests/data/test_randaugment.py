"""RandAugment against torchvision's: every operation, sequences of them, the draws, the views."""

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from test_ragged import ragged
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as F

from peregrine.config.load import read_yaml
from peregrine.config.models import ViewSpec
from peregrine.data import randaugment as module
from peregrine.data.ragged import Ragged
from peregrine.data.randaugment import NUMBER, OPERATIONS, amounts, draw_operations, randaugment
from peregrine.data.views import draw_parameters, make_views

SPACE = RandAugment._AUGMENTATION_SPACE
# A sum whose terms torchvision may or may not round one by one, depending on the processor: uint8
# cuts off what is below a whole number by the last bit. A level of 255 at most.
SUMS = ("Color", "Contrast", "Sharpness")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(channels: int, size: int) -> torch.Tensor:
    """uint8 [8, c, s, s]: noise, few values, grey, flat, ramps, and all but flat."""
    noise = torch.randint(0, 256, (8, channels, size, size), dtype=torch.uint8, generator=rng())
    noise[1] = noise[1] // 4 + 90
    noise[2] = noise[2, :1]
    noise[3] = 77
    noise[4] = torch.arange(size) * 2
    noise[5] = (torch.arange(size) * 255 // (size - 1))[:, None]
    noise[6] = 200
    noise[6, 0, 3, 5] = 9
    return noise


def magnitude_of(name: str, magnitude: int, sign: int, size: int) -> float:
    found = SPACE[name][0](31, size, size)
    return 0.0 if found is None else float(found[magnitude]) * (sign if SPACE[name][1] else 1)


def by_torchvision(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    theirs = RandAugment()
    return theirs._apply_image_or_video_transform(
        image, name, magnitude, theirs.interpolation, theirs._fill
    )


def sums(numbers: list[int]) -> bool:
    """Whether later operations might magnify a difference of one level."""
    return any(list(OPERATIONS)[number] in SUMS for number in numbers)


def assert_equal(got, expected, name, size, magnitude):
    difference = (got.int() - expected.int()).abs()
    if name in SUMS:
        assert difference.max() <= 1
        if name == "Sharpness":  # whose blur is a whole number, or a tenth of the values differ
            assert (difference > 0).float().mean() < 0.01
    elif name in ("ShearX", "ShearY") and (size, magnitude) == (96, 20):
        # One line in five has its origins half-way between two pixels (shear of .2 from the centre
        # of a pixel), where the last bit decides; measured: .9 % of the values.
        assert (difference > 0).float().mean() < 0.02
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvision(name, channels, size):
    images, changed = pictures(channels, size), False
    for magnitude in (0, 9, 20, 27, 30):
        for sign in (1, -1) if SPACE[name][1] else (1,):
            theirs = magnitude_of(name, magnitude, sign, size)
            expected = torch.stack([by_torchvision(image, name, theirs) for image in images])
            ours = (sign * amounts(magnitude, size)[NUMBER[name]]).expand(len(images), 1)
            got = randaugment(images, torch.full((len(images), 1), NUMBER[name]), ours)
            assert got.dtype == torch.uint8
            assert_equal(got, expected, name, size, magnitude)
            changed |= not torch.equal(got, images)
    assert changed == (name != "Identity" and (name, channels) != ("Color", 1))


@pytest.mark.parametrize("piece", [module.CPU_PIECE, 1])
def test_a_sequence_for_each_image(piece, monkeypatch):
    monkeypatch.setattr(module, "CPU_PIECE", piece)
    images = pictures(3, 32).repeat(40, 1, 1, 1)
    views = [ViewSpec(size=32, randaugment=3, magnitude=17)]
    operations, sizes = (x[:, 0] for x in draw_operations(views, len(images), rng(1)))
    before = images.clone()
    got = randaugment(images, operations, sizes)
    assert torch.equal(images, before)  # not in place
    names = list(OPERATIONS)
    compared = 0
    for image, numbers, amount, result in zip(images, operations.tolist(), sizes, got):
        if not sums(numbers):
            compared += 1
            for number, size in zip(numbers, amount.tolist()):
                magnitude = magnitude_of(names[number], 17, 1 if size >= 0 else -1, 32)
                image = by_torchvision(image, names[number], magnitude)
            assert torch.equal(image, result)
    assert compared > 100


def test_names_and_signs_are_torchvisions():
    assert list(OPERATIONS) == list(SPACE)
    assert module.SIGNED == [name for name, (_, signed) in SPACE.items() if signed]


@pytest.mark.parametrize(
    "magnitude, size, expected",
    [
        # Top of every range: 150 / 331 * 32 = 14.501 px, 8 - 4 bits, inverted from 0 on.
        (30, 32, {"ShearX": 0.3, "TranslateX": 14, "Rotate": 30, "Color": 0.9, "Posterize": 4}),
        # Nine tenths: 13.05 px, 3.6 bits less, a threshold of a tenth of 255.
        (27, 32, {"ShearY": 0.27, "TranslateY": 13, "Posterize": 4, "Solarize": 25.5}),
        # Three tenths, at 96 px: 13.05 px, 1.2 bits less.
        (9, 96, {"TranslateX": 13, "Rotate": 9, "Sharpness": 0.27, "Posterize": 7}),
        (0, 96, {"TranslateX": 0, "Rotate": 0, "Contrast": 0, "Posterize": 8, "Solarize": 255}),
    ],
)
def test_amounts(magnitude, size, expected):
    found = dict(zip(OPERATIONS, amounts(magnitude, size).tolist()))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert found["Identity"] == found["Equalize"] == found["AutoContrast"] == 0


def test_draws():
    """Uniform operations, fair signs, all independent; Identity beyond a view's own number."""
    n = 6000
    views = [ViewSpec(randaugment=count, magnitude=15) for count in (2, 0, 1)]
    operations, sizes = draw_operations(views, n, rng())
    assert operations.shape == sizes.shape == (n, 3, 2)
    assert not operations[:, 1].any() and not operations[:, 2, 1].any()
    assert not sizes[:, 1].any() and not sizes[:, 2, 1].any()
    drawn = [operations[:, 0, 0], operations[:, 0, 1], operations[:, 2, 0]]
    for each in drawn:
        assert stats.chisquare(each.bincount(minlength=14).numpy()).pvalue > 1e-3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = (drawn[a] * 14 + drawn[b]).bincount(minlength=196).numpy()
        assert stats.chisquare(pairs).pvalue > 1e-3
    signed = torch.tensor([name in module.SIGNED for name in OPERATIONS])[operations]
    negative = sizes < 0
    assert not negative[~signed].any()
    low, high = stats.binom.interval(1 - 1e-5, int(signed.sum()), 0.5)
    assert low <= negative.sum() <= high
    assert torch.equal(sizes.abs(), amounts(15, 32)[operations] * sizes.ne(0))


def test_draws_come_after_all_others():
    """Other parameters are the same with and without RandAugment; so is the state without it."""
    plain, busy = ViewSpec(blur=0.5), ViewSpec(blur=0.5, randaugment=2)
    generators = [rng(3), rng(3)]
    without, with_it = (
        draw_parameters([view] * 2, 5, 9, 8, generator)
        for view, generator in zip((plain, busy), generators)
    )
    for name, value in vars(without).items():
        if name not in ("operations", "amounts"):
            assert torch.equal(value, getattr(with_it, name)), name
    torch.rand(5, 2, 2, 2, dtype=torch.float64, generator=generators[0])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize("images", [pictures(1, 24), pictures(3, 24), ragged()[0]])
def test_views_are_rounded_to_8_bits_and_augmented_last(images, monkeypatch):
    monkeypatch.setattr("peregrine.data.views.CPU_CHUNK", 20_000)  # several chunks
    channels = 3 if isinstance(images, Ragged) else images.shape[1]
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.3][:channels]
    spec = [
        ViewSpec(size=16, count=3, blur=0.5, randaugment=2, magnitude=27),
        ViewSpec(size=16, role="target", jitter=0.0, count=2, randaugment=1, magnitude=9),
        ViewSpec(size=16, role="target", solarise=0.5, solarise_threshold=0.4),
    ]
    off = [view.model_copy(update={"randaugment": 0}) for view in spec]
    made = make_views(images, spec, rng(5), mean=mean, std=std)
    neutral = {"mean": [0.0] * channels, "std": [1.0] * channels}
    plain = make_views(images, off, rng(5), **neutral)
    parameters = draw_parameters(spec, len(images), 24, 24, rng(5))
    names, view, compared = list(OPERATIONS), 0, [0, 0, 0]
    for s, group, before in zip(spec, made, plain):
        for images_of_view, inputs in zip(group.images, before.images):
            for n, image in enumerate(inputs):
                numbers = parameters.operations[n, view].tolist()
                if sums(numbers):
                    continue
                if s.randaugment:
                    image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
                    for number, size in zip(numbers, parameters.amounts[n, view].tolist()):
                        sign = 1 if size >= 0 else -1
                        magnitude = magnitude_of(names[number], s.magnitude, sign, s.size)
                        image = by_torchvision(image, names[number], magnitude)
                    image = image / 255
                expected = F.normalize(image, mean, std)
                torch.testing.assert_close(images_of_view[n], expected, atol=1e-5, rtol=0)
                compared[s.randaugment] += 1
            view += 1
    assert min(compared) > 3


def test_the_device_is_never_asked_for_a_value():
    """A meta tensor has none: this fails where a GPU would be waited for or a host tensor used."""
    operations = torch.arange(14).repeat(2, 1).T.roll(3, 0)
    sizes = amounts(9, 16)[operations]
    for channels in (1, 3):
        images = torch.empty(14, channels, 16, 16, dtype=torch.uint8, device="meta")
        assert randaugment(images, operations, sizes).shape == images.shape


@pytest.mark.parametrize("wrong", [{"randaugment": -1}, {"magnitude": 31}, {"magnitude": -1}])
def test_what_torchvision_refuses_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ViewSpec(**wrong)


def test_strong_presets_have_it_and_weak_ones_not(pytestconfig):
    presets = read_yaml(pytestconfig.rootpath / "config/presets.yaml")["views"]
    for name in ("weak-weak", "weak-strong", "strong-weak", "strong-strong"):
        for side, view in zip(name.split("-"), presets[name], strict=True):
            found = ViewSpec(**view)
            assert (found.randaugment, found.magnitude) == ((2, 27) if side == "strong" else (0, 9))
            assert (found.jitter, found.blur) == ((0.8, 0.5) if side == "strong" else (0, 0))
    control = [ViewSpec(**view) for view in presets["strong-plain-weak"]]
    strong = [ViewSpec(**view) for view in presets["strong-weak"]]
    neutral = {"randaugment": 0, "magnitude": 9}
    assert control == [view.model_copy(update=neutral) for view in strong]
