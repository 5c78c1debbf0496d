"""Event-camera recordings as flat arrays or as frames, and their accumulation into frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from spikedim.errors import ConfigError, DataError

_CELLS = 1 << 22  # counted at once: integers of 32 MiB


@dataclass(frozen=True, eq=False)
class Events:
    """Recordings of an event camera, concatenated; there may be none.

    Recording i is the slice ``offsets[i]:offsets[i + 1]`` of every array.

    Args:
        x, y: pixel column and row, integers, shape [events].
        p: polarity, 1 for ON and 0 for OFF, shape [events].
        t: time stamps, non-decreasing within a recording (microseconds), shape [events].
        offsets: int64, shape [recordings + 1], from 0 to the number of events.
        height, width: sensor size in pixels.

    Raises:
        DataError: lengths disagree, offsets are not increasing, a pixel lies outside the sensor,
            a polarity is not 0 or 1, or time runs backwards inside a recording.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    p: np.ndarray = field(repr=False)
    t: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    height: int
    width: int
    channels: ClassVar[int] = 2  # polarities

    def __post_init__(self) -> None:
        total = self.x.size
        for name in "xypt":
            array = getattr(self, name)
            if array.shape != (total,) or array.dtype.kind not in "iub":
                raise DataError(
                    f"events {name}: shape {array.shape}, type {array.dtype}; expected "
                    f"one integer per event, {total} as in x"
                )
        offsets = self.offsets
        if offsets.ndim != 1 or offsets.size == 0 or offsets[0] != 0 or offsets[-1] != total:
            raise DataError(
                f"events offsets: expected recordings + 1 values from 0 to {total} events; "
                "the file is truncated or its arrays do not belong together"
            )
        steps = np.diff(offsets)
        if (steps < 0).any():
            at = int(np.argmax(steps < 0))
            raise DataError(f"events offsets decrease after recording {at}; they must increase")
        self._check_range("x", self.x, self.width)
        self._check_range("y", self.y, self.height)
        self._check_range("p", self.p, 2)
        backwards = self.t[1:] < self.t[:-1]
        starts = offsets[1:-1]
        backwards[starts[(starts > 0) & (starts < total)] - 1] = False
        if backwards.any():
            at = int(np.argmax(backwards)) + 1
            raise DataError(
                f"events t: time runs backwards at event {at} ({self.t[at - 1]} -> {self.t[at]}); "
                "sort each recording by time"
            )

    @staticmethod
    def _check_range(name: str, values: np.ndarray, bound: int) -> None:
        bad = (values < 0) | (values >= bound)
        if bad.any():
            at = int(np.argmax(bad))
            raise DataError(
                f"events {name}={values[at]} at event {at}: expected 0 to {bound - 1}; "
                "check the sensor size and the encoding of the polarity"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: np.ndarray) -> Events:
        """The recordings with these indices, in this order."""
        starts, lengths = self.offsets[:-1][indices], np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        chosen = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        x, y, p, t = (array[chosen] for array in (self.x, self.y, self.p, self.t))
        return Events(x, y, p, t, offsets, self.height, self.width)

    def joined(self, other: Events) -> Events:
        """These recordings, then those of ``other`` from the same sensor."""
        if (self.height, self.width) != (other.height, other.width):
            raise DataError(
                f"recordings of {self.height} x {self.width} and {other.height} x {other.width} "
                "pixels cannot be one data set"
            )
        x, y, p, t = (
            np.concatenate(pair)
            for pair in (
                (self.x, other.x), (self.y, other.y), (self.p, other.p), (self.t, other.t),
            )
        )  # fmt: skip
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return Events(x, y, p, t, offsets, self.height, self.width)

    def frames(self, T: int, size: tuple[int, int] | None = None, bins: str = "time") -> np.ndarray:
        """Accumulate every recording into ``T`` frames of event counts.

        With k events at times t_1 <= ... <= t_k, event j goes to bin
        ``floor(T (t_j - t_1) / (t_k - t_1 + 1))`` for ``bins="time"`` (equal durations) or
        ``floor(T (j - 1) / k)`` for ``bins="count"`` (equal numbers of events). Every event is
        counted exactly once; a recording without events is all zeros.

        Args:
            T: number of frames, at least 1.
            size: (H, W) to which pixel (y, x) is brought by ``floor(y H / height)`` and
                ``floor(x W / width)``; ``None`` keeps the sensor size.
            bins: ``"time"`` or ``"count"``.

        Returns:
            float32 counts, shape [T, N, 2, H, W]; channel 0 is OFF, channel 1 is ON.

        Raises:
            ConfigError: T, size or bins outside its domain.
        """
        if T < 1:
            raise ConfigError(f"T={T} frames: give at least 1")
        height, width = size or (self.height, self.width)
        if not (1 <= height <= self.height and 1 <= width <= self.width):
            raise ConfigError(
                f"size=({height}, {width}): expected between (1, 1) and the sensor size "
                f"({self.height}, {self.width})"
            )
        out = np.empty((T, len(self), 2, height, width), np.float32)
        few = max(1, _CELLS // (T * 2 * height * width))
        for start in range(0, len(self), few):
            stop = min(start + few, len(self))
            out[:, start:stop] = self._span(start, stop)._counts(T, height, width, bins)
        return out

    def _span(self, start: int, stop: int) -> Events:
        """Consecutive recordings, without a copy."""
        offsets = self.offsets[start : stop + 1]
        x, y, p, t = (a[offsets[0] : offsets[-1]] for a in (self.x, self.y, self.p, self.t))
        return Events(x, y, p, t, offsets - offsets[0], self.height, self.width)

    def _counts(self, T: int, height: int, width: int, bins: str) -> np.ndarray:
        n, lengths = len(self), np.diff(self.offsets)
        step = self._bins(T, lengths, bins)
        row = self.y.astype(np.int64) * height // self.height
        column = self.x.astype(np.int64) * width // self.width
        recording = np.repeat(np.arange(n), lengths)
        cell = step * n + recording
        cell = ((cell * 2 + self.p.astype(np.int64)) * height + row) * width + column
        counts = np.bincount(cell, minlength=T * n * 2 * height * width)
        return counts.reshape(T, n, 2, height, width)

    def _bins(self, T: int, lengths: np.ndarray, bins: str) -> np.ndarray:
        starts = np.repeat(self.offsets[:-1], lengths)
        if bins == "count":
            rank = np.arange(len(self.x)) - starts
            return rank * T // np.repeat(lengths, lengths)
        if bins == "time":
            time = self.t.astype(np.int64)
            ends = np.repeat(self.offsets[1:], lengths) - 1
            return (time - time[starts]) * T // (time[ends] - time[starts] + 1)
        raise ConfigError(f"bins={bins!r}: expected 'time' or 'count'")


@dataclass(frozen=True, eq=False)
class Frames:
    """Recordings that come as frames already.

    Args:
        values: [N, T, C, H, W], as stored (possibly memory-mapped); counts of events or any other
            numbers.
    """

    values: np.ndarray = field(repr=False)

    @property
    def steps(self) -> int:
        """T, the frames of every recording."""
        return int(self.values.shape[1])

    @property
    def channels(self) -> int:
        """C, e.g. 2 polarities."""
        return int(self.values.shape[2])

    @property
    def height(self) -> int:
        """H, in pixels."""
        return int(self.values.shape[3])

    @property
    def width(self) -> int:
        """W, in pixels."""
        return int(self.values.shape[4])

    def __len__(self) -> int:
        return len(self.values)

    def check_steps(self, T: int, whose: str = "") -> None:
        """Raise ConfigError unless T divides the frames stored; ``whose`` is for the message."""
        if T < 1 or self.steps % T:
            known = [str(k) for k in range(1, self.steps + 1) if self.steps % k == 0]
            raise ConfigError(
                f"T={T}: the recordings{whose} have {self.steps} frames each, which can be summed "
                f"to T = {', '.join(known)}"
            )

    def take(self, indices: np.ndarray) -> Frames:
        """The recordings with these indices, in this order."""
        return Frames(self.values[indices])

    def joined(self, other: Frames) -> Frames:
        """These recordings, then those of ``other``."""
        return Frames(np.concatenate([self.values, other.values]))

    def frames(self, T: int, size: tuple[int, int] | None = None, bins: str = "time") -> np.ndarray:
        """The recordings in ``T`` frames, each the sum of as many consecutive ones.

        Args:
            T: number of frames, which divides those stored.
            size, bins: as for :meth:`Events.frames`; only their defaults are possible here.

        Returns:
            float32, shape [T, N, C, H, W].

        Raises:
            ConfigError: another T, size or bins.
        """
        self.check_steps(T)
        if size not in (None, (self.height, self.width)) or bins != "time":
            raise ConfigError(
                f"size={size}, bins={bins!r}: recordings that come as frames keep theirs; "
                "give events for others"
            )
        summed = self.values.reshape(len(self), T, -1, *self.values.shape[2:]).sum(
            2, dtype=np.float32
        )
        return np.ascontiguousarray(np.moveaxis(summed, 0, 1))
