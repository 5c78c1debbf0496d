"""What a claim is, how its verdict follows from numbers, and the registry a user extends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from spikedim.errors import ConfigError, SpikedimError
from spikedim.results import Estimate, Result, Table, number
from spikedim.training.threads import math_threads

if TYPE_CHECKING:
    import torch

Effort = Literal["quick", "full"]
Form = Literal["stated", "corrected", "context"]
Verdict = Literal["holds", "holds after correction", "fails", "not testable here"]
Formula = Callable[..., Any]
Choice = TypeVar("Choice")

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_NAMED = 2  # undecided tests that a reason names


@dataclass(frozen=True)
class Measurement:
    """A measured number and the range that the claim, or its corrected form, allows it.

    Attributes:
        name: what was measured.
        measured: the number, with its interval where it is an estimate.
        low, high: the allowed range.
        form: ``"stated"`` tests the claim as published, ``"corrected"`` its corrected form;
            ``"context"`` informs and decides nothing.
        shown: ``True`` demands that the whole interval lies in the range, as a claim of a sign or
            an inequality does; an interval that lies partly in it leaves that undecided. ``False``
            demands that the two overlap, as a published number does that is itself uncertain; an
            interval without an upper end then agrees where its value does, and is undecided where
            only what was not measured above it would.
        passes: whether that is so (computed); ``None`` for context and where it is undecided, as
            it always is where no number was found (NaN).
    """

    name: str
    measured: Estimate
    low: float = -math.inf
    high: float = math.inf
    form: Form = "stated"
    shown: bool = False
    passes: bool | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", None if self.form == "context" else self._passes())

    def _passes(self) -> bool | None:
        value = self.measured.value
        ends = (value, self.measured.low, self.measured.high)
        if any(end is not None and math.isnan(end) for end in ends):
            return None
        bottom = value if self.measured.low is None else self.measured.low
        open_above = self.measured.low is not None and self.measured.high is None
        top = (
            math.inf if open_above else value if self.measured.high is None else self.measured.high
        )
        meets = bool(bottom <= self.high and self.low <= top)
        within = self.low <= bottom and top <= self.high
        settled = within if self.shown else not open_above or self.low <= value <= self.high
        return None if meets and not settled else meets

    @property
    def verdict(self) -> str:
        """Whether the measurement agrees, in words."""
        if self.form == "context":
            return "–"
        return {True: "yes", False: "no", None: "undecided"}[self.passes]

    @property
    def allowed(self) -> str:
        """The range in words, and whether the whole interval has to lie in it."""
        if self.form == "context":
            return "–"
        if self.low == self.high:
            text = f"= {number(self.low)}"
        elif math.isinf(self.high):
            text = f"≥ {number(self.low)}"
        elif math.isinf(self.low):
            text = f"≤ {number(self.high)}"
        else:
            text = f"{number(self.low)} to {number(self.high)}"
        return f"{text}, all of it" if self.shown else text


def judge(measurements: Sequence[Measurement]) -> Verdict:
    """The verdict on a claim.

    It holds where every test of the stated form passes, and is not testable here where none
    contradicts it but some are undecided: an interval too wide refutes nothing, so it calls for no
    correction. Where one contradicts it, it holds after correction if every test of the corrected
    form passes, else it fails.

    Raises:
        ConfigError: nothing tests the stated form, so there is nothing to judge.
    """
    stated = [m.passes for m in measurements if m.form == "stated"]
    corrected = [m.passes for m in measurements if m.form == "corrected"]
    if not stated:
        raise ConfigError("no measurement tests the claim as stated; give at least one")
    if all(stated):
        return "holds"
    if False not in stated:
        return "not testable here"
    return "holds after correction" if corrected and all(corrected) else "fails"


def undecided(measurements: Sequence[Measurement]) -> str:
    """Why tests that contradict nothing give no verdict, and whether a corrected form passes."""
    names = [
        f"{m.name}: {m.measured} (allowed {m.allowed})"
        for m in measurements
        if m.form == "stated" and not m.passes
    ]
    if len(names) > _NAMED:
        names[_NAMED:] = [f"{len(names) - _NAMED} more"]
    corrected = [m.passes for m in measurements if m.form == "corrected"]
    mended = "; the corrected form agrees" if corrected and all(corrected) else ""
    return f"undecided, an interval too wide or no number: {'; '.join(names)}{mended}"


class NotTestable(Exception):
    """A check cannot run here; the text is the reason."""


@dataclass(frozen=True)
class Setting:
    """What a check is given.

    Attributes:
        formula: the formula under test, of the claim.
        correction: its corrected form; raises where the claim has none.
        effort: ``"quick"`` or ``"full"``.
        seed: of every random draw.
        data_root: folder of the data samples; ``None`` for SPIKEDIM_DATA.
    """

    formula: Formula
    correction: Formula
    effort: Effort
    seed: int
    data_root: Path | None = None

    def pick(self, quick: Choice, full: Choice) -> Choice:
        """``quick`` or ``full``, by effort."""
        return quick if self.effort == "quick" else full

    def both(self) -> tuple[tuple[Form, Formula], tuple[Form, Formula]]:
        """The formula and its corrected form, each with the name of its form."""
        return ("stated", self.formula), ("corrected", self.correction)

    def generator(self) -> torch.Generator:
        """A fresh torch generator with the seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    def rng(self) -> np.random.Generator:
        """A fresh numpy generator with the seed."""
        return np.random.default_rng(self.seed)


