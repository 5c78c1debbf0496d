"""Charge counted operations under a convention: counts in, millijoules out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spikedim.profiling.conventions import EnergyConvention
from spikedim.profiling.counter import OperationRecord
from spikedim.profiling.rules import Kind
from spikedim.results import Estimate
from spikedim.theory.statistics import mean_interval

PJ_TO_MJ = 1e-9
DENSE_MAC_PJ = 4.6
_NONZERO, _UNITS, _NONZERO_FAN, _UNITS_FAN = range(4)


@dataclass(frozen=True)
class Charge:
    """What one operation costs under one convention, per sample.

    Attributes:
        layer, operation: where.
        unit: ``MAC``, ``accumulation``, ``neuron update`` or ``spike``.
        count: mean number of units per sample.
        energy: mean mJ per sample.
    """

    layer: str
    operation: str
    unit: str
    count: float
    energy: float


@dataclass(frozen=True)
class Energy:
    """Energy of one inference under one named convention.

    Attributes:
        convention: name of the rule; a figure without it means nothing.
        total: mJ per sample, mean over samples with a Student-t interval.
        macs, accumulates: mean per sample.
        charges: every charged operation; their energies add up to ``total``.
        scope: the convention in words.
    """

    convention: str
    total: Estimate
    macs: float
    accumulates: float
    charges: tuple[Charge, ...]
    scope: str


def mean_estimate(values: np.ndarray, unit: str) -> Estimate:
    """Mean over samples with a Student-t interval; without one for a single sample."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, n=n, unit=unit)
    low, high = mean_interval(mean, float(np.std(values, ddof=1)), n)
    return Estimate(
        mean, max(0.0, float(low)), float(high), n, unit, method="Student t over samples"
    )


def per_sample(record: OperationRecord) -> np.ndarray:
    """Counts [rows, n], summed over timesteps."""
    return np.concatenate([batch.sum(0) for batch in record.counts], axis=1)


def charge(
    record: OperationRecord, convention: EnergyConvention, T: int, static: bool
) -> tuple[str, np.ndarray] | None:
    """Operations charged for one record.

    Args:
        record: what was counted.
        convention: the rule.
        T: timesteps.
        static: whether the network was shown the same input at every step.

    Returns:
        ``"MAC"`` or ``"accumulation"`` and their number per sample [n]; ``None`` if the
        convention leaves the operation out.
    """
    counts = per_sample(record)
    n = counts.shape[1]
    dense = np.full(n, record.dense / n)
    if record.op == "matmul":
        if convention.products == "excluded":
            return None
        # A spike operand selects, the other is what it adds; the left one if both are spikes.
        driver = int(record.kinds[1] < record.kinds[0])
        events, coincident = counts[4 * driver : 4 * driver + 4], counts[-1]
        kind = record.kinds[driver]
        if kind is Kind.REAL:
            return "MAC", dense if convention.reals == "dense" else coincident
        if max(record.kinds) is Kind.BINARY and convention.products == "coincident":
            return "accumulation", coincident
        return _events(convention, kind, events, events[_NONZERO_FAN:], dense)
    kind = record.kinds[0]
    repeats = 1.0
    if record.stem and static:
        if convention.first_layer == "mac":
            kind = Kind.REAL
        every_step = record.copies % T == 0
        if convention.first_layer_repeats == "per-step":
            repeats = 1.0 if every_step else float(T)
        else:
            repeats = 1.0 / T if every_step else 1.0
    if kind is Kind.REAL:
        macs = dense if convention.reals == "dense" else counts[_NONZERO_FAN]
        return "MAC", macs * repeats
    reached = counts[_NONZERO_FAN:]
    if convention.spikes == "rate":
        reached = counts[:2] / (record.elements[0] / n) * dense
    unit, number = _events(convention, kind, counts, reached, dense)
    return unit, number * repeats


def _events(
    convention: EnergyConvention,
    kind: Kind,
    counts: np.ndarray,
    reached: np.ndarray,
    dense: np.ndarray,
) -> tuple[str, np.ndarray]:
    """Charge binary or integer events that reach ``reached`` [nonzero, units] synapses."""
    if kind is Kind.BINARY or convention.integers == "nonzero":
        return "accumulation", reached[0]
    if convention.integers == "unit-spikes":
        return "accumulation", reached[1]
    return "MAC", counts[_NONZERO_FAN] if convention.integers == "effective-mac" else dense


def energy(
    records: list[OperationRecord],
    names: list[str],
    convention: EnergyConvention,
    T: int,
    static: bool,
    neurons: list[tuple[str, float, np.ndarray]],
) -> Energy:
    """Energy of the counted operations under ``convention``.

    Args:
        records: counted operations, with their ``names``.
        names: one per record.
        convention: the rule.
        T: timesteps.
        static: whether the input was the same at every step.
        neurons: per spiking layer its name, neuron updates per sample and spikes per sample [n].
    """
    price = convention.energy
    items: list[tuple[str, str, str, float, np.ndarray]] = []
    for record, name in zip(records, names, strict=True):
        charged = charge(record, convention, T, static)
        if charged is not None:
            unit, number = charged
            pj = price.mac if unit == "MAC" else price.accumulate
            items.append((record.layer, name, unit, pj, number))
    for layer, updates, spikes in neurons:
        if price.neuron_update:
            number = np.full(len(spikes), updates)
            items.append((layer, "neuron", "neuron update", price.neuron_update, number))
        if price.spike:
            items.append((layer, "neuron", "spike", price.spike, spikes))
    n = len(neurons[0][2])
    total = np.zeros(n)
    charges = []
    for layer, name, unit, pj, number in items:
        cost = number * pj * PJ_TO_MJ
        total += cost
        charges.append(Charge(layer, name, unit, float(number.mean()), float(cost.mean())))
    return Energy(
        convention.name,
        mean_estimate(total, "mJ"),
        math.fsum(c.count for c in charges if c.unit == "MAC"),
        math.fsum(c.count for c in charges if c.unit == "accumulation"),
        tuple(charges),
        convention.scope,
    )


def dense_energy(records: list[OperationRecord], names: list[str], samples: int, T: int) -> Energy:
    """The network of the same shapes without spikes or time: one dense pass, 4.6 pJ per MAC."""
    charges = []
    for record, name in zip(records, names, strict=True):
        steps = T if record.copies % T == 0 else 1
        macs = record.dense / samples / steps
        charges.append(Charge(record.layer, name, "MAC", macs, macs * DENSE_MAC_PJ * PJ_TO_MJ))
    total = math.fsum(c.energy for c in charges)
    return Energy(
        "dense-ann",
        Estimate(total, unit="mJ", method="exact"),
        math.fsum(c.count for c in charges),
        0.0,
        tuple(charges),
        "dense-ann: a conventional network of the same shapes, one pass, every MAC "
        "(convolutions, linear layers, attention products; padding included) at 4.6 pJ "
        "(45 nm, 32-bit floating point; Horowitz, ISSCC 2014). Leaves out softmax, "
        "normalisation, pooling, elementwise operations, memory traffic.",
    )
