"""Gradients of single samples, one parameter at a time, as the backward passes make them.

What needs every sample's gradient once but never all of them together, such as a sketch or a
product with the kernel, takes them from here: no more than one batch's gradients of one layer
exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spikedim.ntk.capture import Capture
from spikedim.ntk.deposit import deposit
from spikedim.ntk.gram import Setup, loop_rows
from spikedim.ntk.passes import Call
from spikedim.ntk.plan import in_flight, probe, verify, without_rule

Use = Callable[[int, slice, str, Tensor], None]


class Stream:
    """Gradients of the samples of one tensor.

    Args:
        setup: what is differentiated.
        x: samples.
        fallback: differentiate parameters without a rule by autograd, sample by sample.

    Attributes:
        probe: what one sample takes.
        without: parameters that have no rule.

    Raises:
        ModelError: a parameter has no rule, or a layer's rows cannot be told apart by sample.
    """

    def __init__(self, setup: Setup, x: Tensor, fallback: bool = False) -> None:
        self._setup, self._x = setup, x
        self.without = without_rule(setup, x) if fallback else ()
        self._names = {id(p): name for name, p in setup.model.named_parameters()}
        self._kept: dict[tuple[int, int], Capture] = {}
        verify(setup, x, self.without)
        self.probe = probe(setup, x, self.without)

    @property
    def batch(self) -> int:
        """Samples of one forward whose tensors stay in cache."""
        return in_flight(self.probe, self._setup.count(self._x), self._widest)

    def need(self, batch: int) -> int:
        """Bytes of one pass through a batch: activations, and gradients of the widest layer."""
        single = 2 * sum(self._setup.model.get_parameter(name).nbytes for name in self.without)
        return single + batch * (self.probe.passing + 2 * self._widest)

    @property
    def _widest(self) -> int:
        columns = (layer.columns for layer in self.probe.layers.values())
        return max(columns, default=0) * self.probe.itemsize

    def run(
        self,
        batches: Iterable[tuple[int, int]],
        cotangents: Tensor,
        use: Use,
        done: Callable[[int], None],
        keep: bool = False,
    ) -> None:
        """Differentiate sums of outputs of some samples.

        Args:
            batches: first sample and the one behind the last, of each forward.
            cotangents: [F, outputs], the sums.
            use: gets (index of the sum, samples, parameter, gradients [b, P]) of all of them, in no
                certain order. Of a parameter that is used several times come as many parts, which
                add up; the gradients may be overwritten.
            done: gets the samples of each batch that is through.
            keep: whether the forwards are kept for further runs, until :meth:`forget`.
        """
        for start, stop in batches:
            capture = self._kept.get((start, stop))
            if capture is None:
                x = self._setup.batch(self._x, start, stop)
                capture = self._setup.capture(x, self.without)
            if keep:
                self._kept[start, stop] = capture
            for index, weights in enumerate(cotangents):
                last = not keep and index == len(cotangents) - 1
                self._differentiate(capture, weights, index, slice(start, stop), use, last)
            for sample in range(start, stop) if self.without else ():
                self._differentiate_alone(cotangents, sample, use)
            done(stop - start)

    def forget(self) -> None:
        """Let go of the forwards."""
        self._kept.clear()

    def _differentiate(
        self, capture: Capture, weights: Tensor, index: int, part: slice, use: Use, last: bool
    ) -> None:
        def receive(call: Call, gradient: Tensor) -> None:
            made: list[tuple[str, Tensor]] = []

            def room(
                module: nn.Module, layer: str, name: str, shape: tuple[int, ...]
            ) -> tuple[Tensor, bool] | None:
                path = self._names[id(getattr(module, name))]
                if path in self.without:  # used here as well, but differentiated as a whole
                    return None
                full = gradient.new_empty(shape).flatten(1)
                made.append((path, full))
                return full, True

            deposit(call, gradient, capture.samples, capture.steps, slice(None), room)
            for name, full in made:
                use(index, part, name, full)

        with torch.no_grad():
            wanted = [name for name in capture.leaks if name not in self.without]
            leaks = capture.run(weights, receive, leaks=wanted, keep=not last)
            for name, gradient in leaks.items():
                use(index, part, name, gradient[:, None].clone())

    def _differentiate_alone(self, cotangents: Tensor, sample: int, use: Use) -> None:
        x = self._setup.batch(self._x, sample, sample + 1)
        for index, found in enumerate(loop_rows(self._setup, x, cotangents, list(self.without))):
            for name, row in zip(self.without, found, strict=True):
                use(index, slice(sample, sample + 1), name, row[None])
