"""Weight gradients of layers that read spikes, as sums over the spikes alone.

The gradient of a weight from input i is Σ_r a_ri g_r over the rows r (timesteps, tokens). Where
few of the a_ri differ from 0, adding up the g_r of those takes less time than a matrix product
with all, on a processor; on an accelerator dense products are faster. Inputs may be any numbers,
gradients must be finite.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedim.ntk.compiled import compiled, in_threads, parts

DENSITY = 0.45  # of inputs other than 0, below which sums are faster than a product,
OUTPUTS = 32  # if there are so many outputs to add up at once
ROWS = 8  # and so many rows that where a feature starts takes little memory
WORK = 1 << 25  # multiplications of the product, enough to be worth compiled code
SPLIT = 1 << 22  # additions that are worth a thread


class Spikes:
    """Inputs other than 0 of one call of a layer, by sample and input feature.

    Args:
        starts: where those of each pair of a sample and a feature start, [B·I + 1].
        rows: their rows.
        values: their values.
        dense: bytes of all inputs they were found in.
    """

    def __init__(self, starts: Any, rows: Any, values: Any, dense: int) -> None:
        self._starts, self._rows, self._values, self.dense = starts, rows, values, dense

    @classmethod
    def of(cls, x: Tensor, outputs: int) -> Spikes | None:
        """Spikes of inputs [B, I, T, R], if sums over them are faster for so many outputs."""
        fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        each = x.shape[2] * x.shape[3]
        large = outputs >= OUTPUTS and each >= ROWS and x.numel() * outputs >= WORK
        if not (fits and large):
            return None
        starts = np.empty(len(x) * x.shape[1] + 1, np.int64)
        most = int(DENSITY * x.numel())
        rows = np.empty(most + each, np.uint16 if each <= 1 << 16 else np.int32)
        values = np.empty(most + each, x.numpy().dtype)
        found = compiled(_collect)(x.numpy(), starts, rows, values, most)
        if found < 0:
            return None
        return cls(starts, rows[:found].copy(), _small(values[:found]), x.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return int(self._starts.nbytes + self._rows.nbytes + self._values.nbytes)

    def outer(self, g: Tensor, out: Tensor, weight: Tensor | None, inner: Tensor) -> None:
        """Sums of every sample, and their inner products with the weights of each output.

        Args:
            g: gradients [B, T·R, O].
            out: Σ_r a_ri g_r [B, I, O], to fill.
            weight: [I, O], contiguous.
            inner: Σ_i weight_io out_io [B, O], to fill if there are weights.
        """
        add = compiled(_add)
        fixed = out.new_empty(0, g.shape[-1]) if weight is None else weight
        arrays = [t.numpy() for t in (g, fixed, out, inner)]
        threads = min(torch.get_num_threads(), 1 + len(self._rows) * g.shape[-1] // SPLIT)
        samples = parts(len(g), threads)
        outputs = parts(g.shape[-1], max(1, threads // max(1, len(samples))))

        def part(place: tuple[tuple[int, int], tuple[int, int]]) -> None:
            (low, high), (first, last) = place
            own = arrays
            if len(outputs) > 1:  # adjacent in memory, for vector instructions
                own = [np.ascontiguousarray(array[..., first:last]) for array in arrays]
            add(self._starts, self._rows, self._values, low, high, *own)
            if len(outputs) > 1:
                arrays[2][low:high, :, first:last] = own[2][low:high]
                if weight is not None:
                    arrays[3][low:high, first:last] = own[3][low:high]

        in_threads(part, product(samples, outputs))


def _small(values: Any) -> Any:
    """A copy in single bytes, if that is exact, as of spikes and sums of a few."""
    with np.errstate(invalid="ignore"):
        counts = values.astype(np.int8)
    return counts if np.array_equal(counts, values) else values.copy()


def _collect(x: Any, starts: Any, rows: Any, values: Any, most: int) -> int:
    """Fill the arrays, which have room for ``most`` and one feature.

    Returns:
        How many there are, or -1 if more than ``most``.
    """
    found = 0
    samples, wide, steps, tokens = x.shape
    for b in range(samples):
        for i in range(wide):
            starts[b * wide + i] = found
            for t in range(steps):
                for r in range(tokens):
                    rows[found], values[found] = t * tokens + r, x[b, i, t, r]
                    found += x[b, i, t, r] != 0  # without a branch, which would be mispredicted
            if found > most:
                return -1
    starts[samples * wide] = found
    return found


def _add(
    starts: Any,
    rows: Any,
    values: Any,
    low: int,
    high: int,
    g: Any,
    weight: Any,
    out: Any,
    inner: Any,
) -> None:
    """Fill the sums of samples ``low`` to ``high``."""
    for b in range(low, high):
        if len(weight):
            inner[b] = 0
        for i in range(out.shape[1]):
            total, place = out[b, i], b * out.shape[1] + i
            total[:] = 0
            k, stop = starts[place], starts[place + 1]
            while k + 4 <= stop:  # four at a time, as every pass reads and writes the total
                g0, g1 = g[b, rows[k]], g[b, rows[k + 1]]
                g2, g3 = g[b, rows[k + 2]], g[b, rows[k + 3]]
                v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
                for o in range(len(total)):
                    total[o] += (v0 * g0[o] + v1 * g1[o]) + (v2 * g2[o] + v3 * g3[o])
                k += 4
            while k < stop:
                g0, v0 = g[b, rows[k]], values[k]
                for o in range(len(total)):
                    total[o] += v0 * g0[o]
                k += 1
            if len(weight):
                for o in range(len(total)):
                    inner[b, o] += weight[i, o] * total[o]
