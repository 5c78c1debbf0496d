"""How often the intervals cover the truth, on synthetic spectra whose truth is known.

``python -m spikedim.dimension.coverage --repetitions 500 --out docs/coverage.md``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikedim.dimension.arrays import as_samples
from spikedim.dimension.estimators import get_estimator, pca_quantile
from spikedim.dimension.intervals import Resampler, spectral_intervals
from spikedim.dimension.moments import Array
from spikedim.dimension.spectrum import Spectrum
from spikedim.errors import ConfigError
from spikedim.progress import showing, track
from spikedim.results import Estimate, Result, Table
from spikedim.storage import write_text

SHAPES = ("isotropic", "power-law", "spiked")
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class CoverageCell:
    """Coverage at one spectrum and sample size; fractions of the repetitions.

    ``pca_warned`` is how often ``limited by n`` was raised, ``pca_single`` how often the interval
    of the count was one integer, which then covers always or never, whatever is nominal.
    """

    shape: str
    n: int
    d: int
    truth_pr: float
    pr_covered: float
    pr_width: float
    truth_pca: float
    pca_covered: float
    pca_warned: float
    pca_single: float


@dataclass(frozen=True)
class Coverage(Result):
    """Coverage of nominal intervals over a grid of spectra and n/d."""

    cells: tuple[CoverageCell, ...]
    repetitions: int
    confidence: float
    seed: int

    def tables(self) -> list[Table]:
        """One row per spectrum and n/d."""
        columns = (
            "spectrum", "n", "d", "n/d", "true PR", "PR covered %", "PR width %", "true PCA-95",
            "PCA-95 covered %", "limited by n %", "one integer %",
        )  # fmt: skip
        rows = [
            (
                c.shape, c.n, c.d, c.n / c.d, c.truth_pr, 100 * c.pr_covered, 100 * c.pr_width,
                c.truth_pca, 100 * c.pca_covered, 100 * c.pca_warned, 100 * c.pca_single,
            )
            for c in self.cells
        ]  # fmt: skip
        exact = (
            "PCA-95 is judged where it is not limited by n. Its interval is made of whole "
            "components, so it covers more than nominal where sampling moves the count by less "
            "than one component."
        )
        note = (
            f"{self.repetitions} repetitions of Gaussian data per row, nominal "
            f"{100 * self.confidence:g} %, seed {self.seed}"
        )
        return [Table("Coverage of the intervals", columns, rows, (note, exact))]

    def to_markdown(self) -> str:
        """The table as Markdown."""
        table = self.tables()[0]
        lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in table.cells()]
        command = (
            f"Made by `python -m spikedim.dimension.coverage --repetitions {self.repetitions} "
            f"--seed {self.seed}`."
        )
        notes = [text for note in (*table.notes, command) for text in (note, "")]
        return "\n".join([f"# {table.title}", "", *notes, *lines, ""])


def true_eigenvalues(shape: str, d: int) -> Array:
    """Population eigenvalues: all 1; k⁻¹; or 5 spikes of 20 over ones."""
    if shape == "isotropic":
        return np.ones(d)
    if shape == "power-law":
        return 1.0 / np.arange(1, d + 1)
    if shape == "spiked":
        return np.where(np.arange(d) < 5, 20.0, 1.0)
    raise ConfigError(f"shape={shape!r}; expected one of {', '.join(SHAPES)}")


def draw(values: Array, n: int, rng: np.random.Generator) -> Array:
    """Gaussian samples [n, d] with the given population eigenvalues and a mean of 3."""
    return rng.standard_normal((n, len(values))) * np.sqrt(values) + 3.0


def cover(
    shape: str,
    n: int,
    d: int,
    repetitions: int,
    confidence: float = 0.95,
    seed: int = 0,
    estimators: Sequence[str] = ("pr_corrected", "pca95"),
) -> CoverageCell:
    """Count how often the intervals of pr_corrected and pca95 hold the population values.

    An estimator that is left out counts as covered.
    """
    values = true_eigenvalues(shape, d)
    truth = Spectrum(values, n, d, True, float(values.sum()))
    ratio = float(values.sum() ** 2 / (values @ values))
    quantile = pca_quantile(truth)
    count = float(np.ceil(quantile - 1e-9))
    items = [get_estimator(key) for key in estimators]
    absent = Estimate(np.nan)
    rng = np.random.default_rng([seed, n, d, SHAPES.index(shape)])
    hits = np.zeros(5)
    for _ in track(range(repetitions), f"{shape} n={n} d={d}"):
        source = Resampler.of(as_samples(draw(values, n, rng)), center=True)
        spec = source.spectrum()
        found, notes = spectral_intervals(
            source, spec, items, "auto", confidence, None, int(rng.integers(1 << 31))
        )
        low, high = bounds(found.get("pr_corrected", absent))
        inner = found.get("pca95", absent)
        hits += (
            low <= ratio <= high,
            (high - low) / ratio,
            holds(inner, count),
            any(note.startswith("pca95 is limited") for note in notes),
            inner.low is not None and inner.high == inner.low,
        )
    share = (float(h) for h in hits / repetitions)
    return CoverageCell(shape, n, d, ratio, next(share), next(share), count, *share)


def bounds(found: Estimate) -> tuple[float, float]:
    """Interval of an estimate; the whole line where it has none."""
    low = -np.inf if found.low is None else found.low
    high = np.inf if found.high is None else found.high
    return low, high


def holds(found: Estimate, truth: float) -> bool:
    """Whether the interval of ``found`` contains the truth."""
    low, high = bounds(found)
    return bool(low <= truth <= high)


def grid(ratio: float) -> tuple[int, int]:
    """Samples and features of a row: enough samples at the low end, few features at the high."""
    d = 500 if ratio <= 0.1 else 200 if ratio <= 1 else 50
    return round(ratio * d), d


def coverage(
    shapes: Sequence[str] = SHAPES,
    ratios: Sequence[float] = RATIOS,
    repetitions: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Coverage:
    """Coverage over spectra and n/d.

    Raises:
        ConfigError: an unknown shape.
    """
    cells = [
        cover(shape, *grid(ratio), repetitions, confidence, seed)
        for shape in shapes
        for ratio in ratios
    ]
    return Coverage(tuple(cells), repetitions, confidence, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the coverage table as Markdown."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="n/d")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/coverage.md")
    options = parser.parse_args(arguments)
    with showing():
        found = coverage(options.shapes, options.ratios, options.repetitions, seed=options.seed)
    write_text(options.out, found.to_markdown())
    print(found)


if __name__ == "__main__":
    main()
