"""Finer than one number: effective dimension per class and around every sample.

Neighbourhoods overlap, so their dimensions are no independent observations. The spread of their
mean comes from a jackknife over the samples of the data set: 20 groups of samples are left out in
turn, and every neighbourhood is filled up with the next nearest samples that remain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import Estimator, get_estimator
from spikedim.dimension.intervals import FEWEST, around, spectral_intervals
from spikedim.dimension.moments import Array, centered_gram
from spikedim.dimension.resampling import Index, Resampler
from spikedim.dimension.spectrum import Spectrum, spectrum_of_gram
from spikedim.errors import ConfigError, DataError
from spikedim.progress import track
from spikedim.results import Estimate, Result, Table

Rows = NDArray[np.floating[Any]]
_GROUPS = 20
#: Neighbourhoods that are measured without each group.
_CHANGES = 100


@dataclass(frozen=True)
class ClassDimensions(Result):
    """Effective dimension of every class; keys are the labels as text."""

    estimates: dict[str, Estimate]
    estimator: str
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """One row per class."""
        rows = [(key, e.value, str(e), e.n) for key, e in self.estimates.items()]
        columns = ("class", "value", "interval", "n")
        return [Table(f"Effective dimension per class ({self.estimator})", columns, rows,
                      self.warnings)]  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Value and interval of every class; returns the matplotlib axes."""
        ax = ax or _axes()
        for place, (key, e) in enumerate(self.estimates.items()):
            if e.low is not None and e.high is not None:
                ax.plot([e.low, e.high], [place, place], color="#1f5a93", lw=2)
            ax.plot(e.value, place, "o", color="#b8321f", ms=4, label=key)
        ax.set_yticks(range(len(self.estimates)), list(self.estimates))
        ax.set_xlabel(self.estimator)
        return ax


@dataclass(frozen=True)
class LocalDimensions(Result):
    """Effective dimension of the neighbourhood of every examined sample.

    Args:
        index: rows of x that were examined.
        values: dimension of the ``neighbours`` nearest samples (themselves included).
        mean: mean over samples, with the interval of such a mean over data sets of this size.
    """

    index: np.ndarray
    values: Array
    mean: Estimate
    neighbours: int
    estimator: str

    def tables(self) -> list[Table]:
        """Mean and quantiles over samples."""
        low, middle, high = (float(v) for v in np.quantile(self.values, [0.05, 0.5, 0.95]))
        rows = [("mean", str(self.mean)), ("5 %", low), ("median", middle), ("95 %", high)]
        title = f"Local dimension ({self.estimator}, {self.neighbours} neighbours)"
        return [Table(title, ("over samples", "value"), rows)]

    def plot(self, ax: Any = None) -> Any:
        """Histogram over samples; returns the matplotlib axes."""
        ax = ax or _axes()
        ax.hist(self.values, bins="auto", color="#1f5a93")
        ax.set(xlabel=f"local {self.estimator}", ylabel="samples")
        return ax


