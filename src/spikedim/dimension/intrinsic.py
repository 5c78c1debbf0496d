"""Nearest-neighbour intrinsic dimensions, computed by scikit-dimension.

Both are biased at finite n, by edges downwards and by curvature upwards, by 10 to 30 % in 10 to
20 dimensions (docs/coverage.md); their intervals hold the sampling error alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from spikedim.dimension.moments import Array

CAP = 5000
_CAP_BYTES = 256 << 20
NEIGHBOURS = 20


def sample_cap(d: int) -> int:
    """Samples that are read for d features: 5,000, or fewer so that they fit 256 MiB."""
    return max(min(CAP, _CAP_BYTES // (8 * d)), 50)


def distinct_sample(x: Any, rng: np.random.Generator, cap: int = CAP) -> Array:
    """At most ``cap`` distinct rows of x, drawn without replacement.

    Equal rows have distance 0, for which neighbour-ratio estimators are undefined.
    """
    x = np.asarray(x, np.float64)
    if len(x) > cap:
        x = x[np.sort(rng.choice(len(x), cap, replace=False))]
    return np.asarray(np.unique(x, axis=0))


def two_nn_dimension(x: Any, rng: np.random.Generator, cap: int = CAP) -> float:
    """Two-NN dimension of at most ``cap`` distinct rows of x [n, d]; NaN below 5 of them.

    P(μ) = 1 − μ^−D for the ratio μ of the two nearest distances (Facco et al. 2017).
    """
    points = distinct_sample(x, rng, cap)
    if len(points) < 5:
        return 0.0 if len(points) == 1 else float("nan")
    from skdim.id import TwoNN

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(TwoNN().fit(_two_columns(points)).dimension_)


def mle_dimension(
    x: Any, rng: np.random.Generator, neighbours: int = NEIGHBOURS, cap: int = CAP
) -> float:
    """Levina–Bickel dimension of at most ``cap`` distinct rows of x; NaN below 5 of them.

    Infinite where every point has its neighbours at one distance, as corners of a simplex have.

    Per point D = [1/(k−1) Σ_{j<k} ln(T_k/T_j)]⁻¹; their harmonic mean removes the upward bias
    of the arithmetic one (MacKay and Ghahramani 2005).
    """
    points = distinct_sample(x, rng, cap)
    if len(points) < 5:
        return 0.0 if len(points) == 1 else float("nan")
    from skdim.id import MLE

    k = min(neighbours, len(points) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local = MLE().fit(_two_columns(points), n_neighbors=k).dimension_pw_
    with np.errstate(divide="ignore"):  # neighbours all equally far: infinite
        return float(1 / np.mean(1 / local))


def _two_columns(points: Array) -> Array:
    """Add a constant feature to one-dimensional data: the library wants at least two."""
    return np.pad(points, ((0, 0), (0, 1))) if points.shape[1] == 1 else points
