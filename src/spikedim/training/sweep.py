"""Measured accuracy against T: train or read out at several T, resumably, and find T*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from spikedim.data import Dataset, Frames
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams
from spikedim.provenance import Provenance
from spikedim.results import Estimate, Result, Table, number, points_of
from spikedim.storage import Run
from spikedim.training.batches import check_trainable, why_no_prefix
from spikedim.training.config import TrainConfig, check_timesteps
from spikedim.training.parallel import Setting, run_trials
from spikedim.training.tables import write_parquet
from spikedim.training.timestep import above_chance, check_tolerance, t_star
from spikedim.training.trial import Trial, sweep_provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mode = Literal["train", "inference"]

_FRAMES = (
    "T is the number of frames that share out each recording: at another T the same events fall "
    "into other frames."
)


@dataclass(frozen=True)
class TimestepPoint:
    """Test accuracy at one T.

    Attributes:
        T: timesteps of the test.
        accuracy: percent, Wilson interval.
        spikes_per_sample: spikes of all neurons over T steps, interval over samples.
        firing_rate: spikes per neuron and step.
        train_seconds, epochs: cost of the training behind it.
        trained_at: T it was trained at (equal to ``T`` in mode ``"train"``).
        checkpoint: its weights.
        correct: 0/1 per test sample (property; not exported).
    """

    T: int
    accuracy: Estimate
    spikes_per_sample: Estimate
    firing_rate: Estimate
    train_seconds: float
    epochs: int
    trained_at: int
    checkpoint: Path
    _correct: np.ndarray = field(repr=False, compare=False)

    @property
    def correct(self) -> np.ndarray:
        """0/1 per test sample, uint8 [samples], in the order of the test split."""
        return self._correct


@dataclass(frozen=True)
class TimestepSweep(Result):
    """Accuracy against T, its plateau and T*.

    Attributes:
        dataset, model, mode, encoder: what was swept.
        points: one per T, ascending.
        tolerance: accepted loss against the plateau, percentage points.
        plateau: fitted accuracy at the largest T, percent.
        t_star: smallest T within the tolerance; ``high`` is ``None`` where the grid ends too soon.
        fitted: isotonic accuracy at each T, percent.
        probability: bootstrap frequency of T* = T at each T.
        censored: whether a larger T might still be needed.
        neuron: neuron parameters used; ``None`` for the model's own.
        notes: what limits the answer.
        provenance: versions, machine, threads, configuration and data of the newest training.
        chance: percent of the test samples that belong to the most frequent class, which a
            constant answer reaches.
    """

    dataset: str
    model: str
    mode: Mode
    encoder: str
    points: tuple[TimestepPoint, ...]
    tolerance: float
    plateau: Estimate
    t_star: Estimate
    fitted: tuple[float, ...]
    probability: tuple[float, ...]
    censored: bool
    neuron: LIFParams | None
    notes: tuple[str, ...]
    provenance: Provenance = field(repr=False)
    chance: float = 0.0

    @property
    def learned(self) -> bool:
        """Whether the accuracy at some T lies above what a constant answer reaches."""
        return above_chance([point.accuracy for point in self.points], self.chance)

    def at(self, T: int) -> TimestepPoint:
        """The point at ``T``.

        Raises:
            ConfigError: T was not swept.
        """
        for point in self.points:
            if point.T == T:
                return point
        raise ConfigError(f"T={T} was not swept; swept: {[point.T for point in self.points]}")

    def tables(self) -> list[Table]:
        """Accuracy, spikes and cost per T."""
        rows = [
            (p.T, p.accuracy, fit, share, p.spikes_per_sample, p.firing_rate, p.train_seconds)
            for p, fit, share in zip(self.points, self.fitted, self.probability, strict=True)
        ]
        columns = (
            "T", "accuracy", "fit %", "P(T*=T)", "spikes per sample", "rate", "training s",
        )  # fmt: skip
        title = (
            f"{self.model} on {self.dataset}: T* = {self.t_star} "
            f"(within {points_of(self.tolerance)} of {number(self.plateau.value)} %)"
        )
        source = (
            f"{self.points[0].accuracy.n:,} test samples, seed {self.provenance.seed}; "
            f"a constant answer reaches {number(self.chance)} %. 95 % intervals over test samples, "
            "not over training seeds; P(T*=T) by resampling them."
        )
        notes = (*self.notes, source)
        if not self.learned:
            chance = (
                f"At chance: at no T is the accuracy above {number(self.chance)} %, what always "
                "answering the most frequent class reaches. The network has not learned, so T* "
                "says nothing; train longer, or on more samples."
            )
            notes = (chance, *notes)
        return [Table(title, columns, rows, notes)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy against T with intervals, the plateau band and T*."""
        from matplotlib import pyplot

        axes = ax if ax is not None else pyplot.figure().add_subplot()
        steps = [p.T for p in self.points]
        values = [p.accuracy.value for p in self.points]
        reach = tuple(zip(*(p.accuracy.reach for p in self.points), strict=True))
        axes.errorbar(steps, values, reach, fmt="o", capsize=3, label="test accuracy")
        axes.plot(steps, self.fitted, drawstyle="steps-post", label="isotonic fit")
        top = self.plateau.value
        axes.axhspan(top - self.tolerance, top, alpha=0.15, label="plateau − tolerance")
        axes.axvline(self.t_star.value, linestyle="--", label=f"T* = {self.t_star}")
        axes.set(xlabel="timesteps T", ylabel="accuracy (%)", xticks=steps)
        axes.set_title(f"{self.model} on {self.dataset}")
        axes.legend()
        return axes


