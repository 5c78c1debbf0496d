"""The scans of :mod:`spikedim.neurons.scan` as one GPU kernel each, for float32.

A thread takes one neuron through all T steps, so a layer costs one launch instead of a dozen for
every step, and potentials never leave the chip in the forward direction. Fused multiply-add is
off: every operation rounds as the reference does, and spikes are the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikedim.neurons.params import LIFParams
from spikedim.neurons.scan import Gradients, Inputs
from spikedim.neurons.surrogate import Surrogate

_WARPS = 4
_BLOCK = 32 * _WARPS  # one neuron a thread: it alone writes and reads back that neuron's potentials
_TRIANGLE = tl.constexpr(16 / 9)
_ROOT_PI = tl.constexpr(math.sqrt(math.pi))
_HALF_PI = tl.constexpr(math.pi / 2)


@triton.jit
def _reset(y, s, threshold, v_reset, RESET: tl.constexpr):  # type: ignore[no-untyped-def]
    if RESET == "soft":
        y = y - threshold * s
    elif RESET == "hard":
        y = (y - y * s) + v_reset * s
    return y


@triton.jit
def _integrate(  # type: ignore[no-untyped-def]
    x, u, s, waiting, beta, gain, threshold, v_reset, refractory,
    RESET: tl.constexpr, DELAYED: tl.constexpr,
):  # fmt: skip
    """One step: potential before reset, spike, refractory steps left, whether it integrated."""
    if DELAYED:
        base = _reset(u * beta, s, threshold, v_reset, RESET)
    else:
        base = _reset(u, s, threshold, v_reset, RESET) * beta
    ready = waiting == 0
    u = tl.where(ready, x * gain + base, _reset(u, s, threshold, v_reset, RESET))
    s = tl.where((u >= threshold) & ready, 1.0, 0.0)
    waiting = tl.where(s > 0, refractory, tl.maximum(waiting - 1, 0))
    return u, s, waiting, ready


@triton.jit
def _slope(x, a, scale, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Derivative of the surrogate at x; the table of Surrogate."""
    y = a * x
    if KIND == "sigmoid":
        z = 1 / (1 + tl.exp(-y))
        slope = a * z * (1 - z)
    elif KIND == "gaussian":
        slope = (a / _ROOT_PI) * tl.exp(-(y * y))
    elif KIND == "piecewise_linear":
        slope = a * tl.maximum(1 - tl.abs(y), 0.0)
    elif KIND == "piecewise_quadratic":
        slope = a * tl.maximum(1 - _TRIANGLE * (y * y), 0.0)
    elif KIND == "atan":
        z = _HALF_PI * y
        slope = (a / 2) / (1 + z * z)
    elif KIND == "fast_sigmoid":
        z = 1 + tl.abs(y)
        slope = (a / 2) / (z * z)
    else:
        slope = tl.where(tl.abs(x) <= 0.5 / a, a, 0.0)
    return scale * slope


