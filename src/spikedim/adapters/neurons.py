"""Neuron layers that take the place of another library's inside its network.

Unlike our own networks, these may be called once per timestep, and several times in one forward
pass. So state lives from :meth:`AdaptedLIF.begin` to :meth:`AdaptedLIF.finish`, which the adapted
network calls around every forward pass; gradients flow through it, and observers then hear of all
timesteps at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spikedim.errors import ModelError
from spikedim.neurons import LIF, LIFParams, LIFState, lif, lif_potential, spike, steady_potential

Outcome = tuple[Tensor, Tensor | None, LIFState]


class AdaptedLIF(LIF):
    """A LIF layer in the network of another library.

    Args:
        params: the neuron.
        multistep: whether one call sees all timesteps, [T, B, ...], or one of them, [B, ...].
        from_rest: whether every call is a sequence of its own, as with :class:`LIF`, or goes on
            where the one before it in the same forward pass stopped.

    Attributes:
        stands_for: the neuron it was registered for, until they were compared; else nothing.
    """

    def __init__(self, params: LIFParams, multistep: bool = True, from_rest: bool = False) -> None:
        super().__init__(params)
        self.multistep, self.from_rest = multistep, from_rest
        self.stands_for: tuple[nn.Module, ...] = ()
        self._carried: LIFState | None = None
        self._seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor) -> Any:
        """Spikes of [T, B, ...] or, called once per timestep, of [B, ...]."""
        return self._call(x)

    def begin(self) -> None:
        """Start a forward pass: from rest, or where the stream stopped."""
        self._carried = self._state if self._streaming else None
        self._seen = []

    def finish(self) -> None:
        """End a forward pass: tell the observers and forget."""
        if self._streaming and self._carried is not None:
            self._keep(self._carried)
        self._carried, seen, self._seen = None, self._seen, []
        for calls in [[call] for call in seen] if self.from_rest else _sequences(seen):
            spikes = _channels_last(torch.cat([s for s, _ in calls]))
            potentials = [u for _, u in calls if u is not None]
            potential = _channels_last(torch.cat(potentials)) if potentials else None
            for observer in self._observers:
                observer(spikes, potential)

    def change(self, **fields: Any) -> None:
        """Replace fields of the parameters."""
        self.params = replace(self.params, **fields)

    def _call(self, x: Tensor) -> Tensor:
        sequence = x if self.multistep else x[None]
        params = self.dynamics()
        potential: Tensor | None
        if self.activation is not None:
            spikes, potential = self._smooth(sequence, params)
        else:
            start = None if self.from_rest and not self._streaming else self._carried
            if start is not None and start.u.shape != sequence.shape[1:]:
                start = None  # as the libraries do where one layer meets two shapes
            wanted = any(self._observers.values())
            spikes, potential, self._carried = self._simulate(sequence, params, start, wanted)
        if self._observers:
            self._seen.append((spikes, potential))
        return spikes if self.multistep else spikes[0]

    def _simulate(
        self, x: Tensor, params: LIFParams, start: LIFState | None, potential: bool
    ) -> Outcome:
        if potential:
            return lif_potential(x, params, start)
        spikes, state = lif(x, params, start)
        return spikes, None, state

    def _smooth(self, x: Tensor, params: LIFParams) -> tuple[Tensor, Tensor]:
        assert self.activation is not None
        return self.activation(x, params), steady_potential(x, params)


class AdaptedPLIF(AdaptedLIF):
    """One learned leak per layer: beta = 1 − sigmoid(w); ``w`` is the other library's parameter."""

    def __init__(
        self, params: LIFParams, w: nn.Parameter, multistep: bool, from_rest: bool = False
    ) -> None:
        super().__init__(params, multistep, from_rest)
        self.w = w

    def dynamics(self) -> LIFParams:
        """Parameters with the learned decay."""
        return replace(self.params, beta=1 - torch.sigmoid(self.w))

    def change(self, **fields: Any) -> None:
        """Replace fields of the parameters; another ``beta`` replaces the learned one."""
        super().change(**fields)
        if "beta" in fields:
            logit = math.log((1 - fields["beta"]) / fields["beta"])
            self.w = nn.Parameter(torch.full_like(self.w, logit))


