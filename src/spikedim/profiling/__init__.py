"""Spike, operation and energy accounting under named conventions."""

from spikedim.profiling.activity import Activity, LayerActivity, activity
from spikedim.profiling.baselines import Comparison
from spikedim.profiling.categories import CATEGORIES
from spikedim.profiling.conventions import (
    EnergyConvention,
    UnitEnergy,
    convention,
    list_conventions,
)
from spikedim.profiling.energy import Charge, Energy
from spikedim.profiling.gates import Finding, batchnorm_gates
from spikedim.profiling.lipschitz import Lipschitz, lipschitz
from spikedim.profiling.literature import Literature, explain_literature
from spikedim.profiling.neurobench import neurobench_metrics, neurobench_model
from spikedim.profiling.profile import profile
from spikedim.profiling.registry import neuron_types, register_neuron, register_rule
from spikedim.profiling.result import (
    CategoryCount,
    LayerProfile,
    OperationProfile,
    PerCorrect,
    Profile,
    Unsupported,
)
from spikedim.profiling.shapes import OperationShape, Shapes, shapes

__all__ = [
    "CATEGORIES",
    "Activity",
    "CategoryCount",
    "Charge",
    "Comparison",
    "Energy",
    "EnergyConvention",
    "Finding",
    "LayerActivity",
    "LayerProfile",
    "Lipschitz",
    "Literature",
    "OperationProfile",
    "OperationShape",
    "PerCorrect",
    "Profile",
    "Shapes",
    "UnitEnergy",
    "Unsupported",
    "activity",
    "batchnorm_gates",
    "convention",
    "explain_literature",
    "lipschitz",
    "list_conventions",
    "neurobench_metrics",
    "neurobench_model",
    "neuron_types",
    "profile",
    "register_neuron",
    "register_rule",
    "shapes",
]
