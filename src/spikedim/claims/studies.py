"""What the stored studies say about the design rules: read from the shipped tables, every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from spikedim.claims.registry import Form, Formula, Measurement
from spikedim.claims.statistics import average, geometric
from spikedim.design.cases import Case, dimension_cases, reference_cases
from spikedim.design.validation import over_places
from spikedim.results import Estimate

#: Octaves by which the rule may miss T* on average and still count as right.
_HALF_OCTAVE = 0.5
_RESAMPLES = 200
_LEAST_LOSS = 0.1
_T = 4


def rule_against(rule: Formula, epsilon: float, form: Form) -> Measurement:
    """Mean log2 of the rule's T over T*, bootstrap over places (a data set and a network)."""
    cases = reference_cases()
    predicted = [rule(case.d_eff, epsilon).value for case in cases]
    gaps = np.log2(predicted) - np.log2([case.truth.t_star for case in cases])
    value, low, high = over_places(gaps, [case.place for case in cases])
    estimate = Estimate(value, low, high, len(cases), "octaves", method="bootstrap over places")
    name = f"log2(T of the rule / T*), {len(cases)} cases of the study"
    return Measurement(name, estimate, -_HALF_OCTAVE, _HALF_OCTAVE, form)


def growth_with_dimension(form: Form) -> list[Measurement]:
    """Exponent of the points lost at T = 1 in d_eff, by family of the controlled study."""
    rows = []
    for family, cases in _families().items():
        d = np.log([case.d_eff for case in cases])
        lost = np.log([max(float(case.truth.losses[0]), _LEAST_LOSS) for case in cases])
        exponent = _slope(d, lost)
        rows.append(
            Measurement(f"exponent of points lost at T = 1 in d_eff, {family}", exponent, 0.5, 0.5,
                        form)
        )  # fmt: skip
        t = np.log([case.truth.t_star for case in cases])
        name = f"exponent of T* in d_eff, {family}"
        rows.append(Measurement(name, _slope(d, t), form="context"))
    return rows


def by_dataset(value: Callable[[Case], float], unit: str = "") -> list[tuple[str, Estimate]]:
    """Mean of a number over the study's cases of each data set, Student t over cases."""
    found = []
    for name in sorted({case.dataset for case in reference_cases()}):
        values = [value(case) for case in reference_cases() if case.dataset == name]
        found.append((name, average(values, unit)))
    return found


def lost(case: Case, T: int) -> float:
    """Points below the plateau at T, between trained T by interpolation in log T."""
    truth = case.truth
    return float(np.interp(np.log(T), np.log(truth.steps), truth.losses))


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
        values = []
        for case in (case for case in reference_cases() if case.dataset == name):
            truth = case.truth
            if len(truth.spikes) == len(truth.steps) and _T in truth.steps:
                spikes = truth.spikes[truth.steps.index(_T)]
                values.append(spikes / bound(case.image_size**2, case.d_eff, epsilon))
        if len(values) > 1:
            found.append((name, geometric(values)))
    return found


def _places(cases: list[Case]) -> tuple[list[tuple[str, str]], np.ndarray]:
    names = sorted({case.place for case in cases})
    return names, np.array([names.index(case.place) for case in cases])


def _families() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in dimension_cases():
        synthetic = case.dataset.startswith("gaussian")
        found.setdefault("synthetic tasks" if synthetic else "truncated digits", []).append(case)
    return {name: cases for name, cases in found.items() if len(cases) > 2}


def _slope(x: np.ndarray, y: np.ndarray) -> Estimate:
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    value = float(fit.slope)
    return Estimate(value, value - half, value + half, len(x), method="least squares")
