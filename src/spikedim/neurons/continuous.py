"""Smooth stand-ins of a neuron layer: activation functions without dynamics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.neurons.params import LIFParams

Activation = Callable[[Tensor, LIFParams], Tensor]


def steady_potential(x: Tensor, params: LIFParams) -> Tensor:
    """Potential that constant drive ``x`` reaches without reset: g·x/(1 − beta).

    With beta = 1 it never settles; the gain of one step, g·x, is returned.

    Args:
        x: input current, any shape.
        params: the neuron.
    """
    if isinstance(params.beta, Tensor):
        beta = params.beta.to(x.dtype)
        if params.decay_input:
            return x
        leak = torch.where(beta < 1, 1 - beta, torch.ones_like(beta))
        return x / leak
    if params.decay_input or params.beta == 1:
        return x
    return x / (1 - params.beta)


def surrogate_activation(x: Tensor, params: LIFParams) -> Tensor:
    """Smooth step of the steady potential: ``surrogate.primitive(u∞ − v_th)``, in (0, 1).

    Its slope is the derivative that the spiking network uses backwards.
    """
    return params.surrogate.primitive(steady_potential(x, params) - params.threshold)


def rate_activation(x: Tensor, params: LIFParams) -> Tensor:
    """Firing rate per step of a neuron under constant drive, in continuous time.

    With r0 the reset potential (soft reset: 0) and u∞ the steady potential::

        1/r = t_ref + max(1, n),   n = ln((u∞ − r0)/(u∞ − v_th)) / ln(1/beta)   for u∞ > v_th
                                   n = (v_th − r0)/(g·x)                        for beta = 1

    and r = 0 for weaker drive. With ``delayed_reset=False`` the simulated neuron waits whole steps,
    ceil(n): its rate lies at or below this one and above 1/(1/r + 1). Soft reset without leak loses
    nothing to rounding: there the long-run rate is exactly clamp(g·x/v_th, 0, 1) for t_ref = 0.
    With ``delayed_reset=True`` the rate can lie outside these bounds.

    Raises:
        ConfigError: ``reset="none"``, whose rate is a step, or a leak of 0 (beta = 0), likewise.
    """
    if params.reset == "none":
        raise ConfigError(
            "a neuron with reset='none' fires always or never under constant drive: it has no "
            "smooth rate; use activation='surrogate'"
        )
    beta = torch.as_tensor(params.beta, dtype=x.dtype, device=x.device)
    if (beta <= 0).any():
        raise ConfigError(
            "a neuron with beta=0 has no memory and no smooth rate; use activation='surrogate'"
        )
    start = params.v_reset if params.reset == "hard" else 0.0
    drive = steady_potential(x, params)
    leak = -beta.log()
    # Away from the domain of either formula its argument is replaced, so that no NaN enters the
    # gradient through the branch not taken.
    above = drive > params.threshold
    safe = torch.where(above, drive, torch.as_tensor(params.threshold + 1.0, dtype=x.dtype))
    forgets = torch.where(leak > 0, leak, torch.ones_like(leak))
    leaky = ((safe - start) / (safe - params.threshold)).log() / forgets
    positive = torch.where(drive > 0, drive, torch.ones_like(drive))
    perfect = (params.threshold - start) / positive
    wait = torch.where(leak > 0, leaky, perfect).clamp(min=1.0)
    fires = torch.where(leak > 0, above, drive > 0)
    return torch.where(fires, 1 / (params.refractory + wait), torch.zeros_like(x))


ACTIVATIONS: dict[str, Activation] = {
    "surrogate": surrogate_activation,
    "rate": rate_activation,
}


def activation_function(activation: str | Activation) -> Activation:
    """The activation of that name, or the function itself.

    Raises:
        ConfigError: unknown name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"activation={activation!r} is unknown; choose {' or '.join(ACTIVATIONS)}, or give a "
            "function of (current, LIFParams)"
        )
    return ACTIVATIONS[activation]
