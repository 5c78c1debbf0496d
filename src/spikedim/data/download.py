"""Downloads of public data sets: resumable, verified before use, safely unpacked."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from spikedim.errors import ConfigError, DataError, StorageError
from spikedim.progress import task
from spikedim.storage import storage_error

_CHUNK = 1 << 16
_TIMEOUT_S = 60.0
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web and its published checksum, ``"sha256:HEX"`` or ``"md5:HEX"``."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        """File name at the end of the address."""
        return unquote(urlparse(self.url).path).rsplit("/", 1)[-1]


@dataclass(frozen=True)
class PublicSet:
    """A public data set: one archive to unpack, or files kept as they are."""

    name: str
    kind: str
    origin: str
    terms: str
    files: tuple[RemoteFile, ...]


def _idx(base: str, *checksums: str) -> tuple[RemoteFile, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        RemoteFile(f"{base}/{part}-ubyte.gz", checksum)
        for part, checksum in zip(parts, checksums, strict=True)
    )


_SETS = (
    PublicSet(
        "cifar10_full",
        "image",
        "CIFAR-10, all 60,000 images, official split (170 MB)",
        "no licence stated; cite Krizhevsky 2009",
        (
            RemoteFile(
                f"{_CIFAR}/cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
    ),
    PublicSet(
        "cifar100_full",
        "image",
        "CIFAR-100, all 60,000 images, official split (169 MB)",
        "no licence stated; cite Krizhevsky 2009",
        (
            RemoteFile(
                f"{_CIFAR}/cifar-100-python.tar.gz",
                "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ),
        ),
    ),
    PublicSet(
        "mnist",
        "image",
        "MNIST, all 70,000 images, official split (12 MB)",
        "cite LeCun, Bottou, Bengio and Haffner 1998",
        _idx(
            _MNIST,
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    PublicSet(
        "fashion_mnist_full",
        "image",
        "Fashion-MNIST, all 70,000 images, official split (31 MB)",
        "MIT (Zalando)",
        _idx(
            _FASHION,
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
)
PUBLIC_SETS = {public.name: public for public in _SETS}


def default_root() -> Path:
    """Where downloads go: ``$SPIKEDIM_CACHE``, else ``spikedim`` in the user's cache folder."""
    own = os.environ.get("SPIKEDIM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikedim"


def location(name: str, root: Path | None = None) -> Path:
    """Folder of the public set ``name``, below ``root`` or in the cache, where it is complete."""
    places = [place / name for place in (root, default_root()) if place is not None]
    return next((place for place in places if place.exists()), places[0])


def download(name_or_url: str, root: str | Path | None = None, checksum: str | None = None) -> Path:
    """Fetch a public data set, or one file by its address.

    Data arrive in a ``.part`` file that takes its final name only when its checksum is right; an
    interrupted download continues where it ended when the same call is made again. Archives of
    public sets are unpacked with the ``data`` filter, which refuses links and paths that lead
    outside. The checksums of CIFAR and MNIST are SHA-256, those of Fashion-MNIST the MD5 its
    authors publish.

    Args:
        name_or_url: a name of :data:`PUBLIC_SETS`, or an http(s) address.
        root: destination folder; default :func:`default_root`.
        checksum: ``"sha256:HEX"`` or ``"md5:HEX"``; required for an address.

    Returns:
        The folder of the set (pass it, or the name, to ``load_dataset``), or the file.

    Raises:
        ConfigError: unknown name, no or a malformed checksum.
        DataError: no network, address not found, connection lost, wrong checksum, bad archive.
        StorageError: disk full or destination not writable.
    """
    place = Path(root) if root is not None else default_root()
    if name_or_url in PUBLIC_SETS:
        if checksum is not None:
            raise ConfigError(f"checksum: the one of {name_or_url} is known; leave it out")
        return _download_set(PUBLIC_SETS[name_or_url], place)
    if urlparse(name_or_url).scheme not in ("http", "https"):
        raise ConfigError(
            f"{name_or_url!r} is neither an http(s) address nor one of {', '.join(PUBLIC_SETS)}"
        )
    if checksum is None:
        raise ConfigError(
            f"no checksum for {name_or_url}; give checksum='sha256:HEX' as published with the file"
        )
    remote = RemoteFile(name_or_url, checksum)
    if remote.name in ("", ".", ".."):
        raise ConfigError(f"{name_or_url} does not end in a file name; give the file's own address")
    target = place / remote.name
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{remote.name}.lock"):
            _fetch(remote, target)
    return target


def _download_set(public: PublicSet, root: Path) -> Path:
    target = root / public.name
    with _writing(target):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{public.name}.lock"):
            if target.exists():
                return target
            staging = root / f"{public.name}.part"
            staging.mkdir(exist_ok=True)
            for remote in public.files:
                _fetch(remote, staging / remote.name)
            archive = staging / public.files[0].name
            if archive.name.endswith(".tar.gz"):
                _unpack(archive, staging / "unpacked")
                os.replace(staging / "unpacked", target)
                shutil.rmtree(staging)
            else:
                os.replace(staging, target)
    return target


def _fetch(remote: RemoteFile, target: Path) -> None:
    algorithm, expected = _parse_checksum(remote.checksum)
    if target.exists():
        if _digest(target, algorithm) == expected:
            return
        raise DataError(
            f"{target} exists but its {algorithm} is not that of {remote.url}; "
            "remove it and download again"
        )
    part = target.with_name(target.name + ".part")
    _stream(remote.url, part)
    found = _digest(part, algorithm)
    if found != expected:
        part.unlink()
        raise DataError(
            f"{remote.url}: {algorithm} is {found} but {expected} was expected; the file changed "
            "or was damaged on the way, nothing was kept: try again or check the address"
        )
    os.replace(part, target)


def _stream(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "spikedim", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing left to fetch: the checksum decides
        raise DataError(
            f"{url} answers {error.code} {error.reason}; check the address or try again later"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"cannot reach {url}: {reason}; check the network and run the same command again"
        ) from error
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT and (
            response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        )
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        _check_space(part, total, start)
        _copy(response, part, url, start, total)


def _copy(response: Any, part: Path, url: str, start: int, total: int | None) -> None:
    done, label = start, f"downloading {part.name.removesuffix('.part')} (KiB)"
    with (
        part.open("ab" if start else "wb") as handle,
        task(label, None if total is None else total // 1024) as progress,
    ):
        progress.advance(start // 1024)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _lost(url, done, total) from error
            if not chunk:
                break
            handle.write(chunk)
            progress.advance((done + len(chunk)) // 1024 - done // 1024)
            done += len(chunk)
    if total is not None and done < total:
        raise _lost(url, done, total)


def _lost(url: str, done: int, total: int | None) -> DataError:
    of = f" of {total:,}" if total is not None else ""
    return DataError(
        f"{url}: the connection ended after {done:,}{of} bytes; "
        "run the same command again to continue from there"
    )


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        raise StorageError(
            f"{part.parent} has {free / 1e6:,.0f} MB free but {(total - start) / 1e6:,.0f} MB are "
            "needed; free some space or choose another folder"
        )


def _unpack(archive: Path, destination: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError("this Python cannot unpack archives safely; use Python 3.11.4 or newer")
    shutil.rmtree(destination, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(destination, filter="data")
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(destination, ignore_errors=True)
        raise DataError(f"refused to unpack {archive.name}: {error}") from error


def _parse_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, value = checksum.lower().partition(":")
    digits = {"sha256": 64, "md5": 32}.get(algorithm)
    if digits is None or len(value) != digits or set(value) - set("0123456789abcdef"):
        raise ConfigError(
            f"checksum={checksum!r}: expected 'sha256:' and 64 or 'md5:' and 32 hexadecimal digits"
        )
    return algorithm, value


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(
            handle, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(target, error) from error
