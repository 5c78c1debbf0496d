"""From what the counter saw to the :class:`Profile` a person reads."""

from __future__ import annotations

import math
from collections import Counter as Multiset
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import nn

from spikedim.profiling.baselines import bits_of, compare, conventional
from spikedim.profiling.conventions import EnergyConvention, convention
from spikedim.profiling.counter import Counter
from spikedim.profiling.energy import Energy, Neurons, energy
from spikedim.profiling.gates import Finding, operation_gates, spike_gates, uncounted_gates
from spikedim.profiling.neurobench import neurobench_keys
from spikedim.profiling.records import ONCE, NeuronRecord, OperationRecord, Tally
from spikedim.profiling.result import (
    CategoryCount,
    LayerProfile,
    OperationProfile,
    PerCorrect,
    Profile,
    Unsupported,
)
from spikedim.profiling.rules import Row
from spikedim.results import Estimate
from spikedim.theory.statistics import mean_estimate, share, wilson_interval

_ROWS = len(Row)


def assemble(
    model: nn.Module,
    counter: Counter,
    conventions: Sequence[EnergyConvention],
    static: bool,
    saturation: float,
    gates: list[Finding],
    correct: np.ndarray | None,
    state: str = "",
) -> Profile:
    """The profile of everything ``counter`` saw; ``correct`` is 0/1 per sample, where known."""
    T, n = counter.T, counter.samples
    sequence = bool(getattr(model, "reads_in_time", False))
    bits = bits_of(1 if sequence else T)
    records = list(counter.operations.values())
    names = operation_names(records)
    operations = tuple(_operation(*pair, T, counter) for pair in zip(records, names, strict=True))
    neurons = _neurons(counter)
    layers = tuple(
        _layer(record, found.spikes, T, n)
        for record, found in zip(counter.neurons.values(), neurons, strict=True)
    )
    others = _others(counter)
    total = np.sum([found.spikes.sum(0) for found in neurons], axis=0)
    charged = tuple(charge_counter(counter, rule, static) for rule in conventions)
    peer = charge_counter(counter, convention("neurobench"), static)
    accuracy = None if correct is None else share(float(correct.sum()), n)
    dense = partial(conventional, records, names, T, sequence=sequence)
    rate = float(total.mean()) / sum(layer.updates for layer in neurons)
    return Profile(
        model=type(model).__name__,
        T=T,
        samples=n,
        static_input=static,
        layers=layers,
        operations=operations,
        categories=_categories(counter, n),
        others=tuple(
            CategoryCount(label, counter.each(t.calls), t.elements / n, t.operations / n, layer)
            for layer, label, t in others
        ),
        spikes_per_sample=mean_estimate(total, "spikes").within(0, math.inf),
        energy=charged,
        dense=dense(),
        quantised=dense(bits=bits),
        comparisons=tuple(
            compare(item, dense(bits=width, price=rule.energy), rate)
            for item, rule in zip(charged, conventions, strict=True)
            for width in (32, bits)
        ),
        gates=(
            *gates,
            *uncounted_gates(counter.uncounted),
            *spike_gates(layers, saturation),
            *operation_gates(operations),
        ),
        unsupported=_unsupported(counter, records, n),
        neurobench=neurobench_keys(model, counter.neurons.values(), records, peer, accuracy),
        accuracy=accuracy,
        per_correct=tuple(per_correct(e, correct) for e in charged if correct is not None),
        sample_spikes=total,
        state=state,
    )


def charge_counter(counter: Counter, rule: EnergyConvention, static: bool) -> Energy:
    """Energy of everything ``counter`` saw under one convention."""
    records = list(counter.operations.values())
    names = operation_names(records)
    return energy(records, names, rule, counter.T, static, _neurons(counter), _others(counter))


def _neurons(counter: Counter) -> list[Neurons]:
    return [
        Neurons(
            record.layer,
            record.elements / counter.samples,
            _slots(record.counts, record.steps, counter.T),
            ONCE not in record.steps[0],
        )
        for record in counter.neurons.values()
    ]


def _others(counter: Counter) -> list[tuple[str, str, Tally]]:
    return [(layer, label, tally) for (layer, label), tally in counter.others.items()]


def operation_names(records: Sequence[OperationRecord]) -> list[str]:
    """``conv``, ``linear 2``: numbered where a layer has several."""
    numbered = Multiset((record.layer, record.op) for record in records)
    return [r.op + (f" {r.index + 1}" if numbered[r.layer, r.op] > 1 else "") for r in records]


def _slots(counts: Sequence[np.ndarray], steps: Sequence[np.ndarray], T: int) -> np.ndarray:
    """Counts [copies, B] of every batch to [T + 1, n] by timestep, the last slot for ONCE."""
    parts = []
    for batch, where in zip(counts, steps, strict=True):
        slots = np.zeros((T + 1, batch.shape[1]))
        np.add.at(slots, where, batch)  # ONCE is -1: the last slot
        parts.append(slots)
    return np.concatenate(parts, axis=1)