class StrictLIF(AdaptedLIF):
    """A LIF layer that is silent at its threshold: s = 1 where u > v_th (snnTorch, Norse)."""

    def _simulate(
        self, x: Tensor, params: LIFParams, start: LIFState | None, potential: bool
    ) -> Outcome:
        beta, threshold = (_fitted(v, x) for v in (params.beta, params.threshold))
        gain = 1 - beta if params.decay_input else None
        u, s, waiting = LIFState.rest(x[0]) if start is None else start
        spikes, potentials = [], []
        for x_t in x.unbind(0):
            fired = s.detach() if params.detach_reset else s
            drive = x_t if gain is None else gain * x_t
            after = _after_reset(u, fired, threshold, params)
            if not params.delayed_reset:
                u_next = beta * after + drive
            elif params.reset == "soft":  # in snnTorch's order of rounding
                u_next = beta * u + drive - fired * threshold
            else:
                u_next = _after_reset(beta * u, fired, threshold, params) + drive
            if params.refractory:
                ready = waiting == 0
                u_next = torch.where(ready, u_next, after)
            u = u_next
            if params.smooth:
                s = params.surrogate.primitive(u - threshold)
            else:
                s = 1 - spike(threshold - u, params.surrogate)
            if params.refractory:
                s = torch.where(ready, s, torch.zeros_like(s))
                waiting = torch.where(s > 0, params.refractory, (waiting - 1).clamp(min=0))
            spikes.append(s)
            potentials.append(u)
        trace = torch.stack(potentials) if potential else None
        return torch.stack(spikes), trace, LIFState(u, s, waiting)


class Leaky(StrictLIF):
    """``snntorch.Leaky``: [B, ...] and optionally the potential, to spikes and the potential.

    ``beta``, ``threshold`` and the other entries of its ``state_dict`` stay what they were.

    Args:
        neuron: the original.
        params: the same neuron in our terms.
    """

    beta: Tensor
    threshold: Tensor

    def __init__(self, neuron: nn.Module, params: LIFParams) -> None:
        super().__init__(params, multistep=False)
        for name, parameter in neuron.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in neuron.named_buffers(recurse=False):
            if name != "mem":
                self.register_buffer(name, buffer)
        self._pair = bool(neuron.output) or not neuron.init_hidden
        self._reset_first = not neuron.reset_delay

    def dynamics(self) -> LIFParams:
        """Parameters with the tensors of the ``state_dict``."""
        return replace(self.params, beta=self.beta.clamp(0, 1), threshold=self.threshold)

    def forward(self, x: Tensor, mem: Tensor | None = None) -> Any:
        """Spikes [B, ...]; with the potential unless the original kept it hidden."""
        known = self._carried is not None and mem is self._carried.u
        if mem is not None and not known and self.activation is None:
            u = mem if mem.shape == x.shape else torch.zeros_like(x)
            s = torch.zeros_like(u) if self._reset_first else (u > self.threshold).to(u.dtype)
            waiting = LIFState.rest(u) if self._carried is None else self._carried
            self._carried = LIFState(u, s, waiting.refractory)
        spikes = self._call(x)
        if not self._pair:
            return spikes
        if self._carried is None:  # continuous
            return spikes, x
        state, params = self._carried, self.dynamics()
        if self._reset_first:
            return spikes, _after_reset(state.u, state.s, params.threshold, params)
        return spikes, state.u

    def reset_mem(self) -> Tensor:
        """A potential that means rest, whatever the shape."""
        self._carried = None
        return torch.zeros(0)

    init_leaky = reset_mem

    def change(self, **fields: Any) -> None:
        """Replace fields of the parameters, and the tensors that stand for them."""
        super().change(**fields)
        for name in ("beta", "threshold"):
            if name in fields:
                new = torch.full_like(getattr(self, name), fields[name])
                learned = isinstance(getattr(self, name), nn.Parameter)
                setattr(self, name, nn.Parameter(new) if learned else new)


class _NorseState(NamedTuple):
    v: Tensor
    i: Tensor
    memory: LIFState


