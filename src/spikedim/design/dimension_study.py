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

import numpy as np

from spikedim.data import Dataset, load_dataset
from spikedim.data.build import make_dataset
from spikedim.data.reduce import repooled
from spikedim.errors import ConfigError
from spikedim.training.config import TrainConfig
from spikedim.training.study import Cell, Study

NAME = "dimension"
COMPONENTS = (2, 5, 10, None)
INTRINSIC = (2, 4, 8, 16)
TIMESTEPS = (1, 2, 3, 4, 6, 8)
SEEDS = (0, 1, 2, 3)
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


def dimension_study(
    *,
    model: str = "spikformer_nano",
    components: Sequence[int | None] = COMPONENTS,
    intrinsic: Sequence[int] = INTRINSIC,
    timesteps: Sequence[int] = TIMESTEPS,
    seeds: Sequence[int] = SEEDS,
    samples: int = 1000,
    config: TrainConfig | None = None,
    device: str = "cpu",
) -> Study:
    """The controlled study, to be run by :func:`spikedim.training.study.run_study`.

    Args:
        model: the network.
        components: principal components of the digits; ``None`` for all.
        intrinsic: dimensions of the synthetic tasks.
        timesteps: T to train at.
        seeds: of weights and data order.
        samples: training samples of every task; a synthetic one has as many for the test.
        config: how to train; 12 epochs at a peak rate of 0.02 by default, none held out.
        device: where, unless ``config`` says it.

    Raises:
        ConfigError, DataError: a choice out of its domain.
    """
    digits = _digits(samples)
    tasks = [(truncated(digits, k), k) for k in components]
    tasks += [(synthetic(k, samples, samples), k) for k in intrinsic]
    if config is None:
        config = TrainConfig(
            epochs=12, batch_size=32, lr=0.02, warmup_epochs=0.5, validation=0.0, device=device
        )
    cells = tuple(Cell(data, model, config, k) for data, k in tasks)
    neurons = ({"v_th": 0.5},)
    return Study(NAME, cells, tuple(timesteps), tuple(seeds), neurons)


def _digits(samples: int) -> Dataset:
    """The built-in digits with ``samples`` for training and all the others for the test."""
    data = load_dataset("digits")
    return repooled(data, len(data.train) + len(data.split("test")) - samples)
