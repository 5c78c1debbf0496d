"""The published and corrected lower bounds, filled in with the data and the network at hand."""

from __future__ import annotations

import numpy as np

from spikedim import theory
from spikedim.design.plan import Bound, ModelSummary
from spikedim.dimension import Spectrum
from spikedim.profiling import Profile

LIPSCHITZ = 1.0


def lower_bounds(
    model: ModelSummary,
    spectrum: Spectrum,
    pixels: np.ndarray,
    d_eff: float,
    epsilon: float,
    profile: Profile,
) -> tuple[Bound, ...]:
    """Every bound of the theory beside the measured spikes and timesteps.

    Args:
        model: tokens n and channels d of the representation.
        spectrum: covariance spectrum of the inputs.
        pixels: inputs in [0, 1], shape [samples, components].
        d_eff: effective dimension that enters the input-dependent bound.
        epsilon: relative error as a fraction.
        profile: measured spikes at the recommended T.
    """
    spikes, timesteps = profile.spikes_per_sample.value, profile.T
    rate = spikes / (timesteps * sum(layer.neurons for layer in profile.layers))
    published = f"ε = {epsilon:g} (fraction), L_f = {LIPSCHITZ:g}"
    bounds = [
        Bound(
            "published worst case L_f²·n·d/ε²",
            "BOUND-WORST",
            theory.spikes_worst_case(model.tokens, model.channels, epsilon, LIPSCHITZ),
            "spikes per sample",
            spikes,
            f"{published}; n = {model.tokens} tokens, d = {model.channels} channels",
        ),
        Bound(
            "published input-dependent L_f²·d_eff/ε²",
            "BOUND-INPUT",
            theory.spikes_input_dependent(d_eff, epsilon, LIPSCHITZ),
            "spikes per sample",
            spikes,
            f"{published}; d_eff = {d_eff:g}",
        ),
        Bound(
            "input-dependent as the T rule implies, L_f²·n·d_eff/ε²",
            "BOUND-INPUT",
            theory.spikes_input_dependent(d_eff, epsilon, LIPSCHITZ, model.tokens),
            "spikes per sample",
            spikes,
            f"{published}; d_eff = {d_eff:g}, n = {model.tokens}",
        ),
    ]
    if 0 < rate < 1:
        filled = theory.water_filling(
            spectrum.eigenvalues, epsilon**2 * float(np.sum(spectrum.eigenvalues))
        )
        bounds.append(
            Bound(
                "measured spectrum: water-filling bits at H_b(r)/r bits per spike",
                "BOUND-BITS",
                theory.spikes_for_bits(filled.bits, rate),
                "spikes per sample",
                spikes,
                f"Gaussian input kept to relative RMS error {epsilon:g} ({filled.bits:,.0f} bits); "
                f"r = {rate:.3f}; a classifier may discard most of it",
            )
        )
    scale = float(np.sqrt((pixels**2).sum(axis=1).mean()))
    bounds += [
        Bound(
            "Bernoulli rate code (L_f²/ε²)·Σx(1-x)",
            "BOUND-CODE",
            float(
                np.mean([theory.timesteps_bernoulli(row, epsilon * scale) for row in pixels[:64]])
            ),
            "timesteps",
            timesteps,
            f"input decoded to relative RMS error {epsilon:g} from Bernoulli spikes; this network "
            "is fed the real-valued input instead",
        ),
        Bound(
            "deterministic code L_f·√m/ε",
            "BOUND-CODE",
            theory.timesteps_deterministic(pixels.shape[1], epsilon * scale),
            "timesteps",
            timesteps,
            f"input decoded to relative RMS error {epsilon:g} from integrate-and-fire spikes, "
            f"m = {pixels.shape[1]}",
        ),
    ]
    return tuple(bounds)
