"""The answer in sentences, computed from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from spikedim.design.published.explanation import (
    Fit,
    Measurement,
    SetSummary,
    Threshold,
    centring,
    percent,
    published_of,
)
from spikedim.design.published.fits import ORDERED, Key, key_of, overlaps, reproducing
from spikedim.results import Estimate, number

REFERENCE: Key = ("pixels", True, "pca95")


def conclude(
    found: Sequence[Measurement],
    fits: Sequence[Fit],
    thresholds: Sequence[Threshold],
    sets: Sequence[SetSummary],
) -> tuple[str, ...]:
    """Sentences: the published definition, the nearest, the order, thresholds, text, verdict."""
    lines = []
    if fits:
        lines += [_verdict(fits), *_reference(fits), *_nearest(fits), *_order(fits)]
        lines += _shares(thresholds)
    lines += _texts(found, sets)
    return tuple(lines)


def _verdict(fits: Sequence[Fit]) -> str:
    candidates = {key_of(f) for f in fits}
    wanted = " / ".join(number(p.value) for p in ORDERED)
    keys = reproducing(fits)
    loose = sum(f.reproduces and not f.limited for f in fits)
    if not keys:
        return (
            f"Nothing that was searched explains {wanted}: none of {len(candidates)} candidates "
            "(definition, representation, centring) meets all three values within the intervals on "
            f"every sample and sample size; one comparison at a time, {number(loose)} of "
            f"{number(len(fits))} do."
        )
    best = min(keys, key=lambda k: max(f.error for f in fits if key_of(f) == k))
    worst = max(f.error for f in fits if key_of(f) == best)
    many = "" if len(keys) == 1 else f"; {len(keys)} candidates do"
    return (
        f"{_name(best)} meets {wanted} within the intervals on every sample and sample size "
        f"(worst error {percent(worst)}){many}. It was found among {len(candidates)} candidates, "
        "so it is a lead, not a proof."
    )


def _reference(fits: Sequence[Fit]) -> list[str]:
    rows = [f for f in fits if key_of(f) == REFERENCE]
    if not rows:
        return []
    read = "; ".join(f"{_values(f.values)} ({_where(f)})" for f in rows)
    kept = sum(f.ordered for f in rows)
    return [
        f"The published definition, PCA-95 % of centred pixels, gives {read}; "
        f"it keeps the published order in {kept} of {len(rows)}."
    ]


def _nearest(fits: Sequence[Fit]) -> list[str]:
    best = min(fits, key=lambda f: f.error)
    within = "within" if best.reproduces else "not within"
    lines = [
        f"Nearest in one comparison: {_name(key_of(best))} gives {_values(best.values)} "
        f"({_where(best)}), worst error {percent(best.error)}, {within} the intervals."
    ]
    worst = {key: max(f.error for f in fits if key_of(f) == key) for key in _keys(fits)}
    key = min(worst, key=lambda k: worst[k])
    lines.append(f"Nearest over all comparisons: {_name(key)}, worst error {percent(worst[key])}.")
    sure = [f for f in fits if f.surely]
    if sure:
        best = min(sure, key=lambda f: f.error)
        lines.append(
            f"Nearest that keeps the order beyond its intervals: {_name(key_of(best))} gives "
            f"{_values(best.values)} ({_where(best)}), worst error {percent(best.error)}."
        )
    return lines


def _keys(fits: Sequence[Fit]) -> list[Key]:
    """Candidates measured in as many comparisons as any other."""
    counts: dict[Key, int] = {}
    for fit in fits:
        counts[key_of(fit)] = counts.get(key_of(fit), 0) + 1
    most = max(counts.values())
    return [key for key, count in counts.items() if count == most]


def _order(fits: Sequence[Fit]) -> list[str]:
    lines = []
    for size, names in dict.fromkeys((f.size, f.datasets) for f in fits):
        group = [f for f in fits if (f.size, f.datasets) == (size, names)]
        kept, sure = sum(f.ordered for f in group), sum(f.surely for f in group)
        lines.append(
            f"Order {' < '.join(names)} ({size} sample sizes): kept by {kept} of {len(group)} "
            f"candidates, by {sure} beyond the intervals."
        )
    return lines


def _shares(thresholds: Sequence[Threshold]) -> list[str]:
    rows = [
        t for t in thresholds
        if (t.representation, t.centered, t.size) == ("pixels", True, "own")
        and t.published in [p.value for p in ORDERED]
    ]  # fmt: skip
    if not rows:
        return []
    shares = ", ".join(
        f"{number(t.share.value, 3)} % for {number(t.published)} on {t.dataset}" for t in rows
    )
    return [f"Centred pixels reach the published counts at {shares} of the variance."]


def _texts(found: Sequence[Measurement], sets: Sequence[SetSummary]) -> list[str]:
    target = published_of("text")
    names = [s.name for s in sets if s.target == "text"]
    rows = [m for m in found if m.dataset in names and m.definition == "pca95" and m.centered]
    if target is None or not rows:
        return []
    read = ", ".join(f"{number(m.estimate.value)} ({m.representation})" for m in rows)
    met = [m.representation for m in rows if overlaps(m.estimate, target)]
    answer = f"met by {', '.join(met)}" if met else "met by none of them"
    low, high = target.value - target.half_width, target.value + target.half_width
    return [
        f"Text, published {number(low)}–{number(high)}: PCA-95 % gives {read}; {answer}. "
        "A count cannot exceed the width of an embedding, so the width decides it (claim DEFF-TEXT "
        "is not testable here)."
    ]


def _values(values: Sequence[Estimate]) -> str:
    return " / ".join(number(v.value, 3) for v in values)


def _where(fit: Fit) -> str:
    return f"{fit.datasets[-1]}, {fit.size} sizes"


def _name(key: Key) -> str:
    representation, centered, definition = key
    return f"{definition} on {centring(centered)} {representation}"
