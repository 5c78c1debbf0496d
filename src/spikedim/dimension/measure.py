"""One call that measures every effective dimension of a data set, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spikedim.dimension.arrays import Samples, as_samples
from spikedim.dimension.estimators import DEFAULT, Estimator, get_estimator, pca_count, pca_key
from spikedim.dimension.intervals import (
    FEWEST,
    INTERVALS,
    interval_for_samples,
    spectral_intervals,
)
from spikedim.dimension.intrinsic import TIES_FROM, sample_cap, tied_share
from spikedim.dimension.resampling import Resampler
from spikedim.dimension.spectrum import Spectrum, check_memory
from spikedim.errors import ConfigError
from spikedim.results import Estimate, Result, Table, number

_NEAREST = ("two_nn", "mle")
_TIED = 0.1


@dataclass(frozen=True)
class DimensionReport(Result):
    """Effective dimensions of one data set or representation.

    Args:
        estimates: estimator key → value with its interval.
        spectrum: the eigenvalues the spectral estimates were read from.
        warnings: what limits the numbers, e.g. too few samples for a count.
        n, d: samples and features.
        centered: the mean was subtracted.
        seed: of every random draw.
    """

    estimates: dict[str, Estimate]
    spectrum: Spectrum
    warnings: tuple[str, ...]
    n: int
    d: int
    centered: bool
    seed: int = 0

    def __getitem__(self, key: str) -> Estimate:
        """One estimate.

        Raises:
            ConfigError: it was not measured.
        """
        if key not in self.estimates:
            raise ConfigError(f"{key!r} was not measured; choose from {', '.join(self.estimates)}")
        return self.estimates[key]

    def tables(self) -> list[Table]:
        """Every estimate with its interval, sample size and method."""
        about = "centred" if self.centered else "uncentred"
        rows = [
            (key, e.value, _bounds(e), e.n, e.method, get_estimator(key).summary)
            for key, e in self.estimates.items()
        ]
        title = f"Effective dimension of {self.n:,} samples x {self.d:,} features ({about})"
        columns = ("estimator", "value", "interval", "n", "method", "definition")
        return [Table(title, columns, rows, self.warnings)]

    def plot(self, ax: Any = None) -> Any:
        """Scree plot with every spectral estimate marked; returns the matplotlib axes."""
        ax = self.spectrum.plot(ax)
        colours = ("#b8321f", "#d98c14", "#3d8b40", "#7a4fa3", "#17808a", "#8a5a2b")
        spectral = [k for k in self.estimates if get_estimator(k).needs == "spectrum"]
        for place, key in enumerate(spectral):
            mark = self.estimates[key]
            if not mark.value > 0:
                continue
            colour = colours[place % len(colours)]
            ax.axvline(mark.value, color=colour, lw=1, ls="--", label=f"{key} {mark}")
            if mark.low is not None and mark.high is not None:
                ax.axvspan(max(mark.low, 0.5), mark.high, color=colour, alpha=0.12, lw=0)
        ax.set_title(f"n={self.n:,}, d={self.d:,}", loc="left", fontsize=9)
        if spectral:
            ax.legend(fontsize=7, frameon=False)
        return ax


def measure(
    x: Any,
    estimators: Sequence[str] | None = None,
    center: bool = True,
    quantile: float = 0.95,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    interval: str = "auto",
    resamples: int | None = None,
    memory_limit: float | None = None,
) -> DimensionReport:
    """Measure the effective dimension of samples by several estimators.

    Args:
        x: samples ``[n, d...]``: array, memory map, torch tensor, torch ``Dataset`` of (x, y) or x,
            or sparse matrix.
        estimators: keys of :func:`~spikedim.dimension.estimators.list_estimators`; all built-in
            ones by default, with ``pcaQQ`` at ``quantile``.
        center: subtract the mean (published protocol) or not.
        quantile: share of the variance the default PCA count reaches.
        confidence: nominal coverage of the intervals.
        seed: of the subsamples.
        interval: ``"auto"`` (disjoint halves; variance held out for PCA counts, the U-statistic
            variance for pr and pr_corrected), ``"halves"``, ``"subsample"``, ``"bootstrap"``,
            ``"jackknife"`` or ``"none"``. Values are those of the samples. Intervals of spectral
            estimators are for the population, bias included; see
            :mod:`~spikedim.dimension.intervals`. Those of estimators that read the samples
            (two_nn, mle) are the spread of the estimator at this n, its bias not included: they
            need not hold the dimension of the population, see docs/coverage.md.
        resamples: how many resamples an interval uses; chosen by size when ``None``.
        memory_limit: bytes the decomposition may use; half of the available memory by default.

    Raises:
        DataError: unusable data.
        ConfigError: unknown estimator or interval, or a fraction outside (0, 1).
        BudgetError: the spectrum does not fit ``memory_limit``.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((500, 20))
        >>> report = measure(x, estimators=["pca95", "pr"])
        >>> report.estimates["pca95"].value
        19.0
    """
    for name, value in (("quantile", quantile), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value}; expected a fraction between 0 and 1")
    if interval not in INTERVALS:
        raise ConfigError(f"interval={interval!r}; expected one of {', '.join(INTERVALS)}")
    samples = as_samples(x, 2 if center else 1)
    keys = list(estimators) if estimators is not None else _defaults(quantile)
    chosen = {key: get_estimator(key) for key in keys}
    check_memory(min(samples.n, samples.d), memory_limit)
    source = Resampler.of(samples, center)
    spec = source.spectrum()
    notes: list[str] = []
    if samples.n < FEWEST and interval != "none":
        # Of fewer, [1, d] of pr is the only one there is, and it says nothing.
        count = "1 sample" if samples.n == 1 else f"{samples.n} samples"
        notes.append(f"no intervals from {count}; at least {FEWEST} are needed")
        interval = "none"
    spectral = [e for e in chosen.values() if e.needs == "spectrum"]
    found, limits = spectral_intervals(
        source, spec, spectral, interval, confidence, resamples, seed
    )
    notes += limits
    direct = [e for e in chosen.values() if e.needs == "samples"]
    cap = sample_cap(samples.d)
    for item in direct:
        found[item.key], limits = interval_for_samples(
            samples, item, interval, confidence, seed, cap
        )
        if samples.n == 1 and found[item.key].value == 0:
            # 0 is the dimension of equal samples: one alone has no neighbour.
            found[item.key] = replace(found[item.key], value=math.nan)
        notes += limits
    notes += _notes(samples, spec, direct, seed)
    ordered = {key: found[key] for key in keys}
    return DimensionReport(ordered, spec, tuple(notes), samples.n, spec.d, center, seed)


def _defaults(quantile: float) -> list[str]:
    return [pca_key(quantile) if key == "pca95" else key for key in DEFAULT]


def _notes(samples: Samples, spec: Spectrum, direct: list[Estimator], seed: int) -> list[str]:
    notes = []
    if spec.total_variance == 0:
        notes.append("no variance: all samples are equal, so every dimension is 0")
    if direct and samples.n > sample_cap(samples.d):
        names = " and ".join(e.key for e in direct)
        notes.append(
            f"{names} use {sample_cap(samples.d):,} of {samples.n:,} samples, drawn at random"
        )
    if neighbour := [e.key for e in direct if e.key in _NEAREST]:
        some = np.random.default_rng(seed).permutation(samples.n)[:TIES_FROM]
        share = tied_share(samples.take(some))
        if share > _TIED:
            notes.append(
                f"{' and '.join(neighbour)} are for points of a continuum: the two nearest of "
                f"{100 * share:.0f} % of the samples are equally far, as on grids and among counts"
            )
    return notes


def _bounds(estimate: Estimate) -> str:
    if estimate.low is None:
        return "–"
    if estimate.high is None:
        return f"{number(estimate.low)} or more"
    text = str(Estimate(np.nan, estimate.low, estimate.high))
    return text.removeprefix("n/a ")


def published_protocol(
    x: Any,
    quantile: float = 0.95,
    *,
    repeats: int = 5,
    fraction: float = 0.8,
    seed: int = 0,
) -> Estimate:
    """d_eff as published: mean PCA count over random subsamples, ± their standard deviation.

    Flatten, centre, smallest k with a cumulative variance of at least ``quantile``; mean over 5
    random 80 % subsamples (claims DEFF-CIFAR10, DEFF-CIFAR100, DEFF-IMAGENET). The ± is the
    spread between overlapping subsamples, about half the sampling error of the data set;
    ``measure(..., interval="subsample")`` scales it.

    Args:
        x: samples ``[n, d...]``.
        quantile: share of the variance.
        repeats: number of subsamples.
        fraction: share of the samples in each.
        seed: of the subsamples.

    Raises:
        DataError: unusable data, or fewer than two samples in a subsample.
        ConfigError: a fraction outside (0, 1], or fewer than two repeats.
    """
    for name, value in (("quantile", quantile), ("fraction", fraction)):
        if not 0 < value <= 1:
            raise ConfigError(f"{name}={value}; expected a fraction in (0, 1]")
    if repeats < 2:
        raise ConfigError(f"repeats={repeats}; expected at least 2")
    samples = as_samples(x, 2)
    kept = max(round(fraction * samples.n), 1)
    source = Resampler.of(samples, center=True)
    rng = np.random.default_rng(seed)
    counts = [
        pca_count(source.subset(np.sort(rng.choice(samples.n, kept, replace=False))), quantile)
        for _ in range(repeats)
    ]
    mean, spread = float(np.mean(counts)), float(np.std(counts, ddof=1))
    method = f"mean ± s.d. of {repeats} subsamples of {100 * fraction:g} %"
    return Estimate(mean, mean - spread, mean + spread, kept, "", 0.68, method)
