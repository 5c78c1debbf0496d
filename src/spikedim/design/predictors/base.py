"""What every predictor of T* is, and the intervals all of them get in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from spikedim.design.cases import Case
from spikedim.errors import ConfigError, DataError
from spikedim.results import SLACK, Estimate, Result, Table

#: What has to be known about a new case before a predictor can answer.
Needs = Literal["nothing", "the data", "data and network", "one training"]
Group = Callable[[Case], str]
CONFIDENCE = 0.9


class Fitted(Protocol):
    """A predictor with its parameters."""

    def timesteps(self, case: Case) -> float:
        """Predicted T*, at least 1."""
        ...

    def losses(self, case: Case, steps: Sequence[int]) -> np.ndarray | None:
        """Predicted points below the plateau at each of ``steps``; ``None`` where it says none."""
        ...


@dataclass(frozen=True)
class Predictor:
    """A way to predict T* of a case.

    Attributes:
        name: short name.
        needs: what must be known first, hence its cost.
        text: one sentence that says how it predicts.
        fit: from cases with outcomes to a :class:`Fitted`.
    """

    name: str
    needs: Needs
    text: str
    fit: Callable[[Sequence[Case]], Fitted] = field(repr=False)

    def answers(self, case: Case) -> bool:
        """Whether enough is known about the case."""
        return self.needs != "one training" or case.pilot is not None


@dataclass(frozen=True)
class Prediction(Result):
    """A predicted T* and the accuracy to expect at each T, with intervals of new cases.

    Attributes:
        name, needs, text: of the predictor.
        timesteps: T*, with the interval that should hold T* of a new case in 90 of 100.
        steps: T at which something is said about accuracy.
        losses: points below the plateau at each of ``steps``; empty where nothing is said. At the
            largest T of the cases, the plateau, they are 0 by definition, without an interval.
        accuracy: percent at each of ``steps``, from a pilot training; empty without one.
    """

    name: str
    needs: Needs
    text: str
    timesteps: Estimate
    steps: tuple[int, ...]
    losses: tuple[Estimate, ...]
    accuracy: tuple[Estimate, ...]

    def tables(self) -> list[Table]:
        """T*, then accuracy by T."""
        rows = [
            (T, loss, self.accuracy[i] if self.accuracy else None)
            for i, (T, loss) in enumerate(zip(self.steps, self.losses, strict=False))
        ]
        columns = ("T", "points below the plateau", "accuracy")
        return [Table(f"{self.name}: T* = {self.timesteps}", columns, rows, (self.text,))]


@dataclass(frozen=True)
class Calibrated:
    """A fitted predictor with the spread of its errors on cases it had not seen.

    Attributes:
        predictor, fitted: what predicts.
        ratios: T*/prediction of every case, as log2, each predicted without its group.
        places: data set and network of each of ``ratios``.
        misses: T -> actual minus predicted points lost, likewise.
        n: cases behind both.
    """

    predictor: Predictor
    fitted: Fitted
    ratios: np.ndarray
    places: tuple[tuple[str, str], ...]
    misses: dict[int, np.ndarray]
    n: int

    @property
    def error(self) -> float:
        """Mean |log2| error on cases predicted without their group; infinite without any."""
        return float(np.abs(self.ratios).mean()) if len(self.ratios) else math.inf

    def predict(
        self, case: Case, steps: Sequence[int], confidence: float = CONFIDENCE
    ) -> Prediction:
        """Predict a case, which may have an outcome: it is not looked at.

        ``T*`` lies in ``[T̂·2^q_low, T̂·2^q_high]``, rounded to whole steps, with q the bounds of
        :func:`conformal` for the log ratios of left-out cases.

        Raises:
            DataError: the predictor needs a training that the case does not have.
        """
        case = case.hidden()
        if not self.predictor.answers(case):
            raise DataError(
                f"predictor {self.predictor.name} needs one training of {case.model} on "
                f"{case.dataset}; give a pilot"
            )
        point = whole(self.fitted.timesteps(case))
        low, high = (whole(point * 2**q) for q in conformal(self.ratios, confidence))
        method = f"errors of {self.n} cases predicted without their group"
        timesteps = Estimate(
            point, min(low, point), max(high, point), self.n, "timesteps", confidence, method
        )
        lost = self.fitted.losses(case, steps)
        losses = () if lost is None else self._losses(lost, steps, confidence, method)
        return Prediction(
            self.predictor.name,
            self.predictor.needs,
            self.predictor.text,
            timesteps,
            tuple(steps),
            losses,
            _accuracy(case, losses),
        )

    def _losses(
        self, lost: np.ndarray, steps: Sequence[int], confidence: float, method: str
    ) -> tuple[Estimate, ...]:
        # Losses are counted from the largest T: that no case misses a 0 there tells no spread.
        largest = max(self.misses, default=0)
        known = sorted(T for T in self.misses if largest > T)
        found = []
        for T, value in zip(steps, lost, strict=True):
            if not known or (largest <= T and value == 0):
                found.append(Estimate(float(value), unit="points", confidence=confidence))
                continue
            nearest = min(known, key=lambda k: abs(math.log(k / T)))
            low, high = conformal(self.misses[nearest], confidence)
            bottom = max(0.0, float(value) + min(low, 0.0))
            top = max(float(value), float(value) + max(high, 0.0))
            found.append(Estimate(float(value), bottom, top, self.n, "points", confidence, method))
        return tuple(found)


def calibrate(predictor: Predictor, cases: Sequence[Case], group: Group) -> Calibrated:
    """Fit a predictor on cases and measure its errors on groups left out in turn.

    Args:
        predictor: what to fit.
        cases: with outcomes; those the predictor cannot answer are left out.
        group: e.g. the data set of a case: cases of one group are left out together.

    Raises:
        DataError: no case that the predictor can answer.
    """
    usable = [case for case in cases if predictor.answers(case)]
    if not usable:
        raise DataError(f"predictor {predictor.name} has no case to be fitted on")
    ratios: list[float] = []
    places: list[tuple[str, str]] = []
    misses: dict[int, list[float]] = {}
    for name in sorted({group(case) for case in usable}):
        inside = [case for case in usable if group(case) != name]
        if not inside:
            continue
        fitted = predictor.fit(inside)
        for case in usable:
            if group(case) != name:
                continue
            truth = case.truth
            ratios.append(math.log2(truth.t_star / whole(fitted.timesteps(case.hidden()))))
            places.append(case.place)
            lost = fitted.losses(case.hidden(), truth.steps)
            if lost is not None:
                for T, actual, said in zip(truth.steps, truth.losses, lost, strict=True):
                    misses.setdefault(T, []).append(float(actual - said))
    return Calibrated(
        predictor,
        predictor.fit(usable),
        np.array(ratios),
        tuple(places),
        {T: np.array(values) for T, values in misses.items()},
        len(ratios),
    )


def conformal(errors: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval of errors of left-out cases that should hold a new one most nearly so often.

    Of n exchangeable errors, an interval fixed beforehand that holds k of them holds a new one with
    probability k/(n + 1). Among all intervals between two errors those are taken whose k is
    nearest to ``(n + 1)·confidence``, and of these the shortest. Errors of a T* on a grid are
    tied, and where no k is near, the nearest can lie on either side (as a mid-P interval does):
    never to promise too little would mean to hold everything.

    Raises:
        ConfigError: confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie strictly between 0 and 1, e.g. 0.9")
    n = len(errors)
    if n == 0:
        return 0.0, 0.0
    values, counts = np.unique(np.round(errors, 9), return_counts=True)
    upto = np.cumsum(counts)
    held = upto[None, :] - (upto - counts)[:, None]  # [low, high]
    miss = np.abs(held - (n + 1) * confidence)
    spans = values[None, :] - values[:, None]
    miss[spans < 0] = np.inf
    nearest = miss <= miss.min() + 1e-9
    low, high = np.nonzero(nearest & (spans <= spans[nearest].min() + 1e-9))
    middle = len(low) // 2
    return float(values[low[middle]]), float(values[high[middle]])


def whole(value: float) -> int:
    """The nearest usable number of timesteps, halves up."""
    return max(1, math.floor(value + 0.5 + 1e-9))


def first_within(losses: np.ndarray, steps: Sequence[int], tolerance: float) -> int:
    """The smallest of ``steps`` from which on no more than ``tolerance`` points are lost."""
    enough = np.asarray(losses) <= tolerance + SLACK
    bad = np.flatnonzero(~enough)
    place = 0 if len(bad) == 0 else int(bad[-1]) + 1
    return int(steps[min(place, len(steps) - 1)])


def interpolate(steps: Sequence[int], values: Sequence[float], wanted: Sequence[int]) -> np.ndarray:
    """Values at ``wanted`` T, linear in log T, constant beyond the ends."""
    found: np.ndarray = np.interp(np.log(wanted), np.log(steps), values)
    return found


def _accuracy(case: Case, losses: tuple[Estimate, ...]) -> tuple[Estimate, ...]:
    """Accuracy by T: the pilot's accuracy at its own T less what is lost."""
    if case.pilot is None or not losses:
        return ()
    top = case.pilot.accuracy[-1]
    return tuple(
        Estimate(
            max(0.0, top - loss.value),
            None if loss.high is None else max(0.0, top - loss.high),
            None if loss.low is None else top - loss.low,
            loss.n,
            "%",
            loss.confidence,
            "the pilot's accuracy less the points lost",
        )
        for loss in losses
    )
