"""Observe every operation of a forward pass and attribute it to layer, timestep and sample.

A :class:`torch.utils._python_dispatch.TorchDispatchMode` sees what really runs: functional
products, ``@``, einsum and fused attention included. Forward hooks tell which module is
innermost. The counter steps aside inside a spiking neuron: its update is counted as a whole. Only
the synapses of a neuron that has its own, a recurrent one, are counted like any others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikedim.profiling import categories, rules
from spikedim.profiling.handlers import HANDLERS
from spikedim.profiling.records import NeuronRecord, OperationRecord, Tally
from spikedim.profiling.registry import counting_rule, neuron_types
from spikedim.profiling.rules import Count

ROOT = "(model)"
_VIEWS = (torch.ops.aten.view, torch.ops.aten._unsafe_view, torch.ops.aten._reshape_alias)


@dataclass
class _Frame:
    layer: str
    seen: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))


class Counter(TorchDispatchMode):
    """Counts the operations of ``model`` while active; :meth:`batch` brackets one forward pass.

    Args:
        model: its parameters tell weights from activations, its modules name the layers.
        T: timesteps of every forward pass.

    Attributes:
        layout: what one call of the network takes, as for :func:`spikedim.adapters.wrap`. With
            ``"BT"`` a pass must be of one sample: nothing tells [B * T] from [T * B].
    """

    def __init__(self, model: nn.Module, T: int) -> None:
        super().__init__()
        self.model, self.T, self.samples, self.passes = model, T, 0, 0
        self.layout = getattr(getattr(model, "config", None), "layout", "TB")
        self.operations: dict[tuple[str, str, int], OperationRecord] = {}
        self.neurons: dict[str, NeuronRecord] = {}
        self.others: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self.unsupported: defaultdict[str, Tally] = defaultdict(Tally)
        self.batch_size = 0
        self.uncounted: dict[str, str] = {}  # operation that reads weights → its layer
        self._depth = 0
        self._aside = False
        self._fired = False
        self._frames: list[_Frame] = []
        tensors = (*model.parameters(), *model.buffers())
        # The storage object itself: a tensor without values (meta device) has no data pointer.
        self._weights = {t.untyped_storage()._cdata for t in tensors}
        self._derived: list[Tensor] = []
        self._last: tuple[Tensor, int, int, Count] | None = None
        # Shapes of what was counted in the pass, in order, and in another of another size.
        self._shapes: list[tuple[int, ...]] = []
        self._other: tuple[int, list[tuple[int, ...]]] = (0, [])

    def locate(self, run: Callable[[Tensor], Any], x: Tensor, axis: int) -> None:
        """Find the axis of the samples in every operand of a pass: the one that has their number.

        Other axes, of tokens or channels, may be as long as it by chance, but not in a pass over
        another number of samples too.

        Args:
            run: one forward pass.
            x: its input; the first sample of it is run two or three times over.
            axis: that of the samples in ``x``.
        """
        if self._other[0] in (0, x.shape[axis]):
            size = 3 if x.shape[axis] == 2 else 2
            counter = Counter(self.model, self.T)
            copies = x.narrow(axis, 0, 1).repeat_interleave(size, axis)
            with counter.batch(size):
                run(copies)
            self._other = size, counter._shapes

    # -- one forward pass -------------------------------------------------------------------

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Count what runs inside as one forward pass over ``size`` samples."""
        self.batch_size, self._fired, self._depth, self._aside = size, False, 0, False
        self._frames = [_Frame(ROOT)]
        self._shapes = []
        handles = [handle for item in self.model.named_modules() for handle in self._hooks(*item)]
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # a whole layer in one operation
        self.__enter__()
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            if not self._aside:  # an error inside a neuron finds the counter already off
                self.__exit__(None, None, None)
            self._last = None
            self._weights -= {x.untyped_storage()._cdata for x in self._derived}
            self._derived.clear()
            for handle in handles:
                handle.remove()
        self.samples += size
        self.passes += 1
        for operation in self.operations.values():
            operation.close(self.T)
        for neuron in self.neurons.values():
            neuron.close(self.T)

    def each(self, calls: int) -> int:
        """Calls in one forward pass, of those in all."""
        return round(calls / self.passes)

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        layer = name or ROOT
        if isinstance(module, neuron_types()):
            yield module.register_forward_pre_hook(self._enter_neuron)
            yield module.register_forward_hook(self._neuron_hook(layer))
            return

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._frames.append(_Frame(layer))

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._frames.pop()

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)

    def _enter_neuron(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._fired = True
        if not self._depth and all(weight.ndim < 2 for weight in module.parameters()):
            self.__exit__(None, None, None)
            self._aside = True
        self._depth += 1

    def _neuron_hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def leave_neuron(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._depth -= 1
            if not self._depth:
                self._neuron(layer, type(module).__name__, _first_tensor(output))
                if self._aside:
                    self.__enter__()
                    self._aside = False

        return leave_neuron

    def _neuron(self, layer: str, type_name: str, spikes: Tensor | None) -> None:
        if spikes is None:
            return
        order = self._order(spikes.shape)
        if order is None:
            self._missed(f"neuron {type_name} output", (), spikes)
            return
        by_row = spikes.reshape(prod(order), -1)
        kind, nonzero, units = rules.scan(by_row, lambda chunk: chunk.sum(1))
        folded = _folded(units[None], order)
        record = self.neurons.setdefault(layer, NeuronRecord(layer, type_name))
        record.kind = max(record.kind, kind)
        record.elements += spikes.numel()
        record.calls += 1
        record.nonzero += 0.0 if nonzero.is_meta else float(nonzero.sum())
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
        own = counting_rule(func)
        handler = HANDLERS.get(func.overloadpacket)
        if own is None and handler is None and _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        output = func(*args, **kwargs)
        if func.overloadpacket in _VIEWS:
            shape = self.whole(args[0])
            if set(accumulate(output.shape, mul)) <= {1, *accumulate(shape, mul)}:
                output._spikedim_whole = shape
        if self._derive(args, output):
            return output
        if own is not None:
            found = own(*args, **kwargs)
            if isinstance(found, str):
                self._tally(found, args, output)
            else:
                for count in [found] if isinstance(found, Count) else found:
                    self._record(func, count, args, output)
        elif handler is not None:
            for count in handler(self, *args, **kwargs):
                self._record(func, count, args, output)
        elif not self._depth:
            label = categories.category(func)
            if label is None:
                self._missed(str(func.overloadpacket), args, output)
            elif label != "movement":
                self._tally(label, args, output)
        return output

    def _derive(self, args: Sequence[Any], output: Any) -> bool:
        """What is computed from weights alone (casts, folded kernels) is a weight, and free."""
        tensors = [x for x in args if isinstance(x, Tensor)]
        derived = bool(tensors) and all(map(self.is_weight, tensors))
        if derived and isinstance(output, Tensor) and not self.is_weight(output):
            self._derived.append(output)  # kept: its storage must not be used again
            self._weights.add(output.untyped_storage()._cdata)
        return derived

    def is_weight(self, x: Tensor) -> bool:
        """Whether ``x`` is a parameter or buffer of the model, or made of them alone."""
        return x.untyped_storage()._cdata in self._weights

    def whole(self, x: Tensor) -> tuple[int, ...]:
        """Shape of ``x`` before a view merged axes of it, as the linear layer does with tokens."""
        return getattr(x, "_spikedim_whole", tuple(x.shape))

    def linear(self, x: Tensor, weight: Tensor, shape: Sequence[int] | None = None) -> Count:
        """:func:`rules.linear`, remembering the last input: q, k and v share theirs."""
        # An inference tensor has no version counter: a change in place would go unseen.
        if x.is_inference() or rules.pruned(weight):
            return rules.linear(x, weight, shape)
        if self._last is not None:
            known, version, outputs, count = self._last
            if (
                version == x._version
                and known.data_ptr() == x.data_ptr()
                and known.shape == x.shape
                and known.stride() == x.stride()
                and outputs == weight.shape[1]
            ):
                return replace(count, shape=shape or x.shape)
        count = rules.linear(x, weight, shape)
        self._last = (x, x._version, weight.shape[1], count)
        return count

    def _record(self, func: Any, count: Count, args: Sequence[Any], output: Any) -> None:
        counts = torch.cat([events.counts for events in count.operands])
        if count.coincident is not None:
            counts = torch.cat([counts, count.coincident[None]])
        groups = counts.shape[1]
        order = self._order(count.shape or (groups,))
        if order is None or groups % prod(order):
            self._missed(f"{func.overloadpacket}, not per sample", args, output)
            return
        folded = _folded(counts, order)
        frame = self._frames[-1]
        index = frame.seen[count.op]
        frame.seen[count.op] += 1
        key = (frame.layer, count.op, index)
        kinds = [events.kind for events in count.operands]
        if key not in self.operations:
            product = count.coincident is not None
            self.operations[key] = OperationRecord(*key, not self._fired, product, list(kinds))
        record = self.operations[key]
        record.kinds = [max(pair) for pair in zip(record.kinds, kinds, strict=True)]
        record.calls += 1
        passes = len(folded) * self.batch_size
        written = count.written or (0 if (y := _first_tensor(output)) is None else y.numel())
        values = (count.dense, count.inside, count.weights * passes, written)
        sizes = [v / passes for v in (*values, *(e.elements for e in count.operands))]
        record.pending.append((folded, [int(kind) for kind in kinds], sizes))

    def _order(self, shape: Sequence[int]) -> tuple[int, int, int, int] | None:
        """Leading axes of ``shape`` as (before, T or 1, between, B); ``None`` without samples.

        Time may be the first axis, be merged with the samples and run before them, or, in layout
        ``"BT"``, come after them (of which there is one). Where it is none of these, one timestep
        was seen, or one pass for all.
        """
        T, B = self.T, self.batch_size
        axis = self._sample_axis(tuple(shape))
        if not shape or shape[axis] % B:
            return None
        before, merged = prod(shape[:axis]), shape[axis] // B
        if self.layout == "step":
            return before, 1, 1, B
        if axis and shape[0] == T:
            return 1, T, before // T, B
        after = self.layout == "BT" and tuple(shape[axis : axis + 2]) == (1, T)
        return before, T if after or merged % T == 0 else 1, 1, B

    def _sample_axis(self, shape: tuple[int, ...]) -> int:
        """The first axis that differs in the pass of another size; the usual one without that."""
        self._shapes.append(shape)
        others = self._other[1][len(self._shapes) - 1 :]
        if others and len(others[0]) == len(shape):
            for axis, (size, other) in enumerate(zip(shape, others[0], strict=True)):
                if size != other:
                    return axis
        return 1 if shape[:2] == (self.T, self.batch_size) else 0

    def _tally(self, label: str, args: Sequence[Any], output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None:
            return
        tally = self.others[self._frames[-1].layer, label]
        amount = categories.operations(label, args, tensor)
        tally.calls += 1
        tally.elements += tensor.numel()
        tally.operations += amount
        order = self._order(tensor.shape)
        if order is not None and order[1] == self.T:
            tally.stepwise += amount
        else:
            tally.single += 1

    def _missed(self, name: str, args: Sequence[Any], output: Any) -> None:
        tensors = [x for x in (*args, _first_tensor(output)) if isinstance(x, Tensor)]
        tally = self.unsupported[name]
        tally.calls += 1
        if any(map(self.is_weight, tensors)):
            self.uncounted.setdefault(name, self._frames[-1].layer)
        tally.operations += max((x.numel() for x in tensors), default=0)


def _folded(counts: Tensor, order: tuple[int, int, int, int]) -> np.ndarray:
    """Sum groups [rows, G], in that order, to [copies, rows, B]."""
    folded = counts.reshape(len(counts), *order, -1).sum((1, 3, 5)).transpose(0, 1)
    return np.zeros(folded.shape) if folded.is_meta else folded.cpu().numpy()


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))
