"""Lower bounds on spikes and timesteps: as published, and corrected (claims BOUND-*).

The published bounds scale as 1/ε². That is the variance of a Bernoulli rate code, not an
information-theoretic limit: the bits needed grow only as log(1/ε), and a deterministic code needs
only 1/ε timesteps. All forms are offered side by side under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spikedim.errors import ConfigError
from spikedim.results import Result

_LEAST, _MOST = 1e-50, 1e50


def spikes_worst_case(tokens: int, channels: int, epsilon: float, lipschitz: float = 1.0) -> float:
    """Published worst case ``N >= L_f²·n·d/ε²`` spikes (claim BOUND-WORST).

    Args:
        tokens, channels: n and d of the representation.
        epsilon: Frobenius error, a fraction.
        lipschitz: L_f of the target; an upper bound on its variation, so a constant target
            (which needs no spike at all) is not excluded by any L_f > 0.
    """
    _positive(tokens=tokens, channels=channels)
    return _gain(lipschitz, epsilon) * tokens * channels


def spikes_input_dependent(
    d_eff: float, epsilon: float, lipschitz: float = 1.0, tokens: int | None = None
) -> float:
    """Published input-dependent bound, in both forms found in print (claim BOUND-INPUT).

    ``L_f²·d_eff/ε²`` (as stated) or, with ``tokens`` given, ``L_f²·n·d_eff/ε²`` (implied by the
    timestep rule, where T = N/n per token).
    """
    _positive(d_eff=d_eff)
    return _gain(lipschitz, epsilon) * d_eff * (1 if tokens is None else tokens)


def bits_published(tokens: int, channels: int, epsilon: float, lipschitz: float = 1.0) -> float:
    """Published rate-distortion step ``R(D) = n·d·log2(L_f/ε)`` bits (claim BOUND-BITS).

    Clamped at 0, where the printed formula turns negative (ε > L_f): a rate cannot.
    Not a bound either way: above R(D) for few components, below it for 18 or more.
    """
    _positive(tokens=tokens, channels=channels)
    check_square(epsilon=epsilon, lipschitz=lipschitz)
    return max(0.0, tokens * channels * math.log2(lipschitz / epsilon))


def bits_shannon(components: int, epsilon: float, lipschitz: float = 1.0) -> float:
    """Shannon lower bound for ``m`` independent uniform [0, 1] components (corrected BOUND-BITS).

    ``R = max(0, (m/2)·log2(m/(2πe·D)))`` bits at total squared distortion ``D = (ε/L_f)²``:
    a uniform component has zero differential entropy, a Gaussian of variance D/m has
    ``½·log2(2πe·D/m)``.
    """
    _positive(components=components)
    check_square(epsilon=epsilon, lipschitz=lipschitz)
    distortion = (epsilon / lipschitz) ** 2
    return max(0.0, components / 2 * math.log2(components / (2 * math.pi * math.e * distortion)))


@dataclass(frozen=True)
class WaterFilling(Result):
    """Reverse water-filling solution.

    Attributes:
        bits: rate R(D).
        level: water level θ, in the units of the eigenvalues.
        distortion: total squared distortion D = Σ min(θ, λ_i).
        active: number of components above the level.
    """

    bits: float
    level: float
    distortion: float
    active: int


def water_filling(eigenvalues: ArrayLike, distortion: float) -> WaterFilling:
    """Rate-distortion of a Gaussian source with the measured covariance spectrum.

    ``R(D) = Σ max(0, ½·log2(λ_i/θ))`` with ``Σ min(θ, λ_i) = D`` (Cover and Thomas, ch. 10). It is
    the largest R(D) of any source with that covariance, so it bounds a Gaussian source from
    below and every other source from above.

    Args:
        eigenvalues: covariance eigenvalues, any order, non-negative.
        distortion: total squared distortion D > 0, in the units of the eigenvalues.

    Raises:
        ConfigError: negative eigenvalues or D <= 0.
    """
    values: NDArray[np.float64] = np.sort(np.asarray(eigenvalues, dtype=np.float64).ravel())[::-1]
    _positive(distortion=distortion)
    if values.size == 0 or not np.isfinite(values).all() or values[-1] < 0:
        raise ConfigError("eigenvalues must be a non-empty list of finite numbers >= 0")
    # Sum of the k-th component and all after it, smallest first: a difference of sums would lose
    # what is left of a small distortion.
    rest = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    if distortion >= rest[0]:
        return WaterFilling(0.0, float(values[0]), float(rest[0]), 0)
    # With the k largest components above the level, D = k·θ + (sum of the rest); the first k whose
    # level reaches the next component is the solution.
    levels = (distortion - rest[1:]) / np.arange(1, values.size + 1)
    k = int(np.argmax(levels >= np.append(values[1:], 0.0)))
    level = float(levels[k])
    active = values[: k + 1]
    return WaterFilling(float(0.5 * np.log2(active / level).sum()), level, distortion, k + 1)


def binary_entropy(probability: float) -> float:
    """Binary entropy H_b(p) in bits; 0 at p = 0 and p = 1."""
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability={probability} must lie in [0, 1]")
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def bits_per_spike(rate: float) -> float:
    """Most bits one spike can carry at firing probability ``r`` per step: ``H_b(r)/r``.

    2.0 at r = 0.5, 4.69 at 0.1, 7.07 at 0.02: "at most one bit per spike" is false.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate} must lie in (0, 1]: spikes per neuron and timestep")
    return binary_entropy(rate) / rate


