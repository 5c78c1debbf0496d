"""Run directories and atomic writes: a killed or full-disk run loses nothing already saved.

A run directory is the unit of work::

    run.yaml        resolved configuration; the directory refuses any other
    steps/KEY.json  finished pieces of work, each written atomically
    results.json    the final result
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from spikedim.errors import StorageError
from spikedim.results import plain

_TEMPORARY = ".tmp-"
_SHOWN = 40  # characters of a setting in a message


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically and return the path.

    A temporary file beside it takes its place only when it is whole and on the disk.

    Raises:
        StorageError: the disk is full or the place is not writable; ``path`` is untouched.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{_TEMPORARY}{path.name}."
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text to ``path`` atomically and return the path."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` (dataclasses and arrays allowed) as JSON, atomically."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | Path, mend: str = "remove it and run again") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        mend: what to do about one that is not JSON.

    Raises:
        StorageError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StorageError(f"cannot read {path}: {error}; {mend}") from error


def digest(value: Any, length: int = 8) -> str:
    """Short hexadecimal SHA-256 of any plain value, for naming runs after their configuration."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def write_arrays(path: str | Path, arrays: Mapping[str, Any]) -> Path:
    """Write named arrays to an .npz file as :func:`write_bytes` does."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    return write_bytes(path, data.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays written by :func:`write_arrays`; ``None`` if there is no such file.

    Raises:
        StorageError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}; remove it and run again"
        ) from error
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise StorageError(f"{path} is not a whole .npz file; remove it and run again") from error


class Run:
    """An exclusive, resumable run directory.

    The same ``config`` finds the same directory again, with every finished step; a different
    ``config`` is refused rather than mixed in. Use as a context manager: the directory is
    locked against a second process until the block ends (the lock dies with the process).

    Args:
        path: the directory; created when missing.
        config: everything that determines the result.

    Raises:
        StorageError: not writable, locked by another process, or made with another config.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.config = plain(config)
        self._lock = FileLock(self.path / ".lock", blocking=False)

    @classmethod
    def named(cls, root: str | Path, name: str, config: Mapping[str, Any]) -> Run:
        """Run directory ``root/name-DIGEST`` where DIGEST identifies ``config``."""
        return cls(Path(root) / f"{name}-{digest(config)}", config)

    def __enter__(self) -> Run:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise StorageError(
                f"run directory {self.path} is in use by another process; wait for it, "
                "or choose another with --out"
            ) from error
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            self._check_config()
            self._remove_leftovers()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process gets the directory without the lock, which its parent holds."""
        return Run, (self.path, self.config)

    def _check_config(self) -> None:
        path = self.path / "run.yaml"
        if not path.exists():
            text = yaml.safe_dump(self.config, sort_keys=True, allow_unicode=True)
            write_text(path, text)
            return
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise StorageError(f"cannot read {path}: {reason}; remove {self.path}") from error
        if not isinstance(stored, dict):
            raise StorageError(f"cannot read {path}: it holds no settings; remove {self.path}")
        if stored != self.config:
            raise StorageError(
                f"{self.path} holds a run with other settings "
                f"({', '.join(_changes(stored, self.config))}); "
                "choose another directory with --out or remove it"
            )

    def _remove_leftovers(self) -> None:
        """Delete what processes killed in the middle of a write have left behind."""
        for path in self.path.rglob(f"{_TEMPORARY}*"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error

    def file(self, *parts: str) -> Path:
        """Path inside the run directory; parent folders are made.

        Raises:
            StorageError: a folder cannot be made.
        """
        path = self.path.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
        return path

    def stored(self, key: str) -> bool:
        """Whether step ``key`` is finished."""
        return self._step(key).exists()

    def step(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the stored plain-data result of step ``key``, computing it the first time."""
        if self.stored(key):
            return read_json(self._step(key))
        value = plain(compute())
        write_json(self._step(key), value)
        return value

    def _step(self, key: str) -> Path:
        return self.path / "steps" / f"{key}.json"


def _changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Every setting that differs, by its dotted name, with its old and its new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = name and f"{name}."
        return [
            line
            for key in sorted({*old, *new}, key=str)
            for line in _changes(old.get(key), new.get(key), f"{prefix}{key}")
        ]
    return [] if old == new else [f"{name}: {str(old)[:_SHOWN]} → {str(new)[:_SHOWN]}"]


def system_fault(error: OSError) -> str:
    """What the system refused, of which file, and what to do, for a fault no caller explained."""
    where = f"{error.filename}: " if error.filename else ""
    reason = f"{where}{error.strerror or error}"
    if _is_full(error):
        return f"{reason}; free some space, then run the same command again"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{reason}; choose a place you may read and write"
    if isinstance(error, FileNotFoundError):
        return f"{reason}; check the name, or reinstall spikedim if the file is one of its own"
    return reason


def storage_error(path: Path, error: OSError) -> StorageError:
    """What an error while writing ``path`` means to the user."""
    if _is_full(error):
        return StorageError(
            f"no disk space left while writing {path}; free some space or choose another place, "
            "then run the same command again: finished work is kept"
        )
    mend = "name a file" if isinstance(error, IsADirectoryError) else "choose a writable place"
    return StorageError(f"cannot write {path}: {error.strerror or error}; {mend}")


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