@triton.jit
def _through(u, leak, threshold, v_reset, RESET: tl.constexpr, DELAYED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Derivative of the next potential by this spike, through the reset."""
    if RESET == "soft":
        by_spike = -threshold if DELAYED else -threshold * leak
    elif DELAYED:
        by_spike = v_reset - u * leak
    else:
        by_spike = (v_reset - u) * leak
    return by_spike


@triton.jit
def _start(  # type: ignore[no-untyped-def]
    beta, threshold, u, s, waiting, offsets, inside,
    BETAS: tl.constexpr, THRESHOLDS: tl.constexpr, STATE: tl.constexpr, WAITING: tl.constexpr,
):  # fmt: skip
    """Parameters and state of a block of neurons."""
    zeros = offsets.to(tl.float32) * 0
    beta_ = tl.load(beta + offsets, inside, 0.0) if BETAS else zeros + beta
    threshold_ = tl.load(threshold + offsets, inside, 0.0) if THRESHOLDS else zeros + threshold
    u_ = tl.load(u + offsets, inside, 0.0) if STATE else zeros
    s_ = tl.load(s + offsets, inside, 0.0) if STATE else zeros
    waiting_ = tl.load(waiting + offsets, inside, 0) if WAITING else zeros.to(tl.int32)
    return beta_, threshold_, u_, s_, waiting_


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, beta, gain, threshold, u0, s0, waiting0, spikes, last, n, v_reset, refractory,
    STEPS: tl.constexpr, DECAY: tl.constexpr, RESET: tl.constexpr, DELAYED: tl.constexpr,
    BETAS: tl.constexpr, THRESHOLDS: tl.constexpr, STATE: tl.constexpr, WAITING: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    beta_, threshold_, u, s, waiting = _start(
        beta, threshold, u0, s0, waiting0, offsets, inside, BETAS, THRESHOLDS, STATE, WAITING
    )  # fmt: skip
    gain_ = (1 - beta_) if BETAS and DECAY else offsets.to(tl.float32) * 0 + gain
    at = offsets
    for _ in range(STEPS):
        current = tl.load(x + at, inside, 0.0)
        u, s, waiting, _ready = _integrate(
            current, u, s, waiting, beta_, gain_, threshold_, v_reset, refractory, RESET, DELAYED
        )
        tl.store(spikes + at, s, inside)
        at += n
    if LAST:
        tl.store(last + offsets, u, inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x, beta, gain, threshold, u0, s0, waiting0, grad_spikes, grad_last,
    grad_x, grad_beta, grad_threshold, grad_u, grad_s, idle, n, v_reset, refractory, width, scale,
    STEPS: tl.constexpr, DECAY: tl.constexpr, RESET: tl.constexpr, DELAYED: tl.constexpr,
    THROUGH: tl.constexpr, KIND: tl.constexpr, BETAS: tl.constexpr, THRESHOLDS: tl.constexpr,
    STATE: tl.constexpr, WAITING: tl.constexpr, REFRACTORY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse scan of scan._reverse; ``grad_x`` holds the potentials until it is overwritten.

    ``idle`` [T, N] says which steps did not integrate; only where there is a refractory period.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    beta_, threshold_, u_start, s_start, waiting = _start(
        beta, threshold, u0, s0, waiting0, offsets, inside, BETAS, THRESHOLDS, STATE, WAITING
    )  # fmt: skip
    zeros = offsets.to(tl.float32) * 0
    gain_ = (1 - beta_) if BETAS and DECAY else zeros + gain
    u, s, at = u_start, s_start, offsets
    for _ in range(STEPS):
        current = tl.load(x + at, inside, 0.0)
        u, s, waiting, ready = _integrate(
            current, u, s, waiting, beta_, gain_, threshold_, v_reset, refractory, RESET, DELAYED
        )
        tl.store(grad_x + at, u, inside)
        if REFRACTORY:
            tl.store(idle + at, tl.where(ready, 0, 1).to(tl.int8), inside)
        at += n
    a = tl.load(grad_last + offsets, inside, 0.0)
    total_beta, total_threshold = zeros, zeros
    # Of the step after the current one: du/du of the step, and its derivative by the spike.
    leak_next, by_spike, a_next = zeros, zeros, zeros
    first = zeros + 1  # the gradient of the last potential enters at the last step only
    at -= n
    for back in range(STEPS):
        u = tl.load(grad_x + at, inside, 0.0)
        idle_ = tl.load(idle + at, inside, 0) if REFRACTORY else (waiting * 0).to(tl.int8)
        ready = idle_ == 0
        s = tl.where((u >= threshold_) & ready, 1.0, 0.0)
        slope = tl.where(ready, _slope(u - threshold_, width, scale, KIND), 0.0)
        onto = tl.load(grad_spikes + at, inside, 0.0)
        k = leak_next * (1 - s) if RESET == "hard" else leak_next
        if THROUGH:
            by_spike = _through(u, leak_next, threshold_, v_reset, RESET, DELAYED)
            k = k + by_spike * slope
        a = slope * onto + a * first + k * a_next
        if THRESHOLDS:
            total_threshold -= (onto + by_spike * a_next) * slope
        leak = tl.where(ready, beta_, 1.0)
        integrated = tl.where(ready, a, 0.0)
        if BETAS or THRESHOLDS:
            earlier = back < STEPS - 1
            u_before = tl.load(grad_x + at - n, inside & earlier, 0.0)
            u_before = tl.where(earlier, u_before, u_start)
            if REFRACTORY:
                waited = tl.load(idle + at - n, inside & earlier, 0)
            else:
                waited = idle_
            s_before = tl.where((u_before >= threshold_) & (waited == 0), 1.0, 0.0)
            s_before = tl.where(earlier, s_before, s_start)
            if BETAS:
                if DELAYED:
                    held = u_before * (1 - s_before) if RESET == "hard" else u_before
                else:
                    held = _reset(u_before, s_before, threshold_, v_reset, RESET)
                if DECAY:
                    held = held - tl.load(x + at, inside, 0.0)
                total_beta += integrated * held
            if THRESHOLDS and RESET == "soft":
                total_threshold -= (a * s_before) if DELAYED else (a * leak * s_before)
        tl.store(grad_x + at, integrated * gain_, inside)
        a_next, leak_next, first = a, leak, zeros
        at -= n
    if BETAS:
        tl.store(grad_beta + offsets, total_beta, inside)
    if THRESHOLDS:
        tl.store(grad_threshold + offsets, total_threshold, inside)
    if STATE:
        onto_u = a_next * leak_next
        if RESET == "hard":
            onto_u = onto_u * (1 - s_start)
        tl.store(grad_u + offsets, onto_u, inside)
        if THROUGH:
            by_spike = _through(u_start, leak_next, threshold_, v_reset, RESET, DELAYED)
            tl.store(grad_s + offsets, by_spike * a_next, inside)


def forward(inputs: Inputs, params: LIFParams, final: bool = True) -> tuple[Tensor, Tensor | None]:
    """As :func:`spikedim.neurons.scan.forward`."""
    x = inputs.x.contiguous()
    spikes = torch.empty_like(x)
    last = torch.empty_like(x[0]) if final else None
    n = x.shape[1]
    if n:
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(n, _BLOCK),)](
                x, *_numbers(inputs, params), inputs.u, inputs.s, inputs.waiting, spikes, last,
                n, params.v_reset, params.refractory, **_shared(inputs, params),
                LAST=final,
            )  # fmt: skip
    return spikes, last


def backward(
    inputs: Inputs, params: LIFParams, grad_spikes: Tensor, grad_last: Tensor
) -> Gradients:
    """As :func:`spikedim.neurons.scan.backward`."""
    x = inputs.x.contiguous()
    n = x.shape[1]

    def neurons(wanted: bool) -> Tensor | None:
        return torch.zeros_like(x[0]) if wanted else None

    out = Gradients(
        torch.empty_like(x),
        neurons(isinstance(inputs.beta, Tensor)),
        neurons(isinstance(inputs.threshold, Tensor)),
        neurons(inputs.u is not None),
        neurons(inputs.u is not None),
    )
    idle = torch.empty(x.shape, dtype=torch.int8, device=x.device) if params.refractory else None
    if n:
        surrogate: Surrogate = params.surrogate
        with torch.cuda.device_of(x):
            _backward[(triton.cdiv(n, _BLOCK),)](
                x, *_numbers(inputs, params), inputs.u, inputs.s, inputs.waiting,
                grad_spikes.contiguous(), grad_last.expand(n).contiguous(), out.x, *out[1:], idle,
                n, params.v_reset, params.refractory, surrogate.width, surrogate.scale,
                **_shared(inputs, params),
                THROUGH=not params.detach_reset and params.reset != "none", KIND=surrogate.kind,
                REFRACTORY=params.refractory > 0,
            )  # fmt: skip
    return out


def _numbers(inputs: Inputs, params: LIFParams) -> tuple[Any, Any, Any]:
    """beta, gain and threshold: full tensors on the GPU of ``x``, or numbers."""
    x = inputs.x

    def full(value: float | Tensor) -> float | Tensor:
        if not isinstance(value, Tensor):
            return value
        return value.to(x.device).expand(x.shape[1]).contiguous()

    gain = 1.0
    if params.decay_input and not isinstance(inputs.beta, Tensor):
        gain = 1 - inputs.beta
    return full(inputs.beta), gain, full(inputs.threshold)


def _shared(inputs: Inputs, params: LIFParams) -> dict[str, Any]:
    return {
        "STEPS": inputs.x.shape[0],
        "DECAY": params.decay_input,
        "RESET": params.reset,
        "DELAYED": params.delayed_reset,
        "BETAS": isinstance(inputs.beta, Tensor),
        "THRESHOLDS": isinstance(inputs.threshold, Tensor),
        "STATE": inputs.u is not None,
        "WAITING": inputs.waiting is not None,
        "BLOCK": _BLOCK,
        "num_warps": _WARPS,
        "enable_fp_fusion": False,
    }
