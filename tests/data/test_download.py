"""Fetching over HTTP, from a server on this machine that misbehaves on demand. No internet."""

import fcntl
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from peregrine.data import download as under_test
from peregrine.data.download import download
from peregrine.data.raw import Download
from peregrine.errors import UserError

CONTENT = bytes(range(256)) * 4000
REMEDY = "put it there"


class Server(ThreadingHTTPServer):
    """Serves `files`; `faults` are used up, one per request: a status, or what to do wrong."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {"data.bin": CONTENT}, [], []

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        server.asked.append(span)
        fault = server.faults.pop(0) if server.faults else None
        data = server.files.get(self.path.lstrip("/"))
        if data is None or isinstance(fault, int):
            self.send_error(404 if data is None else fault)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        if fault == "no ranges":
            start = 0
        elif start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        said = f"bytes {start + (fault == 'other range')}-{len(data) - 1}/{len(data)}"
        if start:
            self.send_header("Content-Range", said)
        if fault != "longer":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if fault in ("breaks off", "hangs"):
            body = body[: len(body) // 2]
        if fault == "corrupts":
            body = body[:-1] + b"?"
        if fault == "longer":
            body += b"more"
        self.wfile.write(body)
        if fault == "hangs":
            self.server.released.wait(10)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(under_test, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        running.released = threading.Event()
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.released.set()
        running.shutdown()


@pytest.fixture
def item(server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Download(f"{server.base}/data.bin", len(CONTENT), f"sha256:{digest}")


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(item, folder):
    with pytest.raises(UserError) as error:
        download(item, folder, REMEDY)
    text = str(error.value)
    assert "\n" not in text
    assert item.url in text
    assert text.endswith(REMEDY)
    assert "data.bin" not in left(folder)
    return text


def test_a_file_comes_whole_under_its_own_name(server, item, tmp_path):
    folder = tmp_path / "raw/set"
    assert download(item, folder, REMEDY) == folder / "data.bin"
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert left(folder) == ["data.bin"]
    assert server.asked == [None]


def test_what_broke_off_is_resumed(server, item, tmp_path):
    server.faults = ["breaks off", "breaks off"]
    download(item, tmp_path, REMEDY)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=512000-", "bytes=768000-"]


def test_an_earlier_attempt_is_continued(server, item, tmp_path):
    server.faults = ["breaks off"] * under_test.ATTEMPTS
    assert "broke off" in refusal(item, tmp_path)
    assert left(tmp_path) == ["data.bin.part"]
    server.asked.clear()
    download(item, tmp_path, REMEDY)
    assert server.asked == ["bytes=960000-"]  # 15 sixteenths of 1,024,000
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server, item, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    download(item, tmp_path, REMEDY)
    assert server.asked == []


@pytest.mark.parametrize("fault", ["no ranges", "other range"])
def test_a_server_without_ranges_starts_again(server, item, tmp_path, fault):
    server.faults = ["breaks off", fault]
    download(item, tmp_path, REMEDY)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[:1000] + b"?", b"?" * len(CONTENT), CONTENT + b"?"])
def test_a_damaged_part_is_forgotten(server, item, tmp_path, part):
    (tmp_path / "data.bin.part").write_bytes(part)
    download(item, tmp_path, REMEDY)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.asked[-1] is None


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server, item, tmp_path, status):
    server.faults = [status] * (under_test.ATTEMPTS - 1)
    download(item, tmp_path, REMEDY)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    (tmp_path / "data.bin").unlink()
    server.faults = [status] * under_test.ATTEMPTS
    assert f"the server answers {status}" in refusal(item, tmp_path)


def test_what_is_not_there_is_asked_for_once(server, item, tmp_path):
    server.files.clear()
    assert "the server answers 404" in refusal(item, tmp_path)
    assert server.asked == [None]


def test_another_file_is_never_kept(server, item, tmp_path):
    server.faults = ["corrupts"]
    text = refusal(item, tmp_path)
    assert item.digest in text
    assert left(tmp_path) == []
    assert server.asked == [None]


def test_a_file_that_is_too_long_is_cut_short(server, item, tmp_path):
    server.faults = ["longer"]
    assert "longer than the published 1,024,000 bytes" in refusal(item, tmp_path)
    assert left(tmp_path) == []


def test_a_silent_server_is_given_up_on(server, item, tmp_path, monkeypatch):
    monkeypatch.setattr(under_test, "TIMEOUT", 0.2)
    monkeypatch.setattr(under_test, "ATTEMPTS", 1)
    server.faults = ["hangs"]
    assert "broke off (timed out)" in refusal(item, tmp_path)
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[: len(CONTENT) // 2]


def test_no_server_at_all(item, tmp_path, server):
    server.server_close()
    server.shutdown()
    assert "cannot be reached" in refusal(item, tmp_path)


def test_a_name_that_nobody_knows(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise under_test.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(under_test.urllib.request, "urlopen", offline)
    monkeypatch.setattr(under_test, "PAUSE", 0.0)
    item = Download("http://nowhere.invalid/data.bin", 1, "md5:" + "0" * 32)
    assert "cannot be reached (Name or service not known)" in refusal(item, tmp_path)


def test_only_one_process_fetches_a_file(item, tmp_path):
    with (tmp_path / "data.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"data\.bin\.part is being written by another process"):
            download(item, tmp_path, REMEDY)


def test_a_folder_that_cannot_be_written_is_one_line(item, tmp_path):
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        download(item, tmp_path / "raw", REMEDY)


def test_the_next_attempt_waits_longer(server, item, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(under_test, "PAUSE", 1.5)
    monkeypatch.setattr(under_test.time, "sleep", waits.append)
    server.faults = [500] * 9
    refusal(item, tmp_path)
    assert waits == [1.5, 3.0, 6.0]
