"""How numbers read in the report: plain-data estimates as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spikedim.results import number

#: An :class:`spikedim.results.Estimate` as plain data.
Number = Mapping[str, Any]


def text(estimate: Number) -> str:
    """``value [low, high] unit`` of a plain-data estimate."""
    shown = _shown(estimate.get("value"))
    low, high = estimate.get("low"), estimate.get("high")
    if low is not None and high is not None:
        shown += f" [{number(low, 3)}, {number(high, 3)}]"
    elif low is not None or high is not None:
        shown += f" [{_shown(low)}, {_shown(high)}]"
    return f"{shown} {estimate.get('unit') or ''}".rstrip()


def timesteps(estimate: Number) -> str:
    """T with its interval; an open upper end reads ``or more``."""
    low, high = estimate.get("low"), estimate.get("high")
    shown = _shown(estimate.get("value"))
    if low is not None and high is not None:
        return f"{shown} [{number(low)}, {number(high)}]"
    return f"{shown} [{number(low)} or more]" if low is not None else shown


def _shown(value: float | None) -> str:
    return "?" if value is None else number(value)


def tidy(sentence: str) -> str:
    """The sentence with spaces that must not break (before a unit, around ``=``) made fixed."""
    return re.sub(r" (?=%|[mµn]J\b)|(?<==) | (?==)", "\u00a0", sentence)


def value_of(estimate: Number) -> float:
    """Point value; 0 where it was not a number."""
    value = estimate.get("value")
    return 0.0 if value is None else float(value)


def low_of(estimate: Number) -> float:
    """Lower bound, or the value itself."""
    low = estimate.get("low")
    return value_of(estimate) if low is None else float(low)


def high_of(estimate: Number) -> float:
    """Upper bound, or the value itself."""
    high = estimate.get("high")
    return value_of(estimate) if high is None else float(high)


def full(estimate: Number) -> str:
    """Estimate and unit; on a second line its interval and n."""
    low, high, n = estimate.get("low"), estimate.get("high"), estimate.get("n")
    shown = f"{number(or_nan(estimate['value']))} {estimate.get('unit') or ''}".rstrip()
    below = [] if low is None else [f"{number(low, 3)} {ending(high)}"]
    below += [] if n is None else [f"n = {number(n)}"]
    return "\n".join([shown, ", ".join(below)]) if below else shown


def ending(high: float | None) -> str:
    """Upper end of an interval; open where nothing bounds it."""
    return "or more" if high is None else f"to {number(high, 3)}"


def amount(count: float) -> str:
    """A count to three digits: ``940``, ``15.7 k``, ``10.5 M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{number(count / size, 3)} {letter}"
    return number(count, 3)


def coverage(estimate: Number) -> str:
    """Nominal coverage of an interval, ``95 %``."""
    return f"{100 * estimate.get('confidence', 0.95):g} %"


def or_nan(value: float | None) -> float:
    """NaN, which prints as n/a, where plain data has ``None``."""
    return float("nan") if value is None else value
