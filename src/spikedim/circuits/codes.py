"""Rate codes: a number in [0, 1] as the spikes of one unit over T steps (claims RATE, RATE-LIF).

Decoding is always the spike count over T. What differs is the error: a Bernoulli code falls as
1/√T, an integrate-and-fire code as 1/T, and a leaky neuron under constant drive keeps a floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run, same_trials
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams, lif

_COUNTED = 1e15  # largest mean of a Poisson count that is drawn
_CHUNK_ELEMENTS = 1 << 22  # 32 MiB of float64: a bound on memory, with no effect on CPU draws


def arguments(inputs: Sequence[Tensor], *names: str) -> tuple[Tensor, ...]:
    """The inputs of a circuit as float64, checked: as many as ``names``, finite, not empty.

    Raises:
        ConfigError: anything else.
    """
    if len(inputs) != len(names):
        raise ConfigError(
            f"{len(inputs)} inputs given; this circuit takes {len(names)}: {', '.join(names)}"
        )
    for name, value in zip(names, inputs, strict=True):
        if not isinstance(value, Tensor) or value.is_complex():
            raise ConfigError(f"{name} is {type(value).__name__}; expected a real tensor")
        if value.numel() == 0 or not bool(torch.isfinite(value).all()):
            raise ConfigError(
                f"{name} of shape {tuple(value.shape)} is empty or not finite; "
                "expected at least one finite number"
            )
    return tuple(value.detach().to(torch.float64) for value in inputs)


def in_range(name: str, value: Tensor, low: float, high: float, remedy: str) -> Tensor:
    """Return ``value``, or raise :class:`ConfigError` where it leaves [low, high]."""
    least, most = float(value.min()), float(value.max())
    if least < low or most > high:
        raise ConfigError(
            f"{name} runs from {least:.6g} to {most:.6g}; expected [{low:g}, {high:g}]: {remedy}"
        )
    return value


def rates(inputs: Sequence[Tensor], *names: str) -> tuple[Tensor, ...]:
    """Inputs as :func:`arguments`, all of them rates in [0, 1]."""
    given = arguments(inputs, *names)
    for name, value in zip(names, given, strict=True):
        in_range(name, value, 0, 1, "scale it to a rate first")
    return given


def spans(T: int, elements: int) -> Iterator[int]:
    """Lengths of consecutive runs of timesteps, ``elements`` numbers per step, that fill memory."""
    steps = max(1, _CHUNK_ELEMENTS // max(1, elements))
    for start in range(0, T, steps):
        yield min(steps, T - start)


def uniform_draws(
    shape: Sequence[int], T: int, trials: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Independent uniform numbers in [0, 1), in chunks of time.

    Yields:
        float64 [t, trials, *shape], the chunks together T steps. On a CPU the numbers do not
        depend on the size of the chunks; elsewhere that size is fixed by ``shape`` and ``trials``.
    """
    size = (trials, *shape)
    for t in spans(T, torch.Size(size).numel()):
        yield torch.rand(
            (t, *size), dtype=torch.float64, device=generator.device, generator=generator
        )


