"""Fetching a published file: resumed, bounded, and checked before it gets its name."""

import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from peregrine.data.raw import Download
from peregrine.errors import UserError

ATTEMPTS = 4
PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
TIMEOUT = 30.0
"""Seconds without any byte."""
CHUNK = 2**18
FINAL = (400, 401, 403, 404, 410, 451)
"""Answers that another attempt will not change."""


class _Broken(Exception):
    """The transfer failed; another attempt may do better."""


class _Refused(_Broken):
    """No other attempt will do better."""


def download(item: Download, folder: Path, remedy: str) -> Path:
    """Fetch a file into `folder`, going on with what an earlier attempt has left in NAME.part.

    Args:
        item: where it is, with its size and digest.
        folder: made where it is missing.
        remedy: what a user can do if the file cannot be had; ends the message.

    Returns:
        The path, once the file is whole and its digest fits.

    Raises:
        UserError: unreachable, refused, not the published file, or the disk is full.
    """
    target, part = folder / item.name, folder / f"{item.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            _claim(stream, part)
            try:
                _complete(item, stream, part, remedy)
            except UserError:
                if not stream.seek(0, os.SEEK_END):
                    part.unlink()
                raise
            os.fsync(stream.fileno())
            os.replace(part, target)
    except OSError as error:
        raise UserError(f"{part} cannot be written: {error.strerror or error}") from None
    return target


def _claim(stream: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(stream.fileno()), os.stat(part))
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise UserError(f"{part} is being written by another process; wait for it")


def _complete(item: Download, stream: BinaryIO, part: Path, remedy: str) -> None:
    """Bring `stream` to the published file, by as many attempts as it takes and is allowed."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        start = stream.seek(0, os.SEEK_END)
        try:
            if start < item.size:
                _fetch(item, stream, start)
            _check(item, stream, part, start)
            return
        except _Broken as error:
            reason = error
            if isinstance(error, _Refused):
                break
    raise UserError(f"{item.url}: {reason}; {remedy}")


def _fetch(item: Download, stream: BinaryIO, start: int) -> None:
    """Append the bytes from `start` on; all of them where the server does not know ranges."""
    headers = {"User-Agent": "peregrine", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(item.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is there already is longer than the file
            stream.truncate(0)
        kind = _Refused if error.code in FINAL else _Broken
        raise kind(f"the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: redirected to no address
        raise _Broken(f"cannot be reached ({getattr(error, 'reason', error)})") from None
    with answer:
        if start and not (
            answer.status == 206
            and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            start = stream.truncate(0)
        _append(item, stream, answer, start)


def _append(item: Download, stream: BinaryIO, answer: HTTPResponse, size: int) -> None:
    with tqdm(
        total=item.size, initial=size, unit="B", unit_scale=True, desc=item.name, disable=None
    ) as bar:
        while True:
            try:
                chunk = answer.read1(CHUNK)
            except (OSError, HTTPException) as error:
                raise _Broken(f"the transfer broke off ({error or type(error).__name__})") from None
            if not chunk:
                break
            size += len(chunk)
            if size > item.size:
                stream.truncate(0)
                raise _Refused(f"it is longer than the published {item.size:,} bytes")
            stream.write(chunk)
            bar.update(len(chunk))
    if size < item.size:
        raise _Broken(f"the transfer broke off at {size:,} of {item.size:,} bytes")


def _check(item: Download, stream: BinaryIO, part: Path, start: int) -> None:
    """Refuse, and forget, what is not the published file; a resumed one gets another chance."""
    stream.flush()
    with part.open("rb") as written:
        found = hashlib.file_digest(written, item.digest.partition(":")[0]).hexdigest()
    if found != item.digest.partition(":")[2]:
        stream.truncate(0)
        kind = _Broken if start else _Refused
        raise kind(f"what came is not the published file, whose digest is {item.digest}")