class NorseLIF(StrictLIF):
    """Feed-forward neurons of Norse: (input, state) to (spikes, state).

    The synaptic current i ← keep·i + x is filtered here, then drives the neuron.

    Args:
        params: the neuron, potentials counted from rest.
        multistep: a sequence module, or a cell.
        rest: potential that Norse calls ``v_leak``.
        keep: share of the synaptic current that lasts a step; ``None`` without synapses.
    """

    def __init__(
        self, params: LIFParams, multistep: bool, rest: float, keep: float | Tensor | None
    ) -> None:
        super().__init__(params, multistep)
        self.rest, self.keep = rest, keep

    def forward(self, x: Tensor, state: _NorseState | None = None) -> Any:
        """Spikes and the state to give back at the next call."""
        sequence = x if self.multistep else x[None]
        current = torch.zeros_like(sequence[0]) if state is None else state.i
        self._carried = None if state is None else state.memory
        if self._streaming:
            raise ModelError(
                "streaming needs layers that keep their own state; in a Norse network it is the "
                "network that returns it: pass whole sequences"
            )
        if self.keep is not None:
            currents = []
            for x_t in sequence.unbind(0):
                current = current + x_t
                currents.append(current)
                current = self.keep * current
            sequence = torch.stack(currents)
        spikes = self._call(sequence if self.multistep else sequence[0])
        memory = LIFState.rest(sequence[0]) if self._carried is None else self._carried
        params = self.dynamics()
        v = _after_reset(memory.u, memory.s, params.threshold, params) + self.rest
        return spikes, _NorseState(v, current, memory)

    def _smooth(self, x: Tensor, params: LIFParams) -> tuple[Tensor, Tensor]:
        return super()._smooth(x if self.keep is None else x / (1 - self.keep), params)


class Kept(AdaptedLIF):
    """A neuron without an exact equivalent: the original runs, its spikes are observed.

    Potentials, the continuous twin, other neuron parameters, streaming and ``torch.func`` (hence
    ``ntk`` with ``method="jacobian"``) are not available.

    Args:
        neuron: the original; its parameters keep their names.
        multistep: whether one call sees all timesteps.
        reset: brings the original to rest; ``None`` where it keeps no state of its own.
    """

    known = False

    def __init__(
        self, neuron: nn.Module, multistep: bool, reset: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(LIFParams(), multistep)
        # One set of tensors under one set of names, in both.
        self._parameters, self._buffers = neuron._parameters, neuron._buffers
        self._modules = neuron._modules
        self._non_persistent_buffers_set = neuron._non_persistent_buffers_set
        self._original, self._reset = (neuron,), reset

    @property
    def original(self) -> nn.Module:
        """The neuron that runs."""
        return self._original[0]

    def begin(self) -> None:
        """Bring the original to rest."""
        if self._streaming:
            raise self.refusal("cannot be streamed")
        super().begin()
        if self._reset is not None:
            self._reset()

    def finish(self) -> None:
        """Tell the observers and bring the original to rest, so that no graph is kept."""
        super().finish()
        if self._reset is not None:
            self._reset()

    def train(self, mode: bool = True) -> Kept:
        """Set the mode of the original too."""
        super().train(mode)
        self.original.training = mode
        return self

    def dynamics(self) -> LIFParams:
        """Not known."""
        raise self.refusal("has no parameters that are known")

    def change(self, **fields: Any) -> None:
        """Not available."""
        raise self.refusal(f"has no {', '.join(fields)} to change")

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the original gives."""
        if self.activation is not None:
            raise self.refusal("has no continuous twin")
        if any(self._observers.values()):
            raise self.refusal("does not show its potential; record spikes or rates")
        output = self.original(*inputs, **options)
        spikes = output[0] if isinstance(output, (tuple, list)) else output
        if self._observers:
            self._seen.append((spikes if self.multistep else spikes[None], None))
        return output

    def extra_repr(self) -> str:
        """The original."""
        return f"{type(self.original).__name__}({self.original.extra_repr()})"

    def refusal(self, what: str) -> ModelError:
        """The error that says what the neuron has not."""
        return ModelError(
            f"{type(self.original).__name__} is kept as it is and {what}; register an "
            "equivalent with spikedim.adapters.register_neuron"
        )


def _after_reset(u: Tensor, s: Tensor, threshold: Any, params: LIFParams) -> Tensor:
    if params.reset == "soft":
        return u - s * threshold
    if params.reset == "hard":
        return (1 - s) * u + s * params.v_reset
    return u


def _fitted(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _sequences(
    seen: list[tuple[Tensor, Tensor | None]],
) -> list[list[tuple[Tensor, Tensor | None]]]:
    """Calls that follow each other in time; a change of shape starts another sequence."""
    runs: list[list[tuple[Tensor, Tensor | None]]] = []
    for call in seen:
        if runs and runs[-1][-1][0].shape[1:] == call[0].shape[1:]:
            runs[-1].append(call)
        else:
            runs.append([call])
    return runs


def _channels_last(x: Tensor) -> Tensor:
    """Images [T, B, C, H, W] of torch layers to [T, B, H, W, C], as our own networks show them."""
    return x.movedim(2, -1) if x.ndim == 5 else x
