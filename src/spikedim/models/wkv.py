"""Exponentially decaying averages over a sequence: the recurrence of RWKV, without overflow.

Sums are kept as (numerator, denominator, top), the first two in units of e^top, where top is a
running maximum of the exponents. It cancels in the average and needs no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_EMPTY = -1e30  # exponent of an empty sum: finite, so that differences of two stay finite


class Sums(NamedTuple):
    """Numerator and denominator over past tokens, in units of e^top; equal shapes [..., E]."""

    numerator: Tensor
    denominator: Tensor
    top: Tensor

    def detach(self) -> Sums:
        """The same values, without gradients."""
        return Sums(*(part.detach() for part in self))

    def plus(self, other: Sums, decay: Tensor | float) -> Sums:
        """These sums, aged by e^decay, and the ``other``."""
        aged = self.top + decay
        top = torch.maximum(aged, other.top).detach()
        old, new = torch.exp(aged - top), torch.exp(other.top - top)
        return Sums(
            old * self.numerator + new * other.numerator,
            old * self.denominator + new * other.denominator,
            top,
        )


def wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, start: Sums | None = None
) -> tuple[Tensor, Sums]:
    """Average of values v_i with weights that grow with keys and decay with age.

    With r = e^decay::

        wkv_t = (sum_{i<t} e^{k_i - (t-1-i) r} v_i + e^{first + k_t} v_t)
              / (sum_{i<t} e^{k_i - (t-1-i) r}     + e^{first + k_t})

    Chunks of about sqrt(S) tokens run side by side, then they are chained: 2 sqrt(S) steps one
    after the other in place of S. Half precision is computed in single.

    Args:
        decay: logarithm of the decay rate per token, [E].
        first: bonus of the current token, [E].
        k, v: keys and values [S, B, E].
        start: sums of the tokens before, ``None`` for none.

    Returns:
        wkv [S, B, E] and the sums after the last token.
    """
    length, dtype = len(k), v.dtype
    work = torch.promote_types(dtype, torch.float32)
    k, v = k.to(work), v.to(work)
    chunk = math.isqrt(length - 1) + 1
    padding = -length % chunk
    rate = -torch.exp(decay)  # [E], change of the exponent per token
    keys = _chunks(k, chunk, padding, _EMPTY)  # [chunk, chunks, B, E]
    values = _chunks(v, chunk, padding, 0.0)

    nothing = Sums(zero := torch.zeros_like(keys[0]), zero, torch.full_like(zero, _EMPTY))
    inside, local = [], nothing  # tokens of the same chunk before each token
    for key, value in zip(keys, values, strict=True):
        inside.append(local)
        local = local.plus(Sums(value, torch.ones_like(value), key), rate)
    carry = Sums(*(part[0] for part in nothing)) if start is None else start
    before = []  # everything before each chunk
    for parts in zip(*local, strict=True):
        before.append(carry)
        carry = carry.plus(Sums(*parts), rate * chunk)
    age = torch.arange(chunk, device=k.device)[:, None, None, None]
    past = _stacked(before).plus(_stacked(inside), rate * age)  # [chunk, chunks, B, E]
    total = past.plus(Sums(values, torch.ones_like(values), first + keys), 0.0)
    out = (total.numerator / total.denominator).transpose(0, 1).flatten(0, 1)[:length]
    return out.to(dtype), carry._replace(top=carry.top - rate * padding)


def _chunks(x: Tensor, chunk: int, padding: int, fill: float) -> Tensor:
    """[S, B, E] to [chunk, chunks, B, E], filled up at the end."""
    x = functional.pad(x, (0, 0, 0, 0, 0, padding), value=fill)
    return x.unflatten(0, (-1, chunk)).transpose(0, 1)


def _stacked(sums: list[Sums]) -> Sums:
    return Sums(*(torch.stack(parts) for parts in zip(*sums, strict=True)))
