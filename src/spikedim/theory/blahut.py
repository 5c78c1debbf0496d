"""Rate-distortion function of any discrete source, by the Blahut-Arimoto iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spikedim.errors import ConfigError
from spikedim.results import Result


@dataclass(frozen=True)
class RatePoint(Result):
    """One point of R(D).

    Attributes:
        bits: rate of the test channel found, an upper bound of R(distortion).
        distortion: its expected distortion.
        lower: lower bound of R(distortion) in bits; the gap is the error of the iteration.
    """

    bits: float
    distortion: float
    lower: float


def blahut_arimoto(
    probabilities: ArrayLike,
    distortions: ArrayLike,
    slope: float,
    *,
    gap: float = 1e-6,
    iterations: int = 20_000,
) -> RatePoint:
    """The point of R(D) where the curve has slope ``-slope`` (nats per unit of distortion).

    ``q ← q·c`` with ``c_j = Σ_i p_i·A_ij/(Σ_k q_k·A_ik)``, ``A = exp(-slope·d)``; Blahut 1972.
    It stops when the bounds on R, ``±`` the largest log c, are ``gap`` bits apart.

    Args:
        probabilities: source distribution [n], positive, sums to 1.
        distortions: d [n, k] between source letter i and reproduction letter j, >= 0.
        slope: > 0; a larger slope is a smaller distortion.
        gap: width of the bounds on R at which to stop, bits.
        iterations: at most this many.

    Raises:
        ConfigError: not a distribution, shapes that disagree, or a slope <= 0.
    """
    p: NDArray[np.float64] = np.asarray(probabilities, dtype=np.float64)
    d: NDArray[np.float64] = np.asarray(distortions, dtype=np.float64)
    if p.ndim != 1 or not (p > 0).all() or not np.isclose(p.sum(), 1):
        raise ConfigError("probabilities must be positive and sum to 1")
    if d.ndim != 2 or len(d) != len(p) or not ((d >= 0) & (d < np.inf)).all() or not slope > 0:
        raise ConfigError(
            f"distortions must be finite, >= 0, [{len(p)}, k], and slope={slope} above 0"
        )
    # A constant of a row changes no test channel, and keeps its kernel from vanishing
    least = d.min(axis=1, keepdims=True)
    kernel = np.exp(-slope * (d - least))
    q = np.full(d.shape[1], 1 / d.shape[1])
    for _ in range(iterations):
        mixture = kernel @ q
        factor = kernel.T @ (p / mixture)
        highest = float(np.log(factor.max()))
        average = float(q @ (factor * np.log(np.maximum(factor, 1e-300))))
        if (highest - average) / np.log(2) < gap:
            break
        q = q * factor
    mixture = kernel @ q
    weights = kernel * q / mixture[:, None]
    distortion = float(p @ (weights * d).sum(axis=1))
    base = slope * (float(p @ least[:, 0]) - distortion) - float(p @ np.log(mixture))
    factor = kernel.T @ (p / mixture)
    above = base - float(q @ (factor * np.log(np.maximum(factor, 1e-300))))
    below = base - float(np.log(factor.max()))
    return RatePoint(above / math.log(2), distortion, below / math.log(2))
