"""Whole-array work done in blocks, so that memory-mapped data never has to fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from spikedim.errors import DataError

EXHAUSTIVE_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 24
_SAMPLED_BLOCKS = 32


def blocks(array: np.ndarray, every: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(first row, rows)`` over the first axis in blocks of about 16 MiB.

    Unless ``every`` block is asked for, an array over 1 GiB yields 32 evenly spaced ones only,
    the first and the last included.
    """
    rows = max(1, _BLOCK_BYTES // max(1, array.nbytes // max(1, len(array))))
    if every or array.nbytes <= EXHAUSTIVE_BYTES:
        starts = np.arange(0, len(array), rows)
    else:
        last = max(0, len(array) - rows)
        starts = np.unique(np.linspace(0, last, _SAMPLED_BLOCKS).astype(np.int64))
    for start in starts:
        yield int(start), array[start : start + rows]


def update_hash(digest: Any, array: np.ndarray) -> None:
    """Feed shape, type and content (all of it, or the blocks of :func:`blocks`) to ``digest``.

    Byte order and memory layout do not matter: the hash is over little-endian C order.
    """
    little = array.dtype.newbyteorder("<")
    digest.update(f"{array.shape}{little.str}".encode())
    for _, rows in blocks(array):
        digest.update(np.ascontiguousarray(rows, dtype=little).data)


def hash_texts(digest: Any, texts: list[str]) -> None:
    """Feed texts to ``digest``, each preceded by its length."""
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)


def new_digest() -> Any:
    """A SHA-256 accumulator."""
    return hashlib.sha256()


def check_finite(array: np.ndarray, what: str, dtype: type[np.floating] | None = None) -> None:
    """Refuse NaN and infinity (arrays over 1 GiB: in the sampled blocks).

    Args:
        array: the values.
        what: what messages call it.
        dtype: type they will be read in; ``None`` for their own. What is too large for it is
            refused too.

    Raises:
        DataError: names the index of the first bad value.
    """
    if array.dtype.kind != "f":
        return
    read = np.dtype(dtype or array.dtype)
    for start, rows in blocks(array):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(rows.astype(read, copy=False))
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            place = ", ".join(str(int(i)) for i in (start + index[0], *index[1:]))
            mend = "replace or drop NaN and infinite values before loading"
            if np.isfinite(rows[index]):
                most = np.finfo(read).max
                mend = f"values are read as {read}, up to {most:.3g}: correct or rescale it"
            raise DataError(f"{what}: value {rows[index]} at index [{place}]; {mend}")


def moments(array: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor n) per last-axis channel of ``array / scale``, float64.

    Blocks are merged by the pairwise update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large against the spread.
    """
    channels = array.shape[-1]
    count, mean, spread = 0, np.zeros(channels), np.zeros(channels)
    for _, rows in blocks(array, every=True):
        values = rows.reshape(-1, channels).astype(np.float64) / scale
        block_mean = values.mean(axis=0)
        delta, total = block_mean - mean, count + len(values)
        spread += ((values - block_mean) ** 2).sum(axis=0)
        spread += delta**2 * (count * len(values) / total)
        mean += delta * (len(values) / total)
        count = total
    return mean, np.sqrt(spread / count)
