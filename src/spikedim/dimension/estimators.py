"""Effective-dimension estimators and the registry a user extends with a decorator.

Every estimator maps a :class:`~spikedim.dimension.spectrum.Spectrum` (or the samples
themselves) to one number; zero total variance gives dimension 0. A value that needs eigenvalues
which a sketch did not keep is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from spikedim.dimension.spectrum import Spectrum
from spikedim.errors import ConfigError, DataError

Function = Callable[..., float]
DEFAULT = ("pca95", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge", "two_nn", "mle")
RIDGE_SHARE = 0.01
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Estimator:
    """One registered estimator.

    Args:
        key: its name in reports.
        function: ``f(spectrum) -> float`` or, with ``needs="samples"``, ``f(x, rng) -> float``
            where x is float64 ``[n, d]`` and rng a ``numpy.random.Generator``.
        needs: ``"spectrum"`` or ``"samples"``.
        counts: the value is a count of components, so it is checked against n.
        summary: what it is, in one line.
        least: smallest value that samples with any variance can have; no interval goes below it.
    """

    key: str
    function: Function
    needs: str = "spectrum"
    counts: bool = False
    summary: str = ""
    least: float = 0.0


_REGISTRY: dict[str, Estimator] = {}


def estimator(
    key: str, *, needs: str = "spectrum", counts: bool = False, least: float = 0.0
) -> Callable[[Function], Function]:
    """Register a dimension estimator under ``key``; the decorated function is unchanged.

    The other arguments are fields of :class:`Estimator`.

    Example:
        >>> from spikedim.dimension import estimator, measure
        >>> @estimator("above_mean")
        ... def above_mean(spectrum):
        ...     '''Number of eigenvalues above the average one (Kaiser's rule).'''
        ...     values = spectrum.eigenvalues
        ...     return float((values > spectrum.total_variance / spectrum.d).sum())
        >>> report = measure(x, estimators=["pr", "above_mean"])  # doctest: +SKIP

    Raises:
        ConfigError: the key is taken by another function or has the form ``pcaQQ``.
    """
    if needs not in ("spectrum", "samples"):
        raise ConfigError(f"needs={needs!r}; expected 'spectrum' or 'samples'")
    if _PCA.fullmatch(key):
        raise ConfigError(f"estimator key {key!r} is reserved for PCA counts; choose another")

    def register(function: Function) -> Function:
        known = _REGISTRY.get(key)
        same = known and known.function.__qualname__ == function.__qualname__
        if known and not (same and known.function.__module__ == function.__module__):
            raise ConfigError(f"estimator {key!r} is registered already; choose another key")
        summary = (function.__doc__ or "").strip().split("\n")[0]
        _REGISTRY[key] = Estimator(key, function, needs, counts, summary, least)
        return function

    return register


_PCA = re.compile(r"pca(\d{1,2}(?:\.\d+)?)(_real)?")


def pca_share(key: str) -> float | None:
    """The fraction q of a ``pcaQQ`` or ``pcaQQ_real`` key, ``None`` for any other key."""
    match = _PCA.fullmatch(key)
    return float(match[1]) / 100 if match and 0 < float(match[1]) < 100 else None


def pca_key(q: float) -> str:
    """Key of the PCA count at a share q of the variance, with all its digits.

    Example:
        >>> pca_key(0.95), pca_key(0.9999999)
        ('pca95', 'pca99.99999')
    """
    return f"pca{(100 * Decimal(str(q))).normalize():f}"


def get_estimator(key: str) -> Estimator:
    """Find an estimator by key; ``pcaQQ`` (pca90, pca99.5, …) exists for every 0 < QQ < 100.

    ``pcaQQ_real`` is the real-valued count, before it is rounded up to whole components.

    Raises:
        ConfigError: unknown key; the message lists the known ones.
    """
    q = pca_share(key)
    if q is not None:
        percent = key.removeprefix("pca").removesuffix("_real")
        summary = f"components that reach {percent} % of the variance"
        if key.endswith("_real"):
            summary += ", real-valued"
            return Estimator(key, lambda s: pca_quantile(s, q), summary=summary)
        return Estimator(key, lambda s: pca_count(s, q), counts=True, summary=summary, least=1.0)
    if key not in _REGISTRY:
        known = ", ".join(["pcaQQ (pca95)", *sorted(_REGISTRY)])
        raise ConfigError(f"unknown estimator {key!r}; known: {known}")
    return _REGISTRY[key]


def list_estimators() -> list[Estimator]:
    """All registered estimators, with ``pca95`` for the pcaQQ family."""
    return [get_estimator("pca95"), *_REGISTRY.values()]


def pca_count(spectrum: Spectrum, q: float = 0.95) -> float:
    """Smallest k with Σ_{i≤k} λ_i ≥ q·Σλ (published definition of d_eff with q = 0.95).

    Sums that rounding alone parts from q, by 1e-10 of it, have reached it. Units: components.
    Source: claims DEFF-CIFAR10 and following.
    """
    if spectrum.total_variance == 0:
        return 0.0
    cumulative = np.cumsum(spectrum.shares)
    enough = q * (1 - _ROUNDING)
    if spectrum.partial and cumulative[-1] < enough:
        return float("nan")
    return float(min(int(np.searchsorted(cumulative, enough)) + 1, len(cumulative)))


def pca_quantile(spectrum: Spectrum, q: float = 0.95) -> float:
    """Real-valued :func:`pca_count`: linear in the cumulative variance between components."""
    if spectrum.total_variance == 0:
        return 0.0
    cumulative = np.concatenate([[0.0], np.cumsum(spectrum.shares)])
    return float(np.interp(q, cumulative, np.arange(len(cumulative))))


@estimator("pr", least=1.0)
def participation_ratio_of(spectrum: Spectrum) -> float:
    """Participation ratio (Σλ)²/Σλ², between 1 and the rank."""
    if spectrum.partial:
        return float("nan")
    square = spectrum.square
    return spectrum.total_variance**2 / square if square > 0 else 0.0


@estimator("pr_corrected", least=1.0)
def corrected_ratio_of(spectrum: Spectrum) -> float:
    """Participation ratio of unbiased (tr C)² and tr C²; no 1/n bias of independent samples."""
    if spectrum.fourth is None:
        return float("nan")
    return corrected_ratio(
        spectrum.n,
        spectrum.d,
        spectrum.total_variance,
        spectrum.square,
        spectrum.fourth,
        spectrum.centered,
    )


def corrected_traces(
    n: int, total: float, square: float, fourth: float, centered: bool
) -> tuple[float, float]:
    """Unbiased (tr Σ)² and tr Σ² from the sample matrix S, for any distribution.

    Centred, with Q = Σ‖x−x̄‖⁴/(n−1) (Himeno and Yamada, J. Multivariate Anal. 130, 2014):
    (tr Σ)² ← c·[2·tr S² + (n²−3n+1)(tr S)² − nQ],  tr Σ² ← c·[(n−1)(n−2)·tr S² + (tr S)² − nQ],
    c = (n−1)/(n(n−2)(n−3)). Uncentred, over pairs i ≠ j: (n²·tr² − Σ‖x‖⁴)/(n(n−1)), likewise
    for tr S². These are the U-statistics behind arXiv 2509.26560 for fully observed features.

    Raises:
        DataError: fewer than 4 samples (2 when uncentred).
    """
    if n < (4 if centered else 2):
        raise DataError(f"pr_corrected needs at least {4 if centered else 2} samples, got {n}")
    if not centered:
        pairs = n * (n - 1)
        return (n * n * total**2 - fourth) / pairs, (n * n * square - fourth) / pairs
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    spread = n * fourth / (n - 1)
    first = 2 * square + (n * n - 3 * n + 1) * total**2 - spread
    second = (n - 1) * (n - 2) * square + total**2 - spread
    return scale * first, scale * second


def corrected_ratio(
    n: int, d: int, total: float, square: float, fourth: float, centered: bool
) -> float:
    """(tr Σ)²/tr Σ² from unbiased parts, kept within [1, d]; NaN below 4 (2) samples.

    The ratio of two unbiased estimates keeps a bias of order 1/n² only. Where tr Σ² is estimated
    as zero or less the samples do not resolve the dimension and d is returned.
    """
    if total == 0:
        return 0.0
    if n < (4 if centered else 2):
        return float("nan")
    first, second = corrected_traces(n, total, square, fourth, centered)
    if second <= first / d:
        return float(d)
    return max(first / second, 1.0)


@estimator("stable_rank", least=1.0)
def stable_rank(spectrum: Spectrum) -> float:
    """Stable rank Σλ/λ₁."""
    top = float(spectrum.eigenvalues[0])
    return spectrum.total_variance / top if top > 0 else 0.0


@estimator("entropy_rank", least=1.0)
def entropy_rank(spectrum: Spectrum) -> float:
    """Entropy rank exp(H(λ/Σλ)), natural logarithm (Roy and Vetterli 2007)."""
    if spectrum.partial:
        return float("nan")
    p = spectrum.shares
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


@estimator("ridge", least=1 / (1 + RIDGE_SHARE))
def ridge(spectrum: Spectrum) -> float:
    """Ridge degrees of freedom Σλ/(λ+μ), μ = 1 % of the largest eigenvalue (Zhang 2005).

    The default μ makes the value free of units; for another μ use :func:`ridge_dimension`.
    """
    return ridge_dimension(spectrum, RIDGE_SHARE * float(spectrum.eigenvalues[0]))


def ridge_dimension(spectrum: Spectrum, penalty: float) -> float:
    """d(μ) = tr C(C + μI)⁻¹ = Σλ/(λ+μ), for a penalty μ > 0 in squared units of the data.

    Raises:
        ConfigError: the penalty is negative or not a number.
    """
    if not penalty >= 0:
        raise ConfigError(f"penalty={penalty}; expected a number of at least 0")
    if spectrum.partial:
        return float("nan")
    values = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    return float((values / (values + penalty)).sum())


@estimator("two_nn", needs="samples")
def two_nn(x: Any, rng: np.random.Generator) -> float:
    """Two-NN intrinsic dimension of the manifold (Facco et al. 2017), by scikit-dimension."""
    from spikedim.dimension.intrinsic import two_nn_dimension

    return two_nn_dimension(x, rng)


@estimator("mle", needs="samples")
def mle(x: Any, rng: np.random.Generator) -> float:
    """Levina–Bickel maximum-likelihood intrinsic dimension (2005), by scikit-dimension."""
    from spikedim.dimension.intrinsic import mle_dimension

    return mle_dimension(x, rng)
