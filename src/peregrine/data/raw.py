"""Raw files of a data set: where they may lie, and how they are read without being trusted.

Nothing is extracted. Of an archive only the members that the registry names are read, straight
into memory, and never more bytes than it says.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from peregrine.errors import UserError

if TYPE_CHECKING:
    from peregrine.data.packed import Packed

SLACK = 2**20
"""Bytes that an archive may hold besides the expected files: headers, padding, a read-me."""


@dataclass(frozen=True)
class Split:
    """One split as it comes: images uint8 [n, c, h, w], or packed, and labels int64 [n]."""

    images: "np.ndarray | Packed"
    labels: np.ndarray


@dataclass(frozen=True)
class RawFile:
    """A file as its authors publish it, not compressed: bytes, and 'sha256:...' or 'md5:...'."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Download:
    """Where a raw file, or an archive of all of them, is published; size and digest of that."""

    url: str
    size: int
    digest: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Raw:
    """The raw files of a data set; `folder` is theirs inside `archive`, where there is one."""

    files: tuple[RawFile, ...]
    downloads: tuple[Download, ...]
    folder: str = ""
    archive: str = ""


def digest(content: bytes, like: str) -> str:
    """The digest of `content` by the algorithm of the digest `like`."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def locate(raw: Raw, name: str, place: Path) -> dict[Path, list[RawFile]]:
    """Where `place` has the files of data set `name`: each as it is, gzipped, or in the archive.

    Folders are tried in turn: those named after the data set first, because other data sets use
    the same file names.
    """
    rooms = [place / name / raw.folder, place / name, place / raw.folder, place]
    found: dict[Path, list[RawFile]] = {}
    for file in raw.files:
        forms = [form for form in (file.name, f"{file.name}.gz", raw.archive) if form]
        paths = (room / form for room in dict.fromkeys(rooms) for form in forms)
        path = next(filter(os.path.isfile, paths), None)
        if path:
            found.setdefault(path, []).append(file)
    return found


def read(raw: Raw, path: Path, files: list[RawFile]) -> dict[str, bytes]:
    """The content by name of the files that `locate` found in `path`.

    Raises:
        UserError: unreadable, truncated, of another size, or an archive with suspicious members.
    """
    try:
        if path.name == raw.archive:
            return _read_archive(raw, path, files)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(files[0].size + 1)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or unreadable ({error}); replace it") from None
    _check_size(path, files[0], len(content))
    return {files[0].name: content}


def _check_size(path: Path, file: RawFile, size: int) -> None:
    if size != file.size:
        has = "more" if size > file.size else f"{size:,}"
        raise UserError(
            f"{path}: {file.name} must have {file.size:,} bytes and has {has}; it is truncated or"
            " another file: replace it"
        )


def _read_archive(raw: Raw, path: Path, files: list[RawFile]) -> dict[str, bytes]:
    wanted = {f"{raw.folder}/{file.name}": file for file in files}
    limit = sum(file.size for file in raw.files) + SLACK
    contents: dict[str, bytes] = {}
    with (
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=_Bounded(unpacked, limit, path), mode="r|", bufsize=2**20) as archive,
    ):
        for member in archive:
            place = PurePosixPath(member.name)
            odd = place.is_absolute() or ".." in place.parts
            if odd or not (member.isreg() or member.isdir()):
                what = "lies outside of the archive's folder" if odd else "is no plain file"
                raise UserError(f"{path}: member {member.name[:80]!r} {what}; replace the archive")
            file = wanted.get(str(place))
            if file is None:
                continue
            if file.name in contents:
                raise UserError(f"{path}: {file.name} is in it twice; replace the archive")
            _check_size(path, file, member.size if member.isreg() else 0)
            contents[file.name] = archive.extractfile(member).read()
    for file in files:
        if file.name not in contents:
            raise UserError(f"{path} lacks {raw.folder}/{file.name}; replace the archive")
    return contents


class _Bounded:
    """What `tarfile` reads from: gives up on an archive that unpacks to more than it should."""

    def __init__(self, stream: BinaryIO, limit: int, path: Path) -> None:
        self.stream, self.left, self.path = stream, limit, path

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"{self.path} unpacks to more than it should; replace the archive")
        return data
