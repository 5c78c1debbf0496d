"""Parts every figure of the report is made of: colours, keys, axes, bands, marks, ticks.

A :class:`Figure` is plain data (``{"data": ..., "layout": ...}``): the page hands it to plotly.js,
Python can hand it to ``plotly.graph_objects.Figure``. The key (legend) is kept apart because the
page sets it as text below the plot, where it wraps on a narrow screen and can be read aloud.

Colours are those of Okabe and Ito, readable with every common colour vision, some darkened for
contrast on white; where colour carries meaning a symbol, a dash or a word carries it too. The page
swaps :data:`LIGHT` for :data:`DARK` by replacing the hexadecimal codes, so a figure uses no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikedim.report.wording import Number, high_of, low_of, text, value_of
from spikedim.results import number

LIGHT = {
    "ink": "#1b2430",
    "muted": "#5b6673",
    "grid": "#e3e7ec",
    "paper": "#fffffe",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "alert": "#a84300",
    "green": "#009e73",
    "purple": "#a8467c",
    "orange": "#c78300",
    "sky": "#3b9bd6",
}
DARK = {
    "ink": "#e8ebef",
    "muted": "#a3adb8",
    "grid": "#323b47",
    "paper": "#1a212a",
    "blue": "#4aa8e6",
    "vermilion": "#f58a45",
    "alert": "#ff9f66",
    "green": "#2fc79a",
    "purple": "#e08fbd",
    "orange": "#f2b632",
    "sky": "#9ad4f7",
}
SERIES = ("blue", "vermilion", "green", "purple", "orange", "sky", "ink", "muted")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x", "hexagon")
GLYPHS = ("●", "◆", "■", "▲", "✚", "★", "✖", "⬢")
_MOST_POINTS = 600


@dataclass(frozen=True)
class Key:
    """One line of a figure's key: a glyph in a colour of :data:`LIGHT`, and what it means."""

    glyph: str
    colour: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A plot with everything a reader needs to read it.

    Attributes:
        spec: plotly ``{"data", "layout"}``; heights in pixels, width left to the page.
        key: what each mark means.
        caption: one sentence saying what to read from it.
        description: the content in words, for those who do not see it.
    """

    spec: dict[str, Any]
    key: tuple[Key, ...]
    caption: str
    description: str


def axis_scale(values: Sequence[float]) -> str:
    """``"log"`` where the values are positive and span more than a factor of ten."""
    positive = [v for v in values if v > 0]
    spread = bool(positive) and len(positive) == len(values) and max(positive) > 10 * min(positive)
    return "log" if spread else "linear"


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Range and readable ticks of a log axis: decades, or 1-2-5 where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    steps = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    every = max(1, math.ceil(len(decades) / 8))
    ticks = [
        (mantissa, power)
        for power in decades[:: every if len(steps) == 1 else 1]
        for mantissa in steps
        if low <= mantissa * 10.0**power <= high
    ]
    return {
        "range": [math.log10(low), math.log10(high)],
        "tickvals": [float(f"{mantissa}e{power}") for mantissa, power in ticks],
        "ticktext": [tick_text(*tick, plain=first >= -4 and last <= 5) for tick in ticks],
    }


def tick_text(mantissa: int, power: int, plain: bool) -> str:
    """``0.02``, ``500`` or ``2·10⁵``."""
    if plain:
        return number(mantissa * 10.0**power, 1)
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == 1 else f"{mantissa}·10{raised}"


def to_one(top: float) -> list[float]:
    """Ticks of a rate axis, never beyond one spike per step."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if top / s <= 6 or s == 0.2)
    return [round(i * step, 2) for i in range(int(min(1.0, top * 1.35) / step + 1e-9) + 1)]


def scale_note(scale: str) -> str:
    """What an axis title adds about its scale."""
    return ", log scale" if scale == "log" else ""


def row_axis(names: Sequence[str], grid: bool = False) -> dict[str, Any]:
    """Vertical axis of named rows, the first on top."""
    return axis(
        "",
        tickvals=list(range(len(names))),
        ticktext=list(names),
        range=[len(names) - 0.5, -0.5],
        showgrid=grid,
        ticks="",
        ticklabelstandoff=6,
    )


def beside(x: float, row: int, label: str, colour: str, log: bool = False) -> dict[str, Any]:
    """Text to the right of the bar of one row."""
    return {
        "x": math.log10(x) if log else x,
        "y": row,
        "xanchor": "left",
        "xshift": 6,
        "text": label,
        "showarrow": False,
        "font": {"size": 11, "color": LIGHT[colour]},
    }


