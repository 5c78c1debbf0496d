"""Observe every operation of a forward pass and attribute it to layer, timestep and sample.

A :class:`torch.utils._python_dispatch.TorchDispatchMode` sees what really runs: functional
products, ``@``, einsum and fused attention included. Forward hooks tell which module is
innermost. The counter steps aside inside a spiking neuron: its update is counted as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikedim.profiling import rules
from spikedim.profiling.registry import neuron_types
from spikedim.profiling.rules import Count, Kind

aten = torch.ops.aten
ROOT = "(model)"


@dataclass
class OperationRecord:
    """Everything counted for one operation of one layer, over all samples so far.

    Attributes:
        layer, op, index: where it is; ``index`` numbers equal operations of one layer.
        stem: it first ran before any spiking neuron did.
        kinds: per operand, the largest kind of value seen.
        dense: dense MACs over all samples, as executed.
        elements: values in each operand over all samples.
        counts: per batch, float64 [copies, rows, B]: four rows per operand as in
            :class:`rules.Events`, then the coincident pairs of a product. ``copies`` is T where
            the operation saw every timestep, 1 where it ran once for all of them.
        calls: executions.
    """

    layer: str
    op: str
    index: int
    stem: bool
    kinds: list[Kind]
    elements: list[int]
    dense: int = 0
    calls: int = 0
    counts: list[np.ndarray] = field(default_factory=list)
    pending: list[np.ndarray] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """How many times one sample went through."""
        return len(self.counts[0])


@dataclass
class NeuronRecord:
    """Spikes of one spiking layer: per batch, float64 [copies, B]; ``size`` neurons a sample."""

    layer: str
    type: str
    kind: Kind = Kind.BINARY
    elements: int = 0
    counts: list[np.ndarray] = field(default_factory=list)
    pending: list[np.ndarray] = field(default_factory=list)


@dataclass
class Tally:
    """Calls and output elements of operations without synapses."""

    calls: int = 0
    elements: int = 0


@dataclass
class _Frame:
    layer: str
    shape: tuple[int, ...]
    seen: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))


class Counter(TorchDispatchMode):
    """Counts the operations of ``model`` while active; :meth:`batch` brackets one forward pass.

    Args:
        model: its parameters tell weights from activations, its modules name the layers.
        T: timesteps of every forward pass.
    """

    def __init__(self, model: nn.Module, T: int) -> None:
        super().__init__()
        self.model, self.T, self.samples = model, T, 0
        self.operations: dict[tuple[str, str, int], OperationRecord] = {}
        self.neurons: dict[str, NeuronRecord] = {}
        self.categories: defaultdict[str, Tally] = defaultdict(Tally)
        self.unsupported: defaultdict[str, Tally] = defaultdict(Tally)
        self._batch = 0
        self._depth = 0
        self._fired = False
        self._frames: list[_Frame] = []
        tensors = (*model.parameters(), *model.buffers())
        self._weights = {t.untyped_storage().data_ptr() for t in tensors}
        self._last: tuple[Tensor, int, Count] | None = None

    # -- one forward pass -------------------------------------------------------------------

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Count what runs inside as one forward pass over ``size`` samples."""
        self._batch, self._fired, self._depth = size, False, 0
        self._frames = [_Frame(ROOT, ())]
        handles = [handle for item in self.model.named_modules() for handle in self._hooks(*item)]
        self.__enter__()
        try:
            yield
        finally:
            if not self._depth:  # an error inside a neuron finds the counter already off
                self.__exit__(None, None, None)
            self._last = None
            for handle in handles:
                handle.remove()
        self.samples += size
        records: list[OperationRecord | NeuronRecord]
        records = [*self.operations.values(), *self.neurons.values()]
        for record in records:
            if record.pending:
                record.counts.append(np.concatenate(record.pending))
                record.pending.clear()

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        layer = name or ROOT
        if isinstance(module, neuron_types()):
            yield module.register_forward_pre_hook(self._enter_neuron)
            yield module.register_forward_hook(self._neuron_hook(layer))
            return

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            first = inputs[0] if inputs else None
            shape = tuple(first.shape) if isinstance(first, Tensor) else ()
            self._frames.append(_Frame(layer, shape))

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._frames.pop()

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)

    def _enter_neuron(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self._depth:
            self.__exit__(None, None, None)
        self._depth += 1

    def _neuron_hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def leave_neuron(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._depth -= 1
            if not self._depth:
                self._neuron(layer, type(module).__name__, _first_tensor(output))
                self.__enter__()

        return leave_neuron

    def _neuron(self, layer: str, type_name: str, spikes: Tensor | None) -> None:
        self._fired = True
        if spikes is None:
            return
        rows = spikes.shape[0]
        if spikes.ndim > 1 and tuple(spikes.shape[:2]) == (self.T, self._batch):
            rows *= spikes.shape[1]
        by_row = spikes.reshape(rows, -1)
        kind, _, units = rules.scan(by_row, lambda chunk: chunk.sum(1))
        folded = self._fold(units[None], None)
        if folded is None:
            self._tally(self.unsupported, f"neuron {type_name} output", spikes)
            return
        record = self.neurons.setdefault(layer, NeuronRecord(layer, type_name))
        record.kind = max(record.kind, kind)
        record.elements += spikes.numel()
        record.pending.append(folded[:, 0])

    # -- one operation ----------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and count it."""
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func.overloadpacket)
        if handler is None and _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        output = func(*args, **kwargs)
        if handler is not None:
            for count, shape in handler(self, *args):
                self._record(func, count, shape, output)
        else:
            label = rules.category(func)
            if label is None:
                self._tally(self.unsupported, str(func.overloadpacket), output)
            elif label != "movement":
                self._tally(self.categories, label, output)
        return output

    def is_weight(self, x: Tensor) -> bool:
        """Whether ``x`` is a parameter or buffer of the model, or a view of one."""
        return x.untyped_storage().data_ptr() in self._weights

    def linear(self, x: Tensor, outputs: int) -> Count:
        """:func:`rules.linear`, remembering the last input: q, k and v share theirs."""
        if x.is_inference():  # no version counter: a change in place would go unseen
            return rules.linear(x, outputs)
        if self._last is not None:
            known, version, count = self._last
            if (
                version == x._version
                and known.data_ptr() == x.data_ptr()
                and known.shape == x.shape
                and known.stride() == x.stride()
                and count.dense == x.numel() * outputs
            ):
                return count
        count = rules.linear(x, outputs)
        self._last = (x, x._version, count)
        return count

    def _record(self, func: Any, count: Count, shape: Sequence[int], output: Any) -> None:
        counts = torch.cat([events.counts for events in count.operands])
        if count.coincident is not None:
            counts = torch.cat([counts, count.coincident[None]])
        folded = self._fold(counts, shape)
        if folded is None:
            self._tally(self.unsupported, f"{func.overloadpacket}, not per sample", output)
            return
        frame = self._frames[-1]
        index = frame.seen[count.op]
        frame.seen[count.op] += 1
        key = (frame.layer, count.op, index)
        if key not in self.operations:
            kinds = [events.kind for events in count.operands]
            zeros = [0] * len(kinds)
            self.operations[key] = OperationRecord(*key, not self._fired, kinds, zeros)
        record = self.operations[key]
        record.kinds = [max(k, e.kind) for k, e in zip(record.kinds, count.operands, strict=True)]
        record.elements = [
            total + events.elements
            for total, events in zip(record.elements, count.operands, strict=True)
        ]
        record.dense += count.dense
        record.calls += 1
        record.pending.append(folded)
        self._tally(self.categories, f"{count.op} outputs", output)

    def _fold(self, counts: Tensor, shape: Sequence[int] | None) -> np.ndarray | None:
        """Sum groups [rows, G] to [copies, rows, B]; ``None`` if they are not samples.

        Groups run over time first, then samples (the layout [T, B, ...] or [T*B, ...]), or over
        samples alone where the operation ran once for all timesteps. Where the number of groups
        fits both, the input of the innermost module decides, if it is the operand of ``shape``.
        """
        T, B, groups = self.T, self._batch, counts.shape[1]
        if groups % B:
            return None
        entered = self._frames[-1].shape
        static = groups == B or (
            shape is not None
            and prod(entered) == prod(shape)
            and entered[:1] == (B,)
            and entered[:2] != (T, B)
        )
        copies = 1 if static or groups % (T * B) else T
        folded = counts.reshape(len(counts), copies, B, -1).sum(-1)
        return folded.transpose(0, 1).cpu().numpy()

    def _tally(self, table: defaultdict[str, Tally], name: str, output: Any) -> None:
        tensor = _first_tensor(output)
        table[name].calls += 1
        table[name].elements += 0 if tensor is None else tensor.numel()


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


# A handler returns the counts of one call, each with the shape of the operand its groups follow.
Counted = list[tuple[Count, Sequence[int]]]


def _convolution(counter: Counter, x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Counted:
    return [(rules.convolution(x, weight, *geometry), x.shape)]


def _mm(counter: Counter, a: Tensor, b: Tensor) -> Counted:
    # A product of matrices has no batch axis, so one side is shared by all samples: a weight.
    batch = counter._batch
    a_varies, b_varies = len(a) % batch == 0, b.shape[1] % batch == 0
    if counter.is_weight(a) or (b_varies and not a_varies and not counter.is_weight(b)):
        return [(counter.linear(b.t(), len(a)), b.shape)]
    return [(counter.linear(a, b.shape[1]), a.shape)]


def _bmm(counter: Counter, a: Tensor, b: Tensor) -> Counted:
    if len(a) == 1:
        return _mm(counter, a[0], b[0])
    if counter.is_weight(b):
        return [(rules.linear(a.flatten(0, 1), b.shape[2]), a.shape)]
    if counter.is_weight(a):
        flat = b.transpose(1, 2).flatten(0, 1)
        return [(rules.linear(flat, a.shape[1]), b.shape)]
    return [(rules.matmul(a, b), a.shape)]


def _attention(counter: Counter, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Counted:
    q3, k3, v3 = (x.flatten(0, -3) for x in (q, k, v))
    scores = rules.matmul(q3, k3.transpose(1, 2))
    return [(scores, q.shape), (rules.weighted_sum(q3.shape[1], v3), q.shape)]


_HANDLERS: dict[Any, Callable[..., Counted]] = {
    aten.convolution: _convolution,
    aten.mm: _mm,
    aten.addmm: lambda counter, bias, a, b: _mm(counter, a, b),
    aten.bmm: _bmm,
    aten.baddbmm: lambda counter, bias, a, b: _bmm(counter, a, b),
    aten.mv: lambda counter, a, v: _mm(counter, a, v[:, None]),
    aten.addmv: lambda counter, bias, a, v: _mm(counter, a, v[:, None]),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
}
