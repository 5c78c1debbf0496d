"""From a score-Jacobian information matrix to a causal order, by Schur complements.

For an additive-noise model x_j = f_j(parents) + n_j with Gaussian noise of variance σ_j² and score
s = ∇ log p, the information matrix I = E[−∇s] has the diagonal

    I_jj = 1/σ_j² + Σ_{children c of j} E[(∂_j f_c)²]/σ_c²,

so with equal variances its smallest entries are those of the leaves, and only those. Removing a
leaf l from a linear model is the Schur complement I_RR − I_Rl I_lR / I_ll; in a non-linear one the
complement exceeds the information of the remaining variables by Cov(∇f_l)/σ_l²
(:func:`expectation_gap`). Repeated removal is a Cholesky factorisation that pivots on the smallest
diagonal entry, which is how it is computed here.

Source: Wu and Xie, arXiv:2604.25295 (Score-Schur topological sort); the linear case is Ghoshal and
Honorio, AISTATS 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from spikedim.errors import ConfigError, DataError

Array = NDArray[np.float64]
TOLERANCE = 0.05
PUBLISHED_RIDGE = 1e-4


@dataclass(frozen=True)
class Extraction:
    """Variables in the order in which they were removed, leaves first.

    Attributes:
        removed: indices of the variables, leaves first.
        pivots: diagonal entry of each when it was removed, 1/σ² for a leaf (of the matrix given,
            after scaling by noise variances if there were any).
        block: number of the block in which each was removed, from 0.
    """

    removed: tuple[int, ...]
    pivots: tuple[float, ...]
    block: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Causes first."""
        return self.removed[::-1]


def schur_sort(
    information: Array,
    tolerance: float = TOLERANCE,
    ridge: float = 0.0,
    noise_variance: Sequence[float] | Array | None = None,
) -> Extraction:
    """Remove leaves from an information matrix until nothing is left.

    Each round takes the block of variables whose diagonal entry is within ``tolerance`` of the
    smallest and removes it by one Schur complement, its diagonal raised by ``ridge`` times its
    mean. Inside a block the order is that of removal one by one. On a linear model with equal noise
    variances the order is exact without ridge, with tolerance 0 or one below the smallest
    Σ_c b_jc² of a variable with children. A ridge λ leaves λ/(1+λ) of every removed row behind,
    which total effects along paths amplify: the published 1e-4 misorders dense linear models.
    Time O(d³), memory two d x d matrices.

    Args:
        information: symmetric positive definite [d, d].
        tolerance: γ ≥ 0, relative to the smallest diagonal entry.
        ridge: λ ≥ 0, relative to the mean diagonal entry of the block.
        noise_variance: noise variances [d] up to a common factor, where they are known to differ:
            leaves are then the smallest σ_j² I_jj.

    Raises:
        ConfigError: ``tolerance``, ``ridge`` or ``noise_variance`` out of its domain.
        DataError: the matrix is not square, finite, symmetric or positive definite.
    """
    matrix = _checked(information, tolerance, ridge)
    d = len(matrix)
    if noise_variance is not None:
        scale = np.sqrt(checked_variances(noise_variance, d))
        matrix = matrix * scale[:, None] * scale
    # Rows removed[:k] of the factor are final; rows k: belong to what remains, in the order of at.
    at = np.arange(d)
    factor = np.zeros((d, d))
    diagonal = matrix.diagonal().copy()
    pivots, block = np.empty(d), np.empty(d, int)
    k = number = 0
    while k < d:
        smallest = diagonal[k:].min()
        if not smallest > 0:
            raise DataError(
                f"the information matrix is not positive definite: after {k} of {d} variables the "
                f"diagonal entry of variable {at[k + int(diagonal[k:].argmin())]} is "
                f"{smallest:.3g}; use more samples or a larger ridge"
            )
        chosen = k + (
            np.flatnonzero(diagonal[k:] <= smallest * (1 + tolerance))
            if tolerance
            else diagonal[k:].argmin(0, keepdims=True)
        )
        size = len(chosen)
        _to_front(k, chosen, at, diagonal, factor)
        stop = k + size
        columns = matrix[at[k:, None], at[None, k:stop]]
        columns -= factor[k:, :k] @ factor[k:stop, :k].T
        square = columns[:size]
        if size > 1:
            inner = schur_sort(square, 0.0, ridge)
            places = np.array(inner.removed)
            at[k:stop], factor[k:stop, :k] = at[k:stop][places], factor[k:stop, :k][places]
            columns = columns[:, places]
            columns[:size] = columns[:size][places]
            square, pivots[k:stop] = columns[:size], inner.pivots
        else:
            pivots[k] = diagonal[k]
        raised = square + ridge * np.trace(square) / size * np.eye(size)
        try:
            root = np.linalg.cholesky(raised)
        except np.linalg.LinAlgError as error:
            raise DataError(
                f"a block of {size} variables is singular; give a ridge, the published one is "
                f"{PUBLISHED_RIDGE:g}"
            ) from error
        factor[k:, k:stop] = linalg.solve_triangular(root, columns.T, lower=True).T
        diagonal[stop:] -= np.einsum("ij,ij->i", factor[stop:, k:stop], factor[stop:, k:stop])
        block[k:stop] = number
        k, number = stop, number + 1
    return Extraction(tuple(at.tolist()), tuple(pivots.tolist()), tuple(block.tolist()))