def bernoulli_spikes(
    rate: Tensor, T: int, trials: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Independent Bernoulli spikes of probability ``rate`` per step, in chunks of time.

    Args:
        rate: [*shape] in [0, 1], on the device of ``generator``.
        T: timesteps.
        trials: independent repetitions.
        generator: source of the spikes.

    Yields:
        bool [t, trials, *shape], see :func:`uniform_draws`.
    """
    for draws in uniform_draws(rate.shape, T, trials, generator):
        yield draws < rate


def poisson_spikes(
    mean: Tensor, T: int, trials: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Spikes per step of Poisson sources that fire ``mean`` times a step, in chunks of time.

    A source in continuous time can fire more than once within a step.

    Yields:
        float64 counts [t, trials, *shape], chunks as in :func:`uniform_draws`.
    """
    for t in spans(T, trials * mean.numel()):
        yield poisson(mean.expand(t, trials, *mean.shape), generator)


def poisson(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Events of Poisson sources, float64; of a mean above 1e15 the rest is added without spread.

    torch counts in 64 bits and overflows at 9e18; what is lost is 3e-8 of the mean at most.
    """
    rest = (mean - _COUNTED).clamp(min=0)
    return torch.poisson(mean.clamp(max=_COUNTED), generator=generator) + rest


def per_trial(count: Tensor) -> Tensor:
    """Sum of ``count`` [trials, ...] over all but the trials."""
    return count.reshape(len(count), -1).sum(1)


class RateCode(Circuit):
    """A circuit that encodes rates and decodes them; input x of any shape, in [0, 1]."""

    def target(self, *inputs: Tensor) -> Tensor:
        """The rates x themselves."""
        return rates(inputs, "x")[0]


@dataclass(frozen=True)
class BernoulliCode(RateCode):
    """Bernoulli rate code: each step fires independently with probability x (claim RATE).

    Unbiased with variance x(1−x)/T: error slope −1/2, and P(|s̄−x| > δ) <= 2·exp(−2Tδ²)
    (:func:`spikedim.theory.timesteps_hoeffding`).
    """

    name: ClassVar[str] = "bernoulli code"
    claim: ClassVar[str] = "RATE"

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target."""
        return self.target(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`."""
        (x,) = rates(inputs, "x")
        check_run(T, trials)
        count = x.new_zeros((trials, *x.shape))
        for spikes in bernoulli_spikes(x, T, trials, generator):
            count += spikes.sum(0)
        return Simulation(count / T, per_trial(count), x.numel(), 1, T)


@dataclass(frozen=True)
class IntegrateFireCode(RateCode):
    """Integrate-and-fire neuron under constant drive x, no leak, soft reset (claim RATE).

    The count is ⌊xT⌋ up to rounding, so |s̄ − x| <= 1/T: error slope −1, no randomness.
    """

    name: ClassVar[str] = "integrate-and-fire code"
    claim: ClassVar[str] = "RATE"
    random: ClassVar[bool] = False

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target."""
        return self.target(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`. Every trial is the same."""
        (x,) = rates(inputs, "x")
        check_run(T, trials)
        rate = driven_rate(x, 1.0, T)
        return same_trials(rate, (rate * T).round().sum(), x.numel(), 1, T, trials)


@dataclass(frozen=True)
class LeakyCode(RateCode):
    """Leaky neuron under constant drive x, as published: soft reset, gain 1 (claim RATE-LIF).

    u_t = β·u_{t−1} − s_{t−1} + x. Drive below 1 − β never fires and the response is a staircase,
    so T cannot lower the error. At β = 0.5, over uniform x, its RMSE tends to 0.34 for the rate
    itself and to 0.11 for the best affine function of it.

    Args:
        beta: decay per step in [0, 1).
        affine: decode a·s̄ + b, with a and b fitted by least squares over uniform x at the same T.
    """

    name: ClassVar[str] = "leaky code"
    claim: ClassVar[str] = "RATE-LIF"
    random: ClassVar[bool] = False
    beta: float = 0.5
    affine: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(
                f"beta={self.beta} is outside [0, 1); without leak use IntegrateFireCode"
            )

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`. Every trial is the same."""
        (x,) = rates(inputs, "x")
        check_run(T, trials)
        rate = driven_rate(x, self.beta, T)
        slope, offset = self.decoder(T) if self.affine else (1.0, 0.0)
        return same_trials(slope * rate + offset, (rate * T).round().sum(), x.numel(), 1, T, trials)

    def decoder(self, T: int) -> tuple[float, float]:
        """Slope a and offset b of the affine decoding a·s̄ + b at ``T`` timesteps."""
        x = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        rate = driven_rate(x, self.beta, T)
        centred = rate - rate.mean()
        variance = float(centred.square().sum())
        slope = float(centred @ x) / variance if variance > 0 else 0.0
        return slope, float(x.mean() - slope * rate.mean())


def driven_rate(drive: Tensor, beta: float, T: int) -> Tensor:
    """Firing rate over T steps of a neuron under constant ``drive`` from rest, float64.

    The published neuron: threshold 1, gain 1, soft reset in the step after the spike.
    """
    neuron = LIFParams(beta=beta, reset="soft", delayed_reset=True, decay_input=False)
    count, state = torch.zeros_like(drive), None
    for t in spans(T, drive.numel()):
        spikes, state = lif(drive.expand(t, *drive.shape), neuron, state)
        count += spikes.sum(0)
    return count / T
