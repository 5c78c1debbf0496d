"""Does the effective dimension of the data change T*? The same network on inputs that differ in it.

Two families of tasks, in each of which everything but the dimension stays the same: network,
recipe, number of samples and classes, total variance of the inputs.

*Truncated digits.* Real images projected on their first k principal components. The dimension is
what the published rule measures; the accuracy that can be reached falls with it.

*Synthetic.* Ten Gaussian classes in a k-dimensional subspace of pixel space, with the noise set so
that the best classifier is right on 95 % of samples whatever k: dimension alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spikedim import progress
from spikedim.data import Dataset, load_dataset
from spikedim.data.build import make_dataset
from spikedim.data.reduce import repooled
from spikedim.dimension import measure
from spikedim.errors import ConfigError
from spikedim.provenance import provenance
from spikedim.results import plain
from spikedim.storage import Run
from spikedim.training import TrainConfig, Trial, default_config, run_trial
from spikedim.training.study_table import StudyRow, write_study

NAME = "dimension"
COMPONENTS = (2, 5, 10, None)
INTRINSIC = (2, 4, 8, 16)
TIMESTEPS = (1, 2, 4)
SEEDS = (0, 1)
BAYES = 0.95
CLASSES = 10
_SIDE = 8
_SMOOTH = 32
_PROBE = 20_000


def truncated(dataset: Dataset, k: int | None) -> Dataset:
    """Images projected on the first ``k`` principal components of the training split.

    ``x -> m + V_k V_kᵀ (x − m)``; ``None`` keeps all components.

    Raises:
        ConfigError: fewer than one component, or more than there are pixels.
        DataError: not images, or no test split.
    """
    if k is None:
        return dataset
    train = dataset.features("train").astype(np.float64)
    if not 1 <= k <= min(train.shape):
        raise ConfigError(f"components={k} must lie between 1 and {min(train.shape)}")
    mean = train.mean(axis=0)
    basis = np.linalg.svd(train - mean, full_matrices=False)[2][:k]

    def project(split: str) -> tuple[np.ndarray, np.ndarray | None]:
        flat = (dataset.features(split) - mean) @ basis.T @ basis + mean
        images = flat.astype(np.float32).reshape(-1, *dataset.input_shape)
        return images.transpose(0, 2, 3, 1), dataset.split(split).labels

    return make_dataset(
        dataset.name,
        project("train"),
        project("test"),
        class_names=dataset.class_names,
        source=f"{dataset.source}; first {k} principal components",
    )


def synthetic(k: int, train: int = 1000, test: int = 1000, seed: int = 0) -> Dataset:
    """Ten Gaussian classes of intrinsic dimension ``k`` with the same best possible accuracy.

    ``x = A(μ_y + σ·n)`` with μ_y on the unit sphere of R^k, n standard normal in R^k, A a random
    orthonormal map into the 32 smoothest of the 64 two-dimensional cosines on the pixels (a
    convolutional stem cannot read white noise), and σ such that the nearest mean is right on 95 %
    of samples.

    Raises:
        ConfigError: k outside 2..32.
    """
    if not 2 <= k <= _SMOOTH:
        raise ConfigError(f"intrinsic dimension {k} must lie between 2 and {_SMOOTH}")
    rng = np.random.default_rng([seed, k])
    means = rng.standard_normal((CLASSES, k))
    if k == 2:  # random directions on a circle nearly coincide: spread them evenly
        angles = 2 * np.pi * np.arange(CLASSES) / CLASSES
        means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    embed = np.linalg.qr(rng.standard_normal((_SMOOTH, k)))[0].T @ _cosines()
    sigma = _noise(means, rng)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % CLASSES
        points = means[labels] + sigma * rng.standard_normal((n, k))
        return (points @ embed).astype(np.float32).reshape(n, _SIDE, _SIDE), labels

    source = f"ten Gaussian classes in {k} dimensions, seed {seed}"
    return make_dataset(f"gaussian-{k}d", draw(train), draw(test), source=source)


def _cosines() -> np.ndarray:
    """The smoothest orthonormal cosines of an 8 x 8 image, [32, 64], by frequency."""
    from scipy.fft import dct

    line = dct(np.eye(_SIDE), axis=0, norm="ortho")
    grid = np.einsum("ay,bx->abyx", line, line).reshape(_SIDE**2, _SIDE**2)
    order = np.argsort(
        np.add.outer(np.arange(_SIDE) ** 2, np.arange(_SIDE) ** 2).ravel(), kind="stable"
    )
    smooth: np.ndarray = grid[order[:_SMOOTH]]
    return smooth


def _noise(means: np.ndarray, rng: np.random.Generator) -> float:
    """σ at which the nearest mean is right on a share BAYES of samples, by bisection."""
    labels = np.arange(_PROBE) % len(means)
    noise = rng.standard_normal((_PROBE, means.shape[1]))
    low, high = 0.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        points = means[labels] + middle * noise
        scores = points @ means.T - 0.5 * (means**2).sum(axis=1)
        right = float((scores.argmax(axis=1) == labels).mean())
        low, high = (middle, high) if right > BAYES else (low, middle)
    return (low + high) / 2


def settings() -> dict[str, Any]:
    """What the default study trains; identifies its run directory."""
    return {
        "study": NAME,
        "components": list(COMPONENTS),
        "intrinsic": list(INTRINSIC),
        "timesteps": list(TIMESTEPS),
        "seeds": list(SEEDS),
    }


def run_dimension_study(
    run: Run,
    *,
    model: str = "spikformer_nano",
    components: Sequence[int | None] = COMPONENTS,
    intrinsic: Sequence[int] = INTRINSIC,
    timesteps: Sequence[int] = TIMESTEPS,
    seeds: Sequence[int] = SEEDS,
    samples: int = 1000,
    config: TrainConfig | None = None,
) -> list[StudyRow]:
    """Train one network per task, T and seed; write ``study.parquet`` into the run directory.

    Finished trainings are kept in the run directory and never repeated.

    Args:
        run: an entered run directory.
        model: the network.
        components: principal components of the digits; ``None`` for all.
        intrinsic: dimensions of the synthetic tasks.
        timesteps: T to train at.
        seeds: of weights and data order.
        samples: training samples of every task.
        config: how to train; 8 epochs of the network's recipe by default.

    Raises:
        ConfigError, DataError, ModelError, StorageError: as the training.
    """
    digits = _digits(samples)
    tasks = [(truncated(digits, k), k) for k in components]
    tasks += [(synthetic(k, samples), k) for k in intrinsic]
    base = config or default_config(model, digits)
    if config is None:
        base = replace(base, epochs=8, batch_size=32, validation=0.0)
    rows = []
    cells = [(task, seed, T) for seed in seeds for task in tasks for T in timesteps]
    with progress.task("dimension study", len(cells)) as bar:
        for (data, k), seed, T in cells:
            trial = run_trial(data, model, T, replace(base, seed=seed), run)
            rows += _rows(trial, data, k, model, base)
            bar.advance(1, f"{data.name} k={k} T={T} seed={seed}")
    settings = {"model": model, "training": plain(base), "bayes": BAYES, "samples": samples}
    source = provenance(seed=None, config=settings, data_fingerprint=digits.fingerprint)
    write_study(run.file("study.parquet"), rows, plain(source), StudyRow)
    return rows


def _digits(samples: int) -> Dataset:
    """The built-in digits with ``samples`` for training and all the others for the test."""
    data = load_dataset("digits")
    return repooled(data, len(data.train) + len(data.split("test")) - samples)


def _rows(
    trial: Trial, data: Dataset, k: int | None, model: str, config: TrainConfig
) -> list[StudyRow]:
    found = measure(data.features("train"), ["pca95", "pr"], interval="none").estimates
    common: dict[str, Any] = {
        "study": NAME,
        "dataset": data.name,
        "model": model,
        "parameters": _parameters(model, data),
        "train_T": trial.T,
        "seed": trial.seed,
        "beta": trial.neuron["beta"],
        "v_th": trial.neuron["threshold"],
        "t_ref": trial.neuron["refractory"],
        "reset": str(trial.neuron["reset"]),
        "encoder": trial.encoder,
        "train_samples": len(data.train),
        "test_samples": len(data.split("test")),
        "classes": data.num_classes,
        "image_size": data.input_shape[1],
        "components": k,
        "epochs": config.epochs,
        "held_out_accuracy": None,
        "energy_paper_sop_uJ": None,
        "energy_exact_fanout_uJ": None,
        "d_eff_pca95": found["pca95"].value,
        "d_eff_pr": found["pr"].value,
        "train_seconds": trial.train_seconds,
        "key": f"{data.fingerprint}-{model}-T{trial.T}-seed{trial.seed}",
        "fingerprint": data.fingerprint,
        "status": "done",
    }
    rows = []
    for t in range(1, trial.T + 1):
        accuracy, hits = trial.accuracy[t - 1], trial.correct[t - 1]
        rows.append(
            StudyRow(
                eval_T=t,
                correct=int(hits.sum()),
                accuracy=accuracy.value,
                accuracy_low=accuracy.low,
                accuracy_high=accuracy.high,
                spikes_per_sample=trial.spikes_per_sample[t - 1].value,
                firing_rate=trial.firing_rate[t - 1].value,
                correct_bits=np.packbits(hits).tobytes(),
                **common,
            )
        )
    return rows


def _parameters(model: str, data: Dataset) -> int:
    from spikedim.models import create_model

    net = create_model(model, num_classes=data.num_classes, input_shape=data.input_shape)
    return sum(p.numel() for p in net.parameters())
