"""Fused LIF: one autograd Function over the scans of :mod:`spikedim.neurons.scan`.

Neurons are independent, so a vmapped dimension is just more neurons: both directions have their
own vmap rule. Second derivatives and forward mode differentiate the reference instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikedim.neurons import reference, scan
from spikedim.neurons.params import LIFParams, LIFState


class Setting(NamedTuple):
    """What is not a tensor; ``beta`` and ``threshold`` are ``None`` where they are tensors."""

    params: LIFParams
    beta: float | None
    threshold: float | None
    final: bool
    triton: bool

    @property
    def scan(self) -> Any:
        """The module whose ``forward`` and ``backward`` do the arithmetic."""
        if not self.triton:
            return scan
        from spikedim.neurons import triton_scan

        return triton_scan


def run(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    params: LIFParams,
    state: LIFState | None,
    final: bool,
    triton: bool = False,
) -> tuple[Tensor, LIFState | None]:
    """Simulate ``x`` [T, ...] from ``state`` (``None`` is rest), with Triton's scans or torch's.

    Returns:
        Spikes [T, ...] and, if ``final``, the final state.
    """
    u, s, waiting = (None, None, None) if state is None else state
    setting = Setting(
        params,
        None if isinstance(beta, Tensor) else beta,
        None if isinstance(threshold, Tensor) else threshold,
        final,
        triton,
    )
    spikes, last = _Fused.apply(
        x,
        beta if isinstance(beta, Tensor) else None,
        threshold if isinstance(threshold, Tensor) else None,
        u,
        s,
        waiting if params.refractory else None,
        setting,
    )
    if not final:
        return spikes, None
    return spikes, LIFState(last, spikes[-1], _waiting(spikes, params.refractory, waiting))


def _waiting(spikes: Tensor, refractory: int, before: Tensor | None) -> Tensor:
    """Refractory steps left after the run, from the spikes of its last steps."""
    if not refractory:
        return LIFState.rest(spikes[-1].detach()).refractory if before is None else before
    steps = spikes.shape[0]
    if before is None:
        left = torch.zeros_like(spikes[-1], dtype=torch.int32)
    else:
        left = (before - steps).clamp(min=0)
    for ago in reversed(range(min(refractory, steps))):
        left = torch.where(spikes[steps - 1 - ago] > 0, refractory - ago, left)
    return left


class _Fused(torch.autograd.Function):
    """(x, beta, threshold, u, s, waiting, setting) -> (spikes, last potential)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor | None]:
        x, setting = args[0], args[6]
        spikes, last = setting.scan.forward(
            _inputs(args[:6], setting), setting.params, setting.final
        )
        return spikes.view(x.shape), None if last is None else last.view(x.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.setting = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        x = tensors[0]
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(x)
        if grad_last is None:
            grad_last = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape[1:])
        grads = _FusedBackward.apply(*tensors, grad_spikes, grad_last, ctx.setting)
        return *grads, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None]:
        *tensors, waiting = ctx.saved_tensors
        function = _differentiable(waiting, ctx.setting)
        spikes, last = _jvp(function, tensors, tangents[:5])
        return spikes, last if ctx.setting.final else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batched = _batched(info.batch_size, in_dims, args, sequences=(0,))
        return _Fused.apply(*batched), (1, 0 if args[6].final else None)


