"""Spikes that rounding has moved off 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 4.0  # of s + g - g with g up to a few times s
_SINGLE = 1e-6  # in half precision a few eps of more than 1 are no rounding of whole numbers


def snapped(x: Tensor) -> Tensor:
    """``x`` rounded to whole numbers where all of it lies within a few eps (relative) of them.

    A spike with a straight-through derivative, ``s.detach() + g - g.detach()``, is such a number: 1
    but for rounding where s = 1, and exactly 0 where s = 0. So a small number is no zero. In half
    precision only 1 and −1 are looked for so.
    """
    whole, eps = x.round(), torch.finfo(x.dtype).eps
    near = torch.isclose(x, whole, rtol=_EPS * eps, atol=0.0)
    if eps > _SINGLE:
        near &= (whole.abs() <= 1) | (x == whole)
    return whole if bool(near.all()) else x
