"""Studies: many trainings over data sets, networks, T, seeds and neurons, as one tidy table.

Every training is one trial with one key, a stored step of the run directory: a finished trial is
read back and never repeated, whoever ran it. So a study that was killed, with its workers or its
driver, ends in the same table as one that ran undisturbed.
"""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikedim import progress
from spikedim.adapters.files import fingerprint
from spikedim.data import Dataset
from spikedim.errors import ConfigError
from spikedim.models import model_entry
from spikedim.models.registry import is_file
from spikedim.neurons import LIFParams
from spikedim.provenance import provenance
from spikedim.results import Estimate, Result, Table, plain
from spikedim.storage import Run
from spikedim.theory.statistics import mean_interval, share, wilson_interval
from spikedim.training.batches import check_trainable, why_no_prefix
from spikedim.training.chance import at_chance
from spikedim.training.config import TrainConfig, check_timesteps
from spikedim.training.engines import Engine, results
from spikedim.training.network import check_neuron, network_for
from spikedim.training.study_table import (
    OutputRow,
    Row,
    StudyRow,
    StudyTable,
    read_outputs,
    read_study,
    write_study,
)
from spikedim.training.study_trial import (
    OUTPUT_SAMPLES,
    OUTPUT_T,
    Measurement,
    StudyTrial,
    StudyWork,
    rows_of,
)
from spikedim.training.sweep import majority
from spikedim.training.threads import parameter_count, threads_for

#: Neuron parameters a study varies, by the name of their column, and their field of LIFParams.
NEURON = {"beta": "beta", "v_th": "threshold", "t_ref": "refractory", "reset": "reset"}
TABLE, OUTPUTS = "study.parquet", "outputs.parquet"


@dataclass(frozen=True)
class Cell:
    """A data set, a network and how it is trained on it; the seed of ``config`` is not used.

    ``components`` is the intrinsic dimension the data set was made with, if it was.
    """

    dataset: Dataset = field(repr=False)
    model: str
    config: TrainConfig
    components: int | None = None


