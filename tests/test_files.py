"""Files are whole or absent, and verified: every kind of damage is one line."""

import csv
import errno
import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from peregrine import files
from peregrine.errors import UserError
from peregrine.files import map_tensors, read_tensors, streamed_tensors, write_tensors

ARRAYS = {
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.uint8),
    "bytes": np.arange(5, dtype=np.uint8),
    "counts": np.array([[-1, 2], [3, 2**40]], np.int64),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "double": np.array([0.1, np.nan, -np.inf]),
}


def refused(read, path):
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_tensors_round_trip(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    files.write_tensors(path, ARRAYS, run="x", seed="0")
    arrays, metadata = files.read_tensors(path)
    assert metadata == {"run": "x", "seed": "0"}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    some, _ = files.read_tensors(path, ["scalar"], verify=False)
    assert list(some) == ["scalar"]
    for verify in (True, False):
        refused(lambda path, v=verify: files.read_tensors(path, ["nothing"], verify=v), path)


def test_equal_tensors_are_equal_bytes(tmp_path):
    """The library writes metadata in an order that changes from call to call."""
    facts = {f"fact {i}": str(i) for i in range(12)}
    written = set()
    for i in range(4):
        backwards = dict(reversed(ARRAYS.items())) if i % 2 else ARRAYS
        files.write_tensors(tmp_path / f"{i}", backwards, **facts)
        written.add((tmp_path / f"{i}").read_bytes())
    assert len(written) == 1
    size = int.from_bytes(written.pop()[:8], "little")
    assert size % 8 == 0, "tensors must stay aligned for memory mapping"


def test_any_flipped_bit_and_any_truncation_is_seen(tmp_path):
    path = tmp_path / "a"
    files.write_tensors(path, {"x": np.arange(4.0), "y": np.array([1, 2], np.uint8)}, name="é")
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (5 * place % 8)
        path.write_bytes(damaged)
        refused(files.read_tensors, path)
    for end in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(files.read_tensors, path)
    path.write_bytes(whole + b"\0")
    refused(files.read_tensors, path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"name":"a"', b'"name":"b"'),
        (b'"x":', b'"y":'),
        (b"[2,3]", b"[3,2]"),
        (b'"F32"', b'"I32"'),
        (b'"checksum":"', b'"checksun":"'),
    ],
)
def test_a_changed_header_is_seen(tmp_path, before, after):
    path = tmp_path / "a"
    files.write_tensors(path, {"x": np.ones((2, 3), np.float32)}, name="a")
    whole = path.read_bytes()
    assert whole.count(before) == 1
    path.write_bytes(whole.replace(before, after))
    refused(files.read_tensors, path)


def test_missing_files_and_folders_are_one_line(tmp_path):
    for read in (files.read_tensors, files.read_json):
        assert "does not exist" in refused(read, tmp_path / "nothing")
        refused(read, tmp_path)


def test_json_round_trip_and_damage(tmp_path):
    path = tmp_path / "a.json"
    data = {"b": [1, 2.5, None, "é"], "a": {"x": 1e-300, "10": 0}, "checksum": "not mine"}
    files.write_json(path, data)
    del data["checksum"]
    assert files.read_json(path) == data
    whole = path.read_text()
    assert list(json.loads(whole)) == ["a", "b", "checksum"]
    for damaged in (
        whole.replace("2.5", "2.6"),
        whole.replace('"b"', '"c"'),
        whole[:-3],
        whole.replace("2.5", "NaN"),
        "[]",
        '"text"',
        "{}",
        "",
        "[" * 100_000,
    ):
        assert damaged != whole
        path.write_text(damaged)
        refused(files.read_json, path)
    path.write_bytes(b"\xff\xfe")
    refused(files.read_json, path)


def test_json_with_numbers_as_keys(tmp_path):
    """2 sorts before 10, but "10" before "2": the checksum is that of what is read."""
    files.write_json(tmp_path / "a.json", {"c": {2: "two", 10: "ten"}})
    assert files.read_json(tmp_path / "a.json") == {"c": {"2": "two", "10": "ten"}}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": [value]})
    assert not list(tmp_path.iterdir())


