"""The answer of ``spikedim design``: what to use, how sure it is, and where it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spikedim.design.budget import BudgetAnswer
from spikedim.design.cases import Case
from spikedim.design.forecast import Forecast
from spikedim.dimension import DimensionReport
from spikedim.errors import ConfigError
from spikedim.ntk.invert import Inversion
from spikedim.profiling import Profile
from spikedim.provenance import Provenance
from spikedim.results import Estimate, Result, Table, number
from spikedim.theory import TimestepPrediction
from spikedim.theory.bounds import check_square
from spikedim.training import NeuronSweep, TimestepSweep

#: Kinds of data there are designs for, in words.
WORDS = {"image": "images", "events": "event recordings", "text": "texts"}

#: Setting of a neuron whose parameters are not known.
KEPT = "kept as it is"

#: Does the published rule agree with what was measured?
Agreement = Literal[
    "agrees", "overestimates", "underestimates", "undecided", "not learned", "not measured"
]


@dataclass(frozen=True)
class Target:
    """What the user asks for.

    Attributes:
        epsilon: target error of the published timestep rule, in percentage points.
        tolerance: accuracy that may be lost against the plateau, in percentage points.

    Raises:
        ConfigError: a value out of its domain.
    """

    epsilon: float = 5.0
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        check_square(epsilon=self.epsilon)
        if not (math.isfinite(self.tolerance) and 0 <= self.tolerance < 100):
            raise ConfigError(
                f"tolerance={self.tolerance} must be 0 or more percentage points, e.g. 1"
            )


def predictable(kind: str) -> bool:
    """Whether the predictors of T, which were fitted on static images, speak of such data."""
    return kind == "image"


@dataclass(frozen=True)
class DataSummary:
    """The data set behind a plan.

    ``majority`` is the share of the most frequent class among the test labels: the accuracy of a
    constant answer. ``input_shape`` of texts is the most words that are read of one.
    """

    name: str
    kind: str
    train_samples: int
    test_samples: int
    input_shape: tuple[int, ...]
    classes: int
    majority: float
    source: str
    fingerprint: str


@dataclass(frozen=True)
class ModelSummary:
    """The network behind a plan; ``state`` says which weights were measured."""

    name: str
    parameters: int
    tokens: int
    channels: int
    state: str


#: What a figure says about the measurement beside it.
BoundKind = Literal["published lower bound", "Gaussian reference", "code requirement"]


@dataclass(frozen=True)
class Bound:
    """A figure of the theory beside the measurement it speaks about.

    Attributes:
        name, claim: what it is and its claim id.
        kind: only a published lower bound claims to hold for every network. The Gaussian
            reference is the rate of a Gaussian source with the measured spectrum, which bounds
            other sources from above. A code requirement holds for networks that use that code.
        value: the figure, in ``unit``.
        measured: the measured quantity in the same unit.
        assumption: what the number assumes.
    """

    name: str
    claim: str
    kind: BoundKind
    value: float
    unit: str
    measured: float
    assumption: str

    @property
    def respected(self) -> bool | None:
        """Whether the measurement obeys a published lower bound; ``None`` for other kinds."""
        return self.measured >= self.value if self.kind == "published lower bound" else None


@dataclass(frozen=True)
class Operating:
    """One operating point: what the network does at T timesteps.

    Attributes:
        timesteps: T.
        accuracy: test accuracy in percent; ``None`` where the network was not trained.
        profile: spikes, operations and energy at this T.
        setting: what differs from the network's own neurons, e.g. ``"threshold = 1.5"``.
        expected: accuracy to expect in percent, from a pilot training; ``None`` without one.
        lost: points below the plateau to expect; ``None`` where no predictor says.
    """

    timesteps: int
    accuracy: Estimate | None
    profile: Profile
    setting: str = ""
    expected: Estimate | None = None
    lost: Estimate | None = None


@dataclass(frozen=True)
class Recommendation:
    """The settings to use, and why.

    Attributes:
        timesteps: recommended T with its interval.
        threshold, beta, refractory: v_th, membrane decay per step and t_ref in whole steps;
            ``None`` where every neuron is kept as it is, so that they are not known.
        basis: ``"measured"`` (trained and tested here), ``"predicted"`` or ``"budget"``.
        reasons: one plain sentence per setting.
    """

    timesteps: Estimate
    threshold: float | None
    beta: float | None
    refractory: int | None
    basis: Literal["measured", "predicted", "budget"]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan(Result):
    """Everything ``spikedim design`` found.

    Attributes:
        verdict: plain-language answer, one sentence each; the first one is the headline.
        agreement: whether the published rule agrees with the measured T*.
        recommendation: settings to use.
        data, model, target: what was asked.
        dimension: effective dimension of the data, all estimators.
        predictions: the published rule in both readings of ε; the first is the usable one.
        forecast: what every predictor says of this case, the best-ranked one first.
        case: what was known and found of this network and data, for the calibration store.
        budget: the answer to a spike or energy budget; ``None`` where none was given.
        operating: spikes and energy per T with the network's own neurons, in order of T.
        recommended: the operating point of the recommended settings, neurons included.
        bounds: lower bounds beside the measurement at the recommended T.
        sweep: measured accuracy against T (``None`` without verification).
        neurons: measured neuron settings at the recommended T (``None`` where not swept).
        provenance: versions, seed, configuration, data fingerprint.
        inversion: neuron for a wanted d_eff, feasible or not (``None`` where it was not asked).
    """

    verdict: tuple[str, ...]
    agreement: Agreement
    recommendation: Recommendation
    data: DataSummary
    model: ModelSummary
    target: Target
    dimension: DimensionReport
    predictions: tuple[TimestepPrediction, ...]
    operating: tuple[Operating, ...]
    recommended: Operating
    bounds: tuple[Bound, ...]
    sweep: TimestepSweep | None
    neurons: NeuronSweep | None
    provenance: Provenance
    forecast: Forecast
    case: Case
    budget: BudgetAnswer | None = None
    inversion: Inversion | None = None

    @property
    def points(self) -> tuple[Operating, ...]:
        """The operating points and, where its neurons differ from theirs, the recommended one."""
        return (*self.operating, *([self.recommended] if self.recommended.setting else []))

    def tables(self) -> list[Table]:
        """The answer, operating points, neuron settings and bounds, each with its intervals."""
        advice = self.recommendation
        chance = self.sweep is not None and not self.sweep.learned
        answer = [
            ("timesteps T", advice.timesteps),
            ("threshold v_th", _known(advice.threshold)),
            ("leak β (per step)", _known(advice.beta)),
            ("refractory period t_ref (steps)", _known(advice.refractory)),
            ("basis", f"{advice.basis}{', at chance: no answer' if chance else ''}"),
            (f"predictor {self.forecast.best.name}", f"T = {self.forecast.best.timesteps}"),
            (
                "published rule, interval of C and d_eff",
                f"T = {self.predictions[0].timesteps}: {self.agreement}",
            ),
        ]
        if self.budget is not None:
            answer.append(("budget", self.budget.text))
        title = f"{self.model.name} on {self.data.name}"
        neurons = self.neurons.tables() if self.neurons is not None else []
        return [
            self._bounds_table(),
            *neurons,
            self.forecast.tables()[-1],
            *(self.inversion.tables()[:1] if self.inversion is not None else []),
            self._operating_table(),
            Table(title, ("setting", "recommendation"), answer, self.verdict),
        ]

    def _operating_table(self) -> Table:
        conventions = [energy.convention for energy in self.operating[0].profile.energy]
        rows = []
        for point in self.points:
            energies = {e.convention: e.total for e in point.profile.energy}
            setting = f", {point.setting}" if point.setting else ""
            chosen = (self.recommended.timesteps, self.recommended.setting)
            mark = " ←" if (point.timesteps, point.setting) == chosen else ""
            rows.append(
                (
                    f"{point.timesteps}{setting}{mark}",
                    point.accuracy or point.expected,
                    point.lost,
                    point.profile.spikes_per_sample,
                    *[energies[name] for name in conventions],
                )
            )
        said = "accuracy" if any(p.accuracy for p in self.operating) else "accuracy, predicted"
        columns = (
            "T", said, "lost, predicted", "spikes per sample",
            *[f"energy, {c}" for c in conventions],
        )  # fmt: skip
        note = (
            f"Network state: {self.model.state}. Energy is per sample and per convention. Lost: "
            "points below the plateau by the predictors, 90 %"
            + (
                "; 0 by definition at the largest T that they know."
                if any(p.lost and p.lost.low is None and p.lost.value == 0 for p in self.points)
                else "."
            )
        )
        return Table("Accuracy, spikes and energy by timesteps", columns, rows, (note,))

    def _bounds_table(self) -> Table:
        rows = [
            (b.name, b.kind, f"{number(b.value, 3)} {b.unit}", _measured(b)) for b in self.bounds
        ]
        columns = ("figure of the theory", "kind", "value", "measured")
        note = (
            f"Published forms as printed, with ε = {self.target.epsilon / 100:g} and an assumed "
            "L_f = 1; every assumption is in the report and in .bounds."
        )
        quantities = (
            "The worst case takes n·d of the network's representation, the input-dependent forms "
            "d_eff of the data: where d_eff exceeds d, the worst case can be the smaller figure."
        )
        return Table("The theory beside the measurement", columns, rows, (note, quantities))


def _known(setting: float | None) -> float | str:
    return KEPT if setting is None else setting


def _measured(bound: Bound) -> str:
    marks = {True: " (respects it)", False: " (BELOW it)", None: ""}
    return number(bound.measured, 3) + marks[bound.respected]
