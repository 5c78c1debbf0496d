"""Train one network at one T, resumably."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikedim import progress
from spikedim.data import Dataset
from spikedim.errors import CheckpointError, ConfigError, DataError, StorageError
from spikedim.models import SpikingModel, load_checkpoint, save_checkpoint
from spikedim.neurons import LIF
from spikedim.provenance import Provenance, provenance, versions
from spikedim.results import Estimate, Result, Table, number, plain
from spikedim.storage import digest, read_json, write_json
from spikedim.theory.statistics import share
from spikedim.training.batches import Batches, forward_batch, held_out, samples
from spikedim.training.chance import at_chance
from spikedim.training.config import TrainConfig, check_timesteps
from spikedim.training.network import reading_of
from spikedim.training.threads import math_threads, threads_for

_RECORDED = {"digest", "history", "best_epoch", "provenance"}


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training part. Accuracies in percent; held-out ones may be absent."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    val_samples: int
    seconds: float


@dataclass(frozen=True)
class FitResult(Result):
    """A finished training.

    Attributes:
        T, encoder, config: what was trained.
        history: one record per epoch.
        best_epoch: epoch (from 1) whose weights were kept.
        accuracy: held-out accuracy of the kept weights in percent, Wilson interval; ``None``
            without held-out samples. Optimistic, since it chose the epoch: test separately.
        chance: percent of the held-out samples that a constant answer gets right.
        train_seconds: time spent in epochs, earlier interrupted processes included.
        stopped_early: whether patience ran out before the last epoch.
        weights: the kept weights (safetensors).
        provenance: versions, machine, threads, configuration and data of the training.
    """

    T: int
    encoder: str
    config: TrainConfig
    history: tuple[EpochRecord, ...]
    best_epoch: int
    accuracy: Estimate | None
    chance: float | None
    train_seconds: float
    stopped_early: bool
    weights: Path
    provenance: Provenance = field(repr=False)

    def tables(self) -> list[Table]:
        """Summary, then one row per epoch."""
        summary = [
            ("timesteps T", self.T),
            ("epochs", len(self.history)),
            ("kept epoch", self.best_epoch),
            ("held-out accuracy", self.accuracy),
            ("chance on its samples", None if self.chance is None else f"{number(self.chance)} %"),
            ("training time (s)", self.train_seconds),
            ("weights", str(self.weights)),
        ]
        rows = [
            (r.epoch, r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy, r.seconds)
            for r in self.history
        ]
        columns = ("epoch", "loss", "accuracy %", "held-out loss", "held-out accuracy %", "s")
        notes: tuple[str, ...] = ("No samples were held out.",)
        if self.accuracy is not None and self.chance is not None:
            notes = (
                *at_chance([("held-out accuracy", self.accuracy, self.chance)], "held-out"),
                f"Held-out accuracy is of {self.accuracy.n:,} training samples, with Wilson's 95 % "
                "interval over them. They chose the epoch, so it looks better than it is; the test "
                "split was not used. Chance: always answering their most frequent class.",
            )
        training = Table("Training", ("what", "value"), summary, notes)
        return [training, Table("Epochs", columns, rows)]


def fit(
    model: SpikingModel,
    dataset: Dataset,
    config: TrainConfig,
    T: int,
    directory: str | Path,
    encoder: str = "direct",
    label: str = "",
) -> FitResult:
    """Train ``model`` in place and leave it with the best held-out weights, in evaluation mode.

    AdamW on the cross-entropy of the mean logits over T steps, linear warm-up and cosine decay.
    After every epoch ``directory/last.ckpt`` is replaced atomically. Calling again with the same
    arguments (same initial weights) continues after the last saved epoch, and on the CPU with the
    same number of threads reaches the same weights bit for bit; a finished training is read back,
    and lost or damaged weights are restored from ``last.ckpt``, which holds them too. A network
    under one million parameters trains on one thread, a larger one on those torch is set to.

    Args:
        model: the initial network.
        dataset: images, event recordings or texts with a labelled train split; the test split is
            not touched.
        config: how to train.
        T: timesteps.
        directory: of this training alone; created when missing.
        encoder: as for :func:`spikedim.training.samples`.
        label: what the progress bar says.

    Raises:
        ConfigError: T < 1 or an unknown encoder.
        DataError: no labels, labels beyond the network's classes, NaN, or too few samples.
        ModelError: the loss became NaN or infinite.
        CheckpointError: an existing checkpoint is unreadable.
        StorageError: disk full, not writable, or ``directory`` holds another training or one of
            other versions of spikedim or torch.
    """
    check_timesteps(T)
    directory = Path(directory)
    x, y = samples(dataset, "train", T, encoder)
    _check_fits(model, dataset, x, y)
    identity = _identity(model, dataset, config, T, encoder)
    record = directory / "fit.json"
    stored = read_json(record) if record.exists() else None
    _check_same(directory, stored, identity)

    kept, out = held_out(y, config.validation, config.seed)
    best = directory / "best.safetensors"
    if stored is None or not _loaded(model, best, stored):
        from spikedim.training import lightning_run

        train = Batches(
            x[kept], y[kept], config.batch_size, T, encoder, config.seed,
            shuffle=True, augment=config.augment,
        )  # fmt: skip
        validation = Batches(
            x[out], y[out], forward_batch(x, 4 * config.batch_size), T, encoder, config.seed
        )
        threads = threads_for(sum(p.numel() for p in model.parameters()))
        with math_threads(min(threads, torch.get_num_threads())):
            keeper = lightning_run.run(
                model,
                train,
                validation if len(out) else None,
                config,
                directory,
                identity,
                label or f"train T={T}",
            )
            source = provenance(
                seed=config.seed,
                config=asdict(config)
                | {"T": T, "encoder": encoder, "threads": torch.get_num_threads()},
                data_fingerprint=dataset.fingerprint,
                device=config.device,
            )
        model.load_state_dict(keeper.best)
        save_checkpoint(model, best, reading_of(dataset))
        stored = {
            "digest": identity,
            "history": keeper.history,
            "best_epoch": keeper.best_epoch,
            "weights": _weights_digest(model),
            "provenance": plain(source),
        }
        write_json(record, stored)
    else:
        progress.note(f"{directory}: this training is finished already; its weights are read back")
    model.eval()
    chance = 100 * float(y[out].bincount().max()) / len(out) if len(out) else None
    return _result(stored, T, encoder, config, best, chance)


def load_trained(model: SpikingModel, weights: Path, dataset: Dataset) -> None:
    """Load the kept weights of a finished :func:`fit` on ``dataset``.

    Lost or damaged ones are restored from ``last.ckpt`` beside them.

    Raises:
        CheckpointError: ``last.ckpt`` is lost or damaged too.
    """
    record = weights.with_name("fit.json")
    if _loaded(model, weights, read_json(record) if record.exists() else {}):
        return
    from spikedim.training.lightning_run import read_checkpoint

    try:
        best = read_checkpoint(weights.with_name("last.ckpt"))["callbacks"]["Keeper"]["best"]
    except (CheckpointError, KeyError) as error:
        folder = weights.parent
        raise CheckpointError(
            f"{weights} and last.ckpt beside it are lost or damaged; remove {folder} and "
            f"{folder.parents[1] / 'steps' / folder.name}*.json to train it again"
        ) from error
    model.load_state_dict(best)
    save_checkpoint(model, weights, reading_of(dataset))


def _loaded(model: SpikingModel, weights: Path, stored: dict[str, Any]) -> bool:
    """Whether ``weights`` were read into ``model``, which is untouched if they are not the kept."""
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_checkpoint(model, weights)
    except CheckpointError:
        return False
    if stored.get("weights") in (None, _weights_digest(model)):  # older records have none
        return True
    model.load_state_dict(initial)
    return False


def _weights_digest(model: SpikingModel) -> str:
    """SHA-256 of names and values: bytes of a file would differ by the order of its header."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return weights.hexdigest()


