"""Confidence intervals of spectral dimensions, and when n is too small for them.

``auto`` and ``halves``: random splits into two disjoint halves. With θ_n on all samples, θ_h the
mean over halves and D the difference within a split, Var θ_n ≈ mean(D²)/4. The bias is
a/√n + b/n, read from the changes n/4 → n/2 → n; θ_n is extrapolated accordingly and the distance
to the plain 2θ_n − θ_h widens the interval. ``auto`` treats pr and pr_corrected by the
variance of their U-statistic.
``subsample``: 80 % subsamples (published protocol), scaled as a delete-20 % jackknife.
``bootstrap``: multinomial weights, standard deviation around 2θ_n − mean.
``jackknife``: delete one group of many, bias-corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spikedim.dimension.arrays import Samples
from spikedim.dimension.estimators import Estimator, pca_quantile, pca_share
from spikedim.dimension.moments import Array, Moments, centered_gram, moments
from spikedim.dimension.spectrum import (
    Spectrum,
    second_moments,
    smaller_side,
    spectrum_of,
)
from spikedim.dimension.variance import corrected_interval
from spikedim.progress import track
from spikedim.results import Estimate

INTERVALS = ("auto", "halves", "subsample", "bootstrap", "jackknife", "none")
LIMIT = 0.03
_FEWEST = 8

Index = NDArray[np.intp]
Curve = Callable[[Spectrum], float]


@dataclass(frozen=True)
class Resampler:
    """Spectra of subsets and of weighted copies of one data set, sharing its products.

    Where n ≤ d every resample is a submatrix of one Gram matrix; else blocks of rows are added
    up again, and what is left out is found by subtraction.
    """

    samples: Samples
    center: bool
    whole: Array | Moments

    @classmethod
    def of(cls, samples: Samples, center: bool) -> Resampler:
        """Form the Gram matrix or the moments of the samples, whichever is smaller."""
        return cls(samples, center, second_moments(samples, center, smaller_side(samples)))

    def spectrum(self) -> Spectrum:
        """Spectrum of all samples."""
        return spectrum_of(self.whole, self.samples.d, self.center)

    def split(self, index: Index) -> tuple[Spectrum, Spectrum]:
        """Spectra of the chosen samples and of all others."""
        others = np.setdiff1d(np.arange(self.samples.n), index)
        if isinstance(self.whole, Moments):
            part = moments(self.samples.subset(index), shift=self.whole.shift)
            pair = part, self.whole.minus(part)
            return self._spectrum(pair[0]), self._spectrum(pair[1])
        return self._spectrum(self._block(index)), self._spectrum(self._block(others))

    def subset(self, index: Index) -> Spectrum:
        """Spectrum of the chosen samples."""
        if isinstance(self.whole, Moments):
            chosen = self.samples.subset(index)
            return spectrum_of(
                second_moments(chosen, self.center, smaller_side(chosen)),
                self.samples.d,
                self.center,
            )
        return self._spectrum(self._block(index))

    def weighted(self, counts: Index) -> Spectrum:
        """Spectrum of a resample that holds sample i ``counts[i]`` times."""
        index = np.repeat(np.arange(self.samples.n), counts)
        return self.subset(index)

    def _block(self, index: Index) -> Array:
        assert not isinstance(self.whole, Moments)
        block = self.whole[np.ix_(index, index)]
        return centered_gram(block) if self.center else block

    def _spectrum(self, matrix: Array | Moments) -> Spectrum:
        return spectrum_of(matrix, self.samples.d, self.center)


def curve_of(item: Estimator) -> Curve:
    """What is resampled: the estimator itself, or the real-valued count behind pcaQQ."""
    q = pca_share(item.key)
    return item.function if q is None else lambda s: pca_quantile(s, q)


def spectral_intervals(
    source: Resampler,
    spec: Spectrum,
    items: Sequence[Estimator],
    interval: str,
    confidence: float,
    resamples: int | None,
    seed: int,
) -> tuple[dict[str, Estimate], list[str]]:
    """Estimates with intervals of several spectral estimators, and what limits them."""
    values = {item.key: item.function(spec) for item in items}
    n = spec.n
    found: dict[str, Estimate] = {}
    rest = list(items)
    notes = _quick_limits(spec, items, values)
    if interval == "auto":
        ratios = {"pr", "pr_corrected"} & values.keys()
        rest = [item for item in items if item.key not in ratios]
        if ratios:
            low, high = _corrected(source, spec, confidence, seed)
            method = "U-statistic variance"
            for key in ratios:
                found[key] = Estimate(values[key], low, high, n, "", confidence, method)
            naive = values.get("pr", high)
            if naive < (1 - LIMIT) * low:
                notes.append(
                    f"pr is limited by n: {naive:.4g} lies below its interval; see pr_corrected"
                )
    if interval == "none" or n < _FEWEST or spec.total_variance == 0:
        for item in rest:
            found[item.key] = Estimate(values[item.key], n=n, method="no interval")
        if interval != "none" and rest and n < _FEWEST:
            notes.append(f"no intervals from {n} samples; at least {_FEWEST} are needed")
        return found, notes
    if not rest:
        return found, notes
    plan = _PLANS["halves" if interval == "auto" else interval]
    curves = [curve_of(item) for item in rest]
    rng = np.random.default_rng(seed)
    band = plan(source, spec, curves, confidence, resamples or _resamples(spec), rng)
    for place, item in enumerate(rest):
        low, high = float(band.low[place]), float(band.high[place])
        missing = float(band.missing[place])
        at_full = curves[place](spec)
        if item.counts:
            low, high = float(np.ceil(low - 1e-9)), float(np.ceil(high - 1e-9))
        if not np.isfinite(high - low):
            found[item.key] = Estimate(values[item.key], n=n, method="no interval")
            continue
        top = max(float(spec.d), values[item.key])
        low, high = min(max(low, 0.0), top), min(max(high, 0.0), top)
        found[item.key] = Estimate(values[item.key], low, high, n, "", confidence, band.method)
        if abs(missing) > LIMIT * max(at_full, 1.0):
            notes = [note for note in notes if not note.startswith(f"{item.key} ")]
            notes.append(
                f"{item.key} is limited by n: {spec.n:,} samples give {values[item.key]:.4g}, "
                f"extrapolation in n about {at_full + missing:.3g}; see growth_curve()"
            )
    return found, notes


def _corrected(
    source: Resampler, spec: Spectrum, confidence: float, seed: int
) -> tuple[float, float]:
    if isinstance(source.whole, Moments):
        mean = source.whole.mean if spec.centered else None
        return corrected_interval(source.samples, spec, None, mean, confidence, seed)
    return corrected_interval(source.samples, spec, source.whole, None, confidence, seed)


def _quick_limits(
    spec: Spectrum, items: Sequence[Estimator], values: dict[str, float]
) -> list[str]:
    return [
        f"{item.key} is limited by n: {values[item.key]:.0f} components from {spec.n:,} samples; "
        "a count needs at least 5 samples per component"
        for item in items
        if item.counts and spec.n < spec.d * 5 and values[item.key] * 5 > spec.n
    ]


def _resamples(spec: Spectrum) -> int:
    side = min(spec.n, spec.d)
    return 20 if side <= 300 else 10 if side <= 1000 else 4


@dataclass(frozen=True)
class Band:
    """Intervals of several estimators; ``missing`` is the extrapolated value minus that at n."""

    low: Array
    high: Array
    missing: Array
    method: str


def _evaluate(curves: Sequence[Curve], spec: Spectrum) -> Array:
    return np.array([curve(spec) for curve in curves], np.float64)


def _halves(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Band:
    n = spec.n
    whole = _evaluate(curves, spec)
    halves, bends, squares = [], [], []
    for turn in track(range(resamples), "intervals: halves"):
        order = rng.permutation(n)
        first, second = (_evaluate(curves, s) for s in source.split(np.sort(order[: n // 2])))
        halves.append((first + second) / 2)
        squares.append((first - second) ** 2)
        if turn < max(2, resamples // 4) or n <= 300 or spec.d <= 300:
            parts = (order[: n // 4], order[n // 4 : n // 2])
            pair = [_evaluate(curves, source.subset(np.sort(part))) for part in parts]
            bends.append(first - np.mean(pair, axis=0))
    gap = whole - np.mean(halves, axis=0)
    spread = np.sqrt(np.mean(squares, axis=0) / 4)
    step = gap * extrapolation(gap, np.mean(bends, axis=0))
    reach = np.hypot(_quantile(confidence, resamples, n) * spread, step - gap)
    centre = whole + step
    method = f"{resamples} splits into halves"
    return Band(centre - reach, centre + reach, step, method)


def extrapolation(gap: Array, earlier: Array) -> Array:
    """What is still missing at n, in units of the change ``gap`` from n/2 to n.

    Separated eigenvalues give a bias b/n, equal ones a/√n. With both terms, r = gap/earlier and
    ``earlier`` the change from n/4 to n/2, the missing part is 1 + (1 + √2)(2 − 1/r) gaps,
    kept between the pure cases 1 (r = 1/2) and 1 + √2 (r = 1/√2).
    """
    ratio = np.divide(gap, earlier, out=np.full_like(gap, 0.5), where=earlier != 0)
    ratio = np.clip(ratio, 0.5, np.sqrt(0.5))
    return 1 + (1 + np.sqrt(2)) * (2 - 1 / ratio)


def _subsample(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Band:
    n = spec.n
    kept = round(0.8 * n)
    resamples = max(resamples, 5)
    draws = np.array(
        [
            _evaluate(curves, source.subset(np.sort(rng.choice(n, kept, replace=False))))
            for _ in track(range(resamples), "intervals: 80 % subsamples")
        ]
    )
    whole = _evaluate(curves, spec)
    # the bias falls as 1/n: from 0.8 n to n it loses a fifth of its value at 0.8 n
    step = whole - draws.mean(axis=0)
    odds = kept / (n - kept)
    reach = _quantile(confidence, resamples - 1, n) * draws.std(axis=0, ddof=1) * np.sqrt(odds)
    centre = whole + odds * step
    method = f"{resamples} subsamples of 80 %"
    return Band(centre - reach, centre + reach, odds * step, method)


def _bootstrap(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Band:
    n = spec.n
    resamples = max(resamples, 20)
    even = np.full(n, 1 / n)
    draws = np.array(
        [
            _evaluate(curves, source.weighted(rng.multinomial(n, even)))
            for _ in track(range(resamples), "intervals: bootstrap")
        ]
    )
    whole = _evaluate(curves, spec)
    step = whole - draws.mean(axis=0)
    reach = _quantile(confidence, resamples - 1, n) * draws.std(axis=0, ddof=1)
    centre = whole + step
    return Band(centre - reach, centre + reach, step, f"bootstrap, {resamples} resamples")


def _jackknife(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Band:
    n = spec.n
    groups = min(n, max(resamples, 20))
    parts = np.array_split(rng.permutation(n), groups)
    draws = np.array(
        [
            _evaluate(curves, source.split(np.sort(part))[1])
            for part in track(parts, "intervals: jackknife")
        ]
    )
    whole = _evaluate(curves, spec)
    step = (groups - 1) * (whole - draws.mean(axis=0))
    deviation = draws - draws.mean(axis=0)
    spread = np.sqrt((groups - 1) / groups * (deviation**2).sum(axis=0))
    reach = _quantile(confidence, groups - 1, n) * spread
    centre = whole + step
    return Band(centre - reach, centre + reach, step, f"jackknife, {groups} groups")


def _quantile(confidence: float, degrees: int, n: int) -> float:
    """Student's quantile when the spread itself comes from few resamples of n samples."""
    effective = 1 / (1 / max(degrees, 1) + 1 / (n - 1))
    return float(stats.t.ppf(0.5 + confidence / 2, effective))


_PLANS: dict[str, Callable[..., Band]] = {
    "halves": _halves,
    "subsample": _subsample,
    "bootstrap": _bootstrap,
    "jackknife": _jackknife,
}


def interval_for_samples(
    samples: Samples, item: Estimator, interval: str, confidence: float, seed: int, cap: int
) -> Estimate:
    """Value of an estimator that reads the samples; no interval is claimed for it."""
    rng = np.random.default_rng(seed)
    n = min(samples.n, cap)
    index = np.sort(rng.choice(samples.n, n, replace=False))
    value = float(item.function(samples.take(index), rng))
    if interval == "none" or n < 40:
        return Estimate(value, n=n, method="no interval")
    # disjoint parts: a resample with repeats would create neighbours at distance 0
    parts = np.array_split(rng.permutation(index), 4)
    draws = [float(item.function(samples.take(np.sort(p)), rng)) for p in parts]
    spread = float(np.std(draws, ddof=1)) / 2
    reach = float(stats.t.ppf(0.5 + confidence / 2, 3)) * spread
    method = "4 disjoint quarters (sampling error only)"
    return Estimate(value, max(value - reach, 0.0), value + reach, n, "", confidence, method)
