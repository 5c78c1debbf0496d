"""Pictures of a profile: rates, heat maps by layer and timestep, raster, potentials, spread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spikedim.results import readable_unit

if TYPE_CHECKING:
    from spikedim.profiling.activity import Activity
    from spikedim.profiling.result import Profile

_BLUE, _ORANGE, _MUTED = "#0072b2", "#d55e00", "#5b6673"


def rates(profile: Profile, ax: Any = None) -> Any:
    """Firing rate of every spiking layer with its interval; returns the axes."""
    ax = _axes(ax, len(profile.layers))
    names = [layer.name for layer in profile.layers]
    values = np.array([layer.rate.value for layer in profile.layers])
    ax.barh(names, values, height=0.7, color=_BLUE)
    for index, layer in enumerate(profile.layers):
        if layer.rate.low is not None and layer.rate.high is not None:
            ax.plot([layer.rate.low, layer.rate.high], [index, index], color="black", lw=1)
    ax.invert_yaxis()
    ax.set_xlim(0, max(0.01, 1.1 * float(values.max())))
    ax.set_xlabel(f"spikes per neuron and step (T = {profile.T}, n = {profile.samples})")
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def heat_map(profile: Profile, ax: Any = None, convention: str | None = None) -> Any:
    """Firing rates by layer and timestep, or mJ per sample under one of its conventions.

    Args:
        profile: what to draw.
        ax: matplotlib axes; made if absent.
        convention: the convention of an energy map; rates by default.
    """
    names, grid, label = heat(profile, convention)
    if convention is not None:
        factor, unit = readable_unit(float(grid.max()), "mJ")
        grid, label = grid * factor, label.replace("mJ", unit)
    ax = _axes(ax, len(names))
    image = ax.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ticks = [*range(profile.T), *([profile.T] if grid.shape[1] > profile.T else [])]
    shown = ticks if len(ticks) <= 16 else ticks[:: len(ticks) // 8]
    ax.set_xticks(shown, [str(t + 1) if t < profile.T else "once" for t in shown])
    ax.set_xlabel("timestep")
    ax.get_figure().colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.02)
    return ax


def heat(profile: Profile, convention: str | None = None) -> tuple[list[str], np.ndarray, str]:
    """Names, values [layers, T] (one column more where something ran once), and what they are."""
    if convention is None:
        layers = [layer for layer in profile.layers if layer.rate_per_step]
        grid = np.array([layer.rate_per_step for layer in layers]).reshape(len(layers), profile.T)
        return [layer.name for layer in layers], grid, "spikes per neuron"
    energy = next(item for item in profile.energy if item.convention == convention)
    rows = energy.layers()
    grid = np.array(list(rows.values())).reshape(len(rows), profile.T + 1)
    label = f"mJ per sample, {convention}"
    return list(rows), grid if grid[:, -1].any() else grid[:, :-1], label


def raster(activity: Activity, ax: Any = None) -> Any:
    """Spikes of a few neurons of every layer over time, for one sample."""
    ax = _axes(ax, len(activity.layers))
    start, ticks = 0, []
    for index, layer in enumerate(activity.layers):
        steps, neurons = np.nonzero(layer.raster)
        height = layer.raster.shape[1]
        colour = (_BLUE, _ORANGE)[index % 2]
        size = max(4, min(60, 220 / activity.T))
        ax.scatter(steps + 1, start + neurons, marker="|", s=size, lw=1.2, color=colour)
        ticks.append(start + height / 2)
        ax.axhline(start + height, color="#e3e7ec", lw=0.6)
        start += height + 1
    ax.set_yticks(ticks, [layer.name for layer in activity.layers], fontsize=7)
    ax.set_ylim(start, -1)
    ax.set_xlim(0.5, activity.T + 0.5)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("timestep (one sample; evenly chosen neurons of each layer)")
    return ax


def potentials(activity: Activity, ax: Any = None) -> Any:
    """Histogram of every layer's potential before reset, in thresholds, one row each."""
    ax = _axes(ax, len(activity.layers))
    centres = (np.array(activity.edges[1:]) + np.array(activity.edges[:-1])) / 2
    for index, layer in enumerate(activity.layers):
        shares = np.array(layer.histogram)
        scaled = 0.9 * shares / max(shares.max(), 1e-12)
        ax.fill_between(centres, index, index - scaled, step="mid", color=_BLUE, alpha=0.75, lw=0)
    ax.axvline(1.0, color=_ORANGE, lw=1.2)
    ax.set_yticks(range(len(activity.layers)), [a.name for a in activity.layers], fontsize=7)
    ax.set_ylim(len(activity.layers) - 0.5, -1.1)
    ax.set_xlabel("potential before reset, in thresholds (line: the threshold)")
    return ax


def distribution(profile: Profile, ax: Any = None) -> Any:
    """How many spikes the samples take."""
    ax = _axes(ax, 8)
    ax.hist(profile.sample_spikes, bins=min(30, max(4, profile.samples // 2)), color=_BLUE)
    ax.axvline(profile.spikes_per_sample.value, color=_ORANGE, lw=1.2)
    ax.set_xlabel(f"spikes per sample (line: mean; n = {profile.samples})")
    ax.set_ylabel("samples")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def energies(profile: Profile, ax: Any = None) -> Any:
    """Every convention and the conventional networks, on a log axis."""
    items = [*profile.energy, profile.dense, profile.quantised]
    ax = _axes(ax, len(items))
    factor, unit = readable_unit(max(item.total.value for item in items), "mJ")
    values = [factor * item.total.value for item in items]
    colours = [_BLUE] * len(profile.energy) + [_MUTED] * 2
    # points: a bar would start anywhere on a log axis
    ax.scatter(values, [item.convention for item in items], color=colours)
    positive = [value for value in values if value > 0]
    ax.set_xscale("log")
    ax.set_xlim(min(positive, default=1e-9) / 3, max(positive, default=1.0) * 8)
    for index, item in enumerate(items):
        label = f"   {replace(item.total, low=None, high=None).text(factor, unit)}"
        ax.annotate(label, (values[index], index), va="center", fontsize=7)
    ax.invert_yaxis()
    ax.margins(y=0.15)
    ax.set_xlabel(f"energy per sample, {unit} (log scale)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def overview(profile: Profile, activity: Activity | None = None) -> Any:
    """All pictures on one sheet; returns the matplotlib figure."""
    from matplotlib.figure import Figure

    rows = max(len(profile.layers), len({o.layer for o in profile.operations}))
    height = max(3.0, 1.2 + 0.16 * rows)
    count = 3 if activity else 2
    figure = Figure(figsize=(14, count * height), layout="constrained")
    axes = figure.subplots(count, 2)
    figure.suptitle(f"{profile.model}, T = {profile.T}, n = {profile.samples}")
    heat_map(profile, axes[0, 0])
    if profile.energy:
        heat_map(profile, axes[0, 1], profile.energy[0].convention)
    distribution(profile, axes[1, 0])
    energies(profile, axes[1, 1])
    if activity:
        raster(activity, axes[2, 0])
        potentials(activity, axes[2, 1])
    return figure


def _axes(ax: Any, rows: int) -> Any:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.24 * max(4, rows)), layout="constrained")
    return figure.subplots()
