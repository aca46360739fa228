"""The loaders on files of the official layouts, and what the registry says of them."""

import struct
from io import BytesIO

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from tiny_raw import mat, pixels

from peregrine.data import svhn
from peregrine.data.prepare import load, prepare
from peregrine.data.sources import SOURCES
from peregrine.errors import UserError


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "svhn"])
def test_a_prepared_data_set_is_what_the_raw_files_hold(tiny, tmp_path, name):
    wanted = tiny(name)
    wanted.write(tmp_path / "raw" / name)
    data = load(prepare(name, tmp_path / "data"))
    for split in ("train", "test"):
        np.testing.assert_array_equal(data.images[split], wanted.images[split])
        np.testing.assert_array_equal(data.labels[split], wanted.labels[split])
    assert data.unverified == ()
    exact = wanted.images["train"] / 255
    assert data.mean == pytest.approx(exact.mean(axis=(0, 2, 3)), abs=1e-6)
    assert data.sd == pytest.approx(exact.std(axis=(0, 2, 3)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "bytes_of_images", "classes", "first", "last"),
    [
        ("cifar10", 60_000 * (1 + 3072), 10, "airplane", "truck"),
        ("cifar100", 60_000 * (2 + 3072), 100, "apple", "worm"),
        ("fashion_mnist", 70_000 * (1 + 784) + 2 * (16 + 8), 10, "T-shirt/top", "Ankle boot"),
    ],
)
def test_the_registry_has_whole_data_sets(name, bytes_of_images, classes, first, last):
    entry = SOURCES[name]
    assert sum(file.size for file in entry.raw.files) == bytes_of_images
    assert len(entry.classes) == len(set(entry.classes)) == classes
    assert (entry.classes[0], entry.classes[-1]) == (first, last)
    assert list(entry.classes) == sorted(entry.classes) or name == "fashion_mnist"


def test_every_entry_says_how_it_is_checked():
    for name, entry in SOURCES.items():
        for item in (*entry.raw.files, *entry.raw.downloads):
            algorithm, _, digest = item.digest.partition(":")
            assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
            int(digest, 16)
        assert entry.licence and entry.verified and entry.title, name
        loose = {form for f in entry.raw.files for form in (f.name, f.name + ".gz")}
        for item in entry.raw.downloads:
            assert item.name in loose | {entry.raw.archive}


def test_a_coarse_label_that_no_file_has_is_refused(tinies):
    files = dict(tinies["cifar100"].files)
    files["test.bin"] = b"\x14" + files["test.bin"][1:]
    with pytest.raises(UserError, match=r"test\.bin: coarse labels must lie in 0\.\.19"):
        SOURCES["cifar100"].load(files)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack(">IIII", 2049, 40, 28, 28),  # the magic number of labels
        struct.pack(">IIII", 2051, 41, 28, 28),
        struct.pack(">IIII", 2051, 2**31, 2**31, 2**31),
        struct.pack(">IIII", 0x0D03, 40, 28, 28),  # floats
        struct.pack("<IIII", 2051, 40, 28, 28),
    ],
)
def test_an_idx_file_with_another_header_is_refused(tinies, header):
    files = dict(tinies["fashion_mnist"].files)
    name = "train-images-idx3-ubyte"
    files[name] = header + files[name][16:]
    with pytest.raises(UserError, match=f"{name} is no IDX file of 3 dimensions"):
        SOURCES["fashion_mnist"].load(files)


# --- MATLAB files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_matlab_files_are_read_as_scipy_reads_them(compressed, kind):
    images, marks = pixels(7, (3, 32, 32), 8), np.arange(1, 8).astype(kind)
    content = mat(images, marks, compressed)
    theirs = loadmat(BytesIO(content))
    splits = svhn.load_svhn({f"{split}_32x32.mat": content for split in ("train", "test")})
    ours = splits["test"]
    np.testing.assert_array_equal(ours.images, theirs["X"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(ours.images, images)
    np.testing.assert_array_equal(ours.labels, theirs["y"].ravel())
    assert ours.labels.dtype == np.int64


def other(**arrays):
    stream = BytesIO()
    good = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [2]], np.uint8)}
    arrays = {key: value for key, value in (good | arrays).items() if value is not None}
    savemat(stream, arrays, do_compression=True)
    return stream.getvalue()


OBJECTS = np.array([["a", 1.5]], dtype=object)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (other(X=OBJECTS), "must hold X"),
        (other(y=OBJECTS.T), "must hold X"),
        (other(X={"a": 1}), "must hold X"),
        (other(X=None), "must hold X"),
        (other(X=np.zeros((32, 32, 3, 2))), "must hold X"),
        (other(X=np.zeros((32, 32, 3, 3), np.uint8)), "n labels"),
        (other(X=np.zeros((16, 64, 3, 2), np.uint8)), "must hold X"),
        (other(y=np.array([[0], [1]], np.uint8)), "labels must be 1 to 10"),
        (other(y=np.array([[1.5], [1.0]])), "labels must be 1 to 10"),
        (other(y=np.array([[np.nan], [1.0]])), "labels must be 1 to 10"),
        (b"", "must hold X"),
        (other()[:-5], "must hold X"),
        (b"MATLAB 7.3 MAT-file" + bytes(600), "must hold X"),
    ],
)
def test_a_matlab_file_of_anything_else_is_refused(content, words):
    with pytest.raises(UserError, match=words):
        svhn.load_svhn({"train_32x32.mat": content, "test_32x32.mat": content})


def test_objects_beside_the_arrays_are_passed_over():
    content = other(extra=OBJECTS)
    splits = svhn.load_svhn({"train_32x32.mat": content, "test_32x32.mat": content})
    assert splits["train"].labels.tolist() == [1, 2]


def test_a_matlab_file_that_unpacks_to_too_much_is_refused(monkeypatch):
    content = other(X=np.zeros((32, 32, 3, 100), np.uint8), y=np.ones((100, 1), np.uint8))
    assert len(content) < 3000
    files = {"train_32x32.mat": content, "test_32x32.mat": content}
    assert len(svhn.load_svhn(files)["train"].labels) == 100
    monkeypatch.setattr(svhn, "UNPACKED", 32 * 32 * 3 * 100)
    with pytest.raises(UserError, match="must hold X"):
        svhn.load_svhn(files)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_matlab_file_never_ends_the_process(compressed):
    """A type of data that no table has makes scipy 1.17 read outside of its memory."""
    whole = mat(pixels(2, (3, 32, 32), 9), [1, 2], compressed)
    good = {"test_32x32.mat": whole}
    random, refused = np.random.default_rng(0), 0
    for _ in range(600):
        data = bytearray(whole)
        for place in random.integers(124, 300, 2):
            data[place] = random.integers(256)
        try:
            svhn.load_svhn(good | {"train_32x32.mat": bytes(data)})
        except UserError:
            refused += 1
    assert refused > 100
