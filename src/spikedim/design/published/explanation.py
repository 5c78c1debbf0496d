"""Result of the search for what the published effective dimensions measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from spikedim.provenance import Provenance
from spikedim.results import Estimate, Result, Table, number
from spikedim.storage import write_text
from spikedim.theory import PUBLISHED_D_EFF

SHOWN = 5


@dataclass(frozen=True)
class Published:
    """A published effective dimension: value ± half-width, and its place in the order."""

    target: str
    value: float
    half_width: float
    claim: str
    rank: int | None = None

    @property
    def text(self) -> str:
        """As printed, e.g. ``47 ± 3``."""
        return f"{number(self.value)} ± {number(self.half_width)}"


def _stated(target: str, rank: int | None = None) -> Published:
    stated = PUBLISHED_D_EFF[target]
    assert stated.low is not None
    claim = f"DEFF-{target.upper()}"
    return Published(target, float(stated.value), float(stated.value - stated.low), claim, rank)


PUBLISHED = (
    _stated("cifar10", 0),
    _stated("cifar100", 1),
    _stated("imagenet", 2),
    _stated("text"),
)


def published_of(target: str | None) -> Published | None:
    """The published value of a target, ``None`` without one."""
    return next((p for p in PUBLISHED if p.target == target), None)


@dataclass(frozen=True)
class SetSummary:
    """One data set of the search: samples used, what it is, and which value it stands for."""

    name: str
    target: str | None
    n: int
    source: str
    fingerprint: str


@dataclass(frozen=True)
class Measurement:
    """One definition read on one representation of one data set.

    Args:
        size: ``"matched"`` (every set cut to the smallest one) or ``"own"`` (all samples).
        estimate: value on all samples used, with its jackknife interval.
        protocol: mean over the 80 % subsamples, as the published protocol reports; ``None``
            where subsamples are not taken.
        limited: too few samples for the count (below 5 per component).
    """

    dataset: str
    size: str
    representation: str
    centered: bool
    definition: str
    n: int
    d: int
    estimate: Estimate
    protocol: float | None = None
    limited: bool = False


@dataclass(frozen=True)
class Fit:
    """One definition on one representation against all three published values at once.

    Args:
        error: largest |value/published − 1| over the sets.
        ordered: the values rise in the published order.
        surely: so do they with intervals that do not overlap.
        reproduces: every interval overlaps the published value ± its half-width.
        limited: a count among them has too few samples.
    """

    size: str
    datasets: tuple[str, ...]
    representation: str
    centered: bool
    definition: str
    values: tuple[Estimate, ...]
    published: tuple[float, ...]
    error: float
    ordered: bool
    surely: bool
    reproduces: bool
    limited: bool


@dataclass(frozen=True)
class OrderCount:
    """Of all definitions on one representation, how many keep the published order."""

    size: str
    datasets: tuple[str, ...]
    representation: str
    centered: bool
    definitions: int
    ordered: int
    surely: int


@dataclass(frozen=True)
class Threshold:
    """Share of the variance (percent) at which the published count would be read."""

    size: str
    dataset: str
    representation: str
    centered: bool
    published: float
    share: Estimate


@dataclass(frozen=True)
class Explanation(Result):
    """What the published effective dimensions may have measured, and how near anything comes.

    Args:
        sets: the data sets.
        published: the values searched for.
        reference: the published definition and protocol (PCA-95 %, centred pixels).
        nearest: the best fits to all three image values at once, per size and ImageNet sample.
        ordered: the best of those that keep the published order beyond their intervals.
        single: the nearest measurements to each value alone.
        orders: how often the order is kept.
        thresholds: where each published count would be read.
        conclusion: the answer in sentences made from the numbers.
        measurements: everything that was measured.
        limits: what the data sets and the search cannot tell.
    """

    sets: tuple[SetSummary, ...]
    published: tuple[Published, ...]
    reference: tuple[Measurement, ...]
    nearest: tuple[Fit, ...]
    ordered: tuple[Fit, ...]
    single: tuple[Measurement, ...]
    orders: tuple[OrderCount, ...]
    thresholds: tuple[Threshold, ...]
    conclusion: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    seed: int
    limits: tuple[str, ...] = ()
    provenance: Provenance | None = None

    def target_of(self, dataset: str) -> Published | None:
        """The published value a data set stands for."""
        name = next(s.target for s in self.sets if s.name == dataset)
        return published_of(name)

    def tables(self) -> list[Table]:
        """Conclusion first, then the evidence."""
        wanted = " / ".join(number(p.value) for p in self.published if p.rank is not None)
        found = [
            self._reference(),
            self._fits(self.nearest, f"Nearest to {wanted} at once"),
            self._fits(self.ordered, f"Nearest to {wanted} among those surely in that order"),
            self._single(), self._orders(), self._thresholds(), self._sets(),
        ]  # fmt: skip
        return [table for table in found if table.rows]

    def _reference(self) -> Table:
        rows = [
            (
                m.dataset, m.size, m.n, _published(self.target_of(m.dataset)), m.estimate.value,
                interval(m.estimate), m.protocol, _error(m, self.target_of(m.dataset)),
                "limited by n" if m.limited else "",
            )
            for m in self.reference
        ]  # fmt: skip
        columns = (
            "data set", "size", "n", "published", "PCA-95 %", "95 % interval",
            "mean of 80 % subsamples", "off by", "note",
        )  # fmt: skip
        title = "The published definition: PCA-95 % of centred pixels"
        return Table(title, columns, rows, self.conclusion)

    def _fits(self, fits: tuple[Fit, ...], title: str) -> Table:
        rows = [
            (
                f.definition, f.representation, centring(f.centered), f.size, f.datasets[-1],
                " / ".join(number(e.value, 3) for e in f.values), percent(f.error),
                f.ordered, f.reproduces, "limited by n" if f.limited else "",
            )
            for f in fits
        ]  # fmt: skip
        columns = (
            "definition", "representation", "mean", "size", "ImageNet sample", "values",
            "worst error", "in order", "all within intervals", "note",
        )  # fmt: skip
        return Table(title, columns, rows)

    def _single(self) -> Table:
        rows = [
            (
                m.dataset, _published(self.target_of(m.dataset)), m.definition, m.representation,
                centring(m.centered), m.size, str(m.estimate),
                _error(m, self.target_of(m.dataset)),
            )
            for m in self.single
        ]  # fmt: skip
        columns = (
            "data set", "published", "definition", "representation", "mean", "size", "value",
            "off by",
        )  # fmt: skip
        note = "a threshold can be chosen to meet any one value; only a joint match is evidence"
        return Table("Nearest to each value alone", columns, rows, (note,))

    def _orders(self) -> Table:
        combos = list(dict.fromkeys((o.size, o.datasets) for o in self.orders))
        rows = []
        for place in dict.fromkeys((o.representation, o.centered) for o in self.orders):
            mine = {
                (o.size, o.datasets): o
                for o in self.orders
                if (o.representation, o.centered) == place
            }
            cells = [_kept(mine.get(combo)) for combo in combos]
            rows.append((place[0], centring(place[1]), *cells))
        columns = (
            "representation",
            "mean",
            *(f"{size} sizes, {names[-1]}" for size, names in combos),
        )
        note = (
            "definitions in the published order, of those measured; in brackets those in order "
            "beyond their intervals"
        )
        return Table("How often CIFAR-10 < CIFAR-100 < ImageNet holds", columns, rows, (note,))

    def _thresholds(self) -> Table:
        names = list(dict.fromkeys(t.dataset for t in self.thresholds))
        goals = {t.dataset: t.published for t in self.thresholds}
        rows = []
        for place in dict.fromkeys((t.representation, t.centered, t.size) for t in self.thresholds):
            # the smallest set has its own size only, which is the matched one
            same = [t for t in self.thresholds if (t.representation, t.centered) == place[:2]]
            larger = {t.dataset for t in same if t.size == "matched"}
            mine = {
                t.dataset: t.share for t in same if t.size == place[2] or t.dataset not in larger
            }
            cells = [_with_interval(mine.get(name)) for name in names]
            rows.append((place[0], centring(place[1]), place[2], *cells))
        columns = (
            "representation", "mean", "size", *(f"{n} ({number(goals[n])})" for n in names),
        )  # fmt: skip
        title = "Percent of the variance at which the published count would be read"
        note = "one threshold explains the published values only where a row agrees with itself"
        return Table(title, columns, rows, (note,))

    def _sets(self) -> Table:
        rows = [(s.name, s.target, s.n, s.source, s.fingerprint) for s in self.sets]
        columns = ("data set", "stands for", "samples", "source", "fingerprint")
        return Table("Data sets", columns, rows, self.limits)

    def to_markdown(self, command: str) -> str:
        """The page of the documentation: conclusion, limits, the command, every table."""
        lines = ["# Where the published effective dimensions come from", ""]
        lines += [f"- {text}" for text in self.conclusion]
        lines += ["", "## What limits this answer", "", *(f"- {text}" for text in self.limits)]
        lines += ["", "## How to obtain it", "", "```sh", command, "```", ""]
        lines += [f"Seed {self.seed}. {_METHOD}", ""]
        for table in self.tables():
            notes = () if table.notes in (self.conclusion, self.limits) else table.notes
            lines += [f"## {table.title}", "", *table.to_markdown(), ""]
            lines += [text for note in notes for text in (note[0].upper() + note[1:] + ".", "")]
        return "\n".join(lines)

    def write_docs(self, path: str | Path, command: str) -> Path:
        """Write :meth:`to_markdown` to ``path`` atomically."""
        return write_text(path, self.to_markdown(command))


_METHOD = (
    "The value is read from one spectrum of all samples; the interval is the delete-a-group "
    "jackknife over five random fifths (Student's t), so the five leave-one-out spectra are "
    "five random 80 % subsamples, whose mean is the published protocol. Images larger than "
    "32 x 32 are averaged down to it. `own` uses all samples of a set, `matched` as many of each "
    "as the smallest image set has."
)


def centring(centered: bool) -> str:
    """``centred`` or ``uncentred``."""
    return "centred" if centered else "uncentred"


def percent(share: float) -> str:
    """A relative error in percent, e.g. ``12 %``."""
    return "n/a" if not math.isfinite(share) else f"{100 * share:.3g} %"


def interval(estimate: Estimate) -> str:
    """The bounds of an estimate, ``–`` where it has none."""
    if estimate.low is None or estimate.high is None:
        return "–"
    return f"{number(estimate.low, 3)} to {number(estimate.high, 3)}"


def _with_interval(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{number(estimate.value, 3)} ({interval(estimate)})"


def _kept(count: OrderCount | None) -> str | None:
    return None if count is None else f"{count.ordered} of {count.definitions} ({count.surely})"


def _published(target: Published | None) -> str | None:
    return None if target is None else target.text


def _error(measurement: Measurement, target: Published | None) -> str | None:
    return None if target is None else percent(measurement.estimate.value / target.value - 1)
