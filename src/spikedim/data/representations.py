"""Representations of a data set as vectors: what an effective dimension is measured on.

``represent(dataset, "patches", size=4)`` gives an array or, for bags of n-grams, a sparse matrix;
a user adds a representation with the decorator :func:`representation`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from spikedim.data import words
from spikedim.data.dataset import Dataset, Split
from spikedim.data.events import Events, Frames
from spikedim.errors import ConfigError, DataError

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Represented:
    """Vectors and where they come from.

    Args:
        x: float32 array ``[rows, d]``, or a ``scipy.sparse`` CSR matrix that is never densified.
        sample: for every row the place of its sample in the chosen split, ascending, where one
            sample gives several rows; ``None`` where row i is sample i. Rows of one sample depend
            on each other: see :func:`spikedim.dimension.clusters.measure_clustered`.
        notes: what a reader of the numbers must know.
    """

    x: Any
    sample: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The class of every row, from the classes of the samples."""
        return labels if self.sample is None else labels[self.sample]


@dataclass(frozen=True)
class RepresentationEntry:
    """A registered representation: its name, the kinds of data it reads, and what it is."""

    name: str
    kinds: tuple[str, ...]
    function: Function
    summary: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(inspect.signature(self.function).parameters)[2:]


_REGISTRY: dict[str, RepresentationEntry] = {}
_DEFAULTS = {"image": "pixels", "features": "features", "text": "tfidf", "events": "events"}


def representation(name: str, *kinds: str) -> Callable[[Function], Function]:
    """Register ``f(dataset, chosen, **options)`` under ``name`` for data sets of these kinds.

    ``chosen`` is the split to represent, already cut to its limit; what is learned (a vocabulary,
    say) is learned from ``dataset.train``. The function returns an array ``[rows, d]``, a sparse
    matrix or a :class:`Represented`.

    Example:
        >>> from spikedim.data.representations import representation, represent
        >>> @representation("row_means", "image")
        ... def row_means(dataset, chosen):
        ...     '''Mean of every pixel row.'''
        ...     return chosen.inputs.mean(axis=2).reshape(len(chosen), -1)

    Raises:
        ConfigError: the name is taken by another function.
    """

    def register(function: Function) -> Function:
        known = _REGISTRY.get(name)
        same = known and known.function.__qualname__ == function.__qualname__
        if known and not (same and known.function.__module__ == function.__module__):
            raise ConfigError(f"representation {name!r} is registered already; choose another name")
        summary = (function.__doc__ or "").strip().split("\n")[0]
        _REGISTRY[name] = RepresentationEntry(name, kinds, function, summary)
        return function

    return register


def list_representations(kind: str | None = None) -> list[RepresentationEntry]:
    """All representations, or those of data sets of one kind."""
    return [entry for entry in _REGISTRY.values() if kind is None or kind in entry.kinds]


def default_representation(dataset: Dataset) -> str:
    """What :func:`represent` takes when no name is given: pixels, features, tfidf or events."""
    return _DEFAULTS[dataset.kind]


