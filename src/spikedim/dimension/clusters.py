"""Samples that come in clusters: the tokens of one image, the timesteps of one recording.

Rows of one cluster depend on each other, so they are one observation: intervals come from a
jackknife that leaves out groups of whole clusters. Values are those of all rows; pr_corrected takes
out the bias of so many independent rows, that of the few clusters stays and is in the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import DEFAULT, Estimator, get_estimator
from spikedim.dimension.intervals import FEWEST, bracket, curve_of
from spikedim.dimension.measure import DimensionReport
from spikedim.dimension.moments import Moments, moments
from spikedim.dimension.resampling import Resampler, evaluate, jackknifed
from spikedim.dimension.spectrum import Spectrum, check_memory, spectrum_of_moments
from spikedim.errors import ConfigError, DataError
from spikedim.progress import track
from spikedim.results import Estimate

GROUPS = 20


class ClusterStream:
    """Effective dimension of clustered samples that arrive in blocks, in one pass.

    Memory is 8·d² bytes per group of clusters, whatever the number of samples. Give clusters in
    random order.

    Args:
        clusters: how many will come, in total.
        groups: groups of clusters the jackknife leaves out in turn.
        memory_limit: bytes one decomposition may use; half of the free memory by default.

    Raises:
        ConfigError: no clusters, or fewer than two groups.
    """

    def __init__(
        self, clusters: int, groups: int = GROUPS, memory_limit: float | None = None
    ) -> None:
        if clusters < 1 or groups < 2:
            raise ConfigError(f"clusters={clusters}, groups={groups}; expected at least 1 and 2")
        self.clusters, self.memory_limit = clusters, memory_limit
        self.seen = 0
        self._parts: list[Moments | None] = [None] * min(groups, clusters)

    def update(self, block: Any) -> None:
        """Add whole clusters, an array or tensor ``[clusters, rows, d]``.

        Raises:
            DataError: more clusters than announced, another d, or unusable values.
            BudgetError: the d × d matrix does not fit ``memory_limit``.
        """
        if self.seen + len(block) > self.clusters:
            raise DataError(f"more clusters than the {self.clusters} that were announced")
        group = np.arange(self.seen, self.seen + len(block)) * len(self._parts) // self.clusters
        known = next((part for part in self._parts if part is not None), None)
        for place in np.unique(group):
            rows = block[np.flatnonzero(group == place)]
            samples = as_samples(rows.reshape(-1, rows.shape[-1]))
            if known is None:
                check_memory(samples.d, self.memory_limit)
            elif samples.d != len(known.shift):
                raise DataError(f"block has {samples.d} features; expected {len(known.shift)}")
            sums = moments(samples, None if known is None else known.shift)
            before = self._parts[place]
            self._parts[place] = sums if before is None else before.plus(sums)
            known = known or sums
        self.seen += len(block)

    def report(
        self, estimators: Sequence[str], center: bool = True, confidence: float = 0.95
    ) -> DimensionReport:
        """Estimates with jackknife intervals from everything seen.

        Raises:
            DataError: fewer than two rows (one when uncentred).
            ConfigError: an estimator that does not read a spectrum.
        """
        items = spectral(estimators)
        parts = [part for part in self._parts if part is not None]
        least = 2 if center else 1
        if sum(part.n for part in parts) < least:
            raise DataError(f"{self.seen} clusters seen; at least {least} samples are needed")
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.plus(part)
        left = [
            spectrum_of_moments(whole.minus(part), center)
            for part in parts
            if whole.n - part.n >= least
        ]
        spec = spectrum_of_moments(whole, center)
        return report_of(spec, left, items, self.seen, center, confidence)


def measure_clustered(
    x: Any,
    cluster: Any,
    estimators: Sequence[str] | None = None,
    center: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    groups: int = GROUPS,
) -> DimensionReport:
    """Measure the effective dimension of samples that come in clusters.

    Args:
        x: samples ``[n, d...]``: array, memory map, torch tensor or sparse matrix.
        cluster: cluster of every sample, [n]; any labels.
        estimators: keys of spectral estimators; all built-in ones by default.
        center: subtract the mean.
        confidence: nominal coverage of the intervals.
        seed: of the assignment of clusters to groups.
        groups: groups of clusters the jackknife leaves out in turn.

    Raises:
        DataError: unusable data, or not one cluster per sample.
        ConfigError: an estimator that does not read a spectrum, or fewer than two groups.
    """
    keys = estimators if estimators is not None else default_spectral()
    items = spectral(keys)
    samples = as_samples(x, 2 if center else 1)
    cluster = np.asarray(cluster)
    if cluster.shape != (samples.n,):
        raise DataError(f"cluster has shape {cluster.shape}; expected ({samples.n},)")
    if groups < 2:
        raise ConfigError(f"groups={groups}; expected at least 2")
    names, place = np.unique(cluster, return_inverse=True)
    group = np.random.default_rng(seed).permutation(len(names)) * min(groups, len(names))
    group = (group // len(names))[place]
    source = Resampler.of(samples, center)
    left = []
    for part in track(range(int(group.max()) + 1), "intervals: jackknife"):
        chosen, others = np.flatnonzero(group == part), np.flatnonzero(group != part)
        if len(others) < (2 if center else 1):
            continue
        left.append(source.without(chosen))
    return report_of(source.spectrum(), left, items, len(names), center, confidence, seed)


def default_spectral() -> list[str]:
    """Keys of the built-in estimators that read a spectrum."""
    return [key for key in DEFAULT if get_estimator(key).needs == "spectrum"]


def spectral(keys: Sequence[str]) -> list[Estimator]:
    """The estimators of these keys.

    Raises:
        ConfigError: unknown, or reads the samples (neighbours within a cluster are not
            independent, so a nearest-neighbour dimension would measure the cluster).
    """
    items = [get_estimator(key) for key in keys]
    for item in items:
        if item.needs != "spectrum":
            raise ConfigError(
                f"estimator {item.key!r} needs independent samples; leave it out, or give one "
                "vector per sample (tokens and time other than 'samples')"
            )
    return items


def report_of(
    whole: Spectrum,
    left: Sequence[Spectrum],
    items: Sequence[Estimator],
    clusters: int,
    center: bool,
    confidence: float,
    seed: int = 0,
) -> DimensionReport:
    """Estimates from the whole and from spectra that each leave out one group of clusters."""
    notes: list[str] = []
    silent = whole.total_variance == 0
    if silent:
        notes.append("no variance: all samples are equal, so every dimension is 0")
    elif clusters < FEWEST:
        notes.append(f"no intervals from {clusters} clusters; at least {FEWEST} are needed")
    values = {item.key: float(item.function(whole)) for item in items}
    if silent or clusters < FEWEST:
        found = {key: Estimate(v, n=clusters, method="no interval") for key, v in values.items()}
    else:
        curves = [curve_of(item) for item in items]
        method = f"jackknife over {len(left)} groups of whole clusters"
        with np.errstate(invalid="ignore"):
            draws = np.array([evaluate(curves, part) for part in left])
            changes = jackknifed(evaluate(curves, whole), draws, method)
        found, limits = bracket(changes, items, values, whole, clusters, "clusters", confidence)
        notes += limits
    return DimensionReport(found, whole, tuple(notes), whole.n, whole.d, center, seed)
