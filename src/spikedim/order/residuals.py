"""Does the order's model fit? Residuals must not depend on what comes before.

In an additive-noise model the residual of a variable is its noise, independent of all variables
before it. Tested is the Hilbert-Schmidt independence criterion with Gaussian kernels (Gretton et
al. 2008) between the residual and each cause, the fitted value, and three other predecessors. Half
of the samples choose those three, by correlation with the residual or its square, and give the
fitted value; the other half are regressed and tested.

A residual is not the noise: the regression was fitted. So the test is calibrated by a bootstrap
that fits again: noise resampled from the residuals is added to the fit, regressed by the same
smoother, and tested. The largest statistic of a draw over all variables is the reference of every
variable (Westfall and Young 1993), each statistic on the scale of its own null. p-values are those
of all tests together.

A rejection says that noise is not additive (post-nonlinear, multiplicative), that the order or the
edges are wrong, or that the regression fits badly. No rejection does not prove the order: with
linear functions and Gaussian noise every order leaves independent residuals.

The expectation gap is measured on the gradients of a fit, which vary even where the function is
linear. So it is compared with the gaps of the same regression of linear functions: noise resampled
from the residuals of a linear fit is added to that fit. The largest gap of a draw over all
variables is the reference here too, each on the scale of its own null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
_DRAWS = 999
_LINEAR_DRAWS = 99
_LEAST_LEVEL = 1e-4
_LANDMARKS = 16
_AT_ONCE = 100


@dataclass(frozen=True)
class ResidualCheck:
    """One variable's residual.

    Attributes:
        variable: its index.
        p_value: adjusted for all tests made, at least 1/(draws + 1); ``None`` for the first, where
            nothing is tested.
        dependent: the residual depends on predecessors; the p-value is at most the level.
        gap: largest entry of the diagonal of Cov(∇f)/σ², what one Schur complement
            of this variable adds to the information of a cause; 0 without causes. Splines make it
            larger than it is.
        gap_p_value: of such a gap where all functions are linear, adjusted for all variables;
            ``None`` without causes and with linear regressions.
    """

    variable: int
    p_value: float | None
    dependent: bool
    gap: float
    gap_p_value: float | None = None


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
        level: of all tests together; 10/level draws of the bootstrap are made, at least 999.
        seed: of the split, the features and the draws.

    Raises:
        ConfigError: ``level`` outside [0.0001, 1).
        DataError: fewer than 40 samples.
    """
    if not _LEAST_LEVEL <= level < 1:
        raise ConfigError(f"level={level}; expected a probability from {_LEAST_LEVEL:g} to 1")
    if len(x) < 40:
        raise DataError(f"{len(x)} samples; the residual test needs at least 40")
    rng = np.random.default_rng(seed)
    draws = max(_DRAWS, math.ceil(10 / level) - 1)
    rows = rng.permutation(len(x))
    tested, fitted = rows[: min(_TESTED, len(x) // 2)], rows[len(x) // 2 :][:_FITTED]
    x = x[np.concatenate([tested, fitted])]
    tested, fitted = np.split(np.arange(len(x)), [len(tested)])
    found: list[float] = []
    largest = np.full(draws, -np.inf)
    gaps: list[float] = [0.0]
    of_linear: list[Array | None] = [None]
    noise_of_linear = np.random.default_rng([seed, 1])
    for place, regression in enumerate(track(regressions[1:], "residual tests"), start=1):
        before = [r.variable for r in regressions[:place]]
        causes, y = x[:, list(regression.causes)], x[:, regression.variable]
        others = [j for j in before if j not in regression.causes]
        gap, linear_gaps, guess = 0.0, None, np.full(len(x), y[fitted].mean())
        if regression.causes:
            targets = y[:, None]
            if basis != "linear":
                targets = np.hstack([targets, _linear_draws(y, causes, noise_of_linear)])
            model = _regressor(basis, len(fitted), seed).fit(causes[fitted], targets[fitted])
            guesses = np.asarray(model.predict(causes))
            gap, *rest = _gaps(model, causes[tested], (targets - guesses)[tested].var(0))
            guess = guesses[:, 0]
            linear_gaps = np.array(rest) if rest else None
        residual = y - guess
        suspects = _suspects(residual[fitted], x[fitted][:, others])
        against = [causes, x[:, [others[k] for k in suspects]]]
        if causes.shape[1] > 1:
            against.append(guess[:, None])
        smoother = _smoother(basis, causes[tested], y[tested], seed)
        strength, null = _strengths(y[tested], smoother, np.hstack(against)[tested], draws, rng)
        found.append(strength)
        largest = np.maximum(largest, null)
        gaps.append(gap)
        of_linear.append(linear_gaps)
    beaten = [int((largest >= strength).sum()) for strength in found]
    adjusted = [None, *((1 + count) / (1 + draws) for count in beaten)]
    return tuple(
        ResidualCheck(r.variable, p, p is not None and p <= level, gap, gap_p)
        for r, p, gap, gap_p in zip(
            regressions, adjusted, gaps, _gap_p_values(gaps, of_linear), strict=True
        )
    )


def hsic_p_values(y: Array, x: Array) -> Array:
    """p-values of independence of y [n] from each column of x [n, k], gamma approximation.

    Kernels are Gaussian with the median distance as width. A constant is independent of all. The
    approximation is too liberal in the tail: of independent normal pairs 0.35 % are below 0.001 at
    n = 60 and 0.23 % at n = 200.
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
    ridge = RidgeCV(alphas=np.logspace(-3, 3, 7), alpha_per_target=True)
    return make_pipeline(StandardScaler(), features, ridge)


def _smoother(basis: str, causes: Array, y: Array, seed: int) -> Array:
    """Matrix [n, n] that fits y: least squares, or ridge with the penalty that y asks for."""
    n = len(y)
    mean = np.full((n, n), 1 / n)
    if not causes.shape[1]:
        return mean
    if basis == "linear":
        centred = causes - causes.mean(0)
        base, scales, _ = np.linalg.svd(centred, full_matrices=False)
        base = base[:, scales > scales[0] * n * np.finfo(float).eps]
        return mean + base @ base.T
    model = _regressor(basis, n, seed).fit(causes, y)
    features = model[:-1].transform(causes)
    base, scales, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    return mean + (base * (scales**2 / (scales**2 + model[-1].alpha_))) @ base.T


def _strengths(
    y: Array, smoother: Array, x: Array, draws: int, rng: np.random.Generator
) -> tuple[float, Array]:
    """Strongest dependence of the residual on a column of x, and the same of every null draw.

    The strength is −log of the tail probability under a gamma law with the moments of the draws.
    """
    columns = [c for c in map(_features, x.T) if c is not None]
    fit = smoother @ y
    residual = y - fit
    embed = _embedding(residual)
    if embed is None or not columns:
        return -math.inf, np.zeros(draws)
    features = np.hstack(columns)
    starts = np.cumsum([0, *(c.shape[1] for c in columns[:-1])])
    leverage = np.clip(smoother.diagonal(), 0, 0.9)
    noise = residual / np.sqrt(1 - leverage)
    noise -= noise.mean()
    bias = fit - smoother @ fit

    def statistics(residuals: Array) -> Array:
        squared = (embed(residuals).transpose(0, 2, 1) @ features) ** 2
        return np.add.reduceat(squared.sum(1), starts, axis=1)

    observed = statistics(residual[None])
    parts = []
    for start in range(0, draws, _AT_ONCE):
        again = rng.choice(noise, (min(_AT_ONCE, draws - start), len(y)))
        parts.append(statistics(bias + again - again @ smoother))
    null = np.vstack(parts)
    mean, variance = null.mean(0), null.var(0)
    law = stats.gamma(mean**2 / variance, scale=variance / mean)
    return float((-law.logsf(observed)).max()), (-law.logsf(null)).max(1)


def _features(values: Array) -> Array | None:
    """Centred features [n, k] whose products are the Gaussian kernel; ``None`` of a constant."""
    embed = _embedding(values)
    if embed is None:
        return None
    found = embed(values[None])[0]
    return found - found.mean(0)


def _embedding(values: Array) -> Callable[[Array], Array] | None:
    """Features of the Gaussian kernel of median width, exact at quantiles of the values.

    Maps [draws, n] to [draws, n, k] (Nyström); ``None`` of a constant.
    """
    squared = (values[:, None] - values) ** 2
    positive = squared[squared > 0]
    if not positive.size:
        return None
    rate = 1 / (2 * float(np.median(positive)))
    landmarks = np.unique(np.quantile(values, np.linspace(0, 1, _LANDMARKS)))
    scales, base = np.linalg.eigh(np.exp(-rate * (landmarks[:, None] - landmarks) ** 2))
    kept = scales > 1e-6 * scales[-1]
    root = base[:, kept] / np.sqrt(scales[kept])

    def embed(points: Array) -> Array:
        return np.asarray(np.exp(-rate * (points[..., None] - landmarks) ** 2) @ root)

    return embed


def _linear_draws(y: Array, causes: Array, rng: np.random.Generator) -> Array:
    """What y might have been, were it linear in its causes, [n, draws]."""
    fit = LinearRegression().fit(causes, y).predict(causes)
    return np.asarray(fit[:, None] + rng.choice(y - fit, (len(y), _LINEAR_DRAWS)))


def _gaps(model: Any, causes: Array, noise_variances: Array) -> list[float]:
    """Largest diagonal entry of Cov(∇f)/σ² of every target, gradients by central differences."""
    gradients = np.empty((*causes.shape, len(noise_variances)))
    for column in range(causes.shape[1]):
        step = np.zeros(causes.shape[1])
        step[column] = max(_STEP * float(causes[:, column].std()), np.finfo(float).tiny)
        above, below = model.predict(causes + step), model.predict(causes - step)
        gradients[:, column] = (above - below) / (2 * step[column])
    return [
        float(-expectation_gap(gradients[..., k], float(variance)).diagonal().min())
        if variance > 0
        else 0.0
        for k, variance in enumerate(noise_variances)
    ]


def _gap_p_values(gaps: Sequence[float], of_linear: Sequence[Array | None]) -> list[float | None]:
    """Adjusted p-value of every gap under its null; ``None`` where there is none."""
    scaled: list[float | None] = []
    largest = np.full(_LINEAR_DRAWS, -np.inf)
    for gap, null in zip(gaps, of_linear, strict=True):
        if null is None or not null.std() > 0:
            scaled.append(None)
            continue
        scaled.append(float((gap - null.mean()) / null.std()))
        largest = np.maximum(largest, (null - null.mean()) / null.std())
    return [
        None if value is None else float(1 + (largest >= value).sum()) / (1 + _LINEAR_DRAWS)
        for value in scaled
    ]
