"""Estimates the checks share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from spikedim.results import Estimate
from spikedim.theory.statistics import mean_estimate


def average(values: ArrayLike, unit: str = "") -> Estimate:
    """Mean with a Student-t interval; one value says nothing of its spread."""
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        return Estimate(math.nan, n=0, unit=unit)
    found = mean_estimate(x, unit)
    return found if len(x) > 1 else replace(found, low=-math.inf, high=math.inf)


def geometric(values: ArrayLike) -> Estimate:
    """Geometric mean of positive numbers with a Student-t interval on the log scale."""
    logs = average(np.log(np.asarray(values, dtype=np.float64)))
    low, high = (math.exp(bound or 0.0) for bound in (logs.low, logs.high))
    return Estimate(math.exp(logs.value), low, high, logs.n, method="Student t of logs")


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Mean over rows of the ranks within each row of [rows, units], so that a unit counts once."""
    return np.asarray(stats.rankdata(np.asarray(values), axis=1)).mean(0)


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Spearman's ρ of independent pairs with the interval of Bonett and Wright (2000)."""
    a, b = (stats.rankdata(v) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    rho = float(a @ b) / scale if scale else 0.0
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / max(len(a) - 3, 1))
    middle = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Estimate(rho, low, high, len(a), method="Spearman, Bonett-Wright")


def log_slope(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Least-squares slope of log y against log x, Student-t interval of n-2 degrees of freedom."""
    a, b = (np.log(np.asarray(values, dtype=np.float64)) for values in (x, y))
    return slope(a, b, "least squares on logs")


def slope(x: ArrayLike, y: ArrayLike, method: str = "least squares") -> Estimate:
    """Least-squares slope of y against x, Student-t interval of n-2 degrees of freedom."""
    fit, n = stats.linregress(x, y), len(np.asarray(x))
    value = float(fit.slope)
    if n < 3:
        return Estimate(value, n=n, method="two points")
    half = float(stats.t.ppf(0.975, n - 2) * fit.stderr)
    return Estimate(value, value - half, value + half, n, method=method)
