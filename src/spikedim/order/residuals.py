"""Does the order's model fit? Residuals must not depend on what comes before.

In an additive-noise model the residual of a variable is its noise, independent of all variables
before it. Half of the samples fit the regression, the other half are tested: the Hilbert-Schmidt
independence criterion with Gaussian kernels (Gretton et al. 2008) between the residual and each
cause, the fitted value, and the three other predecessors that the first half correlates most with
the residual or its square; p-values by the gamma approximation, Bonferroni within a variable, Holm
over variables. A rejection says that noise is not additive (post-nonlinear, multiplicative), that
the order or the edges are wrong, or that the regression fits badly. No rejection does not prove the
order: with linear functions and Gaussian noise every order leaves independent residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from spikedim.errors import ConfigError, DataError
from spikedim.order.edges import Regression
from spikedim.order.sort import Array, expectation_gap
from spikedim.progress import track

LEVEL = 0.01
_TESTED = 500
_FITTED = 1000
_COMPONENTS = 100
_STEP = 1e-3
_SUSPECTS = 3


@dataclass(frozen=True)
class ResidualCheck:
    """One variable's residual.

    Attributes:
        variable: its index.
        p_value: adjusted for all tests made; ``None`` for the first, where nothing is tested.
        dependent: the residual depends on predecessors; the p-value is at most the level.
        gap: largest entry of the diagonal of Cov(∇f)/σ², what one Schur complement
            of this variable adds to the information of a cause; 0 without causes.
    """

    variable: int
    p_value: float | None
    dependent: bool
    gap: float


def check_residuals(
    x: Array,
    regressions: Sequence[Regression],
    basis: str = "spline",
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[ResidualCheck, ...]:
    """Test every variable but the first, and measure its expectation gap.

    Args:
        x: samples [n, d].
        regressions: who causes whom, from :func:`~spikedim.order.edges.sparse_regressions`.
        basis: ``"linear"``, or ``"spline"`` for any smooth function of the causes (splines
            and radial features, ridge by leave-one-out).
        level: of all tests together.
        seed: of the split and the features.

    Raises:
        ConfigError: ``level`` outside (0, 1).
        DataError: fewer than 40 samples.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}; expected a probability between 0 and 1")
    if len(x) < 40:
        raise DataError(f"{len(x)} samples; the residual test needs at least 40")
    rows = np.random.default_rng(seed).permutation(len(x))
    tested, fitted = rows[: min(_TESTED, len(x) // 2)], rows[len(x) // 2 :][:_FITTED]
    raw: list[float] = []
    gaps: list[float] = [0.0]
    for place, regression in enumerate(track(regressions[1:], "residual tests"), start=1):
        before = [r.variable for r in regressions[:place]]
        causes, y = x[:, list(regression.causes)], x[:, regression.variable]
        others = [j for j in before if j not in regression.causes]
        gap, guess = 0.0, np.full(len(x), y[fitted].mean())
        if regression.causes:
            model = _regressor(basis, len(fitted), seed)
            model.fit(causes[fitted], y[fitted])
            guess = np.asarray(model.predict(causes))
            gap = _gap(model, causes[tested], float((y - guess)[tested].var()))
        residual = y - guess
        suspects = _suspects(residual[fitted], x[fitted][:, others])
        against = [causes, x[:, [others[k] for k in suspects]]]
        if causes.shape[1] > 1:
            against.append(guess[:, None])
        p_values = hsic_p_values(residual[tested], np.hstack(against)[tested])
        raw.append(min(1.0, float(p_values.min()) * len(p_values)))
        gaps.append(gap)
    adjusted = [None, *_holm(raw)]
    return tuple(
        ResidualCheck(r.variable, p, p is not None and p <= level, gap)
        for r, p, gap in zip(regressions, adjusted, gaps, strict=True)
    )


def hsic_p_values(y: Array, x: Array) -> Array:
    """p-values of independence of y [n] from each column of x [n, k], gamma approximation.

    Kernels are Gaussian with the median distance as width. A constant is independent of all.
    """
    n = len(y)
    first = _kernel(y)
    found = np.ones(x.shape[1])
    if first is None:
        return found
    for column in range(x.shape[1]):
        second = _kernel(x[:, column])
        if second is None:
            continue
        (k, k_mean), (m, m_mean) = first, second
        product = k * m
        statistic = product.sum() / n
        product = product**2 / 36
        variance = (product.sum() - product.trace()) / n / (n - 1)
        variance *= 72 * (n - 4) * (n - 5) / n / (n - 1) / (n - 2) / (n - 3)
        mean = (1 + k_mean * m_mean - k_mean - m_mean) / n
        if variance > 0 and mean > 0:
            shape, scale = mean**2 / variance, variance * n / mean
            found[column] = stats.gamma.sf(statistic, shape, scale=scale)
    return found


def _suspects(residual: Array, x: Array) -> list[int]:
    """Columns that residual or squared residual correlate most with, plain or squared."""
    if not x.shape[1]:
        return []
    scaled = [stats.zscore(v, axis=0) for v in (x, (x - x.mean(0)) ** 2)]
    found = np.zeros(x.shape[1])
    for target in (residual, (residual - residual.mean()) ** 2):
        centred = target - target.mean()
        for values in scaled:
            found = np.maximum(
                found, np.abs(np.nan_to_num(centred @ values)) / (centred.std() + 1e-300)
            )
    return [int(k) for k in np.argsort(-found, kind="stable")[:_SUSPECTS]]


def _kernel(values: Array) -> tuple[Array, float] | None:
    """Centred Gaussian kernel matrix, and the mean of its entries off the diagonal before that."""
    n = len(values)
    squared = (values[:, None] - values) ** 2
    positive = squared[squared > 0]
    if not positive.size:
        return None
    kernel = np.exp(-squared / (2 * np.median(positive)))
    mean = (kernel.sum() - n) / (n * (n - 1))
    rows = kernel.mean(0)
    return kernel - rows - rows[:, None] + rows.mean(), float(mean)


def _regressor(basis: str, n: int, seed: int) -> Any:
    """An unfitted scikit-learn regression on the causes."""
    if basis == "linear":
        return LinearRegression()
    features = FeatureUnion(
        [
            ("splines", SplineTransformer(6, knots="uniform", extrapolation="linear")),
            ("wide", Nystroem(gamma=0.1, n_components=min(_COMPONENTS, n // 4), random_state=seed)),
            ("narrow", Nystroem(gamma=1, n_components=min(_COMPONENTS, n // 4), random_state=seed)),
        ]
    )
    ridge = RidgeCV(alphas=np.logspace(-3, 3, 7))
    return make_pipeline(StandardScaler(), features, ridge)


def _gap(model: Any, causes: Array, noise_variance: float) -> float:
    """Largest diagonal entry of Cov(∇f)/σ², gradients by central differences."""
    if not noise_variance > 0:
        return 0.0
    gradients = np.empty_like(causes)
    for column in range(causes.shape[1]):
        step = np.zeros(causes.shape[1])
        step[column] = max(_STEP * float(causes[:, column].std()), np.finfo(float).tiny)
        above, below = model.predict(causes + step), model.predict(causes - step)
        gradients[:, column] = (above - below) / (2 * step[column])
    return float(-expectation_gap(gradients, noise_variance).diagonal().min())


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure."""
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = running
    return adjusted
