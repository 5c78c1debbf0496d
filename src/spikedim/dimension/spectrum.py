"""The eigenvalue spectrum every spectral dimension estimate is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import blas

from spikedim.dimension.arrays import Samples, as_samples
from spikedim.dimension.kernels import symmetric_eigenvalues
from spikedim.dimension.moments import Array, Moments, gram, moments
from spikedim.errors import BudgetError, ConfigError
from spikedim.results import Result, Table


@dataclass(frozen=True)
class Spectrum(Result):
    """Eigenvalues of the covariance (centred) or second-moment (uncentred) matrix.

    Args:
        eigenvalues: descending, float64, [min(n, d)] at most; numerically zero ones are 0.
        n, d: number of samples and of features.
        centered: the mean was subtracted; the divisor is n − 1, otherwise n.
        total_variance: trace of the matrix, squared units of the data.
        fourth: Σ‖x − mean‖⁴ over samples (about 0 when uncentred), for the finite-sample
            corrected participation ratio; ``None`` when unknown.
        method: ``"covariance"`` or ``"gram"`` for exact eigenvalues, ``"sketch"`` or
            ``"randomised"`` for leading ones only.
        error: bound on the error of the eigenvalues of a sketch, else 0.
    """

    eigenvalues: Array
    n: int
    d: int
    centered: bool
    total_variance: float
    fourth: float | None = None
    method: str = "covariance"
    error: float = 0.0

    @property
    def rank(self) -> int:
        """Number of eigenvalues above rounding."""
        return int(np.count_nonzero(self.eigenvalues))

    @property
    def shares(self) -> Array:
        """Eigenvalues as fractions of the total variance."""
        if self.total_variance == 0:
            return np.zeros_like(self.eigenvalues)
        return self.eigenvalues / self.total_variance

    @property
    def square(self) -> float:
        """Tr C² = Σλ²."""
        return float(self.eigenvalues @ self.eigenvalues)

    @property
    def partial(self) -> bool:
        """A part of the variance lies in eigenvalues that a sketch did not keep."""
        kept = float(self.eigenvalues.sum())
        return self.method in ("sketch", "randomised") and kept < 0.999999 * self.total_variance

    @property
    def degrees(self) -> int:
        """Divisor of the second moments: n − 1 centred, n uncentred."""
        return self.n - 1 if self.centered else self.n

    def tables(self) -> list[Table]:
        """Summary of the spectrum and its leading eigenvalues."""
        head = [
            (k + 1, float(v), float(100 * s), float(100 * c))
            for k, (v, s, c) in enumerate(
                zip(self.eigenvalues, self.shares, np.cumsum(self.shares), strict=True)
            )
        ][:10]
        about = "centred" if self.centered else "uncentred"
        note = f"n={self.n:,}, d={self.d:,}, rank {self.rank:,}, {about}, {self.method}"
        columns = ("component", "eigenvalue", "% of variance", "cumulative %")
        return [Table("Spectrum", columns, head, (note,))]

    def plot(self, ax: Any = None) -> Any:
        """Scree plot (log-log) of the eigenvalues; returns the matplotlib axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
        kept = self.eigenvalues[: max(self.rank, 1)]
        ax.plot(np.arange(1, len(kept) + 1), kept, color="#1f5a93", lw=1.6)
        if self.rank:
            ax.set(xscale="log", yscale="log")
        ax.set(xlabel="component", ylabel="eigenvalue")
        return ax


def spectrum(
    x: Any, center: bool = True, *, memory_limit: float | None = None, method: str = "auto"
) -> Spectrum:
    """Eigenvalues of C = Σ(x−μ)(x−μ)ᵀ/(n−1), or of Σxxᵀ/n when ``center=False``.

    The d × d matrix or the n × n Gram matrix is decomposed, whichever is smaller; the other is
    never formed. The data are read in blocks of at most 64 MiB and are never copied whole.

    Args:
        x: samples ``[n, d...]``: array, memory map, torch tensor or ``scipy.sparse`` matrix
            (never densified), of any real type.
        center: subtract the mean.
        memory_limit: bytes the decomposition may use; half of the available memory by default.
        method: ``"covariance"``, ``"gram"``, or ``"auto"`` for the smaller.

    Raises:
        DataError: wrong shape or type, NaN or infinite values, too few samples.
        BudgetError: neither matrix fits ``memory_limit``; use
            :func:`~spikedim.dimension.sketch.sketch_spectrum`.
    """
    samples = as_samples(x, 2 if center else 1)
    if method not in ("auto", "covariance", "gram"):
        raise ConfigError(f"method={method!r}; expected 'auto', 'covariance' or 'gram'")
    side = smaller_side(samples) if method == "auto" else method
    check_memory(samples.n if side == "gram" else samples.d, memory_limit)
    return spectrum_of(second_moments(samples, center, side), samples.dimension, center)