def per_class(
    x: Any,
    labels: Any,
    estimator: str = "pr_corrected",
    center: bool = True,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> ClassDimensions:
    """Effective dimension of the samples of each class.

    Args:
        x: samples ``[n, d...]``.
        labels: class of every sample, [n].
        estimator: key of a spectral estimator.
        center: subtract the mean of each class.
        confidence: nominal coverage of the intervals.
        seed: of the resamples.

    Raises:
        DataError: not one label per sample, or a class with fewer than two samples.
        ConfigError: the estimator is unknown or does not read a spectrum.
    """
    item = _spectral(estimator)
    samples = as_samples(x)
    labels = np.asarray(labels)
    if labels.shape != (samples.n,):
        raise DataError(f"labels have shape {labels.shape}; expected ({samples.n},)")
    found: dict[str, Estimate] = {}
    notes: list[str] = []
    for label in track(np.unique(labels), "classes"):
        index = np.flatnonzero(labels == label)
        if len(index) < 2:
            raise DataError(f"class {label} has {len(index)} sample; at least 2 are needed")
        source = Resampler.of(samples.subset(index), center)
        estimates, limits = spectral_intervals(
            source, source.spectrum(), [item], "auto", confidence, None, seed
        )
        found[str(label)] = estimates[item.key]
        notes += [f"class {label}: {limit}" for limit in limits]
    return ClassDimensions(found, estimator, tuple(notes))


def per_neighbourhood(
    x: Any,
    neighbours: int = 100,
    estimator: str = "pr_corrected",
    *,
    limit: int | None = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LocalDimensions:
    """Effective dimension of the k nearest neighbours of each sample (centred).

    The interval of the mean is for its mean over data sets of n samples, at this n and k: ± t·s.e.
    from a jackknife that leaves out one of 20 groups of samples in turn. What leaving out changes
    inside neighbourhoods is measured on 100 of them, or 10,000/k if k is small.

    Args:
        x: samples ``[n, d...]``, dense.
        neighbours: k, the sample itself included.
        estimator: key of a spectral estimator.
        limit: samples examined, drawn at random; ``None`` for all.
        confidence: of the interval of the mean; none where fewer than 8 samples are examined.
        seed: of the draw and of the groups.

    Raises:
        DataError: fewer samples than neighbours.
        ConfigError: fewer than 5 neighbours, or no spectral estimator.
    """
    from sklearn.neighbors import NearestNeighbors

    item = _spectral(estimator)
    samples = as_samples(x)
    if neighbours < 5:
        raise ConfigError(f"neighbours={neighbours}; expected at least 5")
    if samples.n < neighbours:
        raise DataError(f"x holds {samples.n} samples, fewer than neighbours={neighbours}")
    rng = np.random.default_rng(seed)
    count = samples.n if limit is None else min(limit, samples.n)
    index = np.sort(rng.choice(samples.n, count, replace=False))
    rows = samples.rows(0, samples.n)
    search = NearestNeighbors(n_neighbors=neighbours).fit(rows)
    near = search.kneighbors(rows[index], return_distance=False)
    values = np.empty(count)
    for place, chosen in enumerate(track(near, "neighbourhoods", count)):
        values[place] = item.function(_spectrum(_products(rows[chosen]), samples.d))
    middle = float(values.mean())
    mean = Estimate(middle, n=count, confidence=confidence, method="mean over samples")
    if count >= FEWEST:
        groups = rng.permutation(samples.n) % _GROUPS
        measured = min(count, max(_CHANGES, 100 * _CHANGES // neighbours))
        some = np.sort(rng.choice(count, measured, replace=False))
        spares = min(samples.n, neighbours + _spare(neighbours))
        wider = search.kneighbors(rows[index[some]], spares, return_distance=False)
        changes = _changes(item, rows, wider, groups, neighbours, values[some])
        error = _jackknife(values, groups[index], changes, groups[index[some]])
        reach = float(stats.t.ppf(0.5 + confidence / 2, _GROUPS - 1)) * error
        method = f"mean over samples, jackknife over {_GROUPS} groups of samples"
        low = max(middle - reach, min(item.least, float(values.min())))
        mean = around(middle, low, middle + reach, count, confidence, method)
    return LocalDimensions(index, values, mean, neighbours, estimator)


def _spare(k: int) -> int:
    """Neighbours beyond k that a group left out rarely takes more of: 5 s.d. above the mean."""
    return int(np.ceil(k / _GROUPS + 5 * np.sqrt(k / _GROUPS))) + 3


def _products(rows: Rows) -> Array:
    z = rows - rows.mean(axis=0)
    return np.asarray(z @ z.T)


def _spectrum(products: Array, d: int) -> Spectrum:
    return spectrum_of_gram(centered_gram(products), d, True)


def _changes(
    item: Estimator, rows: Rows, near: Index, groups: Index, k: int, values: Array
) -> Array:
    """What each neighbourhood changes by without each group of samples, [neighbourhoods, groups].

    Args:
        item: the estimator.
        rows: samples [n, d].
        near: more than k neighbours of each examined sample, nearest first.
        groups: group of every sample, [n].
        k: neighbours of a neighbourhood; where fewer remain, all that do.
        values: dimension of each neighbourhood.
    """
    found = np.zeros((len(near), _GROUPS))
    for place, chosen in enumerate(track(near, "intervals: jackknife", len(near))):
        products, of = _products(rows[chosen]), groups[chosen]
        for group in np.unique(of[:k]):
            kept = np.flatnonzero(of != group)[:k]
            left = item.function(_spectrum(products[np.ix_(kept, kept)], rows.shape[1]))
            found[place, group] = left - values[place]
    return found


def _jackknife(values: Array, of: Index, changes: Array, of_changes: Index) -> float:
    """Standard error of the mean of values whose samples are left out by groups.

    Without group g the mean is that of the values outside g plus the mean of their changes. Where
    changes are those of some neighbourhoods only, the variance that this adds is taken off again,
    down to that of independent values.

    Args:
        values: dimension of each neighbourhood.
        of: group of each.
        changes: of some neighbourhoods, per group left out.
        of_changes: group of each of those.
    """
    left, noise = np.empty(_GROUPS), np.zeros(_GROUPS)
    missing = 1 - len(changes) / len(values)
    for group in range(_GROUPS):
        kept, same = values[of != group], changes[of_changes != group, group]
        left[group] = (kept if len(kept) else values).mean()
        if len(same) > 1:
            left[group] += same.mean()
            noise[group] = missing * same.var(ddof=1) / len(same)
    variance = (_GROUPS - 1) * (left.var() - noise.mean())
    return math.sqrt(max(variance, values.var(ddof=1) / len(values)))


def _spectral(key: str) -> Any:
    item = get_estimator(key)
    if item.needs != "spectrum":
        raise ConfigError(f"estimator {key!r} does not read a spectrum; choose e.g. pr_corrected")
    return item


def _axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5, 3.5), layout="constrained")[1]
