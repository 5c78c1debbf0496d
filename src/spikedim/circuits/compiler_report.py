"""What a compiled network measures and costs, beside the published budget (claim UNIVERSAL)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spikedim.circuits.compiler_network import LAYERS, LayerUnits
from spikedim.circuits.compiler_points import SCALES
from spikedim.results import Estimate, Result, Table, number


@dataclass(frozen=True)
class PointError(Result):
    """Error max |network − f| over one kind of test points.

    Attributes:
        kind: how the points were chosen.
        points: their number.
        sup: largest error over points, tokens and outputs.
        mean: mean over the points of the largest error over tokens and outputs.
    """

    kind: str
    points: int
    sup: float
    mean: float


@dataclass(frozen=True)
class PublishedBudget(Result):
    """The published orders with all constants set to 1: the constants are not known.

    Attributes:
        layers: ``log2(1/ε)``.
        heads: ``n²·d/ε²``.
        T: ``n²·d_k²/ε²`` steps, with d_k = d.
    """

    layers: float
    heads: float
    T: float


def published_budget(n: int, d: int, eps: float) -> PublishedBudget:
    """L = O(log 1/ε), H = O(n²d/ε²), T = O(n²d_k²/ε²) as printed, constants 1."""
    return PublishedBudget(max(0.0, math.log2(1 / eps)), n**2 * d / eps**2, (n * d / eps) ** 2)


@dataclass(frozen=True)
class CompileReport(Result):
    """What a compiled network measures and costs.

    Attributes:
        function: name of f.
        n, d, outputs: tokens, input channels, output channels.
        eps: error asked for.
        sup_error: largest error measured, over all of ``errors``, in simulated spikes.
        errors: error per kind of test point, drawn afresh for each of ``verifications``.
        failures: share of uniformly random inputs with error >= eps, with its upper limit.
        equivariant: whether every reordering of the tokens reordered the output bit for bit.
        equivariance_checks: (inputs, permutations of each) behind ``equivariant``.
        grid, windows: G intervals per coordinate, W windows of G steps.
        T: steps, G·W.
        layers: spiking layers, encoders included.
        heads: attention heads.
        units: units per layer; the clock is one more.
        neurons: all units.
        spikes: of all units for one random input.
        spikes_by_layer: mean spikes of each layer, and of the clock, for one random input.
        modulus: pairs (δ, largest |f(x) − f(y)| found with |x − y|_∞ <= δ), δ descending.
        sufficient_grid: grid that the modulus alone would ask for; ``None`` if beyond 1024.
        published: the published budget.
        verifications: candidate networks verified until one passed.
        seed: of the points.
        seconds: time to compile and verify.
    """

    function: str
    n: int
    d: int
    outputs: int
    eps: float
    sup_error: float
    errors: tuple[PointError, ...]
    failures: Estimate
    equivariant: bool
    equivariance_checks: tuple[int, int]
    grid: int
    windows: int
    T: int
    layers: int
    heads: int
    units: LayerUnits
    neurons: int
    spikes: Estimate
    spikes_by_layer: dict[str, float]
    modulus: tuple[tuple[float, float], ...]
    sufficient_grid: int | None
    published: PublishedBudget
    verifications: int
    seed: int
    seconds: float

    def tables(self) -> list[Table]:
        """Error and equivariance, budget, layers, modulus of continuity."""
        title = f"{self.function}, n={self.n}, d={self.d}: sup error below {number(self.eps)}"
        inputs, permutations = self.equivariance_checks
        total = sum(e.points for e in self.errors)
        errors = [
            *((e.kind, e.points, e.sup, e.mean) for e in self.errors),
            ("all", total, self.sup_error, None),
        ]
        exact = "bit for bit" if self.equivariant else "NOT bit for bit"
        budget = [
            ("layers", self.layers, "log2(1/ε)", self.published.layers),
            ("heads", self.heads, "n²d/ε²", self.published.heads),
            ("timesteps", self.T, "n²d²/ε²", self.published.T),
            ("neurons", self.neurons, "not given", None),
            ("spikes per input", self.spikes, "not given", None),
        ]
        layers = [
            (name, units, self.spikes_by_layer[name])
            for name, units in zip((*LAYERS, "clock"), (*self.units, 1), strict=True)
        ]
        sufficient = self.sufficient_grid or f"above {SCALES[-1]}"
        return [
            Table(
                title,
                ("test points", "number", "sup error", "mean error"),
                errors,
                (
                    f"share of random inputs with error {number(self.eps)} or more: "
                    f"{self.failures}",
                    f"reordered tokens reorder the output {exact} "
                    f"({inputs} inputs, {permutations} permutations each)",
                ),
            ),
            Table(
                "Cost",
                ("quantity", "compiled", "published order", "its value"),
                budget,
                (
                    "published orders with constants 1; they count no neurons, which here grow "
                    "as (grid + 1)^(n·d)",
                ),
            ),
            Table(
                f"Layers (grid {self.grid}, {self.windows} windows)",
                ("layer", "units", "spikes per input"),
                layers,
            ),
            Table(
                "Modulus of continuity, sampled",
                ("distance", "largest change of f"),
                self.modulus,
                (f"grid that it alone would ask for: {sufficient}; found enough: {self.grid}",),
            ),
        ]
