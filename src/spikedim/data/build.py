"""From raw arrays to a checked :class:`Dataset`: the one door every reader goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spikedim.data import arrays
from spikedim.data.dataset import Dataset, Inputs, Kind, Split
from spikedim.data.events import Events, Frames
from spikedim.errors import DataError
from spikedim.gather import as_array, gathered, is_map

Pair = tuple[Any, Any]
_PAIR = "a pair (inputs, labels), labels may be None, or a torch Dataset of (x, y) or x"


def make_dataset(
    name: str,
    train: Any,
    test: Any = None,
    *,
    class_names: Sequence[str] = (),
    source: str = "arrays in memory",
    terms: str = "",
    citation: str = "",
    scale: float | None = None,
) -> Dataset:
    """Make a data set of arrays, lists of texts or events, after checking them.

    Two-dimensional arrays are features [N, d]; three-dimensional ones grey images [N, H, W];
    four-dimensional ones colour images, channels last ([N, H, W, C] with C of 1, 3 or 4) or first
    (C of 1 to 4; brought to channels last as a view); five-dimensional ones recordings of an event
    camera as frames [N, T, C, H, W]. Integers stay as stored.

    Labels without ``class_names`` are numbered by their sorted distinct values over both splits;
    with ``class_names`` they are positions in it.

    Args:
        name: name of the data set.
        train, test: pairs of inputs and labels, arrays or torch tensors; labels may be ``None``. Or
            a torch ``Dataset`` that hands out (x, y) or x by index.
        class_names: names of the classes.
        source, terms, citation: see :class:`Dataset`.
        scale: stored pixel value meaning 1.0; ``None`` takes 255 for uint8, 65535 for uint16,
            the smaller of the two that holds every training pixel for wider integers, and 1 for
            floats and booleans.

    Raises:
        DataError: empty, wrong dimensions, not numeric, NaN, infinite, images beyond float32; label
            count, type or range wrong; one class only; splits of different shape.

    Example:
        >>> make_dataset("toy", (np.eye(4), [0, 1, 0, 1]))
        Dataset('toy', features, 4 train, no test split, 2 classes)
    """
    train = _pair(train, f"{name} train")
    kind, inputs = _inputs(train[0], f"{name} train")
    others: Inputs | None = None
    if test is not None:
        test = _pair(test, f"{name} test")
        other_kind, others = _inputs(test[0], f"{name} test")
        if other_kind != kind or _shape(others) != _shape(inputs):
            raise DataError(
                f"{name}: train samples are {kind} {_shape(inputs)} but test samples are "
                f"{other_kind} {_shape(others)}; both splits must have the same shape"
            )
    labels = [
        _labels(pair[1], len(part), f"{name} {split}")
        for split, pair, part in (("train", train, inputs), ("test", test, others))
        if pair is not None and part is not None
    ]
    names, numbered = _classes(labels, [str(c) for c in class_names], name)
    return Dataset(
        name=name,
        kind=kind,
        train=Split(inputs, numbered[0]),
        test=None if others is None else Split(others, numbered[1]),
        class_names=names,
        source=source,
        terms=terms,
        citation=citation,
        scale=scale if scale is not None else _scale(kind, inputs),
    )


def as_dataset(data: Any) -> Dataset:
    """A :class:`Dataset` as it is; a torch ``Dataset`` or a pair of inputs and labels made one.

    Raises:
        DataError: as :func:`make_dataset`.
    """
    return data if isinstance(data, Dataset) else make_dataset(type(data).__name__, data)


def _pair(given: Any, what: str) -> Pair:
    if is_map(given):
        return gathered(given, what)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise DataError(f"{what}: a {type(given).__name__}; expected {_PAIR}")
    inputs, labels = given
    return gathered(inputs, what)[0] if is_map(inputs) else as_array(inputs), as_array(labels)


def _inputs(raw: Any, what: str) -> tuple[Kind, Inputs]:
    if isinstance(raw, np.ndarray) and raw.ndim == 0:
        raise DataError(f"{what}: a single number; expected an array of samples")
    if not (isinstance(raw, (list, Events, Frames)) or hasattr(raw, "dtype")):
        raise DataError(
            f"{what}: inputs are a {type(raw).__name__}; expected an array, a list of texts, or "
            "recordings (Events, Frames)"
        )
    if len(raw) == 0:
        raise DataError(f"{what}: no samples; expected at least one")
    if isinstance(raw, (Events, Frames)):
        return "events", raw
    if isinstance(raw, list):
        other = next((type(text).__name__ for text in raw if not isinstance(text, str)), None)
        if other is not None:
            raise DataError(f"{what}: a list with a {other}; expected an array, or a list of texts")
        return "text", raw
    if raw.dtype.kind not in "biuf":
        raise DataError(
            f"{what}: inputs of type {raw.dtype}; expected integers or floats, "
            "convert them with .astype('float32')"
        )
    if raw.ndim not in (2, 3, 4, 5) or 0 in raw.shape:
        raise DataError(
            f"{what}: inputs of shape {raw.shape}; expected features [N, d], images [N, H, W], "
            "[N, H, W, C] or [N, C, H, W], or events as frames [N, T, C, H, W]"
        )
    read = None if raw.ndim == 2 else np.float32
    arrays.check_finite(raw, what, read)  # in the order of axes that the index is given in
    if raw.ndim == 4:
        raw = _channels_last(raw, what)
    if raw.ndim == 5:
        return "events", Frames(raw)
    return ("features" if raw.ndim == 2 else "image"), raw


def _channels_last(images: np.ndarray, what: str) -> np.ndarray:
    if images.shape[3] in (1, 3, 4):
        return images
    if images.shape[1] in (1, 2, 3, 4):
        return np.moveaxis(images, 1, -1)
    raise DataError(
        f"{what}: images of shape {images.shape}; expected 1, 3 or 4 channels last "
        "[N, H, W, C] or 1 to 4 channels first [N, C, H, W]"
    )


def _shape(inputs: Inputs) -> tuple[int, ...]:
    if isinstance(inputs, np.ndarray):
        return inputs.shape[1:]
    if isinstance(inputs, Frames):
        return inputs.values.shape[1:]
    return (inputs.height, inputs.width) if isinstance(inputs, Events) else ()


def _labels(raw: Any, n: int, what: str) -> np.ndarray | None:
    if raw is None:
        return None
    labels = np.asarray(raw)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{what}: labels of shape {labels.shape}; expected one class per sample [N], "
            "for one-hot labels take .argmax(axis=1)"
        )
    if len(labels) != n:
        raise DataError(
            f"{what}: {n} samples but {len(labels)} labels; one label per sample is needed, "
            "check that both files belong together and are complete"
        )
    if labels.dtype.kind not in "biuU":
        raise DataError(
            f"{what}: labels of type {labels.dtype}, first {labels[0]}; expected integers or "
            "class names, convert them with .astype('int64')"
        )
    if labels.dtype.kind == "U" and (empty := labels == "").any():
        raise DataError(
            f"{what}: the label of sample {int(np.argmax(empty))} is empty; fill it in, or leave "
            "out samples without one"
        )
    return labels


def _classes(
    labels: list[np.ndarray | None], names: list[str], what: str
) -> tuple[tuple[str, ...], list[np.ndarray | None]]:
    known = [part for part in labels if part is not None]
    if not known:
        return (), labels
    if any(part.dtype.kind == "U" for part in known):
        known = [part.astype(str) for part in known]
    if not names or known[0].dtype.kind == "U":
        values = np.unique(np.concatenate(known))
        names = [str(value) for value in values.tolist()]
        known = [np.searchsorted(values, part) for part in known]
    for part in known:
        bad = (part < 0) | (part >= len(names))
        if bad.any():
            at = int(np.argmax(bad))
            raise DataError(
                f"{what}: label {part[at]} of sample {at} is outside 0 to {len(names) - 1}, the "
                f"{len(names)} class names given; correct the labels or the names"
            )
    if labels[0] is not None and len(np.unique(known[0])) < 2:
        raise DataError(
            f"{what}: all training labels are {names[int(known[0][0])]!r}; a classification set "
            "needs two classes, leave the labels out to measure dimension only"
        )
    numbered = iter(part.astype(np.int64) for part in known)
    return tuple(names), [None if part is None else next(numbered) for part in labels]


def _scale(kind: Kind, inputs: Inputs) -> float:
    if kind != "image" or not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "iu":
        return 1.0
    if inputs.dtype == np.uint8:
        return 255.0
    if inputs.dtype == np.uint16:
        return 65535.0
    low = min(int(rows.min()) for _, rows in arrays.blocks(inputs))
    high = max(int(rows.max()) for _, rows in arrays.blocks(inputs))
    if low < 0 or high > 65535:
        return 1.0
    return 255.0 if high <= 255 else 65535.0
