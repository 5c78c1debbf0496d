"""Everything the search reads from one data set: spectra once, every definition from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy import stats

from spikedim.data import Dataset
from spikedim.data.representations import Represented
from spikedim.design.published.candidates import Curve, Definition, Representation, prepared
from spikedim.design.published.explanation import Measurement, SetSummary, Threshold, published_of
from spikedim.dimension import Spectrum, SpectrumStream, measure, spectrum
from spikedim.progress import Task
from spikedim.results import Estimate

GROUPS = 5
SMALLEST_CLASS = 10
NEIGHBOUR_ROWS = 1000
CONFIDENCE = 0.95
PIXELS, PER_CLASS = "pixels", "pixels per class"


@dataclass(frozen=True)
class Spectra:
    """Spectrum of all samples, and of the samples without each group in turn."""

    whole: Spectrum
    without: tuple[Spectrum, ...]


def search(
    dataset: Dataset,
    summary: SetSummary,
    label: str,
    n: int,
    searched: Sequence[Representation],
    items: Sequence[Definition],
    seed: int,
    bar: Task,
) -> tuple[list[Measurement], list[Threshold]]:
    """Everything about one data set at one sample size."""
    found: list[Measurement] = []
    thresholds: list[Threshold] = []
    part = prepared(dataset, n, seed)
    target = published_of(summary.target)
    for item in searched:
        if item.kind == part.kind:
            smaller = part.limited(item.limit, seed=seed)
            rows = Rows.of(item.build(smaller, seed), len(smaller.train))
            near = _neighbours(rows, seed) if label == "own" else {}
            for centered, spectra in spectra_of(rows, item.centrings, seed).items():
                place = (summary.name, label, item.key, centered)
                read = [_read(place, len(smaller.train), d, spectra, near) for d in items]
                found += [m for m in read if m is not None]
                if target is not None:
                    thresholds += _threshold(place, target.value, spectra)
            if item.key == PIXELS and label == "own" and part.train.labels is not None:
                found += _per_class(summary.name, rows, part.train.labels, items)
        bar.advance(1, f"{summary.name} {item.key}")
    return found, thresholds


@dataclass(frozen=True)
class Rows:
    """Vectors of n samples: dense or sparse rows, and the sample each row belongs to."""

    x: Any
    sample: np.ndarray
    n: int

    @classmethod
    def of(cls, built: Any, n: int) -> Rows:
        """From ``[n, t, d]``, or from a :class:`Represented`."""
        if isinstance(built, Represented):
            sample = np.arange(n) if built.sample is None else built.sample
            return cls(built.x, sample, n)
        return cls(built.reshape(-1, built.shape[-1]), np.repeat(np.arange(n), built.shape[1]), n)

    def of_samples(self, index: np.ndarray) -> Any:
        """Rows of the chosen samples."""
        return self.x[np.isin(self.sample, index)]


def spectra_of(rows: Rows, centrings: Sequence[bool], seed: int) -> dict[bool, Spectra]:
    """Spectra of all samples and of every four fifths of them, by centring."""
    folds = np.array_split(np.random.default_rng(seed).permutation(rows.n), GROUPS)
    total, d = rows.x.shape
    if total <= d or hasattr(rows.x, "tocsr"):
        kept = [np.concatenate(folds[:i] + folds[i + 1 :]) for i in range(GROUPS)]
        return {
            c: Spectra(
                spectrum(rows.x, c), tuple(spectrum(rows.of_samples(k), c) for k in kept)
            )
            for c in centrings
        }  # fmt: skip
    # one pass: the moments of the fifths add up to those of every four of them and of all
    parts = [SpectrumStream().extend([rows.of_samples(fold)]) for fold in folds]
    without = [reduce(SpectrumStream.merge, parts[:i] + parts[i + 1 :]) for i in range(GROUPS)]
    whole = without[0].merge(parts[0])
    return {
        c: Spectra(whole.finalise(c), tuple(part.finalise(c) for part in without))
        for c in centrings
    }


def _neighbours(rows: Rows, seed: int) -> dict[str, Estimate]:
    """Nearest-neighbour dimensions of at most 1,000 vectors; a mean makes no difference."""
    total = rows.x.shape[0]
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(total, min(total, NEIGHBOUR_ROWS), replace=False))
    return measure(rows.x[index], ["two_nn", "mle"], seed=seed).estimates


def _read(
    place: tuple[str, str, str, bool],
    n: int,
    item: Definition,
    spectra: Spectra,
    near: Mapping[str, Estimate],
) -> Measurement | None:
    """One definition on one representation; ``None`` where it is not taken at this size."""
    d = spectra.whole.d
    if item.curve is None:
        known = near.get(item.key) if place[3] else None
        return None if known is None else Measurement(*place, item.key, n, d, known)
    whole = item.curve(spectra.whole)
    protocol = float(np.mean([item.curve(s) for s in spectra.without]))
    low, high = _jackknife(item.smooth or item.curve, spectra)
    if item.counts:
        low, high = float(np.ceil(low - 1e-9)), float(np.ceil(high - 1e-9))
    method = f"jackknife, {GROUPS} groups"
    estimate = Estimate(whole, max(low, 0.0), high, n, "", CONFIDENCE, method)
    return Measurement(*place, item.key, n, d, estimate, protocol, _limited(item, spectra.whole))


def _jackknife(curve: Curve, spectra: Spectra) -> tuple[float, float]:
    draws = np.array([curve(s) for s in spectra.without])
    spread = float(np.sqrt((GROUPS - 1) / GROUPS * ((draws - draws.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, GROUPS - 1)) * spread
    value = curve(spectra.whole)
    return value - reach, value + reach


def _limited(item: Definition, spec: Spectrum) -> bool:
    """A count needs five samples per component, unless all features are resolved."""
    if not item.counts or item.curve is None or spec.n >= 5 * spec.d:
        return False
    return 5 * item.curve(spec) > spec.n


def _threshold(
    place: tuple[str, str, str, bool], count: float, spectra: Spectra
) -> list[Threshold]:
    k = round(count)
    if k > spectra.whole.rank:
        return []

    def share(spec: Spectrum) -> float:
        return 100 * float(spec.shares[:k].sum())

    low, high = _jackknife(share, spectra)
    method = f"jackknife, {GROUPS} groups"
    found = Estimate(
        share(spectra.whole), low, min(high, 100.0), spectra.whole.n, "%", CONFIDENCE, method
    )
    name, label, representation, centered = place
    return [Threshold(label, name, representation, centered, count, found)]


def _per_class(
    name: str, rows: Rows, labels: np.ndarray, items: Sequence[Definition]
) -> list[Measurement]:
    """Mean over the classes of what each class gives, with Student's interval over classes."""
    classes, sizes = np.unique(labels, return_counts=True)
    classes, sizes = classes[sizes >= SMALLEST_CLASS], sizes[sizes >= SMALLEST_CLASS]
    if len(classes) < 2:
        return []
    spectra = [spectrum(rows.x[labels == c]) for c in classes]
    n, found = int(sizes.sum()), []
    factor = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(classes) - 1)) / len(classes) ** 0.5
    for item in items:
        if item.curve is None:
            continue
        values = np.array([item.curve(s) for s in spectra])
        middle, reach = float(values.mean()), factor * float(values.std(ddof=1))
        method = f"mean over {len(classes)} classes of {int(sizes.mean())} samples"
        estimate = Estimate(
            middle, max(middle - reach, 0.0), middle + reach, n, "", CONFIDENCE, method
        )
        limited = any(_limited(item, s) for s in spectra)
        d = spectra[0].d
        found.append(
            Measurement(name, "own", PER_CLASS, True, item.key, n, d, estimate, None, limited)
        )
    return found
