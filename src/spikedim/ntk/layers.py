"""Per-sample parameter gradients of single layers, from their input and output gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from spikedim.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_COVERED = (nn.Linear, *CONVOLUTIONS, _BatchNorm, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class Features:
    """Gradients of F functions with respect to one parameter, for each of B samples.

    Either plain, ``g`` [F, B, P], or factored: the gradient of sample b is the sum over rows r of
    the outer products ``g[f, b, r, k] ⊗ a[b, r, k]`` for each group k.

    Attributes:
        g: [F, B, P], or [F, B, R, groups, O].
        a: [B, R, groups, I]; ``None`` if plain.
    """

    g: Tensor
    a: Tensor | None = None

    def joined(self, other: Features) -> Features:
        """The gradient of a parameter used in two calls: rows side by side, or the sum."""
        if self.a is None or other.a is None:
            return Features(self.dense() + other.dense())
        return Features(torch.cat([self.g, other.g], 2), torch.cat([self.a, other.a], 1))

    def dense(self) -> Tensor:
        """Gradients in full, [F, B, P]."""
        if self.a is None:
            return self.g
        f, b, r, k, o = self.g.shape
        # [B, k, F O, R] @ [B, k, R, I]: one product per sample for all F functions
        left = self.g.permute(1, 3, 0, 4, 2).reshape(b, k, f * o, r)
        full = left @ self.a.permute(0, 2, 1, 3)
        return full.view(b, k, f, o, -1).permute(2, 0, 1, 3, 4).reshape(f, b, -1)


def covered(module: nn.Module) -> bool:
    """Whether this layer's parameters have a rule here.

    Weights that are computed from others, as by ``torch.nn.utils.parametrizations``, have none.
    """
    if "weight" not in module._parameters:
        return False
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq  # counted over a batch: samples influence each other
    if isinstance(module, CONVOLUTIONS):
        even = module.padding == "same" and any(k % 2 == 0 for k in module.kernel_size)
        return module.padding_mode == "zeros" and not even
    return isinstance(module, _COVERED)


def features(
    module: nn.Module, x: Tensor, g: Tensor, samples: int, steps: int, merged: bool
) -> Iterator[tuple[str, Features]]:
    """Per-sample gradients of a layer's parameters.

    Args:
        module: the layer.
        x: its input in one call.
        g: gradients at its output, [F, *output shape].
        samples, steps: B and T of the run.
        merged: as of :func:`by_sample`.

    Yields:
        Parameter name and gradient.
    """
    if isinstance(module, nn.Embedding):
        yield "weight", _embedding(module, x, g, samples, steps, merged)
        return
    bias = getattr(module, "bias", None)
    if isinstance(module, (_BatchNorm, nn.LayerNorm)):
        last = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 0
        for name in ("weight", "bias"):
            parameter = getattr(module, name)
            if parameter is None or not parameter.requires_grad:
                continue
            value = g * _normalised(module, x) if name == "weight" else g
            rows = by_sample(value, samples, steps, merged)
            rows = rows.flatten(-last) if last else rows.movedim(3, -1)  # [F, B, R, ..., C]
            yield name, Features(rows.sum(tuple(range(2, rows.ndim - 1))))
        return
    if spatial := isinstance(module, CONVOLUTIONS):
        x, g = patches(module, x), _grouped_output(module, g)
    a, g = by_sample(x[None], samples, steps, merged)[0], by_sample(g, samples, steps, merged)
    if not spatial:
        a, g = a[..., None, :], g[..., None, :]
    a, g = a.flatten(1, -3), g.flatten(2, -3)  # [B, R, groups, I], [F, B, R, groups, O]
    if module.weight.requires_grad:
        yield "weight", Features(g, a)
    if bias is not None and bias.requires_grad:
        yield "bias", Features(g.sum(2).flatten(2))


def by_sample(x: Tensor, samples: int, steps: int, merged: bool) -> Tensor:
    """Bring the sample axis of [F, ..., C] to the front: [F, B, R, ..., C].

    The axes between are read as [T, B, ...] (unless ``merged``: no axis of time stands before the
    samples'), [B, ...], [T·B·N, ...] or [B·N, ...], the first that fits: time (or one step) before
    samples, samples before tokens.

    Raises:
        ModelError: none of them fits.
    """
    first = x.shape[1]
    if not merged and x.ndim > 3 and x.shape[2] == samples and first in (steps, 1):
        return x.transpose(1, 2)
    if first == samples:
        return x[:, :, None]
    if first % (steps * samples) == 0:
        y = x.unflatten(1, (steps, samples, -1))
        return y.transpose(1, 2).flatten(2, 3)
    if first % samples == 0:
        return x.unflatten(1, (samples, -1))
    raise ModelError(
        f"a layer input of shape {tuple(x.shape[1:])} has no axis for {samples} samples and "
        f"{steps} timesteps; use method='jacobian'"
    )


def _normalised(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Inputs of every output position: [N, positions, groups, I]."""
    flat = isinstance(module, nn.Conv1d)
    image = x[:, :, None] if flat else x
    pad, size, stride, dilation = (
        ((0, value[0]) if axis == 0 else (1, value[0])) if flat else value
        for axis, value in (
            (0, padding_of(module)),
            (1, module.kernel_size),
            (1, module.stride),
            (1, module.dilation),
        )
    )
    unfolded = functional.unfold(image, size, dilation, pad, stride)  # [N, C k, L]
    return unfolded.unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2)


def padding_of(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Zeros added on each side of each axis."""
    if isinstance(module.padding, tuple):
        return module.padding
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))


def _grouped_output(module: nn.Conv1d | nn.Conv2d, g: Tensor) -> Tensor:
    """[F, N, C', ...positions] to [F, N, positions, groups, O]."""
    return g.flatten(3).unflatten(2, (module.groups, -1)).permute(0, 1, 4, 2, 3)


def _embedding(
    module: nn.Embedding, ids: Tensor, g: Tensor, samples: int, steps: int, merged: bool
) -> Features:
    """Gradient rows of the tokens that occur, none of padding; as of a linear layer on one-hots."""
    tokens = by_sample(ids[None, ..., None], samples, steps, merged)[0].flatten(1)  # [B, R]
    rows = by_sample(g, samples, steps, merged).flatten(2, -2)  # [F, B, R, E]
    full = g.new_zeros(len(g), samples, module.num_embeddings, module.embedding_dim)
    index = tokens[None, :, :, None].expand_as(rows)
    full.scatter_add_(2, index, rows)
    if module.padding_idx is not None:
        full[:, :, module.padding_idx] = 0
    return Features(full.flatten(2))
