"""All rank diagnostics of a network in one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spikedim.models import SpikingModel
from spikedim.models.features import batch_axis
from spikedim.rank.heads import HeadReport, head_report
from spikedim.rank.norm import NormReport, norm_report
from spikedim.rank.profile import RankProfile, double, rank_profile
from spikedim.rank.residual import ResidualReport, residual_report
from spikedim.rank.sites import run
from spikedim.results import Result, Table

FEW = 8
_STATES = {True: "trained", False: "untrained", None: "not known whether trained"}


@dataclass(frozen=True)
class RankDiagnosis(Result):
    """Is this network collapsing, and what do its norms, residuals and heads do to the rank?

    Attributes:
        network, dataset: what was examined.
        trained: whether the network is; ``None`` where that is not known.
        profile: ranks through depth and time.
        norms, residuals, heads: the checks, on the first samples.
        precision: of the network that ran, ``"float64"`` wherever it runs in that.
        checked: number of these first samples.
        state: which weights the network has, in words.
        split: of the data set that the samples are from, where known.
        gate: in front of the output projections of attention.
        seed: of the draws.
    """

    network: str
    dataset: str
    trained: bool | None
    profile: RankProfile
    norms: NormReport
    residuals: ResidualReport
    heads: HeadReport
    precision: str
    checked: int
    state: str
    split: str
    gate: str
    seed: int

    @property
    def source(self) -> str:
        """What produced the numbers."""
        split = f"{self.split} " if self.split else ""
        data = f" of {self.dataset}" if self.dataset else ""
        samples = f"{self.profile.samples:,} {split}samples{data}, T={self.profile.T}"
        return f"{samples}; {self.state}; gate: {self.gate}; seed {self.seed}."

    def tables(self) -> list[Table]:
        """Profile, residual updates, layer norms, heads."""
        first, *others = self.profile.tables()
        notes = [self.source, *first.notes]
        if self.precision != "float64":
            notes.append(f"In {self.precision}: the network does not run in float64.")
        samples = self.profile.samples
        few = f"On the first {self.checked:,} of {samples:,} samples."
        said = (few,) if self.checked < samples else ()
        checks = [
            replace(table, notes=(*said, *table.notes))
            for part in (self.residuals, self.norms, self.heads)
            for table in part.tables()
        ]
        return [replace(first, notes=tuple(notes)), *others, *checks]

    def plot(self, ax: Any = None) -> Any:
        """The profile; see :meth:`RankProfile.plot`."""
        return self.profile.plot(ax)


def diagnose(
    model: SpikingModel,
    x: Tensor,
    T: int | None = None,
    what: str = "features",
    *,
    layers: str | Sequence[str] | None = None,
    twin: str = "surrogate",
    network: str = "",
    dataset: str = "",
    trained: bool | None = False,
    seed: int = 0,
    split: str = "",
    state: str = "",
) -> RankDiagnosis:
    """Run every diagnostic on a float64 copy of the network.

    Norms, residuals and heads are checked on the first 8 samples. A network whose own modules
    compute in another precision runs as it is.

    Args:
        model, x, T, what, layers, twin: as for :func:`rank_profile`.
        network, dataset, split, trained, state: what is examined, for the record; see
            :class:`RankDiagnosis`. ``state`` is told from ``trained`` where it is left out.
        seed: of the moves among heads.

    Raises:
        ConfigError, ModelError: as :func:`rank_profile`.
    """
    sharp, x, dtype = _sharp(model, x, T)
    few = _first(x, FEW)
    return RankDiagnosis(
        network or type(model).__name__,
        dataset,
        trained,
        rank_profile(sharp, x, T, what, layers=layers, twin=twin),
        norm_report(sharp, few, T),
        residual_report(sharp, few, T),
        head_report(sharp, few, T, seed=seed),
        precision=str(dtype).removeprefix("torch."),
        checked=few.shape[batch_axis(few)],
        state=state or _STATES[trained],
        split=split,
        gate=getattr(model.config, "gate", "none"),
        seed=seed,
    )


def _sharp(
    model: SpikingModel, x: Tensor, T: int | None
) -> tuple[SpikingModel, Tensor, torch.dtype]:
    """The network and its input in float64, or as they are where it does not run in that."""
    if not x.is_floating_point():
        return double(model), x, torch.float64
    try:
        copied, sharp = double(model), x.double()
        run(copied, _first(sharp, 1), T)
    except RuntimeError:  # a neuron of the user's own makes spikes of one precision
        weight = next(model.parameters())
        return model, x.to(weight.dtype), weight.dtype
    return copied, sharp, torch.float64


def _first(x: Tensor, n: int) -> Tensor:
    axis = batch_axis(x)
    return x.narrow(axis, 0, min(n, x.shape[axis]))
