"""Position-gated output projection: a gate per head and position in front of the projection.

Cirrincione (arXiv 2604.23681) proposes one "at parameter overhead below 1.6 % of the standard
output projection"; the abstract gives no formula. Our reading, with Y_h the output of head h and
W_h its rows of the projection::

    O_i = sum_h g_h(i) Y_h,i W_h + b,      g_h(i) = 2 sigmoid(w_h p_i + b_h)

p_i are the sinusoidal features of position i (Vaswani et al. 2017), without parameters and for any
length. With features as wide as the tokens (D) a gate adds H (D + 1) parameters to D² of the
projection: 1.5645 % for BERT-base (D = 768, H = 12), so the bound is met. Narrow heads leave room
for fewer features, see :func:`gate_features`. Gates start at exactly 1: a fresh gated network
computes what it computes without them, from the same draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError

GATES = ("none", "position", "constant")
OVERHEAD = 0.016
BASE = 10_000.0


def check_gate(config: Any) -> None:
    """Raise ConfigError unless ``config.gate`` is one of :data:`GATES`."""
    if config.gate not in GATES:
        raise ConfigError(f"gate={config.gate!r}: expected one of {', '.join(GATES)}")


def gate_features(width: int, heads: int) -> int:
    """Position features per gate: as many as ``width`` and 1.6 % of width² allow, at least one.

    A network whose heads are so many and narrow that one feature is too much exceeds the bound;
    :attr:`PositionGate.overhead` says by how much.
    """
    return max(1, min(width, int(OVERHEAD * width**2 / heads) - 1))


def position_features(grid: tuple[int, ...], count: int, start: int = 0) -> Tensor:
    """Sinusoidal features [*grid, count] in [-1, 1] of positions, float64.

    Along one axis features 2k and 2k + 1 are sin and cos of (i + start) / 10000^(2k/count); axes
    of an image share the features, rows first.

    Args:
        grid: (N,) or (H, W).
        count: features, 1 or more.
        start: position of the first token, along the first axis.
    """
    share = [count // len(grid) + (axis < count % len(grid)) for axis in range(len(grid))]
    parts = []
    for axis, (length, m) in enumerate(zip(grid, share, strict=True)):
        place = torch.arange(length, dtype=torch.float64) + (start if axis == 0 else 0)
        k = torch.arange(m)
        angle = place[:, None] / BASE ** (2 * (k // 2) / max(m, 1))
        waves = torch.where(k % 2 == 0, angle.sin(), angle.cos())  # [length, m]
        ahead, behind = [1] * axis, [1] * (len(grid) - axis - 1)
        parts.append(waves.view(*ahead, length, *behind, m).expand(*grid, m))
    return torch.cat(parts, -1)


class GateScores(nn.Linear):
    """Linear scores of the heads that start at zero and draw nothing."""

    def reset_parameters(self) -> None:
        """Zero weights and biases."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class PositionGate(nn.Module):
    """Multiplies the output of head h at position i by g_h(i) in (0, 2).

    Args:
        width: channels D of all heads together.
        heads: number of heads H.
        constant: the control of the same parameters: every position has the same features.
    """

    def __init__(self, width: int, heads: int, constant: bool = False) -> None:
        super().__init__()
        self.width, self.heads, self.constant = width, heads, constant
        self.scores = GateScores(gate_features(width, heads), heads)

    @property
    def overhead(self) -> float:
        """Parameters over those of a D x D projection, a fraction."""
        return sum(p.numel() for p in self.parameters()) / self.width**2

    def features(self, grid: tuple[int, ...], start: int = 0) -> Tensor:
        """What the scores read, [*grid, features]."""
        count, weight = self.scores.in_features, self.scores.weight
        if self.constant:  # the root mean square of the waves
            return weight.new_full((*grid, count), math.sqrt(0.5))
        return position_features(grid, count, start).to(weight)

    def gates(self, grid: tuple[int, ...], start: int = 0) -> Tensor:
        """g, [*grid, H]."""
        return 2 * torch.sigmoid(self.scores(self.features(grid, start)))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Heads side by side, [T, B, N or (H, W), D], to the same shape; ``start`` as above."""
        # The scores see the features once per sample and step: whatever reads a layer's input
        # by sample then finds them.
        grid = tuple(x.shape[2:-1])
        features = self.features(grid, start)
        scores = self.scores(features.expand(*x.shape[:-1], features.shape[-1]))
        gates = 2 * torch.sigmoid(scores)  # [T, B, N, H]
        return (x.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(-2)

    def extra_repr(self) -> str:
        """Heads and control."""
        return f"heads={self.heads}, constant={self.constant}"


def make_gate(config: Any, width: int, heads: int) -> PositionGate | None:
    """The gate that ``config.gate`` asks for, or none."""
    if config.gate == "none":
        return None
    return PositionGate(width, heads, constant=config.gate == "constant")


def gated(gate: PositionGate | None, x: Tensor, start: int = 0) -> Tensor:
    """``gate(x)``, or ``x`` itself without a gate."""
    if gate is None:
        return x
    y: Tensor = gate(x, start)
    return y
