"""Reference LIF: a loop one can read, differentiated by autograd. Every other kernel must agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikedim.neurons.params import LIFParams, LIFState
from spikedim.neurons.surrogate import spike


def reset(y: Tensor, s: Tensor, threshold: Any, params: LIFParams) -> Tensor:
    """Potential ``y`` after the reset that spikes ``s`` cause."""
    if params.reset == "soft":
        return y - threshold * s
    if params.reset == "hard":
        return y * (1 - s) + params.v_reset * s
    return y


def run(
    x: Tensor, beta: Any, threshold: Any, params: LIFParams, state: LIFState
) -> tuple[Tensor, Tensor, LIFState]:
    """Simulate; ``beta`` and ``threshold`` are floats or tensors in the dtype of ``x`` [T, ...].

    Returns:
        Spikes [T, ...], potentials before reset [T, ...], final state.
    """
    gain = 1 - beta if params.decay_input else 1.0
    u, s, waiting = state
    spikes, potentials = [], []
    for x_t in x.unbind(0):
        fired = s.detach() if params.detach_reset else s
        if params.delayed_reset:
            base = reset(beta * u, fired, threshold, params)
        else:
            base = beta * reset(u, fired, threshold, params)
        u_next = base + gain * x_t
        if params.refractory:
            ready = waiting == 0
            u_next = torch.where(ready, u_next, reset(u, fired, threshold, params))
        u = u_next
        distance = u - threshold
        if params.smooth:
            s = params.surrogate.primitive(distance)
        else:
            s = spike(distance, params.surrogate)
        if params.refractory:
            s = torch.where(ready, s, torch.zeros_like(s))
            waiting = torch.where(s > 0, params.refractory, (waiting - 1).clamp(min=0))
        spikes.append(s)
        potentials.append(u)
    return torch.stack(spikes), torch.stack(potentials), LIFState(u, s, waiting)
