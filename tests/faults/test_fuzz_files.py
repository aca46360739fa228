"""Files of every format that Peregrine reads, with anything changed in them: read, or refused in
one line. What has a sum must never be read as something else."""

import json
import lzma

import numpy as np
import pytest
from boxes import write_image, write_list
from fuzz import refused, spoils, spoilt, tries
from hypothesis import given
from tiny_raw import MAKERS

from peregrine import files
from peregrine.config.detection import BoxData
from peregrine.data.prepare import _check, load, prepare
from peregrine.data.raw import locate, read
from peregrine.data.sources import SOURCES
from peregrine.errors import UserError
from peregrine.evaluation import voc
from peregrine.reporting.bundles import _unpack

CASES = [
    (name, key, maker)
    for name, maker in ((name, make()) for name, make in MAKERS.items())
    for key in sorted(maker.files)
    if key in ("data_batch_1.bin", "train.bin") or name in ("fashion_mnist", "svhn")
]


@pytest.mark.parametrize(("name", "key", "tiny"), CASES, ids=[f"{n}/{k}" for n, k, _ in CASES])
@tries(60)
@given(spoils)
def test_raw_files_of_data_sets(name, key, tiny, how):
    """The readers alone, as when a file that is not the official one is accepted."""
    spoils_ = spoilt(tiny.files[key], how)
    if name.startswith("cifar"):  # whose size was checked before; see the next test
        size = len(tiny.files[key])
        spoils_ = spoils_[:size].ljust(size, b"\0")

    def whole():
        splits = SOURCES[name].load({**tiny.files, key: spoils_})
        for split, data in splits.items():
            _check(name, split, data, len(SOURCES[name].classes))

    refused(whole)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@tries(60)
@given(spoils)
def test_archives_of_data_sets(name, tmp_path_factory, how):
    tiny = ARCHIVES[name]
    (archive, data), place = next(iter(tiny.archive.items())), tmp_path_factory.getbasetemp()
    (place / archive).write_bytes(spoilt(data, how))
    for path, wanted in locate(tiny.source.raw, name, place).items():
        refused(read, tiny.source.raw, path, wanted)


ARCHIVES = {name: MAKERS[name]() for name in ("cifar10", "cifar100")}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "some.safetensors"
    arrays = {
        "a": np.arange(60, dtype=np.float32).reshape(5, 12),
        "b": np.arange(3),
        "c": np.eye(2),
    }
    files.write_tensors(path, arrays, name="some")
    return path.read_bytes()


@tries()
@given(spoils)
def test_tensors(tensors, tmp_path_factory, how):
    """Read as it was written, or refused: nothing in between."""
    path = tmp_path_factory.getbasetemp() / "spoilt.safetensors"
    path.write_bytes(tensors)
    expected, facts = files.read_tensors(path)
    path.write_bytes(spoilt(tensors, how))
    for reader in (files.read_tensors, files.map_tensors):
        try:
            arrays, metadata = reader(path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert metadata == facts and arrays.keys() == expected.keys()
        for name, array in arrays.items():
            assert array.dtype == expected[name].dtype
            assert np.array_equal(array, expected[name])


@tries()
@given(spoils)
def test_records(tmp_path_factory, how):
    path = tmp_path_factory.getbasetemp() / "spoilt.json"
    body = {"run": "a", "seed": 1, "sums": {"x": "0" * 64}, "values": [0.5, None, True]}
    files.write_json(path, body)
    path.write_bytes(spoilt(path.read_bytes(), how))
    try:
        assert files.read_json(path) == body
    except UserError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    path = prepare("digits", folder)
    return path, path.read_bytes(), path.with_suffix(".json").read_bytes(), load(path)


@pytest.mark.parametrize("which", ["tensors", "record"])
@tries(60)
@given(spoils)
def test_prepared_data(prepared, which, how):
    path, tensors, record, expected = prepared
    path.write_bytes(spoilt(tensors, how) if which == "tensors" else tensors)
    path.with_suffix(".json").write_bytes(spoilt(record, how) if which == "record" else record)
    try:
        found = load(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.sums == expected.sums and found.classes == expected.classes
        assert (found.images["train"] == expected.images["train"]).all()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A bundle of one seed, as far as unpacking looks: sizes and sums fit."""
    import hashlib
    import io
    import tarfile

    inside = {
        f"digits-x/seed-0/{name}": name.encode() * 50 for name in ("run.yaml", "outcome.json")
    }
    index = {
        "format": 1,
        "kind": "metrics",
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in inside.items()
        },
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in {"bundle.json": json.dumps(index).encode(), **inside}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue(), inside


@pytest.mark.parametrize("inside", [False, True], ids=["the archive", "what xz holds"])
@tries(150)
@given(spoils)
def test_bundles(packed, inside, tmp_path_factory, how):
    import tempfile
    from pathlib import Path

    plain, expected = packed
    data = lzma.compress(spoilt(plain, how)) if inside else spoilt(lzma.compress(plain), how)
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, "b.tar.xz"), Path(folder, "out")
        path.write_bytes(data)
        target.mkdir()
        if refused(_unpack, path, target) is None:
            found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*.*")}
            assert {name: found.get(name) for name in expected} == expected
        # Nothing outside of its folder.
        assert {each.name for each in Path(folder).iterdir()} == {"b.tar.xz", "out"}


@pytest.mark.parametrize(
    "which", ["Annotations/one.xml", "ImageSets/Main/a.txt", "JPEGImages/one.jpg"]
)
@tries(150)
@given(spoils)
def test_annotations_in_the_layout_of_voc(which, tmp_path_factory, how):
    tree = tmp_path_factory.getbasetemp() / "voc"
    write_image(tree, "one", [("cat", 0, 1, 1, 10, 20), ("dog", 1, 5, 6, 48, 32)])
    write_image(tree, "three", [("dog", 0, 2, 2, 4, 4)])
    write_list(tree, "a", ["one"])
    write_list(tree, "b", ["three"])
    path = tree / which
    path.write_bytes(spoilt(path.read_bytes(), how))
    given_ = {
        "title": "t",
        "licence": "l",
        "classes": ["cat", "dog"],
        "train": ["a"],
        "test": ["b"],
    }

    def whole():
        train, _ = voc.read(tree, BoxData(**given_))
        for each in train.examples:
            each.pixels()

    refused(whole)
