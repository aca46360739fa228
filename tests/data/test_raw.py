"""Reading raw files: bounded, without extraction, whatever an archive claims."""

import gzip
import tarfile

import pytest
from tiny_raw import pack

from peregrine.data import raw
from peregrine.data.raw import locate, read
from peregrine.errors import UserError

ARCHIVE = "cifar-100-binary.tar.gz"


@pytest.fixture
def cifar(tinies):
    return tinies["cifar100"]


def members(cifar, **changed):
    files = cifar.files | {f"{key}.bin": data for key, data in changed.items()}
    return [(f"cifar-100-binary/{name}", data) for name, data in files.items() if data is not None]


def refusal(cifar, folder, packed, *words):
    """The one line that reading the archive ends in; nothing is left beside it."""
    folder.mkdir(exist_ok=True)
    (folder / ARCHIVE).write_bytes(packed)
    ((path, files),) = locate(cifar.source.raw, "cifar100", folder).items()
    with pytest.raises(UserError) as error:
        read(cifar.source.raw, path, files)
    text = " ".join(str(error.value).split())
    assert ARCHIVE in text
    for word in words:
        assert word in text
    assert [each.name for each in folder.iterdir()] == [ARCHIVE]


@pytest.mark.parametrize("place", ["", "cifar-100-binary", "cifar100", "cifar100/cifar-100-binary"])
def test_loose_files_are_found_as_they_are_or_gzipped(cifar, tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.bin").write_bytes(cifar.files["train.bin"])
    (folder / "test.bin.gz").write_bytes(gzip.compress(cifar.files["test.bin"]))
    found = locate(cifar.source.raw, "cifar100", tmp_path)
    assert {path.relative_to(folder).as_posix() for path in found} == {"train.bin", "test.bin.gz"}
    contents = {}
    for path, files in found.items():
        contents |= read(cifar.source.raw, path, files)
    assert contents == cifar.files


def test_a_folder_of_its_own_comes_before_the_common_one(tinies, tmp_path):
    """MNIST's four files have the same names."""
    fashion = tinies["fashion_mnist"]
    fashion.write(tmp_path, dict.fromkeys(fashion.files, b"of another data set"))
    fashion.write(tmp_path / "fashion_mnist")
    found = locate(fashion.source.raw, "fashion_mnist", tmp_path)
    assert {path.parent.name for path in found} == {"fashion_mnist"}


def test_members_are_read_straight_from_the_archive(cifar, tmp_path):
    extra = ("cifar-100-binary/fine_label_names.txt", b"apple\n")
    folder = tarfile.TarInfo("./cifar-100-binary/")
    folder.type = tarfile.DIRTYPE
    (tmp_path / ARCHIVE).write_bytes(pack([folder, extra, *members(cifar)]))
    ((path, files),) = locate(cifar.source.raw, "cifar100", tmp_path).items()
    assert read(cifar.source.raw, path, files) == cifar.files
    assert [each.name for each in tmp_path.iterdir()] == [ARCHIVE]


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (tarfile.REGTYPE, "/etc/passwd", "lies outside"),
        (tarfile.REGTYPE, "cifar-100-binary/../../train.bin", "lies outside"),
        (tarfile.SYMTYPE, "cifar-100-binary/train.bin", "is no plain file"),
        (tarfile.LNKTYPE, "cifar-100-binary/test.bin", "is no plain file"),
        (tarfile.SYMTYPE, "cifar-100-binary", "is no plain file"),
        (tarfile.FIFOTYPE, "cifar-100-binary/fifo", "is no plain file"),
        (tarfile.CHRTYPE, "cifar-100-binary/null", "is no plain file"),
        (tarfile.REGTYPE, "cifar-100-binary/../\nx", "lies outside"),
    ],
)
def test_hostile_members_are_refused(cifar, tmp_path, kind, name, words):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    refusal(cifar, tmp_path / "raw", pack([member, *members(cifar)]), words)


def test_an_archive_that_unpacks_to_too_much_is_refused(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "SLACK", 2**18)
    bomb = pack([("cifar-100-binary/readme.html", bytes(2**24)), *members(cifar)])
    refusal(cifar, tmp_path / "raw", bomb, "unpacks to more than it should")
    header = tarfile.TarInfo("cifar-100-binary/readme.html")
    header.pax_headers = {"comment": "x" * 2**24}
    stream = tmp_path / "pax.tar.gz"
    with tarfile.open(stream, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header)
    refusal(cifar, tmp_path / "raw", stream.read_bytes(), "unpacks to more than it should")


def test_damaged_archives_are_one_line(cifar, tmp_path):
    whole = pack(members(cifar))
    folder = tmp_path / "raw"
    refusal(cifar, folder, whole[: len(whole) // 2], "damaged or unreadable")
    refusal(cifar, folder, whole[:-4], "damaged or unreadable")  # only the gzip trailer is cut
    refusal(cifar, folder, b"", "damaged or unreadable")
    refusal(cifar, folder, b"<html>moved</html>", "damaged or unreadable")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    refusal(cifar, folder, bytes(flipped))
    refusal(cifar, folder, gzip.compress(b"\xff" * 2048), "damaged or unreadable")
    refusal(cifar, folder, pack(members(cifar, test=None)), "lacks cifar-100-binary/test.bin")
    refusal(cifar, folder, pack(members(cifar, test=b"short")), "307,400 bytes and has 5")
    twice = pack([*members(cifar), ("cifar-100-binary/test.bin", cifar.files["test.bin"])])
    refusal(cifar, folder, twice, "test.bin is in it twice")


@pytest.mark.parametrize(
    ("size", "words"), [(307_399, "has 307,399"), (307_401, "has more"), (0, "has 0")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_size_is_refused(cifar, tmp_path, size, words, packed):
    """100 records of 2 + 3,072 bytes are 307,400."""
    data = (cifar.files["test.bin"] + b"x")[:size]
    path = tmp_path / ("test.bin.gz" if packed else "test.bin")
    path.write_bytes(gzip.compress(data) if packed else data)
    found = locate(cifar.source.raw, "cifar100", tmp_path)
    with pytest.raises(UserError, match=f"must have 307,400 bytes and {words}"):
        read(cifar.source.raw, path, found[path])


def test_a_gzip_bomb_is_not_unpacked(cifar, tmp_path, monkeypatch):
    path = tmp_path / "test.bin.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    asked, real = [], gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or real(self, size)
    )
    found = locate(cifar.source.raw, "cifar100", tmp_path)
    with pytest.raises(UserError, match="has more"):
        read(cifar.source.raw, path, found[path])
    assert asked == [307_401]


def test_what_cannot_be_read_is_one_line(cifar, tmp_path):
    path = tmp_path / "test.bin.gz"
    whole = gzip.compress(cifar.files["test.bin"])
    found = {path: [cifar.source.raw.files[1]]}
    for data in (whole[:-9], whole[:20], b"no gzip", whole[:100] + b"\0" * 50 + whole[150:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"test\.bin\.gz is damaged or unreadable"):
            read(cifar.source.raw, path, found[path])
    path.unlink()
    with pytest.raises(UserError, match=r"test\.bin\.gz is damaged or unreadable"):
        read(cifar.source.raw, path, found[path])
