"""Score functions s = ∇ log p from samples: a network trained by score matching, and its Jacobian.

Every component of the score is a small network of its own,

    s_i(x) = c_i − Σ_j A_ij x_j + Σ_h v_ih tanh(Σ_j W_ihj x_j + b_ih),

started at the exact solution for Gaussian data, A = Σ⁻¹, v = 0. The group lasso

    λ Σ_{i≠j} (A_ij² + Σ_h W_ihj²)^(1/2)

on the first layer removes input j from component i as a whole. In this form the trace and the mean
of the Jacobian are closed expressions in the mean of tanh′, so that implicit score matching
(Hyvärinen 2005), E[½‖s‖² + tr ∇s], needs no projections; sliced score matching (Song et al. 2019)
is its estimate by random projections, denoising score matching (Vincent 2011) its form on data with
added noise. The networks train in one loop of tensors that fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikedim.errors import ConfigError, DataError
from spikedim.order.sort import Array
from spikedim.progress import task

OBJECTIVES = ("implicit", "sliced", "denoising")
_HELD_OUT = 5
_CHECKS = 20
_BLOCK_BYTES = 1 << 27


@dataclass(frozen=True)
class ScoreConfig:
    """How a score network is trained.

    Args:
        objective: one of :data:`OBJECTIVES`.
        units: hidden units of each component.
        steps: optimiser steps; the best of 20 checks on held-out samples is kept.
        batch_size: samples per step.
        learning_rate: peak of the one-cycle schedule of Adam.
        group_lasso: λ.
        noise: standard deviation of the noise of ``denoising``, in units of a typical variable's
            standard deviation given all others.
        seed: of initial weights, samples held out, batches, projections and noise.

    Raises:
        ConfigError: a value out of its domain.
    """

    objective: str = "implicit"
    units: int = 16
    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 3e-3
    group_lasso: float = 1e-3
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective={self.objective!r}; expected {', '.join(OBJECTIVES)}")
        for name in ("units", "steps", "batch_size", "learning_rate", "noise"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a positive number")
        if not self.group_lasso >= 0:
            raise ConfigError(f"group_lasso={self.group_lasso}; expected 0 or a positive number")


class ScoreNetwork(nn.Module):
    """One hidden layer for every component of the score, started at that of a Gaussian.

    Args:
        precision: Σ⁻¹ of the data [d, d].
        units: hidden units per component.
        seed: of the first layer.
    """

    def __init__(self, precision: Tensor, units: int, seed: int = 0) -> None:
        super().__init__()
        d = len(precision)
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Parameter(precision.clone())
        self.offset = nn.Parameter(torch.zeros(d))
        self.weight = nn.Parameter(torch.randn(d, units, d, generator=generator) / d**0.5)
        self.bias = nn.Parameter(torch.randn(d, units, generator=generator) / 2)
        self.readout = nn.Parameter(torch.zeros(d, units))

    def hidden(self, x: Tensor) -> Tensor:
        """Activations, [..., d] to [..., d, units]."""
        d, units, _ = self.weight.shape
        flat = x @ self.weight.reshape(d * units, d).T
        return torch.tanh(flat.unflatten(-1, (d, units)) + self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, [..., d] to [..., d]."""
        return self._score(x, self.hidden(x))

    def implicit_loss(self, x: Tensor) -> Tensor:
        """Mean of ½‖s‖² + tr ∇s over samples [n, d]."""
        hidden = self.hidden(x)
        own = torch.einsum("ihi->ih", self.weight) * self.readout
        trace = ((1 - hidden**2) * own).sum((-2, -1)) - self.linear.diagonal().sum()
        return ((self._score(x, hidden) ** 2).sum(-1) / 2 + trace).mean()

    def sliced_loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of ½‖s‖² + vᵀ ∇s v over samples [n, d], one random sign vector v each."""
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        score, along = torch.func.jvp(self.forward, (x,), (signs,))[:2]
        return ((score**2).sum(-1) / 2 + (signs * along).sum(-1)).mean()

    def denoising_loss(self, x: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        """Mean of ½‖s(x + σε) + ε/σ‖² over samples [n, d]."""
        drawn = torch.randn(x.shape, generator=generator).to(x)
        return ((self(x + noise * drawn) + drawn / noise) ** 2).sum(-1).mean() / 2

    def groups(self) -> Tensor:
        """Norm of what reads input j in component i, [d, d]."""
        return (self.linear**2 + (self.weight**2).sum(1) + 1e-12).sqrt()

    @torch.no_grad()
    def information(self, x: Tensor) -> Tensor:
        """−(mean Jacobian over samples [n, d], symmetrised), [d, d]."""
        slope = torch.zeros_like(self.bias)
        rows = max(1, _BLOCK_BYTES // (4 * self.bias.numel()))
        for block in x.split(rows):
            slope += (1 - self.hidden(block) ** 2).sum(0)
        through = torch.einsum("ih,ihj->ij", self.readout * slope / len(x), self.weight)
        found = self.linear - through
        return (found + found.T) / 2

    @torch.no_grad()
    def keep(self, kept: list[int]) -> ScoreNetwork:
        """The components and inputs ``kept``, as a start for the score of these variables alone.

        The linear part is marginalised exactly, by its Schur complement.
        """
        gone = [j for j in range(len(self.linear)) if j not in set(kept)]
        a = self.linear
        solved = torch.linalg.lstsq(a[gone][:, gone], a[gone][:, kept]).solution
        new = ScoreNetwork(a[kept][:, kept] - a[kept][:, gone] @ solved, self.bias.shape[1])
        new.offset.copy_(self.offset[kept])
        new.weight.copy_(self.weight[kept][:, :, kept])
        new.bias.copy_(self.bias[kept])
        new.readout.copy_(self.readout[kept])
        return new

    def _score(self, x: Tensor, hidden: Tensor) -> Tensor:
        return self.offset - x @ self.linear.T + (hidden * self.readout).sum(-1)


def train(network: ScoreNetwork, x: Tensor, config: ScoreConfig, label: str = "score") -> float:
    """Train ``network`` on samples [n, d] in place; returns the held-out implicit loss.

    A fifth of the samples is held out; the weights kept are those with the least held-out loss
    among 20 checks and the start.

    Raises:
        DataError: fewer than 10 samples, or the loss is not finite.
    """
    if len(x) < 2 * _HELD_OUT:
        raise DataError(f"{len(x)} samples; a score network needs at least {2 * _HELD_OUT}")
    generator = torch.Generator().manual_seed(config.seed)
    held = torch.from_numpy(held_out(len(x), config.seed))
    valid, fitted = x[held], x[~held]
    adam = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    plan = torch.optim.lr_scheduler.OneCycleLR(
        adam, config.learning_rate, total_steps=config.steps + 1, pct_start=0.2
    )
    others = 1 - torch.eye(x.shape[1])
    best, kept = _held_out(network, valid), _copied(network)
    every = max(1, config.steps // _CHECKS)
    with task(label, config.steps) as bar:
        for step in range(1, config.steps + 1):
            chosen = torch.randint(len(fitted), (config.batch_size,), generator=generator)
            loss = _loss(network, fitted[chosen], config, generator)
            if config.group_lasso:
                loss = loss + config.group_lasso * (network.groups() * others).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            plan.step()
            bar.advance()
            if step % every == 0:
                found = _held_out(network, valid)
                if found < best:
                    best, kept = found, _copied(network)
    network.load_state_dict(kept)
    return best


def held_out(n: int, seed: int = 0) -> NDArray[np.bool_]:
    """Which of ``n`` samples no network is trained on: a fifth, drawn at random."""
    held = np.zeros(n, bool)
    held[np.random.default_rng(seed).permutation(n)[: n // _HELD_OUT]] = True
    return held


def information(score: Callable[[Tensor], Tensor], x: Tensor) -> Array:
    """Score-Jacobian information matrix E[−∇s], symmetrised, of any score function, [d, d].

    By ``torch.func``: vmap of jacrev over blocks of samples, in bounded memory.

    Args:
        score: one point [d] to its score [d].
        x: samples [n, d].
    """
    jacobian = torch.func.vmap(torch.func.jacrev(score))
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    rows = max(1, _BLOCK_BYTES // (8 * x.shape[1] ** 2 * 16))
    for block in x.split(rows):
        total -= jacobian(block).sum(0).double()
    total /= len(x)
    return np.asarray(((total + total.T) / 2).detach())


def _loss(
    network: ScoreNetwork, x: Tensor, config: ScoreConfig, generator: torch.Generator
) -> Tensor:
    if config.objective == "implicit":
        return network.implicit_loss(x)
    if config.objective == "sliced":
        return network.sliced_loss(x, generator)
    return network.denoising_loss(x, config.noise, generator)


@torch.no_grad()
def _held_out(network: ScoreNetwork, x: Tensor) -> float:
    rows = max(1, _BLOCK_BYTES // (4 * network.bias.numel()))
    found = sum(float(network.implicit_loss(block)) * len(block) for block in x.split(rows))
    if not np.isfinite(found):
        raise DataError("score matching diverged; lower the learning rate or rescale the data")
    return found / len(x)


def _copied(network: ScoreNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
