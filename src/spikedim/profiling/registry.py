"""Which modules count as spiking neurons."""

from __future__ import annotations

from torch import nn

from spikedim.errors import ConfigError
from spikedim.neurons import LIF

_TYPES: list[type[nn.Module]] = [LIF]


def register_neuron(cls: type[nn.Module]) -> type[nn.Module]:
    """Count modules of ``cls`` (and subclasses) as spiking layers; usable as a class decorator.

    The output, or the first tensor of it, must be spikes [T, B, ...], [T*B, ...] (time first)
    or, in a module called once per step, [B, ...].

    Raises:
        ConfigError: ``cls`` is not a ``torch.nn.Module`` class.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"register_neuron({cls!r}): expected a subclass of torch.nn.Module")
    if cls not in _TYPES:
        _TYPES.append(cls)
    return cls


def neuron_types() -> tuple[type[nn.Module], ...]:
    """Module types counted as spiking layers."""
    return tuple(_TYPES)
