"""The covariance matrix as a product with few vectors, never formed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spikedim.dimension.arrays import Float, Samples
from spikedim.dimension.kernels import product
from spikedim.dimension.moments import (
    SINGLE_RANGE,
    TOO_LARGE,
    Array,
    check_size,
    provisional_mean,
)
from spikedim.errors import DataError


@dataclass(frozen=True)
class CovarianceOperator:
    """C = Σ(x−μ)(x−μ)ᵀ/divisor applied block by block; data are read once per product.

    Args:
        samples: the data.
        mean: μ, [d]; zero when uncentred.
        divisor: n − 1 centred, n uncentred.
        total: tr C.
    """

    samples: Samples
    mean: Array
    divisor: int
    total: float

    @property
    def dtype(self) -> Any:
        """Precision of the products: float32 where the data fit it."""
        return np.float32 if self.samples.single else np.float64

    def apply(self, vectors: Float) -> Array:
        """C·vectors for ``vectors`` [d, k], float64 [d, k]."""
        if self.samples.sparse:
            x = self.samples.array
            inner = x @ vectors - self.mean @ vectors
            outer = x.T @ inner - np.outer(self.mean, inner.sum(axis=0))
            return np.asarray(outer / self.divisor)
        dtype = self.dtype
        vectors = np.ascontiguousarray(vectors, dtype)
        mean = self.mean.astype(dtype)
        out = np.zeros(vectors.shape)
        most = max(thin_rows(self.samples), 4 * vectors.shape[1])
        for _, z in shifted(self.samples, mean, most):
            out += product(z.T, product(z, vectors))
        return out / self.divisor


def shifted(samples: Samples, shift: Float, most: int) -> Iterator[tuple[int, Float]]:
    """Start and values of blocks of at most ``most`` dense rows less ``shift``, in its type.

    All blocks share one buffer: fresh memory for each costs more than the subtraction.
    """
    buffer = np.empty((0, samples.d), shift.dtype)
    for start, stop in samples.row_blocks(8, most):
        if not len(buffer):
            buffer = np.empty((stop - start, samples.d), shift.dtype)
        block = samples.rows(start, stop, shift.dtype)
        yield start, np.subtract(block, shift, out=buffer[: stop - start])


def thin_rows(samples: Samples) -> int:
    """Rows of a block that stays in the processor's cache while it meets few vectors."""
    return max(16, (4 << 20) // (8 * samples.d))


def covariance_operator(samples: Samples, center: bool) -> tuple[CovarianceOperator, Array]:
    """The operator and ‖x − μ‖² of every sample, [n]; the data are read twice.

    Raises:
        DataError: a value is NaN or infinite, or too large, or all too small, to be squared.
    """
    n = samples.n
    divisor = n - 1 if center else n
    if samples.sparse:
        x = samples.array
        check_size(float(abs(x).max()))
        squares = np.asarray(x.multiply(x).sum(axis=1)).ravel()
        mean = np.asarray(x.mean(axis=0)).ravel() if center else np.zeros(samples.d)
        norms = squares - 2 * (x @ mean) + mean @ mean
        return CovarianceOperator(samples, mean, divisor, float(norms.sum()) / divisor), norms
    look = first_look(samples, center)
    norms = np.empty(n)
    mean = look.operator.mean.astype(look.operator.dtype)
    for start, z in shifted(samples, mean, thin_rows(samples)):
        norms[start : start + len(z)] = np.einsum("ij,ij->i", z, z)
    return look.operator, norms


@dataclass(frozen=True)
class FirstLook:
    """What one pass gives: the operator, C·vectors, and sums for Σ‖x − μ‖⁴.

    ``offset`` is μ less the shift of the pass.
    """

    operator: CovarianceOperator
    image: Array
    offset: Array
    norm: float
    norm2: float
    norm_z: Array

    def fourth(self) -> float:
        """Σ‖x − μ‖⁴, from one more pass where the shift was not μ."""
        samples, t = self.operator.samples, self.offset
        n, c = samples.n, float(t @ t)
        if c == 0:
            return self.norm2
        dtype = self.operator.dtype
        vector, along = t.astype(dtype), 0.0
        level = float((self.operator.mean - t) @ t)
        for start, stop in samples.row_blocks(8, thin_rows(samples)):
            z = samples.rows(start, stop, dtype) @ vector - level
            along += float(z @ z)
        return (
            self.norm2 + 4 * along + 2 * c * self.norm - 3 * n * c * c - 4 * float(t @ self.norm_z)
        )


def first_look(samples: Samples, center: bool, vectors: Float | None = None) -> FirstLook:
    """Mean, total variance and C·vectors of dense samples, all from one pass over the data.

    Raises:
        DataError: a value is NaN or infinite, or too large, or all too small, to be squared.
    """
    n, d = samples.n, samples.d
    dtype: Any = np.float32 if samples.single else np.float64
    vectors = np.zeros((d, 0)) if vectors is None else vectors
    probes = np.ascontiguousarray(vectors, dtype)
    k, step = probes.shape[1], thin_rows(samples)
    shift = np.zeros(d)
    if center:
        start = samples.rows(0, min(n, 256), dtype)
        samples.check_finite(start, 0)
        shift = provisional_mean(start, samples.integer)
    # products with the probes, sums and sums weighted by the norms come from one multiplication
    right, sums = np.ones((step, k + 2), dtype), np.zeros((d, k + 2))
    norm = norm2 = size = 0.0
    for first, z in shifted(samples, shift.astype(dtype), step):
        a = np.einsum("ij,ij->i", z, z)
        peak = float(a.max())
        if not np.isfinite(a).all():
            samples.check_finite(z, first)
        if samples.single and not SINGLE_RANGE[0] < peak < SINGLE_RANGE[1] and z.any():
            return first_look(replace(samples, single=False), center, vectors)
        size = max(size, peak**0.5 or float(np.abs(z).max()))
        norm += float(a.sum(dtype=np.float64))
        norm2 += float(np.square(a, dtype=np.float64).sum())
        block = right[: len(z)]
        np.matmul(z, probes, out=block[:, 1:-1])
        block[:, -1] = a
        sums += z.T @ block
    if not np.isfinite(norm2):
        raise DataError(TOO_LARGE)
    check_size(size)
    divisor = n - 1 if center else n
    offset = sums[:, 0] / n if center else np.zeros(d)
    image = sums[:, 1:-1] - n * np.outer(offset, offset @ vectors)
    variance = max(norm - n * float(offset @ offset), 0.0) / divisor
    operator = CovarianceOperator(samples, shift + offset, divisor, variance)
    return FirstLook(operator, image / divisor, offset, norm, norm2, sums[:, -1])
