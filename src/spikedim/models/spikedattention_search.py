"""What a conversion to one-spike code costs in spikes, and how many steps it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from spikedim.errors import ConfigError, DataError
from spikedim.models import phase_code
from spikedim.models.base import SpikingModel, evaluating
from spikedim.models.blocks import check_whole
from spikedim.models.spikedattention import SpikedAttention
from spikedim.results import SLACK, Estimate, Result, Table
from spikedim.theory.statistics import share


@dataclass(frozen=True)
class SpikeCount(Result):
    """Spikes of a converted network.

    Attributes:
        T, samples: steps per window, and inputs counted.
        layers: (name, neurons, mean spikes per input) of every neuron layer.
        input_bits: mean number of ones in the binary input code, per input.
    """

    T: int
    samples: int
    layers: tuple[tuple[str, int, float], ...]
    input_bits: float

    @property
    def spikes(self) -> float:
        """Mean spikes per input over all neuron layers, the input's bits left out."""
        return sum(spikes for _, _, spikes in self.layers)

    def tables(self) -> list[Table]:
        """One row per layer."""
        rows = [(name, n, spikes, spikes / n) for name, n, spikes in self.layers]
        columns = ("layer", "neurons", "spikes per input", "share that fires")
        return [Table(f"spikes at T={self.T}, {self.samples} inputs", columns, rows)]


def count_spikes(network: SpikedAttention, x: Tensor, T: int | None = None) -> SpikeCount:
    """Count the spikes of ``network`` on ``x`` [B, C, H, W]; errors as its forward pass."""
    T = network._check_input(x, T)[1]
    layers: list[tuple[str, int, float]] = []

    def note(name: str, k: Tensor) -> None:
        layers.append((name, k[0].numel(), float((k > 0).sum()) / len(x)))

    with torch.no_grad():
        if network.config.legacy:
            for name, train in network.trains(x, T).items():
                note(name, train.abs().amax(0))
        else:
            network._closed(x, T, note)
        bits = phase_code.binary_train(x / cast(Tensor, network.input_peak), T, 2.0)
    return SpikeCount(T, len(x), tuple(layers), float((bits != 0).sum()) / len(x))


@dataclass(frozen=True)
class ConversionPoint:
    """One window length: accuracy and accuracy lost, in percent, and spikes per input."""

    T: int
    base: float
    accuracy: Estimate
    lost: float
    spikes: float


@dataclass(frozen=True)
class ConversionSearch(Result):
    """Which T a conversion needs.

    Attributes:
        T: the smallest window from which on no more than ``tolerance`` is lost at any larger one
            tried; ``None`` if the largest loses more.
        tolerance: percentage points.
        original: accuracy of the continuous network.
        points: every T tried, ascending.
    """

    T: int | None
    tolerance: float
    original: Estimate
    points: tuple[ConversionPoint, ...]

    def tables(self) -> list[Table]:
        """One row per T."""
        title = f"T for at most {self.tolerance:g} points below {self.original}: {self.T}"
        columns = ("T", "base", "accuracy", "points lost", "spikes per input")
        rows = [(p.T, p.base, str(p.accuracy), p.lost, p.spikes) for p in self.points]
        return [Table(title, columns, rows)]


def search_timesteps(
    network: SpikedAttention,
    x: Tensor,
    labels: Tensor,
    T_values: Sequence[int] = (4, 8, 12, 16, 24, 32, 48, 64),
    tolerance: float = 1.0,
) -> ConversionSearch:
    """Find the smallest T at which a conversion keeps the accuracy of the original.

    Args:
        network: the conversion.
        x, labels: [B, C, H, W] and classes [B] that neither trained nor calibrated it.
        T_values: window lengths to try.
        tolerance: accuracy that may be lost, in percentage points.

    Raises:
        ConfigError: no T, or one that is no whole number of at least 1.
        DataError: the labels do not fit the inputs.
    """
    if not T_values:
        raise ConfigError("T_values is empty; give the window lengths to try")
    for T in T_values:
        check_whole("T", T)
    if not len(x) or labels.shape != (len(x),):
        raise DataError(
            f"labels have shape {tuple(labels.shape)}; expected one for {len(x)} inputs"
        )

    def accuracy(model: SpikingModel, T: int | None) -> Estimate:
        with evaluating(model), torch.no_grad():
            hits = int((model(x, T).argmax(1) == labels).sum())
        return share(hits, len(x))

    original, points = accuracy(network.continuous(), None), []
    for T in sorted(set(T_values)):
        found = accuracy(network, T)
        lost = original.value - found.value
        spikes = count_spikes(network, x, T).spikes
        points.append(ConversionPoint(T, network.config.base_at(T), found, lost, spikes))
    enough = None
    for point in reversed(points):
        if point.lost > tolerance + SLACK:
            break
        enough = point.T
    return ConversionSearch(enough, tolerance, original, tuple(points))
