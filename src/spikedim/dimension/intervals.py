"""Confidence intervals of spectral dimensions, and when n is too small for them.

Eigenvalues of few samples are spread wider than those of the population, so a dimension read
from them is too low, often by far more than its sampling error. The value stays that of the
samples; the interval is for the population and holds both errors.

``auto`` bounds PCA counts by variance held out (:mod:`~spikedim.dimension.heldout`), treats pr
and pr_corrected by the variance of their U-statistic, and resamples the others by disjoint
halves. Resamples (:mod:`~spikedim.dimension.resampling`) measure how a dimension changes with n;
the bias left at n is then bounded by letting it fall as fast as 1/n and as slowly as 1/√n (the
rates of separated and of equal eigenvalues), and the interval reaches from the sample value to
the far end of what that allows, each end widened by its own standard error: towards fewer
dimensions on a logarithmic scale, because samples that miss rare events raise a dimension and
lower its apparent error together. Where the far end is not bounded by the data the interval is
one-sided (``high`` is ``None``) and the dimension limited by n.

docs/coverage.md measures how often such intervals cover: for Gaussian data about as often as they
say or more; for heavy-tailed and sparse data, whose rare events decide the variance of a variance,
sometimes less than 90 % at a nominal 95 %. Intervals of estimators that read the samples are not
for the population (:func:`interval_for_samples`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from spikedim.dimension.arrays import Samples
from spikedim.dimension.estimators import Estimator, pca_quantile, pca_share
from spikedim.dimension.heldout import HeldOut, crossing, held_out
from spikedim.dimension.moments import Moments
from spikedim.dimension.resampling import PLANS, Curve, Resampled, Resampler, quantile, reciprocal
from spikedim.dimension.spectrum import Spectrum
from spikedim.dimension.variance import corrected_interval
from spikedim.results import Estimate, number

INTERVALS = ("auto", "halves", "subsample", "bootstrap", "jackknife", "none")
LIMIT = 0.03
MOSTLY_BIAS = "mostly bias, so at least"
#: In the method of an interval that is not for the population.
SPREAD = "spread of the estimator at n, its bias not included"
#: Samples that intervals need at least.
FEWEST = 8
_PART = 100
_SAME = 1e-9


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
    values = {item.key: float(item.function(spec)) for item in items}
    n = spec.n
    found: dict[str, Estimate] = {}
    notes: list[str] = []
    rest = list(items)
    none = interval == "none" or n < FEWEST or spec.total_variance == 0
    if interval == "auto":
        ratios = [key for key in ("pr", "pr_corrected") if key in values]
        rest = [item for item in items if item.key not in ratios]
        if ratios:
            low, high = _corrected(source, spec, confidence, seed)
            for key in ratios:
                found[key] = around(values[key], low, high, n, confidence, "U-statistic variance")
            naive = values.get("pr", high)
            if naive < (1 - LIMIT) * low:
                notes.append(
                    f"pr is limited by n: {naive:.4g}, while the population has {low:.4g} to "
                    f"{high:.4g}; see pr_corrected"
                )
    if none:
        for item in rest:
            found[item.key] = Estimate(values[item.key], n=n, method="no interval")
        if interval != "none" and rest and n < FEWEST:
            notes.append(f"no intervals from {n} samples; at least {FEWEST} are needed")
        return found, notes + _few(spec, rest, values)
    limits: list[str] = []
    quantiles = [item for item in rest if interval == "auto" and pca_share(item.key) is not None]
    if quantiles:
        splits = resamples or max(_resamples(spec) // 4, 1)
        held = held_out(source, spec, splits, np.random.default_rng(seed))
        bounded, limits = _quantiles(held, quantiles, values, spec, confidence)
        found |= bounded
    resampled = [item for item in rest if item not in quantiles]
    if resampled:
        plan = PLANS["halves" if interval == "auto" else interval]
        curves = [curve_of(item) for item in resampled]
        rng = np.random.default_rng(seed)
        with np.errstate(invalid="ignore"):
            changes = plan(source, spec, curves, resamples or _resamples(spec), rng)
        bounded, more = bracket(changes, resampled, values, spec, n, "samples", confidence)
        found, limits = found | bounded, limits + more
    limited = {note.split(" ", 1)[0] for note in limits}
    few = _few(spec, [item for item in rest if item.key not in limited], values)
    return found, notes + limits + few


def _quantiles(
    held: HeldOut,
    items: Sequence[Estimator],
    values: dict[str, float],
    spec: Spectrum,
    confidence: float,
) -> tuple[dict[str, Estimate], list[str]]:
    """Estimates of PCA counts, and which are limited by n."""
    found: dict[str, Estimate] = {}
    notes: list[str] = []
    for item in items:
        key, q = item.key, pca_share(item.key)
        assert q is not None
        low, high = held.interval(q, confidence)
        near, far = crossing(held.middle, q), crossing(held.outside, q)
        biased = not 2 * (far - near) < high - low
        limited = far > (1 + LIMIT) * crossing(held.inside, q)
        near, far = _whole(item, near), _whole(item, far)
        limited = limited and far > values[key]
        method = f"{held.splits} splits, variance held out, {_kind(biased, confidence)}"
        found[key] = _within(
            item, values[key], low, high, limited, spec, held.n, confidence, method
        )
        if limited:
            about = _span(near, far) if far < np.inf else "no upper end"
            notes.append(
                f"{key} is limited by n: {held.n:,} samples give {number(values[key])}, "
                f"held-out samples {about}"
            )
    return found, notes


def _kind(biased: bool, confidence: float) -> str:
    return f"{MOSTLY_BIAS} {100 * confidence:g} %" if biased else "bias included"


def _within(
    item: Estimator,
    value: float,
    low: float,
    high: float,
    limited: bool,
    spec: Spectrum,
    n: int,
    confidence: float,
    method: str,
) -> Estimate:
    """An estimate with whole ends for a count, from the least value that can be up to d.

    One-sided if d is reached for want of n.
    """
    low, high = max(_whole(item, low), item.least), _whole(item, high)
    top = max(float(spec.d), value)
    if limited and high >= top:
        return Estimate(value, min(low, value), None, n, "", confidence, method)
    return around(value, low, min(high, top), n, confidence, method)


def bracket(
    changes: Resampled,
    items: Sequence[Estimator],
    values: dict[str, float],
    spec: Spectrum,
    n: int,
    unit: str,
    confidence: float,
) -> tuple[dict[str, Estimate], list[str]]:
    """Bias-inclusive intervals from resamples, and which values are limited by n.

    With y = 1/θ and the bias of y a sum of terms of one sign that fall at least as fast as
    n^-1/2, the population value lies between y(n) and y(n) − (what is missing at p = 1/2). With
    r = t·(standard error of y), the ends are 1/(y·exp(r/y)) and 1/(y − r).

    Args:
        changes: of the curves of ``items``, in that order.
        items: the estimators.
        values: what they are on all samples.
        spec: spectrum of all samples.
        n: independent observations, called ``unit``.
        unit: what is counted by n, for the notes.
        confidence: nominal coverage.
    """
    found: dict[str, Estimate] = {}
    notes: list[str] = []
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        reach = quantile(confidence, changes.degrees, n) * changes.spread
        likely = changes.at_n - changes.missing
        most = np.where(likely > 0, likely * np.exp(reach / likely), likely + reach)
        near, far = reciprocal(most).min(axis=0), reciprocal(likely - reach).max(axis=0)
        likely = np.sort(reciprocal(likely), axis=0)
        biased = np.abs(changes.missing).max(axis=0) > reach.max(axis=0)
    for place, item in enumerate(items):
        key, value = item.key, values[item.key]
        low, high = float(near[place]), float(far[place])
        if not math.isfinite(value) or math.isnan(low) or math.isnan(high):
            found[key] = Estimate(value, n=n, method="no interval")
            continue
        method = f"{changes.method}, {_kind(bool(biased[place]), confidence)}"
        top = max(float(spec.d), value)
        limited = float(likely[-1, place] * changes.at_n[place]) > 1 + LIMIT
        least, largest = (_whole(item, float(likely[end, place])) for end in (0, -1))
        limited = limited and largest > value
        found[key] = _within(item, value, low, high, limited, spec, n, confidence, method)
        if limited:
            about = _span(least, largest) if largest < top else "no upper end"
            notes.append(
                f"{key} is limited by n: {n:,} {unit} give {number(value)}, "
                f"extrapolation in n {about}"
            )
    return found, notes


def around(
    value: float, low: float, high: float, n: int, confidence: float, method: str
) -> Estimate:
    """An estimate whose interval holds its own value; none where the value is NaN."""
    if math.isnan(value):
        return Estimate(value, n=n, method="no interval")
    return Estimate(value, min(low, value), max(high, value), n, "", confidence, method)


def _whole(item: Estimator, value: float) -> float:
    """A count rounded up; a bias that adds no whole component does not limit it."""
    return float(np.ceil(value - 1e-9)) if item.counts else value


def _span(low: float, high: float) -> str:
    ends = dict.fromkeys(number(end, 3) for end in (low, high))
    return f"about {' to '.join(ends)}"


def _corrected(
    source: Resampler, spec: Spectrum, confidence: float, seed: int
) -> tuple[float, float]:
    if isinstance(source.whole, Moments):
        mean = source.whole.mean if spec.centered else None
        return corrected_interval(source.samples, spec, None, mean, confidence, seed)
    return corrected_interval(source.samples, spec, source.whole, None, confidence, seed)


def _few(spec: Spectrum, items: Sequence[Estimator], values: dict[str, float]) -> list[str]:
    return [
        f"{item.key} is limited by n: {values[item.key]:.0f} components from {spec.n:,} samples; "
        "a count needs at least 5 samples per component"
        for item in items
        if item.counts and spec.n < spec.d * 5 and values[item.key] * 5 > spec.n
    ]


def _resamples(spec: Spectrum) -> int:
    side = min(spec.n, spec.d)
    return 20 if side <= 300 else 10 if side <= 1000 else 4


def interval_for_samples(
    samples: Samples, item: Estimator, interval: str, confidence: float, seed: int, cap: int
) -> tuple[Estimate, list[str]]:
    """Value of an estimator that reads the samples, and whether it still changes with n.

    The interval is for the mean of the estimator over data sets of n samples, not for the
    dimension of the population: value ± t·value·s/(mean·√m), with mean and standard deviation s
    of the values of m disjoint parts, whose relative variance is m times that of all samples.
    The bias of nearest-neighbour dimensions (downwards where there are edges, upwards where the
    space is curved) falls as slowly as n^(-1/D), so samples do not bound it in many dimensions;
    a change that is beyond sampling error from the parts to the whole is named in a note.
    """
    rng = np.random.default_rng(seed)
    n = min(samples.n, cap)
    index = np.sort(rng.choice(samples.n, n, replace=False))
    value = float(item.function(samples.take(index), rng))
    if interval == "none" or n < 40:
        return Estimate(value, n=n, method="no interval"), []
    m = int(np.clip(n // _PART, 4, 10))
    # disjoint parts: a resample with repeats would create neighbours at distance 0
    parts = np.array_split(rng.permutation(index), m)
    draws = [float(item.function(samples.take(np.sort(p)), rng)) for p in parts]
    # parts that agree but for rounding hold the same few distinct rows
    if not np.isfinite([value, *draws]).all() or np.ptp(draws) < _SAME * abs(value):
        return Estimate(value, n=n, method="no interval"), []
    mean = float(np.mean(draws))
    spread = float(np.std(draws, ddof=1)) / math.sqrt(m) * (abs(value / mean) if mean else 1.0)
    reach = float(stats.t.ppf(0.5 + confidence / 2, m - 1)) * spread
    method = f"{m} disjoint parts, {SPREAD}"
    found = around(value, max(value - reach, item.least), value + reach, n, confidence, method)
    # the difference of two estimates of one variance, at most
    if abs(value - mean) <= max(LIMIT * abs(value), math.sqrt(2) * reach):
        return found, []
    note = (
        f"{item.key} is limited by n: {n:,} samples give {value:.4g}, parts of {n // m:,} "
        f"{mean:.4g}"
    )
    return found, [note]
