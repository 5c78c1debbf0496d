"""Information matrices E[−∇s] from samples, and of what remains when variables are removed.

- ``network``: a score network (:mod:`spikedim.order.score`), the published way; for any smooth
  density. Removing variables trains the rest a little further.
- ``gaussian``: Σ⁻¹, the minimiser of the score matching loss over linear scores, exact for
  linear models; its marginals are Schur complements, to the last digit.
- ``stein``: E[s sᵀ] (= E[−∇s]) with the score at the samples by the kernel Stein estimator with
  a Gaussian kernel (Li and Turner 2018); no training, time O(n³), on at most 1,000 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from spikedim.errors import ConfigError, DataError
from spikedim.order.score import ScoreConfig, ScoreNetwork, held_out, train
from spikedim.order.sort import TOLERANCE, Array, Extraction, checked_variances
from spikedim.progress import task

ESTIMATORS = ("network", "gaussian", "stein")
_STEIN_SAMPLES = 1000
_STEIN_RIDGE = 1e-2
_FLOOR = 1e-6
_REFIT_SHARE = 10


class Score(Protocol):
    """An estimate of the score of some variables."""

    def information(self) -> Array:
        """E[−∇s], symmetric positive definite [d, d]."""

    def keep(self, kept: Sequence[int]) -> Score:
        """The score of the variables ``kept`` alone."""


class GaussianScore:
    """The score of a Gaussian with the covariance of ``x`` [n, d].

    Raises:
        DataError: the covariance is singular.
    """

    def __init__(self, x: Array) -> None:
        self._x = x
        n, d = x.shape
        if n < d + 2:
            raise DataError(
                f"{n} samples of {d} variables; the gaussian estimator needs at least {d + 2}, "
                "use estimator network or fewer variables"
            )

    def information(self) -> Array:
        """Inverse covariance."""
        scale = self._x.std(0)
        values = np.atleast_2d(np.corrcoef(self._x, rowvar=False))
        if not np.linalg.eigvalsh(values)[0] > 1e-12:
            raise DataError(
                "the covariance is singular: some variable is a linear combination of others; "
                "drop copies, sums and constants"
            )
        found: Array = np.linalg.inv(values) / scale / scale[:, None]
        return (found + found.T) / 2

    def keep(self, kept: Sequence[int]) -> GaussianScore:
        """The Gaussian of fewer variables."""
        return GaussianScore(self._x[:, list(kept)])


class SteinScore:
    """Kernel Stein estimate of the score at ``x`` [n, d]; see the module."""

    def __init__(self, x: Array, seed: int = 0) -> None:
        if len(x) > _STEIN_SAMPLES:
            chosen = np.random.default_rng(seed).choice(len(x), _STEIN_SAMPLES, replace=False)
            x = x[np.sort(chosen)]
        self._x = x

    def scores(self) -> Array:
        """Scores at the samples, [n, d]: −(K + ηI)⁻¹ ⟨∇, K⟩, width the median distance."""
        x = self._x - self._x.mean(0)
        norms = (x**2).sum(1)
        squared = np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0)
        width2, spread = float(np.median(squared)), float(squared.mean())
        if width2 < 1e-9 * spread:  # most pairs are equal, as in a column of two values
            width2 = spread
        width2 = max(width2, np.finfo(float).tiny)
        kernel = np.exp(-squared / (2 * width2))
        slope = (x * kernel.sum(1)[:, None] - kernel @ x) / width2
        kernel[np.diag_indices_from(kernel)] += _STEIN_RIDGE
        found: Array = -np.linalg.solve(kernel, slope)
        return found

    def information(self) -> Array:
        """Mean of s sᵀ."""
        scores = self.scores()
        return positive(scores.T @ scores / len(scores))

    def keep(self, kept: Sequence[int]) -> SteinScore:
        """The estimate from fewer columns."""
        return SteinScore(self._x[:, list(kept)])


class NetworkScore:
    """A trained score network of ``x`` [n, d].

    Data are centred and divided by one number, a typical standard deviation of a variable given
    all others, so that the result has the units of the data and no variable is rescaled.

    Raises:
        DataError: the data are constant or not finite, or training diverged.
    """

    def __init__(self, x: Array, config: ScoreConfig | None = None) -> None:
        self.config = config or ScoreConfig()
        n, d = x.shape
        covariance = np.atleast_2d(np.cov(x[~held_out(n, self.config.seed)], rowvar=False))
        ridge = 1e-9 if n > 2 * d else d / n
        precision = np.linalg.inv(covariance + np.diag(ridge * covariance.diagonal()))
        self.unit = float(np.median(precision.diagonal())) ** -0.5
        self._x = torch.from_numpy((x - x.mean(0)) / self.unit).float()
        start = torch.from_numpy(precision * self.unit**2).float()
        self.network = ScoreNetwork(start, self.config.units, self.config.seed)
        self.loss = train(self.network, self._x, self.config, f"score of {d} variables")

    def information(self) -> Array:
        """Mean Jacobian of the network over all samples."""
        found = self.network.information(self._x).double().numpy()
        return positive(found / self.unit**2)

    def keep(self, kept: Sequence[int]) -> NetworkScore:
        """The network of fewer variables, trained for a tenth of the steps."""
        new = object.__new__(NetworkScore)
        new.config = replace(self.config, steps=max(1, self._steps() // _REFIT_SHARE))
        new.unit, new._x = self.unit, self._x[:, list(kept)]
        new.network = self.network.keep(list(kept))
        new.loss = train(new.network, new._x, new.config, f"score of {len(kept)} variables")
        new._first = self._steps()
        return new

    _first: int | None = None

    def _steps(self) -> int:
        return self.config.steps if self._first is None else self._first


def estimate(
    x: Array, estimator: str = "network", config: ScoreConfig | None = None, seed: int = 0
) -> Score:
    """The score of samples [n, d] by one of :data:`ESTIMATORS`.

    Raises:
        ConfigError: unknown estimator.
        DataError: see the estimators.
    """
    if estimator == "network":
        return NetworkScore(x, config or ScoreConfig(seed=seed))
    if estimator == "gaussian":
        return GaussianScore(x)
    if estimator == "stein":
        return SteinScore(x, seed)
    raise ConfigError(f"estimator={estimator!r}; expected one of {', '.join(ESTIMATORS)}")


def refit_sort(
    score: Score, tolerance: float = TOLERANCE, noise_variance: Array | None = None
) -> Extraction:
    """Remove leaves block by block, estimating the score of the rest anew after every block.

    Where Schur complements (:func:`~spikedim.order.sort.schur_sort`) carry the expectation gap
    of a non-linear model from block to block, this pays one more estimate for each. With tolerance
    0 it is exact for every additive-noise model with equal Gaussian noise, up to the estimates.
    """
    matrix = score.information()
    d = len(matrix)
    scale = np.ones(d) if noise_variance is None else checked_variances(noise_variance, d)
    left = list(range(d))
    removed: list[int] = []
    pivots: list[float] = []
    block: list[int] = []
    with task("leaves", d) as bar:
        while True:
            values = matrix.diagonal() * scale[left]
            ranked = np.argsort(values, kind="stable")
            size = max(1, int((values <= values.min() * (1 + tolerance)).sum()))
            number = block[-1] + 1 if block else 0
            removed += [left[j] for j in ranked[:size]]
            pivots += values[ranked[:size]].tolist()
            block += [number] * size
            bar.advance(size)
            kept = sorted(ranked[size:].tolist())
            left = [left[j] for j in kept]
            if not left:
                return Extraction(tuple(removed), tuple(pivots), tuple(block))
            score = score.keep(kept)
            matrix = score.information()


def positive(matrix: Array) -> Array:
    """The nearest matrix with eigenvalues of at least 1e-6 of the largest diagonal entry.

    An information matrix is positive definite; an estimate of it may not be.
    """
    values, vectors = np.linalg.eigh(matrix)
    floor = _FLOOR * matrix.diagonal().max()
    if values[0] >= floor:
        return matrix
    found: Array = (vectors * np.maximum(values, floor)) @ vectors.T
    return (found + found.T) / 2
