"""What a search over T costs, replayed from a stored study: no training, only counting.

The peer is Optuna's TPE sampler asked for T, as :mod:`spikedim.training.search` asks it. Its answer
after each training is the smallest T within the tolerance of the best accuracy seen so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedim.errors import ConfigError, DataError
from spikedim.results import SLACK
from spikedim.training.search import Tried, cheapest, optuna_module
from spikedim.training.study_table import StudyRow, StudyTable
from spikedim.training.timestep import check_tolerance, isotonic

Recommend = Callable[[str, str, int], tuple[int, int]]


@dataclass(frozen=True)
class Replayed:
    """One search on one stored curve of accuracy against T.

    Attributes:
        trainings: distinct T trained in the whole search: what its user runs, who does not know
            the plateau and so cannot stop when it is reached.
        final: trainings until the answer is its last one, known only afterwards.
        first: trainings until the answer is within the tolerance of the plateau; infinite where it
            never is.
        settled: trainings until it is so and stays so to the end.
        T: the last answer.
        sufficient: whether the last answer is within the tolerance of the plateau.
    """

    trainings: int
    final: int
    first: float
    settled: float
    T: int
    sufficient: bool


def curves(table: StudyTable[StudyRow]) -> dict[tuple[str, str, int], dict[int, float]]:
    """Test accuracy in percent by trained T, for each (dataset, model, seed) of a study.

    Where several neuron settings were studied, the first of the table.
    """
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    for row in table:
        if row.eval_T == row.train_T and row.accuracy is not None:
            curve = found.setdefault((row.dataset, row.model, row.seed), {})
            curve.setdefault(row.train_T, row.accuracy)
    if not found:
        raise DataError("the study has no network tested at the T it was trained at")
    return found


def sufficient(curve: Mapping[int, float], T: int, tolerance: float) -> bool:
    """Whether ``T`` is within ``tolerance`` points of the plateau, by the isotonic fit.

    A T between those of the curve counts as the largest of them below it; one below all of them
    does not suffice.
    """
    steps = sorted(curve)
    fitted = isotonic(np.array([[curve[t] for t in steps]]))[0]
    below = [value for t, value in zip(steps, fitted, strict=True) if t <= T]
    return bool(below) and bool(below[-1] >= fitted[-1] - tolerance - SLACK)


def replay_search(
    curve: Mapping[int, float], tolerance: float = 1.0, trials: int = 20, seed: int = 0
) -> Replayed:
    """Let Optuna search T on a stored curve and count the distinct T it had to train.

    Args:
        curve: accuracy in percent by T.
        tolerance: accepted loss, percentage points.
        trials: suggestions; a T suggested again costs no training.
        seed: of the suggestions.

    Raises:
        ConfigError: Optuna is missing, an empty curve, or a value out of its domain.
    """
    check_tolerance(tolerance)
    if not curve or trials < 1:
        raise ConfigError("a replay needs a curve of at least one T and at least one trial")
    optuna = optuna_module()
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    seen: dict[int, float] = {}
    answers: list[int] = []
    for _ in range(trials):
        trial = study.ask()
        T = int(trial.suggest_categorical("T", sorted(curve)))
        study.tell(trial, [curve[T], T])
        if T not in seen:
            seen[T] = curve[T]
            answers.append(_answer(seen, tolerance))
    right = [sufficient(curve, answer, tolerance) for answer in answers]
    wrong = [place for place, good in enumerate(right) if not good]
    last = answers[-1]
    return Replayed(
        trainings=len(seen),
        first=right.index(True) + 1 if any(right) else math.inf,
        settled=(wrong[-1] + 2 if wrong else 1) if right[-1] else math.inf,
        final=next(i for i in range(len(answers)) if set(answers[i:]) == {last}) + 1,
        T=last,
        sufficient=right[-1],
    )


def _answer(seen: Mapping[int, float], tolerance: float) -> int:
    tried = [Tried(T, {}, accuracy, None, math.nan) for T, accuracy in seen.items()]
    best = cheapest(tried, tolerance, "timesteps")
    assert best is not None
    return best.T


@dataclass(frozen=True)
class Comparison:
    """A recommendation against the search on one curve.

    Attributes:
        place: (dataset, model, seed).
        recommended, trainings: T recommended and trainings it took.
        sufficient: whether it is within the tolerance of the plateau.
        searches: one replay for each sampler seed.
    """

    place: tuple[str, str, int]
    recommended: int
    trainings: int
    sufficient: bool
    searches: tuple[Replayed, ...]

    def mean(self, what: str) -> float:
        """Mean over the searches of one of their counts, of those where it is finite."""
        values: list[Any] = [getattr(search, what) for search in self.searches]
        finite = [value for value in values if math.isfinite(value)]
        return float(sum(finite) / len(finite)) if finite else math.nan


def compare_search(
    table: StudyTable[StudyRow],
    recommend: Recommend,
    tolerance: float = 1.0,
    trials: int = 20,
    repeats: int = 20,
) -> list[Comparison]:
    """Compare a recommendation with Optuna's search on every curve of a stored study.

    Args:
        table: the study.
        recommend: (dataset, model, seed) -> (T, number of trainings it needed). To be honest it
            must not have seen the outcome of that data set or network.
        tolerance: accepted loss, percentage points.
        trials, repeats: of each search, and searches with different seeds for each curve.

    Raises:
        DataError: the study holds no accuracy against trained T.
        ConfigError: as :func:`replay_search`.
    """
    result = []
    for place, curve in sorted(curves(table).items()):
        T, trainings = recommend(*place)
        searches = tuple(replay_search(curve, tolerance, trials, s) for s in range(repeats))
        good = sufficient(curve, T, tolerance)
        result.append(Comparison(place, T, trainings, good, searches))
    return result
