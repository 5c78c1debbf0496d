"""What a profile reports: spikes, operations and energy of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikedim.profiling.baselines import Comparison
from spikedim.profiling.energy import Energy
from spikedim.profiling.gates import Finding
from spikedim.results import Estimate, Result, Table


def _nothing() -> np.ndarray:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class LayerProfile:
    """Spikes of one spiking layer.

    Attributes:
        name, type: module path and class.
        neurons: neurons per sample.
        rate: spikes per neuron and step, mean over samples and steps.
        rate_per_step: the rate at each step; empty if the layer did not see T steps.
        spikes: spikes per sample over all steps.
        output: kind of the values it emits: ``binary``, ``ternary``, ``integer`` or ``real``.
    """

    name: str
    type: str
    neurons: int
    rate: Estimate
    rate_per_step: tuple[float, ...]
    spikes: Estimate
    output: str
    _counts: np.ndarray = field(default_factory=_nothing, compare=False, repr=False)

    @property
    def counts(self) -> np.ndarray:
        """Spikes [T + 1, n] by timestep and sample; the last row is what ran once for all steps."""
        return self._counts


@dataclass(frozen=True)
class OperationProfile:
    """One convolution, linear layer or product of activations; counts are means per sample.

    Attributes:
        layer: module path of the innermost module.
        operation: ``conv``, ``linear``, ``matmul`` or a user's own, numbered where a layer has
            several.
        inputs: kind of each activation operand, left first.
        rates: fraction of nonzero values of each operand.
        copies: times a sample went through: T, or 1 where it ran once for all steps.
        dense: MACs were every value nonzero, padding included, as executed.
        inside: the same without padding.
        fanout: per operand, synapses reached by its nonzero values.
        unit_fanout: the same with an integer value k as k unit spikes.
        live_fanout: as ``fanout``, weights that are exactly zero left out.
        coincident: pairs of nonzero values that meet; ``None`` unless a product.
        weights: weights read per execution.
        before_neurons: it runs ahead of the first spiking layer.
        calls: executions in one forward pass.
    """

    layer: str
    operation: str
    inputs: tuple[str, ...]
    rates: tuple[float, ...]
    copies: int
    dense: float
    inside: float
    fanout: tuple[float, ...]
    unit_fanout: tuple[float, ...]
    live_fanout: tuple[float, ...]
    coincident: float | None
    weights: float
    before_neurons: bool
    calls: int
    _counts: np.ndarray = field(default_factory=_nothing, compare=False, repr=False)

    @property
    def counts(self) -> np.ndarray:
        """Synapses reached [operands, T + 1, n] by operand, timestep and sample.

        The last slot of the second axis is what ran once for all timesteps.
        """
        return self._counts


@dataclass(frozen=True)
class CategoryCount:
    """Operations without synapses, per sample.

    Attributes:
        category: one of :data:`spikedim.profiling.CATEGORIES`, or ``neuron updates``.
        calls: executions in one forward pass.
        elements: values written.
        operations: arithmetic operations, by the rule of the category.
        layer: where; empty in the totals.
    """

    category: str
    calls: int
    elements: float
    operations: float
    layer: str = ""


@dataclass(frozen=True)
class Unsupported:
    """An operation no rule counts.

    Attributes:
        name, calls: which, how often in one forward pass.
        operations: per sample, one for each value it reads or writes (whichever are more).
        share: ``operations`` over all operations counted, dense: its least share of the compute.
    """

    name: str
    calls: int
    operations: float
    share: float


@dataclass(frozen=True)
class PerCorrect:
    """Energy of one correct prediction: mean energy over accuracy.

    Attributes:
        convention: whose energy.
        energy: mJ per correct prediction, with the interval of a ratio of paired means; not
            below that of the energy of one inference.
    """

    convention: str
    energy: Estimate


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
        others: the same by layer, for pooling, normalisation, softmax and the like.
        spikes_per_sample: all layers, all steps.
        energy: one entry per convention, mJ per sample.
        dense: the conventional network of the same shapes.
        quantised: the same with activations of ceil(log2(T + 1)) bits.
        comparisons: each convention beside both conventional networks.
        gates: faults found; read them before the figures.
        unsupported: operations without a counting rule.
        neurobench: the figures NeuroBench reports, under its keys.
        accuracy: percent, where labels were given.
        per_correct: cost per correct prediction, likewise.
        sample_spikes: spikes of each sample, in input order.
        state: what is known of the weights; empty where nothing was said.
    """

    model: str
    T: int
    samples: int
    static_input: bool
    layers: tuple[LayerProfile, ...]
    operations: tuple[OperationProfile, ...]
    categories: tuple[CategoryCount, ...]
    others: tuple[CategoryCount, ...]
    spikes_per_sample: Estimate
    energy: tuple[Energy, ...]
    dense: Energy
    quantised: Energy
    comparisons: tuple[Comparison, ...]
    gates: tuple[Finding, ...]
    unsupported: tuple[Unsupported, ...]
    neurobench: Mapping[str, Any]
    accuracy: Estimate | None
    per_correct: tuple[PerCorrect, ...]
    sample_spikes: np.ndarray = field(compare=False, repr=False)
    state: str = ""

    @property
    def rate(self) -> float:
        """Spikes per neuron and step over all layers."""
        updates = sum(c.elements for c in self.categories if c.category == "neuron updates")
        return self.spikes_per_sample.value / updates

    def tables(self) -> list[Table]:
        """Energy by convention, baselines, gates, rates by layer and step, operations by layer."""
        from spikedim.profiling.tables import profile_tables

        return profile_tables(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the firing rate of every spiking layer and return the axes.

        :func:`spikedim.profiling.figures.overview` draws the whole picture.

        Args:
            ax: matplotlib axes; made if absent.
        """
        from spikedim.profiling.figures import rates

        return rates(self, ax)