def smaller_side(samples: Samples) -> str:
    """``"gram"`` where n ≤ d, else ``"covariance"``."""
    return "gram" if samples.n <= samples.d else "covariance"


def second_moments(samples: Samples, center: bool, side: str) -> Array | Moments:
    """The Gram matrix or the moments of the samples, as ``side`` asks."""
    return gram(samples, center) if side == "gram" else moments(samples)


def spectrum_of(matrix: Array | Moments, d: int, center: bool) -> Spectrum:
    """Spectrum from what :func:`second_moments` returned."""
    if isinstance(matrix, Moments):
        return spectrum_of_moments(matrix, center)
    return spectrum_of_gram(matrix, d, center)


def spectrum_of_moments(sums: Moments, center: bool) -> Spectrum:
    """Spectrum from accumulated :class:`~spikedim.dimension.moments.Moments`."""
    d = len(sums.total)
    sums = sums.about(sums.mean if center else np.zeros(d))
    degrees = sums.n - 1 if center else sums.n
    # the trace of the same matrix, not the norms: shares then add up to 1 to the last digit
    total = float(np.trace(sums.scatter)) / degrees
    values = eigenvalues(sums.scatter / degrees, min(degrees, d))
    return Spectrum(values, sums.n, d, center, total, sums.norm2, "covariance")


def spectrum_of_gram(matrix: Array, d: int, center: bool) -> Spectrum:
    """Spectrum from the [n, n] Gram matrix of (already centred) samples."""
    n = matrix.shape[0]
    degrees = n - 1 if center else n
    diagonal = np.diagonal(matrix).copy()
    values = eigenvalues(matrix / degrees, min(degrees, d))
    total = float(diagonal.sum()) / degrees
    return Spectrum(values, n, d, center, total, float(diagonal @ diagonal), "gram")


def eigenvalues(matrix: Array, rank: int) -> Array:
    """Descending eigenvalues of a symmetric matrix (upper triangle), overwriting it.

    At most ``rank`` values are returned; those within rounding of zero become exactly 0.
    """
    values = np.ascontiguousarray(symmetric_eigenvalues(matrix)[::-1][:rank], np.float64)
    if len(values) == 0:
        return np.zeros(1)
    floor = values[0] * len(matrix) * np.finfo(np.float64).eps
    values[values <= max(floor, 0.0)] = 0.0
    return values


def frobenius2(upper: Array) -> float:
    """Squared Frobenius norm of a symmetric matrix given by its upper triangle."""
    flat = upper.ravel(order="K")
    diagonal = np.diagonal(upper)
    return 2 * float(blas.ddot(flat, flat)) - float(diagonal @ diagonal)


def memory_needed(n: int, d: int) -> int:
    """Bytes :func:`spectrum` will use for an [n, d] input, besides the input itself."""
    return 3 * 8 * min(n, d) ** 2 + (256 << 20)


def check_memory(side: int, memory_limit: float | None) -> None:
    """Refuse a decomposition that does not fit.

    Raises:
        BudgetError: the [side, side] matrix and its workspace exceed ``memory_limit`` bytes.
    """
    limit = memory_limit if memory_limit is not None else 0.5 * available_memory()
    need = memory_needed(side, side)
    if need > limit:
        raise BudgetError(
            f"the spectrum needs {need / 2**30:.1f} GiB for a {side:,} x {side:,} matrix, over "
            f"the limit of {limit / 2**30:.1f} GiB; use sketch_spectrum() or participation_ratio()"
        )


def available_memory() -> float:
    """Memory in bytes that can be had without swapping, file caches included.

    8 GiB where the system does not tell.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return float(8 << 30)
