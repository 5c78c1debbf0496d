"""Neurons of SpikingJelly 2.0.0, and of 0.0.0.0.14 with both of its packages.

``activation_based`` neurons carry ``step_mode``; ``clock_driven`` ones are called ``MultiStep...``
where one call sees all timesteps. Potentials are counted from ``v_reset``, which is also rest.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from spikedim.adapters.neurons import AdaptedLIF, AdaptedPLIF, Kept
from spikedim.adapters.surrogates import identify
from spikedim.neurons import LIFParams

LIBRARY = "spikingjelly"
_MULTISTEP = "MultiStep"
_EQUIVALENT = ("IFNode", "LIFNode", "ParametricLIFNode", "SimpleIFNode", "SimpleLIFNode")


def is_neuron(cls: type) -> bool:
    """Whether a class of the library is a spiking neuron (or a base of them)."""
    parts = cls.__module__.split(".")
    return "neuron" in parts and not cls.__name__.startswith("NonSpiking")


def replacement(neuron: Any) -> AdaptedLIF | None:
    """Our layer for a neuron of the library, ``None`` for its other modules."""
    if not is_neuron(type(neuron)):
        return None
    name = type(neuron).__name__
    multistep = name.startswith(_MULTISTEP) or getattr(neuron, "step_mode", "s") == "m"
    kind = name.removeprefix(_MULTISTEP)
    function = neuron.surrogate_function if kind in _EQUIVALENT else None
    if function is None or not getattr(function, "spiking", True) or not _usable(neuron):
        return Kept(neuron, multistep, getattr(neuron, "reset", None))
    rest = neuron.v_reset or 0.0
    options: dict[str, Any] = {
        "threshold": neuron.v_threshold - rest,
        "reset": "soft" if neuron.v_reset is None else "hard",
        "detach_reset": neuron.detach_reset,
        "surrogate": identify(function, f"spikingjelly {type(function).__name__}"),
    }
    if kind.endswith("LIFNode"):
        options["decay_input"] = getattr(neuron, "decay_input", True)
    if kind == "ParametricLIFNode":
        w: nn.Parameter = neuron.w
        return AdaptedPLIF(LIFParams(**options), w, multistep)
    if kind in ("IFNode", "SimpleIFNode"):
        return AdaptedLIF(LIFParams(beta=1.0, decay_input=False, **options), multistep)
    return AdaptedLIF(LIFParams.from_tau(float(neuron.tau), **options), multistep)


def _usable(neuron: Any) -> bool:
    """Whether the threshold is one that can be reached from rest (a readout's is infinite)."""
    threshold = neuron.v_threshold - (neuron.v_reset or 0.0)
    return isinstance(threshold, (int, float)) and 0 < threshold < math.inf
