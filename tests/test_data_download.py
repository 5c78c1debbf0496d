"""Downloads, against a server on this machine only."""

import errno
import gzip
import hashlib
import importlib
import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from spikedim.data import PUBLIC_SETS, PublicSet, RemoteFile, download, load_dataset
from spikedim.errors import ConfigError, DataError, StorageError

module = importlib.import_module("spikedim.data.download")
BODY = bytes(range(256)) * 1000


def sha(body):
    return "sha256:" + hashlib.sha256(body).hexdigest()


class Server:
    """Serves ``files``; ``cut`` ends the next body early; ``ranges`` records Range headers."""

    def __init__(self):
        self.files, self.cut, self.ranges, self.resumes = {}, None, [], True
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = owner.files.get(self.path.lstrip("/"))
                if body is None:
                    self.send_error(404)
                    return
                asked, start = self.headers.get("Range"), 0
                owner.ranges.append(asked)
                if asked and owner.resumes:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end, owner.cut = owner.cut, None
                self.wfile.write(body[start:end])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, name):
        return f"http://127.0.0.1:{self.http.server_port}/{name}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    server.files["file.bin"] = BODY
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


def test_fetch_and_fetch_again(server, tmp_path):
    path = download(server.url("file.bin"), tmp_path / "new", sha(BODY))
    assert path.read_bytes() == BODY
    assert download(server.url("file.bin"), tmp_path / "new", sha(BODY)) == path
    assert server.ranges == [None]
    md5 = "md5:" + hashlib.md5(BODY).hexdigest()
    assert download(server.url("file.bin"), tmp_path / "md5", md5).read_bytes() == BODY


def test_truncated_body_is_resumed(server, tmp_path):
    server.cut = 100_000
    with pytest.raises(DataError, match=r"ended after 100,000 of 256,000 bytes; run the same"):
        download(server.url("file.bin"), tmp_path, sha(BODY))
    assert not (tmp_path / "file.bin").exists()
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:100_000]
    assert download(server.url("file.bin"), tmp_path, sha(BODY)).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]
    assert not (tmp_path / "file.bin.part").exists()


def test_server_without_ranges_starts_over(server, tmp_path):
    server.resumes = False
    (tmp_path / "file.bin.part").write_bytes(BODY[:5000])
    assert download(server.url("file.bin"), tmp_path, sha(BODY)).read_bytes() == BODY


def test_complete_part_is_taken(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(BODY)
    assert download(server.url("file.bin"), tmp_path, sha(BODY)).read_bytes() == BODY


def test_wrong_checksum_keeps_nothing(server, tmp_path):
    with pytest.raises(DataError, match="was expected"):
        download(server.url("file.bin"), tmp_path, sha(b"other"))
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_existing_file_with_other_content(server, tmp_path):
    (tmp_path / "file.bin").write_text("mine")
    with pytest.raises(DataError, match="remove it"):
        download(server.url("file.bin"), tmp_path, sha(BODY))
    assert (tmp_path / "file.bin").read_text() == "mine"


def test_not_found(server, tmp_path):
    with pytest.raises(DataError, match="answers 404"):
        download(server.url("nothing"), tmp_path, sha(BODY))


def test_no_server(server, tmp_path):
    url = server.url("file.bin")
    server.http.server_close()
    with pytest.raises(DataError, match="check the network"):
        download(url, tmp_path, sha(BODY))


def test_too_little_space(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="MB free"):
        download(server.url("file.bin"), tmp_path, sha(BODY))


def test_disk_full_while_writing(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(StorageError, match="no disk space left"):
        download(server.url("file.bin"), tmp_path, sha(BODY))


def test_unwritable_destination(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable"):
        download("http://127.0.0.1:9/x.bin", tmp_path / "file", sha(BODY))


@pytest.mark.parametrize(
    ("name", "checksum", "message"),
    [
        ("cifar11", None, "neither"),
        ("file:///etc/passwd", sha(b""), "neither"),
        ("http://127.0.0.1:9/x.bin", None, "no checksum"),
        ("http://127.0.0.1:9/x.bin", "sha256:12", "hexadecimal"),
        ("http://127.0.0.1:9/x.bin", "crc:" + "0" * 32, "hexadecimal"),
        ("http://127.0.0.1:9/", sha(b""), "file name"),
        ("http://127.0.0.1:9/a/%2e%2e", sha(b""), "file name"),
        ("mnist", sha(b""), "leave it out"),
    ],
)
def test_bad_arguments(tmp_path, name, checksum, message):
    with pytest.raises(ConfigError, match=message):
        download(name, tmp_path, checksum)


def tar(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(server, monkeypatch, **files):
    server.files.update(files)
    remote = tuple(RemoteFile(server.url(name), sha(body)) for name, body in files.items())
    monkeypatch.setitem(PUBLIC_SETS, "mine", PublicSet("mine", "image", "test", "", remote))


def test_archive_is_unpacked_and_loads(server, tmp_path, monkeypatch):
    record = np.zeros((2, 3074), np.uint8)
    record[1, 1] = 1
    members = {"outer/train.bin": record.tobytes(), "outer/test.bin": record.tobytes()}
    publish(server, monkeypatch, **{"set.tar.gz": tar(**members)})
    with pytest.raises(DataError, match="download"):
        load_dataset("mine", tmp_path)
    assert download("mine", tmp_path) == tmp_path / "mine"
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == ["mine"]
    assert len(load_dataset("mine", tmp_path).train) == 2
    download("mine", tmp_path)
    assert len(server.ranges) == 1


def test_plain_files_are_kept_and_resumed_between_files(server, tmp_path, monkeypatch):
    files = {"a.gz": gzip.compress(b"a"), "b.gz": gzip.compress(b"b")}
    publish(server, monkeypatch, **files)
    del server.files["b.gz"]
    with pytest.raises(DataError, match="404"):
        download("mine", tmp_path)
    assert not (tmp_path / "mine").exists()
    server.files |= files
    download("mine", tmp_path)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["a.gz", "b.gz"]
    assert len(server.ranges) == 2


@pytest.mark.parametrize(
    "body",
    [tar(**{"../evil": b"x"}), b"not an archive", tar(a=b"x" * 999)[:40]],
    ids=["outside", "foreign", "cut"],  # a gzip body holds the time, which is no name for a test
)
def test_bad_archives_are_refused(server, tmp_path, monkeypatch, body):
    publish(server, monkeypatch, **{"set.tar.gz": body})
    with pytest.raises(DataError, match="refused to unpack"):
        download("mine", tmp_path / "in")
    assert not (tmp_path / "in" / "mine").exists()
    assert not list(tmp_path.rglob("evil"))


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKEDIM_CACHE", str(tmp_path))
    assert module.default_root() == tmp_path
    monkeypatch.delenv("SPIKEDIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.default_root() == tmp_path / "spikedim"


def test_registry_is_well_formed():
    for public in PUBLIC_SETS.values():
        for remote in public.files:
            assert remote.url.startswith("https://")
            module._parse_checksum(remote.checksum)
