"""The data set: two splits of images, texts, events or feature vectors, in one frozen object."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from spikedim.data import arrays
from spikedim.data.events import Events, Frames
from spikedim.data.sampling import split_indices, subset
from spikedim.data.vocabulary import Vocabulary
from spikedim.errors import ConfigError, DataError
from spikedim.results import Result, Table

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["image", "text", "events", "features"]
Inputs = np.ndarray | list[str] | Events | Frames
_RECORDINGS = (Events, Frames)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels of one split.

    Args:
        inputs: images [N, H, W] or [N, H, W, C] and features [N, d] as stored (possibly
            memory-mapped), a list of texts, or recordings: :class:`Events` or :class:`Frames`.
        labels: int64 classes, shape [N], or ``None``.
    """

    inputs: Inputs = field(repr=False)
    labels: np.ndarray | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: np.ndarray) -> Split:
        """The samples with these indices, in this order."""
        inputs: Inputs
        if isinstance(self.inputs, _RECORDINGS):
            inputs = self.inputs.take(indices)
        elif isinstance(self.inputs, np.ndarray):
            inputs = self.inputs[indices]
        else:
            inputs = [self.inputs[i] for i in indices]
        return Split(inputs, None if self.labels is None else self.labels[indices])

    def joined(self, other: Split) -> Split:
        """The samples of both, those of ``other`` last; without labels where one has none.

        Raises:
            DataError: they hold different kinds of inputs, or inputs of different shapes.
        """
        mine, more = self.inputs, other.inputs
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = np.concatenate([self.labels, other.labels])
        try:
            if isinstance(mine, np.ndarray) and isinstance(more, np.ndarray):
                return Split(np.concatenate([mine, more]), labels)
            if isinstance(mine, Frames) and isinstance(more, Frames):
                return Split(mine.joined(more), labels)
        except ValueError as error:
            raise DataError(f"the two splits do not fit together: {error}") from error
        if isinstance(mine, Events) and isinstance(more, Events):
            return Split(mine.joined(more), labels)
        if isinstance(mine, list) and isinstance(more, list):
            return Split(mine + more, labels)
        raise DataError("the two splits hold different kinds of inputs")

    def limited(self, limit: int | None, seed: int) -> Split:
        """A stratified subset of at most ``limit`` samples, in their original order."""
        chosen = subset(self.labels, len(self), limit, seed)
        return self if chosen is None else self.take(chosen)


