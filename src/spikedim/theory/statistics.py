"""Intervals for measured proportions and for products of uncertain numbers."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student

from spikedim.errors import ConfigError
from spikedim.results import Estimate


def normal_quantile(confidence: float) -> float:
    """Two-sided standard-normal quantile z with P(|Z| <= z) = ``confidence``."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie strictly between 0 and 1, e.g. 0.95")
    return float(ndtri(0.5 + confidence / 2))


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion.

    ``(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with ``p = successes/n``
    (Wilson 1927). Unlike the normal approximation it is sound at 0 and 100 % and for small n.

    Args:
        successes: number of successes, 0 <= successes <= n.
        n: number of trials, at least 1; an effective number need not be whole.
        confidence: nominal coverage.

    Returns:
        Lower and upper bound as fractions in [0, 1].

    Raises:
        ConfigError: n < 1 or successes outside [0, n].
    """
    if n < 1:
        raise ConfigError(f"n={n} trials: a proportion needs at least one; give a test set")
    if not 0 <= successes <= n:
        raise ConfigError(f"successes={successes} must lie between 0 and n={n}")
    z = normal_quantile(confidence)
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (centre - spread) / scale if successes > 0 else 0.0  # exactly, without rounding
    high = (centre + spread) / scale if successes < n else 1.0
    return max(0.0, low), min(1.0, high)


def share(hits: float, n: int, confidence: float = 0.95) -> Estimate:
    """Share of hits in percent with its interval, see :func:`wilson_interval` for the errors."""
    low, high = wilson_interval(hits, n, confidence)
    return Estimate(100 * hits / n, 100 * low, 100 * high, n, "%", confidence, "Wilson")


def mean_interval(
    mean: float, standard_deviation: float, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Student-t interval of a mean: ``mean ± t_{n-1}·s/sqrt(n)``; infinite for n = 1.

    Args:
        mean: sample mean.
        standard_deviation: sample standard deviation s (divisor n-1).
        n: sample size.
        confidence: nominal coverage.
    """
    if n < 2:
        return -math.inf, math.inf
    half = student.ppf(0.5 + confidence / 2, n - 1) * standard_deviation / math.sqrt(n)
    return mean - half, mean + half


def mean_estimate(values: np.ndarray, unit: str = "") -> Estimate:
    """Mean of independent values with its interval, see :func:`mean_interval`; none for one value.

    Callers cut the interval with :meth:`Estimate.within` where the quantity has bounds.

    Args:
        values: [n], at least one.
        unit: of the values.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, n=n, unit=unit)
    low, high = mean_interval(mean, float(np.std(values, ddof=1)), n)
    return Estimate(mean, float(low), float(high), n, unit, method="Student t")


def product_interval(*factors: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of a product of independent positive quantities ``(value, low, high)``.

    Distances to the bounds add in quadrature on the log scale, upper and lower sides apart:
    ``log(high/value) = sqrt(Σ log(high_i/value_i)²)``. A factor with value = low = high is exact.

    Raises:
        ConfigError: a factor that is not positive or not ordered low <= value <= high.
    """
    value, below, above = 1.0, 0.0, 0.0
    for point, low, high in factors:
        if not 0 < low <= point <= high:
            raise ConfigError(
                f"factor {point} [{low}, {high}] must satisfy 0 < low <= value <= high"
            )
        value *= point
        below += math.log(point / low) ** 2
        above += math.log(high / point) ** 2
    return value * math.exp(-math.sqrt(below)), value * math.exp(math.sqrt(above))
