"""Spikes that rounding has moved off 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 4.0  # of s + g - g with g up to a few times s
_MOST = 1e-5  # in half precision, a few eps are no rounding of whole numbers any more


def snapped(x: Tensor) -> Tensor:
    """``x`` rounded to whole numbers where all of it lies within a few eps (relative) of them.

    A spike with a straight-through derivative, ``s.detach() + g - g.detach()``, is such a number: 1
    but for rounding where s = 1, and exactly 0 where s = 0. So a small number is no zero.
    """
    whole = x.round()
    relative = min(_EPS * torch.finfo(x.dtype).eps, _MOST)
    near = torch.isclose(x, whole, rtol=relative, atol=0.0)
    return whole if bool(near.all()) else x
