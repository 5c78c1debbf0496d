"""What the sum over heads hides: the ambiguity subspace, and a proof by moving along it.

After its heads H, each [n, d_k], attention gives O = C_1 + … + C_H with C_h = Y_h W_h. Everything
behind sees O alone. Fix a channel: the d_k directions of the output in which one head writes
(orthonormal columns Q [d, d_k] of its W_hᵀ). There the heads have n·H·d_k numbers, of which O shows
n·d_k; the others are free (Cirrincione, arXiv 2604.23681)::

    A = {(D_1, …, D_H): D_h = E_h Qᵀ, E_1 + … + E_H = 0},     dim A = n (H − 1) d_k

A is spanned by e_i ⊗ c_a ⊗ q_k with the c_a orthonormal contrasts between heads. Adding any D of A
to the contributions leaves O, and with it every later number of any network, as it was.

**What the count is not.** It says how many ways there are to *share out* O. If the weights are
known, a real-valued move must also lie in what the heads can write, D_h = Y W_h, and only
n (H d_k − rank W_O) directions are left: none where W_O is square and invertible, since then the
heads are O W_O⁻¹. And if the heads are spikes, D must lead from one 0/1 pattern to another: the
patterns with one O are finitely many, generically one (:func:`spike_patterns`), even where W_O has
low rank. Neurons *behind* the projection hide more, never less: all currents that give the same
spikes look alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, DataError
from spikedim.models import SpikingModel
from spikedim.models.features import batch_axis
from spikedim.models.gating import PositionGate
from spikedim.rank.matrix import checked, matrix_rank
from spikedim.rank.sites import UNKNOWN, Site, hooked, run, sites
from spikedim.results import Result, Table

ENUMERATED = 20


def ambiguity_dimension(tokens: int, heads: int, head_width: int) -> int:
    """N (H − 1) d_k.

    Example:
        >>> ambiguity_dimension(512, 12, 64)  # BERT-base, one layer
        360448

    Raises:
        ConfigError: a number below 1.
    """
    for name, value in (("tokens", tokens), ("heads", heads), ("head_width", head_width)):
        if value < 1:
            raise ConfigError(f"{name}={value}; expected a whole number of at least 1")
    return tokens * (heads - 1) * head_width


@dataclass(frozen=True)
class AmbiguityBasis:
    """Orthonormal basis of A, kept as its factors: tokens × contrasts [H − 1, H] × Q [d, d_k].

    Attributes:
        tokens: n.
        contrasts: rows are orthonormal and sum to zero (Helmert).
        channel: Q, orthonormal columns.
    """

    tokens: int
    contrasts: Tensor
    channel: Tensor

    @classmethod
    def of(cls, tokens: int, heads: int, weight: Any) -> AmbiguityBasis:
        """The basis for a channel spanned by the rows of ``weight`` [d_k, d], W_h of a head.

        Rows that depend on each other are completed to d_k directions.

        Raises:
            ConfigError: ``tokens`` or ``heads`` below 1.
            DataError: more rows than columns.
        """
        rows = checked(weight).double()
        ambiguity_dimension(tokens, heads, len(rows))
        if rows.ndim != 2 or len(rows) > rows.shape[1]:
            raise DataError(
                f"weights {tuple(rows.shape)} of a head: expected [d_k, d] with d_k up to d"
            )
        channel = torch.linalg.svd(rows)[2][: len(rows)].T  # [d, d_k]
        contrasts = torch.zeros(heads - 1, heads, dtype=torch.float64)
        for a in range(1, heads):
            contrasts[a - 1, :a], contrasts[a - 1, a] = 1.0, -float(a)
            contrasts[a - 1] /= math.sqrt(a * (a + 1))
        return cls(tokens, contrasts, channel)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Coordinates of a move: (n, H − 1, d_k)."""
        return self.tokens, len(self.contrasts), self.channel.shape[1]

    @property
    def dimension(self) -> int:
        """Dim A = n (H − 1) d_k."""
        return math.prod(self.shape)

    def move(self, coordinates: Tensor) -> Tensor:
        """Element of A, [..., H, n, d], from its coordinates [..., n, H − 1, d_k]."""
        mixed = torch.einsum("...nak,ah->...hnk", coordinates, self.contrasts)
        return mixed @ self.channel.T

    def coordinates(self, contributions: Tensor) -> Tensor:
        """Coordinates of the projection of [..., H, n, d] onto A."""
        inside = contributions @ self.channel
        return torch.einsum("...hnk,ah->...nak", inside, self.contrasts)

    def vector(self, token: int, contrast: int, direction: int) -> Tensor:
        """One basis vector, [H, n, d]."""
        unit = torch.zeros(self.shape, dtype=torch.float64)
        unit[token, contrast, direction] = 1.0
        return self.move(unit)


