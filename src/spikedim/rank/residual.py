"""Does a residual update raise the rank of the tokens? rank(X + MHA(X)) against rank(X).

For generic weights rank(X + MHA(X)) > rank(X) unless X has full rank already or attention has
nothing to add (Cirrincione, arXiv 2604.23681). What bounds it, for any weights::

    rank(X + MHA(X)) ≤ min(d, number of different tokens, (H + 1) rank(X))

The second holds for every attention that treats equal tokens equally, spiking ones included: equal
tokens stay equal. In the last, for softmax attention, col(MHA(X)) ⊂ col[A_1 X, …, A_H X]. Where
the update is spikes (Spikformer, QKFormer) "generic" fails: they are zero on an open set of
weights, and there the rank stays. Where it is a current (Spike-driven Transformer,
SpikingResformer) it depends on the projection linearly, and the statement holds where the heads
fire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikedim.errors import DataError
from spikedim.models import SpikingModel
from spikedim.rank.matrix import checked, spacing, token_ranks
from spikedim.rank.sites import UNKNOWN, residuals
from spikedim.results import Estimate, Result, Table
from spikedim.theory.statistics import mean_estimate

GREW = "grew"
FULL = "full already"
EQUAL = "as many as different tokens"
ZERO = "update is zero"
INSIDE = "update adds no rank"
FELL = "fell"


@dataclass(frozen=True)
class ResidualCheck(Result):
    """Rank of one token matrix before and after an update.

    Attributes:
        before, update, after: rank(X), rank(U) and rank(X + U).
        distinct: number of different tokens in X.
        bound: min(d, distinct, (heads + 1)·rank(X) where heads are given).
        verdict: ``"grew"``, or why it did not.
    """

    before: int
    update: int
    after: int
    distinct: int
    bound: int
    verdict: str


def residual_check(
    x: Any, update: Any, heads: int | None = None, eps: float | None = None
) -> ResidualCheck:
    """Compare rank(X + U) with rank(X) for tokens and an update [n, d].

    Raises:
        DataError: shapes differ, or a value is not finite.
    """
    x, u = checked(x), checked(update)
    if x.ndim != 2 or x.shape != u.shape:
        raise DataError(
            f"tokens {tuple(x.shape)} and update {tuple(u.shape)} must be alike, [n, d]"
        )
    unit = max(spacing(x), spacing(u)) if eps is None else eps
    before, added, after = (int(token_ranks(m, unit).rank) for m in (x, u, x + u))
    distinct = len(torch.unique(x, dim=0))
    bound = min(x.shape[1], distinct)
    if heads is not None:
        bound = min(bound, (heads + 1) * before)
    if after > before:
        verdict = GREW
    elif after < before:
        verdict = FELL
    elif not bool(u.any()):
        verdict = ZERO
    elif before == min(x.shape):
        verdict = FULL
    elif before == distinct:
        verdict = EQUAL
    else:
        verdict = INSIDE
    return ResidualCheck(before, added, after, distinct, bound, verdict)


@dataclass(frozen=True)
class ResidualLayer:
    """Residual update of one attention, over samples and timesteps.

    Attributes:
        layer: module path of the attention.
        tokens, channels: n and d.
        before, after: mean ranks over samples, of each the mean over timesteps.
        verdicts: verdict → number of token matrices.
    """

    layer: str
    tokens: int
    channels: int
    before: Estimate
    after: Estimate
    verdicts: dict[str, int]


@dataclass(frozen=True)
class ResidualReport(Result):
    """Whether attention raises the rank of the residual stream, layer by layer."""

    layers: tuple[ResidualLayer, ...]

    def tables(self) -> list[Table]:
        """One row per attention; none, with a note, where they are not known."""
        rows = [
            (
                r.layer,
                f"{r.tokens} × {r.channels}",
                str(r.before),
                str(r.after),
                ", ".join(f"{count}× {word}" for word, count in r.verdicts.items()),
            )
            for r in self.layers
        ]
        columns = ("attention", "n × d", "rank before", "rank after", "token matrices")
        notes = () if rows else (UNKNOWN,)
        return [Table("Residual update of attention", columns, rows, notes)]


def residual_report(model: SpikingModel, x: Tensor, T: int | None = None) -> ResidualReport:
    """Check the residual update of every attention on real inputs.

    Args:
        model: a registered network, calibrated or trained; run in eval mode.
        x, T: as for :meth:`SpikingModel.steps`.

    Raises:
        ModelError: the input does not fit.
    """
    layers = []
    for name, (stream, update) in residuals(model, x, T).items():
        steps, batch, n, d = stream.shape
        # Whole numbers or not is a property of the layer, not of one matrix of it.
        unit = max(spacing(stream), spacing(update))
        found = [
            [residual_check(stream[t, b], update[t, b], eps=unit) for t in range(steps)]
            for b in range(batch)
        ]
        layers.append(
            ResidualLayer(
                name,
                n,
                d,
                _mean([[c.before for c in row] for row in found]),
                _mean([[c.after for c in row] for row in found]),
                _counted([c.verdict for row in found for c in row]),
            )
        )
    return ResidualReport(tuple(layers))


def _mean(values: Sequence[Sequence[int]]) -> Estimate:
    means = torch.tensor(values, dtype=torch.float64).mean(1).numpy()
    return mean_estimate(means).within(0, math.inf)


def _counted(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in dict.fromkeys(words)}
