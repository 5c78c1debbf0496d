"""Spectra of resamples, and what they say about bias and spread of curves in n.

Every plan returns the change of the curves with the number of samples and the spread of the
extrapolated curves, on the scale y of :func:`reciprocal`, on which bias terms have one sign.

``halves``: random splits into two disjoint halves, each split again. The halves are independent,
so half of the mean squared difference estimates a variance at n/2, and a quarter one at n.
``subsample``: 80 % subsamples (published protocol), scaled as a delete-20 % jackknife.
``bootstrap``: multinomial weights.
``jackknife``: delete one group of many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spikedim.dimension.arrays import Samples
from spikedim.dimension.moments import Array, Moments, centered_gram, moments
from spikedim.dimension.spectrum import Spectrum, second_moments, smaller_side, spectrum_of
from spikedim.progress import track

Index = NDArray[np.intp]
Curve = Callable[[Spectrum], float]

#: Slowest and fastest decay n^-p of the bias that an interval allows for.
POWERS = (0.5, 1.0)


@dataclass(frozen=True)
class Resampler:
    """Spectra of subsets and of weighted copies of one data set, sharing its products.

    Where n ≤ d every resample is a submatrix of one Gram matrix; else blocks of rows are added
    up again, and what is left out is found by subtraction. A subset of fewer rows than
    features is decomposed by its own Gram matrix.
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
        return self._spectrum(self.whole)

    def split(self, index: Index) -> tuple[Spectrum, Spectrum]:
        """Spectra of the chosen samples and of all others."""
        others = self._others(index)
        if isinstance(self.whole, Moments) and min(len(index), len(others)) > self.samples.d:
            part = moments(self.samples.subset(index), shift=self.whole.shift)
            return self._spectrum(part), self._spectrum(self.whole.minus(part))
        return self.subset(index), self.subset(others)

    def without(self, index: Index) -> Spectrum:
        """Spectrum of all samples but the chosen ones."""
        others = self._others(index)
        if isinstance(self.whole, Moments) and len(others) > self.samples.d:
            part = moments(self.samples.subset(index), shift=self.whole.shift)
            return self._spectrum(self.whole.minus(part))
        return self.subset(others)

    def subset(self, index: Index) -> Spectrum:
        """Spectrum of the chosen samples."""
        if isinstance(self.whole, Moments):
            chosen = self.samples.subset(index)
            return self._spectrum(second_moments(chosen, self.center, smaller_side(chosen)))
        block = self.whole[np.ix_(index, index)]
        return self._spectrum(centered_gram(block) if self.center else block)

    def weighted(self, counts: Index) -> Spectrum:
        """Spectrum of a resample that holds sample i ``counts[i]`` times."""
        return self.subset(np.repeat(np.arange(self.samples.n), counts))

    def _others(self, index: Index) -> Index:
        return np.setdiff1d(np.arange(self.samples.n), index)

    def _spectrum(self, matrix: Array | Moments) -> Spectrum:
        return spectrum_of(matrix, self.samples.dimension, self.center)


@dataclass(frozen=True)
class Resampled:
    """Curves on the scale y at n samples, and how they change with n.

    Args:
        at_n: y of all samples, [curves].
        missing: y(n) − y(∞) if the bias falls as n^-p, [powers, curves], p of ``POWERS``.
        spread: standard error of y(n) − missing, [powers, curves].
        degrees: of freedom of ``spread``.
        method: how they were found.
    """

    at_n: Array
    missing: Array
    spread: Array
    degrees: int
    method: str