@dataclass(frozen=True)
class Study:
    """What is trained and how it is tested.

    Attributes:
        name: of the study.
        cells: data sets with networks.
        T: timesteps of the trainings.
        seeds: each trains a network of its own: other weights, data order and held-out split.
        neurons: changes against the network's own neurons, e.g. ``{"beta": 0.8, "v_th": 1.0}``;
            see :func:`neuron_grid`.
        eval_T: every network is tested at these T too. At the T of the grid below its own it is
            tested anyhow where such a test is the beginning of the longer one and costs nothing,
            that is except for recordings and latency codes.
        encoder: as for :func:`spikedim.training.samples`.
        outputs_T: networks trained at these T have their outputs stored.
        outputs_eval_T: after so many steps.
        output_samples, logit_samples: test samples whose margins, and whose logits, are stored.

    Raises:
        ConfigError: an empty or repeated choice, an unknown neuron parameter or encoder mix.
    """

    name: str
    cells: tuple[Cell, ...]
    T: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    neurons: tuple[Mapping[str, Any], ...] = ({},)
    eval_T: tuple[int, ...] = ()
    encoder: str = "direct"
    outputs_T: tuple[int, ...] = ()
    outputs_eval_T: tuple[int, ...] = OUTPUT_T
    output_samples: int = OUTPUT_SAMPLES
    logit_samples: int = OUTPUT_SAMPLES

    def __post_init__(self) -> None:
        for name in ("cells", "T", "seeds", "neurons"):
            if not getattr(self, name):
                raise ConfigError(f"study {self.name}: {name} is empty; give at least one")
        places = [(cell.dataset.name, cell.components, cell.model) for cell in self.cells]
        for name, values in (
            ("T", self.T), ("seeds", self.seeds), ("neurons", self.neurons), ("cells", places)
        ):  # fmt: skip
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ConfigError(f"study {self.name}: {name} repeats a value; give each once")
        for T in (*self.T, *self.eval_T, *self.outputs_T, *self.outputs_eval_T):
            check_timesteps(T)
        for cell in self.cells:
            why = why_no_prefix(cell.dataset, self.encoder)
            if why and (self.eval_T or self.outputs_T):
                raise ConfigError(
                    f"{why}, so a shorter test is not the beginning of a longer one; leave out "
                    "eval_T and outputs_T"
                )

    def trials(self) -> list[StudyTrial]:
        """Every training of the grid, one seed after the other."""
        return [
            StudyTrial(cell, T, seed, self.neuron(cell, changes))
            for seed, changes, cell, T in itertools.product(
                self.seeds, self.neurons, range(len(self.cells)), self.T
            )
        ]

    def neuron(self, cell: int, changes: Mapping[str, Any]) -> LIFParams | None:
        """The neurons of a cell's network with ``changes``, named as the table's columns.

        ``None`` for neurons that are kept as they are.

        Raises:
            ConfigError: an unknown parameter, a value out of its domain, or a change of neurons
                that are kept.
        """
        unknown = [name for name in changes if name not in NEURON]
        if unknown:
            raise ConfigError(
                f"neuron parameter {unknown[0]!r} cannot be studied; use {', '.join(NEURON)}"
            )
        name = self.cells[cell].model
        own: LIFParams | None = model_entry(name).config.neuron
        if own is None:
            if changes:
                raise ConfigError(
                    f"the neurons of {name} are kept as they are: they have no "
                    f"{', '.join(changes)} to study; register an equivalent"
                )
            return None
        return replace(own, **{NEURON[name]: value for name, value in changes.items()})

    def settings(self) -> dict[str, Any]:
        """Plain settings of the study, for run directories and provenance."""
        data = {_variant(cell): cell.dataset for cell in self.cells}
        return {
            "study": self.name,
            "data": {
                name: {
                    "fingerprint": d.fingerprint,
                    "train_samples": len(d.train),
                    "test_samples": len(d.split("test")),
                    "classes": d.num_classes,
                    "input_shape": None if d.kind == "text" else d.input_shape,
                    "source": d.source,
                }
                for name, d in data.items()
            },
            "cells": [
                {
                    "data": _variant(c),
                    "model": c.model,
                    **({"model_file": fingerprint(c.model)} if is_file(c.model) else {}),
                    "training": asdict(c.config),
                }
                for c in self.cells
            ],
            "T": self.T,
            "seeds": self.seeds,
            "neurons": self.neurons,
            "eval_T": self.eval_T,
            "encoder": self.encoder,
            "outputs_T": self.outputs_T,
            "outputs_eval_T": self.outputs_eval_T if self.outputs_T else (),
            "output_samples": self.output_samples,
            "logit_samples": self.logit_samples,
        }


def _variant(cell: Cell) -> str:
    """Name of a cell's data, with the dimension they were made with."""
    return _named(cell.dataset.name, cell.components)


def _named(dataset: str, components: int | None) -> str:
    return dataset if components is None else f"{dataset} (k = {components})"


def setting_label(model: str, data: str, T: int, neuron: Mapping[str, Any]) -> str:
    """A setting in words."""
    return ", ".join([f"{model} on {data}", f"T={T}", *(f"{k}={v}" for k, v in neuron.items())])


def neuron_grid(grid: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], ...]:
    """Every combination of neuron parameters, e.g. ``{"beta": [0.5, 0.8], "t_ref": [0, 1]}``."""
    names = list(grid)
    return tuple(
        dict(zip(names, values, strict=True)) for values in itertools.product(*grid.values())
    )


@dataclass(frozen=True)
class StudySetting:
    """How a network does that was trained and tested at ``T``, over the seeds.

    Attributes:
        dataset, components, model, T: as in :class:`~spikedim.training.study_table.StudyRow`.
        neuron: parameters of every neuron by the name of their column; ``None`` where neurons are
            kept as they are.
        accuracy: :func:`mean_accuracy` of the test samples.
        seeds: trainings that did not fail.
        chance: percent that a constant answer reaches.
    """

    dataset: str
    components: int | None
    model: str
    neuron: dict[str, Any]
    T: int
    accuracy: Estimate
    seeds: int
    chance: float

    @property
    def data(self) -> str:
        """The data set, with the dimension it was made with."""
        return _named(self.dataset, self.components)

    def label(self, varied: Sequence[str] = ()) -> str:
        """Network, data set and T in words, with the neuron parameters named."""
        return setting_label(self.model, self.data, self.T, {k: self.neuron[k] for k in varied})


