"""What "effective dimension" may have meant: definitions and representations to search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from spikedim.data import Dataset, Split
from spikedim.data.representations import represented
from spikedim.dimension import (
    Spectrum,
    get_estimator,
    pca_count,
    pca_quantile,
    ridge_dimension,
)
from spikedim.errors import DataError

Curve = Callable[[Spectrum], float]

QUANTILES = (50, 55, 60, 65, 70, 75, 80, 82, 84, 86, 88, 90, 92, 94, 95, 96, 97, 98, 99)
SINGULAR_QUANTILES = (50, 60, 70, 80, 90, 95)
RIDGE_SHARES = (0.1, 0.03, 0.01, 0.003, 0.001)
SIDE = 32
_STEM_CHANNELS = 128
_STEM_BATCH = 256
_SPARSE_TEXTS = 3000
_EMBEDDINGS = (50, 100, 300)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Definition:
    """One reading of "effective dimension".

    Args:
        key: short name.
        summary: what it is.
        curve: value from a spectrum; ``None`` where the samples themselves are read.
        smooth: real-valued form behind a count, for its interval; ``None`` for ``curve``.
    """

    key: str
    summary: str
    curve: Curve | None = None
    smooth: Curve | None = None

    @property
    def counts(self) -> bool:
        """The value is a whole number of components."""
        return self.smooth is not None


def definitions() -> tuple[Definition, ...]:
    """All definitions that are searched."""
    found = [_pca(q) for q in QUANTILES] + [_singular(q) for q in SINGULAR_QUANTILES]
    for key in ("pr", "pr_corrected", "stable_rank", "entropy_rank"):
        item = get_estimator(key)
        found.append(Definition(key, item.summary, item.function))
    found += [_ridge(share) for share in RIDGE_SHARES]
    return (*found, *(Definition(k, get_estimator(k).summary) for k in ("two_nn", "mle")))


def _pca(percent: int) -> Definition:
    q = percent / 100
    return Definition(
        f"pca{percent}",
        f"components that reach {percent} % of the variance",
        lambda s: pca_count(s, q),
        lambda s: pca_quantile(s, q),
    )


def _singular(percent: int) -> Definition:
    q = percent / 100
    return Definition(
        f"sv{percent}",
        f"components that reach {percent} % of the sum of singular values",
        lambda s: pca_count(roots(s), q),
        lambda s: pca_quantile(roots(s), q),
    )


def _ridge(share: float) -> Definition:
    return Definition(
        f"ridge{share:g}",
        f"ridge degrees of freedom, penalty {share:g} of the largest eigenvalue",
        lambda s: ridge_dimension(s, share * float(s.eigenvalues[0])),
    )


def roots(spectrum: Spectrum) -> Spectrum:
    """The spectrum with √λ in place of λ: what counting singular values by mistake reads."""
    values = np.sqrt(spectrum.eigenvalues)
    return Spectrum(values, spectrum.n, spectrum.d, spectrum.centered, float(values.sum()))


@dataclass(frozen=True)
class Representation:
    """One way to turn a data set into vectors.

    Args:
        key: short name.
        summary: what it is.
        kind: the kind of data it reads, ``"image"`` or ``"text"``.
        build: data set and seed → ``[n, t, d]``, t vectors of d features per training sample;
            or what :class:`~spikedim.data.representations.Represented` holds.
        centrings: which of centred (True) and uncentred (False) spectra are read; a
            representation that subtracts a mean itself has no uncentred one.
        limit: at most this many samples, where the spectrum would be large.
    """

    key: str
    summary: str
    kind: str
    build: Callable[[Dataset, int], Any]
    centrings: tuple[bool, ...] = (True, False)
    limit: int | None = None


def representations() -> tuple[Representation, ...]:
    """All representations that are searched."""
    stem = f"random two-layer convolution, {_STEM_CHANNELS} channels on"
    return (
        _of_images("pixels", "raw pixels in [0, 1]", lambda x, _: x),
        _of_images(
            "standardised", "per-channel standardised pixels", lambda x, _: _channels(x), (True,)
        ),
        _of_images(
            "whitened", "every pixel divided by its standard deviation (correlation PCA)",
            lambda x, _: _scaled(x, 0), (True,),
        ),
        _of_images("grey", "luma of the pixels", lambda x, _: grey(x)),
        _of_images("pool2", "pixels averaged over 2 x 2", lambda x, _: pool(x, 2)),
        _of_images("pool4", "pixels averaged over 4 x 4", lambda x, _: pool(x, 4)),
        _of_patches(4),
        _of_patches(8),
        _of_images(
            "stem", f"{stem} a 4 x 4 grid", lambda x, seed: pool(random_stem(x, seed), 2)
        ),
        Representation(
            "stem tokens", f"{stem} an 8 x 8 grid, one vector per token", "image",
            lambda d, seed: _tokens(random_stem(_images(d), seed)),
        ),
        Representation(
            "tf-idf", "sparse TF-IDF of words", "text", lambda d, _: represented(d, "tfidf"),
            limit=_SPARSE_TEXTS,
        ),
        *(_of_words(size) for size in _EMBEDDINGS),
        Representation(
            "words100", "word embeddings of 100 dimensions, one vector per word", "text",
            lambda d, seed: represented(d, "tokens", tokens="samples", seed=seed),
        ),
    )  # fmt: skip


def _of_images(
    key: str,
    summary: str,
    change: Callable[[np.ndarray, int], np.ndarray],
    centrings: tuple[bool, ...] = (True, False),
) -> Representation:
    def build(dataset: Dataset, seed: int) -> np.ndarray:
        return np.asarray(change(_images(dataset), seed)).reshape(len(dataset.train), 1, -1)

    return Representation(key, summary, "image", build, centrings)


def _of_patches(size: int) -> Representation:
    return Representation(
        f"patches{size}",
        f"{size} x {size} patches, one vector each",
        "image",
        lambda d, _: represented(d, "patches", size=size),
    )


def _of_words(size: int) -> Representation:
    return Representation(
        f"embedding{size}",
        f"mean of word embeddings of {size} dimensions, learned from the texts",
        "text",
        lambda d, seed: represented(d, "tokens", dimensions=size, seed=seed),
    )


def prepared(dataset: Dataset, limit: int | None, seed: int, side: int = SIDE) -> Dataset:
    """The data set with at most ``limit`` training samples, images at ``side`` x ``side``.

    Larger images are averaged over blocks of pixels, so that all sets are compared at one size.

    Raises:
        DataError: images that are not square, or no whole number of blocks gives ``side``.
    """
    dataset = replace(dataset, test=None).limited(limit, seed=seed)
    if dataset.kind != "image":
        return dataset
    _, height, width = dataset.input_shape
    if height != width or height % side:
        raise DataError(
            f"data set {dataset.name} holds {height} x {width} images; the published values are "
            f"compared at {side} x {side}, so give square images of a multiple of {side} pixels"
        )
    pixels = np.moveaxis(pool(_images(dataset), height // side), 1, -1)
    return replace(dataset, train=Split(pixels, dataset.train.labels), scale=1.0)


def _images(dataset: Dataset) -> np.ndarray:
    return dataset.features("train").reshape(len(dataset.train), *dataset.input_shape)


def pool(x: np.ndarray, size: int) -> np.ndarray:
    """Average ``[n, C, H, W]`` over blocks of ``size`` x ``size``."""
    if size == 1:
        return x
    n, c, height, width = x.shape
    blocks = x.reshape(n, c, height // size, size, width // size, size)
    return np.asarray(blocks.mean(axis=(3, 5)))


def grey(x: np.ndarray) -> np.ndarray:
    """One channel ``[n, 1, H, W]``: luma (ITU-R BT.601) of RGB, else the mean over channels."""
    if x.shape[1] != 3:
        return np.asarray(x.mean(axis=1, keepdims=True))
    return np.einsum("nchw,c->nhw", x, _LUMA)[:, None]


def random_stem(x: np.ndarray, seed: int) -> np.ndarray:
    """Two random 3 x 3 convolutions with ReLU and 2 x 2 average pooling: ``[n, 128, H/4, W/4]``.

    Weights are Gaussian with variance 2/fan-in; inputs are standardised per channel.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    standard = _channels(x)
    widths = (x.shape[1], _STEM_CHANNELS // 4, _STEM_CHANNELS)
    weights = [
        torch.randn(out, into, 3, 3, generator=generator) * (2 / (9 * into)) ** 0.5
        for into, out in pairwise(widths)
    ]
    out = []
    with torch.no_grad():
        for start in range(0, len(x), _STEM_BATCH):
            maps = torch.from_numpy(standard[start : start + _STEM_BATCH])
            for weight in weights:
                maps = functional.conv2d(maps, weight, padding=1).relu()
                maps = functional.avg_pool2d(maps, 2)
            out.append(maps.numpy())
    return np.concatenate(out)


def _channels(x: np.ndarray) -> np.ndarray:
    return _scaled(x, (0, 2, 3))


def _scaled(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    std = x.std(axis=axes, keepdims=True, dtype=np.float64)
    return ((x - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)


def _tokens(maps: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2))
