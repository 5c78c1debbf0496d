"""Whether a registered replacement does what the neuron does: both on one short random current."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.adapters.neurons import AdaptedLIF
from spikedim.adapters.surrogates import identify
from spikedim.errors import SpikedimError, SpikedimWarning
from spikedim.neurons import RESETS, LIFParams, Surrogate
from spikedim.neurons.rounding import snapped

_T = 16
_LEAST_GAIN = 1e-6
_ROUNDING = 1e-3  # share of spikes, and of the largest derivative, that may differ


def difference(neuron: nn.Module, layer: AdaptedLIF, seen: Tensor) -> str:
    """How ``layer`` fires, or is differentiated, otherwise than ``neuron``; empty if it is not.

    It names the options of :class:`LIFParams` that agree, if there are any. A neuron that cannot
    be called with a current alone, or raises whatever at this one, is not compared; nor are two
    that stay silent.

    Args:
        neuron: the original; a copy of it is called, from rest where it has a ``reset``.
        layer: what was registered for it.
        seen: an input of the layer in its network, for its shape and type.
    """
    current = _current(layer, seen[0] if layer.multistep else seen)
    wanted = _response(neuron, current, layer.multistep)
    own = _response(layer, current, layer.multistep)
    if wanted is None or own is None or wanted[0].shape != own[0].shape:
        return ""
    if not (wanted[0].any() or own[0].any()):
        return ""
    name = type(neuron).__name__
    if not _same_spikes(wanted[0], own[0]):
        mend = _mend(layer, current, wanted[0])
        said = f"{mend} gives those of the neuron" if mend else "no other reset or gain gives them"
        return (
            f"{name}: what is registered for it is another neuron: on one random current it fires "
            f"{int(own[0].sum()):,} spikes, {name} {int(wanted[0].sum()):,}; {said}"
        )
    if wanted[1] is not None and own[1] is not None:
        distance = (wanted[1] - own[1]).abs().max()
        if distance > _ROUNDING * torch.maximum(wanted[1].abs().max(), own[1].abs().max()):
            return (
                f"{name}: what is registered for it fires as it does, but its "
                f"{_other_derivative(neuron, layer)}"
            )
    return ""


def _current(layer: AdaptedLIF, frame: Tensor) -> Tensor:
    """[T, ...] that makes a good share of the registered neurons fire, whatever their gain."""
    params = layer.dynamics()
    threshold, gain = (
        torch.as_tensor(v).detach().to(frame) for v in (params.threshold, params.gain)
    )
    draw = torch.randn(_T, *frame.shape, generator=torch.Generator().manual_seed(0)).to(frame)
    return threshold / gain.clamp(min=_LEAST_GAIN) * (0.5 + 1.5 * draw)


def _response(
    module: nn.Module, current: Tensor, multistep: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Spikes [T, ...] and the derivative of the first ones; ``None`` where it cannot be called."""
    x = current.clone().requires_grad_()
    try:
        with torch.enable_grad():
            spikes = _spikes(module, x, multistep)
            (slope,) = torch.autograd.grad(spikes[0].sum(), x)
    except Exception:  # of a neuron we know nothing of
        try:
            with torch.no_grad():
                return snapped(_spikes(module, current, multistep)), None
        except Exception:
            return None
    return snapped(spikes.detach()), slope[0]


def _spikes(module: nn.Module, x: Tensor, multistep: bool) -> Tensor:
    """Spikes of a copy of the module, from rest."""
    module = copy.deepcopy(module).eval()
    if isinstance(module, AdaptedLIF):
        module.begin()
    elif callable(reset := getattr(module, "reset", None)):
        reset()
    if multistep:
        return _first(module(x))
    return torch.stack([_first(module(x_t)) for x_t in x])


def _first(output: object) -> Tensor:
    spikes = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(spikes, Tensor):
        raise TypeError(f"a neuron gave a {type(spikes).__name__}")
    return spikes


def _same_spikes(a: Tensor, b: Tensor) -> bool:
    return bool((a != b).float().mean() <= _ROUNDING)


def _mend(layer: AdaptedLIF, current: Tensor, wanted: Tensor) -> str:
    """The fewest other options that give the wanted spikes, as they are written; else empty."""
    for params, said in _others(layer.params):
        found = _response(AdaptedLIF(params, layer.multistep), current, layer.multistep)
        if found is not None and _same_spikes(wanted, found[0]):
            return said
    return ""


def _others(params: LIFParams) -> Iterator[tuple[LIFParams, str]]:
    options = ("decay_input", "reset", "delayed_reset")
    values = itertools.product((False, True), RESETS, (False, True))
    tried: list[dict[str, Any]] = [
        {n: v for n, v in zip(options, row, strict=True) if v != getattr(params, n)}
        for row in values
    ]
    for changes in sorted(tried, key=len):
        if changes:
            try:
                yield (
                    replace(params, **changes),
                    ", ".join(f"{n}={v!r}" for n, v in changes.items()),
                )
            except SpikedimError:  # out of the domain together
                continue


def _other_derivative(neuron: nn.Module, layer: AdaptedLIF) -> str:
    """Which derivative is another: the surrogate's only where the neuron is seen to have one."""
    registered, found = _said(layer.params.surrogate), _surrogate(neuron, layer)
    if found is None or _said(found) == registered:
        return "derivative (training, ntk) is another"
    return (
        f"surrogate derivative (training, ntk) is another, {registered}; "
        f"surrogate={_said(found)} is its own"
    )


def _surrogate(neuron: nn.Module, layer: AdaptedLIF) -> Surrogate | None:
    """That of the neuron, where it can be told from its response at rest."""
    params = layer.params

    def fire(potential: Tensor) -> Tensor:
        x = ((potential + params.threshold) / params.gain)[None, None]
        return _spikes(neuron, x, layer.multistep)[0, 0]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SpikedimWarning)
            return identify(fire, type(neuron).__name__)
    except Exception:  # of a neuron we know nothing of
        return None


def _said(surrogate: Surrogate) -> str:
    scale = "" if surrogate.scale == 1 else f", scale={surrogate.scale:g}"
    return f'surrogate("{surrogate.kind}", {surrogate.width:g}{scale})'
