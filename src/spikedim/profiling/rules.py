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

from spikedim.neurons.rounding import snapped

# Elements examined at once: bounds the temporary copies and keeps them in the processor's cache.
_CHUNK = 1 << 18


class Kind(IntEnum):
    """What values an operand holds; a larger kind includes the smaller ones."""

    BINARY = 0
    TERNARY = 1
    INTEGER = 2
    REAL = 3

    def __str__(self) -> str:
        return self.name.lower()


class Row(IntEnum):
    """What the rows of :attr:`Events.counts` hold, each summed over a group.

    ``LIVE`` differs from ``FAN`` where weights are exactly zero: a pruned synapse is not reached.
    """

    NONZERO = 0
    UNITS = 1
    FAN = 2
    UNITS_FAN = 3
    LIVE = 4


@dataclass
class Events:
    """Events of one operand, by group.

    Attributes:
        kind: the kind of its values.
        counts: float64 [5, groups], see :class:`Row`: nonzero values, their absolute sum
            (integers as unit spikes), both weighted with the fan-out of each value, and nonzero
            values weighted with the nonzero weights they reach.
        elements: number of values in the operand.
    """

    kind: Kind
    counts: Tensor
    elements: int


@dataclass
class Count:
    """One executed operation.

    Attributes:
        op: its name in tables: ``conv``, ``linear``, ``matmul``, or that of a user's rule.
        shape: of the operand whose leading axes are time and samples.
        dense: MACs were every operand dense, padding included.
        inside: the same without padding.
        operands: the operands that carry activations, left first: one, or the two of a product.
        coincident: float64 [groups], pairs of nonzero values that meet (a product only).
        weights: weights read.
        written: values the operation writes; the counter fills in the size of its output.
    """

    op: str
    shape: Sequence[int]
    dense: int
    inside: int
    operands: tuple[Events, ...]
    coincident: Tensor | None = None
    weights: int = 0
    written: int = 0


