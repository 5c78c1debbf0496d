"""From a spike or energy budget back to T."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikedim.errors import ConfigError
from spikedim.profiling.conventions import EnergyConvention, convention
from spikedim.results import Estimate, number

if TYPE_CHECKING:
    from spikedim.design.plan import Operating

#: One millijoule in each unit that a budget may be given in.
_UNITS = {"j": 1e3, "mj": 1.0, "uj": 1e-3, "µj": 1e-3, "nj": 1e-6, "pj": 1e-9}


@dataclass(frozen=True)
class Budget:
    """The most that one inference may cost.

    Attributes:
        energy: mJ per sample under ``convention``; ``None`` does not limit.
        spikes: spikes per sample; ``None`` does not limit.
        convention: energy convention: a name, the path of a YAML file, or the convention itself.

    Raises:
        ConfigError: neither is given, one is not positive, or the convention is unknown.
    """

    energy: float | None = None
    spikes: float | None = None
    convention: str | Path | EnergyConvention = "paper-sop"

    def __post_init__(self) -> None:
        if self.energy is None and self.spikes is None:
            raise ConfigError("a budget needs an energy or a number of spikes")
        for name, value in (("energy", self.energy), ("spikes", self.spikes)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"budget of {name}={value} must be above 0")
        object.__setattr__(self, "convention", convention(self.convention))

    @property
    def name(self) -> str:
        """Name of the convention, as energies carry it."""
        return convention(self.convention).name

    def fits(self, point: Operating) -> bool:
        """Whether the mean spikes and energy of an operating point are within the limits."""
        energy = _energy(point, self.name).value
        spikes = point.profile.spikes_per_sample.value
        return (self.energy is None or energy <= self.energy) and (
            self.spikes is None or spikes <= self.spikes
        )


@dataclass(frozen=True)
class BudgetAnswer:
    """The T of the largest accuracy within a budget, or that none fits.

    Attributes:
        budget: what was asked.
        timesteps: T; ``None`` where no T fits.
        text: the answer in words, with the reachable range.
        energy, spikes: least and most over the T looked at: mJ, and spikes, per sample.
    """

    budget: Budget
    timesteps: int | None
    text: str
    energy: tuple[float, float]
    spikes: tuple[float, float]


def parse_energy(text: str) -> float:
    """``"0.5uJ"``, ``"2 mJ"``, ``"300 nJ"`` or a bare number of mJ, in mJ.

    Raises:
        ConfigError: not an energy.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-Zµ]*)\s*", text)
    unit = (found[2] or "mJ").lower() if found else ""
    try:
        if found is None or unit not in _UNITS:
            raise ValueError
        return float(found[1]) * _UNITS[unit]
    except ValueError:
        raise ConfigError(
            f"energy {text!r} is not understood; give a number with J, mJ, uJ, nJ or pJ, e.g. 0.5uJ"
        ) from None


def invert(
    operating: Sequence[Operating], budget: Budget, quality: Sequence[float]
) -> BudgetAnswer:
    """The T of the largest quality whose mean spikes and energy are within the budget.

    Args:
        operating: points by T with the network's own neurons, each with its profile.
        budget: the limits.
        quality: accuracy of each point, up to a constant; of equal ones the smallest T is taken.

    Raises:
        ConfigError: the profiles lack the convention.
    """
    energies = [_energy(point, budget.name) for point in operating]
    spikes = [point.profile.spikes_per_sample.value for point in operating]
    fits = [i for i, point in enumerate(operating) if budget.fits(point)]
    asked = _asked(budget)
    first, last = operating[0].timesteps, operating[-1].timesteps
    reach = (
        f"with the network's own neurons, T = {first} to {last} reach "
        f"{number(min(spikes), 3)} to {number(max(spikes), 3)} spikes and "
        f"{min(energies, key=lambda e: e.value)} to {max(energies, key=lambda e: e.value)} "
        f"({budget.name})"
    )
    T = None
    if fits:
        best = max(fits, key=lambda i: (quality[i], -operating[i].timesteps))
        T = operating[best].timesteps
        text = f"T = {T} has the largest accuracy within {asked}; {reach}."
    else:
        text = f"Infeasible: no T fits {asked}; {reach}."
    values = [energy.value for energy in energies]
    return BudgetAnswer(budget, T, text, (min(values), max(values)), (min(spikes), max(spikes)))


def _asked(budget: Budget) -> str:
    parts = []
    if budget.energy is not None:
        parts.append(f"{Estimate(budget.energy, unit='mJ')} per sample ({budget.name})")
    if budget.spikes is not None:
        parts.append(f"{number(budget.spikes)} spikes per sample")
    return " and ".join(parts)


def _energy(point: Operating, name: str) -> Estimate:
    for energy in point.profile.energy:
        if energy.convention == name:
            return energy.total
    known = ", ".join(energy.convention for energy in point.profile.energy)
    raise ConfigError(f"energy convention {name!r} was not counted; choose one of {known}")
