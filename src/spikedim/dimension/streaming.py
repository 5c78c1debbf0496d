"""One pass over a loader, a file or many shards: update, merge, finalise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.moments import Moments, moments
from spikedim.dimension.spectrum import Spectrum, check_memory, spectrum_of_moments
from spikedim.errors import DataError


class SpectrumStream:
    """Exact covariance spectrum of data that arrive in blocks, in one pass.

    Memory is 2·8·d² bytes whatever the number of samples. Streams over shards merge to the
    spectrum of the whole, to rounding, in any order.

    Args:
        memory_limit: bytes the decomposition may use; half of the available memory by default.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((1000, 30))
        >>> left, right = SpectrumStream().extend([x[:300], x[300:500]]), SpectrumStream()
        >>> right.update(x[500:])
        >>> left.merge(right).finalise().n
        1000
    """

    def __init__(self, memory_limit: float | None = None) -> None:
        self.memory_limit = memory_limit
        self._sums: Moments | None = None

    @property
    def n(self) -> int:
        """Samples seen so far."""
        return self._sums.n if self._sums else 0

    def update(self, block: Any) -> None:
        """Add the samples of one block ``[n, d...]`` (dense, torch or sparse).

        Raises:
            DataError: not the same number of features as before, or unusable values.
            BudgetError: the d × d matrix does not fit ``memory_limit``.
        """
        samples = as_samples(block)
        if self._sums is None:
            check_memory(samples.d, self.memory_limit)
            self._sums = moments(samples)
            return
        known = len(self._sums.shift)
        if samples.d != known:
            raise DataError(f"block has {samples.d} features per sample; expected {known}")
        shift = None if samples.sparse else self._sums.shift
        self._sums = self._sums.plus(moments(samples, shift))

    def extend(self, blocks: Iterable[Any]) -> SpectrumStream:
        """Update with every block of an iterable, e.g. a data loader; returns the stream."""
        for block in blocks:
            self.update(block)
        return self

    def merge(self, other: SpectrumStream) -> SpectrumStream:
        """A new stream that has seen the samples of both.

        Raises:
            DataError: the two hold different numbers of features.
        """
        merged = SpectrumStream(self.memory_limit)
        if self._sums is None or other._sums is None:
            merged._sums = self._sums or other._sums
            return merged
        mine, theirs = len(self._sums.shift), len(other._sums.shift)
        if mine != theirs:
            raise DataError(f"cannot merge streams of {mine} and {theirs} features per sample")
        merged._sums = self._sums.plus(other._sums)
        return merged

    def finalise(self, center: bool = True) -> Spectrum:
        """Spectrum of all samples seen; the stream can be updated further afterwards.

        Raises:
            DataError: fewer than two samples (one when uncentred).
        """
        least = 2 if center else 1
        if self._sums is None or self._sums.n < least:
            raise DataError(f"the stream has seen {self.n} samples; at least {least} are needed")
        return spectrum_of_moments(self._sums, center)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the samples seen, [d]."""
        if self._sums is None:
            raise DataError("the stream has seen no samples")
        return self._sums.mean
