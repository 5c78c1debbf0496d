"""Does the order's model fit? Residuals must not depend on the causes.

In an additive-noise model the residual of a variable is its noise, independent of all its causes.
Half of the samples fit the regression, the other half are tested: the Hilbert-Schmidt independence
criterion with Gaussian kernels (Gretton et al. 2008) between the residual and each cause, and the
fitted value, its p-value by the gamma approximation; Bonferroni within a variable, Holm over
variables. A rejection says that noise is not additive (post-nonlinear, multiplicative), that the
order or the edges are wrong, or that the regression fits badly. No rejection does not prove the
order: with linear functions and Gaussian noise every order leaves independent residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ResidualCheck:
    """One variable's residual.

    Attributes:
        variable: its index.
        p_value: adjusted for all tests made; ``None`` without causes, where nothing is tested.
        dependent: the adjusted p-value is at most the level.
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
    """Test every variable that has causes, and measure its expectation gap.

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
    gaps: list[float] = []
    with_causes = [r for r in regressions if r.causes]
    for regression in track(with_causes, "residual tests"):
        causes = x[:, list(regression.causes)]
        model = _regressor(basis, len(fitted), seed)
        model.fit(causes[fitted], x[fitted, regression.variable])
        guess = model.predict(causes[tested])
        residual = x[tested, regression.variable] - guess
        others = np.column_stack([causes[tested], guess]) if causes.shape[1] > 1 else causes[tested]
        p_values = hsic_p_values(residual, others)
        raw.append(min(1.0, float(p_values.min()) * len(p_values)))
        gaps.append(_gap(model, causes[tested], float(residual.var())))
    adjusted = dict(zip((r.variable for r in with_causes), _holm(raw), strict=True))
    measured = dict(zip((r.variable for r in with_causes), gaps, strict=True))
    found = []
    for regression in regressions:
        p = adjusted.get(regression.variable)
        gap = measured.get(regression.variable, 0.0)
        found.append(ResidualCheck(regression.variable, p, p is not None and p <= level, gap))
    return tuple(found)


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


def _regressor(basis: str, n: int, seed: int) -> object:
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


def _gap(model: object, causes: Array, noise_variance: float) -> float:
    """Largest diagonal entry of Cov(∇f)/σ², gradients by central differences."""
    if not noise_variance > 0:
        return 0.0
    gradients = np.empty_like(causes)
    for column in range(causes.shape[1]):
        step = np.zeros(causes.shape[1])
        step[column] = max(_STEP * float(causes[:, column].std()), np.finfo(float).tiny)
        above, below = model.predict(causes + step), model.predict(causes - step)  # type: ignore[attr-defined]
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
