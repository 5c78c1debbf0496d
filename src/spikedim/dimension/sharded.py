"""Exact spectrum of data that lie in many shards, one shard per worker, here or on a Ray cluster.

Every shard gives the moments of its samples; they are added up in the order of the shards, so the
engine and the number of workers make no difference to the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedim.cluster import ENGINES, connected, fetch
from spikedim.dimension.arrays import spans
from spikedim.dimension.spectrum import Spectrum
from spikedim.dimension.streaming import SpectrumStream
from spikedim.errors import ConfigError, DataError
from spikedim.progress import Task, task


@dataclass(frozen=True)
class FileShard:
    """Rows ``start:stop`` of a ``.npy`` file; only the path travels to a worker.

    Args:
        path: a file that every worker can read.
        start, stop: rows; to the end of the file when ``stop`` is ``None``.
    """

    path: str | Path
    start: int = 0
    stop: int | None = None

    def __call__(self) -> np.ndarray:
        """The rows, memory-mapped.

        Raises:
            DataError: the file is missing or no array.
        """
        try:
            rows: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"cannot read the shard {self.path}: {error}") from error
        if rows.ndim < 2:
            raise DataError(f"the shard {self.path} has shape {rows.shape}; expected [samples, d]")
        return rows[self.start : self.stop]


def file_shards(path: str | Path, count: int) -> list[FileShard]:
    """A ``.npy`` file as ``count`` shards of nearly equal numbers of rows.

    Raises:
        ConfigError: fewer shards than one.
        DataError: the file is missing or no array.
    """
    if count < 1:
        raise ConfigError(f"count={count} shards; expected at least 1")
    n = len(FileShard(path)())
    return [FileShard(path, *span) for span in spans(n, max(1, -(-n // count)))]


def sharded_spectrum(
    shards: Sequence[Any],
    center: bool = True,
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    memory_limit: float | None = None,
) -> Spectrum:
    """Covariance spectrum of the samples of all shards, as :func:`spectrum` of them together.

    Driver and worker each hold a few d × d matrices, whatever the number of samples; at most
    twice as many shards as workers are in flight. A Ray worker that dies is replaced and its
    shard read again.

    Args:
        shards: every shard an array ``[n_i, d...]`` (dense, memory-mapped, torch or sparse), a path
            of a ``.npy`` file, or a function without arguments that returns an array or an
            iterator of blocks. With Ray, paths and functions are read by the worker, arrays are
            sent to it.
        center: subtract the mean of all samples.
        engine: ``"local"`` (this process, one shard after the other) or ``"ray"``.
        address: Ray cluster to join, e.g. ``"auto"`` or ``"ray://head:10001"``; a Ray that runs
            on this machine alone is started, and stopped afterwards, when ``None``.
        workers: shards worked on at once; the processors of the cluster by default.
        memory_limit: bytes the decomposition may use; half of the free memory by default.

    Raises:
        ConfigError: unknown engine, Ray missing or not reachable, options that do not apply.
        DataError: no shards, unusable values, shards of different numbers of features, or a shard
            that no worker can read.
        BudgetError: the d × d matrix does not fit ``memory_limit``.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((1000, 30))
        >>> sharded_spectrum(np.array_split(x, 4)).n
        1000
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}; expected one of {', '.join(ENGINES)}")
    if engine == "local" and (address is not None or workers is not None):
        raise ConfigError("address and workers apply to engine='ray' only")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}; expected at least 1")
    if len(shards) == 0:
        raise DataError("no shards; give at least one")
    merged = SpectrumStream(memory_limit)
    with task("shards", len(shards)) as bar:
        if engine == "local":
            for shard in shards:
                merged = merged.merge(moments_of(shard, memory_limit))
                bar.advance()
        else:
            merged = _on_ray(shards, merged, address, workers, bar)
    return merged.finalise(center)


def moments_of(shard: Any, memory_limit: float | None = None) -> SpectrumStream:
    """Partial result of one shard: what a worker computes."""
    if isinstance(shard, (str, Path)):
        shard = FileShard(shard)
    content = shard() if callable(shard) else shard
    blocks = content if isinstance(content, Iterator) else [content]
    return SpectrumStream(memory_limit).extend(blocks)


def _on_ray(
    shards: Sequence[Any],
    merged: SpectrumStream,
    address: str | None,
    workers: int | None,
    bar: Task,
) -> SpectrumStream:
    with connected(address, workers) as ray:
        remote = ray.remote(num_cpus=1)(moments_of)
        width = 2 * (workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        waiting: list[Any] = []
        for place in range(len(shards) + width):
            if place < len(shards):
                waiting.append(remote.remote(shards[place], merged.memory_limit))
            if place >= width - 1 and waiting:
                merged = merged.merge(fetch(ray, waiting.pop(0), _unreadable))
                bar.advance()
    return merged


def _unreadable(reason: str) -> DataError:
    return DataError(
        f"a Ray worker could not read its shard: {reason} (files and modules a shard needs "
        "must be on every worker, and the shard in its memory)"
    )