def spike_patterns(weights: Any, output: Any, tolerance: float = 1e-9) -> list[tuple[int, ...]]:
    """All 0/1 rows y with y W = o, of one token.

    Args:
        weights: W_O, [H d_k, d], at most 20 rows: all 2^(H d_k) rows are tried.
        output: o, [d].
        tolerance: largest difference, over the largest |W|.

    Raises:
        DataError: shapes do not fit, or too many rows.
    """
    w, o = checked(weights).double().numpy(), np.asarray(output, np.float64)
    if len(w) > ENUMERATED or o.shape != w.shape[1:]:
        raise DataError(
            f"weights {w.shape} and output {o.shape}: expected [m, d] and [d] with m up to "
            f"{ENUMERATED}, since 2^m patterns are tried"
        )
    patterns = (np.arange(2 ** len(w))[:, None] >> np.arange(len(w))) & 1
    near = np.abs(patterns @ w - o).max(1) <= tolerance * max(np.abs(w).max(), 1e-300)
    return [tuple(map(int, row)) for row in patterns[near]]


@dataclass(frozen=True)
class HeadAmbiguity:
    """Head-channel ambiguity of one attention layer, with the proof that it is one.

    Attributes:
        layer: module path of the attention.
        tokens, heads, head_width, steps: n, H, d_k and timesteps T.
        per_token, per_step, total: (H − 1) d_k, n times that, T times that.
        weight_rank: rank of W_O, ``None`` where the projection mixes tokens.
        realisable: n (H d_k − rank W_O) per step: moves that the weights allow.
        gate_rank: rank of the gates [n, H] with a position gate: heads that add a constant to
            every token are told apart up to H − rank of them; ``None`` without a gate.
        moved: size of the tested move over that of the contributions.
        output_change, logit_change: what it did to O and to the logits, relative.
        control_change: what moving one head alone by as much did to the logits, relative.
    """

    layer: str
    tokens: int
    heads: int
    head_width: int
    steps: int
    per_token: int
    per_step: int
    total: int
    weight_rank: int | None
    realisable: int | None
    gate_rank: int | None
    moved: float
    output_change: float
    logit_change: float
    control_change: float


@dataclass(frozen=True)
class HeadReport(Result):
    """Head-channel ambiguity of every attention of a network."""

    layers: tuple[HeadAmbiguity, ...]

    def tables(self) -> list[Table]:
        """One row per attention; none, with a note, where they are not known."""
        rows = [
            (
                r.layer,
                f"{r.tokens}, {r.heads}, {r.head_width}",
                r.per_token,
                r.per_step,
                r.total,
                r.weight_rank,
                r.realisable,
                r.gate_rank,
                r.logit_change,
                r.control_change,
            )
            for r in self.layers
        ]
        columns = (
            "attention",
            "n, H, d_k",
            "(H−1)·d_k per token",
            "n·(H−1)·d_k per step",
            "over all steps",
            "rank W_O",
            "the weights allow",
            "rank of gates",
            "logits moved by it",
            "by one head alone",
        )
        notes = (
            "Free directions of the heads' contributions that leave their sum as it is; logits "
            "move by no more than rounding along a random one, relative to their size.",
            "Known weights and real-valued heads leave only n·(H·d_k − rank W_O) of them per step; "
            "spiking heads generically none.",
        )
        said = notes if rows else (UNKNOWN,)
        return [Table("What the sum over heads hides", columns, rows, said)]


def head_report(
    model: SpikingModel, x: Tensor, T: int | None = None, *, seed: int = 0, moved: float = 1.0
) -> HeadReport:
    """Count the ambiguity of every attention and move along it, on real inputs.

    At each layer the output of the projection is replaced by the sum of the heads' contributions
    plus a random element of A, as large as the contributions. The logits must not change; moving
    one head alone, the control, must change them (unless neurons behind it absorb the move).

    Args:
        model: a registered network, calibrated or trained; run in eval mode. Use a copy in float64
            (``copy.deepcopy(model).double()``): in float32 rounding may flip a spike.
        x, T: as for :meth:`SpikingModel.steps`.
        seed: of the moves.
        moved: size of the move over that of the contributions.

    Raises:
        ModelError: the input does not fit.
    """
    plain = run(model, x, T)
    generator = torch.Generator().manual_seed(seed)
    return HeadReport(
        tuple(_ambiguity(model, site, x, T, plain, generator, moved) for site in sites(model))
    )


