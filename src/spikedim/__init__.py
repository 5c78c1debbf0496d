"""spikedim: the design bench for spiking transformers.

Point it at data and a network; it measures effective dimension, spikes and energy, says how many
timesteps are needed and how sure that is, and checks the answer by running the network::

    from spikedim import load_dataset, measure
    from spikedim.design import design

    data = load_dataset("digits")
    print(measure(data.features()))
    print(design(data, "spikformer_nano"))

Names are imported on first use, so that ``import spikedim`` itself is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("spikedim")

_EXPORTS = {
    "LIF": "neurons",
    "LIFParams": "neurons",
    "create_model": "models",
    "encode": "data",
    "fit": "training",
    "layer_dimensions": "design",
    "lif": "neurons",
    "list_datasets": "data",
    "list_models": "models",
    "load_checkpoint": "models",
    "load_dataset": "data",
    "measure": "dimension",
    "profile": "profiling",
    "represent": "data",
    "sweep_timesteps": "training",
    "timestep_rule": "theory",
    "write_report": "report",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'spikedim' has no attribute {name!r}")
    return getattr(import_module(f"spikedim.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
