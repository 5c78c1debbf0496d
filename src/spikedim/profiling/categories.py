"""Operations without synapses: what sort each is, and how many arithmetic operations it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

#: Sorts a convention can price, with what one operation of the sort is.
CATEGORIES = {
    "normalisation": "one scale-and-shift per value",
    "pooling": "one addition or comparison per value in a window",
    "softmax": "an exponential, an addition and a division per value",
    "reduction": "one addition or comparison per value read",
    "elementwise": "one operation per value written",
}

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
        loose = label != "reduction"
        if any(name.strip("_").startswith(p) or (loose and p in name) for p in parts):
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


def operations(label: str, args: Sequence[Any], output: Tensor) -> int:
    """Arithmetic operations of one call, see :data:`CATEGORIES`."""
    written = output.numel()
    read = next((x.numel() for x in args if isinstance(x, Tensor)), written)
    if label == "pooling":
        window = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        fixed = window and prod(window) * written
        # An adaptive pool takes its output size for a window: every value is read once.
        return int(fixed) if fixed and len(args) > 2 else read
    if label == "reduction":
        return read
    return 3 * written if label == "softmax" else written
