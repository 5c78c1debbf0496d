"""From an order to a graph: every variable regressed on those before it, sparsely.

The regression is linear, or additive in cubic splines of every predecessor. A lasso path with the
Bayesian information criterion (scikit-learn) proposes predecessors; they are then refitted by least
squares and dropped one after another while the Wald test of all terms of one is not significant.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LassoLarsIC
from sklearn.preprocessing import SplineTransformer

from spikedim.errors import ConfigError, DataError
from spikedim.order.sort import Array
from spikedim.progress import track
from spikedim.results import Estimate

BASES = ("linear", "spline")
LEVEL = 0.001
_KNOTS = 5
_MOST_SAMPLES = 4000
_COLLINEAR = 1e-5


@dataclass(frozen=True)
class Edge:
    """One edge of the graph.

    Attributes:
        cause, effect: indices of the variables.
        weight: regression coefficient with its interval; ``None`` with splines.
        p_value: of the Wald test that the cause has no effect, given the other causes.
    """

    cause: int
    effect: int
    weight: Estimate | None
    p_value: float


@dataclass(frozen=True)
class Regression:
    """One variable on its causes.

    Attributes:
        variable: its index.
        edges: from its causes.
        noise_variance: of the residual, in squared units of the variable.
    """

    variable: int
    edges: tuple[Edge, ...]
    noise_variance: Estimate

    @property
    def causes(self) -> tuple[int, ...]:
        """Indices of the causes."""
        return tuple(edge.cause for edge in self.edges)


def sparse_regressions(
    x: Array, order: Sequence[int], basis: str = "spline", level: float = LEVEL, seed: int = 0
) -> tuple[Regression, ...]:
    """Regressions of all variables on their predecessors in ``order``, in that order.

    Args:
        x: samples [n, d]; splines use at most 4,000 of them, drawn at random.
        order: variables, causes first.
        basis: one of :data:`BASES`.
        level: of each Wald test.
        seed: of that draw.

    Raises:
        ConfigError: unknown basis, or a level outside (0, 1).
        DataError: too few samples.
    """
    if basis not in BASES:
        raise ConfigError(f"basis={basis!r}; expected one of {', '.join(BASES)}")
    if not 0 < level < 1:
        raise ConfigError(f"level={level}; expected a probability between 0 and 1")
    if (rows := rows_regressed(len(x), basis)) < len(x):
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), rows, replace=False))]
    if len(x) < 10 * _KNOTS:
        raise DataError(f"{len(x)} samples; regressions need at least {10 * _KNOTS}")
    expand = _linear if basis == "linear" else _splines
    features = {j: expand(x[:, j]) for j in order}
    found = []
    for place, j in track(list(enumerate(order)), "regressions"):
        before = {i: features[i] for i in order[:place]}
        found.append(_regression(j, x[:, j] - x[:, j].mean(), before, basis, level))
    return tuple(found)


def rows_regressed(n: int, basis: str) -> int:
    """How many of n samples the regressions use."""
    return min(n, _MOST_SAMPLES) if basis == "spline" else n


def _regression(j: int, y: Array, before: dict[int, Array], basis: str, level: float) -> Regression:
    n = len(y)
    causes = _proposed(y, before)
    while True:
        blocks = [before[i] for i in causes]
        design = np.hstack(blocks) if blocks else np.empty((n, 0))
        gram = design.T @ design
        gram[np.diag_indices_from(gram)] *= 1 + 1e-9  # variables may be collinear
        inverse: Array = np.asarray(np.linalg.inv(gram) if blocks else gram, float)
        coefficients = inverse @ (design.T @ y)
        free = n - 1 - design.shape[1]
        rest = float(((y - design @ coefficients) ** 2).sum())
        variance = rest / free
        stops = np.cumsum([0, *(block.shape[1] for block in blocks)])
        p_values = np.array(
            [
                _wald(coefficients[a:b], inverse[a:b, a:b], variance, free)
                for a, b in pairwise(stops)
            ]
        )
        if not causes or p_values.max() <= level:
            break
        causes.pop(int(p_values.argmax()))
    edges = []
    for place, cause in enumerate(causes):
        weight = None
        if basis == "linear":
            half = stats.t.ppf(0.975, free) * float(np.sqrt(variance * inverse[place, place]))
            value = float(coefficients[place])
            weight = Estimate(value, value - half, value + half, n, method="t, given the causes")
        edges.append(Edge(cause, j, weight, float(p_values[place])))
    low, high = rest / stats.chi2.ppf([0.975, 0.025], free)
    noise = Estimate(variance, float(low), float(high), n, method="chi-square, normal residuals")
    return Regression(j, tuple(edges), noise)


def _proposed(y: Array, before: dict[int, Array]) -> list[int]:
    """Predecessors with a nonzero term on the lasso path."""
    if not before or not y.any():
        return []
    design = np.hstack(list(before.values()))
    if not design.shape[1]:
        return []
    scale = design.std(0)
    design = design / np.where(scale > 0, scale, 1)
    n, width = design.shape
    lasso = LassoLarsIC("bic") if n > width + 2 else LassoCV(cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients = lasso.fit(design, y / y.std()).coef_  # its tolerances are absolute
    owner = np.repeat(list(before), [block.shape[1] for block in before.values()])
    strength = {i: float(np.abs(coefficients[owner == i]).sum()) for i in before}
    chosen = sorted((i for i in before if strength[i] > 0), key=lambda i: -strength[i])
    most = max(1, n // (4 * max(block.shape[1] for block in before.values())))
    return chosen[:most]


def _wald(coefficients: Array, covariance: Array, variance: float, free: int) -> float:
    """p-value of all ``coefficients`` being zero; ``covariance`` in units of ``variance``."""
    if not variance > 0:
        return 0.0
    q = len(coefficients)
    statistic = coefficients @ np.linalg.solve(covariance, coefficients) / (q * variance)
    return float(stats.f.sf(statistic, q, free))


def _linear(values: Array) -> Array:
    return (values - values.mean())[:, None]


def _splines(values: Array) -> Array:
    """Centred cubic splines of one variable with knots at its quantiles, [n, 6].

    Fewer where the variable has few values: of k values, k − 1, which span all functions of it.
    """
    if values.min() == values.max():
        return np.empty((len(values), 0))
    column = values[:, None]
    quantiles = np.quantile(values, np.linspace(0, 1, _KNOTS))
    knots = "quantile" if (np.diff(quantiles) > 0).all() else "uniform"
    made = SplineTransformer(_KNOTS, knots=knots, include_bias=False).fit_transform(column)
    made = np.asarray(made - made.mean(0))
    triangle, chosen = linalg.qr(made, mode="r", pivoting=True)
    sizes = np.abs(triangle.diagonal())
    return made[:, np.sort(chosen[: int((sizes > _COLLINEAR * sizes[0]).sum())])]


def graph_of(regressions: Sequence[Regression]) -> NDArray[np.bool_]:
    """Adjacency of the edges, ``[i, j]`` where i causes j."""
    graph = np.zeros((len(regressions), len(regressions)), bool)
    for regression in regressions:
        graph[list(regression.causes), regression.variable] = True
    return graph


def hamming_distance(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> int:
    """Structural Hamming distance: edges to add, remove or reverse, a reversal counted once."""
    different = found != truth
    return int((different | different.T)[np.triu_indices(len(found), 1)].sum())
