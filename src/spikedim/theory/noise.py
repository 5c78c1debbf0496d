"""From noise of a network's output to the accuracy to expect at each T."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import ndtr

from spikedim.errors import ConfigError


def accuracy_from_margins(margins: np.ndarray, noise: float, shift: float = 0.0) -> float:
    """Expected accuracy, as a fraction, of answers whose margin is blurred by output noise.

    A sample is right while its margin ``m = z_y − max_{j≠y} z_j`` is positive. After T steps the
    margin is its large-T limit plus an error of mean ``shift`` and standard deviation ``noise``,
    taken as normal and independent of the limit: ``mean_i Φ((m_i + shift)/noise)``.

    Args:
        margins: limits of the margins, shape [samples], positive where the limit is right.
        noise: standard deviation of the margin error, in units of the margins, >= 0.
        shift: mean of the margin error.

    Raises:
        ConfigError: no margins, or negative noise.
    """
    m = np.asarray(margins, dtype=np.float64).ravel()
    if len(m) == 0:
        raise ConfigError("no margins given: expected accuracy needs at least one sample")
    if not noise >= 0:
        raise ConfigError(f"noise={noise} must be 0 or more")
    if noise == 0:
        return float((m + shift > 0).mean())
    return float(ndtr((m + shift) / noise).mean())


def power_law(values: Mapping[int, float]) -> tuple[float, float]:
    """Scale a and exponent b of ``value(T) = a·T^(−b)``, least squares on logarithms.

    Raises:
        ConfigError: fewer than two positive values.
    """
    kept = {T: v for T, v in values.items() if v > 0}
    if len(kept) < 2:
        raise ConfigError("a power law needs two positive values at least")
    slope, offset = np.polyfit(np.log(list(kept)), np.log(list(kept.values())), 1)
    return float(np.exp(offset)), float(-slope)
