"""Raw data -> one verified file: what is in it, and that damage is seen."""

import numpy as np
import pytest

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


def test_an_unknown_data_set_lists_the_known(tmp_path):
    with pytest.raises(UserError, match=r"'digts' is unknown; there are: .*digits"):
        prepare.prepare("digts", tmp_path)
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
        origin = Source("t", "l", ("a", "b"), lambda splits=splits: splits, "v")
        monkeypatch.setitem(sources.SOURCES, "odd", origin)
        with pytest.raises(UserError, match=f"odd.*{words}"):
            prepare.prepare("odd", tmp_path)
    assert not list(tmp_path.iterdir())
