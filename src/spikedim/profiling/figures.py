"""Pictures of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spikedim.profiling.result import Profile


def rates(profile: Profile, ax: Any = None) -> Any:
    """Firing rate of every spiking layer with its interval; returns the axes."""
    if ax is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1 + 0.24 * len(profile.layers)), layout="constrained")
        ax = figure.subplots()
    names = [layer.name for layer in profile.layers]
    values = np.array([layer.rate.value for layer in profile.layers])
    ax.barh(names, values, height=0.7, color="#31688e")
    for index, layer in enumerate(profile.layers):
        if layer.rate.low is not None and layer.rate.high is not None:
            ax.plot([layer.rate.low, layer.rate.high], [index, index], color="black", lw=1)
    ax.invert_yaxis()
    ax.set_xlim(0, max(0.01, 1.1 * float(values.max())))
    ax.set_xlabel(f"spikes per neuron and step (T = {profile.T}, n = {profile.samples})")
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
