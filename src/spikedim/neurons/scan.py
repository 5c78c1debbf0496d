"""The arithmetic of the fused LIF kernel: a forward scan and a hand-written reverse scan.

Both work on chunks of neurons small enough to stay in cache for all T steps. The reverse scan
recomputes the potentials, so that nothing but the kernel's own inputs is kept for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikedim.neurons.params import LIFParams
from spikedim.neurons.surrogate import Surrogate

CHUNK_BYTES = 1 << 19  # of one [T, chunk] buffer; a handful of them are live at once


class Inputs(NamedTuple):
    """What a scan reads: sequences [T, N], the rest [N] or scalar; ``None`` state is rest."""

    x: Tensor
    beta: float | Tensor
    threshold: float | Tensor
    u: Tensor | None
    s: Tensor | None
    waiting: Tensor | None

    def part(self, part: slice) -> Inputs:
        """The inputs of some neurons."""
        beta, threshold, u, s, waiting = (_part(value, part) for value in self[1:])
        return Inputs(self.x[:, part], beta, threshold, u, s, waiting)


class Gradients(NamedTuple):
    """What the reverse scan writes: x [T, N], the rest [N]; ``None`` where not wanted."""

    x: Tensor
    beta: Tensor | None
    threshold: Tensor | None
    u: Tensor | None
    s: Tensor | None


def forward(inputs: Inputs, params: LIFParams, final: bool = True) -> tuple[Tensor, Tensor | None]:
    """Spikes [T, N] and, if ``final``, last potentials [N] before reset."""
    x = inputs.x
    spikes = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    last = torch.empty(x.shape[1:], dtype=x.dtype, device=x.device) if final else None
    (buffer,) = _buffers(x, 1)
    for part in _parts(x):
        potentials = _rows(buffer, x.shape[0], part)
        _potentials(inputs.part(part), params, potentials, spikes[:, part])
        if last is not None:
            last[part] = potentials[-1]
    return spikes, last


def backward(
    inputs: Inputs, params: LIFParams, grad_spikes: Tensor, grad_last: Tensor
) -> Gradients:
    """Gradients from those of the spikes [T, N] and of the last potentials ([N] or 0-dim)."""
    x = inputs.x

    def neurons(wanted: bool) -> Tensor | None:
        return torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device) if wanted else None

    out = Gradients(
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        neurons(isinstance(inputs.beta, Tensor)),
        neurons(isinstance(inputs.threshold, Tensor)),
        neurons(inputs.u is not None),
        neurons(inputs.u is not None),
    )
    buffers = _buffers(x, 5)
    for part in _parts(x):
        views = Gradients(out.x[:, part], *(_part(g, part) for g in out[1:]))
        room = [_rows(buffer, x.shape[0] + 1, part) for buffer in buffers]
        _reverse(
            inputs.part(part), params, grad_spikes[:, part], _part(grad_last, part), views, room
        )
    return out


def slopes(inputs: Inputs, params: LIFParams) -> tuple[Tensor, Tensor]:
    """Spikes [T, N] and g·(surrogate derivative) at each potential: what :func:`pull_back` reads.

    For many reverse scans of one forward, which then need not recompute the potentials. The
    neurons have no refractory period.
    """
    x = inputs.x
    spikes, slope = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
    )
    (buffer,) = _buffers(x, 1)
    for part in _parts(x):
        u = _rows(buffer, x.shape[0], part)
        _potentials(inputs.part(part), params, u, spikes[:, part])
        u.sub_(_part(inputs.threshold, part))
        _derivative(u, params.surrogate)
        torch.mul(u, 1 - inputs.beta if params.decay_input else 1, out=slope[:, part])
    return spikes, slope


def pull_back(slope: Tensor, leak: float, grad: Tensor, spikes: Tensor | None) -> Tensor:
    """Gradient of the input [T, ...] from that of the spikes: the reverse scan of detached resets.

    b_t = slope_t·grad_t + leak·(1 − s_t, of a hard reset's ``spikes``)·b_{t+1}; see :func:`slopes`.
    """
    out = slope * grad
    for t in range(len(out) - 2, -1, -1):
        out[t].add_(out[t + 1], alpha=leak)
        if spikes is not None:
            out[t].addcmul_(out[t + 1], spikes[t], value=-leak)
    return out


def _chunk_size(x: Tensor) -> int:
    steps, neurons = x.shape
    if x.device.type != "cpu":
        return max(neurons, 1)
    return max(1, min(neurons, max(1024, CHUNK_BYTES // (x.element_size() * steps))))


def _parts(x: Tensor) -> Iterator[slice]:
    size = _chunk_size(x)
    for start in range(0, x.shape[1], size):
        yield slice(start, min(start + size, x.shape[1]))


def _buffers(x: Tensor, count: int) -> list[Tensor]:
    """Scratch reused by every chunk: fresh pages would cost more than the arithmetic."""
    room = (x.shape[0] + 1) * _chunk_size(x)
    return [torch.empty(room, dtype=x.dtype, device=x.device) for _ in range(count)]


def _rows(buffer: Tensor, rows: int, part: slice) -> Tensor:
    width = part.stop - part.start
    return buffer[: rows * width].view(rows, width)


def _part(value: Any, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) and value.dim() else value


def _potentials(
    inputs: Inputs, params: LIFParams, potentials: Tensor, spikes: Tensor
) -> Tensor | None:
    """Fill potentials before reset and spikes [T, n]; return which steps integrate, if not all.

    The operations and their order are those of the reference, so every rounding is the same.
    """
    x, beta, threshold, u_before, s_before, waiting = inputs
    if params.decay_input:
        torch.mul(x, 1 - beta, out=potentials)
    else:
        potentials.copy_(x)
    ready = None
    if params.refractory:
        ready = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    base = torch.empty_like(potentials[0])
    for u, s, t in zip(potentials, spikes, range(x.shape[0]), strict=True):
        if u_before is not None and s_before is not None:
            if params.delayed_reset:
                torch.mul(u_before, beta, out=base)
                _reset(base, s_before, threshold, params, base)
            else:
                _reset(u_before, s_before, threshold, params, base)
                base.mul_(beta)
            u.add_(base)
            if ready is not None and waiting is not None:
                torch.eq(waiting, 0, out=ready[t])
                _reset(u_before, s_before, threshold, params, base)
                torch.where(ready[t], u, base, out=u)
        torch.ge(u, threshold, out=s)
        if ready is not None:
            s.mul_(ready[t])
            if waiting is None:
                waiting = torch.zeros(s.shape, dtype=torch.int32, device=x.device)
            waiting = torch.where(s > 0, params.refractory, (waiting - 1).clamp_(min=0))
        u_before, s_before = u, s
    return ready


def _reset(y: Tensor, s: Tensor, threshold: float | Tensor, params: LIFParams, out: Tensor) -> None:
    """Write the potential ``y`` after the reset by spikes ``s`` (exactly 0 or 1) to ``out``."""
    if params.reset == "soft":
        if isinstance(threshold, Tensor):
            torch.addcmul(y, threshold.expand_as(y), s, value=-1, out=out)
        else:
            torch.add(y, s, alpha=-threshold, out=out)
    elif params.reset == "hard":
        torch.addcmul(y, y, s, value=-1, out=out)
        if params.v_reset:
            out.add_(s, alpha=params.v_reset)
    elif out is not y:
        out.copy_(y)


def _reverse(
    inputs: Inputs,
    params: LIFParams,
    grad_spikes: Tensor,
    grad_last: Tensor,
    out: Gradients,
    room: list[Tensor],
) -> None:
    """Reverse scan of one chunk; ``room`` is five scratch buffers [T + 1, n].

    With a_t the gradient of u_t, d_t the surrogate's derivative and k_t = du_t/du_{t-1}:
    a_t = d_t·grad_spikes_t + k_{t+1}·a_{t+1}.
    """
    x, beta, threshold, u_start, s_start, _ = inputs
    potentials, spikes = room[0], room[1]
    potentials[0] = 0 if u_start is None else u_start
    spikes[0] = 0 if s_start is None else s_start
    u, u_before, s_before = potentials[1:], potentials[:-1], spikes[:-1]
    ready = _potentials(inputs, params, u, spikes[1:])

    through_spike = not params.detach_reset and params.reset != "none"
    # The common case needs neither potentials nor slope again: overwriting them stays in cache.
    reuse = not through_spike and out.beta is None and out.threshold is None
    slope, a, kept_room = (u, u, s_before) if reuse else (row[1:] for row in room[2:])
    torch.sub(u, threshold, out=slope)
    _derivative(slope, params.surrogate)
    if ready is not None:
        slope *= ready
    leak: float | Tensor = beta
    if ready is not None:
        leak = torch.where(ready, beta, torch.ones((), dtype=x.dtype, device=x.device))
    by_spike = _by_spike(inputs, params, leak, u_before) if through_spike else None

    torch.mul(slope, grad_spikes, out=a)
    a[-1] += grad_last
    hard = params.reset == "hard"
    kept = torch.sub(1, s_before, out=kept_room) if hard else None
    if isinstance(leak, Tensor) or by_spike is not None:
        k = leak if kept is None else kept * leak
        k = torch.as_tensor(k, dtype=x.dtype, device=x.device).expand_as(u)
        if by_spike is not None:
            k = k.clone()
            k[1:].addcmul_(by_spike[1:], slope[:-1])
        for t in range(x.shape[0] - 2, -1, -1):
            a[t].addcmul_(a[t + 1], k[t + 1])
    else:
        for t in range(x.shape[0] - 2, -1, -1):
            if kept is None:
                a[t].add_(a[t + 1], alpha=leak)
            else:
                a[t].addcmul_(a[t + 1], kept[t + 1], value=leak)

    integrated = a if ready is None else a * ready
    torch.mul(integrated, 1 - beta if params.decay_input else 1, out=out.x)
    if out.u is not None and out.s is not None:
        torch.mul(
            a[0], leak[0] if isinstance(leak, Tensor) and leak.dim() == 2 else leak, out=out.u
        )
        if kept is not None:
            out.u.mul_(kept[0])
        if by_spike is not None:
            torch.mul(a[0], by_spike[0], out=out.s)
    if out.beta is not None:
        held = u_before if kept is None else u_before * kept
        if not params.delayed_reset:
            held = torch.empty_like(u)
            _reset(u_before, s_before, threshold, params, held)
        drive = held - x if params.decay_input else held
        torch.sum(integrated * drive, 0, out=out.beta)
    if out.threshold is not None:
        onto_spike = grad_spikes.clone()
        if by_spike is not None:
            onto_spike[:-1].addcmul_(by_spike[1:], a[1:])
        total = onto_spike.mul_(slope)
        if params.reset == "soft":
            total += a * s_before if params.delayed_reset else a * leak * s_before
        torch.sum(total.neg_(), 0, out=out.threshold)


def _derivative(x: Tensor, surrogate: Surrogate) -> None:
    """Overwrite ``x`` with the surrogate's derivative; without new memory for the common ones."""
    a, scale = surrogate.width, surrogate.scale
    if surrogate.kind == "sigmoid":
        x.mul_(a).sigmoid_()
        peak = torch.full((), scale * a, dtype=x.dtype, device=x.device).expand_as(x)
        torch.ops.aten.sigmoid_backward.grad_input(peak, x, grad_input=x)
    elif surrogate.kind == "atan":
        x.mul_(math.pi / 2 * a)
        x.mul_(x).add_(1).reciprocal_().mul_(scale * a / 2)
    else:
        x.copy_(surrogate.derivative(x))


def _by_spike(inputs: Inputs, params: LIFParams, leak: float | Tensor, u_before: Tensor) -> Tensor:
    """du_t/ds_{t-1} through the reset [T, n]."""
    if params.reset == "soft":
        jump = -inputs.threshold if params.delayed_reset else -inputs.threshold * leak
        return torch.as_tensor(jump, dtype=u_before.dtype, device=u_before.device).expand_as(
            u_before
        )
    if params.delayed_reset:
        return params.v_reset - u_before * leak
    return (params.v_reset - u_before) * leak
