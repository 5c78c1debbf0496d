"""Closed-form factors of the spiking NTK's reduction factor R (claims R-PROPERTIES, R-PRODUCT).

R = d_eff(spiking)/d_eff(continuous), published as R_threshold·R_reset·R_refractory. The threshold
factor as printed contradicts the limits stated for it, so it has a corrected form beside the
published one. T_ISI is read as what a spike train has: the mean time from spike to spike, dead
time included. The participation ratio does not change when a kernel is scaled, so no product of
scalars can be derived from one: these are models to be measured against.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr, ndtr

from spikedim.errors import ConfigError


def threshold_published(threshold: float, mean: float, deviation: float) -> float:
    """Published ``Φ(α)·exp(-α²/2)`` with ``α = (v_th - μ)/σ``.

    As v_th → 0 it tends to ``Φ(-μ/σ)·exp(-μ²/2σ²)``: at most 0.5 for μ >= 0, at most 0.6102 for
    any μ (at μ = -0.506 σ), never 1. It is not monotone in v_th.

    Args:
        threshold: v_th >= 0, in units of potential.
        mean, deviation: μ and σ > 0 of the membrane potential, same units.
    """
    alpha = _alpha(threshold, mean, deviation)
    return float(ndtr(alpha)) * math.exp(-(alpha**2) / 2)


def threshold_corrected(threshold: float, mean: float, deviation: float) -> float:
    """Corrected ``Φ(-α)/Φ(μ/σ)``: the firing probability, relative to that at v_th = 0.

    1 at v_th = 0, strictly falling, 0 in the limit. Arguments as :func:`threshold_published`.
    """
    alpha = _alpha(threshold, mean, deviation)
    return math.exp(float(log_ndtr(-alpha)) - float(log_ndtr(mean / deviation)))


def reset_published(v_reset: float, threshold: float, strength: float = 1.0) -> float:
    """Published ``1/(1 + γ·(V_reset/v_th)²)``: 1 at V_reset = 0 and falling in abs(V_reset).

    Args:
        v_reset: potential after a reset.
        threshold: v_th > 0, same units.
        strength: γ >= 0.
    """
    if not (threshold > 0 and strength >= 0):
        raise ConfigError(f"threshold={threshold} must be > 0 and strength={strength} >= 0")
    return 1 / (1 + strength * (v_reset / threshold) ** 2)


def refractory_published(refractory: float, interval: float) -> float:
    """Published ``1 - t_ref/T_ISI``, with the interspike interval T_ISI > t_ref.

    It tends to 1 as firing gets sparse, so it cannot make sparse coding reduce more.

    Args:
        refractory: t_ref >= 0.
        interval: T_ISI, mean time between spikes, same unit.
    """
    if not 0 <= refractory < interval:
        raise ConfigError(f"refractory={refractory} must lie in [0, T_ISI={interval})")
    return 1 - refractory / interval


def refractory_renewal(refractory: float, probability: float) -> float:
    """Published factor of a renewal neuron, ``1/(1 + q·t_ref)``: the share of time it is ready.

    A neuron that fires with probability q in every ready step has T_ISI = t_ref + 1/q, with which
    :func:`refractory_published` is this for any t_ref and q.

    Args:
        refractory: t_ref >= 0 in steps.
        probability: q in [0, 1], firing probability per step without refractoriness.
    """
    if not (refractory >= 0 and 0 <= probability <= 1):
        raise ConfigError(
            f"refractory={refractory} must be >= 0 and probability={probability} in [0, 1]"
        )
    return 1 / (1 + probability * refractory)


def reduction_published(
    threshold: float,
    mean: float,
    deviation: float,
    v_reset: float = 0.0,
    refractory: float = 0.0,
    strength: float = 1.0,
) -> float:
    """Published R: the product of the three published factors.

    The source gives no T_ISI in terms of μ and σ; assumed is ``T_ISI = t_ref + 1/Φ(-α)`` steps,
    that of a neuron which fires with probability Φ(-α) in every step in which it is ready.

    Args:
        threshold, mean, deviation: as for :func:`threshold_published`.
        v_reset: potential after a reset, same units.
        refractory: t_ref >= 0 in steps.
        strength: γ >= 0 of :func:`reset_published`.
    """
    others = _reset_and_refractory(threshold, mean, deviation, v_reset, refractory, strength)
    return threshold_published(threshold, mean, deviation) * others


def reduction_corrected(
    threshold: float,
    mean: float,
    deviation: float,
    v_reset: float = 0.0,
    refractory: float = 0.0,
    strength: float = 1.0,
) -> float:
    """R with the corrected threshold factor; arguments and else as :func:`reduction_published`."""
    others = _reset_and_refractory(threshold, mean, deviation, v_reset, refractory, strength)
    return threshold_corrected(threshold, mean, deviation) * others


def _reset_and_refractory(
    threshold: float,
    mean: float,
    deviation: float,
    v_reset: float,
    refractory: float,
    strength: float,
) -> float:
    probability = float(ndtr(-_alpha(threshold, mean, deviation)))
    reset = reset_published(v_reset, threshold, strength) if v_reset else 1.0
    return reset * refractory_renewal(refractory, probability)


def _alpha(threshold: float, mean: float, deviation: float) -> float:
    if not (threshold >= 0 and math.isfinite(mean) and 0 < deviation < math.inf):
        raise ConfigError(
            f"threshold={threshold} must be >= 0, mean={mean} finite, deviation={deviation} > 0"
        )
    return (threshold - mean) / deviation
