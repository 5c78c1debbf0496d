"""What the stored studies say about the design rules: read from the shipped tables, every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from spikedim.claims.registry import Form, Formula, Measurement
from spikedim.claims.statistics import average, geometric, slope
from spikedim.design.cases import Case, dimension_cases, reference_cases
from spikedim.results import Estimate

#: Octaves by which a rule may miss T* and still count as right.
HALF_OCTAVE = 0.5
#: How far an exponent may be from the rule's: half-way to no growth and to linear growth.
_EXPONENT_SLACK = 0.25
#: Percent of T* intervals above T by chance: 0 to 4 of 100 (6 of independent tests) in simulations
#: of networks that lose one point at T.
_CHANCE = 5.0
_TOLERANCE = 1.0
_RESAMPLES = 200
_LEAST_LOSS = 0.1
_T = 4


def rule_against(rule: Formula, epsilon: float, form: Form) -> Measurement:
    """Mean log2 of the rule's T over T*."""
    cases = reference_cases()
    predicted = [rule(case.d_eff, epsilon).value for case in cases]
    gaps = np.log2(predicted) - np.log2([case.truth.t_star for case in cases])
    estimate = over_places(cases, gaps, unit="octaves")
    name = f"log2(T of the rule / T*), {len(cases)} cases of the study"
    return Measurement(name, estimate, -HALF_OCTAVE, HALF_OCTAVE, form, shown=True)


def over_places(
    cases: Sequence[Case],
    values: Iterable[float],
    mean: Callable[[np.ndarray], Estimate] = average,
    unit: str = "",
) -> Estimate:
    """Mean of a number over places (a data set and a network), Student t over places.

    The seeds of a place are not independent: every place counts once, with its mean over cases.
    With the four or five places of a data set this interval covers 95 % where a bootstrap that
    draws places covers 80 % (both simulated).

    Args:
        cases, values: a number of each case.
        mean: of the places; the geometric one also averages the cases of a place geometrically.
        unit: of the number.
    """
    numbers = np.fromiter(values, dtype=float)
    names, index = _places(cases)
    per_place = [mean(numbers[index == k]).value for k in range(len(names))]
    found = mean(np.array(per_place))
    return replace(found, unit=unit, method=f"{found.method} over places")


def growth_with_dimension(form: Form) -> list[Measurement]:
    """Exponent of the points lost at T = 1 in d_eff, by family of the controlled study."""
    rows = []
    for family, cases in _families().items():
        d = np.log([case.d_eff for case in cases])
        lost = np.log([max(float(case.truth.losses[0]), _LEAST_LOSS) for case in cases])
        exponent = _slope(cases, d, lost)
        name = f"exponent of points lost at T = 1 in d_eff, {family}"
        low, high = 0.5 - _EXPONENT_SLACK, 0.5 + _EXPONENT_SLACK
        rows.append(Measurement(name, exponent, low, high, form, shown=True))
        t = np.log([case.truth.t_star for case in cases])
        name = f"exponent of T* in d_eff, {family}"
        rows.append(Measurement(name, _slope(cases, d, t), form="context"))
    return rows


def by_dataset(value: Callable[[Case], float], unit: str = "") -> list[tuple[str, Estimate]]:
    """Mean of a number over the study's places of each data set."""
    found = []
    for name in sorted({case.dataset for case in reference_cases()}):
        cases = [case for case in reference_cases() if case.dataset == name]
        found.append((name, over_places(cases, map(value, cases), unit=unit)))
    return found


def lost(case: Case, T: int) -> float:
    """Points of accuracy lost at T against the largest T, between trained T by log T.

    Of the accuracy as tested: its isotonic fit never rises above the plateau, so the points that it
    loses have a mean above zero even where nothing is lost.
    """
    truth = case.truth
    accuracy = float(np.interp(np.log(T), np.log(truth.steps), truth.accuracy))
    return truth.accuracy[-1] - accuracy


