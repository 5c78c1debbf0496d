"""Conventional networks of the same shapes, and the firing rate at which spikes stop winning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spikedim.profiling.charges import ELEMENTS, WEIGHTS, WRITTEN
from spikedim.profiling.conventions import UnitEnergy
from spikedim.profiling.energy import PJ_TO_MJ, Charge, Energy
from spikedim.profiling.records import OperationRecord
from spikedim.results import Estimate

DENSE_MAC_PJ = 4.6
_ADD_PJ = 0.9
_WORD_BITS = 32


@dataclass(frozen=True)
class Comparison:
    """A spiking network beside a conventional one, under the unit energies of one convention.

    Attributes:
        convention, baseline: which.
        energy, baseline_energy: mJ per sample of the spiking and of the conventional network.
        gain: ``baseline_energy / energy``; infinite where the spiking network costs nothing.
        rate: spikes per neuron and step, over all layers.
        crossover: that rate if every layer's rate grew (or fell) by one factor until both cost
            the same; 0 if the spiking network loses even without a spike, infinite where no
            charge grows with the rate.
    """

    convention: str
    baseline: str
    energy: float
    baseline_energy: float
    gain: float
    rate: float
    crossover: float


def bits_of(T: int) -> int:
    """Activation bits that tell apart what T spikes or silences can: ceil(log2(T + 1))."""
    return math.ceil(math.log2(T + 1))


def mac_price(bits: int, mac: float = DENSE_MAC_PJ, add: float = _ADD_PJ) -> float:
    """PJ of one MAC of a ``bits``-wide activation and a 32-bit weight.

    The multiplier is an array of one-bit products, so its energy is taken in proportion to the
    width of the narrower factor; the accumulator keeps its width. (Horowitz's integer figures obey
    the proportion: 3.1 pJ for 32 x 32 bits gives 0.194 for 8 x 8, printed 0.2.)
    """
    return (mac - add) * bits / _WORD_BITS + add


def conventional(
    records: Sequence[OperationRecord],
    names: Sequence[str],
    T: int,
    *,
    bits: int = _WORD_BITS,
    price: UnitEnergy | None = None,
    sequence: bool = False,
) -> Energy:
    """The network of the same shapes without spikes: one dense pass.

    Args:
        records: counted operations, with their ``names``.
        names: one per record.
        T: timesteps the spiking network ran for.
        bits: width of an activation; 32 is the dense ANN.
        price: unit energies of traffic, charged where they are; the arithmetic is always that of
            45 nm, 32-bit floating point (4.6 pJ per MAC, 0.9 of it the addition).
        sequence: whether the timesteps are the tokens of the input: the conventional network, too,
            computes each of them, and a value is one spike or silence.
    """
    price = price or UnitEnergy()
    mac = mac_price(bits)
    charges = []
    for record, name in zip(records, names, strict=True):
        steps = T if record.copies % T == 0 and not sequence else 1
        words = record.size(WRITTEN) + sum(
            record.size(ELEMENTS + operand) for operand in range(len(record.kinds))
        )
        for unit, count, pj in (
            ("MAC", record.dense / steps, mac),
            ("weight", record.size(WEIGHTS) / steps, price.weight_read),
            ("value", words / steps, price.value_access * bits / _WORD_BITS),
        ):
            if pj and count:
                cost = count * pj * PJ_TO_MJ
                charges.append(Charge(record.layer, name, unit, count, cost, (), cost))
    total = math.fsum(c.energy for c in charges)
    name, what = "dense-ann", "32-bit floating point"
    if bits != _WORD_BITS:
        name = "quantised-ann"
        seen = "one spike or silence" if sequence else f"T = {T}"
        width = f"{bits} bit{'s' * (bits > 1)}"
        what = f"activations of {width} = ceil(log2(T + 1)) for {seen}, 32-bit weights"
    passes = f"one pass over each of the {T} tokens" if sequence else "one pass"
    traffic = " and the traffic of weights and activations" if price.memory else ""
    return Energy(
        name,
        Estimate(total, unit="mJ", method="exact"),
        math.fsum(c.count for c in charges if c.unit == "MAC"),
        0.0,
        tuple(charges),
        f"{name}: a conventional network of the same shapes, {passes}, every MAC (convolutions, "
        f"linear layers, attention products; padding included) at {mac:.4g} pJ{traffic} (45 nm, "
        f"{what}; Horowitz, ISSCC 2014). Leaves out softmax, normalisation, pooling, elementwise "
        f"operations{'' if price.memory else ', memory traffic'}, zeros among its activations.",
        once=total,
        static=total,
    )


def compare(spiking: Energy, other: Energy, rate: float) -> Comparison:
    """Where the spiking network stops winning: static + linear·s + quadratic·s² = other.

    Args:
        spiking: energy with its parts by growth.
        other: the conventional network under the same unit energies.
        rate: the measured firing rate, s = 1.
    """
    total, target = spiking.total.value, other.total.value
    slack = target - spiking.static
    linear, quadratic = spiking.linear, spiking.quadratic
    if slack <= 0:
        factor = 0.0
    elif linear == quadratic == 0:
        factor = math.inf
    else:  # the root of quadratic s² + linear s - slack, in the form without cancellation
        factor = 2 * slack / (linear + math.sqrt(linear**2 + 4 * quadratic * slack))
    crossover = factor * rate if rate else (math.inf if factor else 0.0)
    gain = target / total if total else math.inf
    return Comparison(spiking.convention, other.convention, total, target, gain, rate, crossover)