Check = Callable[[Setting], Sequence[Measurement]]


def no_correction(*arguments: Any) -> Any:
    """Stands where a claim has no corrected form."""
    raise ConfigError("this claim has no corrected form")


@dataclass(frozen=True)
class ClaimResult(Result):
    """A checked claim.

    Attributes:
        id, statement, source, expression, correction: of the claim.
        method: what the check does, its docstring.
        verdict: computed from the measurements.
        reason: why there is no other verdict than "not testable here"; empty where there is.
        measurements: every number behind the verdict.
        effort, seed: how it was checked.
        seconds: what the check took.
    """

    id: str
    statement: str
    source: str
    expression: str
    correction: str
    method: str
    verdict: Verdict
    reason: str
    measurements: tuple[Measurement, ...]
    effort: Effort
    seed: int
    seconds: float

    def tables(self) -> list[Table]:
        """Every measurement beside what the claim allows."""
        rows = [(m.form, m.name, m.measured, m.allowed, m.verdict) for m in self.measurements]
        notes = [f"Statement: {self.statement} [{self.source}]", f"Formula: {self.expression}"]
        if self.correction:
            notes.append(f"Corrected: {self.correction}")
        if self.method:
            notes.append(f"Check: {self.method}")
        if self.reason:
            notes.append(f"Reason: {self.reason}")
        columns = ("form", "measurement", "measured", "allowed", "agrees")
        return [Table(f"{self.id}: {self.verdict}", columns, rows, notes)]


@dataclass(frozen=True)
class Claim:
    """A published statement and the check that decides it.

    Attributes:
        id: as in ``spikedim audit ID``.
        statement: as published, as far as known.
        source: where.
        expression: the formula in words.
        formula: the same as a function, which the check uses: another one changes the verdict.
        check: measures and returns what decides; its docstring is shown with the numbers.
        corrected: the corrected form in words; empty where there is none.
        correction: the same as a function, used by the check: another one changes the verdict.
    """

    id: str
    statement: str
    source: str
    expression: str
    formula: Formula
    check: Check
    corrected: str = ""
    correction: Formula = no_correction

    def run(
        self, effort: Effort = "quick", seed: int = 0, data_root: Path | None = None
    ) -> ClaimResult:
        """Check the claim now.

        Args:
            effort: ``"quick"`` (seconds) or ``"full"``.
            seed: of every random draw: same seed, same numbers.
            data_root: folder of the data samples; ``None`` for SPIKEDIM_DATA.

        Raises:
            ConfigError: unknown effort.
        """
        if effort not in get_args(Effort):
            raise ConfigError(f"effort={effort!r} is unknown; use 'quick' or 'full'")
        started = time.perf_counter()
        setting = Setting(self.formula, self.correction, effort, seed, data_root)
        measurements: tuple[Measurement, ...] = ()
        verdict: Verdict = "not testable here"
        reason = ""
        try:
            with math_threads(1):
                measurements = tuple(self.check(setting))
            verdict = judge(measurements)
            if verdict == "not testable here":
                reason = undecided(measurements)
        except (NotTestable, SpikedimError) as error:  # one check must not end the audit
            reason = str(error)
        return ClaimResult(
            self.id,
            self.statement,
            self.source,
            self.expression,
            self.corrected,
            " ".join((getdoc(self.check) or "").split()),
            verdict,
            reason,
            measurements,
            effort,
            seed,
            time.perf_counter() - started,
        )


_REGISTRY: dict[str, Claim] = {}


def claim(
    id: str,
    *,
    statement: str,
    source: str,
    expression: str,
    formula: Formula,
    corrected: str = "",
    correction: Formula = no_correction,
) -> Callable[[Check], Check]:
    """Register the decorated check as claim ``id``; the function is unchanged.

    Arguments as the attributes of :class:`Claim`. Importing a module of such checks adds them to
    ``spikedim audit``.

    Example:
        >>> from spikedim.claims import Measurement, claim
        >>> from spikedim.results import Estimate
        >>> @claim("MY-CLAIM", statement="1 + 1 = 2", source="this lab",
        ...        expression="1 + 1", formula=lambda: 1 + 1)
        ... def my_claim(setting):
        ...     return [Measurement("sum", Estimate(setting.formula()), 2, 2)]

    Raises:
        ConfigError: the id is taken by another check.
    """

    def register(check: Check) -> Check:
        known = _REGISTRY.get(id)
        if known and _name(known.check) != _name(check):
            raise ConfigError(f"claim {id!r} is registered already; choose another id")
        _REGISTRY[id] = Claim(
            id, statement, source, expression, formula, check, corrected, correction
        )
        return check

    return register


def list_claims() -> list[Claim]:
    """All registered claims, in order of registration."""
    return list(_REGISTRY.values())


def get_claim(id: str) -> Claim:
    """Find a claim by id, in any case.

    Raises:
        ConfigError: unknown id; the message lists the nearest ones, or all.
    """
    key = id.upper()
    if key not in _REGISTRY:
        near = get_close_matches(key, _REGISTRY, n=3) or list(_REGISTRY)
        raise ConfigError(f"claim {id!r} is unknown; choose one of {', '.join(near)}")
    return _REGISTRY[key]


def _name(check: Check) -> tuple[str, str]:
    return check.__module__, check.__qualname__
