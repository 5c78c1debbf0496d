"""Where a function of n tokens is probed: test points in [0, 1]^{n×d}, modulus of continuity."""

from __future__ import annotations

import torch
from torch import Tensor

from spikedim.circuits.functions import TokenFunction

SCALES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)
_DIRECTIONS = 2
_BESIDE = 1e-9
_ENUMERATED = 1 << 14  # switching points that are all tried, however few are asked for


def lattice(n: int, d: int, points: int, generator: torch.Generator) -> Tensor:
    """Full regular lattice, corners included, of at most ``points`` points [B, n, d].

    Where even the corners are more than that, ``points`` random points of a lattice of 11 per side.
    """
    if 2 ** (n * d) > points:
        shape = (points, n, d)
        return torch.randint(11, shape, generator=generator, dtype=torch.float64) / 10
    side = int(points ** (1 / (n * d)) + 1e-9)
    values = torch.linspace(0, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(*[values] * (n * d)).view(-1, n, d)


def uniform(n: int, d: int, points: int, generator: torch.Generator) -> Tensor:
    """Independent uniform coordinates, [points, n, d]."""
    return torch.rand(points, n, d, generator=generator, dtype=torch.float64)


def tied(n: int, d: int, points: int, generator: torch.Generator) -> Tensor:
    """Uniform points [points, n, d] in which tokens share values, channel by channel."""
    return _tie(uniform(n, d, points, generator), generator)


def switching(n: int, d: int, points: int, generator: torch.Generator, steps: int) -> Tensor:
    """Points where a network of ``steps`` = G·W steps switches: its worst, [B, n, d].

    Spike counts change at ``x = (j + ½)/(G·W)``; every coordinate is just below or above one of
    these. All (2·G·W)^{nd} of them where that is at most ``points`` or 16,384; else B = ``points``
    are drawn, and every second has ties.
    """
    if (2 * steps) ** (n * d) <= max(points, _ENUMERATED):
        switch = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        both = torch.cat([switch - _BESIDE, switch + _BESIDE])
        return torch.cartesian_prod(*[both] * (n * d)).view(-1, n, d)
    shape = (points, n, d)
    switch = torch.randint(steps, shape, generator=generator, dtype=torch.float64) + 0.5
    switch[::2] = _tie(switch[::2], generator)
    side = 2 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1
    return (switch / steps + _BESIDE * side).clamp(0, 1)


def modulus(f: TokenFunction, x: Tensor, generator: torch.Generator) -> Tensor:
    """Largest ``|f(x) − f(y)|`` found with ``|x − y|_∞ <= 1/k``, for each k in :data:`SCALES`.

    A lower estimate of the modulus of continuity, from pairs on both sides of the given points.

    Args:
        f: function of [B, n, d].
        x: centres of the pairs, [B, n, d].
        generator: of the directions.
    """
    found = []
    for scale in SCALES:
        largest = torch.zeros((), dtype=torch.float64)
        for _ in range(_DIRECTIONS):
            signs = 2 * torch.randint(2, x.shape, generator=generator, dtype=torch.float64) - 1
            half = signs / (2 * scale)
            change = f((x + half).clamp(0, 1)) - f((x - half).clamp(0, 1))
            largest = torch.maximum(largest, change.abs().amax())
        found.append(largest)
    return torch.stack(found).flip(0).cummax(0).values.flip(0)


def _tie(x: Tensor, generator: torch.Generator) -> Tensor:
    source = torch.randint(x.shape[1], x.shape, generator=generator)
    return x.gather(1, source)
