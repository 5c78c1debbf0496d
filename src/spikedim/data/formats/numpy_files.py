"""NumPy files: ``.npy``, ``.npy.xz``, ``.npz`` archives of arrays, and of events."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.events import Events
from spikedim.data.formats.common import read_npy, read_npz, reading, stem
from spikedim.errors import DataError

INPUT_KEYS = ("x", "images", "data", "inputs", "features")
LABEL_KEYS = ("y", "labels", "targets")
_EVENT_KEYS = {"x", "y", "p", "t", "offsets"}


def is_npy(path: Path) -> bool:
    """Whether ``path`` is a single array."""
    return path.is_file() and path.name.endswith((".npy", ".npy.xz"))


def is_npz(path: Path) -> bool:
    """Whether ``path`` is an archive of arrays."""
    return path.is_file() and path.suffix == ".npz"


def read_array_file(path: Path) -> Dataset:
    """Read ``NAME.npy`` (memory-mapped) or ``NAME.npy.xz``, with ``NAME_labels.npy`` if there."""
    labels = path.with_name(f"{stem(path)}_labels.npy")
    found = read_npy(labels) if labels.is_file() else None
    return make_dataset(stem(path), (read_npy(path), found), source=str(path))


def read_archive(path: Path) -> Dataset:
    """Read an ``.npz`` archive.

    Inputs are called x, images, data, inputs or features, labels y, labels or targets (any case).
    A test split has the same names with ``test_`` before or ``_test`` after; the training names may
    carry ``train`` alike. ``class_names`` is optional. Shapes are read as by
    :func:`~spikedim.data.build.make_dataset`: [N, T, C, H, W] are recordings as frames. Archives
    with x, y, p, t and offsets hold events, see :func:`read_events`.

    Raises:
        DataError: no inputs among the keys, or a corrupt archive.
    """
    stored = _named(path)
    if stored.keys() >= _EVENT_KEYS:
        return read_events(path)
    test = _pick(stored, ("test_{}", "{}_test"))
    train = _pick(stored, ("train_{}", "{}_train")) or _pick(stored, ("{}",))
    if train is None:
        raise DataError(
            f"{path} holds {', '.join(stored) or 'nothing'}; expected inputs called "
            f"{', '.join(INPUT_KEYS)} and labels called {', '.join(LABEL_KEYS)}, "
            "with train_/test_ before or _train/_test after for two splits"
        )
    names = stored.get("class_names", np.empty(0, str))
    return make_dataset(stem(path), train, test, class_names=names.tolist(), source=str(path))


def read_events(
    path: Path,
    name: str = "",
    sensor: tuple[int, int] | None = None,
    source: str = "",
    terms: str = "",
    citation: str = "",
) -> Dataset:
    """Read events from an ``.npz`` archive.

    Keys, in any case: x, y, p, t (one value per event), offsets (recordings + 1); optional labels
    (one per recording), is_test (marks the test recordings), sensor (height, width; default: the
    largest coordinates) and class_names.

    Raises:
        DataError: keys missing or contradictory, see :class:`Events`.
    """
    stored = _named(path)
    missing = sorted(_EVENT_KEYS - stored.keys())
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; expected events x, y, p, t, offsets")
    if sensor is None:
        with reading(path, "events with a sensor size (height, width)"):
            largest = [int(stored[key].max(initial=0)) + 1 for key in "yx"]
            height, width = stored.get("sensor", np.array(largest)).ravel().tolist()
            sensor = (int(height), int(width))
    x, y, p, t = (stored[key] for key in "xypt")
    events = Events(x, y, p, t, stored["offsets"].astype(np.int64), *sensor)
    labels = stored.get("labels")
    is_test = stored.get("is_test", np.zeros(len(events), bool)).astype(bool).ravel()
    for key, array in (("labels", labels), ("is_test", is_test)):
        if array is not None and array.shape[:1] != (len(events),):
            raise DataError(
                f"{path}: {len(events)} recordings but {array.size} values in {key}; "
                "one per recording is needed"
            )
    parts = [
        (events.take(chosen), None if labels is None else labels[chosen])
        for chosen in (np.flatnonzero(~is_test), np.flatnonzero(is_test))
    ]
    return make_dataset(
        name or stem(path),
        parts[0],
        parts[1] if is_test.any() else None,
        class_names=stored.get("class_names", np.empty(0, str)).tolist(),
        source=source or str(path),
        terms=terms,
        citation=citation,
    )


def _named(path: Path) -> dict[str, np.ndarray]:
    return {key.lower(): array for key, array in read_npz(path).items()}


def _pick(
    stored: dict[str, np.ndarray], forms: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Inputs and labels called by one of ``forms``; ``None`` without inputs."""
    inputs, labels = (
        next((stored[n] for k in keys for f in forms if (n := f.format(k)) in stored), None)
        for keys in (INPUT_KEYS, LABEL_KEYS)
    )
    return None if inputs is None else (inputs, labels)
