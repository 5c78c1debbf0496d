"""Observe every operation of a forward pass and attribute it to layer, timestep and sample.

A :class:`torch.utils._python_dispatch.TorchDispatchMode` sees what really runs: functional
products, ``@``, einsum and fused attention included. Forward hooks tell which module is
innermost. The counter steps aside inside a spiking neuron: its update is counted as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
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
        self.model, self.T, self.samples, self.passes = model, T, 0, 0
        self.operations: dict[tuple[str, str, int], OperationRecord] = {}
        self.neurons: dict[str, NeuronRecord] = {}
        self.others: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self.unsupported: defaultdict[str, Tally] = defaultdict(Tally)
        self.batch_size = 0
        self._depth = 0
        self._fired = False
        self._frames: list[_Frame] = []
        tensors = (*model.parameters(), *model.buffers())
        # The storage object itself: a tensor without values (meta device) has no data pointer.
        self._weights = {t.untyped_storage()._cdata for t in tensors}
        self._derived: list[Tensor] = []
        self._last: tuple[Tensor, int, int, Count] | None = None

    # -- one forward pass -------------------------------------------------------------------

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Count what runs inside as one forward pass over ``size`` samples."""
        self.batch_size, self._fired, self._depth = size, False, 0
        self._frames = [_Frame(ROOT, ())]
        handles = [handle for item in self.model.named_modules() for handle in self._hooks(*item)]
        self.__enter__()
        try:
            yield
        finally:
            if not self._depth:  # an error inside a neuron finds the counter already off
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
        if spikes.ndim > 1 and spikes.shape[1] == self.batch_size and rows in (1, self.T):
            rows *= spikes.shape[1]
        by_row = spikes.reshape(rows, -1)
        kind, nonzero, units = rules.scan(by_row, lambda chunk: chunk.sum(1))
        folded = self._fold(units[None], None)
        if folded is None:
            self._missed(f"neuron {type_name} output", (), spikes)
            return
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
        else:
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
        folded = self._fold(counts, count.shape)
        if folded is None:
            self._missed(f"{func.overloadpacket}, not per sample", args, output)
            return
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

    def _fold(self, counts: Tensor, shape: Sequence[int] | None) -> np.ndarray | None:
        """Sum groups [rows, G] to [copies, rows, B]; ``None`` if they are not samples.

        Groups run over time first, then samples (the layout [T, B, ...] or [T*B, ...]), or over
        samples alone where the operation ran once for all timesteps. Where the number of groups
        fits both, the input of the innermost module decides, if it is the operand of ``shape``.
        """
        T, B, groups = self.T, self.batch_size, counts.shape[1]
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
        folded = counts.reshape(len(counts), copies, B, -1).sum(-1).transpose(0, 1)
        return np.zeros(folded.shape) if folded.is_meta else folded.cpu().numpy()

    def _tally(self, label: str, args: Sequence[Any], output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None:
            return
        tally = self.others[self._frames[-1].layer, label]
        amount = categories.operations(label, args, tensor)
        tally.calls += 1
        tally.elements += tensor.numel()
        tally.operations += amount
        T, B, shape = self.T, self.batch_size, tensor.shape
        if shape[:2] == (T, B) or (shape and shape[0] % (T * B) == 0):
            tally.stepwise += amount
        else:
            tally.single += 1

    def _missed(self, name: str, args: Sequence[Any], output: Any) -> None:
        tensors = [x for x in (*args, _first_tensor(output)) if isinstance(x, Tensor)]
        tally = self.unsupported[name]
        tally.calls += 1
        tally.operations += max((x.numel() for x in tensors), default=0)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))
