"""How d_eff and the reduction factor respond to one neuron parameter (claim TAU-DIRECTION)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.models.base import SpikingModel
from spikedim.neurons import LIFParams
from spikedim.ntk.ticks import readable_log
from spikedim.ntk.variants import (
    QUIET,
    Array,
    Prepare,
    as_networks,
    combined,
    estimators,
    exponential,
    firing_rate,
    kernel_logs,
    samples_of,
    split,
    variant,
)
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table, number

#: Swept parameters and the values tried by default; thresholds and V_reset in the units of the
#: model's own threshold setting, times in steps.
SWEPT: dict[str, tuple[float, ...]] = {
    "v_th": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "v_reset": (-1.0, -0.5, 0.0, 0.5),
    "t_ref": (0, 1, 2, 3),
    "tau_m": (1.25, 1.5, 2.0, 3.0, 4.0, 8.0),
}


@dataclass(frozen=True)
class SweepPoint:
    """One value of the parameter.

    Attributes:
        value: of the parameter.
        dimension: d_eff of the spiking network.
        reduction: R, d_eff over that of the continuous twin with the same parameter.
        rate: spikes per neuron and step, mean over networks.
    """

    value: float
    dimension: Estimate
    reduction: Estimate
    rate: float


@dataclass(frozen=True)
class Effect:
    """Direction in which the parameter moves a quantity.

    Attributes:
        quantity: ``"d_eff"`` or ``"R"``.
        slope: of its logarithm against the logarithm of v_th or tau_m, or against V_reset (in
            units of v_th) or t_ref (steps); NaN with fewer than two usable values.
        monotone: whether the means rise, or fall, throughout.
    """

    quantity: str
    slope: Estimate
    monotone: bool

    @property
    def sign(self) -> int:
        """1 or −1 where the interval of the slope excludes 0, else 0."""
        low, high = self.slope.low, self.slope.high
        if low is None or high is None:
            return 0
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def verdict(self) -> str:
        """The sign in words."""
        return {1: "raises", -1: "lowers", 0: "no resolved effect on"}[self.sign]


@dataclass(frozen=True)
class Sweep(Result):
    """d_eff and R against one parameter.

    Attributes:
        parameter: one of :data:`SWEPT`.
        neuron: the neuron around which it was varied.
        T, samples, networks: timesteps, samples of the kernel, initialisations.
        estimator, centered: which dimension of which kernel.
        points: by ascending value.
        effects: on d_eff and on R.
        notes: what limits the numbers.
    """

    parameter: str
    neuron: LIFParams
    T: int | None
    samples: int
    networks: int
    estimator: str
    centered: bool
    points: tuple[SweepPoint, ...]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The directions, then one row per value."""
        about = "centred" if self.centered else "uncentred"
        title = (
            f"Effect of {self.parameter} ({self.estimator} of the {about} trace kernel), "
            f"{self.samples} samples, {self.networks} network{'s' * (self.networks > 1)}"
        )
        effects = [
            (f"{self.parameter} {e.verdict} {e.quantity}", e.slope, e.monotone)
            for e in self.effects
        ]
        rows = [(p.value, p.dimension, p.reduction, p.rate) for p in self.points]
        return [
            Table(
                title,
                ("effect", f"slope against {_axis(self.parameter)}", "monotone"),
                effects,
                self.notes,
            ),
            Table("Values", (self.parameter, "d_eff", "R", "spikes/step"), rows),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Draw d_eff above R, with intervals, against the parameter.

        Args:
            ax: matplotlib axes for d_eff alone; by default a new figure with a panel for each.

        Returns:
            The axes of d_eff; those of R are the second of its figure.
        """
        panels = [(ax, "dimension", "d_eff", "#1f5a93")]
        if ax is None:
            import matplotlib.pyplot as plt

            _, (ax, below) = plt.subplots(2, sharex=True, figsize=(5, 5), layout="constrained")
            panels = [(ax, *panels[0][1:]), (below, "reduction", "R", "#b8321f")]
        x = [p.value for p in self.points]
        for axes, name, label, colour in panels:
            found: list[Estimate] = [getattr(p, name) for p in self.points]
            middle = [e.value for e in found]
            ends = np.array([e.reach for e in found]).T
            axes.errorbar(x, middle, ends, fmt="o-", color=colour, capsize=3)
            axes.set(xlabel=self.parameter, ylabel=label)
            readable_log(axes.yaxis)
            if self.parameter in ("v_th", "tau_m"):
                readable_log(axes.xaxis)
                axes.set_xticks(x, [f"{value:g}" for value in x])
        if len(panels) > 1:
            ax.xaxis.label.set_visible(False)  # the lower panel names what they share
        some = f"{self.networks} network{'s' * (self.networks > 1)}"
        ax.set_title(f"{some}, {self.points[0].dimension.confidence:.0%} intervals", fontsize=10)
        return ax


def sweep(
    models: SpikingModel | Sequence[SpikingModel],
    x: Tensor,
    parameter: str,
    values: Sequence[float] | None = None,
    *,
    T: int | None = None,
    estimator: str = "pr",
    center: bool = True,
    prepare: Prepare | None = None,
    method: str = "auto",
    memory: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Sweep:
    """Measure d_eff and R while one parameter of every neuron varies.

    The sign of the effect is that of the slope over all values, its interval from leaving out
    samples and, with several networks, from their spread.

    Args:
        models: a network, at initialisation or trained, or several initialisations of one.
        x: samples [n, C, H, W], or events [T, n, C, H, W]; at least 8.
        parameter: ``"v_th"``; ``"v_reset"``, in units of v_th, which makes the reset a hard one;
            ``"t_ref"`` in steps; ``"tau_m"`` in steps, β = 1 − 1/τ. The published gain 1 or
            1 − β is the network's own (``decay_input``).
        values: to try; :data:`SWEPT` by default.
        T: timesteps of static inputs.
        estimator, center, method, memory, confidence, seed: as for
            :func:`~spikedim.ntk.reduction.reduction`.
        prepare: calibrates or trains the network of each value, and its twin; by default all
            share weights and running statistics.

    Raises:
        ConfigError: unknown parameter, or a value out of its domain.
        DataError, ModelError: as :func:`~spikedim.ntk.reduction.reduction`.
    """
    networks = as_networks(models)
    if parameter not in SWEPT:
        raise ConfigError(f"{parameter!r} cannot be swept; choose one of {', '.join(SWEPT)}")
    tried = sorted({float(v) for v in (SWEPT[parameter] if values is None else values)})
    if len(tried) < 2:
        raise ConfigError(f"{parameter}: {len(tried)} value; a sweep needs at least 2")
    changes = [neuron_fields(networks[0].config.neuron, parameter, value) for value in tried]
    items = estimators(estimator)[:1]
    groups = split(samples_of(x), seed)
    logs, rates = [], []
    with task(f"sweep of {parameter}", len(networks) * len(tried)) as progress:
        for network in networks:
            rows = []
            for value, change in zip(tried, changes, strict=True):
                found = []
                for on in (None, ()):
                    other = variant(network, on, T, prepare, **change)
                    found.append(kernel_logs(other, x, items, center, groups, method, memory)[:, 0])
                    if on is None:
                        rates.append(firing_rate(other, x))
                rows.append((found[0], found[0] - found[1]))
                progress.advance(detail=f"{value:g}")
            logs.append(rows)
    table = np.array(logs)  # [networks, values, d_eff or R, 1 + groups]
    mean_rate = np.reshape(rates, (len(networks), len(tried))).mean(axis=0)
    points = tuple(
        SweepPoint(
            value,
            exponential(combined(table[:, k, 0], confidence)),
            exponential(combined(table[:, k, 1], confidence)),
            float(mean_rate[k]),
        )
        for k, value in enumerate(tried)
    )
    place = np.log(tried) if parameter in ("v_th", "tau_m") else np.array(tried)
    usable = np.isfinite(table).all(axis=(0, 2, 3))

    def effects(kept: NDArray[np.bool_]) -> tuple[Effect, ...]:
        return tuple(
            _effect(name, place[kept], table[:, kept, k], confidence)
            for k, name in enumerate(("d_eff", "R"))
        )

    notes = [
        f"{parameter} = {value:g}: a network fell silent; the slope leaves this value out"
        for value, known in zip(tried, usable, strict=True)
        if not known
    ]
    quiet = usable & (mean_rate < QUIET)
    if quiet.any():
        rest = effects(usable & ~quiet)
        notes.append(
            _quiet_note(parameter, [p for p, q in zip(points, quiet, strict=True) if q], rest)
        )
    if len(networks) == 1:
        notes.append(
            "Of this one network; --initialisations N (several networks in Python) covers others."
        )
    return Sweep(
        parameter,
        networks[0].config.neuron,
        T,
        samples_of(x),
        len(networks),
        estimator,
        center,
        points,
        effects(usable),
        tuple(notes),
    )


def _effect(name: str, place: Array, logs: Array, confidence: float) -> Effect:
    """Least-squares slope of logs [networks, values, 1 + groups] against ``place``."""
    if len(place) < 2:
        return Effect(name, Estimate(math.nan, n=0, method="silent"), False)
    weights = place - place.mean()
    slopes = np.einsum("v,nvg->ng", weights / (weights @ weights), logs)
    steps = np.diff(logs[..., 0].mean(axis=0))
    return Effect(name, combined(slopes, confidence), bool((steps > 0).all() or (steps < 0).all()))


def _quiet_note(parameter: str, points: Sequence[SweepPoint], rest: Sequence[Effect]) -> str:
    """Which values hardly fire, and what the others say without them."""
    values = ", ".join(f"{p.value:g}" for p in points)
    rates = ", ".join(number(p.rate, 2) for p in points)
    note = f"At {parameter} = {values} neurons nearly fall silent ({rates} spikes per step)"
    if any(math.isnan(effect.slope.value) for effect in rest):
        return f"{note}; too few other values for a slope without."
    slopes = ", ".join(f"{effect.quantity} {effect.slope}" for effect in rest)
    return f"{note}; slopes without: {slopes}."


def neuron_fields(neuron: LIFParams, parameter: str, value: float) -> dict[str, Any]:
    """Fields of the neuron that give a parameter of the theory, a key of :data:`SWEPT`, a value.

    Raises:
        ConfigError: the value is out of its domain.
    """
    if parameter == "v_th":
        return {"threshold": value}
    if parameter == "tau_m":
        if value < 1:
            raise ConfigError(f"tau_m={value:g} must be at least 1 step")
        return {"beta": 1 - 1 / value}
    if parameter == "v_reset":
        threshold = neuron.threshold
        unit = float(threshold.mean() if isinstance(threshold, Tensor) else threshold)
        return {"reset": "hard", "v_reset": value * unit}
    if value != int(value):
        raise ConfigError(f"t_ref={value:g} must be a whole number of steps")
    return {"refractory": int(value)}


def _axis(parameter: str) -> str:
    return f"log {parameter}" if parameter in ("v_th", "tau_m") else parameter
