"""Log axes that can be read within one decade, where matplotlib may label no tick at all."""

from __future__ import annotations

from typing import Any


def readable_log(axis: Any) -> None:
    """Make a matplotlib axis logarithmic, ticks as plain numbers; call it once all is drawn."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    wide = high >= 10 * low
    # Round values a constant step apart crowd together over decades, powers are rare within one.
    locator = LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5, steps=(1, 2, 2.5, 5, 10))
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
