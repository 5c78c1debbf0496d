"""Held-out validation of the predictors: nothing fitted, chosen or calibrated sees the fold.

For every fold (a data set, or an architecture, left out) each predictor is fitted on the other
cases, its interval is made of its errors on those cases with one group left out in turn, and the
predictor to recommend is chosen by those inner errors too (:func:`select`). The row
``recommended`` is that procedure: what ``spikedim design`` does, judged on data and networks it has
not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from spikedim.design.cases import Case
from spikedim.design.predictors import PREDICTORS, Calibrated, Prediction, Predictor, calibrate
from spikedim.errors import DataError
from spikedim.results import SLACK, Estimate, Result, Table
from spikedim.theory.statistics import wilson_interval
from spikedim.training.timestep import first_sufficient, isotonic

Fold = Literal["data set", "architecture"]
GROUPS: dict[Fold, Callable[[Case], str]] = {
    "data set": lambda case: case.dataset,
    "architecture": lambda case: case.model,
}
RECOMMENDED = "recommended"
RECOMMENDED_FREE = "recommended, no training"
LEAST = "least inner error"
_RESAMPLES = 5000
_DOUBT = 2.0  # standard errors, about 95 %


@dataclass(frozen=True)
class Trial:
    """One held-out case and what one predictor said.

    Attributes:
        predictor: its name, or the name of the procedure that chose it.
        chosen: the predictor that answered.
        case: with its outcome.
        prediction: made without it.
    """

    predictor: str
    chosen: str
    case: Case
    prediction: Prediction

    @property
    def error(self) -> float:
        """|log2(predicted/T*)|: 1 is a factor of two either way."""
        return abs(math.log2(self.prediction.timesteps.value / self.case.truth.t_star))

    @property
    def steps_off(self) -> float:
        """|predicted − T*| in timesteps."""
        return abs(self.prediction.timesteps.value - self.case.truth.t_star)

    @property
    def covered(self) -> bool:
        """Whether the predicted interval holds T*."""
        said = self.prediction.timesteps
        assert said.low is not None
        assert said.high is not None
        return said.low <= self.case.truth.t_star <= said.high

    @property
    def lost(self) -> float:
        """Points really lost at the predicted T, between trained T by interpolation in log T."""
        truth = self.case.truth
        where = math.log(self.prediction.timesteps.value)
        return float(np.interp(where, np.log(truth.steps), truth.losses))

    @property
    def loss_error(self) -> float | None:
        """Mean |predicted − actual| points lost over the trained T but the largest."""
        said = self.prediction.losses
        if not said:
            return None
        pairs = list(zip(said, self.case.truth.losses, strict=True))[:-1]
        return float(np.mean([abs(p.value - actual) for p, actual in pairs]))

    @property
    def accuracy_error(self) -> float | None:
        """The same of accuracy itself, where the predictor has a pilot training."""
        said = self.prediction.accuracy
        if not said:
            return None
        pairs = list(zip(said, self.case.truth.accuracy, strict=True))[:-1]
        return float(np.mean([abs(p.value - actual) for p, actual in pairs]))


@dataclass(frozen=True)
class Score:
    """One predictor over all held-out cases of one kind of fold.

    Attributes:
        predictor, needs, fold: what was judged and how.
        n: held-out cases it could answer.
        error: mean |log2(T̂/T*)|, with a bootstrap interval over places.
        steps_off: mean |T̂ − T*| in timesteps.
        mean_T: mean recommended T.
        coverage: share of cases whose T* lies in the 90 % interval, see
            :func:`share_over_places`.
        width: mean log2 of the interval's upper over its lower end.
        enough: share of cases in which no more than the tolerance is lost at T̂.
        loss_error, accuracy_error: see :class:`Trial`; ``None`` where nothing is said.
        chosen: how often a procedure chose each predictor.
    """

    predictor: str
    needs: str
    fold: Fold
    n: int
    error: Estimate
    steps_off: float
    mean_T: float
    coverage: Estimate
    width: float
    enough: float
    loss_error: float | None
    accuracy_error: float | None
    chosen: dict[str, int]


@dataclass(frozen=True)
class Paired:
    """Mean difference of |log2 error|, ``first`` minus ``second``, on the same held-out cases."""

    first: str
    second: str
    fold: Fold
    difference: Estimate

    @property
    def better(self) -> bool:
        """Whether ``first`` errs less, with an interval that excludes zero."""
        return self.difference.high is not None and self.difference.high < 0


@dataclass(frozen=True)
class Validation(Result):
    """The score board.

    Attributes:
        scores: best first within each kind of fold.
        paired: of the recommendation against the published rule and against T = 4.
        trials: every held-out prediction.
        cases, places: how many.
        tolerance: of the truth, percentage points.
    """

    scores: tuple[Score, ...]
    paired: tuple[Paired, ...]
    trials: dict[Fold, tuple[Trial, ...]]
    cases: int
    places: int
    tolerance: float

    def of(self, fold: Fold) -> tuple[Score, ...]:
        """Scores of one kind of fold, best first."""
        return tuple(score for score in self.scores if score.fold == fold)

    def tables(self) -> list[Table]:
        """One table of scores per kind of fold, and the paired comparisons."""
        return [*(score_table(self.of(fold), fold) for fold in GROUPS), paired_table(self.paired)]


def validate(cases: Sequence[Case], predictors: Sequence[Predictor] = PREDICTORS) -> Validation:
    """Judge predictors on left-out data sets and on left-out architectures.

    Args:
        cases: with outcomes, of at least three data sets and three networks.
        predictors: whom to judge.

    Raises:
        DataError: too few data sets or networks for nested folds.
    """
    for fold, group in GROUPS.items():
        names = {group(case) for case in cases}
        if len(names) < 3:
            raise DataError(
                f"cases of {len(names)} {fold}s: leaving one out inside and outside needs three"
            )
    scores: list[Score] = []
    paired: list[Paired] = []
    trials: dict[Fold, tuple[Trial, ...]] = {}
    for fold in GROUPS:
        found = held_out(cases, fold, predictors)
        trials[fold] = tuple(found)
        judged = dict.fromkeys(trial.predictor for trial in found)
        board = [_score([t for t in found if t.predictor == name], fold) for name in judged]
        scores += sorted(board, key=lambda score: score.error.value)
        for name in (RECOMMENDED, RECOMMENDED_FREE):
            paired += [
                compare(found, name, other, fold) for other in ("published", "constant", "median")
            ]
    places = len({case.place for case in cases})
    return Validation(
        tuple(scores), tuple(paired), trials, len(cases), places, cases[0].truth.tolerance
    )


def held_out(cases: Sequence[Case], fold: Fold, predictors: Sequence[Predictor]) -> list[Trial]:
    """Every predictor's prediction of every case, made without the case's group."""
    group = GROUPS[fold]
    found: list[Trial] = []
    for name in sorted({group(case) for case in cases}):
        inside = [case for case in cases if group(case) != name]
        ready = [calibrate(p, inside, group) for p in predictors if any(map(p.answers, inside))]
        free = [c for c in ready if c.predictor.needs != "one training"]
        for case in (case for case in cases if group(case) == name):
            able = [c for c in ready if c.predictor.answers(case)]
            named = [(c.predictor.name, c) for c in able]
            named += [(RECOMMENDED, select(able))] if able else []
            named += [(LEAST, min(able, key=lambda c: c.error))] if able else []
            named += [(RECOMMENDED_FREE, select(free))] if free else []
            found += [
                Trial(label, c.predictor.name, case, c.predict(case, case.truth.steps))
                for label, c in named
            ]
    return found


def select(ready: Sequence[Calibrated]) -> Calibrated:
    """The cheapest predictor that is not worse than the best beyond doubt.

    Errors are mean |log2| errors on cases a predictor had not seen; doubt is two standard errors of
    their paired difference from the best one over places (after the rule of one standard error,
    Breiman et al. 1984): with few noisy cases the luckiest of a dozen predictors would win
    otherwise.
    ``ready`` is in order of what a predictor needs, cheapest first.

    Raises:
        DataError: none is given.
    """
    if not ready:
        raise DataError("no predictor can answer: there are no earlier cases")
    best = min(ready, key=lambda c: c.error)
    return next(c for c in ready if c is best or _as_good(c, best))


def _as_good(one: Calibrated, best: Calibrated) -> bool:
    if one.places != best.places:
        return False
    gaps = np.abs(one.ratios) - np.abs(best.ratios)
    names = sorted(set(one.places))
    index = np.array([names.index(place) for place in one.places])
    means = np.bincount(index, weights=gaps) / np.bincount(index)
    if len(means) < 2:
        return False
    return bool(means.mean() <= _DOUBT * means.std(ddof=1) / math.sqrt(len(means)) + 1e-9)


def compare(trials: Sequence[Trial], first: str, second: str, fold: Fold) -> Paired:
    """Paired difference of errors with a bootstrap over places (95 %)."""
    a, b = ({_key(t.case): t for t in trials if t.predictor == name} for name in (first, second))
    common = [key for key in a if key in b]
    gaps = np.array([a[key].error - b[key].error for key in common])
    value, low, high = over_places(gaps, [a[key].case.place for key in common])
    method = "bootstrap over places"
    return Paired(first, second, fold, Estimate(value, low, high, len(gaps), "", 0.95, method))


def _score(trials: Sequence[Trial], fold: Fold) -> Score:
    errors = np.array([trial.error for trial in trials])
    places = [trial.case.place for trial in trials]
    share, least, most = share_over_places([trial.covered for trial in trials], places)
    value, low, high = over_places(errors, places)
    n = len(trials)
    spans = [
        math.log2((t.prediction.timesteps.high or 1) / (t.prediction.timesteps.low or 1))
        for t in trials
    ]
    chosen = [trial.chosen for trial in trials]
    return Score(
        trials[0].predictor,
        trials[0].prediction.needs if len(set(chosen)) == 1 else "as chosen",
        fold,
        n,
        Estimate(value, low, high, n, "", 0.95, "bootstrap over places"),
        float(np.mean([trial.steps_off for trial in trials])),
        float(np.mean([trial.prediction.timesteps.value for trial in trials])),
        Estimate(100 * share, 100 * least, 100 * most, n, "%", 0.95, "Wilson over places"),
        float(np.mean(spans)),
        float(np.mean([t.lost <= t.case.truth.tolerance + SLACK for t in trials])),
        _mean([trial.loss_error for trial in trials]),
        _mean([trial.accuracy_error for trial in trials]),
        {name: chosen.count(name) for name in sorted(set(chosen))},
    )


def over_places(
    values: np.ndarray, places: Sequence[tuple[str, str]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean with a bootstrap interval that draws whole places: their seeds are not independent."""
    names = sorted(set(places))
    index = np.array([names.index(place) for place in places])
    sums = np.bincount(index, weights=values, minlength=len(names))
    sizes = np.bincount(index, minlength=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(values.mean()), float(low), float(high)


def share_over_places(
    hits: Sequence[bool], places: Sequence[tuple[str, str]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Share of hits with a Wilson interval of the effective number of cases.

    Seeds of one place hit and miss together. The effective number is n over the design effect, the
    variance of the share over places against p(1 − p)/n, at most n, and less by the squared ratio
    of the Student quantiles of n − 1 and places − 1 (Korn and Graubard 1998); the number of places
    where all hit or none. A bootstrap has no width there.

    Returns:
        Share, lower and upper bound as fractions.
    """
    found = np.array(hits, dtype=np.float64)
    names = sorted(set(places))
    index = np.array([names.index(place) for place in places])
    n, count, p = len(found), len(names), float(found.mean())
    if count < 2:
        return p, 0.0, 1.0
    effective = float(count)
    if 0 < p < 1:
        sums = np.bincount(index, weights=found - p)
        variance = count / (count - 1) * float((sums**2).sum()) / n**2
        effective = min(n, p * (1 - p) / variance) if variance > 0 else float(n)
        tails = student.ppf(0.5 + confidence / 2, (n - 1, count - 1))
        effective = max(1.0, effective * float(tails[0] / tails[1]) ** 2)
    low, high = wilson_interval(p * effective, effective, confidence)
    return p, low, high


def seed_noise(cases: Sequence[Case]) -> float | None:
    """Mean |log2| ratio of T* of two seeds of one recipe: what no predictor can beat much.

    ``None`` where none has two seeds.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for case in cases:
        groups.setdefault(case.recipe, []).append(math.log2(case.truth.t_star))
    gaps = [
        abs(a - b)
        for values in groups.values()
        for i, a in enumerate(values)
        for b in values[i + 1 :]
    ]
    return float(np.mean(gaps)) if gaps else None


def pooled_seeds(cases: Sequence[Case]) -> list[Case]:
    """One case per recipe: T* of the accuracy averaged over its seeds, which has less noise.

    Seeds that were trained at other T than the first are left out.
    """
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.recipe, []).append(case)
    return [_pooled(group) for group in groups.values()]


def _pooled(group: Sequence[Case]) -> Case:
    first = group[0]
    truth = first.truth
    same = [case for case in group if case.truth.steps == truth.steps]
    accuracy = np.mean([case.truth.accuracy for case in same], axis=0)
    fitted = isotonic(accuracy[None])[0]
    outcome = replace(
        truth,
        accuracy=tuple(map(float, accuracy)),
        fitted=tuple(map(float, fitted)),
        t_star=truth.steps[int(first_sufficient(fitted[None], truth.tolerance)[0])],
        low=1,
        high=None,
        samples=truth.samples * len(same),
    )
    pilots = [c.pilot for c in same if c.pilot is not None and first.pilot is not None
              and c.pilot.steps == first.pilot.steps]  # fmt: skip
    pilot = None
    if first.pilot is not None:
        expected = [p.expected for p in pilots if p.expected]
        pilot = replace(
            first.pilot,
            accuracy=tuple(map(float, np.mean([p.accuracy for p in pilots], axis=0))),
            expected=tuple(map(float, np.mean(expected, axis=0))) if expected else (),
        )
    return replace(first, pilot=pilot, outcome=outcome)


def score_table(scores: Sequence[Score], fold: Fold) -> Table:
    """The score board of one kind of fold."""
    rows = [
        (
            s.predictor, s.needs, s.n, s.error, s.steps_off, s.mean_T, s.coverage,
            f"× {2**s.width:.1f}", f"{100 * s.enough:.0f} %", s.loss_error, s.accuracy_error,
        )
        for s in scores
    ]  # fmt: skip
    columns = (
        "predictor", "needs", "n", "mean abs log2(T̂/T*)", "mean abs T̂−T*", "mean T̂",
        "90 % interval holds T*", "interval width", "T̂ suffices", "points-lost error",
        "accuracy error",
    )  # fmt: skip
    return Table(f"Leave one {fold} out", columns, rows)


def paired_table(paired: Sequence[Paired]) -> Table:
    """The paired comparisons."""
    rows = [(p.fold, p.first, p.second, p.difference, "yes" if p.better else "no") for p in paired]
    columns = ("fold", "first", "second", "difference of mean abs log2 error", "first is better")
    return Table("Paired differences on the same held-out cases", columns, rows)


def _key(case: Case) -> tuple[Any, ...]:
    return (*case.recipe, case.seed)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
