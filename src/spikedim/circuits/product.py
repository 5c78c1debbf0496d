"""Products of rates by coincidence: a unit that fires when both its inputs do (claim PRODUCT).

The coincidence of trains a and b has mean E[a]·E[b] + Cov(a, b). Independent copies have no
covariance; trains that share their input keep it, and no T removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run
from spikedim.circuits.codes import per_trial, rates, uniform_draws
from spikedim.errors import ConfigError


@dataclass(frozen=True)
class ProductSimulation(Simulation):
    """A simulation of coincidences.

    Attributes:
        covariance: measured covariance of the two trains (divisor T − 1; NaN at T = 1), summed as
            the products are, [trials, *shape of the target].
    """

    covariance: Tensor


@dataclass(frozen=True)
class Product(Circuit):
    """x·y of two rates in [0, 1], element by element (claim PRODUCT); x and y of one shape.

    Variance xy(1−xy)/T. With shared draws the circuit computes min(x, y) instead.

    Args:
        shared: both trains of an element come from the same draw, as when they are read from one
            input train, instead of from independent copies.
    """

    name: ClassVar[str] = "product"
    claim: ClassVar[str] = "PRODUCT"
    shared: bool = False

    def target(self, *inputs: Tensor) -> Tensor:
        """x·y."""
        x, y = self._pair(*inputs)
        return x * y

    def covariance(self, *inputs: Tensor) -> Tensor:
        """Exact covariance of the trains: min(x, y) − xy if shared, else 0."""
        x, y = self._pair(*inputs)
        return torch.minimum(x, y) - x * y if self.shared else torch.zeros_like(x)

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target and the covariance of the trains."""
        return self.target(*inputs) + self.covariance(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> ProductSimulation:
        """Simulate; see :meth:`Circuit.run`."""
        x, y = self._pair(*inputs)
        check_run(T, trials)
        both, left, right = (x.new_zeros((trials, *x.shape)) for _ in range(3))
        for u in uniform_draws((1 if self.shared else 2, *x.shape), T, trials, generator):
            a, b = u[:, :, 0] < x, u[:, :, -1] < y
            both += (a & b).sum(0)
            left += a.sum(0)
            right += b.sum(0)
        spikes = per_trial(both + left + right)
        covariance = _covariance(both, left * right, T)
        return ProductSimulation(both / T, spikes, 3 * x.numel(), 2, T, covariance)

    def _pair(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, y = rates(inputs, "x", "y")
        if x.shape != y.shape:
            raise ConfigError(
                f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected one shape"
            )
        return x, y


@dataclass(frozen=True)
class MatrixProduct(Circuit):
    """A·B of rates, A [n, k] and B [k, m], from n·m·k coincidence units (claim PRODUCT).

    (1/T)·Σ_t S^A_t·S^B_t with one Bernoulli train per entry of A and of B: the scores QKᵀ with
    A = Q, B = Kᵀ, or the value-weighted sum with A the attention weights and B the values.

    Args:
        shared: A[i, l] and B[l, i] come from the same draw, as when a token's query and key are
            read from one input train (needs n = m). The diagonal then keeps the covariance
            Σ_l min(A[i, l], B[l, i]) − A[i, l]·B[l, i].
    """

    name: ClassVar[str] = "matrix product"
    claim: ClassVar[str] = "PRODUCT"
    shared: bool = False

    def target(self, *inputs: Tensor) -> Tensor:
        """The matrix product A·B, [n, m]."""
        a, b = self._pair(*inputs)
        return a @ b

    def covariance(self, *inputs: Tensor) -> Tensor:
        """Exact covariance of the trains summed over the inner index, [n, m]."""
        a, b = self._pair(*inputs)
        if not self.shared:
            return a.new_zeros(a.shape[0], b.shape[1])
        return torch.diag((torch.minimum(a, b.T) - a * b.T).sum(1))

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target and the covariance of the trains."""
        return self.target(*inputs) + self.covariance(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> ProductSimulation:
        """Simulate; see :meth:`Circuit.run`."""
        a, b = self._pair(*inputs)
        check_run(T, trials)
        (n, k), m = a.shape, b.shape[1]
        both = a.new_zeros(trials, n, m)
        left, right = a.new_zeros(trials, n, k), a.new_zeros(trials, m, k)
        for u in uniform_draws((n if self.shared else n + m, k), T, trials, generator):
            rows, columns = u[:, :, :n] < a, u[:, :, -m:] < b.T
            left += rows.sum(0)
            right += columns.sum(0)
            # float32 holds the counts of one chunk exactly: they stay far below 2^24
            both += torch.matmul(_by_row(rows), _by_row(columns).mT)
        spikes = per_trial(both) + per_trial(left) + per_trial(right)
        covariance = _covariance(both, left @ right.mT, T)
        units = n * k + k * m + n * m * k
        return ProductSimulation(both / T, spikes, units, 2, T, covariance)

    def _pair(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        a, b = rates(inputs, "A", "B")
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
            raise ConfigError(
                f"A has shape {tuple(a.shape)} and B {tuple(b.shape)}; expected [n, k] and [k, m]"
            )
        if self.shared and a.shape[0] != b.shape[1]:
            raise ConfigError(
                f"shared=True pairs the {a.shape[0]} rows of A with the {b.shape[1]} columns of B; "
                "give as many of each"
            )
        return a, b


def _by_row(spikes: Tensor) -> Tensor:
    """[t, trials, rows, k] as [trials, rows, t·k], float32."""
    return spikes.permute(1, 2, 0, 3).flatten(2).float()


def _covariance(both: Tensor, product: Tensor, T: int) -> Tensor:
    """Covariance from counts: (Σab − Σa·Σb/T)/(T − 1)."""
    return (both - product / T) / (T - 1) if T > 1 else torch.full_like(both, torch.nan)
