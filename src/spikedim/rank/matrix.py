"""Rank, affine rank and their softer companions of token matrices, with one tolerance policy.

A token matrix X has one row per token and one column per channel, [n, d]. Its affine rank is::

    arank(X) = rank([X, 1]) = 1 + rank(X − mean of the rows)

one more than the dimension of the flat that the tokens span; 1 means that all tokens are equal
(Cirrincione, arXiv 2604.23681). The centred form is used: it has no scale of its own to choose.

**Tolerance.** A singular value counts if it exceeds max(n, d)·eps·σ₁(X), the convention of LAPACK
and NumPy, where eps is the spacing of the type the values were *computed* in (1.2e-7 for float32,
2.2e-16 for float64; whole numbers, hence spikes, are exact and get the latter). The centred matrix
is measured against σ₁ of the uncentred one, since centring rounds at that scale. Decompositions
are in float64. A rank is called *ambiguous* where a singular value lies within a factor 10 of the
tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedim.dimension import Spectrum, get_estimator
from spikedim.errors import DataError

NEAR = 10.0
POLICY = (
    "a singular value counts above max(n, d)·eps·σ₁, eps of the type the values were computed in "
    "(whole numbers are exact)"
)


@dataclass(frozen=True)
class TokenRanks:
    """Ranks of a stack of token matrices; every array has the stack's leading shape.

    Attributes:
        rank, affine: numerical ranks, int64.
        stable: stable rank ‖X‖_F²/σ₁², of the uncentred matrix; 0 for X = 0.
        dimension: PCA-95 % of the tokens, centred, in components.
        ambiguous: whether a rank or affine rank hangs on the tolerance.
    """

    rank: np.ndarray
    affine: np.ndarray
    stable: np.ndarray
    dimension: np.ndarray
    ambiguous: np.ndarray


def token_ranks(x: Any, eps: float | None = None) -> TokenRanks:
    """Measure token matrices [..., n, d]; see the module for what and by which tolerance.

    Args:
        x: array or tensor of any real type.
        eps: spacing of the values; ``None`` takes it from their type.

    Raises:
        DataError: fewer than two axes, no element, or a value that is not finite.
    """
    value = checked(x)
    n, d = value.shape[-2:]
    work = _of_size_one(value.double())
    plain = torch.linalg.svdvals(work)  # [..., min(n, d)]
    centred = torch.linalg.svdvals(work - work.mean(-2, keepdim=True))
    limit = relative_tolerance(value, eps) * plain[..., :1]
    near = ((plain > limit / NEAR) & (plain < limit * NEAR)).any(-1)
    near |= ((centred > limit / NEAR) & (centred < limit * NEAR)).any(-1)
    top = plain[..., 0].square()
    stable = torch.where(top > 0, plain.square().sum(-1) / top, torch.zeros_like(top))
    return TokenRanks(
        (plain > limit).sum(-1).numpy(),
        1 + (centred > limit).sum(-1).numpy(),
        stable.numpy(),
        _dimensions(torch.where(centred > limit, centred, 0.0), n, d),
        near.numpy(),
    )


def matrix_rank(x: Any, eps: float | None = None) -> int:
    """Numerical rank of one matrix [n, d]."""
    return int(token_ranks(_single(x), eps).rank)


def affine_rank(x: Any, eps: float | None = None) -> int:
    """Affine rank of one matrix [n, d]: rank([X, 1]).

    Example:
        >>> affine_rank([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # three points on a line
        2
    """
    return int(token_ranks(_single(x), eps).affine)


def relative_tolerance(x: Tensor, eps: float | None = None) -> float:
    """max(n, d)·eps, the tolerance in units of the largest singular value."""
    return max(x.shape[-2:]) * (spacing(x) if eps is None else eps)


def spacing(x: Tensor) -> float:
    """Eps of the values: of their type, or of float64 where all are whole numbers."""
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    return float(torch.finfo(torch.float64 if whole else x.dtype).eps)


def checked(x: Any) -> Tensor:
    """A finite real tensor [..., n, d] on the CPU, or DataError."""
    value = x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if value.ndim < 2 or 0 in value.shape or value.is_complex():
        raise DataError(
            f"token matrix has shape {tuple(value.shape)} and type {value.dtype}; expected real "
            "[..., tokens, channels]"
        )
    if not torch.isfinite(value).all():
        raise DataError("token matrix holds NaN or infinity; a rank needs finite values")
    return value


def _of_size_one(x: Tensor) -> Tensor:
    """Every matrix over a power of two near its largest entry; ranks have no scale."""
    _, exponent = torch.frexp(x.abs().amax((-2, -1), keepdim=True))
    return x * (-exponent.clamp(-1000, 1000)).double().exp2()


def _single(x: Any) -> Tensor:
    value = checked(x)
    if value.ndim != 2:
        raise DataError(f"expected one matrix [tokens, channels], got shape {tuple(value.shape)}")
    return value


def _dimensions(singular: Tensor, n: int, d: int) -> np.ndarray:
    """PCA-95 % from centred singular values [..., k]."""
    shape = singular.shape[:-1]
    degrees = max(n - 1, 1)
    counted = get_estimator("pca95").function
    values = (singular.square() / degrees).reshape(-1, singular.shape[-1]).numpy()
    found = [counted(Spectrum(row, n, d, True, float(row.sum()))) for row in values]
    return np.array(found).reshape(shape)
