"""Counting rules: what one convolution or matrix product does with the values it is given.

A rule looks at the operands only, never at the result, and returns event counts per *group*: the
leading rows of the operand, from which the caller recovers timestep and sample. All counts are
exact whole numbers (held in float64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

# Elements examined at once: bounds the temporary copies and keeps them in the processor's cache.
_CHUNK = 1 << 18


class Kind(IntEnum):
    """What values an operand holds; a larger kind includes the smaller ones."""

    BINARY = 0
    INTEGER = 1
    REAL = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass
class Events:
    """Events of one operand, by group.

    Attributes:
        kind: the kind of its values.
        counts: float64 [4, groups]: nonzero values, their absolute sum (integers as unit
            spikes), and both weighted with the fan-out of each value.
        elements: number of values in the operand.
    """

    kind: Kind
    counts: Tensor
    elements: int


@dataclass
class Count:
    """One executed operation.

    Attributes:
        op: ``conv``, ``linear`` or ``matmul``.
        dense: MACs were every operand dense, padding included.
        operands: the operands that carry activations, left first.
        coincident: float64 [groups], pairs of nonzero values that meet (``matmul`` only).
    """

    op: str
    dense: int
    operands: tuple[Events, ...]
    coincident: Tensor | None = None


def scan(x: Tensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Kind, Tensor, Tensor]:
    """Classify ``x`` and reduce its events chunk by chunk along the first axis.

    Args:
        x: any real tensor.
        reduce: sums a chunk [n, ...] of nonnegative weights to [n, ...].

    Returns:
        The kind, ``reduce`` of the nonzero mask, and ``reduce`` of the absolute values (for a
        real ``x`` the mask again, since a real value is not a number of spikes).
    """
    if not x.is_floating_point():
        x = x.to(torch.float32)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind = Kind.BINARY
    nonzero, units = [], []
    rows = max(1, _CHUNK * x.shape[0] // max(1, x.numel()))
    for chunk in x.split(rows):
        chunk = chunk.to(work)
        here = _kind(chunk)
        kind = max(kind, here)
        mask = chunk if here is Kind.BINARY else (chunk != 0).to(work)
        events = reduce(mask).to(torch.float64)
        nonzero.append(events)
        integer = here is Kind.INTEGER
        units.append(reduce(chunk.abs()).to(torch.float64) if integer else events)
    return kind, torch.cat(nonzero), torch.cat(units)


def _kind(x: Tensor) -> Kind:
    if torch.equal(x, x * x):
        return Kind.BINARY
    return Kind.INTEGER if torch.equal(x, x.round()) else Kind.REAL


def convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Count:
    """Count a convolution over any number of spatial axes; groups are the rows of ``x``.

    The fan-out of an input value is the number of windows that cover its position (a product
    over axes) times the output channels of its group.
    """
    space = tuple(x.shape[2:])
    kernel = tuple(weight.shape[2:])
    geometry = (space, kernel, tuple(stride), tuple(padding), tuple(dilation))
    if transposed:
        outputs = weight.shape[1]
        fan, _ = _fan_transposed(*geometry, tuple(output_padding))
        dense = x.numel() * prod(kernel) * outputs
    else:
        outputs = weight.shape[0] // groups
        fan, windows = _fan(*geometry)
        dense = len(x) * windows * prod(kernel) * weight.shape[1] * weight.shape[0]
    weights = fan.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
    columns = torch.stack([torch.ones_like(weights), weights], 1)  # [positions, 2]

    def reduce(chunk: Tensor) -> Tensor:
        by_channel = chunk.reshape(len(chunk), -1, len(columns)) @ columns  # [n, C, 2]
        return by_channel.sum(1, dtype=torch.float64)

    kind, nonzero, units = scan(x, reduce)
    counts = torch.stack([nonzero[:, 0], units[:, 0], nonzero[:, 1], units[:, 1]])
    counts[2:] *= outputs
    return Count("conv", dense, (Events(kind, counts, x.numel()),))


@lru_cache(maxsize=512)
def _fan(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, int]:
    """Windows covering each input position, flat, and the number of windows."""
    axes, windows = [], 1
    for size, k, s, p, d in zip(space, kernel, stride, padding, dilation, strict=True):
        out = (size + 2 * p - d * (k - 1) - 1) // s + 1
        hits = torch.arange(out)[:, None] * s - p + torch.arange(k) * d
        axes.append(_histogram(hits, size))
        windows *= out
    return _outer(axes), windows


@lru_cache(maxsize=512)
def _fan_transposed(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
) -> tuple[Tensor, int]:
    """Output positions each input position reaches, flat, and the number of output positions."""
    axes, outputs = [], 1
    geometry = zip(space, kernel, stride, padding, dilation, output_padding, strict=True)
    for size, k, s, p, d, extra in geometry:
        out = (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        reached = torch.arange(size)[:, None] * s - p + torch.arange(k) * d
        axes.append(((reached >= 0) & (reached < out)).sum(1).double())
        outputs *= out
    return _outer(axes), outputs


def _histogram(positions: Tensor, size: int) -> Tensor:
    inside = positions[(positions >= 0) & (positions < size)]
    return torch.bincount(inside, minlength=size).double()


def _outer(axes: Sequence[Tensor]) -> Tensor:
    fan = torch.ones(1, dtype=torch.float64)
    for axis in axes:
        fan = (fan[:, None] * axis).flatten()
    return fan


def linear(x: Tensor, outputs: int) -> Count:
    """Count ``x [rows, K] @ weight [K, outputs]``; groups are the rows."""
    kind, nonzero, units = scan(x, lambda chunk: chunk.sum(1))
    counts = torch.stack([nonzero, units, nonzero * outputs, units * outputs])
    return Count("linear", x.numel() * outputs, (Events(kind, counts, x.numel()),))


def matmul(a: Tensor, b: Tensor) -> Count:
    """Count ``a [G, M, K] @ b [G, K, N]`` of two activations; groups are the batch entries.

    The fan-out of a value is N on the left, M on the right. A pair (i, k, j) is coincident
    where both a[i, k] and b[k, j] are nonzero.
    """
    left_kind, left, left_units = scan(a, lambda chunk: chunk.sum(1))  # [G, K]
    right_kind, right, right_units = scan(b, lambda chunk: chunk.sum(2))  # [G, K]
    rows, columns = a.shape[1], b.shape[2]
    return Count(
        "matmul",
        a.numel() * columns,
        (
            Events(left_kind, _weighted(left, left_units, columns), a.numel()),
            Events(right_kind, _weighted(right, right_units, rows), b.numel()),
        ),
        (left * right).sum(1),
    )


def weighted_sum(rows: int, v: Tensor) -> Count:
    """Count the second product of a fused softmax attention, weights [G, rows, K] @ v [G, K, N].

    Softmax weights are never zero; entries behind a mask are not subtracted.
    """
    kind, nonzero, units = scan(v, lambda chunk: chunk.sum(2))  # [G, K]
    groups, inner, columns = v.shape
    full = torch.full((groups, inner), float(rows), dtype=torch.float64, device=v.device)
    return Count(
        "matmul",
        rows * v.numel(),
        (
            Events(Kind.REAL, _weighted(full, full, columns), groups * rows * inner),
            Events(kind, _weighted(nonzero, units, rows), v.numel()),
        ),
        nonzero.sum(1) * rows,
    )


def _weighted(nonzero: Tensor, units: Tensor, fan: int) -> Tensor:
    nonzero, units = nonzero.sum(1), units.sum(1)
    return torch.stack([nonzero, units, nonzero * fan, units * fan])


# Operations that cost something but that no synaptic convention charges, by their aten name.
_CATEGORIES = {
    "normalisation": ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
    "pooling": ("max_pool", "avg_pool", "upsample"),
    "softmax": ("softmax",),
    "reduction": ("sum", "mean", "amax", "amin", "argmax", "argmin", "var", "norm", "cumsum"),
}
_MOVEMENT = frozenset(
    (
        *("clone", "copy", "copy_", "contiguous", "_to_copy", "cat", "stack", "repeat", "index"),
        *("index_select", "gather", "select_scatter", "slice_scatter", "constant_pad_nd", "pad"),
        *("roll", "flip", "embedding", "_unsafe_view", "_reshape_alias", "masked_fill", "where"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "new_zeros"),
        *("new_ones", "new_full", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like"),
        *("arange", "scalar_tensor", "fill_", "zero_", "lift_fresh", "_local_scalar_dense"),
        *("tril", "triu", "rand", "rand_like", "randn", "bernoulli_", "equal", "unfold", "im2col"),
        *("col2im", "pixel_shuffle", "repeat_interleave"),
    )
)


@lru_cache(maxsize=1024)
def category(func: torch._ops.OpOverload) -> str | None:
    """Category of an operation without synapses; ``None`` for one that no rule knows."""
    name = func._schema.name.removeprefix("aten::")
    if func.is_view or name in _MOVEMENT:
        return "movement"
    for label, parts in _CATEGORIES.items():
        if any(name == part or name.strip("_").startswith(part) for part in parts) or (
            label in ("normalisation", "pooling", "softmax") and any(p in name for p in parts)
        ):
            return label
    if torch.Tag.pointwise in func.tags or _is_inplace_pointwise(func, name):
        return "elementwise"
    return None


def _is_inplace_pointwise(func: torch._ops.OpOverload, name: str) -> bool:
    if not name.endswith("_"):
        return False
    packet = getattr(torch.ops.aten, name[:-1], None)
    overload = getattr(packet, func._overloadname, None) if packet is not None else None
    return overload is not None and torch.Tag.pointwise in overload.tags
