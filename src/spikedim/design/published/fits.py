"""Measurements held against the published values: one at a time, jointly, and by their order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise, product
from typing import Any

from spikedim.design.published.explanation import (
    PUBLISHED,
    SHOWN,
    Fit,
    Measurement,
    OrderCount,
    Published,
    SetSummary,
    published_of,
)
from spikedim.results import Estimate

Key = tuple[str, bool, str]
ORDERED = tuple(p for p in PUBLISHED if p.rank is not None)


def key_of(item: Measurement | Fit) -> Key:
    """Representation, centring and definition: what makes one candidate."""
    return item.representation, item.centered, item.definition


def joint_fits(found: Sequence[Measurement], sets: Sequence[SetSummary]) -> tuple[Fit, ...]:
    """Every candidate on every choice of one data set per published image value.

    At size ``"matched"`` only measurements from equally many samples are put together.
    """
    fits = []
    by_size = {(m.dataset, m.size, key_of(m)): m for m in found}
    choices = [[s.name for s in sets if s.target == p.target] for p in ORDERED]
    keys = dict.fromkeys(key_of(m) for m in found)
    for size, names, key in product(_sizes(found), product(*choices), keys):
        both = [by_size.get((n, size, key)) or by_size.get((n, "own", key)) for n in names]
        trio = [m for m in both if m is not None and math.isfinite(m.estimate.value)]
        equal = size == "own" or len({m.n for m in trio}) == 1
        if len(trio) == len(ORDERED) and equal:
            fits.append(_fit(size, names, trio))
    return tuple(fits)


def _sizes(found: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(m.size for m in found))


def _fit(size: str, names: Sequence[str], trio: Sequence[Measurement]) -> Fit:
    values = tuple(m.estimate for m in trio)
    return Fit(
        size=size,
        datasets=tuple(names),
        representation=trio[0].representation,
        centered=trio[0].centered,
        definition=trio[0].definition,
        values=values,
        published=tuple(p.value for p in ORDERED),
        error=max(
            abs(v.value / p.value - 1) for v, p in zip(values, ORDERED, strict=True)
        ),
        ordered=all(a.value < b.value for a, b in pairwise(values)),
        surely=all(_below(a, b) for a, b in pairwise(values)),
        reproduces=all(overlaps(v, p) for v, p in zip(values, ORDERED, strict=True)),
        limited=any(m.limited for m in trio),
    )  # fmt: skip


def _below(left: Estimate, right: Estimate) -> bool:
    return left.high is not None and right.low is not None and left.high < right.low


def overlaps(found: Estimate, target: Published) -> bool:
    """The interval of an estimate (its value where it has none) meets value ± half-width."""
    low = found.value if found.low is None else found.low
    open_above = found.low is not None and found.high is None
    high = math.inf if open_above else found.value if found.high is None else found.high
    return low <= target.value + target.half_width and high >= target.value - target.half_width


def nearest_fits(fits: Sequence[Fit], most: int = SHOWN) -> tuple[Fit, ...]:
    """The best ``most`` fits for every size and choice of data sets."""
    return tuple(
        fit
        for _, group in _grouped(fits, lambda f: (f.size, f.datasets))
        for fit in sorted(group, key=lambda f: f.error)[:most]
    )


def nearest_single(
    found: Sequence[Measurement], sets: Sequence[SetSummary], most: int = 3
) -> tuple[Measurement, ...]:
    """The ``most`` nearest measurements on all samples to the value of every data set."""
    nearest: list[Measurement] = []
    for summary in sets:
        target = published_of(summary.target)
        if target is not None:
            goal = target.value
            mine = [
                m for m in found
                if m.dataset == summary.name and m.size == "own"
                and math.isfinite(m.estimate.value)
            ]  # fmt: skip
            nearest += sorted(mine, key=lambda m: abs(m.estimate.value / goal - 1))[:most]
    return tuple(nearest)


def order_counts(fits: Sequence[Fit]) -> tuple[OrderCount, ...]:
    """How many definitions keep the published order, per representation."""
    counts = []
    grouped = _grouped(fits, lambda f: (f.size, f.datasets, f.representation, f.centered))
    for (size, names, representation, centered), group in grouped:
        tally = Counter({"ordered": 0, "surely": 0})
        for fit in group:
            tally.update(ordered=fit.ordered, surely=fit.surely)
        counts.append(
            OrderCount(
                size, names, representation, centered, len(group), tally["ordered"], tally["surely"]
            )
        )
    return tuple(counts)


def reproducing(fits: Sequence[Fit]) -> list[Key]:
    """Candidates that reproduce all three values, unlimited by n, on every choice measured."""
    grouped = _grouped(sorted(fits, key=key_of), key_of)
    return [
        key for key, group in grouped if all(f.reproduces and not f.limited for f in group)
    ]  # fmt: skip


def _grouped(fits: Sequence[Fit], key: Callable[[Fit], Any]) -> Iterator[tuple[Any, list[Fit]]]:
    for value, group in groupby(sorted(fits, key=key), key):
        yield value, list(group)