def contributions(layer: nn.Module, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What each head adds to the output of an affine projection, and what belongs to no head.

    The rest (bias, norm) is the projection of zero.

    Args:
        layer: the projection, in eval mode; its hooks are not called.
        x: heads side by side: images [R, C, h, w] of a convolution, or channels last.
        heads: H.

    Returns:
        [H, *output] and [*output].
    """
    axis = 1 if _spatial(layer) else -1
    rest = layer.forward(torch.zeros_like(x))
    parts = []
    for chosen in torch.arange(x.shape[axis], device=x.device).chunk(heads):
        alone = torch.zeros_like(x).index_copy(axis, chosen, x.index_select(axis, chosen))
        parts.append(layer.forward(alone) - rest)
    return torch.stack(parts), rest


def _ambiguity(
    model: SpikingModel,
    site: Site,
    x: Tensor,
    T: int | None,
    plain: Tensor,
    generator: torch.Generator,
    moved: float,
) -> HeadAmbiguity:
    along, rows, width, change = _probe(model, site, x, T, generator, moved, alone=False)
    control = _probe(model, site, x, T, generator, moved, alone=True)[0]
    steps = 1 if model.reads_in_time else len(plain)  # its time is the sequence
    tokens = rows // (steps * x.shape[batch_axis(x)])
    d_k = width // site.heads
    rank = _weight_rank(site.projection)
    per_step = ambiguity_dimension(tokens, site.heads, d_k)
    return HeadAmbiguity(
        site.name,
        tokens,
        site.heads,
        d_k,
        steps,
        (site.heads - 1) * d_k,
        per_step,
        steps * per_step,
        rank,
        None if rank is None else tokens * (width - rank),
        _gate_rank(model, site, x, T),
        moved,
        change,
        _relative(along, plain),
        _relative(control, plain),
    )


def _probe(
    model: SpikingModel,
    site: Site,
    x: Tensor,
    T: int | None,
    generator: torch.Generator,
    moved: float,
    alone: bool,
) -> tuple[Tensor, int, int, float]:
    """Logits with the contributions at ``site`` moved, rows, H d_k, and what became of the output.

    The move is a random element of A or, ``alone``, one of the first head's contribution only.
    """
    seen: dict[str, Any] = {}

    def replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        parts, rest = contributions(layer, inputs[0], site.heads)
        last = parts.movedim(2, -1) if _spatial(layer) else parts  # [H, ..., d]
        flat = last.flatten(1, -2)  # [H, R, d]
        width = inputs[0].shape[1 if _spatial(layer) else -1]
        basis = AmbiguityBasis.of(flat.shape[1], site.heads, _head_rows(layer, site.heads, width))
        if alone:
            delta = torch.zeros_like(flat, dtype=torch.float64)
            delta[0] = _normal(generator, flat.shape[1], basis.channel.shape[1]) @ basis.channel.T
        else:
            delta = basis.move(_normal(generator, *basis.shape))
        size = float(flat.norm()) or 1.0
        delta = delta * (moved * size / (float(delta.norm()) or 1.0))
        changed = (flat + delta.to(flat)).sum(0).view(last.shape[1:])
        new = (changed.movedim(-1, 1) if _spatial(layer) else changed) + rest
        seen.update(rows=flat.shape[1], width=width, change=_relative(new, output))
        return new

    with hooked(site.projection.register_forward_hook(replace)):
        logits = run(model, x, T)
    return logits, seen["rows"], seen["width"], seen["change"]


def _gate_rank(model: SpikingModel, site: Site, x: Tensor, T: int | None) -> int | None:
    """Rank of the gates [n, H] as they are used; ``None`` without a gate."""
    gate = getattr(site.module, "gate", None)
    if not isinstance(gate, PositionGate):
        return None
    grids: list[tuple[int, ...]] = []
    keep = gate.register_forward_pre_hook(lambda _, inputs: grids.append(inputs[0].shape[2:-1]))
    with hooked(keep):
        run(model, x, T)
    return matrix_rank(gate.gates(tuple(grids[0])).reshape(-1, site.heads))


def _head_rows(layer: nn.Module, heads: int, width: int) -> Tensor:
    """W_1 [d_k, d]; where the projection mixes tokens, the first d_k channels of its output."""
    weight = _weight(layer)
    if weight is None:
        return torch.eye(width // heads, width, dtype=torch.float64)
    return weight.T[: width // heads]


def _weight(layer: nn.Module) -> Tensor | None:
    """[d, H d_k] of a projection that treats every token alike."""
    weight = getattr(layer, "weight", None)
    pointwise = isinstance(weight, Tensor) and math.prod(weight.shape[2:]) == 1
    return weight.detach().flatten(1) if isinstance(weight, Tensor) and pointwise else None


def _weight_rank(layer: nn.Module) -> int | None:
    weight = _weight(layer)
    return None if weight is None else matrix_rank(weight)


def _spatial(layer: nn.Module) -> bool:
    """Whether it is a convolution of images, channels first."""
    return any(isinstance(module, nn.Conv2d) for module in layer.modules())


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    largest = float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) / largest
