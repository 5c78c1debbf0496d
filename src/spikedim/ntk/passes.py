"""Layers whose backward pass is made to be run many times over one forward.

A network in eval mode is run once and differentiated once per output. Its linear layers, batch
norms and neurons are replaced for the length of the forward by the functions below, which compute
the same output by the layer itself and then keep only what their backward needs: a neuron its
surrogate slope and spikes, a batch norm nothing. No parameter gradient is formed here: each layer
hands the gradient at its output to a :class:`Sink`. The scale of a batch norm that alone reads a
linear layer is folded into that layer's weights, and the sink then gets the gradient behind the
norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from spikedim.neurons import scan
from spikedim.neurons.lif import prepare
from spikedim.neurons.params import LIFParams
from spikedim.ntk.layers import CONVOLUTIONS, padding_of
from spikedim.ntk.multiply import multiply
from spikedim.ntk.spikes import Spikes

Forward = Callable[..., Any]


@dataclass(eq=False)
class Rows:
    """An input laid out once for the gradients of all outputs, and of all layers that read it."""

    value: Tensor | Spikes | None = None


@dataclass(eq=False)
class Call:
    """One application of a parameterised layer.

    Attributes:
        layer: path of the module in the network.
        module: the layer.
        forward: what computes its output.
        input: its input.
        samples_first: a batch of one is read as [1, ...], without an axis of time before it.
        anchor: a number that every gradient at the output of this call passes by.
        before: of a batch norm, the linear call whose output it reads, until its scale is folded.
        folded: the scale of this batch norm is in the weights of the layer before.
        scale: of a linear call, the scale of the batch norm folded into it, [C].
        norm: that batch norm.
        rows: the input as :mod:`spikedim.ntk.deposit` reads it.
    """

    layer: str
    module: Any
    forward: Forward
    input: Any
    anchor: Tensor
    samples_first: bool = False
    before: Call | None = None
    folded: bool = False
    scale: Tensor | None = None
    norm: Call | None = None
    rows: Rows = field(default_factory=Rows)
    _weight: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether no axis of time stands before that of the samples."""
        return self.samples_first or isinstance(self.module, (*CONVOLUTIONS, _BatchNorm))

    @property
    def weight(self) -> Tensor:
        """Weights with the folded scale; of a linear layer transposed, [I, O]."""
        if self._weight is None:
            weight: Tensor = self.module.weight.detach()
            if self.scale is not None:
                weight = weight * self.scale.view(-1, *[1] * (weight.ndim - 1))
            if not isinstance(self.module, CONVOLUTIONS):
                weight = weight.flatten(1).mT.contiguous()
            self._weight = weight
        return self._weight


class Sink:
    """Where layers hand over the gradients at their outputs while a backward pass runs."""

    def __init__(self) -> None:
        self.receive: Callable[[Call, Tensor], None] | None = None

    def take(self, call: Call, gradient: Tensor) -> None:
        """Pass a gradient on, if anybody listens."""
        if self.receive is not None:
            self.receive(call, gradient)


class _Linear(torch.autograd.Function):
    """A linear layer or convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, call: Call, sink: Sink) -> Tensor:
        ctx.call, ctx.sink = call, sink
        out: Tensor = call.forward(x)
        # The same memory, but no view: autograd lets a network change it in place.
        return out.new_empty(0).set_(out) if out._is_view() else out  # type: ignore[call-overload]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        ctx.sink.take(call, gradient)
        inner = _through(call, gradient) if ctx.needs_input_grad[0] else None
        return inner, None, None, None


def _through(call: Call, gradient: Tensor) -> Tensor:
    module = call.module
    if not isinstance(module, CONVOLUTIONS):
        return multiply(gradient, call.weight)
    return torch.ops.aten.convolution_backward(
        gradient,
        call.input,
        call.weight,
        None,
        module.stride,
        padding_of(module),
        module.dilation,
        False,
        [0] * len(module.stride),
        module.groups,
        (True, False, False),
    )[0]


class _Norm(torch.autograd.Function):
    """Batch norm in eval mode: a scale and a shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, call: Call, sink: Sink) -> Tensor:
        ctx.call, ctx.sink = call, sink
        out: Tensor = call.forward(x)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        if call.folded:
            return gradient, None, None, None
        ctx.sink.take(call, gradient)
        scale = scale_of(call.module).view(-1, *[1] * (gradient.ndim - 2))
        return gradient * scale, None, None, None


def scale_of(norm: Any) -> Tensor:
    """γ/σ of a batch norm in eval mode, [C]."""
    scale: Tensor = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()


class _Tap(torch.autograd.Function):
    """The identity at the output of any other layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, call: Call, sink: Sink) -> Tensor:
        ctx.call, ctx.sink = call, sink
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.sink.take(ctx.call, gradient)
        return gradient, None, None, None


class _Neurons(torch.autograd.Function):
    """LIF neurons with fixed parameters, no refractory period and no gradient by the reset."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: LIFParams) -> Tensor:
        beta, threshold = prepare(x, params, None)
        inputs = scan.Inputs(x.reshape(len(x), -1), beta, threshold, None, None, None)
        spikes, slope = scan.slopes(inputs, params)
        spikes = spikes.view(x.shape)
        ctx.params = params
        kept = spikes if params.reset == "hard" else None
        ctx.save_for_backward(slope.view(x.shape), kept)
        return spikes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        slope, spikes = ctx.saved_tensors
        assert not isinstance(ctx.params.beta, Tensor)
        return scan.pull_back(slope, ctx.params.beta, gradient, spikes), None


def fused(params: LIFParams) -> bool:
    """Whether :func:`neurons` covers these neurons."""
    return (
        not isinstance(params.beta, Tensor)
        and not isinstance(params.threshold, Tensor)
        and not params.refractory
        and not params.smooth
        and (params.detach_reset or params.reset == "none")
    )


linear = _Linear.apply
norm = _Norm.apply
tap = _Tap.apply
neurons = _Neurons.apply
