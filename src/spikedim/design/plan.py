"""The answer of ``spikedim design``: what to use, how sure it is, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikedim.dimension import DimensionReport
from spikedim.profiling import Profile
from spikedim.provenance import Provenance
from spikedim.results import Estimate, Result, Table, number
from spikedim.theory import TimestepPrediction
from spikedim.training import NeuronSweep, TimestepSweep

#: Does the published rule agree with what was measured?
Agreement = Literal["agrees", "overestimates", "underestimates", "undecided", "not measured"]


@dataclass(frozen=True)
class Target:
    """What the user asks for.

    Attributes:
        epsilon: target error of the published timestep rule, in percentage points.
        tolerance: accuracy that may be lost against the plateau, in percentage points.
    """

    epsilon: float = 5.0
    tolerance: float = 1.0


@dataclass(frozen=True)
class DataSummary:
    """The data set behind a plan."""

    name: str
    kind: str
    train_samples: int
    test_samples: int
    input_shape: tuple[int, ...]
    classes: int
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


@dataclass(frozen=True)
class Bound:
    """A lower bound beside the measurement it speaks about.

    Attributes:
        name, claim: what it is and its claim id.
        value: the bound, in ``unit``.
        measured: the measured quantity in the same unit; ``None`` where nothing was measured.
        assumption: what the number assumes.
    """

    name: str
    claim: str
    value: float
    unit: str
    measured: float | None
    assumption: str

    @property
    def respected(self) -> bool | None:
        """Whether the measurement is at or above the bound; ``None`` where not measured."""
        return None if self.measured is None else self.measured >= self.value


@dataclass(frozen=True)
class Operating:
    """One operating point: what the network does at T timesteps.

    Attributes:
        timesteps: T.
        accuracy: test accuracy in percent; ``None`` where the network was not trained.
        profile: spikes, operations and energy at this T.
    """

    timesteps: int
    accuracy: Estimate | None
    profile: Profile


@dataclass(frozen=True)
class Recommendation:
    """The settings to use, and why.

    Attributes:
        timesteps: recommended T with its interval.
        threshold, beta, refractory: v_th, membrane decay per step and t_ref in whole steps.
        basis: ``"measured"`` (trained and tested here) or ``"published rule"``.
        reasons: one plain sentence per setting.
    """

    timesteps: Estimate
    threshold: float
    beta: float
    refractory: int
    basis: Literal["measured", "published rule"]
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
        operating: spikes and energy per T, in order of T.
        bounds: lower bounds beside the measurement at the recommended T.
        sweep: measured accuracy against T (``None`` without verification).
        neurons: measured neuron settings at the recommended T (``None`` where not swept).
        provenance: versions, seed, configuration, data fingerprint.
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
    bounds: tuple[Bound, ...]
    sweep: TimestepSweep | None
    neurons: NeuronSweep | None
    provenance: Provenance

    def at(self, timesteps: int) -> Operating | None:
        """The operating point measured at ``timesteps``, if any."""
        return next((point for point in self.operating if point.timesteps == timesteps), None)

    def tables(self) -> list[Table]:
        """The answer, operating points, neuron settings and bounds, each with its intervals."""
        advice = self.recommendation
        answer = [
            ("timesteps T", advice.timesteps),
            ("threshold v_th", advice.threshold),
            ("leak β (per step)", advice.beta),
            ("refractory period t_ref (steps)", advice.refractory),
            ("basis", advice.basis),
            ("published rule", f"T = {self.predictions[0].timesteps}: {self.agreement}"),
        ]
        title = f"{self.model.name} on {self.data.name}"
        neurons = self.neurons.tables() if self.neurons is not None else []
        return [
            self._bounds_table(),
            *neurons,
            self._operating_table(),
            Table(title, ("setting", "recommendation"), answer, self.verdict),
        ]

    def _operating_table(self) -> Table:
        conventions = [energy.convention for energy in self.operating[0].profile.energy]
        rows = []
        for point in self.operating:
            energies = {e.convention: e.total for e in point.profile.energy}
            mark = " ←" if point.timesteps == int(self.recommendation.timesteps.value) else ""
            rows.append(
                (
                    f"{point.timesteps}{mark}",
                    point.accuracy,
                    point.profile.spikes_per_sample,
                    *[energies[name] for name in conventions],
                )
            )
        columns = ("T", "accuracy", "spikes per sample", *[f"energy, {c}" for c in conventions])
        note = f"Network state: {self.model.state}. Energy is per sample and per convention."
        return Table("Accuracy, spikes and energy by timesteps", columns, rows, (note,))

    def _bounds_table(self) -> Table:
        rows = [
            (b.name, b.claim, f"{number(b.value, 3)} {b.unit}", _measured(b)) for b in self.bounds
        ]
        columns = ("lower bound", "claim", "value", "measured")
        note = "What each bound assumes is in the report and in .bounds."
        return Table("Lower bounds beside the measurement", columns, rows, (note,))


def _measured(bound: Bound) -> str:
    if bound.measured is None:
        return "not measured"
    relation = "≥ bound" if bound.respected else "BELOW the bound"
    return f"{number(bound.measured, 3)} ({relation})"
