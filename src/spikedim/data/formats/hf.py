"""Hugging Face ``datasets``: saved folders and hub names (extra ``spikedim[hf]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spikedim.data.build import make_dataset
from spikedim.data.dataset import Dataset
from spikedim.data.formats.common import TEST_NAMES
from spikedim.errors import DataError

PREFIX = "hf:"
_LABELS = ("label", "labels", "fine_label", "target")
_INPUTS = ("image", "img", "images", "sentence", "text", "features", "x")


def is_saved(path: Path) -> bool:
    """Whether ``path`` was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def read_saved(path: Path) -> Dataset:
    """Read a folder written by ``save_to_disk``.

    Raises:
        DataError: the extra is not installed, or the columns are not recognised.
    """
    datasets = _library(str(path))
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library raises, the user sees one line
        raise DataError(f"datasets cannot read {path}: {_line(error)}; save it again") from error
    return _convert(path.name, found, str(path))


def read_hub(spec: str) -> Dataset:
    """Read ``hf:NAME`` or ``hf:NAME:CONFIG`` from the hub or its local cache.

    Raises:
        DataError: the extra is not installed, the hub cannot be reached, or the columns are not
            recognised.
    """
    datasets = _library(spec)
    name, _, config = spec.removeprefix(PREFIX).partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever the library raises, the user sees one line
        raise DataError(
            f"datasets cannot load {name!r}: {_line(error)}; check the name, the configuration "
            "(hf:NAME:CONFIG) and the network"
        ) from error
    return _convert(name.rsplit("/", 1)[-1], found, f"https://huggingface.co/datasets/{name}")


def _library(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{what} needs the Hugging Face datasets library; pip install spikedim[hf]"
        ) from error
    return datasets


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _convert(name: str, found: Any, source: str) -> Dataset:
    splits = found if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise DataError(f"{source} has splits {', '.join(splits)}; expected one called train")
    test = next((splits[key] for key in TEST_NAMES if key in splits), None)
    columns = splits["train"].column_names
    input_key = next((key for key in _INPUTS if key in columns), None)
    label_key = next((key for key in _LABELS if key in columns), None)
    if input_key is None:
        raise DataError(
            f"{source} has columns {', '.join(columns)}; expected one of {', '.join(_INPUTS)}"
        )
    feature = splits["train"].features.get(label_key) if label_key else None
    return make_dataset(
        name,
        _pair(splits["train"], input_key, label_key, source),
        None if test is None else _pair(test, input_key, label_key, source),
        class_names=getattr(feature, "names", None) or (),
        source=source,
        terms=getattr(splits["train"].info, "license", "") or "",
        citation=getattr(splits["train"].info, "citation", "") or "",
    )


def _pair(split: Any, input_key: str, label_key: str | None, source: str) -> tuple[Any, Any]:
    values = list(split[input_key])
    labels = np.asarray(split[label_key]) if label_key else None
    if values and isinstance(values[0], str):
        return values, labels
    stack = [np.asarray(value) for value in values]
    shapes = {array.shape for array in stack}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise DataError(
            f"{source}: {input_key} has samples of shape {first} and {second}; "
            "bring them to one size and save the set again"
        )
    return np.stack(stack) if stack else np.empty((0, 1)), labels
