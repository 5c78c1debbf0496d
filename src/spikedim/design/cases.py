"""Cases: one network on one data set, what is known beforehand and what was found out.

A predictor of T* is fitted on cases with an outcome and asked about cases without one. Cases come
from the tables of a study, from the reference table that ships with spikedim, and from the user's
own calibration store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from spikedim.data.encoders import ENCODERS
from spikedim.errors import DataError, SpikedimError
from spikedim.results import SLACK, plain
from spikedim.theory import accuracy_from_margins
from spikedim.training.study_table import OutputRow, StudyRow
from spikedim.training.timestep import TStar, t_star

REFERENCE = "reference.jsonl"
DIMENSION = "dimension.jsonl"


@dataclass(frozen=True)
class Pilot:
    """One training, read out after fewer steps than it was trained with.

    Attributes:
        train_T: T of the training.
        steps: T of the answers, ascending, up to ``train_T``.
        accuracy: test accuracy after each of ``steps``, percent.
        expected: accuracy in percent at each of ``steps`` that the margins of the large-T limit
            and the measured output noise lead to expect
            (:func:`spikedim.theory.accuracy_from_margins`); empty where outputs were not kept.
    """

    train_T: int
    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    expected: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What training at every T showed.

    Attributes:
        steps: T that were trained and tested, ascending.
        accuracy: test accuracy at each, percent.
        fitted: its isotonic fit, percent.
        t_star, low, high: T* and its 95 % interval over test samples; ``high`` is ``None`` where
            the grid ends too soon.
        tolerance: accepted loss, percentage points.
        samples: test samples.
        spikes: spikes per sample at each T; empty where not measured.
    """

    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    fitted: tuple[float, ...]
    t_star: int
    low: int
    high: int | None
    tolerance: float
    samples: int
    spikes: tuple[float, ...] = ()

    @property
    def losses(self) -> np.ndarray:
        """Points of fitted accuracy below the plateau at each of ``steps``."""
        fit = np.array(self.fitted)
        return fit[-1] - fit

    @classmethod
    def of(cls, found: TStar, spikes: Sequence[float] = ()) -> Outcome:
        """The outcome of a measured T*."""
        answer = found.estimate
        return cls(
            found.timesteps,
            tuple(a.value for a in found.accuracy),
            found.fitted,
            int(answer.value),
            int(answer.low or 1),
            None if answer.high is None else int(answer.high),
            found.tolerance,
            answer.n or 0,
            tuple(spikes),
        )


