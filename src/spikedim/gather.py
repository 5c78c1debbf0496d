"""Arrays out of what users hold: torch tensors, and data sets that hand out one sample a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spikedim.errors import DataError
from spikedim.progress import track


def as_array(x: Any) -> Any:
    """A torch tensor as a NumPy array (bfloat16 as float32); anything else as it is."""
    if not hasattr(x, "detach"):
        return x
    x = x.detach().cpu()
    return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()


def is_map(x: Any) -> bool:
    """Whether ``x`` hands out samples by index, as ``torch.utils.data.Dataset`` does."""
    return (
        hasattr(x, "__getitem__")
        and hasattr(x, "__len__")
        and not hasattr(x, "__array__")
        and not hasattr(x, "tocsr")
        and not isinstance(x, (Sequence, Mapping))
    )


def gathered(samples: Any, what: str = "x") -> tuple[Any, np.ndarray | None]:
    """All samples of a data set of (x, y) or x: inputs [N, ...] or N texts, and labels if any.

    Args:
        samples: what :func:`is_map` accepts; every sample is asked for once.
        what: its name in messages.

    Raises:
        DataError: no samples, samples of different shapes or types, or neither (x, y) nor x.
    """
    inputs: Any = None
    first = ""
    labels = []
    for i in track(range(len(samples)), f"reading {what}"):
        item = samples[i]
        x, *rest = item if isinstance(item, (tuple, list)) else (item,)
        if len(rest) > 1 or isinstance(x, Mapping):
            kind = type(item).__name__
            raise DataError(f"{what}: sample {i} is a {kind} {_brief(item)}; expected (x, y) or x")
        labels += [as_array(y) for y in rest]
        value = x if isinstance(x, str) else np.asarray(as_array(x))
        form = _form(value)
        if inputs is None:
            first, inputs = form, _room(value, len(samples))
        if form != first:  # the array of the first would cast it silently
            raise DataError(f"{what}: sample {i} {form}, sample 0 {first}; bring all to one")
        inputs[i] = value
    if inputs is None:
        raise DataError(f"{what}: no samples; expected at least one")
    if labels and len(labels) != len(inputs):
        raise DataError(f"{what}: {len(inputs)} samples but {len(labels)} labels")
    return inputs, np.asarray(labels) if labels else None


def _form(sample: str | np.ndarray) -> str:
    """What all samples have in common, in words."""
    if isinstance(sample, str):
        return "is a text"
    return f"has shape {sample.shape} of {sample.dtype}"


def _room(sample: str | np.ndarray, count: int) -> Any:
    if isinstance(sample, str):
        return [""] * count
    return np.empty((count, *sample.shape), sample.dtype)


def _brief(item: Any) -> str:
    return f"of {len(item)} things" if hasattr(item, "__len__") else ""