def spikes_for_bits(bits: float, rate: float) -> float:
    """Spikes needed to carry ``bits`` at firing probability ``r``: ``N >= R·r/H_b(r)``.

    Infinite at r = 1, where a train that always fires carries nothing.
    """
    if not bits >= 0:
        raise ConfigError(f"bits={bits} must not be negative")
    capacity = bits_per_spike(rate)
    return bits / capacity if capacity > 0 else (math.inf if bits > 0 else 0.0)


def timesteps_bernoulli(
    values: Sequence[float] | ArrayLike, epsilon: float, lipschitz: float = 1.0
) -> float:
    """Timesteps a Bernoulli rate code needs: ``T >= (L_f²/ε²)·Σ x(1-x)`` (claim BOUND-CODE).

    Args:
        values: the encoded rates x in [0, 1], one per component.
        epsilon: Frobenius error of the output, a fraction of its unit.
        lipschitz: L_f of the map applied to the decoded rates.
    """
    rates = np.asarray(values, dtype=np.float64)
    if rates.size == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ConfigError("values must be rates in [0, 1]; scale the data first")
    return _gain(lipschitz, epsilon) * float((rates * (1 - rates)).sum())


def timesteps_deterministic(components: int, epsilon: float, lipschitz: float = 1.0) -> float:
    """Timesteps a deterministic integrate-and-fire code needs: ``T >= L_f·sqrt(m)/ε`` (BOUND-CODE).

    Each of m decoded rates is within 1/T of its value, so the error is at most ``L_f·sqrt(m)/T``.
    """
    _positive(components=components)
    return math.sqrt(_gain(lipschitz, epsilon) * components)


def timesteps_hoeffding(delta: float, failure: float = 0.05) -> float:
    """Bernoulli code: ``T0 = ln(2/p)/(2δ²)`` steps put P(|s̄-x| > δ) below p (claim RATE)."""
    check_square(delta=delta)
    if not 0 < failure < 1:
        raise ConfigError(f"failure={failure} must be a probability strictly between 0 and 1")
    return math.log(2 / failure) / (2 * delta**2)


def check_square(**values: float) -> None:
    """Raise :class:`ConfigError` unless each value, its square and 1/square are sound numbers.

    Errors ε enter as 1/ε², which floating point cannot hold for every positive ε.
    """
    for name, value in values.items():
        if not _LEAST <= value <= _MOST:
            raise ConfigError(
                f"{name}={value} must be a positive number, from {_LEAST:g} to {_MOST:g}"
            )


def _gain(lipschitz: float, epsilon: float) -> float:
    check_square(epsilon=epsilon)
    if lipschitz < 0 or not lipschitz <= _MOST:
        raise ConfigError(f"lipschitz={lipschitz} must be a number >= 0, at most {_MOST:g}")
    return (lipschitz / epsilon) ** 2


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value} must be a positive number")
