"""Spiking neurons: LIF dynamics, surrogate derivatives, layers and recording."""

from spikedim.neurons.choice import KERNELS, KernelInfo, kernel_info
from spikedim.neurons.continuous import (
    ACTIVATIONS,
    activation_function,
    rate_activation,
    steady_potential,
    surrogate_activation,
)
from spikedim.neurons.lif import lif, lif_potential
from spikedim.neurons.module import LIF, PLIF, streaming
from spikedim.neurons.params import RESETS, LIFParams, LIFState
from spikedim.neurons.recording import Recording, Trace, record
from spikedim.neurons.surrogate import SURROGATES, Surrogate, spike, surrogate

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "LIF",
    "PLIF",
    "RESETS",
    "SURROGATES",
    "KernelInfo",
    "LIFParams",
    "LIFState",
    "Recording",
    "Surrogate",
    "Trace",
    "activation_function",
    "kernel_info",
    "lif",
    "lif_potential",
    "rate_activation",
    "record",
    "spike",
    "steady_potential",
    "streaming",
    "surrogate",
    "surrogate_activation",
]
