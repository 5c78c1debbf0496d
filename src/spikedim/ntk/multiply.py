"""Matrix products in float32 on a processor by oneDNN, all others by torch's own.

torch hands float32 products to MKL, which on processors of other makers keeps to half of the
vector length. oneDNN, part of the same torch, uses what the processor has: on a Zen 5 core 240
against 100 GFLOP/s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def preferred(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices like this one."""
    return _linear is not None and x.device.type == "cpu" and x.dtype == torch.float32


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT`` of x [..., K] and y [N, K]; contiguous ones are fastest."""
    if preferred(x) and x.numel() and y.numel():
        out: Tensor = _linear(x.contiguous(), y, None, "none", [], "")
        return out
    return x @ y.mT
