"""Raw data -> one verified file: what is in it, and that damage is seen."""

import hashlib

import numpy as np
import pytest

from peregrine.config.models import DatasetSpec
from peregrine.data import prepare, sources
from peregrine.data.prepare import load
from peregrine.data.sources import Source, Split
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors, write_json, write_tensors


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare.prepare("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def copy(digits, tmp_path):
    """The prepared file and its record, to be damaged."""
    for path in (digits, digits.with_suffix(".json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / digits.name


def refused(path):
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert path.stem in str(error.value)
    return str(error.value)


def enlarged(small):
    """Twofold bilinear [n, 8, 8] -> [n, 16, 16], pixel centres aligned: output pixel 2i + 1 lies a
    quarter of a pixel behind centre i, so it is 3/4 of pixel i and 1/4 of pixel i + 1."""
    weights = np.zeros((16, 8))
    for i in range(8):
        for pixel, neighbour in ((2 * i, max(i - 1, 0)), (2 * i + 1, min(i + 1, 7))):
            weights[pixel, i] += 0.75
            weights[pixel, neighbour] += 0.25
    return weights @ small @ weights.T


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    data = load(digits)
    images = np.concatenate([data.images["train"], data.images["test"]])
    labels = np.concatenate([data.labels["train"], data.labels["test"]])
    assert data.images["train"].shape == (1197, 1, 16, 16)
    assert data.images["test"].shape == (600, 1, 16, 16)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, raw.target)
    expected = enlarged(np.rint(raw.images * 255 / 16))
    # Pillow rounds after each of its two passes: at most half a level each, and the sum's rounding.
    assert np.abs(images[:, 0] - expected).max() <= 1.5
    assert np.abs(images[:, 0] - expected).mean() < 0.5
    np.testing.assert_array_equal(images[:, 0, 0, 0], expected[:, 0, 0])  # corners are not mixed
    assert data.classes == tuple("0123456789")


def test_mean_and_sd_are_those_of_the_training_images(digits):
    data = load(digits)
    shares = data.images["train"].astype(float) / 255
    assert data.mean == pytest.approx([shares.mean()], abs=1e-6)
    assert data.sd == pytest.approx([np.sqrt(((shares - shares.mean()) ** 2).mean())], abs=1e-6)
    record = read_json(digits.with_suffix(".json"))
    assert record["counts"] == {"train": 1197, "test": 600}
    assert record["shape"] == [1, 16, 16]
    assert record["licence"]
    assert record["verified"]


def test_mean_and_sd_of_many_images_are_those_of_all_pixels(monkeypatch):
    """Counted in chunks of 7, three channels that differ."""
    monkeypatch.setattr(prepare, "CHUNK", 7)
    random = np.random.default_rng(0)
    images = random.integers(0, [[[[256]], [[20]], [[3]]]], (40, 3, 5, 4)).astype(np.uint8)
    mean, sd = prepare._mean_and_sd(prepare._counts(images))
    shares = images.astype(np.float64) / 255
    assert mean == pytest.approx(shares.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert sd == pytest.approx(shares.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_the_same_bytes_every_time(digits, tmp_path):
    again = prepare.prepare("digits", tmp_path)
    for suffix in (".safetensors", ".json"):
        assert again.with_suffix(suffix).read_bytes() == digits.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("name", ["train_images", "test_images", "train_labels", "test_labels"])
def test_one_changed_number_is_seen(copy, name):
    """Even in a file that is whole in itself."""
    arrays, metadata = read_tensors(copy)
    arrays[name].flat[-1] ^= 1
    write_tensors(copy, arrays, **metadata)
    assert "fails its checksum" in refused(copy)


def test_one_changed_pixel_on_disk_is_seen(copy):
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    refused(copy)


def test_other_damage_is_one_line(copy):
    arrays, metadata = read_tensors(copy)
    for name, other in {
        "train_images": arrays["train_images"].view(np.int8),
        "test_images": arrays["test_images"].reshape(600, 1, 8, 32),
        "train_labels": arrays["train_labels"][:-1],
        "test_labels": arrays["test_labels"] + 10,
    }.items():
        write_tensors(copy, {**arrays, name: other}, **metadata)
        refused(copy)
    del arrays["test_labels"]
    write_tensors(copy, arrays, **metadata)
    refused(copy)
    copy.write_bytes(copy.read_bytes()[:1000])
    refused(copy)
    copy.unlink()
    assert "does not exist" in refused(copy)


def test_a_changed_record_is_seen(copy):
    record = copy.with_suffix(".json")
    record.write_text(record.read_text().replace('"mean"', '"Mean"'))
    assert "was changed" in refused(copy)
    record.unlink()
    assert "does not exist" in refused(copy)


def test_a_record_of_other_data_is_seen(copy):
    record = read_json(copy.with_suffix(".json"))
    record["sums"]["test"] = "0" * 64
    write_json(copy.with_suffix(".json"), record)
    assert "test fails its checksum" in refused(copy)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digts", "did you mean 'digits'"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("fashion", "did you mean 'fashion_mnist'"),
        ("imagenet", "did you mean 'imagenette'"),
        ("webvision", "there are: cifar10, cifar100, digits, fashion_mnist, imagenet1"),
    ],
)
def test_an_unknown_data_set_has_a_hint(tmp_path, name, hint):
    with pytest.raises(UserError, match=f"'{name}' is unknown; {hint}"):
        prepare.prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), [0, 1], "uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"\[n, c, h, w\]"),
        (np.zeros((3, 1, 4, 4), np.uint8), [0, 1], "n labels"),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, 2], r"labels must lie in 0\.\.1"),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, -1], r"labels must lie in 0\.\.1"),
        (np.zeros((0, 1, 4, 4), np.uint8), [], "labels"),
    ],
)
def test_a_source_that_yields_nonsense_is_refused(tmp_path, monkeypatch, images, labels, words):
    good = Split(np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1]))
    bad = Split(images, np.array(labels, np.int64))
    for splits in ({"train": bad, "test": good}, {"train": good, "test": bad}):
        origin = Source("t", "l", ("a", "b"), lambda _, splits=splits: splits, "v")
        monkeypatch.setitem(sources.SOURCES, "odd", origin)
        with pytest.raises(UserError, match=f"odd.*{words}"):
            prepare.prepare("odd", tmp_path)
    assert not list(tmp_path.iterdir())


