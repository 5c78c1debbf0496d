"""A causal order as a result: tables, picture, plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedim.order.score import ScoreConfig
from spikedim.order.tables import Recorded
from spikedim.results import Estimate, Result, Table

_ROWS = 60
_DRAWN = 30


@dataclass(frozen=True)
class Link:
    """An edge by name.

    Attributes:
        cause, effect: names.
        weight: change of the effect per unit of the cause; ``None`` where the regression is
            not linear.
        p_value: Wald test of no effect given the other causes.
    """

    cause: str
    effect: str
    weight: Estimate | None
    p_value: float


@dataclass(frozen=True)
class OrderedVariable:
    """One place in the order.

    Attributes:
        name: of the variable.
        block: round of removal, from 1 (leaves).
        diagonal: entry of the information matrix when it was removed, 1/unit² of the data; with
            known noise variances times that of the variable over their mean.
        noise_variance: of its residual given its causes.
        causes: names of its causes.
        p_value: residual test, adjusted for all variables; ``None`` for the first.
        dependent: the residual depends on variables before it.
        gap: what one Schur complement of it adds to the diagonal of a cause, in the same units.
        gap_p_value: of such a gap where all functions are linear, adjusted for all variables;
            ``None`` without causes and with linear regressions.
    """

    name: str
    block: int
    diagonal: float
    noise_variance: Estimate
    causes: tuple[str, ...]
    p_value: float | None
    dependent: bool
    gap: float
    gap_p_value: float | None


@dataclass(frozen=True)
class CausalOrder(Result):
    """A causal order, causes first, its graph, and what speaks against it.

    Attributes:
        source: of the data.
        n: samples.
        variables: in causal order.
        edges: of the graph.
        backward: edges against the order in which a network computes its layers; ``None`` for
            other data.
        estimator, marginal, basis, tolerance, ridge, level, seed: how it was made.
        loss: held-out loss of the score network.
        seconds: time it took.
        warnings: assumptions that the data contradict, and limits.
        recorded: how the network was recorded; ``None`` for other data.
        training: of the score network; ``None`` for other estimators.
        noise_variance: of the variables as given, by name; ``None`` where it was taken to be equal.
    """

    source: str
    n: int
    variables: tuple[OrderedVariable, ...]
    edges: tuple[Link, ...]
    backward: int | None
    estimator: str
    marginal: str
    basis: str
    tolerance: float
    ridge: float
    level: float
    loss: float | None
    seed: int
    seconds: float
    warnings: tuple[str, ...]
    recorded: Recorded | None = None
    training: ScoreConfig | None = None
    noise_variance: dict[str, float] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """Names, causes first."""
        return tuple(variable.name for variable in self.variables)

    @property
    def adjacency(self) -> np.ndarray:
        """Graph in causal order, ``[i, j]`` where i causes j: strictly upper triangular."""
        place = {name: k for k, name in enumerate(self.order)}
        found = np.zeros((len(place), len(place)), bool)
        for edge in self.edges:
            found[place[edge.cause], place[edge.effect]] = True
        return found

    def tables(self) -> list[Table]:
        """The order, then the edges."""
        order = [
            (
                v.name,
                place,
                v.block,
                v.diagonal,
                v.noise_variance,
                ", ".join(v.causes) or "–",
                v.p_value,
                "dependent" if v.dependent else ("–" if v.p_value is None else "ok"),
            )
            for place, v in enumerate(self.variables, start=1)
        ]
        columns = (
            "variable",
            "place",
            "block",
            "diagonal",
            "noise variance",
            "causes",
            "p",
            "residual",
        )
        how = f"{self.estimator}, {self.marginal}, {self.basis} regressions"
        if self.noise_variance is not None:
            how += f", noise variances known ({_listed(self.noise_variance)})"
        title = f"Causal order of {len(order)} variables, causes first: {self.source}, n = {self.n}"
        notes = [f"{how}; {self.seconds:.1f} s", *(f"limit: {text}" for text in self.warnings)]
        if self.backward is not None:
            notes.insert(1, f"{self.backward} of {len(self.edges)} edges run against the network")
        if self.recorded is not None:
            r = self.recorded
            rows = "mean over timesteps" if r.time == "mean" else "every timestep a row"
            notes.insert(1, f"T = {r.T}, {rows}, {r.split} split; {r.weights}")
        edges = [(f"{e.cause} → {e.effect}", e.weight, e.p_value) for e in self.edges]
        return [
            Table(title, columns, order[:_ROWS], (*_rest(order), *notes)),
            Table("Edges", ("edge", "weight", "p"), edges[:_ROWS], _rest(edges)),
        ]

    def plot(self, ax: Any = None) -> Any:
        """The graph, or the matrix of more than 30 variables; returns the matplotlib axes."""
        from matplotlib import pyplot

        if ax is None:
            ax = pyplot.subplots(figsize=(9, 6))[1]
        if len(self.variables) > _DRAWN:
            ax.imshow(self.adjacency, cmap="Blues", interpolation="nearest")
            ax.set_xlabel("effect, place in the order")
            ax.set_ylabel("cause, place in the order")
        else:
            _draw(ax, self)
        ax.set_title(f"Causal order: {self.source} ({len(self.edges)} edges, n = {self.n})")
        return ax


def _draw(ax: Any, found: CausalOrder) -> None:
    """Nodes in columns by depth, the longest path from a root, arrows to effects."""
    graph = found.adjacency
    depth = np.zeros(len(graph), int)
    for j in range(len(graph)):
        causes = np.flatnonzero(graph[:, j])
        depth[j] = depth[causes].max() + 1 if len(causes) else 0
    place = {}
    for level in range(int(depth.max()) + 1):
        members = np.flatnonzero(depth == level)
        for k, member in enumerate(members.tolist()):
            height = k - (len(members) - 1) / 2
            place[member] = (float(level), height + 0.18 * (level % 2))
    for i, j in np.argwhere(graph).tolist():
        bend = 0.0 if depth[j] - depth[i] == 1 else 0.2
        style = {
            "arrowstyle": "-|>",
            "color": "#5b6673",
            "alpha": 0.7,
            "shrinkA": 16,
            "shrinkB": 16,
            "connectionstyle": f"arc3,rad={bend}",
        }
        ax.annotate("", place[j], place[i], arrowprops=style)
    for j, variable in enumerate(found.variables):
        colour = "#d55e00" if variable.dependent else "#0072b2"
        text = f"{j + 1}. {variable.name}"
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": colour}
        ax.text(*place[j], text, ha="center", va="center", fontsize=8, bbox=box)
    across, heights = int(depth.max()), [y for _, y in place.values()]
    ax.set_xlim(-0.6, across + 0.6)
    ax.set_ylim(min(heights) - 0.7, max(heights) + 0.7)
    ax.invert_yaxis()
    ax.axis("off")
    if any(variable.dependent for variable in found.variables):
        text = "orange: the residual depends on variables before it"
        ax.text(0.5, 0, text, transform=ax.transAxes, ha="center", fontsize=8)


def _listed(variances: dict[str, float]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in list(variances.items())[:5]]
    return ", ".join(shown) + (", ..." if len(variances) > 5 else "")


def _rest(rows: list[Any]) -> tuple[str, ...]:
    return (f"{len(rows) - _ROWS} more rows in --json",) if len(rows) > _ROWS else ()
