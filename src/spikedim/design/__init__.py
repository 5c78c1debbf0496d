"""The main job: ``design(dataset, model) -> Plan``."""

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

__all__ = [
    "DEFAULT_TIMESTEPS",
    "NEURON_GRID",
    "Agreement",
    "Bound",
    "DataSummary",
    "ModelSummary",
    "Operating",
    "Plan",
    "Recommendation",
    "Target",
    "design",
]
