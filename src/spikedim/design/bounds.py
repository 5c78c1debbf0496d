"""The published and corrected lower bounds, filled in with the data and the network at hand."""

from __future__ import annotations

import numpy as np

from spikedim import theory
from spikedim.design.plan import Bound, ModelSummary
from spikedim.dimension import DimensionReport
from spikedim.profiling import Profile

LIPSCHITZ = 1.0


def lower_bounds(
    model: ModelSummary,
    dimension: DimensionReport,
    d_eff: float,
    inputs: np.ndarray | None,
    epsilon: float,
    profile: Profile,
) -> tuple[Bound, ...]:
    """Every bound of the theory beside the measured spikes and timesteps.

    Args:
        model: tokens n and channels d of the representation.
        dimension: what was measured of the data.
        d_eff: effective dimension that enters the input-dependent bound.
        inputs: what the network is fed, in any range, [samples, components]; ``None`` where the
            measured vectors are not that, so that no code of them is asked for.
        epsilon: target error as a fraction.
        profile: measured spikes at the recommended T.
    """
    spikes = profile.spikes_per_sample.value
    rate = spikes / (profile.T * sum(layer.neurons for layer in profile.layers))
    printed = f"ε = {epsilon:g} as printed, no unit; L_f = {LIPSCHITZ:g} assumed"
    n, d = model.tokens, model.channels
    of_data = (
        f"{printed}; d_eff = {d_eff:g} of whole inputs ({dimension.d} features), not of a "
        "representation"
    )
    spike_bounds = (
        (
            "worst case L_f²·n·d/ε²",
            "BOUND-WORST",
            theory.spikes_worst_case(n, d, epsilon, LIPSCHITZ),
            f"{printed}; n = {n} tokens, d = {d} channels of the representation",
        ),
        (
            "input-dependent L_f²·d_eff/ε²",
            "BOUND-INPUT",
            theory.spikes_input_dependent(d_eff, epsilon, LIPSCHITZ),
            of_data,
        ),
        (
            "input-dependent as the T rule implies, L_f²·n·d_eff/ε²",
            "BOUND-INPUT",
            theory.spikes_input_dependent(d_eff, epsilon, LIPSCHITZ, n),
            f"{of_data}; n = {n}",
        ),
    )
    bounds = [
        Bound(name, claim, "published lower bound", value, "spikes per sample", spikes, assumption)
        for name, claim, value, assumption in spike_bounds
    ]
    if inputs is None:
        return tuple(bounds)
    eigenvalues = dimension.spectrum.eigenvalues
    variance = float(np.sum(eigenvalues))
    if 0 < rate < 1 and variance > 0:
        filled = theory.water_filling(eigenvalues, epsilon**2 * variance)
        bounds.append(
            Bound(
                "water-filling bits of the measured spectrum at H_b(r)/r bits per spike",
                "BOUND-BITS",
                "Gaussian reference",
                theory.spikes_for_bits(filled.bits, rate),
                "spikes per sample",
                spikes,
                f"Gaussian input of this covariance kept to {epsilon:.0%} of its RMS deviation "
                f"({filled.bits:,.0f} bits); r = {rate:.3f}; a classifier may discard most of it",
            )
        )
    rates = _unit_range(inputs)
    norm = float(np.sqrt((rates**2).sum(axis=1).mean()))
    if norm > 0:
        error = epsilon * norm
        decoded = f"input, scaled to [0, 1], decoded to {epsilon:.0%} of its RMS norm from"
        bernoulli = np.mean([theory.timesteps_bernoulli(row, error) for row in rates])
        count = theory.timesteps_deterministic(rates.shape[1], error)
        bounds += [
            Bound(
                "Bernoulli rate code Σx(1-x)/δ²",
                "BOUND-CODE",
                "code requirement",
                float(bernoulli),
                "timesteps",
                profile.T,
                f"{decoded} Bernoulli spikes (necessary); the network is fed its input as it is",
            ),
            Bound(
                "deterministic integrate-and-fire code √m/δ",
                "BOUND-CODE",
                "code requirement",
                count,
                "timesteps",
                profile.T,
                f"{decoded} integrate-and-fire spikes (sufficient), m = {rates.shape[1]}",
            ),
        ]
    return tuple(bounds)


def _unit_range(inputs: np.ndarray) -> np.ndarray:
    """Inputs mapped to [0, 1] by their common range: firing probabilities of a rate code."""
    low, high = float(inputs.min()), float(inputs.max())
    return np.clip((inputs - low) / (high - low), 0, 1) if high > low else np.zeros_like(inputs)
