"""What the training verbs share: data, training settings and the run directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spikedim import progress
from spikedim.adapters.files import fingerprint
from spikedim.cli.network import tell_words, tested
from spikedim.data import Dataset, load_dataset
from spikedim.data.reduce import downsampled, first_classes, repooled
from spikedim.errors import ConfigError
from spikedim.models import SpikingModel
from spikedim.models.registry import is_file
from spikedim.storage import Run
from spikedim.training import (
    TrainConfig,
    budget,
    default_config,
    default_workers,
    predict_seconds,
    resolve_device,
)
from spikedim.training.budget import CPU_MACS
from spikedim.training.network import network_for

RUNS = Path("runs")


@dataclass(frozen=True)
class Job:
    """A data set and the part of it that the budget allows, the model's name, how it is trained."""

    everything: Dataset
    dataset: Dataset
    model: str
    config: TrainConfig

    @property
    def workers(self) -> int:
        """Trainings to run at once unless the user says otherwise."""
        return default_workers(self.config)

    def network(self) -> SpikingModel:
        """The untrained network, shaped for the data."""
        return network_for(self.model, self.dataset, seed=self.config.seed)

    def announce(self, timesteps: Sequence[int], workers: int, then: str = "") -> None:
        """Say how long training at every one of ``timesteps`` will take here, and what follows."""
        seconds = predict_seconds(
            self.network(), self.dataset, timesteps, self.config, workers=workers
        )
        # Trainings run side by side, but none is split.
        longest = max(timesteps) / sum(timesteps)
        minutes = seconds * max(longest, 1 / workers) / 60
        progress.note(
            f"Training {self.model} on {self.dataset.name} at T = "
            f"{', '.join(map(str, timesteps))}: "
            f"{f'about {minutes:.0f} min' if minutes >= 1 else 'under a minute'} here{then}."
        )

    def run(self, verb: str, settings: Mapping[str, Any], out: Path | None) -> Run:
        """The run directory of this job: ``out``, or one named after everything that matters."""
        resolved = {
            "command": verb,
            "data": self.everything.name,
            "data_fingerprint": self.everything.fingerprint,
            "train_samples": len(self.dataset.train),
            "test_samples": 0 if self.dataset.test is None else len(self.dataset.test),
            "model": self.model,
            **({"model_file": fingerprint(self.model)} if is_file(self.model) else {}),
            "training": asdict(self.config),
            **settings,
        }
        if out is not None:
            return Run(out, resolved)
        name = Path(self.model).name.replace(":", "-")
        return Run.named(RUNS, f"{verb}-{self.dataset.name}-{name}", resolved)


def prepare(
    data: str,
    data_root: Path | None,
    model: str,
    timesteps: Sequence[int],
    epochs: int | None,
    train_samples: int | None,
    test_samples: int | None,
    seed: int,
    device: str,
) -> Job:
    """Load the data, then :func:`fitted`."""
    dataset = load(data, data_root, seed)
    return fitted(dataset, model, timesteps, epochs, train_samples, test_samples, seed, device)


def load(
    data: str,
    data_root: Path | None,
    seed: int,
    image_size: int | None = None,
    classes: int | None = None,
    repool: int | None = None,
) -> Dataset:
    """The data set with a test split, at ``image_size`` and with its first ``classes``.

    ``repool`` pools the splits and cuts so many test samples anew.
    """
    dataset = load_dataset(data, data_root)
    if classes is not None:
        dataset = first_classes(dataset, min(classes, dataset.num_classes))
    if repool is not None:
        dataset = repooled(dataset, repool, seed)
    dataset = tested(dataset, seed)
    return dataset if image_size is None else downsampled(dataset, image_size)


def fitted(
    dataset: Dataset,
    model: str,
    timesteps: Sequence[int],
    epochs: int | None,
    train_samples: int | None,
    test_samples: int | None,
    seed: int,
    device: str,
    changes: Mapping[str, Any] | None = None,
) -> Job:
    """Resolve the training settings and cut them and the data to the budget.

    Without ``epochs`` and ``train_samples`` the work is cut to a default budget that is counted,
    not clocked, so that the same command does the same work everywhere; on a GPU, and with
    ``train_samples`` 0, everything is used. ``changes`` replaces fields of the training settings.
    """
    for option, value in (("--train-samples", train_samples), ("--test-samples", test_samples)):
        if value is not None and value < 0:
            raise ConfigError(f"{option} {value} must be 0 (all samples) or a positive number")
    dataset.labels_of(dataset.train)
    tell_words(dataset)
    config = default_config(model, dataset, seed=seed, device=device)
    config = replace(config, **(changes or {}))
    if epochs is not None:
        config = replace(config, epochs=epochs)
    free = train_samples == 0 or resolve_device(device).type != "cpu"
    part, config, note = budget(
        dataset,
        config,
        model,
        timesteps,
        max_train_samples=train_samples or None,
        max_test_samples=test_samples or None,
        max_macs=math.inf if free else CPU_MACS,
        **({} if epochs is None else {"least_epochs": epochs}),
    )
    if note:
        progress.note(f"{note} (change it with --epochs and --train-samples, 0 for all samples)")
    return Job(dataset, part, model, config)
