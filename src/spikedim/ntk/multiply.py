"""Matrix products in float32 on a processor by oneDNN, all others by torch's own.

torch hands float32 products to MKL, which on processors of other makers keeps to half of the
vector length. oneDNN, part of the same torch, uses what the processor has: on a Zen 5 core 240
against 100 GFLOP/s. On a processor of Intel the two are equally fast, and products whose operands
would have to be copied for oneDNN stay with MKL.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_FASTER = 1.3  # of oneDNN, to be worth the copies that it needs


def available(x: Tensor) -> bool:
    """Whether oneDNN can multiply matrices like this one."""
    return _linear is not None and x.device.type == "cpu" and x.dtype == torch.float32


def preferred(x: Tensor) -> bool:
    """Whether it is so much faster at them that operands are worth laying out for it."""
    return available(x) and _race() > _FASTER


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT`` of x [..., K] and y [N, K]; contiguous ones are fastest."""
    if available(x) and x.numel() and y.numel():
        out: Tensor = _linear(x.contiguous(), y, None, "none", [], "")
        return out
    return x @ y.mT


@cache
def _race() -> float:
    """Time of torch's own product over that of oneDNN, on this processor."""
    x, y = torch.ones(512, 256), torch.ones(256, 256)

    def fastest(product: Any) -> float:
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return fastest(lambda: x @ y.mT) / fastest(lambda: _linear(x, y, None, "none", [], ""))