@dataclass(frozen=True)
class Case:
    """One network on one data set.

    Attributes:
        dataset, model, seed: which; ``seed`` is that of weights and data order.
        d_eff: PCA-95 % dimension of the training inputs.
        classes, parameters, train_samples, image_size: of data and network.
        threshold: v_th of every neuron; ``None`` where it is not known.
        pilot: one training at the largest T, read out earlier; ``None`` without any.
        outcome: the truth; ``None`` where it is not known.
    """

    dataset: str
    model: str
    seed: int
    d_eff: float
    classes: int
    parameters: int
    train_samples: int = 0
    image_size: int = 0
    threshold: float | None = None
    pilot: Pilot | None = None
    outcome: Outcome | None = None

    @property
    def truth(self) -> Outcome:
        """The outcome.

        Raises:
            DataError: there is none.
        """
        if self.outcome is None:
            raise DataError(f"{self.model} on {self.dataset}: T* was not measured")
        return self.outcome

    @property
    def place(self) -> tuple[str, str]:
        """Data set and network: seeds of one place are not independent cases."""
        return self.dataset, self.model

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The place and how it was trained: seeds of one recipe are draws of one thing."""
        threshold = self.threshold or 0.0  # not None, so that recipes can be sorted
        return (*self.place, self.classes, self.train_samples, self.image_size, threshold)

    def within(self, tolerance: float) -> Case:
        """The same with T* for another tolerance, from the stored fit; without its interval."""
        truth = self.truth
        if tolerance == truth.tolerance:
            return self
        enough = [
            T
            for T, lost in zip(truth.steps, truth.losses, strict=True)
            if lost <= tolerance + SLACK
        ]
        found = replace(truth, t_star=enough[0], low=1, high=None, tolerance=tolerance)
        return replace(self, outcome=found)

    def hidden(self) -> Case:
        """The same without its outcome: all a predictor may see."""
        return replace(self, outcome=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """A case from plain data (:func:`spikedim.results.plain`).

        Raises:
            DataError: fields are missing or unknown.
        """
        try:
            data = dict(values)
            kinds: dict[str, Any] = {"pilot": Pilot, "outcome": Outcome}
            for name, kind in kinds.items():
                if data.get(name) is not None:
                    part = {
                        k: tuple(v) if isinstance(v, list) else v for k, v in data[name].items()
                    }
                    data[name] = kind(**part)
            data["threshold"] = data.get("threshold") or None  # 0 in what earlier versions wrote
            return cls(**data)
        except (TypeError, AttributeError, ValueError) as error:
            raise DataError(f"not a case of the calibration: {error}") from error


def cases_from_rows(
    rows: Iterable[StudyRow], outputs: Iterable[OutputRow] = (), tolerance: float = 1.0
) -> list[Case]:
    """Cases of a study: one per data set, network, neuron setting, truncation and seed.

    The truth is T* of the trainings at each T (``eval_T == train_T``); the pilot is the training
    at the largest T, read out earlier. Left out are failed trials; recordings and texts, whose T is
    another matter than that of an image shown T times; and unfinished cases, which lack a T that
    another seed was trained at, and those with fewer than three T.

    Raises:
        ConfigError: a negative tolerance.
        DataError: rows of one case were tested on different samples, or trained in two ways.
    """
    by_case: dict[tuple[Any, ...], list[StudyRow]] = {}
    grids: dict[tuple[Any, ...], set[int]] = {}
    for row in rows:
        if row.status == "done" and row.encoder in ENCODERS:
            by_case.setdefault((_setting(row), row.seed), []).append(row)
            grids.setdefault(_setting(row), set()).update(_trained(row))
    by_key: dict[str, list[OutputRow]] = {}
    for output in outputs:
        by_key.setdefault(output.key, []).append(output)
    found = []
    for (setting, _), group in sorted(by_case.items(), key=lambda item: str(item[0])):
        grid = {T for row in group for T in _trained(row)}
        if len(grid) >= 3 and grid == grids[setting]:
            found.append(_case(group, by_key, tolerance))
    return found


def _trained(row: StudyRow) -> tuple[int, ...]:
    return (row.train_T,) if row.eval_T == row.train_T else ()


def _setting(row: StudyRow) -> tuple[Any, ...]:
    """All but the seed."""
    return (
        row.dataset, row.model, row.components, row.beta, row.v_th, row.t_ref,
        row.reset, row.encoder, row.fingerprint,
    )  # fmt: skip


def _case(
    rows: Sequence[StudyRow], outputs: Mapping[str, Sequence[OutputRow]], tolerance: float
) -> Case:
    trained: dict[int, StudyRow] = {}
    for row in rows:
        if row.eval_T == row.train_T and trained.setdefault(row.train_T, row).key != row.key:
            raise DataError(
                f"{row.model} on {row.dataset} with seed {row.seed} was trained at T = "
                f"{row.train_T} in two ways (keys {trained[row.train_T].key} and {row.key}); leave "
                "out one of the tables, or use other seeds"
            )
    found = t_star({T: row.hits for T, row in trained.items()}, tolerance)
    spikes = [trained[T].spikes_per_sample for T in found.timesteps]
    first = rows[0]
    last = max(trained)
    read = {row.eval_T: row.accuracy for row in rows if row.train_T == last and row.eval_T <= last}
    kept = outputs.get(trained[last].key, ())
    return Case(
        first.dataset if first.components is None else f"{first.dataset}/{first.components}",
        first.model,
        first.seed,
        first.d_eff_pca95,
        first.classes,
        first.parameters,
        first.train_samples,
        first.image_size,
        first.v_th,
        _pilot(last, read, kept),
        Outcome.of(found, [s for s in spikes if s is not None]),
    )


def _pilot(
    train_T: int, read: Mapping[int, float | None], outputs: Sequence[OutputRow]
) -> Pilot | None:
    steps = tuple(sorted(T for T, value in read.items() if value is not None))
    if len(steps) < 2:
        return None
    expected: tuple[float, ...] = ()
    by_T = {output.eval_T: output for output in outputs}
    if by_T and set(steps) <= set(by_T):
        margins = by_T[max(by_T)].margins
        expected = tuple(
            100
            * accuracy_from_margins(margins, by_T[T].margin_error_std, by_T[T].margin_error_mean)
            for T in steps
        )
    return Pilot(train_T, steps, tuple(float(read[T] or 0.0) for T in steps), expected)


@lru_cache
def reference_cases() -> tuple[Case, ...]:
    """The cases that ship with spikedim, from its own study (docs/validation.md).

    Raises:
        DataError: the file of the installation is missing or damaged.
    """
    return _shipped(REFERENCE)


@lru_cache
def dimension_cases() -> tuple[Case, ...]:
    """The cases of the controlled study of dimension that ship with spikedim.

    Raises:
        DataError: the file of the installation is missing or damaged.
    """
    return _shipped(DIMENSION)


def _shipped(name: str) -> tuple[Case, ...]:
    file = resources.files(__package__).joinpath(name)
    try:
        cases = tuple(read_lines(file.read_text(encoding="utf-8"), name))
        if not cases:
            raise DataError("it holds no case")
    except (OSError, ValueError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{file}, which ships with spikedim, cannot be read: {reason}; reinstall spikedim, or "
            f"make the file again with `spikedim validate --ship {Path(str(file)).parent}`"
        ) from error
    return cases


def read_lines(text: str, name: str) -> list[Case]:
    """Cases of a file with one JSON object per line.

    Raises:
        DataError: a line is not a case; the message names it.
    """
    cases = []
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            cases.append(Case.from_dict(json.loads(line)))
        except (ValueError, SpikedimError) as error:
            raise DataError(f"{name}, line {place}: {error}") from error
    return cases


def write_lines(cases: Iterable[Case]) -> str:
    """The inverse of :func:`read_lines`; numbers to six digits."""
    lines = [json.dumps(_rounded(plain(case)), ensure_ascii=False) for case in cases]
    return "".join(line + "\n" for line in lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value
