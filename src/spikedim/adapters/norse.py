"""Neurons of Norse 1.1: (input, state) to (spikes, state), silent at their threshold.

The feed-forward LIF (with its synaptic current), LIFBox and IAF have equivalents; others, recurrent
ones among them, are kept: their state is explicit, so nothing has to be reset.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import Tensor

from spikedim.adapters.neurons import AdaptedLIF, Kept, NorseLIF
from spikedim.adapters.surrogates import identify
from spikedim.neurons import LIFParams

LIBRARY = "norse"
_BASES = ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")
_INTEGRATORS = ("LI", "LICell", "LILinearCell", "LIBox", "LIBoxCell")
_SURROGATES = ("super", "triangle", "tanh", "circ", "heavi_erfc", "tent")


def is_neuron(cls: type) -> bool:
    """Whether a class of the library is a spiking neuron (or a base of them)."""
    names = {base.__name__ for base in cls.__mro__ if base.__module__.startswith("norse.")}
    return bool(names & set(_BASES)) and cls.__name__ not in _INTEGRATORS


def replacement(neuron: Any) -> AdaptedLIF | None:
    """Our layer for a neuron of the library, ``None`` for its other modules."""
    cls = type(neuron)
    if not is_neuron(cls):
        return None
    multistep = bool({base.__name__ for base in cls.__mro__} & {"SNN", "SNNRecurrent"})
    p, kind = neuron.p, cls.__name__.removesuffix("Cell")
    if kind not in ("LIF", "LIFBox", "IAF") or p.method not in _SURROGATES:
        return Kept(neuron, multistep)
    rest = _number(p.v_reset if kind == "IAF" else p.v_leak)
    if isinstance(rest, Tensor) or isinstance(_number(p.v_reset), Tensor):
        return Kept(neuron, multistep)
    threshold = importlib.import_module("norse.torch.functional.threshold").threshold
    subtract = getattr(getattr(p, "reset_method", None), "__name__", "") == "reset_subtract"
    decay = None if kind == "IAF" else _number(neuron.dt * p.tau_mem_inv)
    keep = _number(1 - neuron.dt * p.tau_syn_inv) if kind == "LIF" else None
    params = LIFParams(
        beta=1.0 if decay is None else 1 - decay,
        decay_input=decay is not None,
        threshold=_number(p.v_th) - rest,
        reset="soft" if subtract else "hard",
        v_reset=_number(p.v_reset) - rest,
        detach_reset=False,
        surrogate=identify(partial(_fire, threshold, p), f"norse {p.method}"),
    )
    return NorseLIF(params, multistep, rest, keep)


def _fire(threshold: Any, p: Any, x: Tensor) -> Tensor:
    spikes: Tensor = threshold(x, p.method, p.alpha)
    return spikes


def _number(value: Any) -> Any:
    """A float where one number says it all; tensors of several neurons stay tensors."""
    if isinstance(value, Tensor) and value.numel() > 1:
        return value
    return float(value)