def scan(x: Tensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Kind, Tensor, Tensor]:
    """Classify ``x`` and reduce its events chunk by chunk along the first axis.

    Whole numbers but for rounding are whole (:func:`spikedim.neurons.rounding.snapped`).

    Args:
        x: any real tensor; one on the meta device has no values and counts as real zeros.
        reduce: sums a chunk [n, ...] of nonnegative weights to [n, ...].

    Returns:
        The kind, ``reduce`` of the nonzero mask, and ``reduce`` of the absolute values (for a
        real ``x`` the mask again, since a real value is not a number of spikes).
    """
    if not x.is_floating_point():
        x = x.to(torch.float32)
    if x.is_meta:
        nothing = reduce(x).to(torch.float64)
        return Kind.REAL, nothing, nothing
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind = Kind.BINARY
    nonzero, units = [], []
    rows = max(1, _CHUNK * x.shape[0] // max(1, x.numel()))
    for chunk in x.split(rows):
        given, chunk = chunk, chunk.to(work)
        here = _kind(chunk)
        if here is Kind.REAL:
            chunk = snapped(given).to(work)
            here = _kind(chunk)
        kind = max(kind, here)
        mask = chunk if here is Kind.BINARY else (chunk != 0).to(work)
        events = reduce(mask).to(torch.float64)
        nonzero.append(events)
        integer = here in (Kind.TERNARY, Kind.INTEGER)
        units.append(reduce(_whole(chunk)).to(torch.float64) if integer else events)
    return kind, torch.cat(nonzero), torch.cat(units)


def _kind(x: Tensor) -> Kind:
    if torch.equal(x, x * x):
        return Kind.BINARY
    if not torch.equal(x, x.round()):
        return Kind.REAL
    return Kind.TERNARY if float(x.abs().max()) <= 1 else Kind.INTEGER


def _whole(x: Tensor) -> Tensor:
    """Absolute values of whole numbers, in a type that adds those of one row exactly."""
    x = x.abs()
    large = float(x.max()) > 2**24 / max(1, x.numel() // len(x))
    return x.double() if large else x


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
    inside = len(x) * x.shape[1] * int(fan.sum()) * outputs
    wide = x.dtype == torch.float64 or float(fan.sum()) >= 2**24
    weights = fan.to(x.device, torch.float64 if wide else torch.float32)
    columns = torch.stack([torch.ones_like(weights), weights], 1)  # [positions, 2]

    def reduce(chunk: Tensor) -> Tensor:
        work = torch.promote_types(chunk.dtype, columns.dtype)
        by_channel = chunk.reshape(len(chunk), -1, len(columns)).to(work) @ columns.to(work)
        return by_channel.sum(1, dtype=torch.float64)  # [n, 2] from [n, C, 2]

    kind, nonzero, units = scan(x, reduce)
    counts = torch.stack([nonzero[:, 0], units[:, 0], nonzero[:, 1], units[:, 1], nonzero[:, 1]])
    counts[2:] *= outputs
    if pruned(weight):
        ones = torch.ones(_output_shape(weight, geometry, transposed, output_padding, groups))
        live = torch.ops.aten.convolution_backward(
            ones.to(x.device, torch.float64), x[:1].double(), (weight != 0).double(), None,
            stride, padding, dilation, transposed, output_padding, groups, (True, False, False),
        )[0].round()  # fmt: skip
        counts[4] = scan(x, lambda chunk: chunk.flatten(1).double() @ live.flatten())[1]
    return Count("conv", x.shape, dense, inside, (Events(kind, counts, x.numel()),),
                 weights=weight.numel())  # fmt: skip


def pruned(weight: Tensor) -> bool:
    """Whether a weight is exactly zero somewhere."""
    return not weight.is_meta and int(torch.count_nonzero(weight)) < weight.numel()


def _output_shape(
    weight: Tensor,
    geometry: tuple[tuple[int, ...], ...],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[int]:
    sizes = []
    for n, k, s, p, d, extra in zip(*geometry, output_padding, strict=True):
        reach = d * (k - 1)
        sizes.append((n - 1) * s - 2 * p + reach + extra + 1 if transposed else
                     (n + 2 * p - reach - 1) // s + 1)  # fmt: skip
    return [1, weight.shape[1] * groups if transposed else weight.shape[0], *sizes]


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


def linear(x: Tensor, weight: Tensor, shape: Sequence[int] | None = None) -> Count:
    """Count ``x [rows, K] @ weight [K, outputs]``; groups are the rows.

    Args:
        x: activations.
        weight: only its shape and its zeros matter.
        shape: shape that tells time and samples apart, where it is not that of ``x``.
    """
    outputs = weight.shape[1]
    live = (weight != 0).sum(1, dtype=torch.float64) if pruned(weight) else None

    def reduce(chunk: Tensor) -> Tensor:
        total = chunk.sum(1)
        if live is None:
            return total[:, None]
        return torch.stack([total.double(), chunk.double() @ live], 1)

    kind, nonzero, units = scan(x, reduce)
    counts = torch.stack([nonzero[:, 0], units[:, 0], *3 * [nonzero[:, 0] * outputs]])
    counts[Row.UNITS_FAN] = units[:, 0] * outputs
    if live is not None:
        counts[Row.LIVE] = nonzero[:, 1]
    dense = x.numel() * outputs
    events = Events(kind, counts, x.numel())
    return Count("linear", shape or x.shape, dense, dense, (events,), weights=weight.numel())


def matmul(a: Tensor, b: Tensor, shape: Sequence[int] | None = None) -> Count:
    """Count ``a [G, M, K] @ b [G, K, N]`` of two activations; groups are the batch entries.

    The fan-out of a value is N on the left, M on the right. A pair (i, k, j) is coincident
    where both a[i, k] and b[k, j] are nonzero.
    """
    left_kind, left, left_units = scan(a, lambda chunk: chunk.sum(1))  # [G, K]
    right_kind, right, right_units = scan(b, lambda chunk: chunk.sum(2))  # [G, K]
    rows, columns = a.shape[1], b.shape[2]
    dense = a.numel() * columns
    operands = (
        Events(left_kind, _weighted(left, left_units, columns), a.numel()),
        Events(right_kind, _weighted(right, right_units, rows), b.numel()),
    )
    return Count("matmul", shape or a.shape, dense, dense, operands, (left * right).sum(1))


def weighted_sum(rows: int, v: Tensor, shape: Sequence[int] | None = None) -> Count:
    """Count the second product of a fused softmax attention, weights [G, rows, K] @ v [G, K, N].

    Softmax weights are never zero; entries behind a mask are not subtracted.
    """
    kind, nonzero, units = scan(v, lambda chunk: chunk.sum(2))  # [G, K]
    groups, inner, columns = v.shape
    full = torch.full((groups, inner), float(rows), dtype=torch.float64, device=v.device)
    dense = rows * v.numel()
    operands = (
        Events(Kind.REAL, _weighted(full, full, columns), groups * rows * inner),
        Events(kind, _weighted(nonzero, units, rows), v.numel()),
    )
    return Count("matmul", shape or v.shape, dense, dense, operands, nonzero.sum(1) * rows)


def _weighted(nonzero: Tensor, units: Tensor, fan: int) -> Tensor:
    nonzero, units = nonzero.sum(1), units.sum(1)
    return torch.stack([nonzero, units, nonzero * fan, units * fan, nonzero * fan])