class _FusedBackward(torch.autograd.Function):
    """(*inputs, grad_spikes, grad_last, setting) -> gradients of (x, beta, threshold, u, s)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        inputs, (grad_spikes, grad_last, setting) = args[:6], args[6:]
        x, beta, threshold = inputs[:3]
        grads = setting.scan.backward(
            _inputs(inputs, setting),
            setting.params,
            grad_spikes.reshape(x.shape[0], -1),
            _flat(grad_last, x.shape[1:]),
        )
        shape = x.shape[1:]
        return (
            grads.x.view(x.shape),
            None if grads.beta is None else grads.beta.view(shape).sum_to_size(beta.shape),
            None
            if grads.threshold is None
            else grads.threshold.view(shape).sum_to_size(threshold.shape),
            None if grads.u is None else grads.u.view(shape),
            None if grads.s is None else grads.s.view(shape),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.setting = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        function, tensors = _gradient(ctx)
        _, pull = _vjp(function, tensors)
        x, beta, threshold, u, s, grad_spikes, grad_last = pull(cotangents)
        return x, beta, threshold, u, s, None, grad_spikes, grad_last, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        function, tensors = _gradient(ctx)
        moved = iter(_jvp(function, tensors, (*tangents[:5], *tangents[6:8])))
        return tuple(None if value is None else next(moved) for value in tensors[:5])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batched = _batched(info.batch_size, in_dims, args, sequences=(0, 6))
        x, beta, threshold, u, s = _FusedBackward.apply(*batched)
        if beta is not None:
            beta = beta.reshape(_rows(info.batch_size, args[1], in_dims[1]))
        if threshold is not None:
            threshold = threshold.reshape(_rows(info.batch_size, args[2], in_dims[2]))
        return (x, beta, threshold, u, s), (
            1,
            *(None if g is None else 0 for g in (beta, threshold, u, s)),
        )


def _inputs(tensors: tuple[Any, ...], setting: Setting) -> scan.Inputs:
    """Arguments of the Function as flat sequences [T, N] and neurons [N]."""
    x, beta, threshold, u, s, waiting = tensors
    shape = x.shape[1:]
    fixed_beta, fixed_threshold = setting.beta, setting.threshold
    return scan.Inputs(
        x.reshape(x.shape[0], -1),
        fixed_beta if beta is None else _flat(beta, shape),  # type: ignore[arg-type]
        fixed_threshold if threshold is None else _flat(threshold, shape),  # type: ignore[arg-type]
        None if u is None else u.reshape(-1),
        None if s is None else s.reshape(-1),
        None if waiting is None else waiting.reshape(-1),
    )


def _flat(value: Tensor, shape: torch.Size) -> Tensor:
    """``value`` for each neuron [N], or as the single number it is."""
    if value.dim() == 0 or all(stride == 0 for stride in value.stride()):
        return value[(0,) * value.dim()] if value.numel() else value
    return value.expand(shape).reshape(-1)


def _batched(
    size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...], sequences: tuple[int, ...]
) -> list[Any]:
    """Arguments with the vmapped dimension as the first neuron dimension."""
    neuron_dims = args[0].dim() - (in_dims[0] is not None) - 1
    out = []
    for index, (value, dim) in enumerate(zip(args, in_dims, strict=True)):
        if not isinstance(value, Tensor):
            out.append(value)
            continue
        rows = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        if index in sequences:
            rows = rows.movedim(0, 1)
        elif rows.dim() - 1 < neuron_dims:
            shape = rows.shape[1:]
            rows = rows.reshape(size, *(1,) * (neuron_dims - len(shape)), *shape)
        out.append(rows)
    return out


def _rows(size: int, value: Tensor, dim: int | None) -> tuple[int, ...]:
    """Shape of one parameter row per vmapped element."""
    return (size, *(value.shape if dim is None else value.movedim(dim, 0).shape[1:]))


def _differentiable(waiting: Tensor | None, setting: Setting) -> Callable[..., tuple[Any, ...]]:
    """The reference as a function of what gradients flow to."""
    params, fixed_beta, fixed_threshold = setting[:3]

    def function(
        x: Tensor, beta: Tensor | None, threshold: Tensor | None, u: Tensor | None, s: Tensor | None
    ) -> tuple[Any, ...]:
        rest = LIFState.rest(x[0])
        start = LIFState(
            rest.u if u is None else u,
            rest.s if s is None else s,
            rest.refractory if waiting is None else waiting,
        )
        spikes, _, final = reference.run(
            x,
            fixed_beta if beta is None else beta,
            fixed_threshold if threshold is None else threshold,
            params,
            start,
        )
        return spikes, final.u

    return function


def _gradient(ctx: Any) -> tuple[Callable[..., tuple[Any, ...]], list[Any]]:
    """Gradients as a function of inputs and output gradients, and where to evaluate it."""
    *inputs, waiting, grad_spikes, grad_last = ctx.saved_tensors
    function = _differentiable(waiting, ctx.setting)

    def gradient(*args: Any) -> tuple[Any, ...]:
        _, pull = _vjp(function, list(args[:5]))
        return pull(args[5:])

    return gradient, [*inputs, grad_spikes, grad_last]


def _vjp(
    function: Callable[..., tuple[Any, ...]], args: list[Any]
) -> tuple[tuple[Any, ...], Callable[[tuple[Any, ...]], tuple[Any, ...]]]:
    """``torch.func.vjp`` for functions with ``None`` among their arguments and outputs."""
    where = [i for i, value in enumerate(args) if value is not None]

    def fill(values: tuple[Any, ...]) -> list[Any]:
        full = [None] * len(args)
        for i, value in zip(where, values, strict=True):
            full[i] = value
        return full

    def present(*values: Any) -> tuple[Any, ...]:
        return tuple(y for y in function(*fill(values)) if y is not None)

    outputs, pull = torch.func.vjp(present, *(args[i] for i in where))[:2]

    def pull_back(cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(fill(pull(tuple(c for c in cotangents if c is not None))))

    return outputs, pull_back


def _jvp(
    function: Callable[..., tuple[Any, ...]], args: list[Any], tangents: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Forward derivative by two reverse passes, the second differentiating the first.

    Outputs that are ``None`` are left out.
    """
    outputs, pull = _vjp(function, args)
    present = [i for i, value in enumerate(args) if value is not None]
    full = tuple(torch.zeros_like(args[i]) if tangents[i] is None else tangents[i] for i in present)

    def linear(*cotangents: Any) -> tuple[Any, ...]:
        pulled = pull(cotangents)
        return tuple(pulled[i] for i in present)

    push = torch.func.vjp(linear, *(torch.zeros_like(y) for y in outputs))[1]
    return push(full)
