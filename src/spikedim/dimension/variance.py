"""Sampling variance of the corrected participation ratio, from its U-statistic structure."""

from __future__ import annotations

import numpy as np
from scipy import stats

from spikedim.dimension.arrays import Samples
from spikedim.dimension.estimators import corrected_traces
from spikedim.dimension.moments import Array
from spikedim.dimension.spectrum import Spectrum

_PAIRS_FROM = 2048


def log_ratio_variance(products: Array, first: float, second: float, n: int) -> float:
    """Variance of ln[(tr Σ)²/tr Σ²] estimated from n samples.

    Linearised, the statistic is the mean over pairs of h_ij = a_i·a_j/A − g_ij²/B with g the
    Gram matrix, a its diagonal, A and B the estimated traces. Splitting h into main effects (σ₁²)
    and the interaction (σ₂²) gives Var = 4σ₁²/n + 2σ₂²/(n(n−1)); the plain jackknife would
    count the second term twice (Efron and Stein 1981).

    Args:
        products: Gram matrix [m, m] of m ≥ 4 of the (centred) samples.
        first, second: unbiased estimates of (tr Σ)² and tr Σ².
        n: number of samples behind the estimate.
    """
    m = len(products)
    a = np.diagonal(products)
    kernel = np.outer(a, a) / first - products**2 / second
    np.fill_diagonal(kernel, 0.0)
    mean = kernel.sum() / (m * (m - 1))
    effect = (kernel.sum(axis=1) / (m - 1) - mean) * (m - 1) / (m - 2)
    rest = kernel - mean - effect[:, None] - effect[None, :]
    np.fill_diagonal(rest, 0.0)
    interaction = float((rest**2).sum()) / (m * (m - 3))
    main = max(float(effect @ effect) / (m - 1) - interaction / (m - 2), 0.0)
    return 4 * main / n + 2 * interaction / (n * (n - 1))


def corrected_interval(
    samples: Samples,
    spec: Spectrum,
    products: Array | None,
    mean: Array | None,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Interval of pr_corrected, inside [1, d].

    With r = t·sd(ln PR), low = PR·√(1 − 2r): samples that miss a leading direction raise the
    estimate and lower its apparent variance together, and on the scale of PR² the two are nearly
    unrelated. high = PR·exp(r): where rare events decide, samples that hold many of them lower
    both, and the squared scale reaches too low (docs/coverage.md). Student's t has (n − 1)/4
    degrees: the squares of Gaussian data have kurtosis 15, so their variance is
    known to n/7 degrees where one direction leads, and better where many do.

    Args:
        samples: the data.
        spec: its spectrum.
        products: the full (centred) Gram matrix where it is known.
        mean: mean of the samples where it is not, for the products of up to 2,048 of them.
        confidence: nominal coverage.
        seed: of the choice of those samples.
    """
    n, d = spec.n, spec.d
    if spec.total_variance == 0:
        return 0.0, 0.0
    if n < 5 or spec.fourth is None:
        return 1.0, float(d)
    first, second = corrected_traces(
        n, spec.total_variance, spec.square, spec.fourth, spec.centered
    )
    if second <= 0 or first <= 0:
        return 1.0, float(d)
    if products is None:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(n, min(n, _PAIRS_FROM), replace=False))
        rows = samples.take(chosen)
        if mean is not None:
            rows = rows - mean
        products = rows @ rows.T
    variance = log_ratio_variance(products, first, second, n)
    reach = float(stats.t.ppf(0.5 + confidence / 2, (n - 1) / 4)) * np.sqrt(variance)
    ratio = first / second
    low = ratio * np.sqrt(max(1 - 2 * reach, 0.0))
    high = ratio * np.exp(min(reach, 100.0))
    return float(np.clip(low, 1.0, d)), float(np.clip(high, 1.0, d))
