"""Effective dimension against the number of samples, extrapolated to infinitely many.

Subsets of one data set share its sampling error, so their spread does not show it. The error of
the limit comes from curves measured in disjoint halves of the samples, which are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import Estimator, get_estimator
from spikedim.dimension.intervals import LIMIT, around
from spikedim.dimension.moments import Array
from spikedim.dimension.resampling import Index, Resampler, quantile
from spikedim.errors import ConfigError
from spikedim.progress import Task, task
from spikedim.results import Estimate, Result, Table

#: A law of large n is seen where the value grows slower than this power of n.
_STEEPEST = 1 / 3


@dataclass(frozen=True)
class GrowthCurve(Result):
    """d_eff(n) on random subsets and the fit θ(n) = θ_∞ − a/√n − b/n with a, b of one sign.

    Args:
        estimator: key of the estimator (``pcaQQ_real`` where ``pcaQQ`` was asked for).
        sizes: numbers of samples, ascending.
        values: mean over the subsets of each size.
        spread: standard deviation over them, NaN of a single subset.
        limit: θ_∞ with an interval from it to the limit of a bias of 1/n alone, each widened by
            its sampling error. That the bias is one of the two is assumed (docs/coverage.md).
            Where the law is not :attr:`seen`, the value at the largest n and a lower end alone.
        asymptote, slope, curvature: θ_∞, a and b of the fit.
        limited: the value at the largest n is more than 3 % from θ_∞, or the law is not seen.

    The form is that of large n; :attr:`fits_from` says from which measured size on it fits.
    """

    estimator: str
    sizes: Array
    values: Array
    spread: Array
    limit: Estimate
    asymptote: float
    slope: float
    curvature: float
    limited: bool

    def fit(self, n: Any) -> Array:
        """The fitted curve at ``n`` samples."""
        n = np.asarray(n, np.float64)
        return np.asarray(self.asymptote - self.slope / np.sqrt(n) - self.curvature / n)

    @property
    def fits_from(self) -> float:
        """The smallest size from which on the fit is within 5 %, or a s.d., of every mean."""
        off = np.abs(self.fit(self.sizes) - self.values)
        misses = np.flatnonzero(off > np.fmax(self.spread, 0.05 * np.abs(self.values)))
        first = int(misses[-1]) + 1 if len(misses) else 0
        return float(self.sizes[min(first, len(self.sizes) - 1)])

    @property
    def seen(self) -> bool:
        """The law holds at three sizes or more, and the value no longer grows much as n does."""
        (m, n), (low, high) = self.sizes[-2:], self.values[-2:]
        return bool(self.fits_from <= self.sizes[-3] and high <= low * (n / m) ** _STEEPEST)

    def tables(self) -> list[Table]:
        """One row per sample size, the limit last."""
        rows: list[Sequence[Any]] = [
            (int(n), float(v), None if np.isnan(s) else float(s), None)
            for n, v, s in zip(self.sizes, self.values, self.spread, strict=True)
        ]
        rows.append(("∞ (fit)" if self.seen else "∞", None, None, self.limit))
        notes = ["limited by n: the largest sample is not enough"] if self.limited else []
        if self.seen:
            if self.fits_from > self.sizes[0]:
                notes.append(
                    f"the fit is one of large n: it holds from n = {self.fits_from:,.0f} on"
                )
            how = "The interval reaches from its limit to that of a bias of 1/n alone, each widened"
        else:
            notes.append(
                "no law is seen to hold (one must fit at the three largest sizes, and doubling n "
                "add less than about a quarter): only a lower end is given; more samples are needed"
            )
            how = "The end is the least of the value at the largest n and the law's limits, lowered"
        real = self.estimator.endswith("_real")
        counts = f"{self.estimator} counts the last component in part. " if real else ""
        notes.append(
            f"{counts}Law: θ(n) = θ_∞ − a/√n − b/n, a and b of one sign. {how} by its sampling "
            f"error ({self.limit.method})."
        )
        share = f"n → ∞, {100 * self.limit.confidence:g} % interval"
        columns = ("n", self.estimator, "s.d. over subsets", share)
        return [Table(f"{self.estimator} against the number of samples", columns, rows, notes)]

    def plot(self, ax: Any = None) -> Any:
        """Measured values, fit where it holds, and band of the limit; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
        if self.seen:
            n = np.geomspace(self.fits_from, 10 * self.sizes[-1], 200)
            ax.plot(n, self.fit(n), color="#1f5a93", lw=1.4,
                    label=f"fit, from n = {self.fits_from:,.0f} on")  # fmt: skip
        ax.errorbar(self.sizes, self.values, self.spread, fmt="o", ms=4, color="#b8321f",
                    label="mean of subsets ± s.d.")  # fmt: skip
        low, high = self.limit.low, self.limit.high
        about = f"n → ∞, {100 * self.limit.confidence:g} % interval"
        if low is not None and high is not None:
            ax.axhspan(low, high, color="#1f5a93", alpha=0.15, lw=0, label=about)
        elif low is not None:
            ax.axhline(low, color="#1f5a93", lw=1, ls="--", label=f"{about}: {low:.4g} or more")
        ax.set(xscale="log", xlabel="samples n", ylabel=f"d_eff, {self.estimator}")
        ax.legend(fontsize=8, frameon=False)
        return ax


