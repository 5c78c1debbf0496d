"""What the predictors say about a case: the recommended one first, the others beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spikedim.design.cases import Case, reference_cases
from spikedim.design.predictors import PREDICTORS, Calibrated, Prediction, calibrate
from spikedim.design.validation import select
from spikedim.errors import DataError
from spikedim.results import Estimate, Result, Table, number
from spikedim.training.timestep import check_tolerance

#: T that a forecast speaks about: the grid of the reference study.
STEPS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Ranked:
    """A prediction with how well its predictor did on data sets left out of its fit.

    Attributes:
        prediction: what it says.
        error: mean |log2(T̂/T*)| over left-out data sets.
    """

    prediction: Prediction
    error: float


@dataclass(frozen=True)
class Forecast(Result):
    """Predictions of one case: the recommended one, then the others by their error.

    Attributes:
        ranked: the predictors that could answer.
        cases, own: how many cases they were fitted on, and how many of those are the user's.
        notes: what limits the forecast.
    """

    ranked: tuple[Ranked, ...]
    cases: int
    own: int
    notes: tuple[str, ...]

    @property
    def best(self) -> Prediction:
        """The recommended prediction."""
        return self.ranked[0].prediction

    def lost(self, T: int) -> Estimate | None:
        """Points below the plateau at T, by the first predictor that says so."""
        return self._first(T, lambda said: said.losses)

    def expected(self, T: int) -> Estimate | None:
        """Accuracy in percent at T, by the first predictor that says so."""
        return self._first(T, lambda said: said.accuracy)

    def _first(
        self, T: int, values_of: Callable[[Prediction], Sequence[Estimate]]
    ) -> Estimate | None:
        for item in self.ranked:
            said = item.prediction
            if (values := values_of(said)) and T in said.steps:
                return values[said.steps.index(T)]
        return None

    def named(self, name: str) -> Prediction:
        """The prediction of one predictor.

        Raises:
            DataError: it could not answer.
        """
        for item in self.ranked:
            if item.prediction.name == name:
                return item.prediction
        raise DataError(f"predictor {name} has no answer for this case")

    def tables(self) -> list[Table]:
        """Every predictor's T with its held-out error, and what the best expects at each T."""
        rows = [
            (
                f"{item.prediction.name}{' ←' if place == 0 else ''}",
                item.prediction.timesteps,
                item.error,
                item.prediction.needs,
            )
            for place, item in enumerate(self.ranked)
        ]
        columns = ("predictor", "T (90 %)", "held-out error, mean abs log2", "needs")
        own = f", {self.own} of them your own" if self.own else ""
        note = (
            f"Ranked on {self.cases} cases{own}, each predicted without its data set. The 90 % "
            "intervals hold T* of new cases as those errors tell; the published rule's own "
            "interval, elsewhere, is that of its inputs C and d_eff."
        )
        return [
            *self.best.tables(),
            Table("Predicted timesteps", columns, rows, (note, *self.notes)),
        ]


def ready(cases: Sequence[Case]) -> list[Calibrated]:
    """Every predictor that the cases can fit, with its errors on left-out data sets."""
    return [
        calibrate(predictor, cases, lambda case: case.dataset)
        for predictor in PREDICTORS
        if any(map(predictor.answers, cases))
    ]


def forecast(
    case: Case,
    cases: Sequence[Case] | None = None,
    steps: Sequence[int] = STEPS,
    tolerance: float = 1.0,
    own: int = 0,
) -> Forecast:
    """Predict a case with every predictor that can answer; the recommended one comes first.

    It is chosen by :func:`spikedim.design.validation.select`.

    Args:
        case: what is known of it; an outcome is not looked at.
        cases: earlier cases with outcomes; those that ship with spikedim by default.
        steps: T at which accuracy is predicted, ascending.
        tolerance: accepted loss against the plateau, percentage points.
        own: how many of ``cases``, the last ones, are the user's. Those of the same data set and
            network are left out: a prediction that was fitted on its outcome would be none.

    Raises:
        DataError: there are no earlier cases.
    """
    check_tolerance(tolerance)
    given = reference_cases() if cases is None else cases
    shipped, users = given[: len(given) - own], given[len(given) - own :]
    others = [item for item in users if item.place != case.place]
    known = [item.within(tolerance) for item in (*shipped, *others)]
    able = [item for item in ready(known) if item.predictor.answers(case)]
    best = select(able)
    order = sorted(able, key=lambda item: (item is not best, item.error))
    ranked = tuple(Ranked(item.predict(case, steps), item.error) for item in order)
    notes = _notes(case, known)
    if left := len(users) - len(others):
        notes.append(
            f"Left out of the fit: {left} of your own cases, of this data set and network."
        )
    return Forecast(ranked, len(known), len(others), tuple(notes))


def _notes(case: Case, known: Sequence[Case]) -> list[str]:
    """Where the case lies outside what the predictors were fitted on."""
    outside = []
    for name, words in (
        ("parameters", "parameters"),
        ("d_eff", "effective dimension"),
        ("classes", "classes"),
        ("image_size", "pixels a side"),
        ("train_samples", "training samples"),
        ("threshold", "v_th"),
    ):
        value = getattr(case, name)
        seen = [getattr(item, name) for item in known if getattr(item, name)]
        if seen and value and not min(seen) <= value <= max(seen):
            span = f"{number(min(seen))} to {number(max(seen))}"
            if min(seen) == max(seen):
                span = number(seen[0])
            outside.append(f"{words} {number(value)} (seen: {span})")
    notes = []
    if outside:
        notes.append(
            f"Outside what the predictors were fitted on: {', '.join(outside)}; the intervals do "
            "not cover that."
        )
    pilots = {item.pilot.train_T for item in known if item.pilot is not None}
    if case.pilot is not None and pilots and case.pilot.train_T not in pilots:
        notes.append(
            f"The pilot was trained at T = {case.pilot.train_T}, those behind the predictors at "
            f"T = {', '.join(map(str, sorted(pilots)))}: its read-out may level off elsewhere."
        )
    return notes
