"""Published design rules: the timestep rule and its constants (claims RULE-T, RULE-C)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from spikedim.errors import ConfigError
from spikedim.results import Estimate, Result, Table
from spikedim.theory.bounds import check_square
from spikedim.theory.statistics import product_interval

EpsilonUnit = Literal["percent", "fraction"]

#: C of T = C·d_eff/ε² and its published 95 % interval (arXiv:2604.15769).
PUBLISHED_CONSTANT = Estimate(2.3, 1.9, 2.7, method="published, arXiv:2604.15769")

#: Effective dimensions the paper states for its protocol (PCA-95 %, flattened, centred).
PUBLISHED_D_EFF = {
    "cifar10": Estimate(47, 44, 50, method="published ±3"),
    "cifar100": Estimate(68, 64, 72, method="published ±4"),
    "imagenet": Estimate(89, 82, 96, method="published ±7"),
    "text": Estimate(55, 50, 60, method="published 50–60"),
}


@dataclass(frozen=True)
class TimestepPrediction(Result):
    """A predicted number of timesteps with the inputs it came from.

    Attributes:
        rule: which rule, with the reading of ε.
        raw: C·d_eff/ε² before rounding up.
        timesteps: the same rounded up to whole timesteps, bounds included.
        constant, d_eff: the factors with their intervals.
        epsilon, epsilon_unit: the target error and its unit.
    """

    rule: str
    raw: Estimate
    timesteps: Estimate
    constant: Estimate
    d_eff: Estimate
    epsilon: float
    epsilon_unit: EpsilonUnit

    def tables(self) -> list[Table]:
        """One row: the rule, its inputs, and T."""
        unit = "%" if self.epsilon_unit == "percent" else ""
        row = (self.rule, self.constant, self.d_eff, f"{self.epsilon:g}{unit}", self.timesteps)
        return [Table("Predicted timesteps", ("rule", "C", "d_eff", "ε", "T"), [row])]


def timestep_rule(
    d_eff: Estimate | float,
    epsilon: float,
    epsilon_unit: EpsilonUnit = "percent",
    constant: Estimate | float = PUBLISHED_CONSTANT,
) -> TimestepPrediction:
    """Published timestep rule ``T = ceil(C·d_eff/ε²)`` (claim RULE-T).

    The unit of ε is explicit because the published statement only makes sense in one of them:
    with ε a fraction even ε = 1 gives T = 108 for d_eff = 47, while with ε in percentage points
    ε = 5 gives 4.3, 6.3 and 8.2 for the published d_eff of 47, 68 and 89: the reported range.
    Percent is therefore the default. The intervals of C and d_eff combine on the log scale
    (:func:`spikedim.theory.statistics.product_interval`). The rule sees only the data: it gives
    every architecture, leak and threshold the same T.

    Args:
        d_eff: effective dimension (pure number), with its interval where it has one.
        epsilon: target error; percentage points or a fraction, by ``epsilon_unit``.
        epsilon_unit: ``"percent"`` (ε = 5 means 5 %) or ``"fraction"`` (ε = 0.05).
        constant: C, with its interval where it has one.

    Raises:
        ConfigError: a factor that is no number, or not positive and finite; an unknown unit.
    """
    if epsilon_unit not in get_args(EpsilonUnit):
        raise ConfigError(f"epsilon_unit={epsilon_unit!r}; use 'percent' or 'fraction'")
    check_square(epsilon=epsilon)
    dimension, scale = _estimate(d_eff, "d_eff"), _estimate(constant, "constant")
    inverse_square = epsilon**-2
    low, closed = product_interval(
        _triple(scale), _triple(dimension), (inverse_square, inverse_square, inverse_square)
    )
    # An interval of a factor that is open above leaves T open above.
    high = None if any(_is_open(factor) for factor in (scale, dimension)) else closed
    value = scale.value * dimension.value * inverse_square
    method = "C and d_eff intervals combined on the log scale"
    raw = Estimate(value, low, high, dimension.n, "timesteps", method=method)
    rounded = Estimate(
        _ceil(value),
        _ceil(low),
        None if high is None else _ceil(high),
        dimension.n,
        "timesteps",
        method=method,
    )
    reading = "percentage points" if epsilon_unit == "percent" else "fractions"
    name = f"published C·d_eff/ε² (ε in {reading})"
    return TimestepPrediction(name, raw, rounded, scale, dimension, epsilon, epsilon_unit)


def _estimate(value: Estimate | float, name: str) -> Estimate:
    try:
        estimate = value if isinstance(value, Estimate) else Estimate(float(value))
    except (TypeError, ValueError):
        keys = list(getattr(value, "estimates", ()))
        mend = f": one of its estimates, e.g. report[{keys[0]!r}]" if keys else ""
        raise ConfigError(
            f"{name} is a {type(value).__name__}; expected a number or an Estimate{mend}"
        ) from None
    if not (math.isfinite(estimate.value) and estimate.value > 0):
        raise ConfigError(f"{name}={estimate.value} must be a positive, finite number")
    return estimate


def _is_open(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is None


def _triple(estimate: Estimate) -> tuple[float, float, float]:
    """(value, low, high) with missing bounds replaced by the value itself."""
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return estimate.value, max(low, 1e-12 * estimate.value), high


def _ceil(value: float) -> int:
    """Round up, forgiving the last few ulps so that an exact integer stays itself."""
    return max(1, math.ceil(value * (1 - 1e-12)))