def growth_curve(
    x: Any,
    estimator: str = "pca95",
    center: bool = True,
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
) -> GrowthCurve:
    """Measure d_eff on random subsets of growing size and extrapolate to n → ∞.

    Args:
        x: samples ``[n, d...]``.
        estimator: key of a spectral estimator; for ``pcaQQ``, whose whole counts jump,
            ``pcaQQ_real`` is measured.
        center: subtract the mean of each subset.
        sizes: subset sizes; six from n/32 to n by default.
        repeats: subsets per size (disjoint where they fit).
        confidence: of the interval of the limit.
        seed: of the subsets.

    Raises:
        DataError: fewer than 16 samples.
        ConfigError: sizes outside [4, n], fewer than 3 of them, or no spectral estimator.
    """
    item = get_estimator(estimator)
    if item.needs != "spectrum":
        raise ConfigError(f"estimator {estimator!r} does not read a spectrum")
    samples = as_samples(x, 16)
    n = samples.n
    if sizes is None:
        sizes = [n // k for k in (32, 16, 8, 4, 2, 1) if n // k >= 4]
    sizes = sorted(set(sizes))
    if len(sizes) < 3 or sizes[0] < 4 or sizes[-1] > n or repeats < 2:
        raise ConfigError(
            f"sizes={list(sizes)}, repeats={repeats}; expected at least 3 sizes between 4 and "
            f"{n} and at least 2 repeats"
        )
    if item.counts:
        item = get_estimator(f"{item.key}_real")
    source = Resampler.of(samples, center)
    numbers = np.asarray(sizes, np.float64)
    splits = 10 if min(n, samples.d) <= 1000 else 4
    rng = np.random.default_rng(seed)
    everything = np.arange(n)
    with task("growth curve", len(sizes) * (1 + 2 * splits)) as progress:
        draws = [_draws(source, item, everything, size, repeats, rng, progress) for size in sizes]
        values = np.array([np.mean(row) for row in draws])
        asymptote, slope, curvature = fit_growth(numbers, values)
        gaps = np.empty((splits, 3))
        for turn in range(splits):
            pair = []
            for half in np.array_split(rng.permutation(n), 2):
                halved = _scaled(sizes, n, len(half))
                means = [
                    np.mean(_draws(source, item, half, size, repeats, rng, progress))
                    for size in halved
                ]
                pair.append(_limits(np.asarray(halved, np.float64), np.array(means)))
            gaps[turn] = pair[0] - pair[1]
    # halves are independent: half of the mean squared gap is a variance at n/2, a quarter one at n
    reach = quantile(confidence, splits, n) * np.sqrt((gaps**2).mean(axis=0)) / 2
    ends = _limits(numbers, values)
    lows, highs = ends - reach, ends + reach
    spread = np.array([np.std(row, ddof=1) if len(row) > 1 else np.nan for row in draws])
    low, high = max(float(lows[:2].min()), item.least), min(float(highs[:2].max()), samples.d)
    method = f"fit over {len(sizes)} sizes, {splits} splits into halves"
    found = around(asymptote, low, high, n, confidence, method)
    limited = bool(abs(asymptote - values[-1]) > LIMIT * max(values[-1], 1.0))
    curve = GrowthCurve(
        item.key, numbers, values, spread, found, asymptote, slope, curvature, limited
    )
    if curve.seen:
        return curve
    least = around(
        float(values[-1]), max(float(lows.min()), item.least), np.inf, n, confidence,
        f"lower end alone, {splits} splits into halves",
    )  # fmt: skip
    return replace(curve, limit=replace(least, high=None), limited=True)


def _scaled(sizes: Sequence[int], n: int, half: int) -> list[int]:
    """Ascending sizes in the same ratio to ``half`` as ``sizes`` to n, from 4 on."""
    found = [3]
    for size in sizes:
        found.append(min(max(half * size // n, found[-1] + 1), half))
    return sorted(set(found[1:]))


def _draws(
    source: Resampler,
    item: Estimator,
    index: Index,
    size: int,
    repeats: int,
    rng: np.random.Generator,
    progress: Task,
) -> list[float]:
    """The estimator on random subsets of ``index`` of one size, disjoint where they fit."""
    found: list[float] = []
    order, start = rng.permutation(index), 0
    for _ in range(repeats if size < len(index) else 1):
        if start + size > len(order):
            order, start = rng.permutation(index), 0
        found.append(float(item.function(source.subset(np.sort(order[start : start + size])))))
        start += size
    progress.advance()
    return found


def fit_growth(sizes: Array, values: Array) -> tuple[float, float, float]:
    """θ_∞, a, b of θ(n) = θ_∞ − a/√n − b/n, by least squares with a and b of the same sign.

    Relative weights grow with n, where the two-term form holds best.
    """
    sign = 1.0 if values[-1] >= values[0] else -1.0
    weight = np.sqrt(sizes)
    design = np.stack([np.ones_like(sizes), -sign / np.sqrt(sizes), -sign / sizes], axis=1)
    found = optimize.lsq_linear(
        design * weight[:, None], values * weight, bounds=([-np.inf, 0, 0], np.inf)
    )
    limit, a, b = (float(v) for v in found.x)
    return limit, sign * a, sign * b


def _limits(sizes: Array, values: Array) -> Array:
    """Limits of the fit and of the two largest sizes if the bias is b/n alone; the last value."""
    (m, n), (low, high) = sizes[-2:], values[-2:]
    return np.array([fit_growth(sizes, values)[0], high + (high - low) * m / (n - m), high])
