"""Samples of any origin read as an [n, d] matrix, block by block, without a full copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spikedim.errors import DataError
from spikedim.gather import as_array, gathered, is_map

Float: TypeAlias = NDArray[np.floating[Any]]
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Samples:
    """n samples of d features; rows and columns are converted only when they are read.

    Args:
        array: the dense data ``[n, ...]`` as given (memory-mapped and strided data stay so),
            or a ``scipy.sparse`` CSR matrix.
        n, d: number of samples and of features per sample.
        single: the data fit float32 without loss (8 and 16-bit types, bool, float32).
        integer: the data are whole numbers.
        sparse: ``array`` is a CSR matrix.
        index: rows of ``array`` that are the samples; all when ``None``.
        space: dimension of the space they lie in, where it is larger than d: of gradients known by
            their inner products, n coordinates are stored of any number.
    """

    array: Any
    n: int
    d: int
    single: bool
    integer: bool
    sparse: bool
    index: NDArray[np.intp] | None = None
    space: int | None = None

    @property
    def dimension(self) -> int:
        """The most directions that they can have."""
        return self.d if self.space is None else self.space

    def rows(self, start: int, stop: int, dtype: Any = np.float64) -> Float:
        """Rows ``start:stop`` as a dense ``[stop - start, d]`` array."""
        self._release()
        chosen = slice(start, stop) if self.index is None else self.index[start:stop]
        return self._dense(self.array[chosen], dtype)

    def take(self, index: NDArray[np.intp], dtype: Any = np.float64) -> Float:
        """Chosen rows as a dense ``[len(index), d]`` array."""
        return self._dense(self.array[index if self.index is None else self.index[index]], dtype)

    def _dense(self, block: Any, dtype: Any) -> Float:
        if self.sparse:
            return np.asarray(block.toarray(), dtype)
        return np.asarray(block, dtype).reshape(block.shape[0], self.d)

    def _release(self) -> None:
        """Give pages of a memory map that were read before back to the system.

        They would count as this process's memory; a private copy-on-write map keeps its pages,
        which may hold changes.
        """
        pages = getattr(self.array, "_mmap", None)
        if pages is not None and self.array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def columns(self, start: int, stop: int, dtype: Any = np.float64) -> Float:
        """Columns ``start:stop`` of the flattened matrix as ``[n, stop - start]``."""
        if self.index is None and not self.sparse and self.array.ndim == 2:
            return np.ascontiguousarray(self.array[:, start:stop], dtype)
        out = np.empty((self.n, stop - start), dtype)
        for first, last in self.row_blocks():
            out[first:last] = self.rows(first, last, dtype)[:, start:stop]
        return out

    def row_blocks(self, itemsize: int = 8, most: int = 4096) -> Iterator[tuple[int, int]]:
        """Bounds of row blocks of at most 64 MiB each."""
        step = max(1, min(most, _BLOCK_BYTES // max(1, self.d * itemsize)))
        return spans(self.n, step)

    def subset(self, index: NDArray[np.intp]) -> Samples:
        """The chosen rows as samples of their own; dense rows are still read block by block."""
        if self.sparse:
            return replace(self, array=self.array[index], n=len(index))
        rows = index if self.index is None else self.index[index]
        return replace(self, n=len(index), index=rows)

    def check_finite(self, block: Float, start: int, column: int = 0) -> None:
        """Raise where ``block`` (rows from ``start``, columns from ``column``) is not finite.

        Raises:
            DataError: names the first sample and feature that is NaN or infinite.
        """
        bad = ~np.isfinite(block)
        if bad.any():
            row, feature = (int(i) for i in np.argwhere(bad)[0])
            raise DataError(
                f"sample {start + row}, feature {column + feature} of x is "
                f"{block[row, feature]}; remove or impute such values first"
            )


def spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of consecutive blocks of at most ``step``."""
    for start in range(0, total, step):
        yield start, min(start + step, total)


def as_samples(x: Any, least: int = 1) -> Samples:
    """Read ``x`` as samples: array ``[n, d...]``, torch tensor or data set, or sparse matrix.

    Args:
        x: real numbers of any integer, floating or boolean type.
        least: smallest number of samples that is accepted.

    Raises:
        DataError: wrong shape or type, no samples or no features, fewer than ``least`` samples.
    """
    if isinstance(x, Samples):
        samples = x
    elif hasattr(x, "tocsr"):
        samples = _sparse(x)
    else:
        samples = _dense(x)
    if samples.n < least:
        raise DataError(
            f"x holds {samples.n} sample{'s' if samples.n != 1 else ''}; at least {least} "
            f"are needed" + (" (or use center=False, --no-center)" if least == 2 else "")
        )
    return samples


def _dense(x: Any) -> Samples:
    if is_map(x):
        x, _ = gathered(x)
    x = as_array(x)
    array = x if isinstance(x, np.ndarray) else np.asarray(x)
    if array.dtype.kind not in "biuf":
        what = type(x).__name__ if array.ndim == 0 else str(array.dtype)
        raise DataError(
            f"x has type {what}; expected real numbers (bool, int or float) [samples, "
            f"features...]{_instead(x)}"
        )
    if array.ndim < 2:
        raise DataError(
            f"x has shape {array.shape}; expected [samples, features...]; "
            "use x[:, None] for one feature"
        )
    d = int(np.prod(array.shape[1:]))
    if array.shape[0] == 0 or d == 0:
        raise DataError(f"x has shape {array.shape}: it holds no values")
    integer = array.dtype.kind in "biu"
    single = array.dtype.itemsize <= (2 if integer else 4)
    return Samples(array, array.shape[0], d, single, integer, sparse=False)


def _instead(x: Any) -> str:
    """What to measure of things that hold samples or make them."""
    if callable(getattr(x, "features", None)):
        return "; of a data set measure its features()"
    if hasattr(x, "dataset"):
        return "; of a DataLoader give its dataset"
    if hasattr(x, "forward"):
        return (
            "; of the layers of a network measure layer_dimensions(network, x, T) of "
            "spikedim.design.layers"
        )
    return ""


def _sparse(x: Any) -> Samples:
    matrix = x.tocsr()
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"x has type {matrix.dtype}; expected real numbers (bool, int or float)")
    n, d = (int(s) for s in matrix.shape)
    if n == 0 or d == 0:
        raise DataError(f"x has shape {(n, d)}: it holds no values")
    if matrix.dtype != np.float64:
        matrix = matrix.astype(np.float64)
    bad = ~np.isfinite(matrix.data)
    if bad.any():
        place = int(np.argmax(bad))
        row = int(np.searchsorted(matrix.indptr, place, side="right")) - 1
        raise DataError(
            f"sample {row}, feature {int(matrix.indices[place])} of x is {matrix.data[place]}; "
            "remove or impute such values first"
        )
    return Samples(matrix, n, d, single=False, integer=False, sparse=True)
