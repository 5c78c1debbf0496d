"""Spiking neurons: LIF dynamics, surrogate derivatives, layers and recording."""

from spikedim.neurons.choice import KERNELS, KernelInfo, kernel_info
from spikedim.neurons.lif import lif, lif_potential
from spikedim.neurons.module import LIF, PLIF
from spikedim.neurons.params import RESETS, LIFParams, LIFState
from spikedim.neurons.recording import Recording, Trace, record
from spikedim.neurons.surrogate import SURROGATES, Surrogate, spike, surrogate

__all__ = [
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
    "kernel_info",
    "lif",
    "lif_potential",
    "record",
    "spike",
    "surrogate",
]