def expectation_gap(gradients: Array, noise_variance: float) -> Array:
    """What Schur marginalisation of a leaf misses, −Cov(∇f_l)/σ_l², [k, k].

    Adding it to the Schur complement gives the information matrix of the remaining variables. It
    vanishes where f_l is linear.

    Args:
        gradients: ∇f_l at samples of the other variables, [n, k].
        noise_variance: σ_l².
    """
    centred = gradients - gradients.mean(0)
    gap: Array = -(centred.T @ centred) / (len(centred) * noise_variance)
    return gap


def order_violations(order: Sequence[int], graph: NDArray[np.bool_]) -> int:
    """Edges of ``graph`` (``graph[i, j]``: i causes j) that point backwards in ``order``."""
    position = np.empty(len(order), int)
    position[np.asarray(order)] = np.arange(len(order))
    causes, effects = np.nonzero(graph)
    return int((position[causes] > position[effects]).sum())


def checked_variances(noise_variance: Sequence[float] | Array, d: int) -> Array:
    """Noise variances as an array of ``d`` positive numbers, or a ConfigError."""
    found = np.asarray(noise_variance, float)
    if found.shape != (d,) or not (np.isfinite(found) & (found > 0)).all():
        raise ConfigError(
            f"noise_variance has shape {found.shape}; expected {d} positive numbers, one a variable"
        )
    return found


def _to_front(
    k: int, chosen: NDArray[np.int_], at: NDArray[np.int_], diagonal: Array, factor: Array
) -> None:
    """Swap the rows ``chosen`` (ascending) to k, k + 1, ...."""
    for place, row in enumerate(chosen, start=k):
        if place != row:
            pair, swapped = [place, row], [row, place]
            at[pair], diagonal[pair] = at[swapped], diagonal[swapped]
            factor[pair, :k] = factor[swapped, :k]


def _checked(information: Array, tolerance: float, ridge: float) -> Array:
    for name, value in (("tolerance", tolerance), ("ridge", ridge)):
        if not (np.isfinite(value) and value >= 0):
            raise ConfigError(f"{name}={value}; expected a number of at least 0")
    matrix = np.asarray(information, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise DataError(f"the information matrix has shape {matrix.shape}; expected [d, d]")
    if not np.isfinite(matrix).all():
        raise DataError("the information matrix holds NaN or infinite values")
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * np.abs(matrix).max()):
        raise DataError("the information matrix is not symmetric; give (I + Iᵀ)/2")
    return matrix
