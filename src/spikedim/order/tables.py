"""Variables to order: columns of data files, layers or populations of recorded networks."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from spikedim.data import load_dataset
from spikedim.data.arrays import check_finite
from spikedim.data.formats.common import read_npy, read_npz, read_text
from spikedim.errors import ConfigError, DataError, SpikedimWarning
from spikedim.models.base import SpikingModel
from spikedim.models.features import representations
from spikedim.neurons.recording import Recording
from spikedim.order.sort import Array

UNITS = ("layers", "channels")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_VALUES = ("x", "data", "features", "values")


@dataclass(frozen=True)
class Recorded:
    """How the variables of a network were recorded.

    Attributes:
        T: timesteps.
        time: ``mean`` over them, or ``samples``, every timestep a row.
        split: of the data set.
        trained: whether the network is; ``None`` where that is not known.
        weights: which it has, in words.
    """

    T: int
    time: str
    split: str
    trained: bool | None
    weights: str


@dataclass(frozen=True)
class Variables:
    """A table of numbers.

    Attributes:
        names: of the columns.
        values: [n, d] float64.
        source: where they come from.
        forward: names are in the order in which a network computes them.
        rows_per_sample: rows that belong to one sample (its timesteps) and are not independent.
        recorded: how, where they are of a network and it is known.
    """

    names: tuple[str, ...]
    values: Array
    source: str = ""
    forward: bool = False
    rows_per_sample: int = 1
    recorded: Recorded | None = None


def read_variables(source: str | Path, root: Path | None = None) -> Variables:
    """Columns of a data table, or the features of a data set.

    Args:
        source: a .csv or .tsv file (.gz too) with a header of names, a .npy file [n, d], an .npz
            archive with x (or data, features, values) [n, d] and optional names, or a data set.
        root: folder of the data samples, see :func:`spikedim.data.load_dataset`.

    Raises:
        DataError: unreadable, not a table of finite numbers, or names that do not fit.
    """
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in _DELIMITERS:
        return _from_text(path, _DELIMITERS[suffix])
    if suffix == ".npy":
        return made(read_npy(path), None, path.name)
    if suffix == ".npz":
        stored = read_npz(path)
        key = next((key for key in _VALUES if key in stored), None)
        if key is None:
            raise DataError(
                f"{path} holds {', '.join(stored) or 'nothing'}; expected a table called "
                f"{', '.join(_VALUES)}, and optional names"
            )
        if stored[key].ndim == 2:
            names = [str(name) for name in stored["names"]] if "names" in stored else None
            return made(stored[key], names, path.name)
    dataset = load_dataset(str(source), root)
    return made(dataset.features(), None, dataset.name)


def network_variables(
    model: SpikingModel,
    x: Tensor,
    T: int,
    what: str = "potential",
    units: str = "layers",
    layers: str | Sequence[str] | None = None,
    time: str = "mean",
    batch_size: int = 16,
) -> Variables:
    """Mean activity of the layers, or channels, of a network over tokens, one row per sample.

    Args:
        model: the network, calibrated or trained.
        x: images [N, C, H, W] or events [T, N, C, H, W].
        T: timesteps.
        what: ``potential`` (before reset), ``rates`` or ``spikes``.
        units: ``"layers"``, or ``"channels"`` for every channel of the chosen layers.
        layers: shell patterns of neuron layers; default all.
        time: ``"mean"``, or ``"samples"`` for one row per timestep.
        batch_size: samples per forward pass.

    Raises:
        ConfigError: unknown ``units`` or ``time``.
    """
    if time not in ("mean", "samples"):
        raise ConfigError(f"time={time!r}; expected mean or samples")
    found = representations(
        model, x, T, what, layers=layers, tokens="mean", time=time, batch_size=batch_size
    )
    return _of_units(found, units, T if time == "samples" else 1, f"{what} of {units}")


def recorded_variables(
    recording: Recording, what: str = "potential", units: str = "layers", time: str = "mean"
) -> Variables:
    """The same from a :func:`spikedim.neurons.record` of layers of shape [T, B, ..., channels].

    Arguments and errors as :func:`network_variables`; also DataError for a recording without
    the quantity.
    """
    if what not in ("potential", "spikes", "rates"):
        raise ConfigError(f"what={what!r}; expected potential, spikes or rates")
    if time not in ("mean", "samples"):
        raise ConfigError(f"time={time!r}; expected mean or samples")
    traces = recording.potential if what == "potential" else recording.spikes
    if not traces:
        raise DataError(f"the recording holds no {what}; record them with what=...")
    found, steps = {}, 1
    for name, trace in traces.items():
        if trace.ndim < 2:
            raise DataError(f"{name!r} is of shape {tuple(trace.shape)}; expected [T, B, ...]")
        value = trace.detach().float().reshape(*trace.shape[:2], -1, trace.shape[-1]).mean(2)
        if trace.ndim == 2:
            value = trace.detach().float().unsqueeze(-1)
        steps = len(value) if time == "samples" else 1
        value = value.mean(0) if time == "mean" else value.transpose(0, 1).flatten(0, 1)
        found[name] = value.numpy()
    return _of_units(found, units, steps, f"{what} of {units}")


def made(values: np.ndarray, names: Sequence[str] | None, source: str) -> Variables:
    """Variables from an array [n, d], checked.

    Raises:
        DataError: not a table of finite numbers, a constant column, repeated names.
    """
    if hasattr(values, "toarray"):
        raise DataError(f"{source}: text has no columns to order; give a table of numbers")
    if values.ndim != 2 or values.dtype.kind not in "fiub" or values.shape[1] < 2:
        raise DataError(
            f"{source}: shape {values.shape} of {values.dtype}; expected numbers [samples, "
            "variables] with at least 2 variables"
        )
    check_finite(values, source)
    table = np.asarray(values, float)
    named = tuple(names) if names is not None else tuple(f"x{j + 1}" for j in range(table.shape[1]))
    if len(named) != table.shape[1] or len(set(named)) < len(named):
        raise DataError(
            f"{source}: {len(named)} names ({len(set(named))} different) for {table.shape[1]} "
            "columns; expected one different name a column"
        )
    return _without_constants(Variables(named, table, source))


def _of_units(found: dict[str, np.ndarray], units: str, rows: int, source: str) -> Variables:
    if units not in UNITS:
        raise ConfigError(f"units={units!r}; expected one of {', '.join(UNITS)}")
    names: list[str] = []
    columns: list[np.ndarray] = []
    for name, value in found.items():
        if units == "layers":
            names.append(name)
            columns.append(value.mean(1, keepdims=True))
        else:
            names += [f"{name}[{c}]" for c in range(value.shape[1])]
            columns.append(value)
    table = made(np.hstack(columns), names, source)
    return Variables(table.names, table.values, source, units == "layers", rows)


def _without_constants(table: Variables) -> Variables:
    varies = table.values.std(0) > 1e-12 * np.abs(table.values).max(0)
    if varies.all():
        return table
    gone = [name for name, keep in zip(table.names, varies, strict=True) if not keep]
    shown = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
    if varies.sum() < 2:
        raise DataError(f"{table.source}: fewer than 2 columns vary ({shown} constant)")
    warnings.warn(
        f"{len(gone)} of {len(varies)} variables are constant and left out: {shown}",
        SpikedimWarning,
        stacklevel=3,
    )
    names = tuple(name for name, keep in zip(table.names, varies, strict=True) if keep)
    return Variables(names, table.values[:, varies], table.source)


def _from_text(path: Path, delimiter: str) -> Variables:
    rows = [row for row in csv.reader(io.StringIO(read_text(path)), delimiter=delimiter) if row]
    if len(rows) < 2:
        raise DataError(f"{path} holds {len(rows)} lines; expected a header and lines of numbers")
    header, *body = rows
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise DataError(f"{path} line {line} has {len(row)} values; expected {len(header)}")
    try:
        values = np.array(body, dtype=float)
    except ValueError as error:
        raise DataError(f"{path}: {_bad_cell(header, body)}") from error
    if not any(_is_text(name) for name in header):
        raise DataError(f"{path} has no header; expected the names of the variables in line 1")
    return made(values, [name.strip() for name in header], path.name)


def _bad_cell(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    for line, row in enumerate(body, start=2):
        for name, cell in zip(header, row, strict=True):
            if _is_text(cell):
                return f"{cell!r} in column {name!r}, line {line}, is not a number; drop or code it"
    return "not a table of numbers"


def _is_text(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return True
    return False
