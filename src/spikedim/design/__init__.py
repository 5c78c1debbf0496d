"""The main job: ``design(dataset, model) -> Plan``; and ``explain_published(datasets)``."""

from spikedim.design.layers import LayerDimension, LayerDimensions, layer_dimensions
from spikedim.design.neuron_inversion import NeuronTarget
from spikedim.design.plan import (
    Agreement,
    Bound,
    DataSummary,
    ModelSummary,
    Operating,
    Plan,
    Recommendation,
    Target,
)
from spikedim.design.planner import DEFAULT_TIMESTEPS, NEURON_GRID, design
from spikedim.design.published import Explanation, explain_published

__all__ = [
    "DEFAULT_TIMESTEPS",
    "NEURON_GRID",
    "Agreement",
    "Bound",
    "DataSummary",
    "Explanation",
    "LayerDimension",
    "LayerDimensions",
    "ModelSummary",
    "NeuronTarget",
    "Operating",
    "Plan",
    "Recommendation",
    "Target",
    "design",
    "explain_published",
    "layer_dimensions",
]
