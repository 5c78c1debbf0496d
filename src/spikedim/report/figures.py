"""Figures of the report as plotly specifications, built from plain numbers. Pure functions.

Each returns a :class:`~spikedim.report.plot.Figure`; an estimate is a mapping with the fields of
:class:`spikedim.results.Estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spikedim.report.plot import (
    GLYPHS,
    LIGHT,
    SERIES,
    SYMBOLS,
    Figure,
    Key,
    axis,
    axis_scale,
    band,
    beside,
    curve,
    curve_marks,
    edge_note,
    error_bars,
    interpolate,
    label_at,
    log_ticks,
    mark_key,
    page_layout,
    row_axis,
    scale_note,
    shorten,
    thin,
    to_one,
    vertical,
)
from spikedim.report.wording import Number, high_of, low_of, text, timesteps, value_of
from spikedim.results import number, points_of

#: Beyond this factor outside the measured range a prediction is shown by an arrow at the edge.
_REACH = 1.6


def accuracy(
    points: Sequence[tuple[int, Number]],
    *,
    t_star: Number | None = None,
    plateau: Number | None = None,
    tolerance: float | None = None,
    predictions: Sequence[tuple[str, Number]] = (),
) -> Figure:
    """Accuracy against T, the tolerance band, T* and the predictions of T with their intervals.

    Args:
        points: (T, accuracy in percent with its interval), at least one.
        t_star: measured smallest sufficient T; no ``high`` means right-censored.
        plateau: accuracy of the plateau in percent.
        tolerance: accepted loss below the plateau, in percentage points.
        predictions: (name, timesteps) of each rule; off the scale they become an arrow.
    """
    points = sorted(points, key=lambda point: point[0])
    steps = [t for t, _ in points]
    left, right = steps[0] / 1.25, steps[-1] * 1.25
    right = max([right, *(value_of(p) * 1.12 for _, p in predictions if _near(p, steps))])
    left = min([left, *(value_of(p) / 1.12 for _, p in predictions if _near(p, steps))])
    lows = [low_of(a) for _, a in points]
    highs = [high_of(a) for _, a in points]
    if plateau and tolerance is not None:
        lows.append(value_of(plateau) - tolerance)
        highs.append(value_of(plateau))
    pad = max(0.5, 0.12 * (max(highs) - min(lows)))
    bottom, top = max(0.0, min(lows) - 2 * pad), min(100.0 + pad / 2, max(highs) + pad)

    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    first = points[0][1]
    confidence = f"{100 * first.get('confidence', 0.95):g} % interval"
    size = "" if first.get("n") is None else f", n = {number(first['n'])}"
    about = " ".join(part for part in (first.get("method"), confidence) if part)
    key = [Key("●", "blue", f"test accuracy, {about}{size}")]
    if plateau and tolerance is not None:
        level = value_of(plateau)
        shapes.append(band((level - tolerance, level), "green", 0.16, axis="y"))
        key.append(
            Key("▬", "green", f"within {points_of(tolerance)} of the plateau {text(plateau)}")
        )
    if t_star:
        value = value_of(t_star)
        high = t_star.get("high")
        shapes.append(band((max(left, low_of(t_star)), high or right), "vermilion", 0.10))
        shapes.append(vertical(value, "vermilion", "solid"))
        above = label_at(math.log10(value), 1.0, f"T* = {number(value)}", "alert", "bottom")
        if value == steps[-1]:
            above["xanchor"] = "right"  # clear of the button in the corner
        notes.append(above)
        key.append(Key("┃", "vermilion", f"measured T* = {timesteps(t_star)}"))
    for index, (name, predicted) in enumerate(predictions):
        colour = ("purple", "ink", "muted")[index % 3]
        value = value_of(predicted)
        said = f"{name}: T = {timesteps(predicted)}"
        row = 0.02 + 0.09 * index
        if left <= value <= right:
            ends = (max(left, low_of(predicted)), min(right, high_of(predicted)))
            shapes.append(band(ends, colour, 0.14))
            shapes.append(vertical(value, colour, "dash"))
            label = f"rule {number(value)}"
            notes.append(label_at(math.log10(value), row, label, colour, "bottom", boxed=True))
            key.append(Key("┇", colour, said))
        else:
            notes.append(edge_note(value > right, row, f"rule: T = {number(value, 3)}", colour))
            key.append(Key("→" if value > right else "←", colour, f"{said}, off this scale"))

    hover = [f"T = {t}<br>{text(a)}" for t, a in points]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": steps,
            "y": [value_of(a) for _, a in points],
            "error_y": error_bars([a for _, a in points], "blue"),
            "line": {"color": LIGHT["blue"], "width": 2},
            "marker": {"size": 9, "color": LIGHT["blue"]},
            "hovertext": hover,
            "hoverinfo": "text",
        }
    ]
    layout = page_layout(
        380,
        axis(
            "timesteps T (log scale)",
            type="log",
            range=[math.log10(left), math.log10(right)],
            tickvals=steps,
            ticktext=[str(t) for t in steps],
        ),
        axis("test accuracy (%)", range=[bottom, top]),
        shapes=shapes,
        annotations=notes,
    )
    words = "; ".join(f"T = {t}: {text(a)}" for t, a in points)
    rest = ". ".join(item.text for item in key[1:])
    return Figure(
        {"data": data, "layout": layout},
        tuple(key),
        "Read from left to right: the smallest T whose accuracy enters the green band is enough; "
        "a rule is right when its dashed line falls there.",
        f"Test accuracy by timesteps. {words}. {rest}.",
    )


def tradeoff(
    series: Mapping[str, Sequence[tuple[int, Number, Number]]],
    recommended: int,
    dense: Number | None = None,
    *,
    quality: str = "test accuracy (%)",
    budget: Number | None = None,
) -> Figure:
    """Accuracy against energy per sample, one line per energy convention; the Pareto front filled.

    Args:
        series: convention -> (T, energy per sample, accuracy), in order of T.
        recommended: T whose points are ringed.
        quality: what the vertical axis shows, with its unit.
        budget: most energy allowed, a vertical line.
        dense: energy of the dense network of the same shapes, a vertical line, or an arrow where it
            would squeeze the rest.
    """
    data: list[dict[str, Any]] = []
    key: list[Key] = []
    everything = [point for points in series.values() for point in points]
    unit = everything[0][1].get("unit") or "mJ"
    for index, (convention, points) in enumerate(series.items()):
        colour = SERIES[index % len(SERIES)]
        chosen = [t == recommended for t, _, _ in points]
        beaten = [_dominated(point, points) for point in points]
        symbol = SYMBOLS[index % len(SYMBOLS)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "x": [value_of(e) for _, e, _ in points],
                "y": [value_of(a) for _, _, a in points],
                "error_x": error_bars([e for _, e, _ in points], colour),
                "error_y": error_bars([a for _, _, a in points], colour),
                "text": [f"{t} " for t, _, _ in points],
                "textposition": "top left",
                "textfont": {"color": LIGHT["ink"], "size": 12},
                "line": {"color": LIGHT[colour], "width": 1.5},
                "marker": {
                    "color": LIGHT[colour],
                    "symbol": [f"{symbol}-open" if b else symbol for b in beaten],
                    "opacity": 1,
                    "size": [14 if c else 8 for c in chosen],
                    "line": {"color": LIGHT["ink"], "width": [2 if c else 0 for c in chosen]},
                },
                "hovertext": [
                    f"{convention}, T = {t}<br>{text(e)} per sample<br>{text(a)}"
                    + ("<br>another T costs less and reaches as much" if b else "")
                    for (t, e, a), b in zip(points, beaten, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
        key.append(Key(GLYPHS[index % len(GLYPHS)], colour, convention))
    key.append(Key("◯", "ink", f"recommended T = {recommended}; numbers beside the marks are T"))
    key.append(Key("○", "muted", "open mark: another T costs less and reaches as much"))
    values = [value_of(e) for _, e, _ in everything]
    shapes, notes = [], []
    if budget is not None:
        values.append(value_of(budget))
        shapes.append(vertical(value_of(budget), "vermilion", "dash"))
        key.append(Key("┇", "vermilion", f"budget {text(budget)}"))
    if dense is not None:
        there = f"dense network of the same shapes, {text(dense)}"
        if value_of(dense) <= _REACH * max(values):
            values.append(value_of(dense))
            shapes.append(vertical(value_of(dense), "muted", "dash"))
            key.append(Key("┇", "muted", there))
        else:
            notes.append(
                edge_note(True, 0.02, f"dense: {number(value_of(dense), 3)} {unit}", "muted")
            )
            key.append(Key("→", "muted", f"{there}, off this scale"))
    scale = axis_scale(values)
    across = axis(f"energy per sample ({unit}{scale_note(scale)})", type=scale)
    if scale == "log":
        across |= log_ticks(min(values) / 1.3, max(values) * 1.3)
    layout = page_layout(360, across, axis(quality), shapes=shapes, annotations=notes)
    words = "; ".join(
        f"{name}: " + ", ".join(f"T = {t} costs {text(e)} for {text(a)}" for t, e, a in points)
        for name, points in series.items()
    )
    return Figure(
        {"data": data, "layout": layout},
        tuple(key),
        "Further left is cheaper, further up is better; weigh what the points right of the ring "
        "add in accuracy against what they add in energy.",
        f"Accuracy by energy per sample. {words}.",
    )


def _dominated(
    point: tuple[int, Number, Number], points: Sequence[tuple[int, Number, Number]]
) -> bool:
    """Whether another point costs no more and reaches no less, and one of the two is better."""
    cost, reached = value_of(point[1]), value_of(point[2])
    return any(
        value_of(e) <= cost
        and value_of(a) >= reached
        and (value_of(e) < cost or value_of(a) > reached)
        for _, e, a in points
    )


def scree(eigenvalues: Sequence[float], marks: Sequence[tuple[str, Number]]) -> Figure:
    """Eigenvalues by rank on log-log axes, with each estimate of d_eff marked on the curve."""
    kept = [float(v) for v in eigenvalues if v is not None and v > 0]
    floor = kept[0] * 1e-9
    kept = [v for v in kept if v > floor]
    chosen = thin(len(kept))
    data: list[dict[str, Any]] = [
        curve([i + 1 for i in chosen], [kept[i] for i in chosen], "rank %{x}: %{y:.3g}")
    ]
    points = [(name, e, interpolate(kept, value_of(e))) for name, e in marks]
    data += curve_marks(points)
    layout = page_layout(
        340,
        axis("component k (log scale)", type="log", **log_ticks(0.9, len(kept) * 1.1)),
        axis("eigenvalue (log scale)", type="log", **log_ticks(kept[-1] / 1.5, kept[0] * 1.5)),
    )
    return Figure(
        {"data": data, "layout": layout},
        mark_key(marks),
        "The faster the curve falls, the fewer directions carry the data; each mark is where an "
        "estimator cuts it.",
        f"Eigenvalue spectrum of {len(kept)} components, from {number(kept[0], 3)} down to "
        f"{number(kept[-1], 3)}.",
    )


def cumulative(
    eigenvalues: Sequence[float], total: float, marks: Sequence[tuple[str, Number]]
) -> Figure:
    """Share of the variance in the first k components, with each estimate of d_eff marked."""
    shares: list[float] = []
    running = 0.0
    for value in eigenvalues:
        running += max(0.0, float(value or 0.0))
        shares.append(100 * running / total)
    chosen = thin(len(shares))
    data: list[dict[str, Any]] = [
        curve([i + 1 for i in chosen], [shares[i] for i in chosen], "first %{x}: %{y:.1f} %")
    ]
    data += curve_marks([(name, e, interpolate(shares, value_of(e))) for name, e in marks])
    layout = page_layout(
        340,
        axis("components k (log scale)", type="log", **log_ticks(0.9, len(shares) * 1.1)),
        axis("variance explained (%)", range=[0, 104]),
        shapes=[
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 95,
                "y1": 95,
                "line": {"color": LIGHT["muted"], "width": 1, "dash": "dot"},
            }
        ],
    )
    words = "; ".join(
        f"{name}: {text(e)}, {number(interpolate(shares, value_of(e)), 3)} % of the variance"
        for name, e in marks
    )
    return Figure(
        {"data": data, "layout": layout},
        mark_key(marks),
        "Height at a mark is the share of variance that so many components explain; the dotted "
        "line is 95 %.",
        f"Cumulative variance. {words}.",
    )


def rates(layers: Sequence[tuple[str, Number, str]]) -> Figure:
    """Firing rate of each layer as horizontal bars.

    Args:
        layers: (name, rate in spikes per neuron and timestep, ``"ok"`` | ``"dead"`` | ...), in
            network order. Any status but ok is named beside the bar.
    """
    colours = {"ok": "blue", "dead": "vermilion", "saturated": "purple"}
    values = [value_of(rate) for _, rate, _ in layers]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": list(range(len(layers))),
            "x": values,
            "error_x": error_bars([rate for _, rate, _ in layers], "ink"),
            "marker": {
                "color": [LIGHT[colours.get(status, "orange")] for _, _, status in layers],
                "pattern": {
                    "shape": ["" if status == "ok" else "/" for _, _, status in layers],
                    "fgcolor": LIGHT["paper"],
                },
            },
            "hovertext": [
                f"{name}: {text(rate)}" + (f" ({status})" if status != "ok" else "")
                for name, rate, status in layers
            ],
            "hoverinfo": "text",
        }
    ]
    top = max([0.05, *(high_of(rate) for _, rate, _ in layers)])
    notes = [
        beside(
            high_of(rate),
            row,
            number(value_of(rate), 3) + ("" if status == "ok" else f" <b>{status}</b>"),
            "muted" if status == "ok" else "alert",
        )
        for row, (_, rate, status) in enumerate(layers)
    ]
    layout = page_layout(
        80 + 23 * len(layers),
        axis("spikes per neuron and timestep", range=[0, top * 1.35], tickvals=to_one(top)),
        row_axis([shorten(name) for name, _, _ in layers]),
        meta={"rows": len(layers)},
        annotations=notes,
        bargap=0.3,
    )
    found = [status for status in ("dead", "saturated") if any(s == status for _, _, s in layers)]
    key = [Key("■", "blue", "firing rate of a layer")]
    key += [Key("▨", colours[s], f"{s} layer (named beside its bar)") for s in found]
    words = "; ".join(
        f"{name} {number(value_of(rate), 3)}{'' if status == 'ok' else ', ' + status}"
        for name, rate, status in layers
    )
    return Figure(
        {"data": data, "layout": layout},
        tuple(key),
        "Layers run from input (top) to output (bottom); a layer near zero carries no signal and "
        "one near one carries no choice.",
        f"Firing rate by layer, spikes per neuron and timestep: {words}.",
    )


def energy(bars: Sequence[tuple[str, Number]], dense: tuple[str, Number] | None = None) -> Figure:
    """Energy per sample under each convention, with the dense network as a hatched bar below.

    Args:
        bars: (convention, energy of the spiking network).
        dense: (convention, energy of the dense network of the same shapes).
    """
    rows = [(name, e, "blue") for name, e in bars]
    if dense is not None:
        rows.append((f"dense network ({dense[0]})", dense[1], "muted"))
    unit = rows[0][1].get("unit") or "mJ"
    values = [value_of(e) for _, e, _ in rows]
    scale = axis_scale(values)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": list(range(len(rows))),
            "x": values,
            "error_x": error_bars([e for _, e, _ in rows], "ink"),
            "marker": {
                "color": [LIGHT[colour] for *_, colour in rows],
                "pattern": {
                    "shape": ["/" if colour == "muted" else "" for *_, colour in rows],
                    "fgcolor": LIGHT["paper"],
                },
            },
            "hovertext": [f"{name}<br>{text(e)} per sample" for name, e, _ in rows],
            "hoverinfo": "text",
        }
    ]
    horizontal = axis(f"energy per sample ({unit}{scale_note(scale)})", type=scale)
    end = max(high_of(e) for _, e, _ in rows)
    if scale == "log":
        low = min(values) / 4
        horizontal |= log_ticks(low, end * (end / low) ** 0.35)
    else:
        horizontal["range"] = [0, end * 1.35 or 1.0]
    notes = [
        beside(high_of(e), row, f"{number(value_of(e), 3)} {unit}", "ink", log=scale == "log")
        for row, (_, e, _) in enumerate(rows)
    ]
    layout = page_layout(
        80 + 44 * len(rows),
        horizontal,
        row_axis([name for name, _, _ in rows]),
        meta={"rows": len(rows)},
        annotations=notes,
        bargap=0.4,
    )
    words = "; ".join(f"{name}: {text(e)}" for name, e, _ in rows)
    key = [Key("■", "blue", "spiking network, by convention")]
    if dense is not None:
        key.append(Key("▨", "muted", "dense network of the same shapes, one pass"))
    return Figure(
        {"data": data, "layout": layout},
        tuple(key),
        "Only a bar shorter than the hatched one saves energy, under its own convention: the "
        "conventions count different operations.",
        f"Energy per sample by convention. {words}.",
    )


def neurons(rows: Sequence[tuple[str, Number]], chosen: Sequence[int]) -> Figure:
    """Accuracy of each neuron setting, with intervals; those in use are ringed."""
    picked = [index in chosen for index in range(len(rows))]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [value_of(a) for _, a in rows],
            "y": list(range(len(rows))),
            "error_x": error_bars([a for _, a in rows], "blue"),
            "marker": {
                "color": LIGHT["blue"],
                "opacity": 1,
                "size": [14 if p else 9 for p in picked],
                "line": {"color": LIGHT["ink"], "width": [2 if p else 0 for p in picked]},
            },
            "hovertext": [f"{name}<br>{text(a)}" for name, a in rows],
            "hoverinfo": "text",
        }
    ]
    layout = page_layout(
        90 + 26 * len(rows),
        axis("test accuracy (%)"),
        row_axis([name for name, _ in rows], grid=True),
        meta={"rows": len(rows)},
    )
    key = [Key("●", "blue", "test accuracy with its interval")]
    if any(picked):
        key.append(Key("◯", "ink", "setting in use"))
    words = "; ".join(f"{name}: {text(a)}" for name, a in rows)
    return Figure(
        {"data": data, "layout": layout},
        tuple(key),
        "Settings whose intervals overlap are not told apart by this test set.",
        f"Accuracy by neuron setting. {words}.",
    )


def _near(prediction: Number, steps: Sequence[int]) -> bool:
    return steps[0] / _REACH <= value_of(prediction) <= steps[-1] * _REACH