def represent(
    dataset: Dataset,
    kind: str | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """The vectors of :func:`represented` alone: an array or a sparse matrix ``[rows, d]``."""
    return represented(dataset, kind, split, limit, seed, **options).x


def represented(
    dataset: Dataset,
    kind: str | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Represented:
    """Represent a split of a data set as vectors.

    Args:
        dataset: the data.
        kind: name of :func:`list_representations`; by default that of the kind of data.
        split: "train" or "test"; vocabularies and embeddings are learned from "train" always.
        limit: stratified subset of at most this many samples.
        seed: of the subset.
        **options: of the representation, see its docstring.

    Raises:
        ConfigError: unknown representation or option, or a value out of its domain.
        DataError: the representation does not apply to this kind of data.

    Example:
        >>> from spikedim.data import load_dataset
        >>> represent(load_dataset("digits"), "patches", size=4, limit=10).shape
        (40, 16)
    """
    name = default_representation(dataset) if kind is None else kind
    entry = _entry(name, dataset)
    for option, value in options.items():
        _check_option(entry, option, value)
    chosen = dataset.split(split).limited(limit, seed)
    made = entry.function(dataset, chosen, **options)
    return made if isinstance(made, Represented) else Represented(made)


def _entry(name: str, dataset: Dataset) -> RepresentationEntry:
    fitting = ", ".join(entry.name for entry in list_representations(dataset.kind))
    if name not in _REGISTRY:
        near = get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown representation {name!r}; {hint}for {dataset.kind} data: {fitting}"
        )
    entry = _REGISTRY[name]
    if dataset.kind not in entry.kinds:
        raise DataError(
            f"representation {name!r} reads {' or '.join(entry.kinds)} data, but {dataset.name} "
            f"holds {dataset.kind}; use {fitting}"
        )
    return entry


def _check_option(entry: RepresentationEntry, option: str, value: Any) -> None:
    """Refuse unknown options and values of another type than the option's default."""
    if option not in entry.options:
        known = ", ".join(entry.options) or "none"
        raise ConfigError(
            f"representation {entry.name!r} has no option {option!r}; it has: {known}"
        )
    default = inspect.signature(entry.function).parameters[option].default
    wanted = {int: (int, np.integer), float: (int, float, np.number)}.get(type(default))
    if wanted and (isinstance(value, bool) or not isinstance(value, wanted)):
        kind = "whole number" if isinstance(default, int) else "number"
        raise ConfigError(f"{option}={value!r} of {entry.name!r}; expected a {kind}")


@representation("pixels", "image")
def pixels(dataset: Dataset, chosen: Split) -> np.ndarray:
    """Every image as one vector of pixels in [0, 1], C, H, W order."""
    return _vectors(dataset, chosen)


@representation("features", "features")
def features(dataset: Dataset, chosen: Split) -> np.ndarray:
    """The vectors as stored."""
    return _vectors(dataset, chosen)


@representation("patches", "image")
def patches(
    dataset: Dataset,
    chosen: Split,
    size: int = 4,
    stride: int = 0,
    tokens: str = "samples",
) -> Represented:
    """Square patches of the image, the tokens before any network.

    A patch is a vector of C·size² pixels in [0, 1]; what the grid leaves over at the right and
    bottom border is dropped.

    Args:
        dataset, chosen: as for every representation.
        size: side in pixels.
        stride: distance of neighbouring patches; 0 for ``size``, so that they tile.
        tokens: ``"samples"`` (every patch is a sample), ``"flatten"`` (one vector of all patches
            per image) or ``"mean"`` (the mean patch of each image).

    Raises:
        ConfigError: size, stride or tokens out of domain.
    """
    channels, height, width = dataset.input_shape
    step = stride or size
    if not 1 <= size <= min(height, width) or step < 1:
        raise ConfigError(
            f"patches of size={size}, stride={stride}: expected a size between 1 and "
            f"{min(height, width)} and a stride of at least 1, or 0 for the size"
        )
    _choice("tokens", tokens, ("samples", "flatten", "mean"))
    images = _vectors(dataset, chosen).reshape(-1, channels, height, width)
    views = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(2, 3))
    views = views[:, :, ::step, ::step].transpose(0, 2, 3, 1, 4, 5)  # [n, h, w, C, size, size]
    count, across = views.shape[1] * views.shape[2], channels * size * size
    if tokens == "mean":
        return Represented(views.mean(axis=(1, 2)).reshape(len(images), across))
    if tokens == "flatten":
        return Represented(views.reshape(len(images), count * across))
    sample = np.repeat(np.arange(len(images)), count)
    return Represented(views.reshape(len(images) * count, across), sample)


@representation("tfidf", "text")
def tfidf(
    dataset: Dataset,
    chosen: Split,
    ngrams: int = 1,
    unit: str = "word",
    weights: str = "tfidf",
    least: int = 1,
) -> Any:
    """Sparse bag of n-grams of every text, TF-IDF weighted and normalised; never densified.

    Vocabulary and document frequencies come from the whole training split.

    Args:
        dataset, chosen: as for every representation.
        ngrams: n-grams of 1 to this many units.
        unit: ``"word"`` or ``"char"``.
        weights: ``"tfidf"`` (tf·(1 + ln((1+n)/(1+df))), rows of unit length) or ``"counts"``.
        least: training texts an n-gram must occur in.

    Raises:
        ConfigError: an option out of its domain.
        DataError: no n-gram is left.
    """
    _choice("unit", unit, ("word", "char"))
    _choice("weights", weights, ("tfidf", "counts"))
    if ngrams < 1 or least < 1:
        raise ConfigError(f"ngrams={ngrams}, least={least}: expected whole numbers of at least 1")
    return words.bag_of_ngrams(_texts(dataset.train), _texts(chosen), ngrams, unit, weights, least)