# --- parts of a data set --------------------------------------------------------------------------


def part(path, **fields):
    return load(path, DatasetSpec(name=path.stem, **fields))


def rows(whole, images):
    """Which of the whole training set these images are; all of digits' images differ."""
    known = {image.tobytes(): row for row, image in enumerate(whole.images["train"])}
    assert len(known) == len(whole.images["train"])
    return [known[image.tobytes()] for image in images]


@pytest.fixture(scope="module")
def whole(digits):
    return load(digits)


def test_a_part_is_balanced_and_in_order(digits, whole):
    data = part(digits, train_per_class=20, validation_per_class=30)
    for split, n in (("train", 20), ("test", 30)):
        assert np.bincount(data.labels[split]).tolist() == [n] * 10
        picked = rows(whole, data.images[split])
        assert picked == sorted(picked)
        np.testing.assert_array_equal(data.labels[split], whole.labels["train"][picked])
    assert not set(rows(whole, data.images["train"])) & set(rows(whole, data.images["test"]))


def test_held_out_images_replace_the_test_set_and_leave_training(digits, whole):
    data = part(digits, validation_per_class=30)
    held, used = rows(whole, data.images["test"]), rows(whole, data.images["train"])
    assert sorted(held + used) == list(range(1197))
    assert len(held) == 300
    few = part(digits, train_per_class=5)
    np.testing.assert_array_equal(few.images["test"], whole.images["test"])
    assert few.sums["test"] == whole.sums["test"]


def test_neither_choice_depends_on_the_other(digits, whole):
    both = part(digits, train_per_class=20, validation_per_class=30)
    held = part(digits, validation_per_class=30)
    some, more = (part(digits, train_per_class=n) for n in (20, 50))
    assert both.sums == {"train": some.sums["train"], "test": held.sums["test"]}
    assert set(rows(whole, some.images["train"])) < set(rows(whole, more.images["train"]))


def test_the_order_is_that_of_a_stated_hash(digits, whole):
    """SHA-256 of seed/stream/epoch/step, first 8 bytes, little-endian, without the last bit."""

    def place(row):
        digest = hashlib.sha256(f"0/data/part/0/{row}".encode()).digest()
        return int.from_bytes(digest[:8], "little") // 2

    held, used = [], []
    for label in range(10):
        ranked = sorted(np.flatnonzero(whole.labels["train"] == label).tolist(), key=place)
        held += ranked[:3]
        used += ranked[-2:]
    data = part(digits, train_per_class=2, validation_per_class=3)
    assert rows(whole, data.images["test"]) == sorted(held)
    assert rows(whole, data.images["train"]) == sorted(used)


