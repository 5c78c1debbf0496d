"""Estimates the checks share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from spikedim.results import Estimate
from spikedim.theory.statistics import mean_interval


def average(values: ArrayLike, unit: str = "") -> Estimate:
    """Mean with a Student-t interval."""
    x = np.asarray(values, dtype=np.float64).ravel()
    low, high = mean_interval(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0, len(x))
    return Estimate(float(x.mean()), low, high, len(x), unit, method="Student t")


def geometric(values: ArrayLike) -> Estimate:
    """Geometric mean of positive numbers with a Student-t interval on the log scale."""
    logs = average(np.log(np.asarray(values, dtype=np.float64)))
    low, high = (math.exp(bound or 0.0) for bound in (logs.low, logs.high))
    return Estimate(math.exp(logs.value), low, high, logs.n, method="Student t of logs")


def rank_correlation(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Spearman's ρ with the interval of Bonett and Wright (2000).

    Args:
        x, y: paired numbers.
        groups: rank within each of these only, so that what differs between them plays no part.
    """
    a, b = (np.array(v, dtype=np.float64).ravel() for v in (x, y))
    label = np.zeros(len(a)) if groups is None else np.asarray(groups).ravel()
    for value in np.unique(label):
        same = label == value
        for v in (a, b):
            ranks = stats.rankdata(v[same])
            v[same] = (ranks - ranks.mean()) / max(same.sum(), 1)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    rho = float(a @ b) / scale if scale else 0.0
    freedom = len(a) - len(np.unique(label)) - 2
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / max(freedom, 1))
    middle = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Estimate(rho, low, high, len(a), method="Spearman, Bonett-Wright")


def log_slope(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Least-squares slope of log y against log x, Student-t interval of n-2 degrees of freedom."""
    a = np.log(np.asarray(x, dtype=np.float64))
    b = np.log(np.asarray(y, dtype=np.float64))
    fit = stats.linregress(a, b)
    value = float(fit.slope)
    if len(a) < 3:
        return Estimate(value, n=len(a), method="two points")
    half = float(stats.t.ppf(0.975, len(a) - 2) * fit.stderr)
    return Estimate(value, value - half, value + half, len(a), method="least squares on logs")
