"""Test a network once and read its answer after every timestep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spikedim import progress
from spikedim.errors import ModelError
from spikedim.models import SpikingModel
from spikedim.models.base import evaluating
from spikedim.neurons import LIF
from spikedim.results import Estimate, Result, Table
from spikedim.theory.statistics import mean_estimate
from spikedim.training.batches import Batches, forward_batch
from spikedim.training.config import check_timesteps, resolve_device
from spikedim.training.timestep import accuracy_estimate


@dataclass(frozen=True)
class Evaluation(Result):
    """Accuracy and activity after each of the first T timesteps of one run.

    Attributes:
        T: timesteps that were run.
        accuracy: in percent after t = 1..T steps (mean of the first t step outputs).
        spikes_per_sample: spikes of all neurons in the first t steps.
        firing_rate: spikes per neuron and step over the first t steps.
        samples: number of test samples.
    """

    T: int
    accuracy: tuple[Estimate, ...]
    spikes_per_sample: tuple[Estimate, ...]
    firing_rate: tuple[Estimate, ...]
    samples: int
    _correct: np.ndarray

    def correct(self, t: int | None = None) -> np.ndarray:
        """0/1 per sample after ``t`` steps (all T by default), uint8 [samples]."""
        row: np.ndarray = self._correct[(self.T if t is None else t) - 1]
        return row

    def tables(self) -> list[Table]:
        """One row per number of timesteps."""
        rows = [
            (t + 1, self.accuracy[t], self.spikes_per_sample[t], self.firing_rate[t])
            for t in range(self.T)
        ]
        columns = ("timesteps", "accuracy", "spikes per sample", "spikes per neuron and step")
        return [Table(f"Evaluation on {self.samples:,} samples", columns, rows)]


def evaluate(
    model: SpikingModel,
    x: Tensor,
    y: Tensor,
    T: int,
    batch_size: int = 256,
    *,
    encoder: str = "direct",
    seed: int = 0,
    device: str = "cpu",
) -> Evaluation:
    """Run ``model`` for T steps and score the running mean of its step outputs.

    ``logits_t = (1/t)·Σ_{i<=t} steps_i``. A network in evaluation mode is causal, so for images
    under the direct and Bernoulli encoders the score after t steps is that of a run of t steps; of
    a recording in T frames it is that of its first t frames.

    Args:
        model: put into evaluation mode for the run, and every module back afterwards.
        x: inputs, samples first, as :func:`spikedim.training.samples` gives them.
        y: classes [N].
        T: timesteps.
        batch_size: samples per forward pass; of large recordings fewer.
        encoder: as for :func:`spikedim.training.samples`.
        seed: of a random encoder.
        device: where to run; the model returns to where it was.

    Raises:
        ConfigError: T < 1.
        DeviceError: the device does not exist here.
        DataError: samples and labels differ in number, or recordings have other than T frames.
        ModelError: no samples.
    """
    check_timesteps(T)
    if len(x) == 0:
        raise ModelError("no samples to evaluate on: the split is empty")
    target, home = resolve_device(device), next(model.parameters()).device
    batches = Batches(x, y, forward_batch(x, batch_size), T, encoder, seed)
    correct: list[Tensor] = []
    spikes: list[Tensor] = []
    try:
        model.to(target)
        with (
            evaluating(model),
            torch.inference_mode(),
            _counting_spikes(model) as counter,
            progress.task(f"test T={T}", len(batches)) as bar,
        ):
            for inputs, labels in batches:
                inputs, labels = inputs.to(target), labels.to(target)
                steps = model.steps(inputs, T if encoder == "direct" else None)
                running = steps.float().cumsum(0)
                correct.append((running.argmax(-1) == labels).cpu())
                spikes.append(counter.take())
                bar.advance()
    finally:
        model.to(home)
    hits = torch.cat(correct, dim=1).numpy().astype(np.uint8)
    counts = torch.cat(spikes, dim=1).cumsum(0).numpy()
    neurons = max(counter.neurons, 1)
    totals = [mean_estimate(row, "spikes") for row in counts]
    rates = [mean_estimate(row / (neurons * (t + 1))) for t, row in enumerate(counts)]
    return Evaluation(
        T=T,
        accuracy=tuple(accuracy_estimate(row) for row in hits),
        spikes_per_sample=tuple(found.within(0, math.inf) for found in totals),
        firing_rate=tuple(found.within(0, math.inf) for found in rates),
        samples=len(x),
        _correct=hits,
    )


class _SpikeCounter:
    """Spikes per timestep and sample over all LIF layers of the current forward pass."""

    def __init__(self) -> None:
        self.neurons = 0
        self._counts: Tensor | None = None
        self._seen = 0

    def add(self, spikes: Tensor, _potential: Tensor | None) -> None:
        count = spikes.flatten(2).sum(-1, dtype=torch.float64)
        self._seen += spikes[0, 0].numel()
        self._counts = count if self._counts is None else self._counts + count

    def take(self) -> Tensor:
        """Counts [T, B] since the last call."""
        if self._counts is None:
            raise ModelError("the network has no spiking layer: nothing fired or could fire")
        counts, self.neurons = self._counts.cpu(), self._seen
        self._counts, self._seen = None, 0
        return counts


@contextmanager
def _counting_spikes(model: nn.Module) -> Iterator[_SpikeCounter]:
    counter = _SpikeCounter()
    layers = [module for module in model.modules() if isinstance(module, LIF)]
    for layer in layers:
        layer.observe(counter.add)
    try:
        yield counter
    finally:
        for layer in layers:
            layer.unobserve(counter.add)