def error_bars(estimates: Sequence[Number], colour: str) -> dict[str, Any]:
    """Error bars from the interval of each estimate."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high_of(e) - value_of(e)) for e in estimates],
        "arrayminus": [max(0.0, value_of(e) - low_of(e)) for e in estimates],
        "color": LIGHT[colour],
        "thickness": 1.5,
        "width": 4,
    }


def band(ends: tuple[float, float], colour: str, opacity: float, axis: str = "x") -> dict[str, Any]:
    """Shaded interval across the whole plot; data coordinates, on log axes too."""
    across = "y" if axis == "x" else "x"
    return {
        "type": "rect",
        "layer": "below",
        f"{axis}0": ends[0],
        f"{axis}1": ends[1],
        f"{across}ref": "paper",
        f"{across}0": 0,
        f"{across}1": 1,
        "fillcolor": LIGHT[colour],
        "opacity": opacity,
        "line": {"width": 0},
    }


def vertical(x: float, colour: str, dash: str) -> dict[str, Any]:
    """Vertical line across the whole plot."""
    return {
        "type": "line",
        "layer": "below",
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": LIGHT[colour], "width": 2, "dash": dash},
    }


def label_at(
    x: float, y: float, label: str, colour: str, anchor: str, boxed: bool = False
) -> dict[str, Any]:
    """Bold text at (x in axis coordinates: the exponent on a log axis, y as a share of height)."""
    note = {
        "x": x,
        "y": y,
        "yref": "paper",
        "yanchor": anchor,
        "text": f"<b>{label}</b>",
        "showarrow": False,
        "font": {"color": LIGHT[colour], "size": 12},
    }
    return {**note, "bgcolor": LIGHT["paper"]} if boxed else note


def edge_note(right: bool, y: float, label: str, colour: str) -> dict[str, Any]:
    """Arrow at the right or left edge for what lies beyond the scale."""
    return {
        "xref": "paper",
        "x": 1 if right else 0,
        "xanchor": "right" if right else "left",
        "y": y,
        "yref": "paper",
        "yanchor": "bottom",
        "text": f"<b>{label} →</b>" if right else f"<b>← {label}</b>",
        "showarrow": False,
        "font": {"color": LIGHT[colour], "size": 12},
        "bgcolor": LIGHT["paper"],
    }


def curve(x: list[int], y: list[float], hover: str) -> dict[str, Any]:
    """Plain line that the marks sit on."""
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "x": x,
        "y": [float(f"{value:.6g}") for value in y],
        "line": {"color": LIGHT["muted"], "width": 2},
        "hovertemplate": hover + "<extra></extra>",
    }


def curve_marks(points: Sequence[tuple[str, Number, float]]) -> list[dict[str, Any]]:
    """One mark for each (name, estimate, height)."""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [max(1.0, value_of(e))],
            "y": [height],
            "marker": {
                "size": 11,
                "color": LIGHT[SERIES[index % len(SERIES)]],
                "symbol": SYMBOLS[index % len(SYMBOLS)],
                "line": {"color": LIGHT["paper"], "width": 1},
            },
            "hovertext": [f"{name}: {text(e)}"],
            "hoverinfo": "text",
        }
        for index, (name, e, height) in enumerate(points)
    ]


def mark_key(marks: Sequence[tuple[str, Number]]) -> tuple[Key, ...]:
    """Key of :func:`curve_marks`."""
    return tuple(
        Key(GLYPHS[index % len(GLYPHS)], SERIES[index % len(SERIES)], f"{name} {text(estimate)}")
        for index, (name, estimate) in enumerate(marks)
    )


def interpolate(values: Sequence[float], position: float) -> float:
    """Value at a fractional 1-based position, held at both ends."""
    at = min(max(position, 1.0), float(len(values))) - 1
    left = int(at)
    right = min(left + 1, len(values) - 1)
    return values[left] + (at - left) * (values[right] - values[left])


def thin(count: int) -> list[int]:
    """At most :data:`_MOST_POINTS` indices, evenly spread on a log axis, both ends included."""
    if count <= _MOST_POINTS:
        return list(range(count))
    grid = {
        round(math.exp(math.log(count) * i / (_MOST_POINTS - 1))) - 1 for i in range(_MOST_POINTS)
    }
    return sorted(grid | {0, count - 1})


def shorten(name: str, longest: int = 24) -> str:
    """The end of a long name: the end tells layers apart."""
    return name if len(name) <= longest else "…" + name[-(longest - 1) :]


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis in the style of the report."""
    return {
        "title": {"text": title, "font": {"size": 13}},
        "gridcolor": LIGHT["grid"],
        "linecolor": LIGHT["muted"],
        "tickcolor": LIGHT["muted"],
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        **options,
    }


def page_layout(
    height: int, xaxis: Mapping[str, Any], yaxis: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """Layout in the style of the report; width is left to the page."""
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 26, "b": 48},
        "paper_bgcolor": LIGHT["paper"],
        "plot_bgcolor": LIGHT["paper"],
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 12,
            "color": LIGHT["ink"],
        },
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": dict(xaxis),
        "yaxis": dict(yaxis),
        **options,
    }
