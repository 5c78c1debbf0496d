"""Predictors from what other data sets and networks needed, without any theory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikedim.design.cases import Case
from spikedim.design.predictors.base import Predictor, first_within, interpolate

#: Prior cases that a data set's or network's own effect is weighed against.
_SHRINK = 3.0


@dataclass(frozen=True)
class Pooled:
    """The median T* and the mean curve of points lost over earlier cases."""

    T: float
    steps: tuple[int, ...]
    curve: tuple[float, ...]

    def timesteps(self, case: Case) -> float:
        """The median."""
        return self.T

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """The mean curve."""
        return interpolate(self.steps, self.curve, steps)


@dataclass(frozen=True)
class Additive:
    """``log2 T* = μ + network effect + data-set effect``, effects shrunk towards 0.

    A network or data set never seen has no effect; the curve of points lost is that of the network
    where it was seen, weighed against the mean of all.
    """

    mean: float
    models: dict[str, float]
    datasets: dict[str, float]
    pooled: Pooled
    curves: dict[str, Pooled]

    def timesteps(self, case: Case) -> float:
        """2 to the sum of the effects."""
        own = self.models.get(case.model, 0.0) + self.datasets.get(case.dataset, 0.0)
        return float(max(1.0, 2 ** (self.mean + own)))

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """The network's mean curve, or that of all."""
        own = self.curves.get(case.model, self.pooled)
        return 0.5 * (own.losses(case, steps) + self.pooled.losses(case, steps))


@dataclass(frozen=True)
class Levels:
    """T steps of a deterministic rate code are T + 1 levels: error ∝ (T + 1)^−2.

    ``lost(T) = A·((T+1)^−2 − (T_max+1)^−2)``: quantisation noise of log2(T + 1) bits.
    """

    amplitude: float
    tolerance: float

    def timesteps(self, case: Case) -> float:
        """Smallest T whose remaining noise is within the tolerance."""
        return max(1.0, float(np.ceil(np.sqrt(self.amplitude / max(self.tolerance, 1e-9)) - 1)))

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """The quantisation curve."""
        return self.amplitude * shape(steps)


def shape(steps: Sequence[int]) -> np.ndarray:
    """``(T+1)^−2`` less its value at the largest of ``steps``."""
    noise = (np.asarray(steps, dtype=float) + 1) ** -2
    found: np.ndarray = noise - noise[-1]
    return found


def fit_pooled(cases: Sequence[Case]) -> Pooled:
    """Median of T* and mean of points lost, every place (data set and network) counted once."""
    places: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        places.setdefault(case.place, []).append(case)
    t = [np.mean(np.log2([c.truth.t_star for c in group])) for group in places.values()]
    steps = tuple(sorted({T for case in cases for T in case.truth.steps}))
    curves = [
        np.mean([interpolate(c.truth.steps, list(c.truth.losses), steps) for c in group], axis=0)
        for group in places.values()
    ]
    return Pooled(float(2 ** np.median(t)), steps, tuple(float(v) for v in np.mean(curves, axis=0)))


def fit_additive(cases: Sequence[Case]) -> Additive:
    """Ridge regression of log2 T* on indicators of network and data set."""
    models = sorted({case.model for case in cases})
    datasets = sorted({case.dataset for case in cases})
    x = np.array(
        [[c.model == m for m in models] + [c.dataset == s for s in datasets] for c in cases],
        dtype=float,
    )
    y = np.log2([case.truth.t_star for case in cases])
    mean = float(y.mean())
    effects = np.linalg.solve(x.T @ x + _SHRINK * np.eye(x.shape[1]), x.T @ (y - mean))
    own = dict(zip(models + [f"data:{s}" for s in datasets], map(float, effects), strict=True))
    return Additive(
        mean,
        {m: own[m] for m in models},
        {s: own[f"data:{s}"] for s in datasets},
        fit_pooled(cases),
        {m: fit_pooled([c for c in cases if c.model == m]) for m in models},
    )


def fit_levels(cases: Sequence[Case]) -> Levels:
    """Least squares of the points lost on the quantisation curve."""
    x = np.concatenate([shape(case.truth.steps) for case in cases])
    y = np.concatenate([case.truth.losses for case in cases])
    amplitude = max(0.0, float(x @ y / (x @ x)))
    return Levels(amplitude, float(np.median([case.truth.tolerance for case in cases])))


@dataclass(frozen=True)
class MeanCurve:
    """Smallest T at which the mean curve of earlier cases is within the tolerance."""

    pooled: Pooled
    tolerance: float

    def timesteps(self, case: Case) -> float:
        """From the curve."""
        return first_within(np.array(self.pooled.curve), self.pooled.steps, self.tolerance)

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """The curve."""
        return self.pooled.losses(case, steps)


def fit_mean_curve(cases: Sequence[Case]) -> MeanCurve:
    """The pooled curve with the cases' tolerance."""
    return MeanCurve(fit_pooled(cases), float(np.median([c.truth.tolerance for c in cases])))


POOLED = (
    Predictor("median", "nothing",
              "The median T* of earlier cases; accuracy from their mean curve.", fit_pooled),
    Predictor("mean-curve", "nothing",
              "The smallest T at which the mean accuracy curve of earlier cases is within the "
              "tolerance.", fit_mean_curve),
    Predictor("additive", "data and network",
              "Median of earlier cases plus shrunk effects of this network and this data set, "
              "where they were seen.", fit_additive),
    Predictor("levels", "nothing",
              "T steps carry log2(T+1) bits: accuracy lost falls as (T+1)^−2, amplitude fitted.",
              fit_levels),
)  # fmt: skip
