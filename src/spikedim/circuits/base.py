"""What every spike circuit shares: how it is run, what a run reports, how units are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.results import Result, Table


@dataclass(frozen=True)
class Simulation(Result):
    """Outcome of one circuit simulated in spikes, step by step, for many independent trials.

    Attributes:
        output: decoded value of every trial, [trials, *shape of the target], float64.
        spikes: spikes of all units of the circuit, encoders included, per trial, [trials], float64.
        neurons: units of the circuit, encoders included.
        depth: units on the longest path from input to output, encoders included.
        T: timesteps simulated.
    """

    output: Tensor
    spikes: Tensor
    neurons: int
    depth: int
    T: int

    def tables(self) -> list[Table]:
        """Size and cost of the run."""
        rows: list[tuple[str, Any]] = [
            ("timesteps", self.T),
            ("trials", len(self.output)),
            ("neurons", self.neurons),
            ("depth", self.depth),
            ("spikes per trial", float(self.spikes.mean())),
        ]
        return [Table("circuit", ("quantity", "value"), rows)]


class Circuit(ABC):
    """A network of threshold units that computes :meth:`target`, up to an error that T controls.

    Subclasses are frozen dataclasses: their fields are the circuit's parameters.

    Attributes:
        name: short name used in tables and on the command line.
        claim: id of the published claim it implements, e.g. ``"SOFTMAX"``.
        random: whether trials differ. Only of a circuit that is not random does agreement of the
            trials say that they always agree.
    """

    name: ClassVar[str]
    claim: ClassVar[str]
    random: ClassVar[bool] = True

    @abstractmethod
    def target(self, *inputs: Tensor) -> Tensor:
        """The exact value, float64, of what the circuit computes."""

    def limit(self, *inputs: Tensor) -> Tensor | None:
        """What the output tends to as T grows; ``None`` where it is not known in closed form."""
        return None

    @abstractmethod
    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate the circuit.

        Args:
            *inputs: as for :meth:`target`; the same for every trial. Their device is used.
            T: timesteps, at least 1.
            trials: independent repetitions simulated at once.
            generator: source of all randomness, on the device of the inputs; the same state gives
                the same spikes, whatever the memory available.

        Raises:
            ConfigError: an input outside the circuit's domain, or T or trials below 1.
        """


def check_run(T: int, trials: int) -> None:
    """Raise :class:`ConfigError` unless T and trials are whole numbers of at least 1."""
    for name, value in (("T", T), ("trials", trials)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected a whole number, 1 or more")


def same_trials(
    output: Tensor, spikes: Tensor, neurons: int, depth: int, T: int, trials: int
) -> Simulation:
    """The simulation of a circuit without chance, whose trials are all the same.

    Args:
        output: of one trial.
        spikes: of one trial, a scalar.
        neurons, depth, T: see :class:`Simulation`.
        trials: copies.
    """
    return Simulation(
        output.expand(trials, *output.shape), spikes.expand(trials), neurons, depth, T
    )
