"""What the counter keeps: counts by operation, timestep and sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spikedim.profiling.rules import Kind

ONCE = -1


@dataclass(frozen=True)
class Batch:
    """One operation over one batch of B samples.

    A *copy* is one pass of every sample: there is one per timestep, or one in all where the
    operation ran once for all timesteps.

    Attributes:
        counts: float64 [copies, rows, B], the rows of :class:`rules.Row` for each operand, then
            the coincident pairs of a product.
        kinds: int [copies, operands], the kind of values seen in that execution.
        sizes: float64 [copies, 4 + operands], per sample: dense MACs, those inside the border,
            weights read, values written, values in each operand.
        steps: int [copies], timestep of each copy, or :data:`ONCE`.
    """

    counts: np.ndarray
    kinds: np.ndarray
    sizes: np.ndarray
    steps: np.ndarray


@dataclass
class OperationRecord:
    """Everything counted for one operation of one layer, over all samples so far.

    Attributes:
        layer, op, index: where it is; ``index`` numbers equal operations of one layer.
        stem: it first ran before any spiking neuron did.
        product: both operands are activations.
        kinds: per operand, the largest kind of value seen.
        calls: executions.
        batches: what was counted, in order.
    """

    layer: str
    op: str
    index: int
    stem: bool
    product: bool
    kinds: list[Kind]
    calls: int = 0
    batches: list[Batch] = field(default_factory=list)
    pending: list[tuple[np.ndarray, list[int], list[float]]] = field(default_factory=list)
    _sizes: np.ndarray | None = None

    @property
    def copies(self) -> int:
        """How many times one sample went through."""
        return len(self.batches[0].steps)

    def close(self, T: int) -> None:
        """Turn the calls of one forward pass into a :class:`Batch`."""
        if not self.pending:
            return
        lengths = [len(counts) for counts, _, _ in self.pending]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        self.batches.append(
            Batch(
                np.concatenate([counts for counts, _, _ in self.pending]),
                np.array([kinds for _, kinds, _ in self.pending])[rows],
                np.array([sizes for _, _, sizes in self.pending])[rows],
                steps_of(lengths, T),
            )
        )
        self.pending.clear()
        self._sizes = None

    def size(self, column: int) -> float:
        """Sum of a column of :attr:`Batch.sizes` over the copies of one sample."""
        if self._sizes is None:
            self._sizes = np.mean([batch.sizes.sum(0) for batch in self.batches], axis=0)
        return float(self._sizes[column])

    @property
    def dense(self) -> float:
        """Dense MACs per sample, as executed, padding included."""
        return self.size(0)

    @property
    def inside(self) -> float:
        """Dense MACs per sample, as executed, without padding."""
        return self.size(1)

    @property
    def per_sample(self) -> np.ndarray:
        """Counts [rows, n], summed over timesteps."""
        return np.concatenate([batch.counts.sum(0) for batch in self.batches], axis=1)


@dataclass
class NeuronRecord:
    """Spikes of one spiking layer: per batch float64 [copies, B], with the steps of the copies.

    ``elements`` and ``nonzero`` are values emitted, and those of them that are not zero; ``calls``
    are executions.
    """

    layer: str
    type: str
    kind: Kind = Kind.BINARY
    elements: int = 0
    nonzero: float = 0.0
    calls: int = 0
    counts: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    pending: list[np.ndarray] = field(default_factory=list)

    def close(self, T: int) -> None:
        """Join the calls of one forward pass."""
        if self.pending:
            self.counts.append(np.concatenate(self.pending))
            self.steps.append(steps_of([len(counts) for counts in self.pending], T))
            self.pending.clear()


@dataclass
class Tally:
    """Operations without synapses: calls, values written, arithmetic operations.

    Attributes:
        stepwise: the part of ``operations`` in calls that covered every timestep.
        single: calls that covered one pass of the samples.
    """

    calls: int = 0
    elements: int = 0
    operations: int = 0
    stepwise: int = 0
    single: int = 0

    def each_step(self, T: int) -> bool:
        """Whether the operations divide evenly over the timesteps."""
        return self.stepwise == self.operations or (self.single > 0 and self.single % T == 0)


def steps_of(lengths: Sequence[int], T: int) -> np.ndarray:
    """Timestep of every copy, from the number of copies of each call in one forward pass.

    A call over T copies saw every timestep. Calls over one copy are taken in order: m·T of them
    are m to a timestep; any other number ran once for all timesteps.
    """
    if all(length % T == 0 for length in lengths):
        return np.concatenate([np.arange(length) % T for length in lengths])
    total = sum(lengths)
    if total % T == 0:
        return np.arange(total) // (total // T)
    return np.full(total, ONCE)
