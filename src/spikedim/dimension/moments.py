"""First, second and the needed fourth moments of samples: one pass, mergeable, exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from spikedim.dimension.arrays import Float, Samples, spans
from spikedim.errors import DataError
from spikedim.progress import track

Array = NDArray[np.float64]
TOO_LARGE = "values of x are too large to be squared in float64; rescale x first"
TOO_SMALL = "values of x are too small to be squared twice in float64; rescale x first"
_SMALLEST = 1e-70
_SINGLE_WORK = 1 << 28
SINGLE_RANGE = (1e-24, 1e30)


@dataclass(frozen=True)
class Moments:
    """Sums over samples z = x − shift, enough for every spectral quantity of one pass.

    With a = ‖z‖²: ``total`` Σz [d], ``scatter`` Σzzᵀ [d, d] (upper triangle, column-major),
    ``norm`` Σa, ``norm2`` Σa², ``norm_z`` Σa·z [d]. A shift close to the mean keeps the
    subtraction of the mean free of cancellation.
    """

    n: int
    shift: Array
    total: Array
    scatter: Array
    norm: float
    norm2: float
    norm_z: Array

    @property
    def mean(self) -> Array:
        """Mean of the samples, [d]."""
        return self.shift + self.total / max(self.n, 1)

    def about(self, point: Array) -> Moments:
        """The same sums about another ``point``, exactly."""
        t = point - self.shift
        if not t.any():
            return self
        c = float(t @ t)
        along = float(t @ self.total)
        st = blas.dsymv(1.0, self.scatter, t)
        scatter = self.scatter.copy(order="F")
        centre = self.total - 0.5 * self.n * t
        scatter = blas.dsyr2(-1.0, centre, t, a=scatter, overwrite_a=1)
        norm2 = self.norm2 + 4 * float(t @ st) + self.n * c * c
        norm2 += -4 * float(t @ self.norm_z) + 2 * c * self.norm - 4 * c * along
        norm_z = self.norm_z - 2 * st + c * self.total - self.norm * t
        norm_z += 2 * along * t - self.n * c * t
        total = self.total - self.n * t
        norm = self.norm - 2 * along + self.n * c
        return Moments(self.n, point.copy(), total, scatter, norm, norm2, norm_z)

    def plus(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets of samples."""
        return self._combine(other, 1)

    def minus(self, other: Moments) -> Moments:
        """Moments of these samples without the samples of ``other``."""
        return self._combine(other, -1)

    def _combine(self, other: Moments, sign: int) -> Moments:
        if self.n == 0 and sign > 0:
            return other
        if other.n == 0:
            return self
        other = other.about(self.shift)
        return Moments(
            self.n + sign * other.n,
            self.shift,
            self.total + sign * other.total,
            self.scatter + sign * other.scatter,
            self.norm + sign * other.norm,
            self.norm2 + sign * other.norm2,
            self.norm_z + sign * other.norm_z,
        )


def moments(samples: Samples, shift: Array | None = None) -> Moments:
    """Accumulate :class:`Moments` over all samples with bounded memory.

    Blocks of 8 and 16-bit and float32 data are multiplied in float32 and added up in float64 when
    there is enough work for it to pay; the rest runs in float64.

    Raises:
        DataError: a value is NaN or infinite, or too large, or all too small, to be squared.
    """
    if samples.sparse:
        return _sparse_moments(samples)
    single = samples.single and samples.n * samples.d * min(samples.n, samples.d) > _SINGLE_WORK
    dtype: Any = np.float32 if single else np.float64
    d = samples.d
    scatter = np.zeros((d, d), order="F")
    total, norm_z = np.zeros(d), np.zeros(d)
    norm = norm2 = size = 0.0
    for start, stop in _shown(samples.row_blocks(4 if single else 8), "moments"):
        block = samples.rows(start, stop, dtype)
        if shift is None:
            samples.check_finite(block[:256], start)
            shift = provisional_mean(block[:256], samples.integer)
        z = block - shift.astype(dtype)
        a = np.einsum("ij,ij->i", z, z).astype(np.float64)
        if not np.isfinite(a).all():
            samples.check_finite(block, start)
            if z.dtype == np.float64:
                raise DataError(TOO_LARGE)
            single = False
        peak = float(a.max())
        if single and not SINGLE_RANGE[0] < peak < SINGLE_RANGE[1] and z.any():
            single = False
        if not single and z.dtype != np.float64:
            dtype = np.float64
            z = samples.rows(start, stop) - shift
            a = np.einsum("ij,ij->i", z, z)
        size = max(size, float(a.max()) ** 0.5 or float(np.abs(z).max()))
        total += np.ones(len(z), z.dtype) @ z
        norm += float(a.sum())
        norm2 += float(a @ a)
        norm_z += a.astype(z.dtype) @ z
        if single:
            scatter += blas.ssyrk(1.0, z.T)
        else:
            scatter = blas.dsyrk(1.0, z.T, beta=1.0, c=scatter, overwrite_c=1)
    if not (np.isfinite(norm2) and np.isfinite(norm)):
        raise DataError(TOO_LARGE)
    check_size(size)
    assert shift is not None
    return Moments(samples.n, shift, total, scatter, norm, norm2, norm_z)


