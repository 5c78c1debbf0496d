"""The one-spike phase code of SpikedAttention as pure functions (Hwang et al., NeurIPS 2024).

In a window of T steps a neuron integrates v <- B v + I from 0, which leaves v_T = B^T a with
a = sum_t B^-(t+1) I_t; in the next window it fires at most once, and a spike in step t = k - 1
is worth B^-k. Steps run along the first axis; B > 1 is the base of the code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def phase_weights(T: int, base: float, like: Tensor) -> Tensor:
    """Worth of a spike in each step, B^-1 to B^-T: [T] in the dtype of ``like``."""
    steps = torch.arange(1, T + 1, dtype=torch.float64, device=like.device)
    return (base**-steps).to(like.dtype)


def integrate(current: Tensor, base: float) -> Tensor:
    """Potential v_T after v <- B v + I over currents [T, ...]; a = v_T / B^T."""
    v = torch.zeros_like(current[0])
    for step in current:
        v = base * v + step
    return v


def phase_step(a: Tensor, T: int, base: float, signed: bool = True) -> Tensor:
    """Phase k of the spike that encodes ``a``: the smallest with abs(a) >= B^-k (1 + 1/B) / 2.

    Args:
        a: values, any shape, in units of the neuron's scale; those above 1/B saturate at k = 1.
        T: steps of the window.
        base: B.
        signed: spikes of both signs; otherwise only positive values fire (ReLU).

    Returns:
        Whole numbers 1 to T, and 0 where nothing fires; same shape.
    """
    thresholds = phase_weights(T, base, a).flip(0) * ((1 + 1 / base) / 2)
    reached = torch.searchsorted(thresholds, (a.abs() if signed else a).contiguous(), right=True)
    return torch.where(reached > 0, T + 1 - reached, 0)


def phase_value(k: Tensor, T: int, base: float, like: Tensor) -> Tensor:
    """Worth of spikes of phase ``k``: B^-k, and 0 where k is 0."""
    weights = phase_weights(T, base, like)
    return torch.cat([weights.new_zeros(1), weights])[k]


def phase_train(k: Tensor, T: int, like: Tensor) -> Tensor:
    """Phases ``k`` as spike trains [T, ...] of 0 and 1 in the dtype of ``like``."""
    steps = torch.arange(1, T + 1, device=k.device).view(-1, *[1] * k.ndim)
    return (k == steps).to(like.dtype)


def trace_product(q: Tensor, k: Tensor, base: float, *, legacy: bool = False) -> Tensor:
    """Currents whose integral is the product of two coded matrices.

    With tr the running sum of a train's spike values::

        I_t = q_t tr_k^T + tr_q k_t^T - (tr_q o abs(q_t)) k_t^T

    Integrated over the window, v_T / B^T = q k^T exactly.

    Args:
        q, k: trains [T, ..., n, d] and [T, ..., m, d] of spikes -1, 0, 1 (or scaled ones).
        base: B.
        legacy: subtract (tr_q o q_t) k_t^T as the released code does, which is wrong wherever a
            negative spike of q meets a spike of k in the same step.

    Returns:
        Currents [T, ..., n, m].
    """
    weights = phase_weights(len(q), base, q).view(-1, *[1] * (q.ndim - 1))
    trace_q, trace_k = (q * weights).cumsum(0), (k * weights).cumsum(0)
    both = trace_q * (q.sign() if legacy else (q != 0).to(q.dtype))
    return q @ trace_k.mT + (trace_q - both) @ k.mT


def winner_step(v: Tensor, T: int, base: float) -> Tensor:
    """Phase k of each spike of a winner-oriented softmax over the last axis.

    The largest potential is subtracted; the threshold starts at B^(T-1) ln(B) / 2 below it and
    falls by B^(T-1) ln(B) per step, so that a spike's worth B^-k falls as exp(v / B^(T-1)) does.

    Args:
        v: potentials [..., n] = B^(T-1) x scores.
        T: steps of the window.
        base: B.

    Returns:
        Whole numbers 1 to T, and 0 where nothing fires.
    """
    below = v - v.amax(-1, keepdim=True)
    step = torch.ceil(0.5 - below / (base ** (T - 1) * math.log(base))).clamp(0, T)
    return torch.where(step < T, step + 1, 0).to(torch.int64)


def binary_train(x: Tensor, T: int, base: float) -> Tensor:
    """Input values in [-1, 1] as trains [T, ...] of signed bits, most significant first.

    The first layer integrates them with base 2. A bit of step t is handed on as (B/2)^(t+1), which
    comes to the same in a network that integrates everything with base B. At most as many bits
    are sent as the dtype holds.
    """
    bits, whole = _quantised(x, T)
    out = []
    for t in range(T):
        bit = (whole / 2.0 ** (bits - 1 - t)).floor() % 2 if t < bits else torch.zeros_like(x)
        out.append(x.sign() * bit * (base / 2) ** (t + 1))
    return torch.stack(out)


def binary_value(x: Tensor, T: int) -> Tensor:
    """What :func:`binary_train` is worth: ``x`` rounded towards 0 to T bits."""
    bits, whole = _quantised(x, T)
    return x.sign() * whole / 2.0**bits


def _quantised(x: Tensor, T: int) -> tuple[int, Tensor]:
    """Number of bits that are sent, and magnitudes in units of the last."""
    bits = min(T, round(-math.log2(torch.finfo(x.dtype).eps)))
    return bits, (x.abs() * 2.0**bits).floor().clamp(max=2.0**bits - 1)