def every_network_within(T: int) -> Measurement:
    """Networks whose T* is above T by its whole interval, against what chance makes of none."""
    cases = reference_cases()
    share = over_places(cases, (100.0 * (case.truth.low > T) for case in cases), unit="%")
    name = f"networks shown to need more than T = {T} ({len(cases)} of the study)"
    return Measurement(name, share.within(0, 100), high=_CHANCE, shown=True)


def most_networks_within(T: int) -> Measurement:
    """Networks that lose no more than the tolerance at T."""
    cases = reference_cases()
    enough = (100.0 * (lost(case, T) <= _TOLERANCE) for case in cases)
    share = over_places(cases, enough, unit="%").within(0, 100)
    name = f"networks that lose {_TOLERANCE:g} point or less at T = {T} ({len(cases)} of the study)"
    return Measurement(name, share, 50, 100, "corrected", shown=True)


def decay() -> Measurement:
    """Exponent b of the mean points lost, ``A·(T^(−b) − T_max^(−b))``, bootstrap over places."""
    cases = [c for c in reference_cases() if c.truth.steps == reference_cases()[0].truth.steps]
    steps = np.array(cases[0].truth.steps, dtype=float)
    curves = np.stack([case.truth.losses for case in cases])
    grid = np.linspace(0.05, 4, 80)
    shapes = steps[None] ** -grid[:, None] - steps[-1] ** -grid[:, None]

    def exponent(curve: np.ndarray) -> float:
        scale = shapes @ curve / (shapes**2).sum(axis=1)
        errors = ((scale[:, None] * shapes - curve) ** 2).sum(axis=1)
        return float(grid[int(errors.argmin())])

    places, index = _places(cases)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        weights = np.bincount(rng.integers(len(places), size=len(places)), minlength=len(places))
        drawn.append(exponent(np.average(curves, axis=0, weights=weights[index])))
    low, high = np.quantile(drawn, (0.025, 0.975))
    value = exponent(curves.mean(axis=0))
    estimate = Estimate(
        -value, -max(float(high), value), -min(float(low), value), len(cases),
        method="bootstrap over places",
    )  # fmt: skip
    return Measurement("exponent of accuracy lost in T, the study", estimate, form="context")


def spike_ratios(bound: Formula, epsilon: float) -> list[tuple[str, Estimate]]:
    """Spikes at T = 4 over a bound of tokens and d_eff, geometric mean by data set.

    Tokens are counted as pixels, the finest that any stage of the networks holds.
    """
    found = []
    for name in sorted({case.dataset for case in reference_cases()}):
        cases, values = [], []
        for case in (case for case in reference_cases() if case.dataset == name):
            truth = case.truth
            if len(truth.spikes) == len(truth.steps) and _T in truth.steps:
                spikes = truth.spikes[truth.steps.index(_T)]
                values.append(spikes / bound(case.image_size**2, case.d_eff, epsilon))
                cases.append(case)
        if len({case.place for case in cases}) > 1:
            found.append((name, over_places(cases, values, geometric)))
    return found


def _places(cases: Sequence[Case]) -> tuple[list[tuple[str, str]], np.ndarray]:
    names = sorted({case.place for case in cases})
    return names, np.array([names.index(case.place) for case in cases])


def _families() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in dimension_cases():
        synthetic = case.dataset.startswith("gaussian")
        found.setdefault("synthetic tasks" if synthetic else "truncated digits", []).append(case)
    return {name: cases for name, cases in found.items() if len(_places(cases)[0]) > 2}


def _slope(cases: Sequence[Case], x: np.ndarray, y: np.ndarray) -> Estimate:
    """Least-squares slope through the means of the places, Student t of places − 2."""
    index = _places(cases)[1]
    sizes = np.bincount(index)
    a, b = (np.bincount(index, weights=v) / sizes for v in (x, y))
    return slope(a, b, "least squares over places")
