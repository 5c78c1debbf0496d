"""Sweeps as one tidy Parquet table: a row per trained network and tested number of timesteps."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikedim.data import Dataset
from spikedim.results import plain
from spikedim.storage import write_bytes
from spikedim.training.batches import why_no_prefix
from spikedim.training.trial import Trial


def write_parquet(path: Path, trials: Sequence[Trial], dataset: Dataset, model_name: str) -> Path:
    """Write one row per (trial, t) atomically, every row with the provenance of its training.

    Fewer steps than the trained T are those of its run's beginning; there are none where that is no
    shorter run.

    Columns: what was run (dataset, fingerprint, model, encoder, seed, neuron parameters,
    ``trained_T``, ``T``), what came out (accuracy in percent with bounds, ``correct`` per test
    sample, spikes, rate, cost) and where it came from (config and versions as JSON, device, time).

    Raises:
        StorageError: the disk is full or the place is not writable.
    """
    import pyarrow as pa
    from pyarrow import parquet

    shared = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train_samples": len(dataset.train),
        "model": model_name,
    }
    rows = [
        shared | _row(trial, t)
        for trial in trials
        for t in range(trial.T if why_no_prefix(dataset, trial.encoder) else 1, trial.T + 1)
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return write_bytes(path, buffer.getvalue())


def _row(trial: Trial, t: int) -> dict[str, Any]:
    accuracy = trial.accuracy[t - 1]
    spikes = trial.spikes_per_sample[t - 1]
    source = trial.provenance
    neuron = trial.neuron or {}
    return {
        "encoder": trial.encoder,
        "seed": trial.seed,
        "threshold": neuron.get("threshold"),
        "beta": neuron.get("beta"),
        "refractory": neuron.get("refractory"),
        "neuron": json.dumps(plain(trial.neuron), sort_keys=True),
        "trained_T": trial.T,
        "T": t,
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "test_samples": accuracy.n,
        "spikes_per_sample": spikes.value,
        "spikes_low": spikes.low,
        "spikes_high": spikes.high,
        "firing_rate": trial.firing_rate[t - 1].value,
        "held_out_accuracy": trial.held_out.value if trial.held_out else None,
        "epochs": trial.epochs,
        "best_epoch": trial.best_epoch,
        "train_seconds": trial.train_seconds,
        "weights": trial.weights,
        "correct": trial.correct[t - 1].tobytes(),
        "config": json.dumps(source.config, sort_keys=True),
        "versions": json.dumps(source.versions, sort_keys=True),
        "platform": source.platform,
        "device": source.device,
        "command": source.command,
        "created": source.created,
    }
