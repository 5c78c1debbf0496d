"""Predictors that see only the data: the published rule and its refits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spikedim import theory
from spikedim.design.cases import Case
from spikedim.design.predictors.base import Predictor
from spikedim.results import Estimate

#: ε of the published experiments, in percentage points.
EPSILON = 5.0
_RESAMPLES = 400
_CANDIDATES = 300


@dataclass(frozen=True)
class Constant:
    """Always the same T: what is done today."""

    T: int

    def timesteps(self, case: Case) -> float:
        """T."""
        return self.T

    def losses(self, case: Case, steps: Sequence[int]) -> None:
        """It says nothing about accuracy."""
        return


@dataclass(frozen=True)
class Rule:
    """``T = ⌈C·d_eff/ε²⌉``, and read the other way ``ε(T) = sqrt(C·d_eff/T)`` points lost.

    Attributes:
        constant: C, with its interval.
        unit: reading of ε = 5 %.
    """

    constant: Estimate
    unit: Literal["percent", "fraction"] = "percent"

    def timesteps(self, case: Case) -> float:
        """The rule's T."""
        epsilon = EPSILON if self.unit == "percent" else EPSILON / 100
        return theory.timestep_rule(case.d_eff, epsilon, self.unit, self.constant).timesteps.value

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """ε(T) − ε(largest T), in points, at most 100."""
        scale = 1.0 if self.unit == "percent" else 100.0
        error = scale * np.sqrt(self.constant.value * case.d_eff / np.asarray(steps, dtype=float))
        error = np.minimum(error, 100.0)
        found: np.ndarray = error - error[-1]
        return found


@dataclass(frozen=True)
class PowerLaw:
    """``T = a·d_eff^b``; b = 1 is the published form, b = 0 says that d_eff does not matter."""

    scale: float
    exponent: float

    def timesteps(self, case: Case) -> float:
        """a·d_eff^b."""
        return max(1.0, self.scale * case.d_eff**self.exponent)

    def losses(self, case: Case, steps: Sequence[int]) -> None:
        """It says nothing about accuracy."""
        return


def fit_constant(cases: Sequence[Case]) -> Rule:
    """C that minimises the mean |log2 error| of T*, with a bootstrap interval over places.

    The error of a rounded rule is flat between steps: of all the best constants the middle one is
    taken.
    """
    t = np.array([case.truth.t_star for case in cases], dtype=float)
    d = np.array([case.d_eff for case in cases])
    implied = t * EPSILON**2 / d
    candidates = np.geomspace(implied.min() / 2, implied.max() * 1.01, _CANDIDATES)
    predicted = np.maximum(1.0, np.ceil(candidates[:, None] * d / EPSILON**2 * (1 - 1e-12)))
    places = sorted({case.place for case in cases})
    member = np.array([[case.place == place for place in places] for case in cases], dtype=float)
    errors = np.abs(np.log2(predicted / t)) @ member  # summed by place
    drawn = np.random.default_rng(0).multinomial(
        len(places), np.full(len(places), 1 / len(places)), size=_RESAMPLES
    )
    value = _middle(candidates, errors.sum(axis=1)[None])[0]
    low, high = np.quantile(_middle(candidates, drawn @ errors.T), (0.025, 0.975))
    method = f"bootstrap over {len(places)} places"
    low, high = min(float(low), value), max(float(high), value)
    return Rule(Estimate(float(value), low, high, len(cases), method=method))


def _middle(candidates: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The middle one of the candidates with the least error, for each row of errors."""
    best = errors <= errors.min(axis=1, keepdims=True) + 1e-9
    middle = np.cumsum(best, axis=1) >= (best.sum(axis=1, keepdims=True) + 1) // 2
    found: np.ndarray = candidates[middle.argmax(axis=1)]
    return found


def fit_power_law(cases: Sequence[Case]) -> PowerLaw:
    """Least squares of log T* on log d_eff; a constant where d_eff does not vary."""
    x = np.log([case.d_eff for case in cases])
    y = np.log([case.truth.t_star for case in cases])
    if np.ptp(x) < 1e-9:
        return PowerLaw(math.exp(float(y.mean())), 0.0)
    slope, offset = np.polyfit(x, y, 1)
    return PowerLaw(math.exp(float(offset)), float(slope))


RULES = (
    Predictor("constant", "nothing", "T = 4, whatever the data and the network.",
              lambda _: Constant(4)),
    Predictor("published", "the data",
              "T = ⌈C·d_eff/ε²⌉, C = 2.3, ε = 5 percentage points (as its experiments use it).",
              lambda _: Rule(theory.PUBLISHED_CONSTANT)),
    Predictor("published-fraction", "the data",
              "T = ⌈C·d_eff/ε²⌉, C = 2.3, ε = 0.05 (as printed).",
              lambda _: Rule(theory.PUBLISHED_CONSTANT, "fraction")),
    Predictor("calibrated", "the data",
              "T = ⌈C·d_eff/ε²⌉, ε = 5 percentage points, C refitted.", fit_constant),
    Predictor("power-law", "the data", "T = a·d_eff^b, a and b fitted.", fit_power_law),
)  # fmt: skip
