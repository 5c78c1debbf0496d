"""Populations whose dimension is known, for the measured coverage of the intervals."""

from __future__ import annotations

import numpy as np

from spikedim.dimension.estimators import get_estimator
from spikedim.dimension.moments import Array
from spikedim.dimension.spectrum import Spectrum
from spikedim.errors import ConfigError
from spikedim.results import Estimate

SHAPES = ("isotropic", "power-law", "spiked", "steep")
#: Of the factors of a sample: excess kurtosis 0, 6 and about 45.
LAWS = ("gaussian", "exponential", "sparse")
#: Share of the samples in which a sparse factor is on.
SPARSE = 0.02
#: Intrinsic dimension of every manifold.
MANIFOLDS = {
    "circle": 1, "roll": 2, "sphere-2": 2, "gaussian-2": 2, "cube-3": 3, "torus-5": 5,
    "gaussian-5": 5, "sphere-10": 10, "cube-10": 10, "gaussian-20": 20,
}  # fmt: skip


def true_eigenvalues(shape: str, d: int) -> Array:
    """Population eigenvalues: all 1; k⁻¹; 5 spikes of 20 over ones; or k⁻²."""
    if shape == "isotropic":
        return np.ones(d)
    if shape == "power-law":
        return 1.0 / np.arange(1, d + 1)
    if shape == "steep":
        return 1.0 / np.arange(1, d + 1) ** 2
    if shape == "spiked":
        return np.where(np.arange(d) < 5, 20.0, 1.0)
    raise ConfigError(f"shape={shape!r}; expected one of {', '.join(SHAPES)}")


def draw(values: Array, n: int, rng: np.random.Generator, law: str = "gaussian") -> Array:
    """Samples [n, d] with the given population eigenvalues and a mean of 3.

    Factors are independent, of mean 0 and variance 1: standard normal, exponential less 1, or
    ``sparse`` (1 with probability ``SPARSE``, else 0, standardised), as spikes are.
    """
    size = (n, len(values))
    if law == "gaussian":
        factors: Array = rng.standard_normal(size)
    elif law == "exponential":
        factors = rng.exponential(size=size) - 1
    elif law == "sparse":
        factors = ((rng.random(size) < SPARSE) - SPARSE) / np.sqrt(SPARSE * (1 - SPARSE))
    else:
        raise ConfigError(f"law={law!r}; expected one of {', '.join(LAWS)}")
    return np.asarray(factors * np.sqrt(values) + 3.0)


def draw_manifold(name: str, n: int, rng: np.random.Generator) -> Array:
    """Samples [n, features] of a manifold of ``MANIFOLDS``.

    Circle and torus: angles uniform, embedded by cosine and sine of each. Roll: a sheet wound
    1.5 times. Sphere, cube: uniform. Gaussian: standard normal.
    """
    kind, d = name.split("-")[0], MANIFOLDS[name]
    if kind in ("circle", "torus"):
        angles = 2 * np.pi * rng.random((n, d))
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    if kind == "roll":
        t = 1.5 * np.pi * (1 + 2 * rng.random(n))
        return np.stack([t * np.cos(t), 21 * rng.random(n), t * np.sin(t)], axis=1)
    if kind == "sphere":
        z = rng.standard_normal((n, d + 1))
        return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))
    return rng.random((n, d)) if kind == "cube" else rng.standard_normal((n, d))


def population_value(key: str, population: Spectrum) -> float:
    """What an estimator is of the population; pr_corrected estimates the population's pr."""
    return float(get_estimator("pr" if key == "pr_corrected" else key).function(population))


def bounds(found: Estimate) -> tuple[float, float]:
    """Interval of an estimate; infinite where it has no end."""
    low = -np.inf if found.low is None else found.low
    high = np.inf if found.high is None else found.high
    return low, high
