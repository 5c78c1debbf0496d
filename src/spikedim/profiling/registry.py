"""Tables users extend: which modules are spiking neurons, how an operation is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from spikedim.errors import ConfigError
from spikedim.neurons import LIF
from spikedim.profiling.categories import CATEGORIES
from spikedim.profiling.rules import Count

Rule = Callable[..., Count | Sequence[Count] | str]

_TYPES: list[type[nn.Module]] = [LIF]


def register_neuron(cls: type[nn.Module]) -> type[nn.Module]:
    """Count modules of ``cls`` (and subclasses) as spiking layers; usable as a class decorator.

    The output, or the first tensor of it, must be spikes [T, B, ...], [T*B, ...] (time first),
    [B, T, ...] in a network adapted with ``layout="BT"`` or, in a module called once per step,
    [B, ...]. Synapses inside the module are counted, the rest of what it does is its update.

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


_RULES: dict[Any, Rule] = {}


def register_rule(operation: Any, rule: Rule | str) -> None:
    """Count calls of ``operation`` by ``rule``, in place of any rule that ships.

    Args:
        operation: a PyTorch operation, ``torch.ops.namespace.name`` or one of its overloads; the
            namespace may be that of your own library.
        rule: called with the arguments of each call, returns a :class:`Count` or several (built
            with :func:`rules.linear`, :func:`rules.matmul`, :func:`rules.convolution`, or by
            hand), or the name of a category without synapses. Where every call is of one
            category its name may be given instead.

    Raises:
        ConfigError: not an operation, or an unknown category.

    Example:
        >>> import torch
        >>> from spikedim.profiling import register_rule, rules
        >>> register_rule(torch.ops.aten.cumsum, "reduction")
        >>> register_rule(torch.ops.aten.cdist, lambda a, b: rules.matmul(a, b.mT))
    """
    packet = getattr(operation, "overloadpacket", operation)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise ConfigError(
            f"register_rule({operation!r}): expected an operation such as torch.ops.aten.cumsum"
        )
    if isinstance(rule, str):
        if rule not in (*CATEGORIES, "movement"):
            raise ConfigError(
                f"register_rule({packet}): unknown category {rule!r}; choose one of "
                f"{', '.join(CATEGORIES)}, movement, or give a function"
            )
        label = rule
        _RULES[packet] = lambda *args, **kwargs: label
    else:
        _RULES[packet] = rule


def counting_rule(func: Any) -> Rule | None:
    """The user's rule for an operation, if there is one."""
    return _RULES.get(func.overloadpacket) if _RULES else None
