"""What a leaky integrate-and-fire neuron is configured by, and what it carries between calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.neurons.surrogate import Surrogate

RESETS: tuple[str, ...] = ("soft", "hard", "none")


@dataclass(frozen=True)
class LIFParams:
    """Configuration of a leaky integrate-and-fire layer (claim LIF).

    The equation is given in :func:`spikedim.neurons.lif`.

    Args:
        beta: membrane decay per step in [0, 1]. NOT a time constant: for that use
            :meth:`from_tau`. A float, or a floating tensor that broadcasts to the neuron shape
            (gradients flow to it).
        threshold: firing threshold > 0 in units of potential, float or tensor like ``beta``. It is
            rounded to the dtype of the input, so that a neuron exactly at threshold fires.
        reset: ``"soft"`` subtracts the threshold, ``"hard"`` sets ``v_reset``, ``"none"`` neither.
        v_reset: potential after a hard reset (rest and leak target stay 0).
        delayed_reset: ``False`` resets in the step of the spike, before the leak; ``True`` in the
            next step, after the leak (the published form).
        decay_input: input gain g = 1 − beta when ``True``, 1 when ``False``.
        refractory: whole steps after a spike in which the neuron neither integrates, leaks nor
            fires.
        detach_reset: no gradient through the spike in the reset term.
        surrogate: derivative of the spike in the backward pass.
        smooth: emit ``surrogate.primitive(u − threshold)`` instead of spikes: a differentiable
            twin. Gradients are exact only with ``detach_reset=False``.

    Raises:
        ConfigError: a value out of its domain. Of tensors, only constant CPU values are checked:
            a learnable one moves, so its parametrisation has to keep it in range.
    """

    beta: float | Tensor = 0.5
    threshold: float | Tensor = 1.0
    reset: str = "hard"
    v_reset: float = 0.0
    delayed_reset: bool = False
    decay_input: bool = True
    refractory: int = 0
    detach_reset: bool = True
    surrogate: Surrogate = field(default=Surrogate("sigmoid", 4.0))
    smooth: bool = False

    def __post_init__(self) -> None:
        low, high = _range("beta", self.beta)
        if low < 0 or high > 1 or math.isnan(low):
            hint = f"; for a time constant use LIFParams.from_tau({high:g})" if high > 1 else ""
            raise ConfigError(
                f"beta={_show(self.beta)} is outside [0, 1]: it is the decay per step{hint}"
            )
        if self.decay_input and low == 1:
            raise ConfigError(
                "beta=1 with decay_input=True multiplies the input by 1 - beta = 0; "
                "use decay_input=False for a neuron without leak"
            )
        low, high = _range("threshold", self.threshold)
        if not (low > 0 and high < math.inf):
            raise ConfigError(
                f"threshold={_show(self.threshold)} must be a positive finite potential"
            )
        if self.reset not in RESETS:
            raise ConfigError(f"reset={self.reset!r} is unknown; choose one of {', '.join(RESETS)}")
        if not _is_number(self.v_reset) or not math.isfinite(self.v_reset):
            raise ConfigError(f"v_reset={self.v_reset!r} must be a finite number")
        whole = isinstance(self.refractory, int) and not isinstance(self.refractory, bool)
        if not whole or self.refractory < 0:
            raise ConfigError(
                f"refractory={self.refractory!r} must be a whole number of steps, 0 or more"
            )
        if not isinstance(self.surrogate, Surrogate):
            raise ConfigError(
                f"surrogate={self.surrogate!r} must be a Surrogate; make one with "
                "spikedim.neurons.surrogate(kind, width)"
            )
        if self.smooth and self.refractory:
            raise ConfigError(
                f"smooth=True has no spikes to start a refractory period of {self.refractory} "
                "steps; use refractory=0"
            )

    @classmethod
    def from_tau(cls, tau: float | Tensor, **options: Any) -> LIFParams:
        """Parameters from a membrane time constant in steps: beta = 1 − 1/tau.

        Args:
            tau: time constant >= 1 in steps (1 forgets at once, infinity never leaks).
            **options: every other field of :class:`LIFParams`, except ``beta``.

        Raises:
            ConfigError: tau below 1, or ``beta`` given as well.
        """
        if "beta" in options:
            raise ConfigError(
                f"tau={_show(tau)} and beta={_show(options['beta'])} both given; "
                "they are the same quantity (beta = 1 - 1/tau), give one"
            )
        low, _ = _range("tau", tau)
        if not low >= 1:
            hint = f"; for a decay per step use LIFParams(beta={low:g})" if 0 <= low < 1 else ""
            raise ConfigError(f"tau={_show(tau)} must be at least 1 step{hint}")
        return cls(beta=1 - 1 / tau, **options)

    @property
    def tau(self) -> float | Tensor:
        """Membrane time constant in steps, 1/(1 − beta); infinite without leak."""
        if isinstance(self.beta, Tensor):
            return 1 / (1 - self.beta)
        return math.inf if self.beta == 1 else 1 / (1 - self.beta)

    @property
    def gain(self) -> float | Tensor:
        """Input gain g: 1 − beta with ``decay_input``, else 1."""
        return 1 - self.beta if self.decay_input else 1.0


class LIFState(NamedTuple):
    """What a LIF layer carries to its next step; every field has the neuron shape.

    Args:
        u: potential of the last step before its reset, dtype of the input.
        s: output (spikes) of the last step, dtype of the input.
        refractory: refractory steps still to come, int32.
    """

    u: Tensor
    s: Tensor
    refractory: Tensor

    @classmethod
    def rest(cls, like: Tensor) -> LIFState:
        """State of silent neurons at potential 0, with the shape, dtype and device of ``like``."""
        zero = torch.zeros_like(like)
        # One stored number, expanded: most neurons have no refractory period.
        ready = torch.zeros((), dtype=torch.int32, device=like.device).expand(like.shape)
        return cls(zero, zero, ready)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(name: str, value: object) -> tuple[float, float]:
    """Smallest and largest value where they are known, else a range that passes every check."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.numel() == 0:
            raise ConfigError(
                f"{name} is a tensor of {value.dtype} and shape {tuple(value.shape)}; "
                "expected a float or a non-empty floating tensor"
            )
        if value.requires_grad or value.device.type != "cpu":
            return 0.5, 0.5
        try:
            return value.min().item(), value.max().item()
        except RuntimeError:  # inside torch.func transforms values cannot be read
            return 0.5, 0.5
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be a number or a floating tensor")
    return value, value


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        low, high = value.min().item(), value.max().item()
        return f"tensor with values in [{low:g}, {high:g}]"
    return f"{value}"