def test_csv_keeps_every_bit(tmp_path):
    numbers = [0.1 + 0.2, 1e-320, -0.0, 2.0**53 + 2]
    files.write_csv(tmp_path / "a.csv", ["x", "y"], [(x, 1) for x in numbers])
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[0] == ["x", "y"]
    assert [float(row[0]).hex() for row in rows[1:]] == [x.hex() for x in numbers]
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    files.write_text(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    assert "No space left" in refused(lambda path: files.write_text(path, "new"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    files.write_text(path, "old" * 1000)

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, kill)
        with pytest.raises(KeyboardInterrupt):
            files.write_text(path, "newer" * 1000)
    assert path.read_text() == "old" * 1000
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_data_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, n=name, f=real: (done.append(n), f(*a))[1])
    files.write_text(tmp_path / "a", "x")
    assert done == ["fsync", "replace", "fsync"]


def test_a_path_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(lambda path: files.write_text(path, "x"), tmp_path / "file" / "below" / "a")
    (tmp_path / "folder").mkdir()
    refused(lambda path: files.write_text(path, "x"), tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# Streamed and mapped


def streamed(path, pieces, numbers):
    with streamed_tensors(path, kind="test") as tensors:
        tensors.flat("bytes", iter(pieces))
        tensors.numbers("numbers", numbers)


def test_a_streamed_file_is_what_the_library_reads(tmp_path):
    pieces = [np.arange(5, dtype=np.uint8).reshape(5, 1), np.array([7, 8], np.uint8)]
    numbers = np.arange(6).reshape(2, 3) - 2**40
    streamed(tmp_path / "a", pieces, numbers)
    with safe_open(tmp_path / "a", framework="np") as stream:
        assert set(stream.keys()) == {"bytes", "numbers"} and stream.metadata()["kind"] == "test"
        assert stream.get_tensor("bytes").tolist() == [0, 1, 2, 3, 4, 7, 8, 0]  # to 8 bytes
        assert stream.get_tensor("numbers").tolist() == numbers.tolist()
    arrays, metadata = read_tensors(tmp_path / "a")  # its digest fits
    assert metadata == {"kind": "test"}
    mapped, metadata = map_tensors(tmp_path / "a", ["numbers", "bytes"])
    assert metadata == {"kind": "test"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], array)
        assert isinstance(mapped[name], np.memmap) and not mapped[name].flags.writeable
        assert mapped[name].flags.aligned


def test_a_stream_that_breaks_off_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")

    def pieces():
        yield np.zeros(9, np.uint8)
        raise UserError("no image")

    with pytest.raises(UserError, match="no image"):
        streamed(tmp_path / "a", pieces(), np.zeros(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_mapped_file_that_is_cut_or_other_is_refused(tmp_path):
    streamed(tmp_path / "a", [np.zeros(9, np.uint8)], np.zeros(4))
    data = (tmp_path / "a").read_bytes()
    for content in (data[:-1], data[:100], b"", data + b"0", b"\xff" * 50):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(UserError, match="b is damaged"):
            map_tensors(tmp_path / "b", ["bytes"], verify=False)
    with pytest.raises(UserError, match="a is damaged .*other"):
        map_tensors(tmp_path / "a", ["other"])
    with pytest.raises(UserError, match="c does not exist"):
        map_tensors(tmp_path / "c", ["bytes"])
    write_tensors(tmp_path / "d", {"x": np.zeros(3, np.float16)})
    with pytest.raises(UserError, match="d is damaged"):
        map_tensors(tmp_path / "d", ["x"])


def test_rows_come_piece_by_piece_and_are_mapped_verified(tmp_path):
    """Five numbers of 4 bytes leave those of 8 bytes behind them unaligned."""
    expected = {
        "a": np.arange(5, dtype=np.float32)[:, None],
        "b": np.arange(4).reshape(2, 2) - 2**40,
        "c": np.linspace(0, 1, 3),
        "none": np.zeros((0, 2), np.float32),
    }
    with streamed_tensors(tmp_path / "a", kind="test") as tensors:
        tensors.rows("a", (expected["a"][part] for part in (slice(2), slice(2, 2), slice(2, 5))))
        for name in ("b", "c", "none"):
            tensors.rows(name, [expected[name]])
        tensors.metadata["codes"] = "7"
    for arrays, metadata in (read_tensors(tmp_path / "a"), map_tensors(tmp_path / "a")):
        assert metadata == {"kind": "test", "codes": "7"}
        assert set(arrays) == set(expected)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name])
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
            assert array.flags.aligned
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match="fails its checksum"):
        map_tensors(tmp_path / "a", ["a"])  # the digest covers all