def reciprocal(values: Array) -> Array:
    """Y = 1/θ of positive values, infinite at 0; the bias of y adds terms of one sign.

    1/PR is biased by exactly 1/n at leading order, and the reciprocals of the stable rank, the
    entropy rank and PCA counts of random matrices are series in √(d/n) of positive coefficients.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(1 / np.maximum(values, 0.0))


def evaluate(curves: Sequence[Curve], spec: Spectrum) -> Array:
    """Every curve at one spectrum, on the scale y."""
    return reciprocal(np.array([curve(spec) for curve in curves], np.float64))


def _weights(ratio: float) -> Array:
    """Missing part in units of y(n/ratio) − y(n), for every power: 1/(ratio^p − 1)."""
    return np.array([[1 / (ratio**p - 1)] for p in POWERS])


def halves(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    resamples: int,
    rng: np.random.Generator,
) -> Resampled:
    """Changes from n/4 to n/2 to n, over random splits into disjoint parts."""
    n = spec.n
    whole = evaluate(curves, spec)
    weights = _weights(2.0)
    gaps, squares, direct = [], [], []
    for _ in track(range(resamples), "intervals: halves"):
        order = rng.permutation(n)
        parts = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
        ends = []
        half = [evaluate(curves, s) for s in source.split(parts[0])]
        for part, at_half in zip((order[: n // 2], order[n // 2 :]), half, strict=True):
            quarter = [evaluate(curves, source.subset(np.sort(p))) for p in np.array_split(part, 2)]
            ends.append(at_half - weights * (np.mean(quarter, axis=0) - at_half))
        gaps.append(np.mean(half, axis=0) - whole)
        squares.append((ends[0] - ends[1]) ** 2)
        direct.append((half[0] - half[1]) ** 2)
    missing = weights * np.mean(gaps, axis=0)
    # one split of each half is noisier than the mean over all splits of the whole
    chance = weights**2 * np.var(gaps, axis=0)
    plain = np.mean(squares, axis=0) / 4
    spread = np.sqrt(np.maximum(plain - chance, np.mean(direct, axis=0) / 4))
    return Resampled(whole, missing, spread, resamples, f"{resamples} splits into halves")


def subsample(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    resamples: int,
    rng: np.random.Generator,
) -> Resampled:
    """80 % subsamples."""
    n = spec.n
    kept = round(0.8 * n)
    resamples = max(resamples, 10)
    draws = np.array(
        [
            evaluate(curves, source.subset(np.sort(rng.choice(n, kept, replace=False))))
            for _ in track(range(resamples), "intervals: 80 % subsamples")
        ]
    )
    whole = evaluate(curves, spec)
    missing = _weights(n / kept) * (draws.mean(axis=0) - whole)
    spread = draws.std(axis=0, ddof=1) * np.sqrt(kept / (n - kept)) * np.ones((len(POWERS), 1))
    return Resampled(whole, missing, spread, resamples - 1, f"{resamples} subsamples of 80 %")


def bootstrap(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    resamples: int,
    rng: np.random.Generator,
) -> Resampled:
    """Samples drawn with replacement; their bias repeats that of the data once."""
    n = spec.n
    resamples = max(resamples, 20)
    even = np.full(n, 1 / n)
    draws = np.array(
        [
            evaluate(curves, source.weighted(rng.multinomial(n, even)))
            for _ in track(range(resamples), "intervals: bootstrap")
        ]
    )
    whole = evaluate(curves, spec)
    missing = _weights(2.0) * (draws.mean(axis=0) - whole)
    spread = draws.std(axis=0, ddof=1) * np.ones((len(POWERS), 1))
    return Resampled(whole, missing, spread, resamples - 1, f"bootstrap, {resamples} resamples")


def jackknife(
    source: Resampler,
    spec: Spectrum,
    curves: Sequence[Curve],
    resamples: int,
    rng: np.random.Generator,
) -> Resampled:
    """Delete one of about 20 groups."""
    groups = min(spec.n, max(resamples, 20))
    parts = np.array_split(rng.permutation(spec.n), groups)
    left = [
        evaluate(curves, source.without(np.sort(part)))
        for part in track(parts, "intervals: jackknife")
    ]
    return jackknifed(evaluate(curves, spec), np.array(left), f"jackknife, {groups} groups")


def jackknifed(whole: Array, left: Array, method: str) -> Resampled:
    """What values with one group left out, [groups, curves], say about the value of all."""
    groups = len(left)
    missing = _weights(groups / (groups - 1)) * (left.mean(axis=0) - whole)
    deviation = left - left.mean(axis=0)
    spread = np.sqrt((groups - 1) / groups * (deviation**2).sum(axis=0))
    return Resampled(whole, missing, spread * np.ones((len(POWERS), 1)), groups - 1, method)


def quantile(confidence: float, degrees: int, n: int) -> float:
    """Student's quantile when the spread itself comes from few resamples of n samples."""
    effective = 1 / (1 / max(degrees, 1) + 1 / (n - 1))
    return float(stats.t.ppf(0.5 + confidence / 2, effective))


PLANS: dict[str, Callable[..., Resampled]] = {
    "halves": halves,
    "subsample": subsample,
    "bootstrap": bootstrap,
    "jackknife": jackknife,
}