def check_size(largest: float) -> None:
    """Refuse values other than 0 whose fourth powers, for the participation ratio, underflow."""
    if 0 < largest < _SMALLEST:
        raise DataError(TOO_SMALL)


def _shown(blocks: Iterable[tuple[int, int]], label: str) -> Iterable[tuple[int, int]]:
    """The blocks, with a progress bar where there are many."""
    listed = list(blocks)
    return track(listed, label) if len(listed) > 8 else listed


def _upper(matrix: Array) -> Array:
    for start, stop in spans(matrix.shape[0], 256):
        matrix[stop:, start:stop] = 0.0
        matrix[start:stop, start:stop] = np.triu(matrix[start:stop, start:stop])
    return matrix


def provisional_mean(block: Float, integer: bool) -> Array:
    """A shift near the mean that leaves constant features and small integers exact."""
    mean = block.mean(axis=0, dtype=np.float64)
    constant = (block == block[0]).all(axis=0)
    mean = np.where(constant, block[0], np.rint(mean) if integer else mean)
    return np.asarray(mean.astype(block.dtype), np.float64)


def _sparse_moments(samples: Samples) -> Moments:
    x = samples.array
    d = samples.d
    check_size(float(abs(x).max()))
    transposed = x.T.tocsr()
    scatter = np.zeros((d, d), order="F")
    for start, stop in spans(d, max(1, (32 << 20) // (8 * d))):
        scatter[:, start:stop] = (transposed[start:stop] @ x).toarray().T
    a = np.asarray(x.multiply(x).sum(axis=1)).ravel()
    total = np.asarray(x.sum(axis=0)).ravel()
    return Moments(
        samples.n, np.zeros(d), total, _upper(scatter), float(a.sum()), float(a @ a), x.T @ a
    )


def gram(samples: Samples, center: bool) -> Array:
    """Inner products of the (centred) samples, [n, n] full symmetric matrix in float64.

    Column blocks are read once each; all samples of a block are at hand, so the mean is
    subtracted before the products and nothing cancels.

    Raises:
        DataError: a value is NaN or infinite, or too large, or all too small, to be squared.
    """
    if samples.sparse:
        return _sparse_gram(samples, center)
    n, d = samples.n, samples.d
    single = samples.single and n * n * d > _SINGLE_WORK
    out = np.zeros((n, n), order="F")
    size = 0.0
    step = max(1, min(4096, (64 << 20) // (8 * n)))
    for start, stop in _shown(spans(d, step), "Gram matrix"):
        block = samples.columns(start, stop)
        z = block
        if center:
            shift = np.where((block == block[0]).all(axis=0), block[0], block.mean(axis=0))
            if not np.isfinite(shift).all():
                samples.check_finite(block, 0, start)
                raise DataError(TOO_LARGE)
            z = block - shift
        peak = float(np.abs(z).max())
        if not np.isfinite(peak):
            samples.check_finite(block, 0, start)
        size = max(size, peak)
        if single and (peak == 0 or 1e-12 < peak < 1e15):
            # the upper triangle only: BLAS reads a row-major block as its transpose
            out += blas.ssyrk(1.0, np.asarray(z, np.float32).T, trans=1)
        else:
            out = blas.dsyrk(1.0, z.T, beta=1.0, trans=1, c=out, overwrite_c=1)
    if not np.isfinite(np.diagonal(out)).all():
        raise DataError(TOO_LARGE)
    check_size(size)
    return symmetric(out)


def symmetric(upper: Array) -> Array:
    """Mirror the upper triangle into the lower one, in place."""
    for start, stop in spans(upper.shape[0], 256):
        corner = np.triu(upper[start:stop, start:stop])
        upper[start:stop, start:stop] = corner + np.triu(corner, 1).T
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


def _sparse_gram(samples: Samples, center: bool) -> Array:
    x, n = samples.array, samples.n
    check_size(float(abs(x).max()))
    out = np.empty((n, n), order="F")
    for start, stop in spans(n, max(1, (32 << 20) // (8 * n))):
        out[:, start:stop] = (x[start:stop] @ x.T).toarray().T
    return centered_gram(out) if center else out


def centered_gram(matrix: Array) -> Array:
    """Gram matrix of the same samples about their mean: HKH with H = I − 11ᵀ/n."""
    columns, rows = matrix.mean(axis=0), matrix.mean(axis=1, keepdims=True)
    return matrix - columns - rows + matrix.mean()