def sweep_timesteps(
    dataset: Dataset,
    model_name: str,
    T_values: Sequence[int],
    config: TrainConfig,
    run: Run,
    tolerance: float = 1.0,
    mode: Mode = "train",
    neuron: LIFParams | None = None,
    encoder: str = "direct",
    workers: int = 1,
) -> TimestepSweep:
    """Measure accuracy at several T on the test split and find T*.

    Every T starts from the same initial weights, data order and held-out split. A finished T is
    stored in the run directory and never trained again; an interrupted one continues after its
    last epoch. ``sweep.parquet`` in the run directory holds one row per (trained T, tested T):
    every T up to the trained one, where the beginning of a run is a shorter run.

    Args:
        dataset: images, event recordings or texts with labelled train and test splits. Of a
            recording, T is the number of frames it is accumulated into.
        model_name: see :func:`spikedim.models.list_models`.
        T_values: the grid of T.
        config: how to train.
        run: an entered run directory.
        tolerance: accepted loss against the plateau, percentage points.
        mode: ``"train"`` trains once per T; ``"inference"`` trains once at the largest T and
            reads the answer after each smaller T.
        neuron: parameters of every neuron; ``None`` keeps the model's.
        encoder: as for :func:`spikedim.training.samples`.
        workers: trainings at once, each in a process of its own. The numbers stay the same for
            networks under one million parameters; larger ones share the cores, and another
            number of threads can change their last digits.

    Raises:
        ConfigError: empty or repeated grid, T < 1, negative tolerance, unknown mode or encoder, or
            ``"inference"`` with ``latency`` or recordings, where the beginning of a run is not a
            shorter run; a T that the frames of recordings cannot be brought to.
        DataError: no test split or no labels.
        ModelError: unknown model, or training diverged.
        StorageError: disk full, or the run directory holds other settings.
    """
    grid = _grid(T_values)
    check_tolerance(tolerance)
    if mode not in ("train", "inference"):
        raise ConfigError(f"mode={mode!r} is unknown; use 'train' or 'inference'")
    check_trainable(dataset, grid, encoder)
    if mode == "inference" and (why := why_no_prefix(dataset, encoder)):
        other = " or another encoder" if encoder == "latency" else ""
        raise ConfigError(f"{why}, so stopping early is not a shorter run; use mode='train'{other}")
    trained = grid if mode == "train" else grid[-1:]
    found = run_trials(
        [Setting(T, neuron) for T in trained],
        dataset,
        model_name,
        config,
        run,
        encoder,
        workers,
        f"sweep {model_name} on {dataset.name}",
    )
    trials = dict(zip(trained, found, strict=True))
    points = tuple(_point(trials[T if mode == "train" else grid[-1]], T, run.path) for T in grid)
    largest = dataset.train.inputs.steps if isinstance(dataset.train.inputs, Frames) else None
    answer = t_star({p.T: p.correct for p in points}, tolerance, seed=config.seed, largest=largest)
    notes = (_FRAMES, *answer.notes) if dataset.kind == "events" else answer.notes
    source = sweep_provenance(
        found,
        {"T": grid, "mode": mode, "tolerance": tolerance, "neuron": neuron},
        ("T* intervals cover test-set noise, not the noise of training seeds.",),
    )
    write_parquet(run.file("sweep.parquet"), found, dataset, model_name)
    return TimestepSweep(
        dataset=dataset.name,
        model=model_name,
        mode=mode,
        encoder=encoder,
        points=points,
        tolerance=answer.tolerance,
        plateau=answer.plateau,
        t_star=answer.estimate,
        fitted=answer.fitted,
        probability=answer.probability,
        censored=answer.censored,
        neuron=neuron,
        notes=notes,
        provenance=source,
        chance=100 * majority(dataset),
    )


def majority(dataset: Dataset) -> float:
    """Share of the most frequent class among the labels that a network is tested on."""
    labels = (dataset.test or dataset.train).labels
    assert labels is not None
    return float(np.bincount(labels).max() / len(labels))


def _grid(T_values: Sequence[int]) -> tuple[int, ...]:
    values = [check_timesteps(T) for T in T_values]
    if not values:
        raise ConfigError("T_values is empty; give the timesteps to try, e.g. 1 2 4 8")
    if len(set(values)) != len(values):
        raise ConfigError(f"T_values={values} repeats a value; give each T once")
    return tuple(sorted(values))


def _point(trial: Trial, T: int, root: Path) -> TimestepPoint:
    return TimestepPoint(
        T=T,
        accuracy=trial.accuracy[T - 1],
        spikes_per_sample=trial.spikes_per_sample[T - 1],
        firing_rate=trial.firing_rate[T - 1],
        train_seconds=trial.train_seconds,
        epochs=trial.epochs,
        trained_at=trial.T,
        checkpoint=root / trial.weights,
        _correct=trial.correct[T - 1],
    )
