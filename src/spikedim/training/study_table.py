"""The tidy tables of a study: one row per trained network and tested number of timesteps.

A study is two Parquet files. ``study.parquet`` says how every network did
(:class:`StudyRow`, :func:`read_study`); ``outputs.parquet`` holds what chosen networks put out
(:class:`OutputRow`, :func:`read_outputs`). Both carry the provenance of the study in their schema
metadata under ``spikedim``: versions, command, hardware, settings and data fingerprints, as JSON.
Rows are sorted by their setting, so that the same trials give the same table in whatever order,
process or session they were run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import numpy as np

from spikedim.errors import DataError
from spikedim.results import plain
from spikedim.storage import write_bytes

_KEY = b"spikedim"
#: Columns that two runs of the same trial need not share.
VOLATILE = ("train_seconds",)


@dataclass(frozen=True)
class StudyRow:
    """One network tested at one T. Absent values are ``None``.

    Attributes:
        study: name of the study.
        dataset, model: what was trained on and which network.
        parameters: of the network as built for the data.
        train_T, eval_T: timesteps of the training and of the test. The same network appears once
            per ``eval_T``; the rows with ``eval_T == train_T`` are accuracy against trained T.
        seed: of weights, data order, augmentation and held-out split. The chosen subset of the
            data does not depend on it.
        beta, v_th, t_ref, reset: of every neuron: leak, threshold, refractory steps, reset mode;
            ``None`` where neurons are kept as they are.
        encoder: how images became input; ``"frames"`` of recordings, ``"words"`` of texts.
        train_samples, test_samples, classes, image_size: of the data as used; ``image_size`` is
            the side in pixels.
        components: principal components the inputs were truncated to; ``None`` for all.
        epochs: passes over the training part.
        correct: test samples classified correctly.
        accuracy, accuracy_low, accuracy_high: percent, 95 % Wilson interval over test samples.
        held_out_accuracy: percent, on training samples held out, at ``train_T`` (it chose the
            epoch); ``None`` where none were.
        spikes_per_sample: spikes of all neurons in ``eval_T`` steps, mean over test samples.
        firing_rate: spikes per neuron and step.
        energy_paper_sop_uJ, energy_exact_fanout_uJ: energy of one inference in µJ per sample, by
            the conventions of :mod:`spikedim.profiling`, on the first test samples.
        d_eff_pca95, d_eff_pr: effective dimension of the training inputs as used: components that
            reach 95 % of the variance, and participation ratio (centred, over pixels).
        train_seconds: time spent in epochs.
        key: identifies the trial; the same setting, data and versions give the same key.
        fingerprint: of the data as used.
        status: ``"done"``, or ``"failed: reason"``, which has one row and no measurement.
        correct_bits: ``np.packbits`` of right (1) or wrong (0) per test sample, in their order.
    """

    study: str
    dataset: str
    model: str
    parameters: int
    train_T: int
    eval_T: int
    seed: int
    beta: float | None
    v_th: float | None
    t_ref: int | None
    reset: str | None
    encoder: str
    train_samples: int
    test_samples: int
    classes: int
    image_size: int
    components: int | None
    epochs: int
    correct: int | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    held_out_accuracy: float | None
    spikes_per_sample: float | None
    firing_rate: float | None
    energy_paper_sop_uJ: float | None
    energy_exact_fanout_uJ: float | None
    d_eff_pca95: float
    d_eff_pr: float
    train_seconds: float | None
    key: str
    fingerprint: str
    status: str
    correct_bits: bytes | None = field(repr=False)

    @property
    def hits(self) -> np.ndarray:
        """0/1 per test sample, uint8 [test_samples], the same samples in every row of the data.

        Raises:
            DataError: the trial failed.
        """
        if self.correct_bits is None:
            raise DataError(f"trial {self.key} has no test result: {self.status}")
        bits = np.frombuffer(self.correct_bits, dtype=np.uint8)
        return np.unpackbits(bits, count=self.test_samples)


@dataclass(frozen=True)
class OutputRow:
    """What one network put out on the test samples, averaged over the first ``eval_T`` steps.

    With z_t the logits of step t, the answer after T steps is ``z̄_T = (1/T)·Σ_{t<=T} z_t`` and the
    limit is ``z̄`` at the largest ``eval_T`` stored for the network.

    Attributes:
        dataset, model, seed, train_T, key: the network, as in :class:`StudyRow`.
        eval_T: timesteps of this answer, up to well beyond ``train_T``.
        samples, classes: test samples looked at, a stratified choice, and classes.
        logit_samples: the first so many of them have full logits.
        logit_mean, logit_std: over samples and classes.
        error_mean, error_std: of ``z̄_T − limit`` over samples and classes.
        margin_error_mean, margin_error_std: the same of the margin.
        step_std: root mean over samples and classes of the variance of z_t over the T steps.
        positions_bytes: places of the samples in the test split, int32 [samples]
            (:attr:`positions`): ``StudyRow.hits[positions]`` is about the same samples. Every
            beginning of them is stratified.
        labels_bytes: classes of the samples, int32 [samples] (:attr:`labels`).
        margin_bytes: ``z̄_y − max_{j≠y} z̄_j`` with y the label, float16 [samples]
            (:attr:`margins`); positive where the answer is right.
        logits_bytes: ``z̄`` of the first ``logit_samples`` samples, float16 [logit_samples,
            classes] (:attr:`logits`).
    """

    dataset: str
    model: str
    seed: int
    train_T: int
    eval_T: int
    key: str
    samples: int
    classes: int
    logit_samples: int
    logit_mean: float
    logit_std: float
    error_mean: float
    error_std: float
    margin_error_mean: float
    margin_error_std: float
    step_std: float
    positions_bytes: bytes = field(repr=False)
    labels_bytes: bytes = field(repr=False)
    margin_bytes: bytes = field(repr=False)
    logits_bytes: bytes = field(repr=False)

    @property
    def positions(self) -> np.ndarray:
        """Places of the samples in the test split, int32 [samples]."""
        return np.frombuffer(self.positions_bytes, dtype=np.int32)

    @property
    def labels(self) -> np.ndarray:
        """Classes, int32 [samples]."""
        return np.frombuffer(self.labels_bytes, dtype=np.int32)

    @property
    def margins(self) -> np.ndarray:
        """Margin of the true class, float32 [samples]."""
        return np.frombuffer(self.margin_bytes, dtype=np.float16).astype(np.float32)

    @property
    def logits(self) -> np.ndarray:
        """Mean logits, float32 [logit_samples, classes], of the first samples."""
        flat = np.frombuffer(self.logits_bytes, dtype=np.float16).astype(np.float32)
        return flat.reshape(self.logit_samples, self.classes)


Row = TypeVar("Row", StudyRow, OutputRow)


@dataclass(frozen=True)
class StudyTable(Generic[Row]):
    """Rows of a study with their provenance.

    Attributes:
        rows: sorted by setting.
        provenance: versions, command, hardware, settings, data fingerprints.
    """

    rows: tuple[Row, ...]
    provenance: dict[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def where(self, **equal: Any) -> StudyTable[Row]:
        """The rows whose columns have these values, e.g. ``where(dataset="digits", seed=0)``."""
        kept = [r for r in self.rows if all(getattr(r, k) == v for k, v in equal.items())]
        return StudyTable(tuple(kept), self.provenance)

    def column(self, name: str) -> np.ndarray:
        """One column as an array; absent numbers are NaN."""
        values = [getattr(row, name) for row in self.rows]
        return np.array([np.nan if value is None else value for value in values])

    def values(self, name: str) -> list[Any]:
        """Distinct values of a column, ascending."""
        return sorted({getattr(row, name) for row in self.rows})

    def same_trials(self, other: StudyTable[Row]) -> bool:
        """Whether both hold the same rows, but for the time they took."""
        return [_lasting(row) for row in self] == [_lasting(row) for row in other]


def write_study(
    path: str | Path, rows: Sequence[Row], provenance: Mapping[str, Any], kind: type[Row]
) -> Path:
    """Write rows as Parquet, atomically, sorted by setting.

    Raises:
        DataError: two rows are of the same trial and ``eval_T``.
        StorageError: the disk is full or the place is not writable.
    """
    import pyarrow as pa
    from pyarrow import parquet

    ordered = sorted(rows, key=_setting)
    places = [(row.key, row.eval_T) for row in ordered]
    if len(set(places)) != len(places):
        raise DataError(f"{path}: a trial appears twice; every (key, eval_T) belongs there once")
    names = [f.name for f in fields(kind)]
    columns = {name: [getattr(row, name) for row in ordered] for name in names}
    metadata = {_KEY: json.dumps(plain(dict(provenance)), sort_keys=True).encode()}
    table = pa.table(columns, schema=_schema(kind).with_metadata(metadata))
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", compression_level=12)
    return write_bytes(path, buffer.getvalue())


def read_study(path: str | Path) -> StudyTable[StudyRow]:
    """Read ``study.parquet``: one :class:`StudyRow` per trial and ``eval_T``.

    Example: accuracy against trained T of one network::

        table = read_study("results/study.parquet").where(dataset="digits", status="done")
        {row.train_T: row.accuracy for row in table if row.eval_T == row.train_T}

    Raises:
        DataError: the file is missing, no Parquet, or not a table of a study.
    """
    return _read(path, StudyRow)


def read_outputs(path: str | Path) -> StudyTable[OutputRow]:
    """Read ``outputs.parquet``: one :class:`OutputRow` per network and ``eval_T``.

    Raises:
        DataError: the file is missing, no Parquet, or not a table of outputs.
    """
    return _read(path, OutputRow)


def _read(path: str | Path, kind: type[Row]) -> StudyTable[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read the study {path}: {reason}") from error
    missing = [f.name for f in fields(kind) if f.name not in table.column_names]
    metadata = (table.schema.metadata or {}).get(_KEY)
    if missing or metadata is None:
        what = f"it lacks {', '.join(missing)}" if missing else "it has no provenance"
        raise DataError(f"{path} is not a study's table of {kind.__name__}: {what}")
    names = [f.name for f in fields(kind)]
    rows = tuple(kind(**row) for row in table.select(names).to_pylist())
    return StudyTable(rows, json.loads(metadata))


def _setting(row: StudyRow | OutputRow) -> tuple[Any, ...]:
    return (row.dataset, row.model, row.train_T, row.seed, row.key, row.eval_T)


def _lasting(row: StudyRow | OutputRow) -> dict[str, Any]:
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name not in VOLATILE}


def _schema(kind: type[StudyRow] | type[OutputRow]) -> Any:
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
    hints = get_type_hints(kind)
    columns = []
    for f in fields(kind):
        options = getattr(hints[f.name], "__args__", (hints[f.name],))
        base = next(option for option in options if option is not type(None))
        columns.append(pa.field(f.name, types[base], nullable=len(options) > 1))
    return pa.schema(columns)
