"""Which operations a convention charges, and how many: counts in, MACs and accumulations out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikedim.profiling.conventions import EnergyConvention
from spikedim.profiling.records import ONCE, Batch, OperationRecord
from spikedim.profiling.rules import Kind, Row

_ROWS = len(Row)
#: Columns of :attr:`records.Batch.sizes`.
DENSE, INSIDE, WEIGHTS, WRITTEN, ELEMENTS = range(5)


@dataclass
class Amount:
    """Units of one sort charged for one operation.

    Attributes:
        unit: ``MAC``, ``accumulation``, ``weight``, ``value``, ``spike bit``.
        slots: float64 [T + 1, n], by timestep, then what ran once for all of them, and sample.
        order: how it grows with the firing rate: 0 not at all, 1 linearly, 2 with its square.
    """

    unit: str
    slots: np.ndarray
    order: int


def amounts(
    record: OperationRecord, convention: EnergyConvention, T: int, static: bool
) -> list[Amount]:
    """Operations and traffic charged for one record.

    Args:
        record: what was counted.
        convention: the rule.
        T: timesteps.
        static: whether the network was shown the same input at every step.

    Returns:
        One entry per unit and order of growth; none if the convention leaves the operation out.
    """
    parts: list[dict[tuple[str, int], np.ndarray]] = []
    for batch in record.batches:
        part: dict[tuple[str, int], np.ndarray] = {}
        n = batch.counts.shape[2]
        for copy, step in enumerate(batch.steps):
            for unit, order, number in _copy(record, batch, copy, convention, static):
                slots = part.setdefault((unit, order), np.zeros((T + 1, n)))
                slots[T if step == ONCE else step] += number
        parts.append(part)
    keys = sorted({key for part in parts for key in part})
    widths = [batch.counts.shape[2] for batch in record.batches]
    found = []
    for key in keys:
        blank = [np.zeros((T + 1, n)) for n in widths]
        slots = np.concatenate([p.get(key, b) for p, b in zip(parts, blank, strict=True)], axis=1)
        if record.stem and static:
            slots = _repeated(slots, record.copies % T == 0, convention)
        found.append(Amount(key[0], slots, key[1]))
    return found


def _repeated(slots: np.ndarray, every_step: bool, convention: EnergyConvention) -> np.ndarray:
    """The first layer of a static input, as often as the convention has it computed."""
    T = len(slots) - 1
    if convention.first_layer_repeats == "per-step" and not every_step:
        return np.concatenate([np.repeat(slots[T:], T, axis=0), np.zeros_like(slots[T:])])
    if convention.first_layer_repeats == "once" and every_step:
        return np.concatenate([np.zeros_like(slots[:T]), slots[:T].mean(0, keepdims=True)])
    return slots


def _copy(
    record: OperationRecord,
    batch: Batch,
    copy: int,
    convention: EnergyConvention,
    static: bool,
) -> list[tuple[str, int, np.ndarray]]:
    counts, sizes = batch.counts[copy], batch.sizes[copy]
    kinds = [Kind(k) for k in batch.kinds[copy]] if convention.judged == "call" else record.kinds
    if convention.ternary == "spikes":
        kinds = [Kind.BINARY if kind is Kind.TERNARY else kind for kind in kinds]
    found = []
    if record.product:
        charged = _product(kinds, counts, sizes[DENSE], convention)
    else:
        stem = record.stem and static and convention.first_layer == "mac"
        kind = Kind.REAL if stem else kinds[0]
        charged = _weighted(kind, counts, sizes, convention, record.stem)
    if charged is not None:
        found.append(charged)
    if convention.energy.memory:
        found += _traffic(record.kinds, sizes, counts.shape[1])
    return found


def _product(
    kinds: list[Kind], counts: np.ndarray, dense: float, convention: EnergyConvention
) -> tuple[str, int, np.ndarray] | None:
    if convention.products == "excluded":
        return None
    # A spike operand selects, the other is what it adds; the left one if both are spikes.
    driver = int(kinds[1] < kinds[0])
    events, coincident = counts[_ROWS * driver : _ROWS * (driver + 1)], counts[-1]
    if kinds[driver] is Kind.REAL:
        every = np.full(len(coincident), dense)
        return "MAC", 0, every if convention.reals == "dense" else coincident
    if max(kinds) is Kind.BINARY and convention.products == "coincident":
        return "accumulation", 2, coincident
    return _events(convention, kinds[driver], events, events[[Row.FAN, Row.UNITS_FAN]], dense)


def _weighted(
    kind: Kind, counts: np.ndarray, sizes: np.ndarray, convention: EnergyConvention, stem: bool
) -> tuple[str, int, np.ndarray]:
    dense = sizes[DENSE]
    fan = Row.FAN if convention.weights == "all" else Row.LIVE
    if kind is Kind.REAL:
        every = np.full(counts.shape[1], dense)
        return "MAC", 0, every if convention.reals == "dense" else counts[fan]
    reached = counts[[fan, Row.UNITS_FAN]]
    if convention.spikes == "rate":
        reached = counts[[Row.NONZERO, Row.UNITS]] / sizes[ELEMENTS] * dense
    unit, order, number = _events(convention, kind, counts, reached, dense)
    return unit, 0 if stem else order, number


def _events(
    convention: EnergyConvention,
    kind: Kind,
    counts: np.ndarray,
    reached: np.ndarray,
    dense: float,
) -> tuple[str, int, np.ndarray]:
    """Charge binary or integer events that reach ``reached`` [nonzero, units] synapses."""
    if kind is Kind.BINARY or convention.integers == "nonzero":
        return "accumulation", 1, reached[0]
    if convention.integers == "unit-spikes":
        return "accumulation", 1, reached[1]
    if convention.integers == "effective-mac":
        fan = Row.FAN if convention.weights == "all" else Row.LIVE
        return "MAC", 1, counts[fan]
    return "MAC", 0, np.full(counts.shape[1], dense)


def _traffic(kinds: list[Kind], sizes: np.ndarray, n: int) -> list[tuple[str, int, np.ndarray]]:
    """Weights, operands and results of one copy, as words or bits."""
    words, bits = float(sizes[WRITTEN]), 0.0
    for kind, elements in zip(kinds, sizes[ELEMENTS:], strict=True):
        if kind is Kind.BINARY:
            bits += elements
        else:
            words += elements
    sorts = (("weight", sizes[WEIGHTS]), ("value", words), ("spike bit", bits))
    return [(unit, 0, np.full(n, number)) for unit, number in sorts if number]
