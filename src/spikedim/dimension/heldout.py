"""Intervals of PCA counts from the variance that leading directions hold on other samples.

In the samples that chose them, the k leading directions hold more than the share F(k) of the
population: the sum of the k largest eigenvalues is convex in the matrix. On samples that did not,
they hold less: no k directions hold more than the best ones. For separated eigenvalues both
errors are ±Σ λᵢλⱼ/(λᵢ−λⱼ)/n over i ≤ k < j at leading order, with n the samples that chose; they
cancel in (2·inside + outside)/3 where halves choose for each other. For equal eigenvalues the
outside share has no error. The population crosses q between where these two cross it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from spikedim.dimension.kernels import symmetric_eigenvectors
from spikedim.dimension.moments import Array, Moments, moments
from spikedim.dimension.resampling import Index, Resampler
from spikedim.dimension.spectrum import Spectrum
from spikedim.progress import track


@dataclass(frozen=True)
class HeldOut:
    """Shares of the variance in the k leading directions, k = 0…min(n, d).

    Args:
        inside: of the samples themselves.
        outside: of each half in the directions of the other; constant from where they end.
        middle: (2·inside + outside)/3, and ``inside`` where there are no directions.
        error: standard error of a share, by the delta method for a ratio of sums.
        n: samples.
        splits: into halves, averaged.
    """

    inside: Array
    outside: Array
    middle: Array
    error: Array
    n: int
    splits: int

    def interval(self, q: float, confidence: float) -> tuple[float, float]:
        """Ends for the real-valued count of the population; infinite where q is not reached.

        Student's t has (n − 1)/4 degrees, as the variance of squares is known no better.
        """
        reach = float(stats.t.ppf(0.5 + confidence / 2, (self.n - 1) / 4)) * self.error
        return crossing(self.middle + reach, q), crossing(self.outside - reach, q)


def crossing(shares: Array, q: float) -> float:
    """Real-valued k at which the running maximum of shares [k + 1] reaches q."""
    shares = np.maximum.accumulate(shares)
    k = int(np.searchsorted(shares, q))
    if k == len(shares):
        return np.inf
    return k - float((shares[k] - q) / (shares[k] - shares[k - 1])) if k else 0.0


def held_out(source: Resampler, spec: Spectrum, splits: int, rng: np.random.Generator) -> HeldOut:
    """Inside and outside shares over random splits into halves."""
    n, side = spec.n, min(spec.n, spec.d)
    outside, variance = np.zeros(side), np.zeros(side)
    for _ in track(range(splits), "intervals: held-out halves"):
        order = rng.permutation(n)
        first, second = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
        sums, squares, cross = np.zeros(side), np.zeros(side), np.zeros(side)
        total = total2 = 0.0
        for chosen, others in ((first, second), (second, first)):
            for scores, norms in _scores(source, chosen, others):
                held = _running(scores, side)
                sums += held.sum(axis=0)
                squares += np.einsum("ij,ij->j", held, held)
                cross += norms @ held
                total += float(norms.sum())
                total2 += float(norms @ norms)
        if total == 0:
            continue
        share = sums / total
        outside += share / splits
        variance += (squares - 2 * share * cross + share**2 * total2) / total**2 / splits
    known = side if isinstance(source.whole, Moments) else n // 2 - 1
    inside = _running(spec.shares[None], side)[0]
    middle = np.where(np.arange(side) < known, (2 * inside + outside) / 3, inside)
    error = np.sqrt(np.maximum(variance, 0.0))
    inside, outside, middle, error = (
        np.concatenate([[0.0], a]) for a in (inside, outside, middle, error)
    )
    return HeldOut(inside, outside, middle, error, n, splits)


def _running(shares: Array, side: int) -> Array:
    """Running sums of rows, constant from their end on to ``side``; 0 for a row without entries."""
    width = shares.shape[1]
    sums = np.zeros((len(shares), side))
    np.cumsum(shares, axis=1, out=sums[:, :width])
    if width:
        sums[:, width:] = sums[:, width - 1 : width]
    return sums


def _scores(source: Resampler, chosen: Index, others: Index) -> Iterator[tuple[Array, Array]]:
    """Squared coordinates of ``others`` along the directions of ``chosen``, and squared norms.

    Both about the mean of ``chosen``; blocks [rows, directions] and [rows].
    """
    whole, samples = source.whole, source.samples
    if isinstance(whole, Moments):
        part = moments(samples.subset(chosen), shift=whole.shift)
        mean = part.mean if source.center else np.zeros(samples.d)
        _, vectors = symmetric_eigenvectors(part.about(mean).scatter)
        rest = samples.subset(others)
        for start, stop in rest.row_blocks():
            z = rest.rows(start, stop) - mean
            yield (z @ vectors[:, ::-1]) ** 2, np.einsum("ij,ij->i", z, z)
        return
    own, between = whole[np.ix_(chosen, chosen)], whole[np.ix_(others, chosen)]
    norms = np.diagonal(whole)[others]
    if source.center:
        row, mean2 = own.mean(axis=0), own.mean()
        along = between.mean(axis=1)
        norms = norms - 2 * along + mean2
        own = own - row[None, :] - row[:, None] + mean2
        between = between - row[None, :] - along[:, None] + mean2
    values, vectors = symmetric_eigenvectors(own)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    yield (between @ vectors) ** 2 / values, np.maximum(norms, 0.0)
