"""Which foreign neuron becomes what: converters by class, and how to add one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from spikedim.adapters import norse, snntorch, spikingjelly
from spikedim.adapters.neurons import AdaptedLIF, Kept
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams

Converter = Callable[[nn.Module], "LIFParams | AdaptedLIF | None"]

# Each module says which of its library's classes are neurons and what stands for them.
LIBRARIES = {module.LIBRARY: module for module in (spikingjelly, snntorch, norse)}
_CUSTOM: dict[type[nn.Module], tuple[Converter, bool | None]] = {}


def register_neuron(
    cls: type[nn.Module], *, multistep: bool | None = None
) -> Callable[[Converter], Converter]:
    """Decorator of a function that says what a neuron class of the user's own is.

    Args:
        cls: the class; exactly this one, not its subclasses.
        multistep: whether one call sees all timesteps [T, B, ...]; by default it does, unless the
            network is called once per timestep (``layout="step"``).

    The function receives the neuron and returns its :class:`~spikedim.neurons.LIFParams`, or an
    :class:`AdaptedLIF` module, or ``None`` to keep the neuron as it is: then its method ``reset``,
    if it has one, is called around every forward pass.

    Raises:
        ConfigError: ``cls`` is not a ``torch.nn.Module`` class.

    Example:
        >>> from spikedim.adapters import register_neuron
        >>> from spikedim.neurons import LIFParams
        >>> class MyNeuron(torch.nn.Module): ...
        >>> @register_neuron(MyNeuron)
        ... def convert(neuron):
        ...     return LIFParams(beta=neuron.leak, threshold=neuron.v_th, reset="soft")
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"register_neuron({cls!r}): expected a subclass of torch.nn.Module")

    def decorate(converter: Converter) -> Converter:
        _CUSTOM[cls] = converter, multistep
        return converter

    return decorate


def replacement(neuron: nn.Module, multistep: bool) -> AdaptedLIF | None:
    """The layer that takes the place of ``neuron``; ``None`` if it is no neuron we know."""
    cls = type(neuron)
    if cls in _CUSTOM:
        converter, own = _CUSTOM[cls]
        multistep = multistep if own is None else own
        made = converter(neuron)
        if isinstance(made, LIFParams):
            return AdaptedLIF(made, multistep)
        return Kept(neuron, multistep, getattr(neuron, "reset", None)) if made is None else made
    library = LIBRARIES.get(root(cls))
    return None if library is None else library.replacement(neuron)


def derived(neuron: nn.Module) -> str | None:
    """The library whose neuron this class extends in ways we cannot know, if there is one."""
    if isinstance(neuron, AdaptedLIF) or root(type(neuron)) in LIBRARIES:
        return None
    for base in type(neuron).__mro__[1:]:
        library = LIBRARIES.get(root(base))
        if library is not None and library.is_neuron(base):
            return library.LIBRARY
    return None


def root(cls: type) -> str:
    """Name of the top-level package of a class."""
    return cls.__module__.partition(".")[0]


def how_to_register(name: str) -> str:
    """The three lines that make a neuron class known."""
    return (
        "\n  @spikedim.adapters.register_neuron(" + name + ")"
        "\n  def convert(neuron):"
        '\n      return spikedim.neurons.LIFParams(beta=..., threshold=..., reset="soft")'
        "\n(return None instead to keep the neuron as it is, without potentials or neuron sweeps)"
    )
