"""Measured coverage of intrinsic dimensions, means over neighbourhoods, and growth limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import get_estimator
from spikedim.dimension.growth import growth_curve
from spikedim.dimension.intervals import interval_for_samples
from spikedim.dimension.intrinsic import CAP
from spikedim.dimension.local import per_neighbourhood
from spikedim.dimension.moments import Array
from spikedim.dimension.populations import (
    MANIFOLDS,
    bounds,
    draw,
    draw_manifold,
    population_value,
    true_eigenvalues,
)
from spikedim.dimension.spectrum import Spectrum
from spikedim.progress import track
from spikedim.results import Result, Table

#: Most repetitions of a row here: each costs many spectra.
_MOST = 200


@dataclass(frozen=True)
class Cases(Result):
    """One table of measured coverage, with what it says.

    Args:
        table: a row per case.
        reading: paragraphs before it.
        repetitions: data sets per row.
    """

    table: Table
    reading: tuple[str, ...]
    repetitions: int

    def tables(self) -> list[Table]:
        """The table."""
        return [self.table]

    def to_markdown(self) -> str:
        """Title, reading and table as Markdown."""
        about = f"{self.repetitions} data sets per row, nominal 95 %."
        lines = [f"## {self.table.title}", "", *self.reading, "", about, ""]
        return "\n".join([*lines, *self.table.to_markdown(), ""])


def neighbours(
    repetitions: int = _MOST,
    seed: int = 0,
    manifolds: Sequence[str] = tuple(MANIFOLDS),
    sizes: Sequence[int] = (200, 1000),
) -> Cases:
    """How often the intervals of two_nn and mle hold their own mean, and the dimension."""
    repetitions = min(repetitions, _MOST)
    rows = []
    for key in ("two_nn", "mle"):
        item = get_estimator(key)
        for name in manifolds:
            for n in sizes:
                rng = np.random.default_rng([seed, n, list(MANIFOLDS).index(name)])
                found = [
                    interval_for_samples(
                        as_samples(draw_manifold(name, n, rng)), item, "auto", 0.95, turn, CAP
                    )
                    for turn in track(range(repetitions), f"{key} {name} n={n}")
                ]
                values = np.array([e.value for e, _ in found])
                ends = np.array([bounds(e) for e, _ in found])
                warned = np.mean([len(notes) > 0 for _, notes in found])
                true = MANIFOLDS[name]
                rows.append(
                    (key, name, n, true, values.mean(), values.std(ddof=1),
                     _held(ends, values.mean()), _held(ends, true), 100 * warned)
                )  # fmt: skip
    columns = (
        "estimator", "manifold", "n", "dimension", "mean value", "s.d.", "covers the mean value %",
        "covers the dimension %", "limited by n %",
    )  # fmt: skip
    reading = (
        "The intervals of `two_nn` and `mle` are the spread of the estimator at n: they are for "
        "its mean over data sets of that size, and claim nothing about the dimension, of which "
        "both are biased, by edges downwards and by curvature upwards. "
        "`covers the dimension` shows what would be wrong with reading them so. "
        "`limited by n` is raised where the value differs beyond sampling error from that of "
        "parts of the samples; where it is not raised, a bias may be left all the same.",
    )
    return Cases(Table("two_nn and mle", columns, rows), reading, repetitions)


def neighbourhoods(
    repetitions: int = 40,
    seed: int = 0,
    cases: Sequence[tuple[str, int, int]] = (
        ("gaussian", 300, 20),
        ("gaussian", 300, 100),
        ("gaussian", 1000, 100),
        ("mixture", 300, 50),
    ),
    limit: int = 300,
) -> Cases:
    """How often the interval of the mean over neighbourhoods holds its mean over data sets."""
    repetitions = min(repetitions, 40)
    rows = []
    for kind, n, k in cases:
        rng = np.random.default_rng([seed, n, k])
        found = [
            per_neighbourhood(_local(kind, n, rng), k, limit=limit, seed=turn).mean
            for turn in track(range(repetitions), f"neighbourhoods {kind} n={n} k={k}")
        ]
        values = np.array([e.value for e in found])
        ends = np.array([bounds(e) for e in found])
        width = (ends[:, 1] - ends[:, 0]).mean()
        rows.append(
            (kind, n, k, limit, values.mean(), values.std(ddof=1), width,
             _held(ends, values.mean()))
        )  # fmt: skip
    columns = (
        "population", "n", "k", "examined", "mean value", "s.d. between data sets", "width",
        "covered %",
    )  # fmt: skip
    reading = (
        "The interval of `per_neighbourhood` is for the mean, over data sets of n samples, of the "
        "mean over neighbourhoods of k; covered is how often it holds that. A jackknife counts "
        "what samples do jointly more than once, so the interval errs on the wide side, the more "
        "the smaller k. Gaussian: power-law spectrum in 20 dimensions. Mixture: five such groups "
        "of different scale, about 11 apart.",
    )
    return Cases(Table("Means over neighbourhoods", columns, rows), reading, repetitions)


def growth(
    repetitions: int = 60,
    seed: int = 0,
    keys: Sequence[str] = ("pca95", "pr", "stable_rank", "entropy_rank"),
    cases: Sequence[tuple[str, int]] = (("gaussian", 320), ("gaussian", 1000), ("sparse", 1000)),
) -> Cases:
    """How often the interval of a growth curve's limit holds the population value."""
    repetitions = min(repetitions, 60)
    values = true_eigenvalues("power-law", 30)
    population = Spectrum(values, 1, len(values), True, float(values.sum()))
    rows = []
    for key in keys:
        true = population_value(f"{key}_real" if key == "pca95" else key, population)
        for law, n in cases:
            rng = np.random.default_rng([seed, n])
            found = [
                growth_curve(draw(values, n, rng, law), key, seed=turn)
                for turn in track(range(repetitions), f"growth {key} {law} n={n}")
            ]
            limits = np.array([g.limit.value for g in found])
            ends = np.array([bounds(g.limit) for g in found])
            last = np.mean([g.values[-1] for g in found])
            widths = np.diff(ends)[np.isfinite(ends[:, 1])]
            rows.append(
                (found[0].estimator, law, n, true, last, limits.mean(), limits.std(ddof=1),
                 100 * widths.mean() / true if len(widths) else np.nan,
                 100 - 100 * len(widths) / len(ends), _held(ends, true))
            )  # fmt: skip
    columns = (
        "estimator", "factors", "n", "population value", "mean at n", "mean limit",
        "s.d. of the limit", "width %", "no upper end %", "covered %",
    )  # fmt: skip
    reading = (
        "The limit n → ∞ of `growth_curve`, power-law spectrum in 30 dimensions. The interval "
        "reaches from the limit of the fit to that of a bias of 1/n alone, each widened by its "
        "sampling error; that the bias lies between the two is assumed, not measured. Where the "
        "fit does not hold at the three largest sizes, or doubling n adds about a quarter or "
        "more, only a lower end is given.",
    )
    return Cases(Table("Limits of growth curves", columns, rows), reading, repetitions)


def _held(ends: Array, value: float) -> float:
    """Percent of the intervals [m, 2] that hold a value."""
    return float(100 * np.mean((ends[:, 0] <= value) & (value <= ends[:, 1])))


def _local(kind: str, n: int, rng: np.random.Generator) -> Array:
    values = true_eigenvalues("power-law", 20)
    x = draw(values, n, rng)
    if kind == "gaussian":
        return x
    group = rng.integers(0, 5, n)
    return np.asarray(x * (1 + group[:, None]) / 2 + 8 * np.eye(5, 20)[group])
