"""The calibration store: what this user's own verified designs found, and refits from it.

``calibration.jsonl`` gets one line per verified design: the case with its outcome and what each
predictor had said beforehand. Appending takes a lock and one write, so concurrent processes lose
nothing; a line torn by a killed process is skipped with a warning. ``spikedim calibrate`` adopts
the stored cases: until then, designs use the cases that ship with spikedim, so that verifying does
not silently change later answers.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from spikedim.design.cases import Case, reference_cases
from spikedim.design.forecast import Forecast, ready
from spikedim.design.plan import WORDS, Target, predictable
from spikedim.design.predictors import Calibrated
from spikedim.design.validation import select
from spikedim.errors import DataError, SpikedimWarning, StorageError
from spikedim.results import Result, Table, number, plain, points_of
from spikedim.storage import digest, read_json, write_json

if TYPE_CHECKING:
    from spikedim.design.plan import Plan

VARIABLE = "SPIKEDIM_CALIBRATION"
_FILE = "calibration.jsonl"


@dataclass(frozen=True)
class Entry:
    """A verified design.

    Attributes:
        id: of data, network, settings and outcome: the same design is stored once.
        created: when, UTC.
        case: with its outcome.
        predicted: name -> (T, low, high) said beforehand.
        recommended: the predictor that was recommended.
    """

    id: str
    created: str
    case: Case
    predicted: dict[str, tuple[float, float, float]]
    recommended: str


def store_path(path: str | Path | None = None) -> Path:
    """The store: ``path``, else the file SPIKEDIM_CALIBRATION names, else in the user's data.

    The user's data folder is ``XDG_DATA_HOME``, by default ``~/.local/share``.
    """
    if path is not None:
        return Path(path)
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    home = os.environ.get("XDG_DATA_HOME")
    root = Path(home) if home else Path.home() / ".local" / "share"
    return root / "spikedim" / _FILE


def check_store(path: Path) -> None:
    """Check that the store can be read and written, before any work.

    Raises:
        StorageError: it cannot.
    """
    read(path)
    place = next(part for part in (path, *path.absolute().parents) if part.exists())
    if (place != path and not place.is_dir()) or not os.access(place, os.W_OK):
        raise StorageError(
            f"cannot write the calibration store {path}: {place} is "
            f"{'not writable' if place == path or place.is_dir() else 'not a folder'}; choose "
            f"another with --store or {VARIABLE}"
        )


def append(forecast: Forecast, case: Case, path: Path) -> Entry:
    """Store a verified design; one that is there already is not stored again.

    Raises:
        StorageError: the place is not writable or the disk is full.
    """
    predicted = {
        item.prediction.name: (
            item.prediction.timesteps.value,
            item.prediction.timesteps.low or 1.0,
            item.prediction.timesteps.high or float(item.prediction.timesteps.value),
        )
        for item in forecast.ranked
    }
    key = digest(plain(case), 16)
    entry = Entry(key, _now(), case, predicted, forecast.best.name)
    line = json.dumps(plain(entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if path.exists() and any(known.id == key for known in read(path)):
                return entry
            with open(path, "ab+") as handle:
                if handle.tell() > 0:
                    handle.seek(-1, os.SEEK_END)
                    if handle.read(1) != b"\n":  # a killed process left half a line
                        line = b"\n" + line
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
    except OSError as error:
        raise StorageError(
            f"cannot write the calibration store {path}: {error.strerror or error}; choose another "
            f"with --store or {VARIABLE}"
        ) from error
    return entry


def why_forgotten(plan: Plan) -> str | None:
    """Why a plan is no case to fit predictors on, in words; ``None`` where it is one.

    Event recordings and texts are none: the predictors are of images, and of the effective
    dimension of pixels.
    """
    if plan.sweep is None or plan.case.outcome is None:
        return "T* was not measured"
    if not predictable(plan.data.kind):
        return f"the predictors are fitted on static images, not on {WORDS[plan.data.kind]}"
    if not plan.sweep.learned:
        return "the network has not learned, so its T* says nothing"
    return None


def remember_plan(plan: Plan, path: Path) -> Entry | None:
    """Store a plan, unless :func:`why_forgotten` says why not.

    Raises:
        StorageError: as :func:`append`.
    """
    return append(plan.forecast, plan.case, path) if why_forgotten(plan) is None else None


def read(path: Path) -> list[Entry]:
    """Every whole entry of the store; none where there is no file.

    Raises:
        StorageError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}; name another file with --store or "
            f"{VARIABLE}"
        ) from error
    entries = []
    for place, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
            entries.append(
                Entry(
                    values["id"],
                    values["created"],
                    Case.from_dict(values["case"]),
                    {k: (v[0], v[1], v[2]) for k, v in values["predicted"].items()},
                    values["recommended"],
                )
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, DataError):
            warnings.warn(
                f"{path}, line {place} is not a stored design and is skipped",
                SpikedimWarning,
                stacklevel=2,
            )
    return entries


