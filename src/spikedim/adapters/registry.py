"""Which foreign neuron becomes what: converters by class, and how to add one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from spikedim.adapters import norse, own, snntorch, spikingjelly
from spikedim.adapters.neurons import AdaptedLIF, Kept
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams

Converter = Callable[[nn.Module], "LIFParams | AdaptedLIF | None"]

# Each module says which of its library's classes are neurons and what stands for them.
LIBRARIES = {module.LIBRARY: module for module in (spikingjelly, snntorch, norse, own)}
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
    if it has one, is called around every forward pass; :func:`wrap` says so, because a forgotten
    ``return`` is ``None`` too. It compares what was returned with the neuron on a short random
    current and warns where they fire differently.

    Raises:
        ConfigError: ``cls`` is not a ``torch.nn.Module`` class.

    Example:
        >>> from torch import nn
        >>> from spikedim.neurons import LIFParams, surrogate
        >>> class MyNeuron(nn.Module):
        ...     leak, v_th = 0.5, 1.0
        >>> @register_neuron(MyNeuron)
        ... def convert(neuron):
        ...     return LIFParams(
        ...         beta=neuron.leak, threshold=neuron.v_th, reset="soft",
        ...         decay_input=False,  # u = beta·u + x; True is u = beta·u + (1 − beta)·x
        ...         surrogate=surrogate("atan", 2.0),  # derivative of its spike
        ...     )
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"register_neuron({cls!r}): expected a subclass of torch.nn.Module")

    def decorate(converter: Converter) -> Converter:
        _CUSTOM[cls] = converter, multistep
        return converter

    return decorate


def replacement(neuron: nn.Module, multistep: bool) -> AdaptedLIF | None:
    """The layer that takes the place of ``neuron``; ``None`` if it is no neuron we know.

    Raises:
        ConfigError: what is registered for it returned something else.
    """
    cls = type(neuron)
    if cls in _CUSTOM:
        converter, own = _CUSTOM[cls]
        multistep = multistep if own is None else own
        made = converter(neuron)
        if made is None:
            return Kept(neuron, multistep, getattr(neuron, "reset", None))
        layer = AdaptedLIF(made, multistep) if isinstance(made, LIFParams) else made
        if not isinstance(layer, AdaptedLIF):
            raise ConfigError(
                f"the function registered for {cls.__name__} returned a {type(made).__name__}; "
                "return spikedim.neurons.LIFParams(...), an AdaptedLIF, or None to keep the neuron "
                "as it is"
            )
        layer.stands_for = (neuron,)
        return layer
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


def registered(neuron: nn.Module) -> bool:
    """Whether it is of a class of the user's own that is registered."""
    return type(neuron) in _CUSTOM


def root(cls: type) -> str:
    """Name of the top-level package of a class."""
    return cls.__module__.partition(".")[0]


def how_to_register(name: str) -> str:
    """The lines that make a neuron class known."""
    return (
        "\n  @spikedim.adapters.register_neuron(" + name + ")"
        "\n  def convert(neuron):"
        '\n      return spikedim.neurons.LIFParams(beta=..., threshold=..., reset="soft",'
        '\n          decay_input=False, surrogate=spikedim.neurons.surrogate("atan", 2.0))'
        "\n(decay_input=False is u = beta*u + x, True is u = beta*u + (1 - beta)*x; surrogate is "
        "the derivative of its spike; return None instead to keep the neuron as it is, without "
        "potentials or neuron sweeps)"
    )
