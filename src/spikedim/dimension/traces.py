"""Participation ratio from two traces: exact without any eigenvalue, or stochastic.

PR = (tr C)²/tr C² and tr C² = ‖C‖²_F, so no eigendecomposition is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from spikedim.dimension.arrays import Float, Samples, as_samples, spans
from spikedim.dimension.estimators import corrected_ratio
from spikedim.dimension.moments import Array, gram, moments
from spikedim.dimension.operator import CovarianceOperator, covariance_operator, first_look
from spikedim.dimension.spectrum import frobenius2, memory_needed, smaller_side
from spikedim.errors import ConfigError
from spikedim.results import Estimate, Result

_LARGEST_SIDE = 8192
_SKETCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Traces(Result):
    """tr C and tr C² of the covariance (n − 1) or second-moment (n) matrix, and Σ‖x − μ‖⁴.

    ``square_error`` is the standard error of ``square`` where it was sampled, else 0.
    """

    n: int
    d: int
    centered: bool
    total: float
    square: float
    fourth: float
    square_error: float = 0.0
    method: str = "exact"

    @property
    def ratio(self) -> float:
        """Participation ratio (tr C)²/tr C²; 0 without variance."""
        return max(self.total**2 / self.square, 1.0) if self.square > 0 else 0.0

    @property
    def corrected(self) -> float:
        """Finite-sample-corrected participation ratio."""
        return corrected_ratio(self.n, self.d, self.total, self.square, self.fourth, self.centered)


def traces(x: Any, center: bool = True, *, memory_limit: float | None = None) -> Traces:
    """Exact tr C and tr C² with no eigendecomposition.

    Small sides form one symmetric matrix; where n and d are both large, ‖XXᵀ‖²_F is summed over
    pairs of row blocks, which are read ⌈n/b⌉ times and never held together.

    Args:
        x: samples ``[n, d...]``; sparse matrices are never densified.
        center: subtract the mean.
        memory_limit: bytes of working memory that choose the block size; 2 GiB by default.

    Raises:
        DataError: unusable data.
    """
    samples = as_samples(x, 2 if center else 1)
    limit = float(2 << 30) if memory_limit is None else memory_limit
    degrees = samples.n - 1 if center else samples.n
    side = min(samples.n, samples.d)
    if side > _LARGEST_SIDE or memory_needed(side, side) > limit:
        norms, square = _pairwise(samples, center, limit)
        total, fourth = float(norms.sum()), float(norms @ norms)
    elif smaller_side(samples) == "gram":
        products = gram(samples, center)
        diagonal = np.diagonal(products)
        square = float(np.vdot(products, products))
        total, fourth = float(diagonal.sum()), float(diagonal @ diagonal)
    else:
        sums = moments(samples)
        sums = sums.about(sums.mean if center else np.zeros(samples.d))
        square, fourth = frobenius2(sums.scatter), sums.norm2
        total = float(np.trace(sums.scatter))
    square = square if total > 0 else 0.0
    return Traces(samples.n, samples.d, center, total / degrees, square / degrees**2, fourth)


def participation_ratio(
    x: Any,
    center: bool = True,
    *,
    tolerance: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    memory_limit: float | None = None,
) -> Estimate:
    """Participation ratio (Σλ)²/Σλ² of the sample covariance, without eigenvalues.

    Args:
        x: samples ``[n, d...]``.
        center: subtract the mean.
        tolerance: ``None`` for the exact value; else the half-width, as a fraction of the value,
            that random probes must reach (e.g. 0.01), with an interval for the exact value.
        confidence: coverage of that interval.
        seed: of the probes.
        memory_limit: bytes of working memory for the exact value; 2 GiB by default.

    Raises:
        DataError: unusable data.
        ConfigError: tolerance or confidence outside (0, 1).

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((400, 10))
        >>> round(participation_ratio(x).value, 1)
        9.7
    """
    if tolerance is None:
        found = traces(x, center, memory_limit=memory_limit)
        return Estimate(found.ratio, n=found.n, method="two traces, exact")
    for name, value in (("tolerance", tolerance), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value}; expected a fraction between 0 and 1")
    found = stochastic_traces(x, center, tolerance=tolerance, confidence=confidence, seed=seed)
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))
    share = quantile * found.square_error / found.square if found.square > 0 else 0.0
    return Estimate(
        found.ratio,
        found.ratio / (1 + share),
        found.ratio / max(1 - share, 1e-9),
        found.n,
        "",
        confidence,
        found.method,
    )


def stochastic_traces(
    x: Any,
    center: bool = True,
    *,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    captured: int = 10,
) -> Traces:
    """Tr C exactly and tr C² = ‖CQ‖² + E‖C(I−QQᵀ)z‖² with Gaussian probes z.

    Q spans a sketch of the leading eigenvectors of some evenly spaced samples; its share is exact,
    so probes estimate only the remainder (the idea of Hutch++, Meyer et al. 2021). Probes are
    doubled until Student's interval at ``confidence`` is within ``tolerance`` of tr C².

    Args:
        x: samples ``[n, d...]``.
        center: subtract the mean.
        tolerance: relative half-width to reach.
        confidence: coverage of it.
        seed: of all probes.
        captured: columns of Q.
    """
    samples = as_samples(x, 2 if center else 1)
    n, d = samples.n, samples.d
    rng = np.random.default_rng(seed)
    basis = _leading(samples, center, min(captured, d, n), rng)
    rank = basis.shape[1]
    count = 6
    probes = _probes(basis, count, rng)
    vectors = np.hstack([basis, probes])
    if samples.sparse:
        operator, norms = covariance_operator(samples, center)
        image, fourth = operator.apply(vectors), float(norms @ norms)
    else:
        look = first_look(samples, center, vectors)
        operator, image, fourth = look.operator, look.image, look.fourth()
    found = (image**2).sum(axis=0)
    exact, squares = float(found[:rank].sum()), found[rank:].tolist()
    while True:
        drawn = len(squares)
        square = exact + float(np.mean(squares))
        error = float(np.std(squares, ddof=1)) / np.sqrt(drawn)
        widen = float(stats.t.ppf(0.5 + confidence / 2, drawn - 1))
        if square <= 0 or widen * error <= tolerance * square or drawn >= 4 * d:
            break
        squares += (operator.apply(_probes(basis, drawn, rng)) ** 2).sum(axis=0).tolist()
    # Student's quantile is folded into the standard error so that callers can use the normal one
    error *= widen / float(stats.norm.ppf(0.5 + confidence / 2))
    method = f"two traces, {rank} directions exact, {drawn} probes"
    return Traces(n, d, center, operator.total, square, fourth, error, method)


def _leading(samples: Samples, center: bool, rank: int, rng: np.random.Generator) -> Array:
    """Orthonormal columns [d, rank] near the leading eigenvectors of some of the samples."""
    most = max(4 * rank, min(256, _SKETCH_BYTES // (8 * samples.d)))
    chosen = np.linspace(0, samples.n - 1, min(samples.n, most)).astype(np.intp)
    rows = samples.take(chosen, np.float32 if samples.single else np.float64)
    basis = rng.standard_normal((samples.d, rank)).astype(rows.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = rows - rows.mean(axis=0) if center else rows
        rows = rows / max(float(np.abs(rows).max()), np.finfo(rows.dtype).tiny)
        for _ in range(2):
            basis, _ = np.linalg.qr(rows.T @ (rows @ basis))
    return np.linalg.qr(basis.astype(np.float64))[0]


def _probes(basis: Array, count: int, rng: np.random.Generator) -> Array:
    probes = rng.standard_normal((len(basis), count))
    return probes - basis @ (basis.T @ probes)


def _pairwise(samples: Samples, center: bool, limit: float) -> tuple[Array, float]:
    """‖x−μ‖² of every sample and ‖ZᵀZ‖²_F = ‖ZZᵀ‖²_F, no [n, n] or [d, d] matrix held."""
    operator, norms = covariance_operator(samples, center)
    if samples.sparse:
        return norms, _sparse_square(operator, limit)
    n, d = samples.n, samples.d
    mean = operator.mean.astype(operator.dtype)
    itemsize = np.dtype(operator.dtype).itemsize
    square = 0.0
    if n <= d:
        step = max(1, int(limit / 4 / (d * itemsize)))
        for i, stop in spans(n, step):
            left = samples.rows(i, stop, operator.dtype) - mean
            for j, end in spans(stop, step):
                right = left if j == i else samples.rows(j, end, operator.dtype) - mean
                square += (1 if j == i else 2) * _sum_squares(left @ right.T)
        return norms, square
    step = max(1, int(limit / 4 / (d * 8)))
    for j, end in spans(d, step):
        stripe = np.zeros((end, end - j))
        for start, stop in samples.row_blocks(itemsize):
            z = samples.rows(start, stop, operator.dtype)[:, :end] - mean[:end]
            stripe += z.T @ z[:, j:]
        square += _sum_squares(stripe[j:]) + 2 * _sum_squares(stripe[:j])
    return norms, square


def _sum_squares(block: Float) -> float:
    return float(np.einsum("ij,ij->", block, block, dtype=np.float64))


def _sparse_square(operator: CovarianceOperator, limit: float) -> float:
    x, n = operator.samples.array, operator.samples.n
    mean = operator.mean
    along = x @ mean
    constant = float(mean @ mean)
    square = 0.0
    for start, stop in spans(n, max(1, int(limit / 4 / (8 * n)))):
        block = (x[start:stop] @ x.T).toarray()
        block += constant - along[start:stop, None] - along[None, :]
        square += _sum_squares(block)
    return square
