"""What "effective dimension" may have meant: definitions and representations to search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spikedim.data import Dataset
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
        build: inputs and seed → float32 ``[n, t, d]``, t vectors of d features per sample.
        centrings: which of centred (True) and uncentred (False) spectra are read; a
            representation that subtracts a mean itself has no uncentred one.
    """

    key: str
    summary: str
    build: Callable[[np.ndarray, int], np.ndarray]
    centrings: tuple[bool, ...] = (True, False)


def image_representations() -> tuple[Representation, ...]:
    """Representations of images ``[n, C, H, W]`` that are searched."""
    return (
        Representation("pixels", "raw pixels in [0, 1]", lambda x, _: _flat(x)),
        Representation(
            "standardised", "per-channel standardised pixels", lambda x, _: _flat(_channels(x)),
            (True,),
        ),
        Representation(
            "whitened", "every pixel divided by its standard deviation (correlation PCA)",
            lambda x, _: _correlation(_flat(x)), (True,),
        ),
        Representation("grey", "luma of the pixels", lambda x, _: _flat(grey(x))),
        Representation("pool2", "pixels averaged over 2 x 2", lambda x, _: _flat(pool(x, 2))),
        Representation("pool4", "pixels averaged over 4 x 4", lambda x, _: _flat(pool(x, 4))),
        Representation("patches4", "4 x 4 patches, one vector each", lambda x, _: patches(x, 4)),
        Representation("patches8", "8 x 8 patches, one vector each", lambda x, _: patches(x, 8)),
        Representation(
            "stem", f"random two-layer convolution, {_STEM_CHANNELS} channels on a 4 x 4 grid",
            lambda x, seed: _flat(pool(random_stem(x, seed), 2)),
        ),
        Representation(
            "stem tokens", f"the same on its 8 x 8 grid, one vector of {_STEM_CHANNELS} per token",
            lambda x, seed: tokens(random_stem(x, seed)),
        ),
    )  # fmt: skip


def images(dataset: Dataset, limit: int | None, seed: int, side: int = SIDE) -> np.ndarray:
    """Images of the training split, float32 ``[n, C, side, side]`` in [0, 1].

    Larger images are averaged over blocks of pixels, so that all sets are compared at one size.

    Raises:
        DataError: no whole number of blocks gives ``side``.
    """
    x = dataset.features("train", limit, seed)
    x = x.reshape(len(x), *dataset.input_shape)
    _, height, width = dataset.input_shape
    if height != width or height % side:
        raise DataError(
            f"data set {dataset.name} holds {height} x {width} images; the published values are "
            f"compared at {side} x {side}, so give square images of a multiple of {side} pixels"
        )
    return pool(x, height // side)


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


def patches(x: np.ndarray, size: int) -> np.ndarray:
    """Non-overlapping patches ``[n, H·W/size², C·size²]``."""
    n, c, height, width = x.shape
    cut = x.reshape(n, c, height // size, size, width // size, size)
    cut = cut.transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, -1, c * size * size)


def tokens(x: np.ndarray) -> np.ndarray:
    """Feature maps ``[n, C, H, W]`` as H·W vectors of C features."""
    return np.ascontiguousarray(x.reshape(*x.shape[:2], -1).swapaxes(1, 2))


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
        for into, out in zip(widths, widths[1:], strict=False)
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


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 1, -1)


def _channels(x: np.ndarray) -> np.ndarray:
    axes = (0, 2, 3)
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    std = x.std(axis=axes, keepdims=True, dtype=np.float64)
    return ((x - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)


def _correlation(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0, dtype=np.float64)
    std = x.std(axis=0, dtype=np.float64)
    return ((x - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)


def chosen(items: Sequence[Definition | Representation], keys: Sequence[str] | None) -> list:
    """The items with these keys, in their own order; all when ``None``."""
    return [item for item in items if keys is None or item.key in keys]