def _layer(record: NeuronRecord, slots: np.ndarray, T: int, n: int) -> LayerProfile:
    spikes = slots.sum(0)
    copies = len(record.steps[0])
    each_step = ONCE not in record.steps[0]
    per_step = slots[:-1].mean(1) * T * n / record.elements if each_step else ()
    return LayerProfile(
        name=record.layer,
        type=record.type,
        neurons=record.elements // (n * copies),
        rate=mean_estimate(spikes * n / record.elements).within(0, math.inf),
        rate_per_step=tuple(float(rate) for rate in per_step),
        spikes=mean_estimate(spikes, "spikes").within(0, math.inf),
        output=str(record.kind),
        _counts=slots,
    )


def _operation(record: OperationRecord, name: str, T: int, counter: Counter) -> OperationProfile:
    means = record.per_sample.mean(1)
    operands = range(len(record.kinds))
    steps = [batch.steps for batch in record.batches]
    counts = [
        _slots([b.counts[:, _ROWS * i + Row.FAN] for b in record.batches], steps, T)
        for i in operands
    ]
    return OperationProfile(
        layer=record.layer,
        operation=name,
        inputs=tuple(str(kind) for kind in record.kinds),
        rates=tuple(float(means[_ROWS * i + Row.NONZERO]) / record.size(4 + i) for i in operands),
        copies=record.copies,
        dense=record.dense,
        inside=record.inside,
        fanout=tuple(float(means[_ROWS * i + Row.FAN]) for i in operands),
        unit_fanout=tuple(float(means[_ROWS * i + Row.UNITS_FAN]) for i in operands),
        live_fanout=tuple(float(means[_ROWS * i + Row.LIVE]) for i in operands),
        coincident=float(means[-1]) if record.product else None,
        weights=record.size(2) / record.copies,
        before_neurons=record.stem,
        calls=counter.each(record.calls),
        _counts=np.stack(counts),
    )


def _categories(counter: Counter, n: int) -> tuple[CategoryCount, ...]:
    sums: defaultdict[str, Tally] = defaultdict(Tally)
    for (_, label), tally in counter.others.items():
        total = sums[label]
        total.calls += tally.calls
        total.elements += tally.elements
        total.operations += tally.operations
    elements = sum(r.elements for r in counter.neurons.values())
    calls = sum(r.calls for r in counter.neurons.values())
    sums["neuron updates"] = Tally(calls, elements, elements)
    return tuple(
        CategoryCount(k, counter.each(v.calls), v.elements / n, v.operations / n)
        for k, v in sorted(sums.items())
    )


def _unsupported(
    counter: Counter, records: Sequence[OperationRecord], n: int
) -> tuple[Unsupported, ...]:
    counted = sum(t.operations for t in counter.others.values())
    counted += sum(r.elements for r in counter.neurons.values())
    missed = sum(t.operations for t in counter.unsupported.values())
    total = n * sum(record.dense for record in records) + counted + missed
    items = sorted(counter.unsupported.items(), key=lambda item: -item[1].operations)
    return tuple(
        Unsupported(k, counter.each(v.calls), v.operations / n, v.operations / max(1, total))
        for k, v in items
    )


def per_correct(item: Energy, correct: np.ndarray) -> PerCorrect:
    """Mean energy over accuracy; its interval from the Student-t and the Wilson interval of both.

    ``log(high/value)² = a² + b² - 2ρab`` with the distances a, b to their bounds on the log scale
    and ρ the correlation of energy and correctness over samples (method of variance estimates
    recovery; Zou & Donner, Statistics in Medicine 27, 2008); the lower side likewise. It holds
    where all, or nearly all, predictions are correct, and stays above the lower bound of the
    energy of one inference.
    """
    costs, n, share = item.samples.sum(0), len(correct), float(correct.mean())
    if not share:
        return PerCorrect(item.convention, Estimate(np.inf, n=n, unit="mJ"))
    cost = mean_estimate(costs, "mJ").within(0, math.inf)
    if cost.low is None or cost.high is None or not cost.value:
        return PerCorrect(item.convention, Estimate(cost.value / share, n=n, unit="mJ"))
    worst, best = wilson_interval(float(correct.sum()), n)
    spread = float(costs.std() * correct.std())
    paired = float(np.mean((costs - cost.value) * (correct - share))) / spread if spread else 0.0

    def factor(energy: float, accuracy: float) -> float:
        a, b = math.log(energy), math.log(accuracy)
        return math.exp(math.sqrt(max(0.0, a**2 + b**2 - 2 * paired * a * b)))

    value = cost.value / share
    low = value / factor(cost.value / cost.low, best / share) if cost.low else 0.0
    high = value * factor(cost.high / cost.value, share / worst)
    method = "Student t of the energy and Wilson of the accuracy, on the log scale"
    return PerCorrect(item.convention, Estimate(value, low, high, n, "mJ", method=method))
