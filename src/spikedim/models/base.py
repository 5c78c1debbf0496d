"""The contract every network keeps: inputs, per-step logits, neurons that can be replaced."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.neurons import LIF, LIFParams, activation_function
from spikedim.neurons.continuous import Activation

Config = TypeVar("Config")


class Macs(NamedTuple):
    """Multiply-accumulates of one sample, were every input dense.

    Attributes:
        dense: convolutions and linear layers, per timestep, without the head.
        attention: products between spike trains, per timestep, in the cheaper order.
        head: one application of the linear classifier. Being linear, it may be applied once to
            the mean over time, as the released networks do, or at each step, as ``steps`` does.
    """

    dense: int
    attention: int
    head: int


class SpikingModel(nn.Module, ABC):
    """A spiking classifier without state between calls.

    ``forward`` is the mean over time of ``steps``. Neurons are :class:`spikedim.neurons.LIF`
    modules found by ``named_modules()``. In eval mode no operation couples samples, so that a
    batch gives what its samples give alone and ``torch.func`` transforms apply.

    Attributes:
        config: the frozen dataclass that rebuilds this network, neurons included; its ``neuron``
            is ``None`` where no neuron's parameters are known.
        input_shape: (C, H, W) of one frame.
        num_classes: length of the logits.
        default_timesteps: T of a static input when the caller gives none.
        reads_in_time: whether one token is read at each timestep, so that T is their number.
    """

    family: ClassVar[str]
    reads_in_time: ClassVar[bool] = False
    config: Any
    input_shape: tuple[int, int, int]
    num_classes: int
    default_timesteps: int = 4

    @abstractmethod
    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        """Logits [T, B, classes] of a checked input, [B, C, H, W] if static or [T, B, C, H, W]."""

    @abstractmethod
    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample, from shapes alone."""

    def steps(self, x: Tensor, T: int | None = None) -> Tensor:
        """Logits of each timestep.

        Args:
            x: floating point, static frames [B, C, H, W] shown T times, or events [T, B, C, H, W].
            T: timesteps; ``None`` takes ``default_timesteps`` (static) or the events' own.

        Returns:
            [T, B, classes]; step t depends on the input up to t only (in eval mode).

        Raises:
            ConfigError: ``T`` is not a whole number of at least 1.
            ModelError: ``x`` does not fit the network or disagrees with ``T``.
        """
        static, T = self._check_input(x, T)
        return self._steps(x, T, static)

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Logits [B, classes]: the mean over time of :meth:`steps`, same arguments and errors."""
        return self.steps(x, T).mean(0)

    @property
    def kept(self) -> tuple[str, ...]:
        """Neuron layers that run as they are: spikes to record, no parameters that we know."""
        return tuple(name for name, m in self.named_modules() if isinstance(m, LIF) and not m.known)

    def threshold_ratio(self, name: str) -> float:
        """Threshold of the neuron layer ``name``, as a multiple of ``config.neuron.threshold``."""
        return 1.0

    def set_neurons(self, **changes: Any) -> SpikingModel:
        """Change parameters of every neuron in place and return the network.

        Layers that run at a fraction of the threshold (:meth:`threshold_ratio`) keep the fraction.

        Args:
            **changes: fields of :class:`spikedim.neurons.LIFParams`, e.g. ``beta=0.8``.

        Raises:
            ConfigError: an unknown field, or a value out of its domain.

        Example:
            >>> from spikedim.models import create_model
            >>> net = create_model("spikformer_nano").set_neurons(threshold=0.8, refractory=1)
            >>> net.block[0].attn.attn_lif.params.threshold
            0.4
        """
        neuron = override(self.config.neuron, changes, "neuron parameter")
        self.config = replace(self.config, neuron=neuron)
        for name, module in self.named_modules():
            if isinstance(module, LIF):
                module.params = scaled(neuron, self.threshold_ratio(name))
        return self

    def can_have(self, **changes: Any) -> bool:
        """Whether :meth:`set_neurons` would take these changes; without a neuron it takes none."""
        if self.config.neuron is None:
            return False
        try:
            replace(self.config, neuron=override(self.config.neuron, changes, "neuron parameter"))
        except ConfigError:
            return False
        return True

    def continuous(self, activation: str | Activation = "surrogate") -> SpikingModel:
        """The continuous twin: the same parameters, spikes replaced by a smooth activation.

        Neurons lose their dynamics, so a static input gives the same logits at every step and the
        twin's default T is 1. Parameters and buffers are shared with this network, not copied.

        Args:
            activation: ``"surrogate"``, the smooth step whose slope the spiking network uses
                backwards; ``"rate"``, the firing rate under constant drive, for what T → ∞ would
                give; or a function of (current, LIFParams).

        Raises:
            ConfigError: unknown activation, or (when run) one these neurons do not have.

        Example:
            >>> from spikedim.models import create_model
            >>> twin = create_model("spikformer_nano").continuous("rate")
        """
        function = activation_function(activation)
        shared = {id(t): t for t in (*self.parameters(), *self.buffers())}
        twin = copy.deepcopy(self, shared)
        twin.default_timesteps = 1
        for module in twin.modules():
            if isinstance(module, LIF):
                module.activation = function
        return twin

    def released_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries of this network, from a released file that names them otherwise.

        Args:
            state: the file's tensors by name, wrappers and common prefixes removed.
        """
        return state

    def _check_input(self, x: Tensor, T: int | None) -> tuple[bool, int]:
        check_timesteps(T)
        if not isinstance(x, Tensor):
            raise ModelError(f"input is a {type(x).__name__}, expected a torch.Tensor")
        frame = " x ".join(map(str, self.input_shape))
        if x.ndim not in (4, 5):
            raise ModelError(
                f"input has shape {tuple(x.shape)}, expected [B, C, H, W] (static) or "
                f"[T, B, C, H, W] (events) with frames of {frame}"
            )
        if tuple(x.shape[-3:]) != self.input_shape:
            raise ModelError(
                f"input frames are {' x '.join(map(str, x.shape[-3:]))}, this network takes "
                f"{frame} (C x H x W); resize them or build it with input_shape="
                f"{tuple(x.shape[-3:])}"
            )
        if 0 in x.shape:
            raise ModelError(f"input has shape {tuple(x.shape)}: nothing to compute")
        if not x.is_floating_point():
            raise ModelError(
                f"input has type {x.dtype}, expected floating point; convert with x.float() "
                "(and scale 8-bit pixels by 1/255)"
            )
        weight = next(self.parameters())
        if x.device != weight.device:
            raise ModelError(f"input is on {x.device}, the network on {weight.device}; move one")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ModelError(
                f"input has type {x.dtype}, the network {weight.dtype}; convert with "
                f"x.to({weight.dtype})"
            )
        if x.ndim == 4:
            return True, self.default_timesteps if T is None else int(T)
        if T is not None and len(x) != T:
            raise ModelError(
                f"T={T}, but the event input has {len(x)} timesteps (shape {tuple(x.shape)}, read "
                "as [T, B, C, H, W], time first); leave T out or cut the input, or give "
                "x.transpose(0, 1) if it is [B, T, C, H, W]"
            )
        return False, len(x)


