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

import torch
from torch import Tensor

from spikedim.errors import DataError
from spikedim.rank.matrix import affine_rank, checked, relative_tolerance, spacing, token_ranks
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


def _rank(x: Tensor, tolerance: float, scale: float) -> int:
    return int((torch.linalg.svdvals(x) > tolerance * scale).sum()) if scale > 0 else 0


def _top(x: Tensor) -> float:
    return float(torch.linalg.svdvals(x)[0])