@dataclass(frozen=True)
class StudyResult(Result):
    """A finished study.

    Attributes:
        name: of the study.
        path, outputs: its tables; ``outputs`` is ``None`` where no outputs were asked for.
        trials, failed: trainings, and those that diverged.
        chance: percent that a constant answer reaches, by data set (the most frequent class).
        table: the rows.
    """

    name: str
    path: Path
    outputs: Path | None
    trials: int
    failed: int
    chance: dict[str, float]
    _table: StudyTable[StudyRow] = field(repr=False)

    @property
    def table(self) -> StudyTable[StudyRow]:
        """The rows of :func:`~spikedim.training.study_table.read_study`."""
        return self._table

    @property
    def accuracies(self) -> tuple[StudySetting, ...]:
        """Test accuracy of every setting of which a training was finished."""
        groups: dict[tuple[Any, ...], list[StudyRow]] = {}
        for row in self._table:
            if row.eval_T == row.train_T and row.status == "done":
                neuron = tuple(getattr(row, name) for name in NEURON)
                place = (row.dataset, row.components, row.model, neuron, row.train_T)
                groups.setdefault(place, []).append(row)
        return tuple(
            StudySetting(
                dataset, components, model, dict(zip(NEURON, neuron, strict=True)), T,
                mean_accuracy(rows), len(rows), self.chance[_named(dataset, components)],
            )
            for (dataset, components, model, neuron, T), rows in groups.items()
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with :attr:`accuracies`."""
        return {**super().to_dict(), "accuracies": plain(self.accuracies)}

    def tables(self) -> list[Table]:
        """Test accuracy by data set, network, neurons and trained T, over the seeds."""
        settings = self.accuracies
        steps = sorted({s.T for s in settings})
        pairs = {(s.data, s.model) for s in settings}
        varied = [
            name
            for name in NEURON
            if len({(s.data, s.model, s.neuron[name]) for s in settings}) > len(pairs)
        ]
        groups: dict[tuple[Any, ...], dict[int, StudySetting]] = {}
        for s in settings:
            place = (s.data, s.model, *(s.neuron[name] for name in varied))
            groups.setdefault(place, {})[s.T] = s
        rows = []
        for place, by in groups.items():
            first = next(iter(by.values()))
            accuracies = (by[T].accuracy if T in by else None for T in steps)
            seeds = max(s.seeds for s in by.values())
            rows.append((*place, *accuracies, first.chance, seeds, first.accuracy.n))
        columns = (
            "data", "network", *varied, *(f"T={T}" for T in steps), "chance, %", "seeds",
            "test samples",
        )  # fmt: skip
        note = f"{self.trials} trainings, {self.failed} failed. Test accuracy at the trained T, "
        note += "mean over the seeds; chance: always answering the most frequent class. 95 % "
        note += "intervals: of one seed over test samples, of more over seeds and test samples."
        found = [(s.label(varied), s.accuracy, s.chance) for s in settings]
        return [Table(f"Study {self.name}", columns, rows, (*at_chance(found), note))]


def mean_accuracy(rows: Sequence[StudyRow]) -> Estimate:
    """Test accuracy in percent, mean over the seeds of one setting, tested on the same samples.

    Of one seed with Wilson's interval over test samples. Of more, Student's interval over the
    seeds is widened by it: distances of the bounds from the mean add in quadrature, as the noise
    of the seeds and that of the test set are independent. Wilson's takes every sample's outcome to
    be random, so that the sum is too wide rather than too narrow.
    """
    values = np.array([row.accuracy for row in rows])
    mean, n = float(values.mean()), rows[0].test_samples
    if len(rows) == 1:
        return share(mean / 100 * n, n)
    low, high = (100 * bound for bound in wilson_interval(mean / 100 * n, n))
    below, above = mean_interval(mean, float(values.std(ddof=1)), len(rows))
    low = mean - math.hypot(mean - low, mean - below)
    high = mean + math.hypot(high - mean, above - mean)
    method = "Wilson over test samples and Student over seeds"
    return Estimate(mean, low, high, n, "%", method=method).within(0, 100)


def run_study(study: Study, run: Run, engine: Engine | None = None) -> StudyResult:
    """Train and test the whole grid; write ``study.parquet`` and ``outputs.parquet``.

    Args:
        study: what to train.
        run: an entered run directory.
        engine: where trials run; one after the other in this process by default.

    Raises:
        ConfigError, DataError, ModelError: a network that does not fit its data, before training.
        StorageError: disk full, or the run directory holds another study.
        SpikedimError: a worker process was killed and not replaced.
    """
    return finish(study, run, measure_trials(study, run, study.trials(), engine))


def measure_trials(
    study: Study, run: Run, trials: Sequence[StudyTrial], engine: Engine | None = None
) -> list[Measurement]:
    """Measurements of ``trials``, in their order; those stored in ``run`` are read back.

    Raises:
        As :func:`run_study`.
    """
    engine = engine or Engine()
    work = study_work(study, run, engine)
    found: dict[StudyTrial, Measurement] = {}
    with progress.task(f"study {study.name}", len(trials)) as bar:
        for trial, measurement in results(work, list(dict.fromkeys(trials)), engine):
            found[trial] = measurement
            bar.advance(1, trial.label(study))
    return [found[trial] for trial in trials]


def study_work(study: Study, run: Run, engine: Engine) -> StudyWork:
    """The study checked and made ready to travel to workers."""
    for index, cell in enumerate(study.cells):
        check_trainable(cell.dataset, study.T, study.encoder)
        network_for(cell.model, cell.dataset, neuron=study.neuron(index, study.neurons[0]))
        for changes in study.neurons[1:]:
            check_neuron(cell.model, study.neuron(index, changes))
    parameters = max(parameter_count(cell.model) for cell in study.cells)
    return StudyWork(study, run, threads_for(parameters, engine.workers))


def finish(study: Study, run: Run, measurements: Iterable[Measurement]) -> StudyResult:
    """Write the tables of the measurements."""
    unique = {measurement.key: measurement for measurement in measurements}.values()
    rows, outputs = rows_of(unique)
    settings = study.settings()
    source = plain(provenance(config=settings)) | {
        "hardware": hardware(),
        "data_fingerprints": {k: v["fingerprint"] for k, v in settings["data"].items()},
        "test_note": "Intervals cover the finite test set, not training seeds.",
    }
    path = write_study(run.file(TABLE), rows, source, StudyRow)
    stored = write_study(run.file(OUTPUTS), outputs, source, OutputRow) if outputs else None
    failed = sum(row.status != "done" for row in rows)
    chance = {_variant(cell): 100 * majority(cell.dataset) for cell in study.cells}
    return StudyResult(study.name, path, stored, len(unique), failed, chance, read_study(path))


def merge_studies(
    paths: Sequence[str | Path], target: str | Path, *, outputs: bool = False
) -> Path:
    """One table of several studies, or of their ``outputs``; rows found twice stay once.

    The provenance of each is kept, in a list under ``merged``.

    Raises:
        DataError: a file is no such table.
        StorageError: ``target`` cannot be written.
    """

    def together(tables: Sequence[StudyTable[Row]], kind: type[Row]) -> Path:
        rows = {(row.key, row.eval_T): row for table in tables for row in table}
        source = {"merged": [table.provenance for table in tables]}
        return write_study(target, list(rows.values()), source, kind)

    if outputs:
        return together([read_outputs(path) for path in paths], OutputRow)
    return together([read_study(path) for path in paths], StudyRow)


def thinned(row: OutputRow, logit_samples: int) -> OutputRow:
    """The row with the logits of fewer samples; everything else is kept."""
    kept = min(logit_samples, row.logit_samples)
    width = len(row.logits_bytes) // max(1, row.logit_samples)
    return replace(row, logit_samples=kept, logits_bytes=row.logits_bytes[: kept * width])


def hardware() -> dict[str, Any]:
    """Processor and GPU of this machine, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    found = {"processor": name, "system": platform.system()}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
