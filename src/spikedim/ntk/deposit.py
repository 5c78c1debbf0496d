"""Per-sample parameter gradients in full, written straight to where they are contracted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spikedim.ntk.layers import CONVOLUTIONS, by_sample, features, patches
from spikedim.ntk.multiply import multiply, preferred
from spikedim.ntk.passes import Call
from spikedim.ntk.spikes import Spikes

_CACHED = 1 << 17  # numbers
_LARGE = 1 << 19  # multiplications, of a product that is worth a call of its own
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
        for name, value in features(module, call.input, g[None], samples, steps, call.merged):
            found = value.dense()[0]
            if isinstance(module, nn.Embedding):  # as a linear layer of the same weights has them
                found = found.unflatten(1, module.weight.shape).mT
            _put(room(module, call.layer, name, found.shape), found)
        return
    outputs = _outputs(call, g, samples, steps, channels)
    norm, scale = call.norm, None if call.scale is None else call.scale[channels]
    bias = module.bias
    slopes = norm is not None and _learns(norm.module, "weight")
    total = g.new_empty(samples, outputs.shape[-1])  # Σg of each channel
    inner = torch.empty_like(total)  # ⟨G, W⟩ of each channel
    wide = math.prod(module.weight.shape[1:])
    width = (samples, wide, outputs.shape[-1])
    place = room(module, call.layer, "weight", width) if module.weight.requires_grad else None
    fresh = place is not None and place[1]
    wanted = place is not None or slopes
    reads = module.weight.requires_grad or slopes  # laid out when only measured, too
    inputs = _inputs(call, samples, steps) if reads else None
    full = (
        place[0].view(width)
        if place is not None and fresh
        else g.new_empty(width if wanted else (samples, 0))
    )
    weight = module.weight.detach().flatten(1)[channels].mT.contiguous() if slopes else None
    for start in range(0, samples, step := _few(full, inputs)):
        part = slice(start, start + step)
        rows = _adjacent(outputs[:, part], scale)
        torch.sum(rows, 1, out=total[part])
        if wanted and inputs is not None:
            _outer(inputs, part, rows, full[part], weight, inner[part])
    if place is not None and not fresh:
        place[0].view(width).add_(full)
    if bias is not None and bias.requires_grad:
        _put(room(module, call.layer, "bias", total.shape), total)
    if norm is not None and scale is not None:
        total, inner = total / scale, inner / scale
        if slopes:
            gradient = _of_scale(call, inner, total, channels)
            _put(room(norm.module, norm.layer, "weight", total.shape), gradient)
        if _learns(norm.module, "bias"):
            _put(room(norm.module, norm.layer, "bias", total.shape), total)


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


def _of_scale(call: Call, inner: Tensor, total: Tensor, channels: slice) -> Tensor:
    """Gradients of a folded norm's scale: (⟨G_c, W_c⟩ + (b_c − μ_c) Σg_c)/σ_c, [B, O].

    G is the gradient of the linear layer's weights were the norm the identity.
    """
    assert call.norm is not None
    norm, module = call.norm.module, call.module
    shift = -norm.running_mean[channels]
    if module.bias is not None:
        shift = shift + module.bias.detach()[channels]
    spread = (norm.running_var[channels] + norm.eps).rsqrt()
    return (inner + shift * total) * spread


def _few(full: Tensor, inputs: Tensor | Spikes | None) -> int:
    """Samples whose gradients stay in cache from one pass over them to the next.

    All on an accelerator, and of spikes, whose sums take a single pass.
    """
    if full.device.type != "cpu" or isinstance(inputs, Spikes):
        return len(full)
    return max(1, _CACHED // max(1, full[0].numel()))


def _adjacent(outputs: Tensor, scale: Tensor | None) -> Tensor:
    """[b, T·R, O] of [T, b, R, O], times the scale of the folded norm."""
    rows = outputs.transpose(0, 1)
    out = rows.new_empty(rows.shape)
    if scale is None:
        out.copy_(rows)
    else:
        torch.mul(rows, scale, out=out)
    return out.flatten(1, 2)


def _outer(
    inputs: Tensor | Spikes,
    part: slice,
    outputs: Tensor,
    full: Tensor,
    weight: Tensor | None,
    inner: Tensor,
) -> None:
    """Write a gᵀ of some samples, a [B, I, T·R] and gᵀ [b, T·R, O], to ``full`` [b, I, O].

    Of spikes these are all samples.
    With a weight [I, O], its inner products with them are written to ``inner`` [b, O].
    """
    if isinstance(inputs, Spikes):
        inputs.outer(outputs, full, weight, inner)
        return
    if inputs.is_contiguous() and preferred(inputs):
        products = [multiply(*pair) for pair in zip(inputs[part], outputs.mT, strict=True)]
        torch.stack(products, out=full)
    else:
        torch.bmm(inputs[part], outputs, out=full)
    if weight is not None:
        torch.sum(full * weight, 1, out=inner)


def _inputs(call: Call, samples: int, steps: int) -> Tensor | Spikes:
    """Inputs of every row, [B, I, T·R], laid out for the fastest product and kept with the call."""
    spatial = isinstance(call.module, CONVOLUTIONS)
    if call.rows.value is None:
        x = patches(call.module, call.input)[:, :, 0] if spatial else call.input  # [N, L, I]
        rows = _by_time(x, samples, steps, call.merged).permute(1, 3, 0, 2)  # [B, I, T, R]
        outputs = len(call.module.weight)
        if (spikes := Spikes.of(rows, outputs)) is not None:
            call.rows.value = spikes
        elif preferred(rows) and rows.numel() * outputs >= _LARGE * samples:
            call.rows.value = rows.flatten(2).contiguous()
        else:
            call.rows.value = rows.permute(0, 2, 3, 1).flatten(1, 2).mT
    if not spatial:  # only the shape of the input is read again
        call.input = call.input.new_full((), math.nan).expand(call.input.shape)
    return call.rows.value


def _outputs(call: Call, g: Tensor, samples: int, steps: int, channels: slice) -> Tensor:
    """Gradients of every row, [T, B, R, O].

    A view wherever the layout allows: samples are never copied to the front.
    """
    g = g.flatten(2).mT if isinstance(call.module, CONVOLUTIONS) else g  # [N, L, O]
    return _by_time(g[..., channels], samples, steps, call.merged)


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