@dataclass(frozen=True)
class DatasetSummary(Result):
    """What a data set holds, for a reader.

    ``fingerprint_method`` says whether the fingerprint covers every byte.
    """

    name: str
    kind: str
    train: int
    test: int | None
    classes: int
    shape: str
    stored_as: str
    smallest_class: int | None
    largest_class: int | None
    fingerprint: str
    fingerprint_method: str
    source: str
    terms: str

    def tables(self) -> list[Table]:
        """One table, one row per property."""
        rows = [
            (f.name.replace("_", " "), getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name != "name" and getattr(self, f.name) not in (None, "")
        ]
        return [Table(f"Data set {self.name}", ("property", "value"), rows)]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set ready for measuring and training.

    Args:
        name: short name, not part of the fingerprint.
        kind: "image", "text", "events" or "features".
        train: training split.
        test: test split, or ``None`` where there is none (see :meth:`with_test`).
        class_names: one name per class; empty without labels.
        source: where the data come from.
        terms: licence or terms of use, as far as known.
        citation: whom to cite.
        scale: stored pixel value that stands for 1.0.
        words: of texts, another vocabulary than their own: that of the whole they are a part of, or
            that of a trained network.
        standardised: of images, networks read pixels standardised by channel
            (:meth:`tensors`), rather than as :meth:`features` has them.
    """

    name: str
    kind: Kind
    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    source: str
    terms: str = ""
    citation: str = ""
    scale: float = 1.0
    words: Vocabulary | None = None
    standardised: bool = True

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image or an event frame; C is 2 for events.

        Raises:
            DataError: the data set holds texts or feature vectors.
        """
        inputs = self.train.inputs
        if isinstance(inputs, _RECORDINGS):
            return (inputs.channels, inputs.height, inputs.width)
        height, width, channels = self._pixels(self.train).shape[1:]
        return (channels, height, width)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of kind, scale, inputs and labels.

        Name, path and file format do not matter: the same content has the same fingerprint. A part
        of texts is told apart from others by the vocabulary of the whole, and images that networks
        read raw from the same standardised.
        Arrays over 1 GiB enter with their shape, type and 32 evenly spaced 16 MiB blocks,
        see :attr:`fingerprint_method`.
        """
        digest = arrays.new_digest()
        digest.update(f"{self.kind}/{self.scale:g}".encode())
        for name, split in self._splits():
            digest.update(name.encode())
            for array in _arrays(split.inputs):
                arrays.update_hash(digest, array)
            if isinstance(split.inputs, list):
                arrays.hash_texts(digest, split.inputs)
            if split.labels is not None:
                arrays.update_hash(digest, split.labels)
        if not self.standardised:
            digest.update(b"raw")
        if self.words is not None:
            arrays.hash_texts(digest, [str(self.words.length), *self.words.words])
        text: str = digest.hexdigest()
        return text[:16]

    @property
    def fingerprint_method(self) -> str:
        """``"every byte"``, or that large arrays entered by sampled blocks."""
        sizes = [a.nbytes for _, split in self._splits() for a in _arrays(split.inputs)]
        if max(sizes, default=0) <= arrays.EXHAUSTIVE_BYTES:
            return "every byte"
        return "shape, type and 32 blocks of 16 MiB per array over 1 GiB"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """How networks read the texts: :attr:`words`, or those of the training split.

        Raises:
            DataError: the data set holds no texts.
        """
        if not isinstance(self.train.inputs, list):
            raise DataError(f"data set {self.name} holds {self.kind}; this needs texts")
        return self.words or Vocabulary.of(self.train.inputs)

    @cached_property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel over the training pixels, float64, [C]."""
        return arrays.moments(self._pixels(self.train), self.scale)

    def split(self, name: str) -> Split:
        """The split called ``"train"`` or ``"test"``.

        Raises:
            ConfigError: another name.
            DataError: the data set has no test split.
        """
        if name == "train":
            return self.train
        if name != "test":
            raise ConfigError(f"split={name!r}: expected 'train' or 'test'")
        if self.test is None:
            raise DataError(
                f"data set {self.name} has no test split; use split='train' (--split train), "
                "or make one with with_test(fraction=0.2) in Python"
            )
        return self.test

    def features(self, split: str = "train", limit: int | None = None, seed: int = 0) -> np.ndarray:
        """Inputs as vectors, for measuring dimension.

        Integer images are scaled to [0, 1] (stored value / ``scale``) and flattened in C, H, W
        order; float images are flattened as stored; events become the 2 H W counts per
        recording; features stay as they are: a float array is returned without a copy,
        memory-mapped data stay on disk.

        Args:
            split: "train" or "test".
            limit: stratified subset of at most this many samples; ``None`` for all.
            seed: seed of the subset.

        Returns:
            float32, or float64 for features that float32 does not hold exactly; shape [n, d].

        Raises:
            DataError: texts (embed them first), or a NaN or infinity among the chosen rows.
        """
        return self._vectors(self.split(split).limited(limit, seed), split)

    def tensors(
        self, split: str = "train", limit: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Images as network input.

        ``x = (pixel / scale - mean) / std`` with mean and std per channel of the whole training
        split, whichever split is asked for; a constant channel is only centred. ``pixel / scale``
        of a data set that is not :attr:`standardised`.

        Args:
            split: "train" or "test".
            limit: stratified subset of at most this many samples; ``None`` for all.
            seed: seed of the subset.

        Returns:
            x float32 [N, C, H, W] and classes y int64 [N].

        Raises:
            DataError: not images, or no labels.
        """
        chosen = self.split(split).limited(limit, seed)
        return self._images(chosen), self._classes(chosen)

    def frames(
        self,
        T: int,
        split: str = "train",
        limit: int | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        bins: str = "time",
    ) -> tuple[Tensor, Tensor]:
        """Events as network input: counts float32 [T, N, 2, H, W] and classes int64 [N].

        See :meth:`Events.frames` for the bins, :meth:`Frames.frames` for recordings that come as
        frames.

        Raises:
            DataError: the data set holds no events, or no labels.
        """
        chosen = self.split(split).limited(limit, seed)
        return self._recorded(chosen, T, size, bins), self._classes(chosen)

    def network_input(
        self, T: int, split: str = "train", limit: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`tensors` of images, :meth:`frames` of events, :attr:`vocabulary` ids of texts.

        Returns:
            What a network reads, and classes, which may be absent (``None``).

        Raises:
            DataError: the data set holds feature vectors.
        """
        chosen = self.split(split).limited(limit, seed)
        labels = None if chosen.labels is None else self._classes(chosen)
        if self.kind == "events":
            return self._recorded(chosen, T, None, "time"), labels
        if isinstance(chosen.inputs, list):
            return self._read(chosen.inputs), labels
        return self._images(chosen), labels

    def check_steps(self, T: int) -> None:
        """Raise ConfigError if T does not divide the frames of the recordings stored as such."""
        for _, split in self._splits():
            if isinstance(split.inputs, Frames):
                split.inputs.check_steps(T, f" of {self.name}")

    def limited(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """The same data set with at most ``train`` and ``test`` samples, stratified.

        For one seed a smaller subset is contained in a larger one. Classes keep their numbers.
        """
        smaller = None if self.test is None else self.test.limited(test, seed)
        part = self.train.limited(train, seed)
        cut = self.kind == "text" and part is not self.train
        words = self.vocabulary if cut else self.words
        return dataclasses.replace(self, train=part, test=smaller, words=words)

    def raw(self) -> Dataset:
        """The same images, their pixels read by networks as they are, integers scaled to [0, 1].

        Raises:
            ConfigError: the data set holds something else.
        """
        if self.kind != "image":
            raise ConfigError(f"data set {self.name} holds {self.kind}: raw is of images")
        if not self.standardised:
            return self
        return dataclasses.replace(self, name=f"{self.name}@raw", standardised=False)

    def with_test(self, fraction: float = 0.2, seed: int = 0) -> Dataset:
        """The same data set with a stratified share of the training split as its test split.

        Raises:
            ConfigError: fraction outside (0, 1), or there is a test split already.
            DataError: too few samples.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"fraction={fraction} must lie strictly between 0 and 1, e.g. 0.2")
        if self.test is not None:
            raise ConfigError(f"data set {self.name} has a test split already; use that one")
        n = len(self.train)
        size = round(fraction * n)
        if not 1 <= size < n:
            raise DataError(
                f"data set {self.name} has no test split, and of {n:,} "
                f"sample{'s' if n > 1 else ''} {100 * fraction:g} % cannot be one: both splits "
                "need at least one; give data with more samples, or with a test split"
            )
        train, test = split_indices(self.train.labels, n, size, seed)
        return dataclasses.replace(self, train=self.train.take(train), test=self.train.take(test))

    def summary(self) -> DatasetSummary:
        """What the data set holds, as a result that prints as a table."""
        inputs, labels = self.train.inputs, self.train.labels
        counts = None if labels is None else np.bincount(labels, minlength=self.num_classes)
        if isinstance(inputs, np.ndarray):
            mapped = "memory-mapped " if isinstance(inputs, np.memmap) else ""
            shape, stored = " x ".join(str(s) for s in inputs.shape[1:]), f"{mapped}{inputs.dtype}"
        elif isinstance(inputs, Events):
            shape = f"{inputs.height} x {inputs.width} sensor"
            stored = f"{len(inputs.x):,} events"
        elif isinstance(inputs, Frames):
            shape = " x ".join(map(str, inputs.values.shape[2:]))
            stored = f"{inputs.steps} frames of {inputs.values.dtype} per recording"
        else:
            shape, stored = "", "text"
        return DatasetSummary(
            name=self.name,
            kind=self.kind,
            train=len(self.train),
            test=None if self.test is None else len(self.test),
            classes=self.num_classes,
            shape=shape,
            stored_as=stored,
            smallest_class=None if counts is None else int(counts.min()),
            largest_class=None if counts is None else int(counts.max()),
            fingerprint=self.fingerprint,
            fingerprint_method=self.fingerprint_method,
            source=self.source,
            terms=self.terms,
        )

    def __repr__(self) -> str:
        test = "no test split" if self.test is None else f"{len(self.test):,} test"
        return (
            f"Dataset({self.name!r}, {self.kind}, {len(self.train):,} train, {test}, "
            f"{self.num_classes} classes)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary()._repr_html_()}"

    def _splits(self) -> Iterator[tuple[str, Split]]:
        yield "train", self.train
        if self.test is not None:
            yield "test", self.test

    def _pixels(self, split: Split) -> np.ndarray:
        if self.kind != "image" or not isinstance(split.inputs, np.ndarray):
            raise DataError(
                f"data set {self.name} holds {self.kind}; this needs images [N, H, W], "
                "[N, H, W, C] or [N, C, H, W]"
            )
        return split.inputs if split.inputs.ndim == 4 else split.inputs[..., None]

    def _vectors(self, chosen: Split, split: str) -> np.ndarray:
        if isinstance(chosen.inputs, list):
            raise DataError(
                f"data set {self.name} holds texts, which have no features; embed them with your "
                "model and load the embeddings from a .npy file"
            )
        if isinstance(chosen.inputs, _RECORDINGS):
            return chosen.inputs.frames(1)[0].reshape(len(chosen), -1)
        if self.kind == "features":
            vectors = np.asanyarray(chosen.inputs)
            vectors = vectors.astype(np.promote_types(vectors.dtype, np.float32), copy=False)
        else:
            vectors = self._scaled(chosen).reshape(len(chosen), -1)
        if not isinstance(vectors, np.memmap):
            arrays.check_finite(vectors, f"data set {self.name}, chosen {split} rows")
        return vectors

    def _scaled(self, split: Split) -> np.ndarray:
        pixels = np.moveaxis(self._pixels(split), -1, 1)
        x = np.array(pixels, dtype=np.float32, order="C")
        if self.scale != 1.0:
            x /= np.float32(self.scale)
        return x

    def _images(self, split: Split) -> Tensor:
        import torch

        x = self._scaled(split)
        if not self.standardised:
            return torch.from_numpy(x)
        mean, std = self.channel_statistics
        x -= mean.astype(np.float32)[:, None, None]
        x /= np.where(std > 0, std, 1.0).astype(np.float32)[:, None, None]
        return torch.from_numpy(np.ascontiguousarray(x))

    def _recorded(self, split: Split, T: int, size: tuple[int, int] | None, bins: str) -> Tensor:
        import torch

        if not isinstance(split.inputs, _RECORDINGS):
            raise DataError(f"data set {self.name} holds {self.kind}, not events; use tensors()")
        return torch.from_numpy(split.inputs.frames(T, size, bins))

    def _read(self, texts: list[str]) -> Tensor:
        import torch

        return torch.from_numpy(self.vocabulary.ids(texts))

    def _classes(self, split: Split) -> Tensor:
        import torch

        return torch.from_numpy(self.labels_of(split).astype(np.int64))

    def labels_of(self, split: Split) -> np.ndarray:
        """Class numbers [n] of a split of this data set.

        Raises:
            DataError: it has none.
        """
        if split.labels is None:
            folders = ", of image files a folder for each class" if self.kind == "image" else ""
            raise DataError(
                f"data set {self.name} has no labels; networks need one class number per "
                f"sample{folders}"
            )
        return split.labels


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    if isinstance(inputs, np.ndarray):
        return [inputs]
    if isinstance(inputs, Events):
        size = np.array([inputs.height, inputs.width], dtype=np.int64)
        return [inputs.x, inputs.y, inputs.p, inputs.t, inputs.offsets, size]
    if isinstance(inputs, Frames):
        return [inputs.values]
    return []
