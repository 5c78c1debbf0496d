"""T*: how many timesteps a network needs, from its accuracy at several T. Pure NumPy.

T* is the smallest T whose test accuracy is within a stated tolerance of the plateau.

*Plateau.* The largest of several noisy accuracies is biased upward: the luckiest T wins. More
timesteps do not hurt in expectation, so accuracy is fitted as a non-decreasing function of T
(isotonic regression, equal weights because all T share one test set) and the plateau is the fitted
value at the largest T. The fit averages neighbours only where a larger T scored lower, so it never
lies below the accuracy at the largest T, and part of the upward bias stays: for a curve that is
flat at 95 %, four T and 360 test samples, +0.5 points, where the largest of the four is +1.2 and
the accuracy at the largest T is unbiased. It falls with the number of samples (+0.2 points for
2,000) and is below 0.2 points for curves that still rise. A real fall at large T is averaged too,
and then T* is the T from which more steps buy nothing.

*Interval.* The test samples are resampled with replacement, all T together (paired), and fit,
plateau and T* are recomputed. This covers the noise of the test set, not that of training seeds.
In simulation (360 and 2,000 samples, flat and rising curves) the 95 % interval covers the true T*
in at least 95 % of test sets and the true accuracy at the largest T in 88 to 95 %, least for the
flat curve. Subtracting the bootstrap's estimate of the bias removes a third of it and improves
neither, so it is not done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedim.errors import ConfigError, DataError
from spikedim.results import SLACK, Estimate, Result, Table, number, points_of
from spikedim.theory.statistics import share, wilson_interval

_CHUNK = 1 << 24
_FALL = 5.0  # points that a fall of the accuracy is told from


@dataclass(frozen=True)
class TStar(Result):
    """The smallest sufficient number of timesteps, with what it was derived from.

    Attributes:
        estimate: T* in timesteps; ``high`` is ``None`` where the grid ends before the plateau is
            established (right-censored). ``low`` reaches down into the gap below the first
            sufficient T of the grid, because the values in between were not tried.
        plateau: fitted accuracy at the largest T, in percent, with its bootstrap interval; that of
            Wilson where every resample is alike.
        tolerance: accepted loss against the plateau, in percentage points.
        timesteps: the grid of T, ascending.
        accuracy: accuracy at each T in percent, Wilson intervals.
        fitted: isotonic accuracy at each T, in percent.
        probability: bootstrap frequency of T* = T, for each T of the grid.
        censored: whether a larger T might still be needed.
        notes: what limits the answer.
    """

    estimate: Estimate
    plateau: Estimate
    tolerance: float
    timesteps: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    fitted: tuple[float, ...]
    probability: tuple[float, ...]
    censored: bool
    notes: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """Accuracy, fit and probability by T."""
        rows = list(zip(self.timesteps, self.accuracy, self.fitted, self.probability, strict=True))
        return [
            Table(
                f"T* = {self.estimate} (within {points_of(self.tolerance)})",
                ("T", "accuracy", "isotonic fit", "P(T* = T)"),
                rows,
                self.notes,
            )
        ]


def t_star(
    correct: Mapping[int, np.ndarray],
    tolerance: float = 1.0,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    largest: int | None = None,
) -> TStar:
    """Smallest T whose accuracy is within ``tolerance`` of the plateau.

    ``T* = min{T : â(T) >= â(T_max) − tolerance}`` with â the isotonic fit of accuracy in T.

    Args:
        correct: T -> 0/1 per test sample, the same samples in the same order for every T.
        tolerance: accepted loss in percentage points, >= 0.
        confidence: nominal coverage of the intervals.
        resamples: number of paired bootstrap resamples.
        seed: seed of the resampling.
        largest: T that the data have at most, if so, for the notes.

    Raises:
        ConfigError: empty grid, T < 1, negative tolerance or fewer than 100 resamples.
        DataError: arrays of different lengths, empty, or with values other than 0 and 1.
    """
    check_tolerance(tolerance)
    if resamples < 100:
        raise ConfigError(f"resamples={resamples} is too few for an interval; use 2000")
    steps, table = _correct_table(correct)
    n = table.shape[1]
    rng = np.random.default_rng(seed)
    observed = 100 * table.mean(axis=1)
    fitted = isotonic(observed[None])[0]
    first = int(first_sufficient(fitted[None], tolerance)[0])

    replicates = isotonic(_bootstrap(table, resamples, rng))
    firsts = first_sufficient(replicates, tolerance)
    tail = (1 - confidence) / 2
    low_index = min(first, int(np.quantile(firsts, tail, method="inverted_cdf")))
    high_index = max(first, int(np.quantile(firsts, 1 - tail, method="inverted_cdf")))
    last = len(steps) - 1
    censored = high_index == last
    low = 1 if low_index == 0 else steps[low_index - 1] + 1
    method = f"paired bootstrap, {resamples} resamples"
    plateau_method = method
    if np.ptp(replicates[:, -1]) > 0:
        bottom, top = map(float, np.quantile(replicates[:, -1], (tail, 1 - tail)))
    else:  # resampling answers that are all alike shows no spread, however few there are
        plateau_method = "Wilson"
        hits = round(n * fitted[-1] / 100)
        bottom, top = (100 * bound for bound in wilson_interval(hits, n, confidence))
    return TStar(
        estimate=Estimate(
            float(steps[first]),
            float(low),
            None if censored else float(steps[high_index]),
            n,
            "timesteps",
            confidence,
            method,
        ),
        plateau=Estimate(float(fitted[-1]), bottom, top, n, "%", confidence, plateau_method),
        tolerance=float(tolerance),
        timesteps=steps,
        accuracy=tuple(accuracy_estimate(row, confidence) for row in table),
        fitted=tuple(map(float, fitted)),
        probability=tuple(map(float, np.bincount(firsts, minlength=len(steps)) / resamples)),
        censored=censored,
        notes=(
            *_falls(steps, table),
            *_notes(steps, low, first, high_index, n, tolerance, largest),
        ),
    )


def above_chance(accuracies: Sequence[Estimate], chance: float) -> bool:
    """Whether one of several accuracies is above ``chance``, in percent, beyond test-set noise.

    By Wilson's interval over test samples (also of a mean over seeds, which share them), at 95 %
    for all of them together (Bonferroni). A plateau cannot be judged so: of several T that are all
    at chance its fit follows the luckiest.
    """
    confidence = 1 - 0.05 / len(accuracies)
    return any(
        a.value > chance
        if a.n is None
        else 100 * wilson_interval(a.value / 100 * a.n, a.n, confidence)[0] > chance
        for a in accuracies
    )


def accuracy_estimate(correct: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Accuracy in percent of a 0/1 array, with its Wilson interval."""
    hits, n = int(np.sum(correct)), len(correct)
    return share(hits, n, confidence)


