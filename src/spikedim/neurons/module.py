"""LIF layers as thin modules over :func:`spikedim.neurons.lif`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError
from spikedim.neurons.continuous import Activation, steady_potential
from spikedim.neurons.lif import lif, lif_potential, lif_spikes
from spikedim.neurons.params import LIFParams, LIFState

Observer = Callable[[Tensor, Tensor | None], None]


class LIF(nn.Module):
    """A layer of LIF neurons: ``[T, ...] -> [T, ...]`` spikes, from rest at every call.

    Holds no parameters or buffers, and no state outside :func:`streaming`. A subclass with
    learnable dynamics overrides :meth:`dynamics`.

    Args:
        params: the neuron.

    Attributes:
        activation: where set, the layer is continuous: this function of (current, parameters)
            replaces the dynamics, see :mod:`spikedim.neurons.continuous`.
        known: whether ``params`` say what the layer does.
    """

    known: ClassVar[bool] = True

    def __init__(self, params: LIFParams | None = None) -> None:
        super().__init__()
        self.params = LIFParams() if params is None else params
        self.activation: Activation | None = None
        self._observers: dict[Observer, bool] = {}
        self._streaming = False
        self._state: LIFState | None = None

    def dynamics(self) -> LIFParams:
        """Parameters of the current call."""
        return self.params

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T, ...] of input currents ``x`` [T, ...]; see :func:`spikedim.neurons.lif`."""
        potential = None
        if self.activation is not None:
            params = self.dynamics()
            spikes, potential = self.activation(x, params), steady_potential(x, params)
        elif any(self._observers.values()):
            spikes, potential, state = lif_potential(x, self.dynamics(), self._state)
            self._keep(state)
        elif self._streaming:
            spikes, state = lif(x, self.dynamics(), self._state)
            self._keep(state)
        else:
            spikes = lif_spikes(x, self.dynamics())
        for observer in self._observers:
            observer(spikes, potential)
        return spikes

    def _keep(self, state: LIFState) -> None:
        if self._streaming:
            self._state = LIFState(*(value.detach() for value in state))

    def observe(self, observer: Observer, potential: bool = False) -> None:
        """Call ``observer(spikes, potentials before reset or None)`` at every forward.

        Args:
            observer: receives tensors [T, ...].
            potential: whether this observer needs the potentials (a slower forward).
        """
        self._observers[observer] = potential

    def unobserve(self, observer: Observer) -> None:
        """Stop calling ``observer``."""
        self._observers.pop(observer, None)

    def extra_repr(self) -> str:
        """The fields of the parameters."""
        p = self.params
        text = f"beta={p.beta}, threshold={p.threshold}, reset={p.reset!r}"
        if p.refractory:
            text += f", refractory={p.refractory}"
        scale = "" if p.surrogate.scale == 1 else f" times {p.surrogate.scale:g}"
        return f"{text}, surrogate={p.surrogate.kind}({p.surrogate.width:g}){scale}"


@contextmanager
def streaming(model: nn.Module) -> Iterator[None]:
    """Carry the state of every LIF layer from call to call inside the ``with`` block.

    A sequence may then be given in pieces: their spikes equal those of the whole. Every layer
    starts from rest when the block begins and forgets when it ends; gradients stop at each call.

    Args:
        model: a network with LIF layers, each called once per forward, or one LIF layer.

    Raises:
        ConfigError: (by the network) a piece with another batch size than the one before.

    Example:
        >>> from spikedim.models import create_model
        >>> model = create_model("spikformer_micro", seed=0).eval()
        >>> events = torch.randn(20, 2, *model.input_shape)  # [T, B, C, H, W]
        >>> with streaming(model), torch.no_grad():
        ...     logits = [model.steps(events[t : t + 10]) for t in range(0, len(events), 10)]
    """
    layers = [module for module in model.modules() if isinstance(module, LIF)]
    try:
        for layer in layers:
            layer._streaming, layer._state = True, None
        yield
    finally:
        for layer in layers:
            layer._streaming, layer._state = False, None


class PLIF(LIF):
    """LIF with one learnable leak per layer: beta = 1 − sigmoid(w) (Fang et al., ICCV 2021).

    Its single parameter ``w`` (0-dim) starts at −log(tau − 1), so w = 0 is tau = 2; keep it out
    of weight decay.

    Args:
        params: the neuron; a float ``beta`` in (0, 1) gives the initial leak.

    Raises:
        ConfigError: ``beta`` is not a float in the open interval (0, 1).
    """

    def __init__(self, params: LIFParams | None = None) -> None:
        super().__init__(params)
        beta = self.params.beta
        if isinstance(beta, Tensor) or not 0 < beta < 1:
            raise ConfigError(f"PLIF needs an initial beta between 0 and 1 (exclusive), got {beta}")
        self.w = nn.Parameter(torch.tensor(math.log((1 - beta) / beta)))

    def dynamics(self) -> LIFParams:
        """Parameters with the learned decay."""
        return replace(self.params, beta=1 - torch.sigmoid(self.w))