@representation("tokens", "text")
def tokens(
    dataset: Dataset,
    chosen: Split,
    table: str | Path | None = None,
    vocabulary: str | Path | None = None,
    dimensions: int = 100,
    window: int = 5,
    least: int = 2,
    tokens: str = "mean",
    seed: int = 0,
) -> Represented:
    """Embeddings of the words, from a given table or learned from the training texts.

    Learned embeddings are U√S of the truncated singular value decomposition of the positive
    pointwise mutual information of words within a window (Levy and Goldberg, NeurIPS 2014;
    context distribution to the power 0.75, Levy, Goldberg and Dagan, TACL 2015).

    Args:
        dataset, chosen: as for every representation.
        table: ``.npy`` or ``.safetensors`` file of one [words, d] matrix.
        vocabulary: text file of the table's words, one lower-case word per line.
        dimensions: d of learned embeddings.
        window: words to each side that count as context.
        least: occurrences a learned word needs.
        tokens: ``"mean"`` (one vector per text) or ``"samples"`` (every word is a sample).
        seed: of the start vector of the decomposition.

    Raises:
        ConfigError: an option out of its domain, or a table without its vocabulary.
        DataError: table and vocabulary disagree, or no word of the texts is in them.
    """
    if tokens == "flatten":
        raise ConfigError("tokens='flatten': texts differ in length; use 'mean' or 'samples'")
    _choice("tokens", tokens, ("mean", "samples"))
    if (table is None) != (vocabulary is None):
        raise ConfigError(
            "an embedding table and its vocabulary belong together: give both table=FILE.npy and "
            "vocabulary=WORDS.txt, or neither to learn embeddings"
        )
    if table is not None and vocabulary is not None:
        index, vectors = words.read_table(Path(table), Path(vocabulary))
    else:
        texts = _texts(dataset.train)
        index, vectors = words.learn_embeddings(texts, dimensions, window, least, seed)
    ids, sample, unknown = words.word_ids(_texts(chosen), index)
    if not len(ids):
        raise DataError(f"no word of the texts of {dataset.name} is in the vocabulary")
    notes = [f"{100 * unknown:.1f} % of the words are not in the vocabulary"] if unknown else []
    if tokens == "samples":
        return Represented(vectors[ids], sample, tuple(notes))
    empty = len(chosen) - len(np.unique(sample))
    if empty:
        notes.append(f"{empty} texts without a known word are represented by zeros")
    return Represented(words.mean_vectors(ids, sample, vectors, len(chosen)), None, tuple(notes))


@representation("events", "events")
def event_counts(dataset: Dataset, chosen: Split, steps: int = 1, bins: str = "time") -> np.ndarray:
    """Event counts of every recording per pixel, polarity and time bin, one vector each.

    Args:
        dataset, chosen: as for every representation.
        steps: time bins T; the vector has T·2·H·W numbers.
        bins: ``"time"`` (equal durations) or ``"count"`` (equal numbers of events).
    """
    assert isinstance(chosen.inputs, (Events, Frames))
    frames = chosen.inputs.frames(steps, bins=bins)  # [T, N, 2, H, W]
    return np.moveaxis(frames, 1, 0).reshape(len(chosen), -1)


@representation("time_surface", "events")
def time_surface(dataset: Dataset, chosen: Split, tau: float = 50_000.0) -> np.ndarray:
    """Time surface at the end of every recording: exp(−(t_end − t_last)/tau) per pixel, polarity.

    Pixels without an event are 0 (Lagorce et al., TPAMI 2017).

    Args:
        dataset, chosen: as for every representation.
        tau: decay, in the unit of the time stamps (microseconds).

    Raises:
        ConfigError: tau is not positive.
        DataError: the recordings come as frames, without the time of each event.
    """
    if not tau > 0:
        raise ConfigError(f"tau={tau}; expected a positive time in microseconds")
    events = chosen.inputs
    if not isinstance(events, Events):
        raise DataError(
            f"data set {dataset.name} holds frames, which have lost the time of each event; use "
            "the representation events"
        )
    lengths = np.diff(events.offsets)
    recording = np.repeat(np.arange(len(events)), lengths)
    cell = (recording * 2 + events.p.astype(np.int64)) * events.height + events.y.astype(np.int64)
    cell = cell * events.width + events.x.astype(np.int64)
    ends = events.t[np.repeat(events.offsets[1:], lengths) - 1].astype(np.int64)
    out = np.zeros(len(events) * 2 * events.height * events.width, np.float32)
    # time does not run backwards, so the largest value of a pixel is that of its last event
    np.maximum.at(out, cell, np.exp((events.t.astype(np.int64) - ends) / tau).astype(np.float32))
    return out.reshape(len(events), -1)


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r}; expected {' or '.join(map(repr, known))}")


def _vectors(dataset: Dataset, chosen: Split) -> np.ndarray:
    return replace(dataset, train=chosen, test=None).features()


def _texts(split: Split) -> list[str]:
    assert isinstance(split.inputs, list)
    return split.inputs
