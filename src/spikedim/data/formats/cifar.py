"""CIFAR-10 and CIFAR-100 as distributed: Python pickles and fixed-length binary records."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import reading
from spikedim.errors import DataError

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CITATION = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_ARRAY_PARTS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def is_pickled(path: Path) -> bool:
    """Whether ``path`` is a folder of CIFAR pickles."""
    return (path / "batches.meta").is_file() or (
        (path / "meta").is_file() and (path / "train").is_file()
    )


def is_binary(path: Path) -> bool:
    """Whether ``path`` is a folder of CIFAR binary records."""
    return (path / "test_batch.bin").is_file() or (
        (path / "train.bin").is_file() and (path / "test.bin").is_file()
    )


def read_pickled(path: Path) -> Dataset:
    """Read ``cifar-10-batches-py`` or ``cifar-100-python`` (fine labels).

    Only arrays, bytes, numbers, lists and dictionaries are rebuilt; a pickle that names anything
    else is refused before anything of it runs.

    Raises:
        DataError: a batch is missing, corrupt or not one of these.
    """
    if (path / "batches.meta").is_file():
        meta, train, test = "batches.meta", _BATCHES, ("test_batch",)
        names_key, labels_key, name = "label_names", "labels", "cifar10"
    else:
        meta, train, test = "meta", ("train",), ("test",)
        names_key, labels_key, name = "fine_label_names", "fine_labels", "cifar100"
    _require(path, (*train, *test))
    names = _entry(path / meta, _unpickle(path / meta), names_key)
    return _cifar(
        name,
        _batches(path, train, labels_key),
        _batches(path, test, labels_key),
        [_text(entry) for entry in names],
    )


def read_binary(path: Path) -> Dataset:
    """Read ``cifar-10-batches-bin`` (1 label byte) or ``cifar-100-binary`` (coarse, fine).

    Raises:
        DataError: a file is missing or its length is not a whole number of records.
    """
    if (path / "test_batch.bin").is_file():
        train, test = tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",)
        names, name, count = "batches.meta.txt", "cifar10", 1
    else:
        train, test = ("train.bin",), ("test.bin",)
        names, name, count = "fine_label_names.txt", "cifar100", 2
    _require(path, (*train, *test))
    return _cifar(
        name,
        _records(path, train, count),
        _records(path, test, count),
        (path / names).read_text().split() if (path / names).is_file() else [],
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays only: every other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return _ARRAY_PARTS[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _array_from_buffer
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise DataError(
            f"refused: the pickle asks for {module}.{name}, which is not array data; "
            "fetch the file again from its official source"
        )


def _empty_array(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _array_from_buffer(buffer: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _unpickle(path: Path) -> Any:
    with reading(path, "a CIFAR batch"):
        data = path.read_bytes()
        try:
            return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        except (DataError, MemoryError):
            raise
        except Exception as error:  # a corrupt pickle may raise anything
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _entry(path: Path, batch: Any, key: str) -> Any:
    if isinstance(batch, dict):
        for candidate in (key, key.encode()):
            if candidate in batch:
                return batch[candidate]
    raise DataError(f"{path} has no entry {key!r}; expected a CIFAR batch, fetch it again")


def _batches(path: Path, files: tuple[str, ...], key: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for file in files:
        batch = _unpickle(path / file)
        data = _entry(path / file, batch, "data")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
            shape = getattr(data, "shape", type(data).__name__)
            raise DataError(f"{path / file}: data of shape {shape}; expected [N, {_PIXELS}] bytes")
        images.append(data)
        labels.append(np.asarray(_entry(path / file, batch, key)))
    return _joined(images), _joined(labels)


def _records(path: Path, files: tuple[str, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    length, images, labels = count + _PIXELS, [], []
    for file in files:
        size = (path / file).stat().st_size
        if size == 0 or size % length:
            raise DataError(
                f"{path / file} has {size} bytes, not a whole number of {length}-byte records; "
                "the file is truncated, fetch it again"
            )
        records = np.memmap(path / file, mode="r", dtype=np.uint8, shape=(size // length, length))
        images.append(records[:, count:])
        labels.append(records[:, count - 1])
    return _joined(images), np.array(_joined(labels))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cifar(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: list[str],
) -> Dataset:
    return make_dataset(
        name,
        (train[0].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), train[1]),
        (test[0].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), test[1]),
        class_names=class_names,
        source=SOURCE,
        terms="no licence stated; cite the technical report",
        citation=CITATION,
    )


def _require(path: Path, files: tuple[str, ...]) -> None:
    missing = [file for file in files if not (path / file).is_file()]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; unpack the whole archive again, from {SOURCE}"
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
