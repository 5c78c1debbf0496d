"""Spike, operation and energy accounting under named conventions."""

from spikedim.profiling.conventions import (
    EnergyConvention,
    UnitEnergy,
    convention,
    list_conventions,
)
from spikedim.profiling.baselines import Comparison
from spikedim.profiling.energy import Charge, Energy
from spikedim.profiling.gates import Finding, batchnorm_gates
from spikedim.profiling.lipschitz import Lipschitz, lipschitz
from spikedim.profiling.profile import profile
from spikedim.profiling.registry import neuron_types, register_neuron
from spikedim.profiling.result import (
    CategoryCount,
    LayerProfile,
    OperationProfile,
    Profile,
    Unsupported,
)

__all__ = [
    "CategoryCount",
    "Charge",
    "Energy",
    "EnergyConvention",
    "Finding",
    "LayerProfile",
    "Lipschitz",
    "OperationProfile",
    "Profile",
    "UnitEnergy",
    "Unsupported",
    "batchnorm_gates",
    "convention",
    "lipschitz",
    "list_conventions",
    "neuron_types",
    "profile",
    "register_neuron",
]
