"""Surrogate derivatives of other libraries, recognised by their shape rather than by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from spikedim.errors import SpikedimWarning
from spikedim.neurons import SURROGATES, Surrogate

_TOLERANCE = 1e-5
_BISECTIONS = 80


def identify(function: Callable[[Tensor], Tensor], name: str) -> Surrogate:
    """The surrogate whose derivative is that of ``function``, a spike with a custom gradient.

    Where half of its peak is reached gives the width that each of our kinds would need; the kind
    that then agrees everywhere is taken. With none, atan(2) stands in, with a warning.

    Args:
        function: potential minus threshold, to spikes.
        name: what the warning calls it.
    """

    def derivative(x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(point).sum(), point)
        return gradient.detach().double()

    try:
        peak = derivative(torch.zeros(1, dtype=torch.float64)).item()
    except RuntimeError:  # no gradient at all
        peak = 0.0
    if peak > 0 and math.isfinite(peak):
        half = _half_width(derivative)
        x = half * torch.linspace(-6, 6, 49, dtype=torch.float64)
        x = x[(x.abs() - half).abs() > 1e-3 * half]  # a rectangle ends there
        wanted = derivative(x)
        for kind in SURROGATES:
            width = float(f"{_unit_half_width(kind) / half:.9g}")
            scale = float(f"{peak / Surrogate(kind, width).peak:.9g}")
            found = Surrogate(kind, width, scale=scale)
            if (found.derivative(x) - wanted).abs().max() < _TOLERANCE * peak:
                return Surrogate(kind, width) if abs(scale - 1) < _TOLERANCE else found
    warnings.warn(
        f"surrogate derivative of {name} has no counterpart: gradients (training, ntk) use "
        "atan(2) instead; spikes are unaffected",
        SpikedimWarning,
        stacklevel=2,
    )
    return Surrogate("atan", 2.0)


@cache
def _unit_half_width(kind: str) -> float:
    return _half_width(Surrogate(kind, 1.0).derivative)


def _half_width(derivative: Callable[[Tensor], Tensor]) -> float:
    """Where a derivative that falls off from zero has half of its peak."""
    low, high = 1e-9, 1e9
    half = derivative(torch.zeros(1, dtype=torch.float64)).item() / 2
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        if derivative(torch.tensor([middle], dtype=torch.float64)).item() >= half:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
