"""What a recommendation saves against a search over T, replayed on held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spikedim.design.cases import Outcome
from spikedim.design.validation import RECOMMENDED, RECOMMENDED_FREE, Fold, Trial, Validation
from spikedim.results import SLACK, Table
from spikedim.training.replay import replay_search

_SUGGESTIONS = 20
_REPEATS = 5


@dataclass(frozen=True)
class SearchCost:
    """One way to follow a recommendation, beside Optuna's search over T on the same cases.

    Attributes:
        fold, follow: what was left out, and which T is taken.
        enough: share of cases in which that T loses no more than the tolerance.
        trainings: mean number of trainings it takes, the one at the chosen T included.
        search_enough, search_trainings: the same of the search.
    """

    fold: Fold
    follow: str
    enough: float
    trainings: float
    search_enough: float
    search_trainings: float

    @property
    def saved(self) -> float:
        """Trainings of the search per training of the recommendation."""
        return self.search_trainings / self.trainings


def search_costs(found: Validation) -> list[SearchCost]:
    """Compare the recommended T, and the upper end of its interval, with a search over T.

    The peer is Optuna's TPE sampler (:func:`spikedim.training.replay.replay_search`): twenty
    suggestions on the stored accuracies of the case, repeated T free, the answer the smallest T
    within the tolerance of the best accuracy seen.

    Raises:
        ConfigError: Optuna is missing.
    """
    costs = []
    for fold, trials in found.trials.items():
        for name in (RECOMMENDED_FREE, RECOMMENDED):
            own = [trial for trial in trials if trial.predictor == name]
            peer = [_search(trial.case.truth) for trial in own]
            for what, chosen in (("T̂", _point), ("upper end of the interval", _high)):
                costs.append(
                    SearchCost(
                        fold,
                        f"{name}: {what}",
                        float(np.mean([_enough(trial, chosen(trial)) for trial in own])),
                        float(np.mean([_trainings(trial, chosen(trial)) for trial in own])),
                        float(np.mean([good for good, _ in peer])),
                        float(np.mean([count for _, count in peer])),
                    )
                )
    return costs


def search_table(costs: Sequence[SearchCost]) -> Table:
    """The comparison as a table."""
    rows = [
        (
            c.fold, c.follow, f"{100 * c.enough:.0f} %", c.trainings,
            f"{100 * c.search_enough:.0f} %", c.search_trainings, f"{c.saved:.1f} ×",
        )
        for c in costs
    ]  # fmt: skip
    columns = (
        "left out", "follow", "suffices", "trainings", "search suffices", "trainings of the search",
        "fewer trainings",
    )  # fmt: skip
    return Table("Against Optuna's search over T", columns, rows)


@lru_cache(maxsize=512)
def _search(truth: Outcome) -> tuple[float, float]:
    """Share of searches whose answer suffices, and their mean number of trainings."""
    curve = dict(zip(truth.steps, truth.accuracy, strict=True))
    runs = [
        replay_search(curve, truth.tolerance, _SUGGESTIONS, seed=seed) for seed in range(_REPEATS)
    ]
    return (
        float(np.mean([run.sufficient for run in runs])),
        float(np.mean([run.trainings for run in runs])),
    )


def _point(trial: Trial) -> int:
    return int(trial.prediction.timesteps.value)


def _high(trial: Trial) -> int:
    return int(trial.prediction.timesteps.high or trial.prediction.timesteps.value)


def _enough(trial: Trial, T: int) -> bool:
    """A T between trained ones counts as the largest below it."""
    truth = trial.case.truth
    below = [lost for step, lost in zip(truth.steps, truth.losses, strict=True) if step <= T]
    return bool(below) and bool(below[-1] <= truth.tolerance + SLACK)


def _trainings(trial: Trial, T: int) -> int:
    """The training at T, and the pilot where it was needed and is not that one."""
    pilot = trial.case.pilot
    if trial.prediction.needs != "one training" or pilot is None:
        return 1
    return 1 if pilot.train_T == T else 2
