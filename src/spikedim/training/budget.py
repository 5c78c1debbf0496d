"""Sensible settings per network size, and work that fits a CPU: counted, never clocked.

Budgets limit samples and epochs from shapes alone, so the same command does the same work on
every machine; :func:`predict_seconds` only tells the user how long that will take here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from spikedim.data import Dataset
from spikedim.errors import BudgetError
from spikedim.models import SpikingModel
from spikedim.training.batches import Batches, samples
from spikedim.training.config import Augment, TrainConfig, check_timesteps, resolve_device
from spikedim.training.network import check_reads, network_for
from spikedim.training.threads import SMALL_PARAMETERS, math_threads, parameter_count, threads_for

#: Forward multiply-accumulates of a default CPU sweep: under ten minutes on two idle cores.
CPU_MACS = 3e12
_NANO_PARAMETERS = 25_000
_LEAST_EPOCHS = 8
_LEAST_PER_CLASS = 5
_TIMED_SAMPLES = 32


class Budgeted(NamedTuple):
    """Data and configuration cut to a budget; ``note`` says what was cut, empty if nothing."""

    dataset: Dataset
    config: TrainConfig
    note: str


def default_config(
    model_name: str, dataset: Dataset, *, seed: int = 0, device: str = "cpu"
) -> TrainConfig:
    """Settings that suit the size of the network.

    Networks under one million parameters train in few epochs at a high rate that falls with the
    square root of their size (measured on the digits sample: 20 epochs of ``spikformer_nano``
    reach 98 % at T=2); larger ones take the published CIFAR recipe of Spikformer without its
    RandAugment and mixup (AdamW 5e-4, decay 0.06, batch 128, 300 epochs, 20 of warm-up), and stop
    after 100 epochs without progress: the cosine makes slow progress half-way, where the noise of
    the held-out accuracy hides it for tens of epochs, so less patience would end sound trainings.
    Recordings, T frames each, go in batches of 16, as the published networks of event data do.

    Raises:
        ModelError: unknown model.
        DataError: the network reads another kind of data.
        DeviceError: the device does not exist here.
    """
    parameters = parameter_count(model_name)
    check_reads(model_name, dataset)
    augment = _augment(dataset)
    if parameters < SMALL_PARAMETERS:
        lr = min(1e-2, round(1e-2 * math.sqrt(_NANO_PARAMETERS / parameters), 4))
        return TrainConfig(epochs=20, lr=lr, augment=augment, seed=seed, device=device)
    return TrainConfig(
        epochs=300,
        batch_size=16 if dataset.kind == "events" else 128,
        lr=5e-4,
        weight_decay=0.06,
        warmup_epochs=20,
        patience=100,
        augment=augment,
        seed=seed,
        device=device,
    )


def budget(
    dataset: Dataset,
    config: TrainConfig,
    model_name: str,
    T_values: Sequence[int],
    *,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    max_macs: float = CPU_MACS,
    least_epochs: int = _LEAST_EPOCHS,
) -> Budgeted:
    """Cut epochs, then samples, until all trainings together fit ``max_macs``.

    ``work = epochs · train samples · ΣT · MACs per sample and step`` (forward only). Epochs go
    down to ``least_epochs`` first, because new samples teach more than repeated ones.

    Args:
        dataset: images, event recordings or texts with a train split.
        config: the training wanted.
        model_name: see :func:`spikedim.models.list_models`.
        T_values: every T that will be trained.
        max_train_samples, max_test_samples: further limits; ``None`` does not limit.
        max_macs: budget of forward multiply-accumulates; infinite does not limit.
        least_epochs: epochs that are not cut below, as far as there are that many.

    Raises:
        BudgetError: not even ``least_epochs`` over 5 samples per class fit.
    """
    model = network_for(model_name, dataset)
    macs = sum(model.macs_per_step())
    steps = sum(check_timesteps(T) for T in T_values)
    per_epoch_sample = macs * steps
    available = min(len(dataset.train), max_train_samples or len(dataset.train))
    least = min(_LEAST_PER_CLASS * dataset.num_classes, available)
    epochs = config.epochs
    if epochs * available * per_epoch_sample > max_macs:
        epochs = min(epochs, max(least_epochs, int(max_macs / (available * per_epoch_sample))))
    train = int(min(available, max_macs / (epochs * per_epoch_sample)))
    if train < least:
        work = epochs * least * per_epoch_sample
        raise BudgetError(
            f"{model_name} on {dataset.name} at T={list(T_values)} needs {work:.2g} "
            f"multiply-accumulates for {epochs} epochs over {least} samples, more than the budget "
            f"of {max_macs:.2g}; use a smaller model, fewer T or a larger budget"
        )
    train = _rounded(train, available)
    test = 0 if dataset.test is None else len(dataset.test)
    kept = min(test, max_test_samples or test)
    cuts = [
        f"{new:,} of {old:,} {what}"
        for new, old, what in (
            (train, len(dataset.train), "training samples"),
            (kept, test, "test samples"),
            (epochs, config.epochs, "epochs"),
        )
        if new < old
    ]
    note = f"Budget: {', '.join(cuts)}." if cuts else ""
    smaller = dataset.limited(train, kept or None, config.seed) if cuts else dataset
    return Budgeted(smaller, replace(config, epochs=epochs), note)


def predict_seconds(
    model: SpikingModel,
    dataset: Dataset,
    T_values: Sequence[int],
    config: TrainConfig,
    *,
    workers: int = 1,
) -> float:
    """Expected training time, one after the other, from one timed step on a copy of ``model``.

    For a message before work starts, never for a decision: it differs from run to run. Timed with
    the math threads each training gets when ``workers`` run at once.
    """
    device = resolve_device(config.device)
    steps = max(T_values)
    few = samples(dataset, "train", steps, limit=_TIMED_SAMPLES)
    x, y = (value.to(device) for value in next(iter(Batches(*few, _TIMED_SAMPLES, steps))))
    trial = copy.deepcopy(model).to(device).train()
    threads = threads_for(sum(p.numel() for p in model.parameters()), workers)

    def step() -> None:
        F.cross_entropy(trial(x, steps), y).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.random.fork_rng(devices=[]), math_threads(threads):
        step()
        started = time.perf_counter()
        step()
        elapsed = time.perf_counter() - started
    per_sample_step = elapsed / (len(y) * steps)
    total = sum(T_values)
    return per_sample_step * len(dataset.train) * config.epochs * total


def _augment(dataset: Dataset) -> Augment:
    if dataset.kind == "text":
        return "none"
    channels, height, width = dataset.input_shape
    if min(height, width) < 16:
        return "none"
    # a mirrored recording moves the other way, which may be another class
    return "shift+flip" if channels == 3 and dataset.kind == "image" else "shift"


def _rounded(count: int, everything: int) -> int:
    """``count`` down to two significant digits, unless it is everything."""
    if count >= everything or count < 100:
        return count
    unit = 10 ** (len(str(count)) - 2)
    return count // unit * unit
