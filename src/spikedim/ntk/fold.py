"""Per-sample gradients of P numbers, folded with random signs to k."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedim.ntk.compiled import compiled, in_threads, parts
from spikedim.ntk.gram import Setup

_SPLIT = 1 << 20  # numbers that are worth a thread


class Fold:
    """Folds gradients, as they come, to rows y_c = Σ_j s_j g_j over the j with j mod k = c.

    The signs s are ±1, independent and as likely, so that inner products of rows have those of the
    gradients as their mean.

    Args:
        setup: what is differentiated.
        seed: of all signs.
        random_sums: each sketch is of one sum of outputs; else each is of all of them.
    """

    def __init__(self, setup: Setup, seed: int, random_sums: bool) -> None:
        self._seed, self._random_sums = seed, random_sums
        sizes = {n: p.numel() for n, p in setup.model.named_parameters() if p.requires_grad}
        ends = np.cumsum([0, *sizes.values()])
        self._place = {name: (i, int(ends[i])) for i, name in enumerate(sizes)}
        self._length = int(ends[-1])
        self._kept: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, full: Tensor, name: str, function: int, rows: Tensor) -> None:
        """Add gradients [B, P] of a parameter to sketches [m, B, k].

        All parameters of all sums lie side by side and are folded as one vector.
        """
        rows, full = rows[function : function + 1] if self._random_sums else rows, full.to(rows)
        index, start = self._place[name]
        start = (start + function * self._length) % rows.shape[-1]
        for place, row in enumerate(rows):
            minus = self._minus(function, index, place, full)
            if full.device.type == "cpu":
                _fold(full, minus, start, row)
            else:
                _fold_at_once(torch.where(minus, -full, full), start, row)

    def _minus(self, function: int, index: int, place: int, full: Tensor) -> Tensor:
        """Where signs are −1, [P]; kept as bits, because drawing takes longer than folding."""
        count, key = full.shape[1], (function, index, place)
        if key not in self._kept:
            draw = np.random.default_rng((self._seed, 1, *key)).bytes(-(-count // 8))
            self._kept[key] = torch.from_numpy(np.frombuffer(draw, np.uint8).copy()).to(full.device)
        bits = self._kept[key]
        if full.device.type == "cpu":
            return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool))
        masks = torch.tensor([1 << i for i in range(7, -1, -1)], dtype=torch.uint8)
        return (bits[:, None] & masks.to(full.device)).flatten()[:count].bool()


def _fold(full: Tensor, minus: Tensor, start: int, row: Tensor) -> None:
    """Add gradients [B, P] with their signs to ``row`` [B, k], the first of them at ``start``."""
    fold = compiled(_add)
    arrays = [t.numpy() for t in (full, minus, row)]
    threads = min(torch.get_num_threads(), 1 + full.numel() // _SPLIT)
    in_threads(lambda place: fold(*place, start, *arrays), parts(len(full), threads))


def _add(low: int, high: int, start: int, full: Any, minus: Any, row: Any) -> None:
    """The same for samples ``low`` to ``high``, in one pass over the gradients."""
    for b in range(low, high):
        first, at = 0, start
        while first < full.shape[1]:
            stop = min(full.shape[1], first + row.shape[1] - at)
            total, signs, part = row[b, at:], minus[first:stop], full[b, first:stop]
            for c in range(len(part)):
                total[c] += -part[c] if signs[c] else part[c]
            first, at = stop, 0


def _fold_at_once(full: Tensor, start: int, row: Tensor) -> None:
    """Add gradients [B, P] to ``row`` [B, k], the first of them at ``start``."""
    count, k = full.shape[1], row.shape[-1]
    lead = min(-start % k, count)
    whole = lead + (count - lead) // k * k
    row[:, start : start + lead] += full[:, :lead]
    row += full[:, lead:whole].unflatten(1, (-1, k)).sum(1)
    row[:, : count - whole] += full[:, whole:]