def known_cases(path: Path) -> tuple[list[Case], int]:
    """The cases that ship with spikedim and those the user adopted, and how many are the user's."""
    adopted = set(_adopted(path))
    own = [entry.case for entry in read(path) if entry.id in adopted] if adopted else []
    return [*reference_cases(), *own], len(own)


@dataclass(frozen=True)
class Change:
    """One predictor before and after a refit.

    Attributes:
        predictor: its name.
        before, after: mean |log2 error| with left-out data sets, of the cases before and after.
        own: mean |log2 error| of what was predicted for the user's designs beforehand; ``None``
            where it had said nothing.
        fitted_before, fitted_after: its parameters in words.
    """

    predictor: str
    before: float
    after: float
    own: float | None
    fitted_before: str
    fitted_after: str


@dataclass(frozen=True)
class Recalibration(Result):
    """A refit from the store.

    Attributes:
        store: the file.
        own: stored designs, all adopted now.
        new: those that were not adopted before.
        cases: all cases now.
        tolerance: accepted loss of every T* behind the fits and errors, percentage points.
        changes: one per predictor.
        best_before, best_after: the recommended predictor without a pilot training.
        pilot_before, pilot_after: the recommended predictor with one.
    """

    store: str
    own: int
    new: int
    cases: int
    tolerance: float
    changes: tuple[Change, ...]
    best_before: str
    best_after: str
    pilot_before: str
    pilot_after: str

    def tables(self) -> list[Table]:
        """What changed."""
        rows = [
            (c.predictor, c.before, c.after, c.own, c.fitted_before, c.fitted_after)
            for c in self.changes
        ]
        columns = (
            "predictor", "error before", "error after", "error on your designs", "fitted before",
            "fitted after",
        )  # fmt: skip
        notes = (
            "Errors are mean abs log2(T̂/T*) with the case's data set left out, T* of every case "
            f"within {points_of(self.tolerance)} of its plateau; on your designs, of what was said "
            "before they were measured, within the tolerance that each was made with.",
            f"Recommended without training: {_arrow(self.best_before, self.best_after)}; with one "
            f"training: {_arrow(self.pilot_before, self.pilot_after)}.",
        )
        title = (
            f"{self.new} new of {self.own} stored design{'' if self.own == 1 else 's'}; "
            f"{self.cases} cases in all"
        )
        return [Table(title, columns, rows, notes)]


def recalibrate(path: Path, tolerance: float = Target.tolerance) -> Recalibration:
    """Refit every predictor with all stored designs, adopt them, and say what changed.

    Args:
        path: the store.
        tolerance: accepted loss in percentage points that T* of all cases is brought to, as a
            design brings them to its own.

    Raises:
        DataError: the store is empty.
        StorageError: it cannot be read or written.
    """
    entries = {entry.id: entry for entry in read(path)}
    if not entries:
        raise DataError(
            f"no stored design in {path}: run spikedim design --verify first, or name another "
            f"store with --store or {VARIABLE}"
        )
    old, _ = known_cases(path)
    adopted = set(_adopted(path))
    new = [*reference_cases(), *(entry.case for entry in entries.values())]
    before, after = (ready([case.within(tolerance) for case in cases]) for cases in (old, new))
    changes = tuple(
        _change(b, a, list(entries.values())) for b, a in zip(before, after, strict=True)
    )
    with _lock(path):
        write_json(_fit_path(path), {"ids": sorted(entries), "created": _now()})
    return Recalibration(
        str(path),
        len(entries),
        len(set(entries) - adopted),
        len(new),
        tolerance,
        changes,
        *(_best(items, pilot) for pilot in (False, True) for items in (before, after)),
    )


def _best(items: Sequence[Calibrated], pilot: bool) -> str:
    able = [c for c in items if pilot or c.predictor.needs != "one training"]
    return select(able).predictor.name


def forget(path: Path) -> bool:
    """Go back to the cases that ship with spikedim; the store itself is kept."""
    fit = _fit_path(path)
    if not fit.exists():
        return False
    fit.unlink()
    return True


def _change(before: Calibrated, after: Calibrated, entries: Sequence[Entry]) -> Change:
    import numpy as np

    name = before.predictor.name
    said = [
        abs(np.log2(entry.predicted[name][0] / entry.case.truth.t_star))
        for entry in entries
        if name in entry.predicted
    ]
    return Change(
        name,
        before.error,
        after.error,
        float(np.mean(said)) if said else None,
        parameters(before.fitted),
        parameters(after.fitted),
    )


def parameters(fitted: Any) -> str:
    """The parameters of a fitted predictor in words."""
    shown = []
    for name, value in vars(fitted).items():
        if isinstance(value, (int, float)):
            shown.append(f"{name} = {number(value)}")
        elif name == "constant":
            shown.append(f"C = {value}")
    return ", ".join(shown) or "–"


def _adopted(path: Path) -> list[str]:
    fit = _fit_path(path)
    return list(read_json(fit)["ids"]) if fit.exists() else []


def _fit_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-adopted.json")


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
