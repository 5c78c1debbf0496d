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


@dataclass(frozen=True)
class RankDiagnosis(Result):
    """Is this network collapsing, and what do its norms, residuals and heads do to the rank?

    Attributes:
        network, dataset: what was examined.
        trained: whether the network is; ``None`` where that is not known.
        profile: ranks through depth and time.
        norms, residuals, heads: the checks, on the first samples.
        precision: of the network that ran, ``"float64"`` wherever it runs in that.
    """

    network: str
    dataset: str
    trained: bool | None
    profile: RankProfile
    norms: NormReport
    residuals: ResidualReport
    heads: HeadReport
    precision: str

    def tables(self) -> list[Table]:
        """Profile, residual updates, layer norms, heads."""
        parts = (self.profile, self.residuals, self.norms, self.heads)
        first, *others = (table for part in parts for table in part.tables())
        if self.precision != "float64":
            note = f"In {self.precision}: the network does not run in float64."
            first = replace(first, notes=(*first.notes, note))
        return [first, *others]

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
) -> RankDiagnosis:
    """Run every diagnostic on a float64 copy of the network; arguments as :func:`rank_profile`.

    Norms, residuals and heads are checked on the first 8 samples. A network whose own modules
    compute in another precision runs as it is.

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
        str(dtype).removeprefix("torch."),
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