def test_the_choice_is_random(digits, whole):
    """The order of the file, or one order for all classes, would be no random choice."""
    data = part(digits, train_per_class=10)
    places = []
    for label in range(10):
        of_class = np.flatnonzero(whole.labels["train"] == label).tolist()
        picked = [row for row in rows(whole, data.images["train"]) if row in of_class]
        places.append([of_class.index(row) for row in picked])
    assert len({tuple(each) for each in places}) == 10
    mean = np.mean([np.mean(each) / 118.7 for each in places])
    assert abs(mean - 0.5) < 4 * np.sqrt(1 / 12 / 100)  # four standard errors of 100 draws


def test_sums_are_of_what_is_used_and_means_of_the_whole(digits, whole):
    data = part(digits, train_per_class=20, validation_per_class=30)
    assert (data.mean, data.sd) == (whole.mean, whole.sd)
    for split in ("train", "test"):
        assert data.sums[split] == prepare.split_sum(Split(data.images[split], data.labels[split]))
        assert data.sums[split] not in whole.sums.values()
    assert part(digits).sums == whole.sums


def test_too_few_images_of_a_class_are_one_line(digits, whole):
    smallest = int(np.bincount(whole.labels["train"]).min())
    part(digits, train_per_class=smallest - 10, validation_per_class=10)
    for fields in (
        {"train_per_class": smallest - 9, "validation_per_class": 10},
        {"train_per_class": 1000},
        {"validation_per_class": smallest},  # nothing would be left to train on
    ):
        with pytest.raises(UserError, match=r"digits: class '\d' has 11\d training images, and"):
            part(digits, **fields)


# --- long-tailed training sets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        # CIFAR-10-LT: 5000 x 100^(-k/9) by an ordinary calculator, rounded down; 12,406 images.
        (100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, [5000] * 10),
    ],
)
def test_class_sizes_are_those_of_the_usual_recipe(imbalance, expected):
    assert DatasetSpec(name="x", imbalance=imbalance).class_sizes(5000, 10) == expected


def test_the_long_tail_keeps_the_last_images_of_each_class_in_the_stated_order(digits, whole):
    """64 x 8^(-k/9): the cube root of a half from class to class."""
    sizes = [64, 50, 40, 32, 25, 20, 16, 12, 10, 8]
    tail = part(digits, train_per_class=64, imbalance=8)
    full = part(digits, train_per_class=64)
    assert np.bincount(tail.labels["train"]).tolist() == sizes
    assert tail.sums["test"] == whole.sums["test"]
    assert (tail.mean, tail.sd) == (whole.mean, whole.sd)
    picked = rows(whole, tail.images["train"])
    assert picked == sorted(picked)
    assert set(picked) < set(rows(whole, full.images["train"]))
    for label, n in enumerate(sizes):  # the same images as of a smaller balanced set
        some = part(digits, train_per_class=n)
        own = {row for row in picked if whole.labels["train"][row] == label}
        assert own < set(rows(whole, some.images["train"]))


def test_the_largest_class_is_the_smallest_of_the_set_less_what_is_held_out(digits, whole):
    smallest = int(np.bincount(whole.labels["train"]).min())
    held = part(digits, imbalance=10, validation_per_class=20)
    counts = np.bincount(held.labels["train"])
    assert counts[0] == smallest - 20
    assert counts[9] == (smallest - 20) // 10
    assert np.bincount(held.labels["test"]).tolist() == [20] * 10
    assert not set(rows(whole, held.images["train"])) & set(rows(whole, held.images["test"]))
    assert np.bincount(part(digits, imbalance=10).labels["train"])[0] == smallest
    assert part(digits, imbalance=1).sums == whole.sums


def test_a_long_tail_that_cannot_be_had_is_one_line(digits):
    with pytest.raises(UserError, match=r"digits: imbalance 200 leaves class '9' none of 11\d "):
        part(digits, imbalance=200)
    with pytest.raises(UserError, match="imbalance 30 leaves class '9' none of 20"):
        part(digits, train_per_class=20, imbalance=30)
    with pytest.raises(UserError, match=r"class '\d' has 11\d training images, and"):
        part(digits, train_per_class=1000, imbalance=2)
    with pytest.raises(UserError, match=r"class '\d' has 11\d training images, and"):
        part(digits, validation_per_class=500, imbalance=2)