def _result(
    stored: dict[str, Any],
    T: int,
    encoder: str,
    config: TrainConfig,
    weights: Path,
    chance: float | None,
) -> FitResult:
    history = tuple(EpochRecord(**row) for row in stored["history"])
    best = history[stored["best_epoch"] - 1]
    accuracy = None
    if best.val_accuracy is not None:
        n = best.val_samples
        accuracy = share(round(best.val_accuracy * n / 100), n)
    return FitResult(
        T=T,
        encoder=encoder,
        config=config,
        history=history,
        best_epoch=best.epoch,
        accuracy=accuracy,
        chance=chance,
        train_seconds=sum(row.seconds for row in history),
        stopped_early=len(history) < config.epochs,
        weights=weights,
        provenance=stored_provenance(stored["provenance"]),
    )


def stored_provenance(data: dict[str, Any]) -> Provenance:
    """Provenance read back from plain data."""
    return Provenance(**{**data, "notes": tuple(data["notes"])})


def decisive_versions() -> dict[str, str]:
    """Versions whose change makes another training of the same settings."""
    found = versions()
    return {name: found.get(name, "unknown") for name in ("spikedim", "torch")}


def _identity(
    model: SpikingModel, dataset: Dataset, config: TrainConfig, T: int, encoder: str
) -> str:
    """Digest of everything that determines the trained weights, initial weights included."""
    neurons = [repr(m.params) for m in model.modules() if isinstance(m, LIF)]
    what = [asdict(config), T, encoder, dataset.fingerprint, _weights_digest(model), neurons]
    return digest([*what, decisive_versions()], 16)


def _check_same(directory: Path, stored: dict[str, Any] | None, identity: str) -> None:
    if stored is not None and not (isinstance(stored, dict) and stored.keys() >= _RECORDED):
        raise StorageError(
            f"{directory / 'fit.json'} is no record of a training; remove it and run again"
        )
    found = stored["digest"] if stored is not None else None
    checkpoint = directory / "last.ckpt"
    if found is None and checkpoint.exists():
        from spikedim.training.lightning_run import read_checkpoint

        found = read_checkpoint(checkpoint).get("spikedim_digest")
    elif found is None:
        return
    if found != identity:
        raise StorageError(
            f"{directory} holds a training with other settings, data, initial weights or versions "
            "of spikedim and torch; choose another directory or remove it"
        )


def _check_fits(model: SpikingModel, dataset: Dataset, x: torch.Tensor, y: torch.Tensor) -> None:
    frame = tuple(x.shape[-len(model.input_shape) :])
    if frame != tuple(model.input_shape):
        raise DataError(
            f"{dataset.name} has inputs of shape {frame} but the network takes "
            f"{tuple(model.input_shape)}; create the model with input_shape={frame}"
        )
    highest = int(y.max())
    if int(y.min()) < 0 or highest >= model.num_classes:
        raise DataError(
            f"{dataset.name} has labels {int(y.min())}..{highest} but the network has "
            f"{model.num_classes} classes; create the model with num_classes={highest + 1}"
        )
    if not np.isfinite(float(x.sum())):
        raise DataError(f"{dataset.name} has NaN or infinite values in its train split")
    if len(x) < 2:
        raise ConfigError(f"{dataset.name} has {len(x)} training samples; at least 2 are needed")
