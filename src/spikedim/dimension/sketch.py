"""Spectrum of data too large in both n and d: frequent directions with an error certificate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import linalg

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.moments import Array
from spikedim.dimension.operator import covariance_operator
from spikedim.dimension.spectrum import Spectrum
from spikedim.errors import ConfigError, DataError


class FrequentDirections:
    """Deterministic sketch B [size, d] of a stream, with 0 ≤ xᵀ(AᵀA − BᵀB)x ≤ error·‖x‖².

    Rows are gathered to 2·size, rotated to singular directions, and the size-th squared
    singular value is subtracted from all of them; ``error`` is the sum of what was subtracted,
    a certificate that holds for the data at hand (Ghashami et al. 2016).

    Args:
        size: rows kept; memory is about 3·8·size·d bytes.

    Raises:
        ConfigError: ``size`` below 2.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ConfigError(f"size={size}; expected at least 2")
        self.size = size
        self.error = 0.0
        self._buffer: Array | None = None
        self._filled = 0

    def update(self, rows: Array) -> None:
        """Add rows [m, d].

        Raises:
            DataError: another number of features than before.
        """
        if self._buffer is None:
            self._buffer = np.zeros((2 * self.size, rows.shape[1]))
        if rows.shape[1] != self._buffer.shape[1]:
            raise DataError(
                f"block has {rows.shape[1]} features per sample; expected {self._buffer.shape[1]}"
            )
        start = 0
        while start < len(rows):
            if self._filled == 2 * self.size:
                self._shrink()
            room = min(2 * self.size - self._filled, len(rows) - start)
            self._buffer[self._filled : self._filled + room] = rows[start : start + room]
            self._filled += room
            start += room

    def merge(self, other: FrequentDirections) -> None:
        """Add the sketch of other rows; the errors add up."""
        if other._buffer is not None:
            self.update(other._buffer[: other._filled])
            self.error += other.error

    def squares(self) -> Array:
        """Squared singular values of the sketch, descending, [size] at most."""
        if self._buffer is None:
            return np.zeros(1)
        if self._filled > self.size:
            self._shrink()
        part = self._buffer[: self._filled]
        return np.maximum(linalg.eigvalsh(part @ part.T)[::-1], 0.0)

    def _shrink(self) -> None:
        assert self._buffer is not None
        part = self._buffer[: self._filled]
        values, vectors = linalg.eigh(part @ part.T)
        values, vectors = values[::-1], vectors[:, ::-1]
        cut = max(float(values[self.size]), 0.0) if len(values) > self.size else 0.0
        kept = values[: self.size]
        scale = np.sqrt(np.maximum(kept - cut, 0.0) / np.where(kept > 0, kept, 1.0))
        self._buffer[: self.size] = (vectors[:, : self.size] * scale).T @ part
        self._buffer[self.size :] = 0.0
        self.error += cut
        self._filled = self.size


def sketch_spectrum(x: Any, size: int = 256, center: bool = True) -> Spectrum:
    """Leading eigenvalues in bounded memory, each within ``spectrum.error`` of the exact one.

    Frequent directions lose between 0 and a certified amount of each eigenvalue; half of it is
    added back, so |λ_k(sketch) − λ_k| ≤ ``error`` for every k ≤ ``size``. The total variance is
    exact. Counts and the stable rank are defined while the kept values reach them; the
    participation ratio of such data comes from :func:`~spikedim.dimension.traces.traces`.

    Args:
        x: samples ``[n, d...]``, read three times; sparse rows are densified block by block.
        size: directions kept; working memory is about 3·8·size·d bytes plus one block.
        center: subtract the mean.

    Raises:
        DataError: unusable data.
        ConfigError: ``size`` below 2.
    """
    samples = as_samples(x, 2 if center else 1)
    operator, _ = covariance_operator(samples, center)
    directions = FrequentDirections(size)
    for start, stop in samples.row_blocks(most=2 * size):
        directions.update(samples.rows(start, stop) - operator.mean)
    lower = directions.squares() / operator.divisor
    error = directions.error / operator.divisor / 2
    return Spectrum(
        np.where(lower > 0, lower + error, 0.0),
        samples.n,
        samples.d,
        center,
        operator.total,
        None,
        "sketch",
        error,
    )


def randomised_spectrum(
    x: Any, size: int = 256, center: bool = True, *, passes: int = 3, seed: int = 0
) -> Spectrum:
    """Leading eigenvalues by randomised subspace iteration, with an a-posteriori certificate.

    Ritz values θ_k of C in the sketched subspace satisfy θ_k ≤ λ_k and, with the residual
    R = CQ − Q(QᵀCQ), every θ_k lies within ‖R‖₂ of an eigenvalue (``error``). The total variance
    is exact, so the variance that was missed is known exactly as well.

    Args:
        x: samples ``[n, d...]``; sparse matrices are never densified.
        size: eigenvalues kept; half as many extra directions are sketched to sharpen them.
        center: subtract the mean.
        passes: products with C that refine the subspace.
        seed: of the sketch.

    Raises:
        DataError: unusable data.
        ConfigError: ``size`` or ``passes`` below 1.
    """
    if size < 1 or passes < 1:
        raise ConfigError(f"size={size}, passes={passes}; expected at least 1 of each")
    samples = as_samples(x, 2 if center else 1)
    operator, _ = covariance_operator(samples, center)
    rank = min(size + max(10, size // 2), samples.n, samples.d)
    basis = np.random.default_rng(seed).standard_normal((samples.d, rank))
    for _ in range(passes):
        basis, _ = np.linalg.qr(operator.apply(basis))
    image = operator.apply(basis)
    small = basis.T @ image
    values = linalg.eigvalsh((small + small.T) / 2)[::-1][:size]
    error = float(np.linalg.norm(image - basis @ small, 2))
    return Spectrum(
        np.maximum(values, 0.0),
        samples.n,
        samples.d,
        center,
        operator.total,
        None,
        "randomised",
        error,
    )


def merge_sketches(parts: Iterable[FrequentDirections]) -> FrequentDirections:
    """One sketch of all rows the ``parts`` have seen, e.g. one part per shard.

    Raises:
        DataError: no parts, or parts of different widths.
    """
    parts = list(parts)
    if not parts:
        raise DataError("no sketches to merge")
    merged = FrequentDirections(min(part.size for part in parts))
    for part in parts:
        merged.merge(part)
    return merged
