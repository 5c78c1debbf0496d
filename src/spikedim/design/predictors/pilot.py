"""Predictors from one training: the network at the largest T, read out earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spikedim.design.cases import Case
from spikedim.design.predictors.base import Predictor, first_within, interpolate, whole
from spikedim.errors import DataError
from spikedim.training.timestep import isotonic

Source = Literal["accuracy", "expected"]
_THRESHOLDS = tuple(float(v) for v in np.geomspace(0.25, 64, 33))


@dataclass(frozen=True)
class Readout:
    """A network read out after T of its steps loses more than one trained at T, by a factor.

    Attributes:
        source: the pilot's measured accuracy at each T, or the accuracy that output noise and
            margins of its large-T limit lead to expect.
        factor: points lost when trained at T per point lost when only read out at T.
        threshold: points lost in the read-out up to which T counts as enough.
    """

    source: Source
    factor: float
    threshold: float

    def timesteps(self, case: Case) -> float:
        """The smallest T of the read-out within the threshold."""
        steps, lost = read(case, self.source)
        return first_within(lost, steps, self.threshold)

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray:
        """The read-out's loss times the factor."""
        known, lost = read(case, self.source)
        return self.factor * interpolate(known, list(lost), steps)


def read(case: Case, source: Source) -> tuple[tuple[int, ...], np.ndarray]:
    """T and points lost in the pilot's read-out, non-increasing in T.

    Raises:
        DataError: no pilot, or no outputs of it.
    """
    pilot = case.pilot
    values = () if pilot is None else getattr(pilot, source)
    if pilot is None or not values:
        raise DataError(f"{case.model} on {case.dataset} has no pilot training with its {source}")
    fit = isotonic(np.array(values, dtype=float)[None])[0]
    return pilot.steps, fit[-1] - fit


def fit_readout(source: Source, cases: Sequence[Case]) -> Readout:
    """Factor by least squares on the points lost, threshold by the mean |log2 error| of T*."""
    curves = [read(case, source) for case in cases]
    x = np.concatenate(
        [
            interpolate(steps, list(lost), case.truth.steps)
            for case, (steps, lost) in zip(cases, curves, strict=True)
        ]
    )
    y = np.concatenate([case.truth.losses for case in cases])
    factor = max(0.0, float(x @ y / (x @ x))) if float(x @ x) > 0 else 0.0
    t = np.array([case.truth.t_star for case in cases], dtype=float)
    errors = [
        np.abs(
            np.log2([whole(first_within(lost, steps, limit)) for steps, lost in curves] / t)
        ).mean()
        for limit in _THRESHOLDS
    ]
    good = [i for i, e in enumerate(errors) if e <= min(errors) + 1e-12]
    return Readout(source, factor, _THRESHOLDS[good[len(good) // 2]])


@dataclass(frozen=True)
class _Needs(Predictor):
    """Needs the pilot's outputs, not only its accuracy."""

    def answers(self, case: Case) -> bool:
        return case.pilot is not None and bool(case.pilot.expected)


PILOT = (
    Predictor("readout", "one training",
              "One network trained at the largest T and read out earlier: accuracy at each T, "
              "times a fitted factor.", lambda cases: fit_readout("accuracy", cases)),
    _Needs("rate-noise", "one training",
           "One network trained at the largest T: noise of its output against the large-T limit, "
           "pushed through the distribution of its margins, times a fitted factor.",
           lambda cases: fit_readout("expected", cases)),
)  # fmt: skip
