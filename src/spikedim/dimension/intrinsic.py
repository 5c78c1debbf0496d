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
#: Samples that are searched for ties.
TIES_FROM = 1000
_ROUNDING = 1e-9


def sample_cap(d: int) -> int:
    """Samples that are read for d features: 5,000, or fewer so that they fit 256 MiB."""
    return max(min(CAP, _CAP_BYTES // (8 * d)), 50)


def distinct_sample(x: Any, rng: np.random.Generator, cap: int = CAP) -> Array:
    """Distinct rows of ``cap`` rows of x drawn without replacement, centred and scaled.

    Equal rows have distance 0, for which neighbour-ratio estimators are undefined. Distances come
    from inner products, in which a large mean would cancel all digits.
    """
    x = np.asarray(x, np.float64)
    if len(x) > cap:
        x = x[np.sort(rng.choice(len(x), cap, replace=False))]
    x = x / (np.abs(x).max() or 1.0)
    return np.asarray(np.unique(x - x.mean(axis=0), axis=0))


def tied_share(x: Any) -> float:
    """Share of the distinct rows of x whose two nearest ones are equally far; 0 below 5 of them."""
    points = distinct_sample(x, np.random.default_rng(0))
    if len(points) < 5:
        return 0.0
    nearest = _distances(points, 2)
    return float((nearest[:, 0] == nearest[:, 1]).mean())


def two_nn_dimension(x: Any, rng: np.random.Generator, cap: int = CAP) -> float:
    """Two-NN dimension of at most ``cap`` distinct rows of x [n, d]; NaN below 5 of them.

    P(μ) = 1 − μ^−D for the ratio μ of the two nearest distances (Facco et al. 2017), without the
    tenth of largest μ. Infinite where all others are 1.
    """
    points = distinct_sample(x, rng, cap)
    if len(points) < 5:
        return 0.0 if len(points) == 1 else float("nan")
    from skdim.id import TwoNN

    nearest = _distances(points, 2)
    nearest = nearest[nearest[:, 0] > 0]
    if len(nearest) < 5:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = TwoNN(dist=True).fit(nearest)
    return float(found.dimension_) if found.x_.any() else float("inf")


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
    distances = _distances(points, k)
    distances = distances[distances[:, 0] > 0]
    if len(distances) < 5:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = (distances, None)
        local = MLE().fit(distances, precomputed_knn_arrays=known, n_neighbors=k).dimension_pw_
    with np.errstate(divide="ignore"):  # neighbours all equally far: infinite
        return float(1 / np.mean(1 / local))


def _distances(points: Array, k: int) -> Array:
    """Distances of every point to its k nearest others, [n, k] ascending.

    Those that rounding alone parts from the farthest are equal to it.
    """
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    far = found[:, -1:]
    return np.asarray(np.where(found > far * (1 - _ROUNDING), far, found))
