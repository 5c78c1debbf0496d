"""Energy under a convention: charged operations times unit energies, by layer, step and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spikedim.profiling.charges import amounts
from spikedim.profiling.conventions import EnergyConvention, UnitEnergy
from spikedim.profiling.records import OperationRecord, Tally
from spikedim.results import Estimate
from spikedim.theory.statistics import mean_estimate

PJ_TO_MJ = 1e-9


def _nothing() -> np.ndarray:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class Charge:
    """What one operation costs under one convention, per sample.

    Attributes:
        layer, operation: where.
        unit: ``MAC``, ``accumulation``, ``neuron update``, ``spike``, ``weight``, ``value``,
            ``spike bit``, ``potential``, or a category without synapses.
        count: mean number of units per sample.
        energy: mean mJ per sample.
        by_step: the part of ``energy`` that belongs to each timestep.
        once: the part that ran once for all timesteps.
    """

    layer: str
    operation: str
    unit: str
    count: float
    energy: float
    by_step: tuple[float, ...] = ()
    once: float = 0.0


@dataclass(frozen=True)
class Energy:
    """Energy of one inference under one named convention.

    Attributes:
        convention: name of the rule; a figure without it means nothing.
        total: mJ per sample, mean over samples with a Student-t interval.
        macs, accumulates: mean per sample, as the convention counts them.
        uncharged: units that are counted at no price, as MACs where a chip has none.
        charges: every charged operation; their energies add up to ``total``.
        scope: the convention in words.
        by_step: mJ per sample of each timestep; with ``once`` they add up to ``total``.
        once: mJ per sample of what ran once for all timesteps.
        static, linear, quadratic: parts of ``total`` that stay, grow linearly and grow with the
            square when every firing rate is multiplied by one factor.
    """

    convention: str
    total: Estimate
    macs: float
    accumulates: float
    charges: tuple[Charge, ...]
    scope: str
    by_step: tuple[float, ...] = ()
    once: float = 0.0
    static: float = 0.0
    linear: float = 0.0
    quadratic: float = 0.0
    uncharged: tuple[str, ...] = ()
    _samples: np.ndarray = field(default_factory=_nothing, compare=False, repr=False)

    @property
    def samples(self) -> np.ndarray:
        """MJ of every sample at every timestep [T + 1, n], the last row what ran once."""
        return self._samples

    def layers(self) -> dict[str, tuple[float, ...]]:
        """MJ per sample by layer and timestep, T + 1 values each, the last what ran once."""
        found: dict[str, list[tuple[float, ...]]] = {}
        for item in self.charges:
            found.setdefault(item.layer, []).append((*item.by_step, item.once))
        return {
            layer: tuple(math.fsum(column) for column in zip(*rows, strict=True))
            for layer, rows in found.items()
        }


@dataclass(frozen=True)
class Neurons:
    """One spiking layer, as conventions charge it: spikes float64 [T + 1, n] by slot and sample.

    Updates divide evenly over the timesteps unless the layer ran once for all of them.
    """

    layer: str
    updates: float
    spikes: np.ndarray
    each_step: bool

    @property
    def slots(self) -> np.ndarray:
        """Updates by slot and sample [T + 1, n]."""
        slots, n = self.spikes.shape
        return even(self.updates, slots, n, self.each_step)


def even(total: float, slots: int, n: int, each_step: bool) -> np.ndarray:
    """``total`` units per sample spread evenly over the timesteps, or all in the last slot."""
    grid = np.zeros((slots, n))
    if each_step:
        grid[:-1] = total / (slots - 1)
    else:
        grid[-1] = total
    return grid


def energy(
    records: Sequence[OperationRecord],
    names: Sequence[str],
    convention: EnergyConvention,
    T: int,
    static: bool,
    neurons: Sequence[Neurons],
    others: Sequence[tuple[str, str, Tally]] = (),
) -> Energy:
    """Energy of the counted operations under ``convention``.

    Args:
        records: counted operations, with their ``names``.
        names: one per record.
        convention: the rule.
        T: timesteps.
        static: whether the input was the same at every step.
        neurons: the spiking layers.
        others: layer, category and tally of operations without synapses.
    """
    price = convention.energy
    n = neurons[0].spikes.shape[1]
    items: list[tuple[str, str, str, float, np.ndarray, int]] = []
    for record, name in zip(records, names, strict=True):
        for amount in amounts(record, convention, T, static):
            pj = _price(price, amount.unit)
            items.append((record.layer, name, amount.unit, pj, amount.slots, amount.order))
    for layer in neurons:
        for unit, pj, slots, order in (
            ("neuron update", price.neuron_update, layer.slots, 0),
            ("spike", price.spike, layer.spikes, 1),
            ("potential", price.state_access, 2 * layer.slots, 0),
            ("spike bit", price.spike_access, layer.slots, 0),
        ):
            if pj:
                items.append((layer.layer, "neuron", unit, pj, slots, order))
    for where, label, tally in others:
        pj = dict(price.other).get(label, 0.0)  # type: ignore[call-overload]
        if pj:
            slots = even(tally.operations / n, T + 1, n, tally.each_step(T))
            items.append((where, label, label, pj, slots, 0))
    total = np.zeros((T + 1, n))
    charges, orders = [], [0.0, 0.0, 0.0]
    for where, name, unit, pj, slots, order in items:
        cost = slots * pj * PJ_TO_MJ
        total += cost
        mean = cost.mean(1)
        whole = math.fsum(mean)
        orders[order] += whole
        steps = tuple(float(x) for x in mean[:-1])
        count = float(slots.sum(0).mean())
        charges.append(Charge(where, name, unit, count, whole, steps, float(mean[-1])))
    means = total.mean(1)
    return Energy(
        convention.name,
        mean_estimate(total.sum(0), "mJ").within(0, math.inf),
        math.fsum(c.count for c in charges if c.unit == "MAC"),
        math.fsum(c.count for c in charges if c.unit == "accumulation"),
        tuple(charges),
        convention.scope,
        tuple(float(x) for x in means[:-1]),
        float(means[-1]),
        static=orders[0],
        linear=orders[1],
        quadratic=orders[2],
        uncharged=tuple(
            sorted({unit for _, _, unit, pj, slots, _ in items if slots.any() and not pj})
        ),
        _samples=total,
    )


def _price(price: UnitEnergy, unit: str) -> float:
    return {
        "MAC": price.mac,
        "accumulation": price.accumulate,
        "weight": price.weight_read,
        "value": price.value_access,
        "spike bit": price.spike_access,
    }[unit]
