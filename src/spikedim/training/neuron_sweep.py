"""Measured effect of threshold, leak and refractory period, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedim.data import Dataset
from spikedim.errors import ConfigError
from spikedim.models import model_entry
from spikedim.neurons import LIFParams
from spikedim.provenance import Provenance
from spikedim.results import Estimate, Result, Table, number
from spikedim.storage import Run
from spikedim.training.batches import check_trainable
from spikedim.training.config import TrainConfig, check_timesteps
from spikedim.training.network import check_neuron
from spikedim.training.parallel import Setting, run_trials
from spikedim.training.tables import write_parquet
from spikedim.training.trial import Trial, sweep_provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARAMETERS = ("threshold", "beta", "refractory")


@dataclass(frozen=True)
class NeuronPoint:
    """One neuron setting, trained and tested.

    Attributes:
        parameter, value: what was changed against the base setting.
        base: whether the value is the base setting itself.
        accuracy: percent, Wilson interval.
        spikes_per_sample: spikes of all neurons over T steps, interval over samples.
        firing_rate: spikes per neuron and step.
        held_out: accuracy on the samples held out of training, for choosing a setting without
            looking at the test set; ``None`` where none were held out.
        train_seconds: cost of the training.
        checkpoint: its weights.
    """

    parameter: str
    value: float
    base: bool
    accuracy: Estimate
    spikes_per_sample: Estimate
    firing_rate: Estimate
    held_out: Estimate | None
    train_seconds: float
    checkpoint: Path


@dataclass(frozen=True)
class NeuronSweep(Result):
    """Accuracy and spikes for each neuron setting, one parameter changed at a time.

    Attributes:
        dataset, model, T: what was swept.
        base: the setting around which parameters were changed.
        points: grouped by parameter, values ascending.
        provenance: versions, machine, threads, configuration and data of the newest training.
    """

    dataset: str
    model: str
    T: int
    base: LIFParams
    points: tuple[NeuronPoint, ...]
    provenance: Provenance = field(repr=False)

    def of(self, parameter: str) -> tuple[NeuronPoint, ...]:
        """The points in which ``parameter`` was varied, the base setting among them."""
        return tuple(point for point in self.points if point.parameter == parameter)

    def tables(self) -> list[Table]:
        """One row per setting."""
        rows = [
            (
                p.parameter,
                f"{number(p.value)}{' (base)' if p.base else ''}",
                p.accuracy,
                p.held_out,
                p.spikes_per_sample,
                p.firing_rate,
            )
            for p in self.points
        ]
        columns = ("parameter", "value", "accuracy", "held out", "spikes per sample", "rate")
        notes = ["One training each, same seed; intervals cover test-set noise only."]
        if held := [p.held_out.n for p in self.points if p.held_out is not None]:
            notes.append(
                f"Held out: accuracy on {held[0]:,} training samples that were not trained on; a "
                "setting is chosen by it, so that the test accuracy is not the luckiest of several."
            )
        return [Table(f"{self.model} on {self.dataset}, T={self.T}", columns, rows, notes)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy against spikes per sample, one series per parameter."""
        from matplotlib import pyplot

        axes = ax if ax is not None else pyplot.figure().add_subplot()
        for parameter in dict.fromkeys(point.parameter for point in self.points):
            points = self.of(parameter)
            spikes = [p.spikes_per_sample.value for p in points]
            axes.plot(spikes, [p.accuracy.value for p in points], "o-", label=parameter)
            for p, x in zip(points, spikes, strict=True):
                axes.annotate(number(p.value), (x, p.accuracy.value))
        axes.set(xlabel="spikes per sample", ylabel="accuracy (%)")
        axes.set_title(f"{self.model} on {self.dataset}, T={self.T}")
        axes.legend()
        return axes


def sweep_neurons(
    dataset: Dataset,
    model_name: str,
    T: int,
    grid: Mapping[str, Sequence[float]],
    config: TrainConfig,
    run: Run,
    base: LIFParams | None = None,
    encoder: str = "direct",
    workers: int = 1,
) -> NeuronSweep:
    """Train and test the network with one neuron parameter changed at a time.

    The base setting is measured once and belongs to every series. Finished settings are stored
    in the run directory; ``neurons.parquet`` holds one row per setting and number of steps.

    Args:
        dataset: images, event recordings or texts with labelled train and test splits.
        model_name: see :func:`spikedim.models.list_models`.
        T: timesteps.
        grid: values of ``threshold``, ``beta`` and ``refractory`` to try, any of them.
        config: how to train.
        run: an entered run directory.
        base: the setting to vary; ``None`` takes the model's own.
        encoder: as for :func:`spikedim.training.samples`.
        workers: trainings at once, each in a process of its own.

    Raises:
        ConfigError: an unknown parameter, an empty grid, a value out of its domain, or a neuron
            that the network cannot have.
        DataError, ModelError, StorageError: as :func:`spikedim.training.fit`.
    """
    check_timesteps(T)
    origin: LIFParams | None = model_entry(model_name).config.neuron if base is None else base
    if origin is None:
        raise ConfigError(
            f"the neurons of {model_name} are kept as they are: they have no threshold, leak or "
            "refractory period to sweep; register an equivalent with "
            "spikedim.adapters.register_neuron"
        )
    settings = _settings(grid, origin)
    check_trainable(dataset, (T,), encoder)
    tried = list(dict.fromkeys(neuron for _, _, neuron in settings))
    for neuron in tried:
        check_neuron(model_name, neuron)
    found = run_trials(
        [Setting(T, neuron) for neuron in tried],
        dataset,
        model_name,
        config,
        run,
        encoder,
        workers,
        f"neurons of {model_name} on {dataset.name}",
    )
    trials = dict(zip(tried, found, strict=True))
    source = sweep_provenance(found, {"base": origin, "grid": grid})
    write_parquet(run.file("neurons.parquet"), found, dataset, model_name)
    points = tuple(_point(*setting, origin, trials[setting[2]], run.path) for setting in settings)
    return NeuronSweep(dataset.name, model_name, T, origin, points, source)


def _settings(
    grid: Mapping[str, Sequence[float]], base: LIFParams
) -> list[tuple[str, float, LIFParams]]:
    if not any(len(values) for values in grid.values()):
        raise ConfigError(f"the grid is empty; give values of {', '.join(PARAMETERS)}")
    settings = []
    for parameter, values in grid.items():
        if parameter not in PARAMETERS:
            raise ConfigError(
                f"neuron parameter {parameter!r} cannot be swept; use {', '.join(PARAMETERS)}"
            )
        own = getattr(base, parameter)
        for value in sorted({*values, own}):
            typed: Any = int(value) if parameter == "refractory" and value == int(value) else value
            settings.append((parameter, typed, replace(base, **{parameter: typed})))
    return settings


def _point(
    parameter: str, value: float, neuron: LIFParams, base: LIFParams, trial: Trial, root: Path
) -> NeuronPoint:
    return NeuronPoint(
        parameter=parameter,
        value=value,
        base=neuron == base,
        accuracy=trial.accuracy[-1],
        spikes_per_sample=trial.spikes_per_sample[-1],
        firing_rate=trial.firing_rate[-1],
        held_out=trial.held_out,
        train_seconds=trial.train_seconds,
        checkpoint=root / trial.weights,
    )
