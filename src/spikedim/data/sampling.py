"""Stratified, seeded, nested orders of samples: the one source of subsets and splits."""

from __future__ import annotations

import numpy as np

from spikedim.errors import ConfigError, DataError


def stratified_order(labels: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """Order the ``n`` samples so that every prefix has the class proportions of the whole.

    The r-th sample (from zero) of a class of size c gets the key ``(r + 1/2) / c`` and samples
    are sorted by key, the divisor method of Sainte-Laguë: a prefix of length k is within one
    sample of proportional for two classes, close to it for more, and contains every shorter
    prefix. Which sample is the r-th of its class is drawn from ``seed``.

    Args:
        labels: class of every sample, or ``None`` for a plain random order.
        n: number of samples.
        seed: seed of the draw; the same seed gives the same order.

    Returns:
        A permutation of ``range(n)``, int64.
    """
    shuffled = np.random.default_rng(seed).permutation(n)
    if labels is None:
        return shuffled
    _, classes, sizes = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    grouped = np.argsort(classes, kind="stable")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = np.empty(n, dtype=np.int64)
    rank[grouped] = np.arange(n) - starts
    return shuffled[np.argsort((rank + 0.5) / sizes[classes], kind="stable")]


def subset(labels: np.ndarray | None, n: int, limit: int | None, seed: int) -> np.ndarray | None:
    """Ascending indices of a stratified subset of ``limit`` samples; ``None`` means all of them.

    Raises:
        ConfigError: ``limit`` is below one.
    """
    if limit is not None and limit < 1:
        raise ConfigError(
            f"{limit} samples were asked for: give at least 1, or leave the number out"
        )
    if limit is None or limit >= n:
        return None
    return np.sort(stratified_order(labels, n, seed)[:limit])


def split_indices(
    labels: np.ndarray | None, n: int, test_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending train and test indices of a stratified split with ``test_size`` test samples.

    Raises:
        DataError: fewer than one sample would be left on either side.
    """
    if not 1 <= test_size < n:
        raise DataError(
            f"cannot split {n} samples into a test set of {test_size}: "
            "both sides need at least one sample; give more samples, or a smaller test set"
        )
    order = stratified_order(labels, n, seed)
    return np.sort(order[test_size:]), np.sort(order[:test_size])
