"""What a profile reports: spikes, operations and energy of a network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikedim.profiling.energy import Energy
from spikedim.profiling.gates import Finding
from spikedim.results import Estimate, Result, Table, number


@dataclass(frozen=True)
class LayerProfile:
    """Spikes of one spiking layer.

    Attributes:
        name, type: module path and class.
        neurons: neurons per sample.
        rate: spikes per neuron and step, mean over samples and steps.
        rate_per_step: the rate at each step; empty if the layer did not see T steps.
        spikes: spikes per sample over all steps.
        output: kind of the values it emits: ``binary``, ``integer`` or ``real``.
    """

    name: str
    type: str
    neurons: int
    rate: Estimate
    rate_per_step: tuple[float, ...]
    spikes: Estimate
    output: str


@dataclass(frozen=True)
class OperationProfile:
    """One convolution, linear layer or product of activations; counts are means per sample.

    Attributes:
        layer: module path of the innermost module.
        operation: ``conv``, ``linear`` or ``matmul``, numbered where a layer has several.
        inputs: kind of each activation operand, left first.
        rates: fraction of nonzero values of each operand.
        copies: times a sample went through: T, or 1 where it ran once for all steps.
        dense: MACs were every value nonzero, padding included, as executed.
        fanout: per operand, synapses reached by its nonzero values.
        unit_fanout: the same with an integer value k as k unit spikes.
        coincident: pairs of nonzero values that meet; ``None`` unless a product.
        before_neurons: it runs ahead of the first spiking layer.
        calls: executions behind these figures.
    """

    layer: str
    operation: str
    inputs: tuple[str, ...]
    rates: tuple[float, ...]
    copies: int
    dense: float
    fanout: tuple[float, ...]
    unit_fanout: tuple[float, ...]
    coincident: float | None
    before_neurons: bool
    calls: int


@dataclass(frozen=True)
class CategoryCount:
    """Operations that no synaptic convention charges: calls and output elements per sample."""

    category: str
    calls: int
    elements: float


@dataclass(frozen=True)
class Unsupported:
    """An operation no rule counts: its calls and its share of all output elements."""

    name: str
    calls: int
    share: float


@dataclass(frozen=True)
class Profile(Result):
    """Spikes, synaptic operations and energy of one network at one T.

    Attributes:
        model: class of the network.
        T: timesteps.
        samples: number of inputs behind the means.
        static_input: the same input at every step.
        layers: spiking layers in order of execution.
        operations: synaptic operations in order of execution.
        categories: everything else that ran, by category.
        spikes_per_sample: all layers, all steps.
        energy: one entry per convention, mJ per sample.
        dense: the conventional network of the same shapes.
        gates: faults found; read them before the figures.
        unsupported: operations without a counting rule.
        sample_spikes: spikes of each sample, in input order.
    """

    model: str
    T: int
    samples: int
    static_input: bool
    layers: tuple[LayerProfile, ...]
    operations: tuple[OperationProfile, ...]
    categories: tuple[CategoryCount, ...]
    spikes_per_sample: Estimate
    energy: tuple[Energy, ...]
    dense: Energy
    gates: tuple[Finding, ...]
    unsupported: tuple[Unsupported, ...]
    sample_spikes: np.ndarray = field(compare=False, repr=False)

    def tables(self) -> list[Table]:
        """Energy by convention, then gates, spikes by layer and operations by layer."""
        tables = [self._energy_table()]
        if self.gates:
            tables.append(self._gate_table())
        tables += [self._layer_table(), self._operation_table()]
        if self.unsupported:
            rows = [(u.name, u.calls, f"{u.share:.2%}") for u in self.unsupported]
            columns = ("operation", "calls", "share of output elements")
            tables.append(Table("Operations without a counting rule", columns, rows))
        return tables

    def plot(self, ax: Any = None) -> Any:
        """Draw the firing rate of every spiking layer and return the axes.

        Args:
            ax: matplotlib axes; made if absent.
        """
        if ax is None:
            from matplotlib.figure import Figure

            figure = Figure(figsize=(7, 1 + 0.24 * len(self.layers)), layout="constrained")
            ax = figure.subplots()
        names = [layer.name for layer in self.layers]
        rates = np.array([layer.rate.value for layer in self.layers])
        ax.barh(names, rates, height=0.7, color="#31688e")
        for index, layer in enumerate(self.layers):
            if layer.rate.low is not None and layer.rate.high is not None:
                ax.plot([layer.rate.low, layer.rate.high], [index, index], color="black", lw=1)
        ax.invert_yaxis()
        ax.set_xlim(0, max(0.01, 1.1 * float(rates.max())))
        ax.set_xlabel(f"spikes per neuron and step (T = {self.T}, n = {self.samples})")
        ax.tick_params(axis="y", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def _energy_table(self) -> Table:
        dense = self.dense.total.value
        rows = []
        for item in (*self.energy, self.dense):
            total = item.total.value
            ratio = f"{dense / total:.2f} x" if total else None
            rows.append((item.convention, item.total, item.macs, item.accumulates, ratio))
        columns = (
            "convention",
            "energy per sample",
            "MACs",
            "accumulations",
            "dense / this",
        )
        notes = tuple(item.scope for item in (*self.energy, self.dense))
        title = (
            f"{self.model} at T = {self.T}: energy by convention "
            f"({number(self.spikes_per_sample.value)} spikes per sample, n = {self.samples})"
        )
        return Table(title, columns, rows, notes)

    def _gate_table(self) -> Table:
        rows = [(g.layer, g.gate, g.severity, g.message, g.mend) for g in self.gates]
        return Table("Findings", ("layer", "gate", "severity", "what", "mend"), rows)

    def _layer_table(self) -> Table:
        rows = [
            (layer.name, layer.neurons, layer.rate, layer.spikes.value, layer.output)
            for layer in self.layers
        ]
        columns = ("spiking layer", "neurons", "rate per step", "spikes per sample", "output")
        return Table("Spikes by layer", columns, rows)

    def _operation_table(self) -> Table:
        rows = [
            (
                f"{o.layer} {o.operation}",
                " x ".join(o.inputs),
                " x ".join(number(rate, 3) for rate in o.rates),
                o.dense,
                " | ".join(number(count) for count in o.fanout),
                o.coincident,
            )
            for o in self.operations
        ]
        columns = ("operation", "input", "nonzero", "dense MACs", "events x fan-out", "coincident")
        uncharged = ", ".join(
            f"{c.category} {number(c.elements)}"
            for c in self.categories
            if not c.category.endswith(" outputs")
        )
        note = f"Counts per sample. Not synaptic (elements per sample): {uncharged or 'none'}."
        return Table("Synaptic operations by layer", columns, rows, (note,))
