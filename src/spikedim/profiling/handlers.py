"""Which of an operation's arguments are weights, which activations: from aten calls to counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spikedim.profiling import rules
from spikedim.profiling.rules import Count

aten = torch.ops.aten


class Context(Protocol):
    """What a handler asks of the counter."""

    batch_size: int

    def is_weight(self, x: Tensor) -> bool:
        """Whether ``x`` is a parameter or buffer of the model."""
        ...

    def whole(self, x: Tensor) -> tuple[int, ...]:
        """Shape of ``x`` before a view merged axes of it."""
        ...

    def linear(self, x: Tensor, weight: Tensor, shape: Sequence[int] | None = None) -> Count:
        """Count ``x @ weight``."""
        ...


def _convolution(context: Context, x: Tensor, weight: Tensor, *rest: Any) -> list[Count]:
    count = rules.convolution(x, weight, *rest[1:])
    count.shape = context.whole(x)
    return [count]


def _mm(context: Context, a: Tensor, b: Tensor, **options: Any) -> list[Count]:
    return _matrices(context, a, b, context.whole(a), context.whole(b))


def _matrices(
    context: Context, a: Tensor, b: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]
) -> list[Count]:
    """``a @ b``, given their shapes before axes of them were merged."""
    # A product of matrices has no batch axis, so one side is shared by all samples: a weight.
    batch = context.batch_size
    left, right = context.is_weight(a), context.is_weight(b)
    if batch == 1 and not (left or right):  # of one sample both may be activations
        return [rules.matmul(a[None], b[None], (1, *a.shape))]
    a_varies, b_varies = len(a) % batch == 0, b.shape[1] % batch == 0
    if left or (b_varies and not a_varies and not right):
        split = columns[0] == len(b)
        return [context.linear(b.t(), a.t(), columns[1:] if split else b.shape[1:])]
    return [context.linear(a, b, rows)]


def _bmm(context: Context, a: Tensor, b: Tensor, **options: Any) -> list[Count]:
    rows, columns = context.whole(a), context.whole(b)
    if len(a) == 1:  # without its axis, unless the view added it
        wholes = (s[1:] if s == x.shape else s for s, x in ((rows, a), (columns, b)))
        return _matrices(context, a[0], b[0], *wholes)
    if context.is_weight(b):
        return [_weighted(rules.linear(a.flatten(0, 1), b[0], rows), b)]
    if context.is_weight(a):
        flat = b.transpose(1, 2).flatten(0, 1)
        shape = columns[:-2] if columns[-2:] == b.shape[1:] else b.shape[:1]
        return [_weighted(rules.linear(flat, a[0].t(), (*shape, b.shape[2])), a)]
    return [rules.matmul(a, b, rows)]


def _weighted(count: Count, weight: Tensor) -> Count:
    """A batch of matrices: as many weights as it holds apart from repeats."""
    repeats = weight.stride(0) == 0
    count.weights = weight[0].numel() if repeats else weight.numel()
    return count


def _attention(
    context: Context, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any
) -> list[Count]:
    q3, k3, v3 = (x.flatten(0, -3) for x in (q, k, v))
    scores = rules.matmul(q3, k3.transpose(1, 2), q.shape)
    scores.written = q3.shape[0] * q3.shape[1] * k3.shape[1]
    return [scores, rules.weighted_sum(q3.shape[1], v3, q.shape)]


def _second(handler: Callable[..., list[Count]]) -> Callable[..., list[Count]]:
    """The handler of ``bias + a @ b``."""
    return lambda context, bias, a, b, **options: handler(context, a, b)


def _vector(context: Context, a: Tensor, v: Tensor) -> list[Count]:
    return _mm(context, a, v[:, None])


HANDLERS: dict[Any, Callable[..., list[Count]]] = {
    aten.convolution: _convolution,
    aten.mm: _mm,
    aten.addmm: _second(_mm),
    aten.bmm: _bmm,
    aten.baddbmm: _second(_bmm),
    aten.mv: _vector,
    aten.addmv: _second(_vector),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
}
