"""IDX files, the format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import reading
from spikedim.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_EXPECTED = "an IDX array (00 00 TYPE RANK, sizes, values)"


def is_idx(path: Path) -> bool:
    """Whether ``path`` is an IDX images file."""
    return path.is_file() and "idx3" in path.name


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with MNIST-style IDX files."""
    return path.is_dir() and _find(path, "train", "images") is not None


def read_idx(path: Path) -> Dataset:
    """Read one IDX images file and, where it exists, the labels file that goes with it."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    found = read_array(labels) if labels != path and labels.exists() else None
    return make_dataset(path.parent.name, (read_array(path), found), source=str(path))


def read_folder(path: Path) -> Dataset:
    """Read a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k- pair.

    Each may be compressed (.gz) and may spell the dash before idx as a dot. Without a t10k- pair
    there is no test split.

    Raises:
        DataError: a labels file is missing, or a file is corrupt.
    """
    test = None
    if _find(path, "t10k", "images") is not None:
        test = _pair(path, "t10k")
    return make_dataset(path.name, _pair(path, "train"), test, source=str(path))


def read_array(path: Path) -> np.ndarray:
    """Read one IDX file; an uncompressed one is memory-mapped.

    Raises:
        DataError: missing, of another kind, or shorter or longer than its header says.
    """
    with reading(path, _EXPECTED):
        if path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
            dtype, shape, start = _header(data)
            _check_length(len(data) - start, dtype, shape)
            return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
        with path.open("rb") as handle:
            dtype, shape, start = _header(handle.read(4 + 4 * 255))
        _check_length(path.stat().st_size - start, dtype, shape)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, mode="r", dtype=dtype, offset=start, shape=shape)


def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or data[3] == 0:
        raise ValueError(f"it starts with {data[:4].hex(' ') or 'nothing'}")
    rank = data[3]
    if len(data) < 4 + 4 * rank:
        raise ValueError("it ends inside the header")
    return np.dtype(_TYPES[data[2]]), struct.unpack_from(f">{rank}I", data, 4), 4 + 4 * rank


def _check_length(found: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if found != expected:
        raise ValueError(f"shape {shape} needs {expected} bytes of values but it has {found}")


def _find(path: Path, prefix: str, what: str) -> Path | None:
    rank = 3 if what == "images" else 1
    for dash in "-.":
        for suffix in ("", ".gz"):
            candidate = path / f"{prefix}-{what}{dash}idx{rank}-ubyte{suffix}"
            if candidate.is_file():
                return candidate
    return None


def _pair(path: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _find(path, prefix, "images"), _find(path, prefix, "labels")
    if images is None or labels is None:
        raise DataError(
            f"{path} lacks {prefix}-labels-idx1-ubyte[.gz]; put it beside {prefix}-images"
        )
    return read_array(images), read_array(labels)