def isotonic(values: np.ndarray) -> np.ndarray:
    """Least-squares non-decreasing fit of each row, equal weights.

    ``fit_i = max_{j<=i} min_{l>=i} mean(values_j..values_l)``, the max–min form of the
    pool-adjacent-violators solution (Barlow et al. 1972).

    Args:
        values: [rows, k].
    """
    k = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    fit = np.empty(values.shape, dtype=np.float64)
    for i in range(k):
        best = np.full(len(values), -np.inf)
        for j in range(i + 1):
            ends = np.arange(i, k)
            means = (sums[:, ends + 1] - sums[:, [j]]) / (ends + 1 - j)
            best = np.maximum(best, means.min(axis=1))
        fit[:, i] = best
    return fit


def first_sufficient(fitted: np.ndarray, tolerance: float) -> np.ndarray:
    """Place of the first value of each row within ``tolerance`` points of the last.

    Args:
        fitted: non-decreasing percentages [rows, k], of :func:`isotonic`.
        tolerance: percentage points.
    """
    sufficient = fitted >= fitted[:, [-1]] - tolerance - SLACK
    return np.argmax(sufficient, axis=1)


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that is no number of percentage points.

    Raises:
        ConfigError: negative, NaN or infinite.
    """
    if not np.isfinite(tolerance) or tolerance < 0:
        raise ConfigError(f"tolerance={tolerance} must be 0 or more percentage points, e.g. 1.0")


def _correct_table(correct: Mapping[int, np.ndarray]) -> tuple[tuple[int, ...], np.ndarray]:
    if not correct:
        raise ConfigError("no timesteps given: T* needs the accuracy of at least one T")
    for step in correct:
        if int(step) != step or step < 1:
            raise ConfigError(f"T={step} is not a number of timesteps; use whole numbers from 1")
    steps = tuple(sorted(int(step) for step in correct))
    rows: list[np.ndarray] = []
    for step in steps:
        row: np.ndarray[Any, Any] = np.asarray(correct[step])
        if row.ndim != 1 or len(row) == 0:
            raise DataError(f"correct[{step}] has shape {row.shape}; expected one 0/1 per sample")
        if rows and len(row) != len(rows[0]):
            raise DataError(
                f"correct[{step}] has {len(row)} samples and correct[{steps[0]}] {len(rows[0])}; "
                "every T must be tested on the same samples"
            )
        if not np.isin(row, (0, 1)).all():
            raise DataError(f"correct[{step}] has values other than 0 and 1")
        rows.append(row.astype(np.float64))
    return steps, np.stack(rows)


def _bootstrap(table: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Accuracy in percent [resamples, k] of resampled test sets.

    Samples with the same right/wrong pattern over T are interchangeable, so pattern counts are
    drawn instead of samples: the same distribution at a cost independent of the test-set size.
    """
    n = table.shape[1]
    patterns, counts = np.unique(table, axis=1, return_counts=True)
    chunk = max(1, _CHUNK // patterns.shape[1])
    parts = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        parts.append(rng.multinomial(n, counts / n, size=size) @ patterns.T)
    return 100 * np.concatenate(parts) / n


def _falls(steps: tuple[int, ...], table: np.ndarray) -> tuple[str, ...]:
    """The largest fall of the accuracy in T, if it is large and not noise of the test set."""
    accuracy = 100 * table.mean(axis=1)
    best = np.maximum.accumulate(accuracy)
    later = int(np.argmax(best - accuracy))
    earlier = int(np.argmax(accuracy[: later + 1]))
    lost = 100 * (table[earlier] - table[later])
    if lost.mean() <= max(_FALL, 4 * lost.std() / math.sqrt(len(lost))):
        return ()
    return (
        f"Accuracy falls from {number(accuracy[earlier], 3)} % at T={steps[earlier]} to "
        f"{number(accuracy[later], 3)} % at T={steps[later]}, which is not noise of the test set: "
        "that training may have failed, and lowers the plateau; repeat it longer or with another "
        "seed.",
    )


def _notes(
    steps: tuple[int, ...],
    low: int,
    first: int,
    high_index: int,
    n: int,
    tolerance: float,
    largest: int | None,
) -> tuple[str, ...]:
    notes = []
    last = len(steps) - 1
    at_end = largest is not None and steps[-1] >= largest
    more = f"the data have no larger T than {largest}" if at_end else "test larger T"
    if len(steps) == 1:
        notes.append(f"Only T={steps[0]} was tested, so it is its own plateau: test more T.")
    elif first == last:
        notes.append(
            f"Accuracy still rises at T={steps[-1]}, the largest tested: no plateau was seen, and "
            f"T* is {low} or more; {more}."
        )
    elif high_index == last:
        notes.append(
            f"The interval reaches T={steps[-1]}, the largest tested: a larger T* is not excluded; "
            f"{more if at_end else 'test larger T or more samples'}."
        )
    if first == 0 and steps[0] > 1:
        notes.append(f"T={steps[0]} is the smallest tested and suffices: T* may be smaller.")
    if first > 0 and steps[first] - steps[first - 1] > 1:
        notes.append(f"T between {steps[first - 1]} and {steps[first]} were not tested.")
    if 100 / n > tolerance:
        notes.append(
            f"One of the {n} test samples weighs {number(100 / n)} points, more than the "
            f"tolerance of {number(tolerance)}: test more samples."
        )
    return tuple(notes)
