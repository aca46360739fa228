"""Files that are whole or absent, and verified when they are read. No torch, no pickle.

Symptom this prevents: a run killed while it writes leaves half a file that a later step takes for
a result. Cause: `open(path, "w")` truncates first. Protocol: write a temporary file in the same
folder, fsync it, rename it over the old one, fsync the folder. After a kill there is the old file
or the new one, and at worst a leftover `.tmp-*`, which no reader looks at and which the next
training of that folder removes.

Tensor files carry a SHA-256 of their own contents in their header, JSON files one of their
canonical form, and a folder of results names the sums of its files in its JSON record.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from peregrine.errors import UserError, refusal

CHECKSUM = "checksum"
HEADER = 4096
"""Bytes in front of tensors that are written before their sizes are known."""
MAPPED = {"U8": "|u1", "I64": "<i8", "F32": "<f4", "F64": "<f8"}
"""Types of the tensors that are streamed and mapped, as safetensors and numpy call them."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once; the folder is made where it is missing."""
    with replaced(path) as stream:
        stream.write(data)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file, to read and write, that takes the place of `path` at the end and only then."""
    temporary = path.parent / f".tmp-{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {refusal(error)}") from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Sorted, indented JSON with a checksum of its canonical form; NaN is refused."""
    # As it will be read: numbers as keys turn into text, which sorts in another order.
    body = json.loads(json.dumps(data, allow_nan=False))
    body.pop(CHECKSUM, None)
    body[CHECKSUM] = _json_sum(body)
    write_text(path, json.dumps(body, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that `write_json` wrote, without its checksum.

    Raises:
        UserError: missing, unreadable, not JSON, or changed since it was written.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        intact = data.pop(CHECKSUM) == _json_sum(data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {refusal(error)}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete it and rerun the step that writes it") from None
    if not intact:
        raise UserError(f"{path} was changed after it was written; delete it and rerun its step")
    return data


def _json_sum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Arrays as safetensors with `metadata`, and a digest of both in the header."""
    # Not ascontiguousarray, which turns a scalar into a vector.
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    digest = tensor_digest(arrays, metadata)
    write_bytes(path, _ordered(save_safetensors(arrays, metadata={**metadata, CHECKSUM: digest})))


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with sorted metadata: the library writes it in random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_tensors(
    path: Path, names: Iterable[str] | None = None, *, verify: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of a file that `write_tensors` wrote.

    Args:
        path: the file.
        names: which arrays to return; all when None.
        verify: recompute the digest; it always covers the whole file.

    Raises:
        UserError: missing, unreadable, truncated, or its digest does not fit.
    """
    try:
        path.open("rb").close()  # safetensors would call an unreadable file missing
        with safe_open(path, framework="np") as stream:
            metadata = dict(stream.metadata() or {})
            present = list(stream.keys())
            wanted = present if verify or names is None else list(names)
            arrays = {name: stream.get_tensor(name) for name in wanted}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {refusal(error)}") from None
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and rerun its step") from None
    digest = metadata.pop(CHECKSUM, None)
    if verify and digest != tensor_digest(arrays, metadata):
        raise UserError(f"{path} fails its checksum; delete it and rerun the step that writes it")
    if names is not None:
        missing = [name for name in names if name not in arrays]
        if missing:
            raise UserError(f"{path} has no '{missing[0]}'; delete it and rerun its step")
        arrays = {name: arrays[name] for name in names}
    return arrays, metadata


class TensorStream:
    """A safetensors file that is written tensor by tensor; nothing of it has to be in memory.

    Attributes:
        metadata: written at the end, so that it may hold what is known only then.
    """

    def __init__(self, stream: BinaryIO, metadata: Mapping[str, str]) -> None:
        self._stream = stream
        self.metadata = dict(metadata)
        self._places: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
        stream.write(b"\0" * HEADER)

    def flat(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """uint8 pieces behind one another, and zeros up to a multiple of 8: one flat tensor."""
        start = self._stream.tell()
        for piece in pieces:
            self._stream.write(np.ascontiguousarray(piece, np.uint8).data)
        self._stream.write(b"\0" * (-self._stream.tell() % 8))
        self._places[name] = np.dtype(np.uint8), (self._stream.tell() - start,), start

    def numbers(self, name: str, numbers: np.ndarray) -> None:
        """A tensor of int64, so that the next one begins at a multiple of 8 bytes, as all do."""
        self._places[name] = np.dtype("<i8"), numbers.shape, self._stream.tell()
        self._stream.write(np.ascontiguousarray(numbers, "<i8").data)

    def rows(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """Pieces [m, ...] of one type and width below one another: one tensor [n, ...].

        Behind a tensor of 4-byte numbers the next one may begin at an odd multiple of 4; whoever
        maps numbers of 8 bytes there gets a copy of them.
        """
        start, n, piece = self._stream.tell(), 0, np.empty(0, np.uint8)
        for piece in pieces:
            piece = np.ascontiguousarray(piece)
            self._stream.write(piece.data)
            n += len(piece)
        self._places[name] = piece.dtype, (n, *piece.shape[1:]), start

    def close(self) -> None:
        """Write the header, with the digest that `write_tensors` writes, into the room for it."""
        self._stream.flush()
        arrays = {name: _mapped(self._stream, *place) for name, place in self._places.items()}
        digest = tensor_digest(arrays, self.metadata)
        header: dict[str, Any] = {
            "__metadata__": dict(sorted({**self.metadata, CHECKSUM: digest}.items()))
        }
        names = {dtype: name for name, dtype in MAPPED.items()}
        for name, (kind, shape, start) in self._places.items():
            begin = start - HEADER
            end = begin + arrays[name].nbytes
            header[name] = {"dtype": names[kind.str], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode().ljust(HEADER - 8)
        if len(text) != HEADER - 8:
            raise ValueError(f"names and metadata take more than {HEADER - 8} bytes")
        self._stream.seek(0)
        self._stream.write(len(text).to_bytes(8, "little") + text)


@contextmanager
def streamed_tensors(path: Path, **metadata: str) -> Iterator[TensorStream]:
    """What `write_tensors` does, for arrays that do not fit into memory."""
    with replaced(path) as stream:
        tensors = TensorStream(stream, metadata)
        yield tensors
        tensors.close()


def map_tensors(
    path: Path, names: Iterable[str] | None = None, *, verify: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `read_tensors` returns, but read-only arrays of types MAPPED that stay in the file.

    Raises:
        UserError: missing, unreadable, truncated, without one of them, or its digest does not fit.
    """
    try:
        with path.open("rb") as stream:
            with safe_open(path, framework="np"):  # refuses a header that does not fit the file
                length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            metadata = header.pop("__metadata__", {})
            arrays = {
                name: _mapped(
                    stream,
                    np.dtype(MAPPED[header[name]["dtype"]]),
                    tuple(header[name]["shape"]),
                    8 + length + header[name]["data_offsets"][0],
                )
                for name in (header if verify or names is None else names)
            }
            wanted = {name: arrays[name] for name in (arrays if names is None else names)}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {refusal(error)}") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and rerun its step") from None
    digest = metadata.pop(CHECKSUM, None)
    if verify and digest != tensor_digest(arrays, metadata):
        raise UserError(f"{path} fails its checksum; delete it and rerun the step that writes it")
    return wanted, metadata


def _mapped(stream: BinaryIO, kind: np.dtype, shape: tuple[int, ...], start: int) -> np.ndarray:
    if 0 in shape:  # nothing can be mapped
        return np.empty(shape, kind)
    array = np.memmap(stream, kind, "r", start, shape)
    return array if array.flags.aligned else np.array(array)


def tensor_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays, and over the metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows as CSV; floats in their shortest exact form, so equal numbers give equal bytes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
