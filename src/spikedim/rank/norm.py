r"""Is layer norm rank-neutral? What it does to the affine rank of tokens, and why.

With P = I − 11ᵀ/d, σ_i the deviation of row i (with ε) and Γ = diag(γ),
LN(X) = diag(σ)⁻¹ X P Γ + 1βᵀ, hence for every X whose σ_i are not zero::

    arank(LN(X)) = rank([X P Γ, σ])

The published statement is arank(LN(X)) = arank(X) if no row is constant, 1 is not in the row
space of X, and no γ_j is 0 (Cirrincione, arXiv 2604.23681). Written out,::

    arank(LN(X)) − arank(X) = − [1_d ∈ row(X)] − (rank XP − rank XPΓ)
                              + [σ ∉ col(XPΓ)] − [1_n ∉ col(X)]

so that the three conditions leave one more: the vector of ones and the vector of deviations must
lie outside the two column spaces, or inside both. Generic tokens satisfy it; tokens on a flat that
misses the origin need not (three collinear tokens go to three points of a circle). More tokens
than channels break the second condition for generic X: then row(X) is everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import DataError
from spikedim.models import SpikingModel
from spikedim.rank.matrix import affine_rank, checked, relative_tolerance, spacing, token_ranks
from spikedim.rank.sites import hooked, run
from spikedim.results import Result, Table

CONSTANT = "constant rows"
ONES = "1 in the row space"
GAIN = "gamma_j = 0"
OFFSET = "deviations and ones lie differently"


@dataclass(frozen=True)
class LayerNormCheck(Result):
    """What a layer norm did to the affine rank of one token matrix.

    Attributes:
        tokens, channels: n and d.
        before, after: arank(X) and arank(LN(X)), both measured.
        predicted: rank([X P Γ, σ]).
        constant_rows: tokens whose channels are all equal.
        zero_gains: channels with γ_j = 0.
        ones_in_rows: 1 where the vector of ones lies in the row space of X.
        lost_to_gains: rank XP − rank XPΓ.
        deviations_outside, ones_outside: 1 where σ is outside col(XPΓ), 1_n outside col(X).
    """

    tokens: int
    channels: int
    before: int
    after: int
    predicted: int
    constant_rows: int
    zero_gains: int
    ones_in_rows: int
    lost_to_gains: int
    deviations_outside: int
    ones_outside: int

    @property
    def neutral(self) -> bool:
        """Whether the affine rank was kept."""
        return self.before == self.after

    @property
    def failed(self) -> tuple[str, ...]:
        """Conditions for neutrality that do not hold here, published ones first."""
        found = {
            CONSTANT: self.constant_rows,
            ONES: self.ones_in_rows,
            GAIN: self.zero_gains,
            OFFSET: self.deviations_outside != self.ones_outside,
        }
        return tuple(name for name, holds in found.items() if holds)

    def tables(self) -> list[Table]:
        """Ranks, then the conditions."""
        rows: list[tuple[str, Any]] = [
            ("affine rank before", self.before),
            ("affine rank after", self.after),
            ("predicted, rank([XPΓ, σ])", self.predicted),
            ("constant rows", self.constant_rows),
            ("channels with γ = 0", self.zero_gains),
            ("1 in the row space", bool(self.ones_in_rows)),
            ("rank lost to γ", self.lost_to_gains),
            ("σ outside col(XPΓ)", bool(self.deviations_outside)),
            ("1 outside col(X)", bool(self.ones_outside)),
        ]
        verdict = "rank-neutral" if self.neutral else "not rank-neutral"
        failed = f"; conditions that fail: {', '.join(self.failed)}" if self.failed else ""
        title = f"Layer norm of {self.tokens} tokens of {self.channels} channels: {verdict}"
        return [Table(title, ("what", "value"), rows, (f"{verdict}{failed}",))]


def layer_norm_check(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    spaced: float | None = None,
) -> LayerNormCheck:
    """Apply layer norm to tokens [n, d] and account for the change of their affine rank.

    Args:
        x: the tokens.
        weight, bias: γ and β [d]; 1 and 0 by default.
        eps: added to the variance.
        spaced: spacing of the values, see :mod:`spikedim.rank.matrix`; by default of their type.

    Raises:
        DataError: not a finite matrix, or (with ``eps=0``) a constant row.
    """
    value = checked(x)
    if value.ndim != 2:
        raise DataError(f"layer norm check needs one matrix [n, d], got {tuple(value.shape)}")
    unit = spacing(value) if spaced is None else spaced
    n, d = value.shape
    x = value.double()
    gain = torch.ones(d) if weight is None else torch.as_tensor(weight).detach()
    gain = gain.cpu().double()
    shift = torch.zeros(d) if bias is None else torch.as_tensor(bias).detach()
    centred = x - x.mean(-1, keepdim=True)
    rounding = d * unit * x.abs().amax(-1, keepdim=True)
    constant = (centred.abs() <= rounding).all(-1)
    centred = torch.where(constant[:, None], 0.0, centred)
    deviation = (centred.square().mean(-1) + eps).sqrt()  # [n]
    if not bool((deviation > 0).all()):
        raise DataError(
            f"{int(constant.sum())} of {n} rows are constant and eps=0: layer norm divides by 0; "
            "give the eps of the network, e.g. 1e-5"
        )
    tolerance = relative_tolerance(value, unit)
    scale = _top(x)
    inner = centred * gain
    # σ as one more column, of the size of the others
    column = deviation[:, None] / deviation.norm() * (_top(inner) or 1.0)
    ranks = token_ranks(value, unit)
    r_x, r_affine = int(ranks.rank), int(ranks.affine)
    r_centred = _rank(centred, tolerance, scale)
    r_inner = _rank(inner, tolerance, scale * float(gain.abs().max()))
    r_after = _rank(torch.cat([inner, column], 1), tolerance, _top(inner) or 1.0)
    after = affine_rank(inner / deviation[:, None] + shift.cpu().double(), unit)
    return LayerNormCheck(
        n, d, r_affine, after, r_after,
        int(constant.sum()), int((gain == 0).sum()), r_x - r_centred, r_centred - r_inner,
        r_after - r_inner, r_affine - r_x,
    )  # fmt: skip


@dataclass(frozen=True)
class NormLayer:
    """One layer norm of a network, over samples and timesteps.

    Attributes:
        layer: module path.
        tokens, channels: n and d.
        matrices: token matrices checked.
        neutral: share of them whose affine rank was kept.
        before, after: mean affine ranks.
        failed: condition → number of matrices in which it fails.
    """

    layer: str
    tokens: int
    channels: int
    matrices: int
    neutral: float
    before: float
    after: float
    failed: dict[str, int]


@dataclass(frozen=True)
class NormReport(Result):
    """Whether the layer norms of a network are rank-neutral on real inputs.

    Attributes:
        layers: every layer norm that runs.
        idle: layer norms that are stored and never applied.
    """

    layers: tuple[NormLayer, ...]
    idle: tuple[str, ...]

    def tables(self) -> list[Table]:
        """One row per layer norm; empty where none runs."""
        notes = []
        if self.idle:
            notes.append(f"Stored but never applied: {', '.join(self.idle)}.")
        if not self.layers:
            notes.append("No layer norm runs in this network.")
        rows = [
            (
                r.layer,
                f"{r.tokens} × {r.channels}",
                r.before,
                r.after,
                f"{100 * r.neutral:.0f} % of {r.matrices}",
                ", ".join(f"{count}× {name}" for name, count in r.failed.items()) or "–",
            )
            for r in self.layers
        ]
        columns = (
            "layer norm",
            "n × d",
            "affine rank before",
            "after",
            "kept",
            "conditions failed",
        )
        return [Table("Layer norm and affine rank", columns, rows, notes)]


def norm_report(
    model: SpikingModel | nn.Module, x: Tensor, T: int | None = None, limit: int = 64
) -> NormReport:
    """Check every layer norm that runs, on real inputs.

    Args:
        model: a network, calibrated or trained (any module whose layer norms see [..., n, d]).
        x, T: as for :meth:`SpikingModel.steps`.
        limit: token matrices checked of each.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    sequence = getattr(model, "family", "") == "spikegpt"  # [S, B, E]: its tokens come first
    found: dict[str, list[LayerNormCheck]] = {}

    def check(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0].transpose(0, 1) if sequence else inputs[0]
            matrices = value.flatten(0, -3) if value.ndim > 2 else value[None]
            unit = spacing(matrices)
            module_: Any = module
            found[name] = [
                layer_norm_check(m, module_.weight, module_.bias, module_.eps, unit)
                for m in matrices[:limit]
            ]

        return hook

    with hooked(*(m.register_forward_pre_hook(check(name)) for name, m in norms.items())):
        run(model, x, T)
    layers = []
    for name, checks in found.items():
        failed = [word for c in checks for word in c.failed]
        layers.append(
            NormLayer(
                name,
                checks[0].tokens,
                checks[0].channels,
                len(checks),
                float(np.mean([c.neutral for c in checks])),
                float(np.mean([c.before for c in checks])),
                float(np.mean([c.after for c in checks])),
                {word: failed.count(word) for word in dict.fromkeys(failed)},
            )
        )
    return NormReport(tuple(layers), tuple(name for name in norms if name not in found))


def _rank(x: Tensor, tolerance: float, scale: float) -> int:
    return int((torch.linalg.svdvals(x) > tolerance * scale).sum()) if scale > 0 else 0


def _top(x: Tensor) -> float:
    return float(torch.linalg.svdvals(x)[0])
