"""Spiking neurons that nothing records: modules of the user's own among known neurons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.adapters.neurons import AdaptedLIF
from spikedim.adapters.registry import LIBRARIES, root
from spikedim.models.base import SpikingModel, evaluating
from spikedim.neurons.rounding import snapped

_T, _SCALES = 8, (10.0, 1.0, 0.1)


def unrecorded(model: SpikingModel) -> dict[str, nn.Module]:
    """Modules, by path, that turn numbers into zeros and ones and are no neurons we know.

    The network runs once, from rest, on random frames of several sizes. A module counts if its
    outputs are zeros and ones, both of them, and its inputs are not; layers of torch, and what
    holds a known neuron, are left out. Of modules inside each other the innermost counts, but a
    spike function (a threshold without memory) belongs to the neuron that calls it. A network that
    does not take this many timesteps is not looked at.
    """
    seen = {path: _Seen(module) for path, module in _unknown(model)}
    if not seen:
        return {}
    weight = next(model.parameters())
    frames = torch.randn(
        len(_SCALES), *model.input_shape, generator=torch.Generator().manual_seed(0)
    )
    x = (frames * torch.tensor(_SCALES)[:, None, None, None]).to(weight)
    with ExitStack() as stack:
        for one in seen.values():
            handle = one.module.register_forward_hook(one.look, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(evaluating(model))
        try:
            with torch.no_grad():
                model.steps(x, _T)
        except Exception:  # of a network that took fewer timesteps before
            return {}
    found = {path: one for path, one in seen.items() if one.fires}
    functions = {
        path
        for path, one in found.items()
        if one.forgets and any(_inside(path, p) and weightless(found[p].module) for p in found)
    }
    neurons = found.keys() - functions
    return {
        path: one.module
        for path, one in found.items()
        if path in neurons and not any(_inside(p, path) for p in neurons)
    }


def own_neuron(network: nn.Module) -> str | None:
    """Name of the first class that may be a neuron of the user's own: a module without layers."""
    for module in network.modules():
        cls = type(module)
        known = {"torch", *LIBRARIES}
        extends = any(root(base) in known for base in cls.__mro__ if base is not nn.Module)
        if module is not network and not extends and weightless(module):
            return cls.__name__
    return None


def weightless(module: nn.Module) -> bool:
    """Whether no module inside it has parameters, as layers have."""
    return not any(True for child in module.children() for _ in child.parameters())


class _Seen:
    """What one module was given and gave, over all its calls."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.numbers = self.silent = self.fired = False
        self.binary = self.pointwise = True
        self.silent_up_to, self.fired_from = -math.inf, math.inf

    def look(
        self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        """Forward hook."""
        given = list(_floats((*args, *options.values())))
        first = output[:1] if isinstance(output, (tuple, list)) else (output,)
        out = next(_floats(first), None)
        if out is None:
            self.binary = False
            return
        out = snapped(out)
        fired = out == 1
        self.binary &= bool((fired | (out == 0)).all())
        self.fired |= bool(fired.any())
        self.silent |= not fired.all()
        self.numbers |= any(not ((x == 0) | (x == 1)).all() for x in given)
        if len(given) == 1 and given[0].shape == out.shape:
            x = given[0]
            if fired.any():
                self.fired_from = min(self.fired_from, float(x[fired].min()))
            if not fired.all():
                self.silent_up_to = max(self.silent_up_to, float(x[~fired].max()))
        else:
            self.pointwise = False

    @property
    def fires(self) -> bool:
        """Zeros and ones, both, out of numbers."""
        return self.binary and self.fired and self.silent and self.numbers

    @property
    def forgets(self) -> bool:
        """Every input above one threshold gave a one, every other a zero."""
        return self.pointwise and self.silent_up_to <= self.fired_from


def _unknown(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are neither layers nor known neurons, nor inside or around one."""
    modules = dict(model.named_modules())
    known = [path for path, module in modules.items() if isinstance(module, AdaptedLIF)]
    for path, module in modules.items():
        near = any(path == p or _inside(path, p) or _inside(p, path) for p in known)
        if path and not near and not _layer(type(module)):
            yield path, module


def _layer(cls: type) -> bool:
    """Whether it is a layer of torch, or what a library made of one."""
    origins = {root(base) for base in cls.__mro__ if base is not nn.Module}
    return root(cls) in ("torch", "spikedim") or (root(cls) in LIBRARIES and "torch" in origins)


def _inside(path: str, other: str) -> bool:
    return path.startswith(f"{other}.")


def _floats(values: Iterable[Any]) -> Iterator[Tensor]:
    return (v for v in values if isinstance(v, Tensor) and v.is_floating_point())