def foreign(network: Any) -> str:
    """What to do with a network that is none of ours, for messages."""
    kind = type(network).__name__
    if not isinstance(network, nn.Module):
        return f"expected a spikedim network, not a {kind}"
    return (
        f"{kind} is a plain torch module; bring it under the contract of our networks first: "
        "spikedim.adapters.wrap(network, input_shape=(C, H, W))"
    )


def check_timesteps(T: Any) -> None:
    """Raise ConfigError unless ``T`` is ``None`` or a whole number >= 1."""
    if T is not None and (isinstance(T, bool) or not isinstance(T, Integral) or int(T) < 1):
        raise ConfigError(f"T={T!r}: the number of timesteps must be a whole number, 1 or more")


def check_finite(x: Tensor, axis: int = 0, first: int = 0) -> None:
    """Refuse NaN and infinite values: a neuron takes NaN for silence and would hide them.

    Args:
        x: inputs of a network.
        axis: where its samples are.
        first: number of its first sample, of a batch.

    Raises:
        DataError: names the first sample that has one.
    """
    bad = ~torch.isfinite(x)
    if bad.any():
        sample = int(bad.movedim(axis, 0).flatten(1).any(1).nonzero()[0])
        value = x.select(axis, sample)[bad.select(axis, sample)].flatten()[0].item()
        raise DataError(
            f"sample {first + sample} of x holds {value}; remove or impute such values first"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode for the length of the block and leave every module as found."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def scaled(neuron: LIFParams, ratio: float) -> LIFParams:
    """``neuron`` with its threshold multiplied by ``ratio``."""
    return neuron if ratio == 1.0 else replace(neuron, threshold=ratio * neuron.threshold)


def override(config: Config, changes: dict[str, Any], what: str = "option") -> Config:
    """Replace fields of a frozen dataclass.

    Raises:
        ConfigError: a name that is no field, with the nearest ones, or a value out of its domain.
    """
    assert is_dataclass(config)
    known = [f.name for f in fields(config)]
    for name in changes:
        if name not in known:
            near = get_close_matches(name, known, n=3) or known
            raise ConfigError(f"unknown {what} {name!r}; did you mean {', '.join(near)}?")
    return replace(config, **changes)  # type: ignore[type-var]
