"""Named functions of n tokens that the universal compiler is tried on (claim UNIVERSAL).

Each maps [..., n, d] in [0, 1] to [..., n, d]. All but ``prefix_max`` are permutation-equivariant:
f(Px) = P·f(x) for every reordering P of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

TokenFunction = Callable[[Tensor], Tensor]


def attention(x: Tensor, gain: float = 4.0) -> Tensor:
    """Softmax self-attention ``softmax(gain·x·xᵀ/√d)·x``.

    The gain makes up for inputs that are only in [0, 1]: with gain 1 all weights are nearly equal.
    """
    scores = gain / math.sqrt(x.shape[-1]) * (x @ x.mT)
    return scores.softmax(-1) @ x


def rank(x: Tensor, width: float = 0.1) -> Tensor:
    """Soft rank of each token in each channel, ``(1/n)·Σ_j sigmoid((x_i − x_j)/width)``.

    The rank itself jumps where two tokens tie, and no network approximates a jump uniformly; this
    is its continuous form, and it tends to the rank as ``width`` tends to 0.
    """
    return ((x[..., :, None, :] - x[..., None, :, :]) / width).sigmoid().mean(-2)


def mean_field(x: Tensor, coupling: float = 0.25) -> Tensor:
    """One step of mean-field (Kuramoto) coupling, ``x_i + (K/n)·Σ_j sin(2π(x_j − x_i))``."""
    difference = x[..., None, :, :] - x[..., :, None, :]
    return x + coupling * (2 * math.pi * difference).sin().mean(-2)


def maximum(x: Tensor) -> Tensor:
    """Largest value over the tokens in each channel, given to every token."""
    return x.amax(-2, keepdim=True).expand_as(x)


def prefix_max(x: Tensor) -> Tensor:
    """Largest value over this token and those before it: depends on their order, so is refused."""
    return torch.cummax(x, dim=-2).values


FUNCTIONS: Mapping[str, TokenFunction] = MappingProxyType(
    {
        "attention": attention,
        "rank": rank,
        "mean_field": mean_field,
        "max": maximum,
        "prefix_max": prefix_max,
    }
)
EQUIVARIANT = tuple(name for name in FUNCTIONS if name != "prefix_max")
