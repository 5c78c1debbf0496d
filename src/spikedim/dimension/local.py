"""Finer than one number: effective dimension per class and around every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import get_estimator
from spikedim.dimension.intervals import spectral_intervals
from spikedim.dimension.moments import Array, centered_gram
from spikedim.dimension.resampling import Resampler
from spikedim.dimension.spectrum import spectrum_of_gram
from spikedim.errors import ConfigError, DataError
from spikedim.progress import track
from spikedim.results import Estimate, Result, Table


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
        mean: mean over samples with a t interval.
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

    Args:
        x: samples ``[n, d...]``, dense.
        neighbours: k, the sample itself included.
        estimator: key of a spectral estimator.
        limit: samples examined, drawn at random; ``None`` for all.
        confidence: of the interval of the mean.
        seed: of the draw.

    Raises:
        DataError: fewer samples than neighbours.
        ConfigError: fewer than 5 neighbours, or no spectral estimator.
    """
    from scipy import stats
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
        z = rows[chosen] - rows[chosen].mean(axis=0)
        values[place] = item.function(spectrum_of_gram(centered_gram(z @ z.T), samples.d, True))
    middle = float(values.mean())
    mean = Estimate(middle, n=count, confidence=confidence, method="mean over samples")
    if count > 1:
        reach = stats.t.ppf(0.5 + confidence / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)
        mean = Estimate(
            middle, middle - reach, middle + reach, count, "", confidence, "mean over samples, t"
        )
    return LocalDimensions(index, values, mean, neighbours, estimator)


def _spectral(key: str) -> Any:
    item = get_estimator(key)
    if item.needs != "spectrum":
        raise ConfigError(f"estimator {key!r} does not read a spectrum; choose e.g. pr_corrected")
    return item


def _axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5, 3.5), layout="constrained")[1]
