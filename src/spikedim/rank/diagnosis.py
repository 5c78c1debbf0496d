"""All rank diagnostics of a network in one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spikedim.models import SpikingModel
from spikedim.models.features import batch_axis
from spikedim.rank.heads import HeadReport, head_report
from spikedim.rank.norm import NormReport, norm_report
from spikedim.rank.profile import RankProfile, double, rank_profile
from spikedim.rank.residual import ResidualReport, residual_report
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
    """

    network: str
    dataset: str
    trained: bool | None
    profile: RankProfile
    norms: NormReport
    residuals: ResidualReport
    heads: HeadReport

    def tables(self) -> list[Table]:
        """Profile, residual updates, layer norms, heads."""
        parts = (self.profile, self.residuals, self.norms, self.heads)
        return [table for part in parts for table in part.tables()]

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

    Norms, residuals and heads are checked on the first 8 samples.

    Raises:
        ConfigError, ModelError: as :func:`rank_profile` and :func:`head_report`.
    """
    sharp = double(model)
    x = x.double() if x.is_floating_point() else x
    few = x.narrow(batch_axis(x), 0, min(FEW, x.shape[batch_axis(x)]))
    return RankDiagnosis(
        network or type(model).__name__,
        dataset,
        trained,
        rank_profile(sharp, x, T, what, layers=layers, twin=twin),
        norm_report(sharp, few, T),
        residual_report(sharp, few, T),
        head_report(sharp, few, T, seed=seed),
    )
