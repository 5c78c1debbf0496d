"""Structural models with a known graph, to try causal orders on.

x_j = f_j(parents of j) + σ_j n_j with standard normal n_j, on a random directed acyclic graph. The
functions are linear, a random one-layer network of sigmoids (as in NOTEARS-MLP), or a sample of a
Gaussian process with unit kernel by random Fourier features, of all parents or a sum over them.
``post-nonlinear`` is exp((f + σ n)/2) for every variable with parents: not an additive-noise model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.order.sort import Array

KINDS = ("linear", "mlp", "gp", "gp-add", "post-nonlinear")
_UNITS = 100


@dataclass(frozen=True)
class Model:
    """A structural model.

    Attributes:
        kind: one of :data:`KINDS`.
        graph: ``graph[i, j]`` where i causes j, [d, d].
        noise: standard deviation σ_j of the noise of each variable, [d].
        weights: of a linear model, [d, d] like ``graph``; else into hidden units [d, units, d].
        bias, readout: of the hidden units, [d, units]; ``None`` in a linear model.
    """

    kind: str
    graph: NDArray[np.bool_]
    noise: Array
    weights: Tensor
    bias: Tensor | None = None
    readout: Tensor | None = None

    def means(self, x: Tensor) -> Tensor:
        """f_j(parents of j) for every j at once, [..., d]."""
        if self.bias is None or self.readout is None:
            return x @ self.weights
        hidden = torch.einsum("...i,jhi->...jh", x, self.weights) + self.bias
        return (self._activation(hidden) * self.readout).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """Logarithm of p up to a constant, for an additive-noise model.

        Raises:
            ConfigError: the model is post-nonlinear.
        """
        if self.kind == "post-nonlinear":
            raise ConfigError("a post-nonlinear model has no additive-noise density")
        noise = torch.from_numpy(self.noise).to(x.dtype)
        return -(((x - self.means(x)) / noise) ** 2).sum(-1) / 2

    def score(self, x: Tensor) -> Tensor:
        """∇ log p of one point [d]."""
        found: Tensor = torch.func.grad(self.log_density)(x)
        return found

    def precision(self) -> Array:
        """Inverse covariance of a linear model, (1 − B)ᵀ diag(1/σ²) (1 − B)."""
        if self.kind != "linear":
            raise ConfigError(f"a {self.kind} model has no closed-form precision; use its score")
        rows = (np.eye(len(self.graph)) - self.weights.numpy().T) / self.noise[:, None]
        return rows.T @ rows

    def order(self) -> list[int]:
        """A topological order, causes first."""
        left, found = self.graph.copy(), []
        waiting = set(range(len(left)))
        while waiting:
            roots = [j for j in waiting if not left[:, j].any()]
            found += roots
            waiting -= set(roots)
            left[roots] = False
        return found

    def sample(self, n: int, seed: int = 0) -> Array:
        """``n`` samples, [n, d]."""
        d = len(self.graph)
        x = np.random.default_rng(seed).standard_normal((n, d)) * self.noise
        for j in self.order():
            parents = np.flatnonzero(self.graph[:, j])
            if not len(parents):
                continue
            x[:, j] += self._mean(x[:, parents], j, parents)
            if self.kind == "post-nonlinear":
                x[:, j] = np.exp(x[:, j] / 2)
        return x

    def _mean(self, values: Array, j: int, parents: NDArray[np.int_]) -> Array:
        inputs = torch.from_numpy(values)
        if self.bias is None or self.readout is None:
            return np.asarray(inputs @ self.weights[parents, j])
        hidden = inputs @ self.weights[j][:, parents].T + self.bias[j]
        return np.asarray(self._activation(hidden) @ self.readout[j])

    def _activation(self, hidden: Tensor) -> Tensor:
        return hidden.cos() if self.kind.startswith("gp") else hidden.sigmoid()


def random_model(
    d: int,
    kind: str = "linear",
    edges: float = 2.0,
    noise: float | Array = 1.0,
    seed: int = 0,
) -> Model:
    """A model on a random graph (Erdős–Rényi, in a random order) of ``edges``·d expected edges.

    Args:
        d: variables.
        kind: one of :data:`KINDS`.
        edges: expected edges per variable.
        noise: standard deviation of the noise, one for all or one per variable.
        seed: of graph and functions. Weights are uniform on ±[0.5, 2].

    Raises:
        ConfigError: ``kind``, ``d`` or ``noise`` out of its domain.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r}; expected one of {', '.join(KINDS)}")
    deviations = np.broadcast_to(np.asarray(noise, float), (d,)).copy() if d > 0 else np.empty(0)
    if d < 1 or not (deviations > 0).all():
        raise ConfigError(f"d={d}, noise={noise}; expected d of at least 1 and positive noise")
    rng = np.random.default_rng(seed)
    place = rng.permutation(d)
    upper = np.triu(rng.random((d, d)) < min(1.0, 2 * edges / max(1, d - 1)), 1)
    graph = np.zeros((d, d), bool)
    graph[np.ix_(place, place)] = upper

    def signed(*shape: int) -> Array:
        return np.asarray(rng.uniform(0.5, 2, shape) * rng.choice([-1.0, 1.0], shape))

    if kind == "linear":
        return Model(kind, graph, deviations, torch.from_numpy(np.where(graph, signed(d, d), 0.0)))
    mask = graph.T[:, None, :]
    if kind in ("mlp", "post-nonlinear"):
        weights, bias = signed(d, _UNITS, d) * mask, np.zeros((d, _UNITS))
        readout = signed(d, _UNITS)
        if kind == "post-nonlinear":
            readout *= 2 / np.sqrt(_UNITS)
    else:
        weights = rng.standard_normal((d, _UNITS, d)) * mask
        if kind == "gp-add":  # every unit reads one parent
            reads = np.zeros((d, _UNITS, d), bool)
            for j in range(d):
                parents = np.flatnonzero(graph[:, j])
                if len(parents):
                    reads[j, np.arange(_UNITS), parents[np.arange(_UNITS) % len(parents)]] = True
            weights = weights * reads
        bias = rng.uniform(0, 2 * np.pi, (d, _UNITS))
        spread = np.maximum(1, graph.sum(0))[:, None] if kind == "gp-add" else 1
        readout = rng.standard_normal((d, _UNITS)) * np.sqrt(2 / _UNITS * spread)
    readout = readout * graph.any(axis=0, keepdims=True).T
    parts = (torch.from_numpy(part) for part in (weights, bias, readout))
    return Model(kind, graph, deviations, *parts)
