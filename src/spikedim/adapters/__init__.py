"""Networks of other libraries, or of the user's own, under our contract; weights by name."""

from spikedim.adapters.network import AdaptedConfig, AdaptedModel, wrap
from spikedim.adapters.neurons import AdaptedLIF
from spikedim.adapters.registry import register_neuron
from spikedim.adapters.spikingjelly_names import from_spikingjelly, to_spikingjelly

__all__ = [
    "AdaptedConfig",
    "AdaptedLIF",
    "AdaptedModel",
    "from_spikingjelly",
    "register_neuron",
    "to_spikingjelly",
    "wrap",
]
