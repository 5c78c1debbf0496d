"""Published accuracy against T, as cases for the predictors; the numbers are in ``sweeps.csv``."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from spikedim.design.cases import Case, Outcome
from spikedim.results import Estimate
from spikedim.theory import PUBLISHED_D_EFF
from spikedim.theory.statistics import normal_quantile
from spikedim.training.timestep import first_sufficient, isotonic


@dataclass(frozen=True)
class Ablation:
    """Accuracy of one network trained at several T.

    Attributes:
        dataset: as in :data:`spikedim.theory.PUBLISHED_D_EFF`.
        network, source: what and where.
        accuracy: T → percent.
        tested: test images.
    """

    dataset: str
    network: str
    source: str
    accuracy: dict[int, float]
    tested: int

    def loss(self, T: int) -> Estimate:
        """Points lost at T against the largest T, binomial interval of unpaired tests."""
        last = max(self.accuracy)
        best, here = (self.accuracy[t] / 100 for t in (last, T))
        error = math.sqrt((best * (1 - best) + here * (1 - here)) / self.tested)
        half = 100 * normal_quantile(0.95) * error if last != T else 0.0
        value = 100 * (best - here)
        return Estimate(value, value - half, value + half, self.tested, "points", method="binomial")

    def t_star(self, tolerance: float) -> Estimate:
        """Smallest T that loses at most ``tolerance`` points; bounds by the interval of the loss.

        The lower bound reaches into the gap of the grid, whose steps were not tried.
        """
        steps = sorted(self.accuracy)
        losses = {T: self.loss(T) for T in steps}
        value = next(T for T in steps if losses[T].value <= tolerance)
        least = next(T for T in steps if (losses[T].low or 0.0) <= tolerance)
        most = next(T for T in steps if (losses[T].high or 0.0) <= tolerance)
        gap = [T for T in steps if least > T]
        return Estimate(value, gap[-1] + 1 if gap else 1, most, self.tested, "timesteps")


@lru_cache
def published_sweeps() -> tuple[Ablation, ...]:
    """Every published sweep over T of a spiking transformer that names its accuracies."""
    text = resources.files(__package__).joinpath("sweeps.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], Ablation] = {}
    for row in csv.DictReader(text.splitlines()):
        key = (row["dataset"], row["network"])
        known = found.setdefault(key, Ablation(*key, row["source"], {}, int(row["test_images"])))
        known.accuracy[int(row["T"])] = float(row["accuracy_percent"])
    return tuple(found.values())


def published_cases(tolerance: float = 1.0) -> list[Case]:
    """The published sweeps as cases, with the published effective dimensions.

    The largest published T stands for the plateau; where a sweep starts at T = 2, T* = 2 may hide
    a smaller one.
    """
    cases = []
    for sweep in published_sweeps():
        steps = tuple(sorted(sweep.accuracy))
        values = tuple(sweep.accuracy[T] for T in steps)
        fitted = isotonic(np.array(values)[None])
        found = sweep.t_star(tolerance)
        outcome = Outcome(
            steps,
            values,
            tuple(map(float, fitted[0])),
            steps[int(first_sufficient(fitted, tolerance)[0])],
            int(found.low or 1),
            None if found.high is None else int(found.high),
            tolerance,
            sweep.tested,
        )
        d_eff = PUBLISHED_D_EFF[sweep.dataset].value
        cases.append(Case(sweep.dataset, sweep.network, 0, d_eff, 0, 0, outcome=outcome))
    return cases
