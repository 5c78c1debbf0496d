"""Our own neurons in a network of the user's: [T, B, ...] in one call, from rest at every call."""

from __future__ import annotations

from torch import nn

from spikedim.adapters.neurons import AdaptedLIF, AdaptedPLIF
from spikedim.neurons import LIF, PLIF

LIBRARY = "spikedim"


def is_neuron(cls: type) -> bool:
    """Whether a class of the library is a spiking neuron (or a base of them)."""
    return issubclass(cls, LIF)


def replacement(neuron: nn.Module) -> AdaptedLIF | None:
    """The same neuron where a network expects those of others, ``None`` for other modules."""
    if type(neuron) is PLIF:
        return AdaptedPLIF(neuron.params, neuron.w, multistep=True, from_rest=True)
    if type(neuron) is LIF:
        return AdaptedLIF(neuron.params, multistep=True, from_rest=True)
    return None
