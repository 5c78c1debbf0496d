"""One cell of a sweep: train, test at every prefix of T, store. Finished cells are read back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spikedim.data import Dataset
from spikedim.models import model_entry
from spikedim.neurons import LIFParams
from spikedim.provenance import Provenance
from spikedim.results import Estimate, plain
from spikedim.storage import Run, digest
from spikedim.training.batches import samples
from spikedim.training.config import TrainConfig
from spikedim.training.evaluation import evaluate
from spikedim.training.fit import decisive_versions, fit, stored_provenance
from spikedim.training.network import network_for


@dataclass(frozen=True)
class Trial:
    """A trained and tested network; per-prefix lists run over t = 1..T, or further if asked.

    Attributes:
        T, seed, encoder, neuron: what was trained (``neuron`` as the network really used it,
            ``None`` where its neurons are kept as they are).
        correct: 0/1 [t, samples] after each number of steps.
        accuracy, spikes_per_sample, firing_rate: per prefix.
        held_out: accuracy on the samples held out of training; ``None`` without.
        epochs, best_epoch, train_seconds: of the training.
        weights: path relative to the run directory.
        provenance: versions, machine, threads, configuration and data of the training.
    """

    T: int
    seed: int
    encoder: str
    neuron: dict[str, Any] | None
    correct: np.ndarray
    accuracy: tuple[Estimate, ...]
    spikes_per_sample: tuple[Estimate, ...]
    firing_rate: tuple[Estimate, ...]
    held_out: Estimate | None
    epochs: int
    best_epoch: int
    train_seconds: float
    weights: str
    provenance: Provenance


def trial_key(
    dataset: Dataset,
    model_name: str,
    T: int,
    config: TrainConfig,
    neuron: LIFParams | None = None,
    encoder: str = "direct",
) -> str:
    """The step of a run that holds the trial: the same for the same training and versions."""
    neuron = _neuron(model_name, neuron)
    what = [model_name, T, config, neuron, encoder, dataset.fingerprint, decisive_versions()]
    key = f"{model_name}-T{T}-{digest([repr(item) for item in what])}"
    return re.sub(r"[^\w.-]", "_", key)


def _neuron(model_name: str, neuron: LIFParams | None) -> LIFParams | None:
    return model_entry(model_name).config.neuron if neuron is None else neuron


def run_trial(
    dataset: Dataset,
    model_name: str,
    T: int,
    config: TrainConfig,
    run: Run,
    neuron: LIFParams | None = None,
    encoder: str = "direct",
    test_T: int | None = None,
) -> Trial:
    """Train ``model_name`` at T and test it, once: the outcome is a step of ``run``.

    Another version of spikedim or torch is another step, and trains anew. ``test_T`` tests longer
    than T steps (or shorter); the training is the same and is not repeated for another ``test_T``.

    Raises:
        DataError, ModelError, StorageError: as :func:`spikedim.training.fit`.
    """
    key = trial_key(dataset, model_name, T, config, neuron, encoder)
    steps = T if test_T is None else test_T
    step = key if steps == T else f"{key}-t{steps}"

    def compute() -> dict[str, Any]:
        model = network_for(
            model_name, dataset, neuron=_neuron(model_name, neuron), seed=config.seed
        )
        folder = run.file("trials", key, "fit.json").parent
        result = fit(model, dataset, config, T, folder, encoder, f"train {model_name} T={T}")
        x, y = samples(dataset, "test", steps, encoder)
        test = evaluate(model, x, y, steps, encoder=encoder, seed=config.seed, device=config.device)
        return {
            "T": T,
            "seed": config.seed,
            "encoder": encoder,
            "neuron": model.config.neuron,
            "correct": ["".join(map(str, test.correct(t + 1))) for t in range(steps)],
            "accuracy": test.accuracy,
            "spikes_per_sample": test.spikes_per_sample,
            "firing_rate": test.firing_rate,
            "held_out": result.accuracy,
            "epochs": len(result.history),
            "best_epoch": result.best_epoch,
            "train_seconds": result.train_seconds,
            "weights": str(result.weights.relative_to(run.path)),
            "provenance": replace(
                result.provenance, config=result.provenance.config | {"model": model_name}
            ),
        }

    return _read(run.step(step, compute))


def _read(stored: dict[str, Any]) -> Trial:
    lists = {
        name: tuple(Estimate(**row) for row in stored[name])
        for name in ("accuracy", "spikes_per_sample", "firing_rate")
    }
    correct = np.array([[int(c) for c in row] for row in stored["correct"]], dtype=np.uint8)
    held_out = Estimate(**stored["held_out"]) if stored["held_out"] is not None else None
    source = stored_provenance(stored["provenance"])
    values = {"correct": correct, "held_out": held_out, "provenance": source}
    return Trial(**{**stored, **lists, **values})


def sweep_provenance(
    trials: Sequence[Trial], config: dict[str, Any], notes: tuple[str, ...] = ()
) -> Provenance:
    """Provenance of a sweep: that of its newest training, with ``config`` replacing its own."""
    newest = max((trial.provenance for trial in trials), key=lambda source: source.created)
    return replace(newest, config=newest.config | plain(config), notes=notes)
