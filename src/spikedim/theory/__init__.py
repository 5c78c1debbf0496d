"""Bounds, rules and interval arithmetic of the theory: pure numbers, no torch."""

from spikedim.theory.blahut import RatePoint, blahut_arimoto
from spikedim.theory.bounds import (
    WaterFilling,
    binary_entropy,
    bits_per_spike,
    bits_published,
    bits_shannon,
    spikes_for_bits,
    spikes_input_dependent,
    spikes_worst_case,
    timesteps_bernoulli,
    timesteps_deterministic,
    timesteps_hoeffding,
    water_filling,
)
from spikedim.theory.noise import accuracy_from_margins, power_law
from spikedim.theory.rules import (
    PUBLISHED_CONSTANT,
    PUBLISHED_D_EFF,
    TimestepPrediction,
    timestep_rule,
)
from spikedim.theory.statistics import mean_interval, product_interval, wilson_interval

__all__ = [
    "PUBLISHED_CONSTANT",
    "PUBLISHED_D_EFF",
    "RatePoint",
    "TimestepPrediction",
    "WaterFilling",
    "accuracy_from_margins",
    "binary_entropy",
    "bits_per_spike",
    "bits_published",
    "bits_shannon",
    "blahut_arimoto",
    "mean_interval",
    "power_law",
    "product_interval",
    "spikes_for_bits",
    "spikes_input_dependent",
    "spikes_worst_case",
    "timestep_rule",
    "timesteps_bernoulli",
    "timesteps_deterministic",
    "timesteps_hoeffding",
    "water_filling",
    "wilson_interval",
]
