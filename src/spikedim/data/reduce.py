"""Smaller or newly split versions of a data set, for work that has to fit a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from spikedim.data.dataset import Dataset, Split
from spikedim.data.sampling import split_indices
from spikedim.errors import ConfigError, DataError


def downsampled(dataset: Dataset, side: int) -> Dataset:
    """The same images at ``side`` x ``side`` pixels, each the mean of the area it covers.

    Output pixel i covers the input interval [i·H/side, (i + 1)·H/side), edges weighted by their
    share (area interpolation). Square images of that side are returned unchanged.

    Returns:
        A data set of float32 images [N, side, side(, C)], with the scale of the original.

    Raises:
        ConfigError: ``side`` below 2 or above the images'.
        DataError: the data set holds no images.
    """
    _, height, width = _image_shape(dataset)
    if not 2 <= side <= min(height, width):
        raise ConfigError(
            f"image size {side} of {dataset.name}: expected 2 to {min(height, width)} pixels, "
            f"the side of its images"
        )
    if height == width == side:
        return dataset
    rows, columns = _areas(height, side), _areas(width, side)

    def small(split: Split) -> Split:
        assert isinstance(split.inputs, np.ndarray)
        images = np.einsum(
            "ih,nhw...,jw->nij...", rows, split.inputs.astype(np.float32), columns, optimize=True
        )
        return replace(split, inputs=np.ascontiguousarray(images, dtype=np.float32))

    return _mapped(dataset, small)


def first_classes(dataset: Dataset, count: int) -> Dataset:
    """Only the samples of the first ``count`` classes; their numbers stay.

    Raises:
        ConfigError: fewer than two classes, or more than there are.
    """
    if not 2 <= count <= dataset.num_classes:
        raise ConfigError(
            f"classes {count} of {dataset.name}: expected 2 to {dataset.num_classes}, its number"
        )
    if count == dataset.num_classes:
        return dataset

    def chosen(split: Split) -> Split:
        assert split.labels is not None
        return split.take(np.flatnonzero(split.labels < count))

    return replace(_mapped(dataset, chosen), class_names=dataset.class_names[:count])


def repooled(dataset: Dataset, test: int, seed: int = 0) -> Dataset:
    """Training and test samples pooled and cut anew, stratified, with ``test`` test samples.

    For data sets whose own test split is too small to tell accuracies apart. Figures from it are
    not comparable with published ones on the official split.

    Raises:
        DataError: no labels, or too few samples.
    """
    pool = dataset.train if dataset.test is None else dataset.train.joined(dataset.test)
    if pool.labels is None:
        raise DataError(f"data set {dataset.name}: only labelled samples can be split anew")
    train, held = split_indices(pool.labels, len(pool), test, seed)
    return replace(dataset, train=pool.take(train), test=pool.take(held))


def _mapped(dataset: Dataset, change: Callable[[Split], Split]) -> Dataset:
    test = None if dataset.test is None else change(dataset.test)
    return replace(dataset, train=change(dataset.train), test=test)


def _image_shape(dataset: Dataset) -> tuple[int, int, int]:
    if dataset.kind != "image":
        raise DataError(f"data set {dataset.name} holds {dataset.kind}; this needs images")
    return dataset.input_shape


def _areas(size: int, side: int) -> np.ndarray:
    """Share of each input pixel in each output pixel, float32 [side, size]; rows sum to 1."""
    edges = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    areas: np.ndarray = np.clip(high - low, 0, None) * (side / size)
    return areas.astype(np.float32)
