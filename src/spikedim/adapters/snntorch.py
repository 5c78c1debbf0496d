"""Neurons of snnTorch 1.0. They are called once per timestep and silent at their threshold."""

from __future__ import annotations

from typing import Any

from spikedim.adapters.neurons import AdaptedLIF, Kept, Leaky
from spikedim.adapters.surrogates import identify
from spikedim.neurons import LIFParams

LIBRARY = "snntorch"
_RESETS = {"subtract": "soft", "zero": "hard", "none": "none"}
# Whole sequences [T, B, ...] in one call; no state between calls.
_SEQUENCES = ("LeakyParallel", "StateLeaky", "LinearLeaky", "AssociativeLeaky", "LeakyKernel")


def is_neuron(cls: type) -> bool:
    """Whether a class of the library is a spiking neuron (or a base of them)."""
    return ".".join(cls.__module__.split(".")[:2]) == "snntorch._neurons"


def replacement(neuron: Any) -> AdaptedLIF | None:
    """Our layer for a neuron of the library, ``None`` for its other modules."""
    name = type(neuron).__name__
    if not is_neuron(type(neuron)) or name == "RecurrentOneToOne":
        return None
    if name != "Leaky" or not _plain(neuron):
        return Kept(neuron, name in _SEQUENCES, getattr(neuron, "reset_mem", None))
    params = LIFParams(
        beta=float(neuron.beta.detach().clamp(0, 1).mean()),
        threshold=float(neuron.threshold.detach().mean()),
        reset=_RESETS[neuron.reset_mechanism],
        delayed_reset=bool(neuron.reset_delay),
        decay_input=False,
        detach_reset=bool(neuron.reset_delay),
        surrogate=identify(neuron.spike_grad, "snntorch Leaky"),
    )
    return Leaky(neuron, params)


def _plain(neuron: Any) -> bool:
    """Whether nothing beyond leak, threshold and reset is switched on.

    Subtraction without delay is not: it skips the reset of a neuron that is still above threshold
    after its previous one.
    """
    extras = (neuron.inhibition, neuron.state_quant, neuron.surrogate_disable)
    ungraded = bool((neuron.graded_spikes_factor == 1).all())
    late = neuron.reset_delay or neuron.reset_mechanism != "subtract"
    positive = bool((neuron.threshold > 0).all())
    return not any(extras) and ungraded and late and positive
