"""Leaky integrate-and-fire dynamics as pure functions of input, parameters and state."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.neurons import fused, reference
from spikedim.neurons.choice import choose
from spikedim.neurons.params import LIFParams, LIFState


def lif(
    x: Tensor,
    params: LIFParams,
    state: LIFState | None = None,
    *,
    kernel: str | None = None,
) -> tuple[Tensor, LIFState]:
    """Simulate a layer of leaky integrate-and-fire neurons over T steps (claim LIF).

    With R the reset (soft: R(y, s) = y − v_th·s; hard: v_reset where s = 1, else y; none: y)
    and g the input gain (1 − beta or 1)::

        u_t = beta·R(u_{t−1}, s_{t−1}) + g·x_t        reset in the step of the spike
        u_t = R(beta·u_{t−1}, s_{t−1}) + g·x_t        delayed_reset=True, the published form
        s_t = 1 where u_t >= v_th, else 0             a neuron at threshold fires

    In a refractory step the neuron is frozen: u_t = R(u_{t−1}, s_{t−1}) and s_t = 0. Running T1
    steps and then T2 from the returned state equals running T1 + T2 steps, gradients included.

    Args:
        x: input current [T, ...neurons], floating; T >= 1.
        params: the neuron; tensor ``beta`` and ``threshold`` broadcast to ``x.shape[1:]``.
        state: where to start; ``None`` is rest (u = 0, no spike).
        kernel: implementation, see :func:`kernel_info`; ``None`` for the automatic choice.

    Returns:
        Spikes [T, ...neurons] in the dtype of ``x`` (values in (0, 1) with ``smooth``), and the
        final state.

    Raises:
        ConfigError: ``x`` is not floating or has no steps, or a state or parameter does not fit.

    Example:
        >>> spikes, state = lif(torch.ones(4, 2), LIFParams.from_tau(2.0, decay_input=False))
        >>> spikes[:, 0]
        tensor([1., 1., 1., 1.])
    """
    spikes, final = _simulate(x, params, state, kernel, final=True)
    return spikes, cast(LIFState, final)


def lif_spikes(x: Tensor, params: LIFParams) -> Tensor:
    """Spikes [T, ...] of :func:`lif` from rest, without the cost of a final state."""
    return _simulate(x, params, None, None, final=False)[0]


def _simulate(
    x: Tensor, params: LIFParams, state: LIFState | None, kernel: str | None, final: bool
) -> tuple[Tensor, LIFState | None]:
    beta, threshold = prepare(x, params, state)
    chosen = choose(params, kernel, x)
    if chosen != "reference":
        return fused.run(x, beta, threshold, params, state, final, chosen == "triton")
    start = LIFState.rest(x[0]) if state is None else state
    spikes, _, end = reference.run(x, beta, threshold, params, start)
    return spikes, end


def lif_potential(
    x: Tensor, params: LIFParams, state: LIFState | None = None
) -> tuple[Tensor, Tensor, LIFState]:
    """Simulate as :func:`lif` and return the potentials before reset as well.

    Always runs the reference kernel. For arguments and errors see :func:`lif`.

    Returns:
        Spikes [T, ...neurons], potentials u_t before reset [T, ...neurons], final state.
    """
    beta, threshold = prepare(x, params, state)
    start = LIFState.rest(x[0]) if state is None else state
    return reference.run(x, beta, threshold, params, start)


def prepare(
    x: Tensor, params: LIFParams, state: LIFState | None
) -> tuple[float | Tensor, float | Tensor]:
    """Check input, parameters and state against each other.

    Returns:
        beta and threshold in the dtype of ``x`` (floats stay floats).
    """
    if not isinstance(x, Tensor):
        raise ConfigError(f"LIF input is a {type(x).__name__}; expected a tensor [T, ...]")
    if not x.is_floating_point():
        raise ConfigError(
            f"LIF input has dtype {x.dtype}; expected floating currents: cast with x.float()"
        )
    if x.dim() == 0 or x.shape[0] == 0:
        raise ConfigError(
            f"LIF input has shape {tuple(x.shape)}; expected [T, ...] with at least one step (T=0)"
        )
    shape = x.shape[1:]
    beta = _fit("beta", params.beta, x)
    threshold = _fit("threshold", params.threshold, x)
    if not isinstance(threshold, Tensor):
        threshold = _rounded(threshold, x.dtype)
    if state is None:
        return beta, threshold
    for name, value in zip(("u", "s"), state[:2], strict=True):
        if value.shape != shape or value.dtype != x.dtype:
            raise ConfigError(
                f"state.{name} has shape {tuple(value.shape)} and {value.dtype}, but the input has "
                f"neuron shape {tuple(shape)} and {x.dtype}; start a new sequence with state=None"
            )
    if state.refractory.shape != shape:
        raise ConfigError(
            f"state.refractory has shape {tuple(state.refractory.shape)}, but the input has neuron "
            f"shape {tuple(shape)}; start a new sequence with state=None"
        )
    return beta, threshold


@torch.compiler.assume_constant_result
def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype, device="cpu").item()


def _fit(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    shape = x.shape[1:]
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the neuron shape "
            f"{tuple(shape)} of the input"
        )
    return value.to(x.dtype)
