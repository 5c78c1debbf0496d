"""The published regimes of firing, each with the reduction stated for it (claim R-REGIMES)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.models.base import SpikingModel
from spikedim.ntk.invert import crossing
from spikedim.ntk.variants import (
    Prepare,
    as_networks,
    combined,
    estimators,
    exponential,
    firing_rate,
    firing_rates,
    kernel_logs,
    mean_rate,
    samples_of,
    split,
    variant,
)
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table, number

#: Firing rates in Hz and reduction 100·(1 − R) in percent, as published.
PUBLISHED = {
    "dense": ((50.0, 100.0), (30.0, 50.0)),
    "moderate": ((10.0, 50.0), (50.0, 70.0)),
    "sparse": ((1.0, 10.0), (70.0, 90.0)),
}


@dataclass(frozen=True)
class Regime:
    """One regime, measured in the middle of its rates.

    Attributes:
        name: ``"dense"``, ``"moderate"`` or ``"sparse"``.
        hertz: published rates.
        stated: published reduction, percent.
        threshold: v_th that gives the rate, mean over networks.
        rate: measured, spikes per neuron and step.
        layers: the same of the layer that fires least and of the one that fires most, means over
            networks.
        reduction: measured 100·(1 − R) in percent, negative where spiking raises d_eff.
        reached: whether every network fires at the published rates; where no threshold makes it
            fire as often, it says nothing about them.
    """

    name: str
    hertz: tuple[float, float]
    stated: tuple[float, float]
    threshold: float
    rate: float
    layers: tuple[float, float]
    reduction: Estimate
    reached: bool = True

    @property
    def verdict(self) -> str:
        """Whether the interval of the measurement lies in the stated range, or off it."""
        if not self.reached:
            return "not measurable: no threshold gives these rates"
        low, high = self.reduction.low, self.reduction.high
        if low is None or high is None:
            return "not measurable: the network is silent"
        if self.stated[0] <= low and high <= self.stated[1]:
            return "reproduced"
        if high < self.stated[0] or low > self.stated[1]:
            return "refuted"
        inside = self.stated[0] <= self.reduction.value <= self.stated[1]
        return "undecided, value inside" if inside else "undecided, value outside"


@dataclass(frozen=True)
class Regimes(Result):
    """Reduction by regime.

    Attributes:
        dt: seconds per step.
        T, samples, networks: timesteps, samples of the kernel, initialisations.
        regimes: densest first.
    """

    dt: float
    T: int | None
    samples: int
    networks: int
    regimes: tuple[Regime, ...]

    def tables(self) -> list[Table]:
        """One row per regime."""
        rows = [
            (
                f"{r.name}, {r.hertz[0]:g}–{r.hertz[1]:g} Hz",
                r.rate / self.dt,
                " to ".join(number(rate / self.dt, 3) for rate in r.layers),
                r.threshold,
                r.reduction,
                f"{r.stated[0]:g}–{r.stated[1]:g} %",
                r.verdict,
            )
            for r in self.regimes
        ]
        title = (
            f"Reduction by regime, {1000 * self.dt:g} ms per step, {self.samples} samples, "
            f"{self.networks} network{'s' * (self.networks > 1)}"
        )
        columns = (
            "regime", "measured Hz", "layers, Hz", "v_th", "reduction", "published", "verdict",
        )  # fmt: skip
        apart = any(
            not r.hertz[0] <= rate / self.dt <= r.hertz[1]
            for r in self.regimes
            for rate in r.layers
        )
        note = (
            "One v_th for all layers sets the mean rate; layers that fire outside a regime's rates "
            "have a share in its reduction."
        )
        return [Table(title, columns, rows, (note,) * apart)]

    def plot(self, ax: Any = None) -> Any:
        """Measured reductions over the published ranges; returns the matplotlib axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
        for place, r in enumerate(self.regimes):
            ax.fill_between([place - 0.3, place + 0.3], *r.stated, color="#b8321f", alpha=0.2, lw=0)
            e = r.reduction
            ends = [[reach] for reach in e.reach]
            ax.errorbar([place], [e.value], ends, fmt="o", color="#1f5a93", capsize=3)
        ax.set_xticks(range(len(self.regimes)), [r.name for r in self.regimes])
        ax.set(ylabel="reduction of d_eff (%)")
        return ax


def regimes(
    models: SpikingModel | Sequence[SpikingModel],
    x: Tensor,
    *,
    dt: float = 0.004,
    T: int | None = None,
    estimator: str = "pr",
    center: bool = True,
    prepare: Prepare | None = None,
    method: str = "auto",
    memory: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Regimes:
    """Measure the reduction of d_eff at the rates of the three published regimes.

    In each network v_th is set so that it fires in the middle of the regime's rates; R compares
    it with its continuous twin.

    Args:
        models: a network, or several initialisations of one.
        x: samples [n, C, H, W], or events [T, n, C, H, W]; at least 8.
        dt: seconds per step, at most 10 ms (100 Hz is one spike per step).
        T, estimator, center, prepare, method, memory, confidence, seed: as for
            :func:`~spikedim.ntk.reduction.reduction`.

    Raises:
        ConfigError, DataError, ModelError: as :func:`~spikedim.ntk.reduction.reduction`.
    """
    if not 0 < dt <= 0.01:
        raise ConfigError(f"dt={dt} must be above 0 and at most 0.01 seconds per step")
    networks = as_networks(models)
    items = estimators(estimator)[:1]
    groups = split(samples_of(x), seed)
    found = []
    with task("regimes", len(networks) * len(PUBLISHED)) as progress:
        for name, (hertz, stated) in PUBLISHED.items():
            logs, thresholds, rates, layers = [], [], [], []
            for network in networks:

                def rate_of(threshold: float, network: SpikingModel = network) -> float:
                    changed = variant(network, None, T, prepare, threshold=threshold)
                    return firing_rate(changed, x)

                own = float(network.config.neuron.threshold)
                thresholds.append(crossing(rate_of, own, sum(hertz) / 2 * dt)[0])
                both = []
                for on in (None, ()):
                    other = variant(network, on, T, prepare, threshold=thresholds[-1])
                    both.append(kernel_logs(other, x, items, center, groups, method, memory)[:, 0])
                    if on is None:
                        each = firing_rates(other, x)
                        rates.append(mean_rate(each))
                        layers.append((min(each)[0], max(each)[0]))
                logs.append(both[0] - both[1])
                progress.advance(detail=name)
            R = exponential(combined(np.stack(logs), confidence))
            low, high = (None if v is None else 100 * (1 - v) for v in (R.high, R.low))
            percent = replace(R, value=100 * (1 - R.value), low=low, high=high, unit="%")
            middle, rate = float(np.mean(thresholds)), float(np.mean(rates))
            least, most = np.mean(layers, axis=0)
            ends = (float(least), float(most))
            reached = all(hertz[0] <= r / dt <= hertz[1] for r in rates)
            found.append(Regime(name, hertz, stated, middle, rate, ends, percent, reached))
    return Regimes(dt, T, samples_of(x), len(networks), tuple(found))
