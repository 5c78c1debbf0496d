"""What the readers share: opening files and turning their faults into one clear line."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from spikedim.errors import DataError
from spikedim.progress import task

TEST_NAMES = ("test", "dev", "validation", "valid", "val")
_OBJECTS = ("Object arrays", "Python objects")  # what NumPy says of them


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading ``path`` into a :class:`DataError` naming it."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; expected {expected}") from error
    except Exception as error:  # the libraries that read have many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        if any(words in reason for words in _OBJECTS):
            raise DataError(
                f"cannot read {path} as {expected}: it holds Python objects, as samples of "
                "different shapes are; save one array of numbers, its samples of one shape"
            ) from error
        raise DataError(
            f"cannot read {path} as {expected}: {reason}; the file is truncated, corrupt or of "
            "another kind, fetch or write it again"
        ) from error


def stem(path: Path) -> str:
    """File name without its data and compression suffixes."""
    name = path.name
    for suffix in (".gz", ".xz", ".npy", ".npz", ".tsv", ".csv", ".txt"):
        name = name.removesuffix(suffix)
    return name


def read_npy(path: Path) -> np.ndarray:
    """Open a ``.npy`` file memory-mapped, or decompress a ``.npy.xz`` file (kept in memory)."""
    with reading(path, "a NumPy array"):
        if path.suffix == ".xz":
            status = path.stat()
            return _decompress(str(path), status.st_mtime_ns, status.st_size)
        return np.lib.format.open_memmap(path, mode="r")


@lru_cache(maxsize=4)
def _decompress(path: str, modified: int, size: int) -> np.ndarray:
    with task(f"unpacking {Path(path).name}"), lzma.open(path) as handle:
        array: np.ndarray = np.lib.format.read_array(handle, allow_pickle=False)
        if handle.read(1):
            raise ValueError("more data after the array")
    array.setflags(write=False)
    return array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` archive."""
    with reading(path, "an .npz archive"), np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def read_text(path: Path) -> str:
    """A UTF-8 text file, ``.gz`` or plain."""
    with reading(path, "UTF-8 text"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
