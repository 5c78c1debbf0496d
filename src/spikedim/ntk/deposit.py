"""Per-sample parameter gradients in full, written straight to where they are contracted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spikedim.ntk.layers import CONVOLUTIONS, by_sample, features, patches
from spikedim.ntk.passes import Call

_CACHED = 1 << 17  # numbers
Room = Callable[[nn.Module, str, str, tuple[int, ...]], "tuple[Tensor, bool] | None"]


def deposit(call: Call, g: Tensor, samples: int, steps: int, channels: slice, room: Room) -> None:
    """Write the gradients of one call's parameters, and of the batch norm folded into it.

    Args:
        call: the application of a layer.
        g: gradient at its output, or behind the batch norm folded into it.
        samples, steps: B and T of the run.
        channels: output channels wanted.
        room: for (module, layer path, parameter, shape [B, ...]) the tensor to fill and whether it
            is still empty (else it is added to); ``None`` where the parameter is not wanted.
    """
    module = call.module
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)) or getattr(module, "groups", 1) > 1:
        for name, value in features(module, call.input, g[None], samples, steps):
            _put(room(module, call.layer, name, (samples, value.size)), value.dense()[0])
        return
    inputs, outputs = _rows(call, g, samples, steps, channels)
    total = outputs.sum(2).sum(0)  # [B, O]; over both axes at once is ten times slower
    width = (samples, outputs.shape[-1], inputs.shape[-1])
    norm, scale = call.norm, None if call.scale is None else call.scale[channels]
    bias = module.bias
    if module.weight.requires_grad or (norm is not None and _learns(norm.module, "weight")):
        place = room(module, call.layer, "weight", width) if module.weight.requires_grad else None
        fresh = place is not None and place[1]
        full = place[0].view(width) if place is not None and fresh else g.new_empty(width)
        for step, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
            torch.baddbmm(full, y.mT, x, beta=0 if step == 0 else 1, out=full)
        if norm is not None:
            if _learns(norm.module, "weight"):
                _put(
                    room(norm.module, norm.layer, "weight", total.shape),
                    _normalised(call, full, total, channels),
                )
            assert scale is not None
            full *= scale[:, None]
        if place is not None and not fresh:
            place[0].view(width).add_(full)
    if norm is not None and _learns(norm.module, "bias"):
        _put(room(norm.module, norm.layer, "bias", total.shape), total)
    if bias is not None and bias.requires_grad:
        _put(
            room(module, call.layer, "bias", total.shape), total if scale is None else total * scale
        )


def _learns(module: nn.Module, name: str) -> bool:
    parameter = getattr(module, name, None)
    return parameter is not None and parameter.requires_grad


def _put(place: tuple[Tensor, bool] | None, value: Tensor) -> None:
    if place is None:
        return
    target, fresh = place
    target = target.view(value.shape)
    if fresh:
        target.copy_(value)
    else:
        target.add_(value)


def _normalised(call: Call, full: Tensor, total: Tensor, channels: slice) -> Tensor:
    """Gradients of a folded norm's scale: (⟨G_c, W_c⟩ + (b_c − μ_c) Σg_c)/σ_c, [B, O].

    G is the gradient of the linear layer's weights were the norm the identity.
    """
    assert call.norm is not None
    norm, module = call.norm.module, call.module
    weight = module.weight.detach().flatten(1)[channels]
    inner = torch.cat([(part * weight).sum(-1) for part in full.split(_few(weight))])  # [B, O]
    shift = -norm.running_mean[channels]
    if module.bias is not None:
        shift = shift + module.bias.detach()[channels]
    spread = (norm.running_var[channels] + norm.eps).rsqrt()
    return (inner + shift * total) * spread


def _few(weight: Tensor) -> int:
    """Samples whose gradients stay in cache from one pass to the next."""
    return max(1, _CACHED // weight.numel())


def _rows(
    call: Call, g: Tensor, samples: int, steps: int, channels: slice
) -> tuple[Tensor, Tensor]:
    """Inputs [T, B, R, I] and gradients [T, B, R, O] of every row, time apart where it comes first.

    Views wherever the layout allows: [T, B, ...] is never copied to bring the samples to the front.
    """
    if isinstance(call.module, CONVOLUTIONS):
        if call.columns is None:
            call.columns = patches(call.module, call.input)[:, :, 0]  # [N, L, I]
        inputs, outputs = call.columns, g.flatten(2).mT  # [N, L, O]
        merged = True
    else:
        inputs, outputs, merged = call.input, g, False
    return (
        _by_time(inputs, samples, steps, merged),
        _by_time(outputs[..., channels], samples, steps, merged),
    )


def _by_time(x: Tensor, samples: int, steps: int, merged: bool) -> Tensor:
    """[T, B, R, C] of [T, B, ..., C], [B, ..., C], [T·B·N, ..., C] or [B·N, ..., C]."""
    if not merged and x.ndim > 2 and x.shape[1] == samples and len(x) in (steps, 1):
        y = x
    elif len(x) == samples:
        y = x[None]
    elif len(x) % (steps * samples) == 0:
        y = x.unflatten(0, (steps, samples, -1))
    else:
        return by_sample(x[None], samples, steps, merged).flatten(2, -2)
    return y.flatten(2, -2) if y.ndim > 3 else y[:, :, None]
