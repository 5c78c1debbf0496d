"""A spiking attention head that converges to softmax(QKᵀ/√d)·V (claims SOFTMAX-*, EXP-VETO).

Scores by coincidence, exponential by Poisson veto, normalisation by a race or by a conductance,
values by gated integrate-and-fire encoders; signed numbers on two lines, one per sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run
from spikedim.circuits.codes import arguments, spans
from spikedim.circuits.softmax import Events, Tally, Veto, draw, races, shunt
from spikedim.errors import BudgetError, ConfigError
from spikedim.results import number

NORMALISATIONS = ("race", "shunting")
_MOST_ROUNDS = 10_000  # expected micro-steps of a race; a minute of simulation


@dataclass(frozen=True)
class AttentionSimulation(Simulation):
    """A simulation of an attention head.

    Attributes:
        weights: measured attention weights, [trials, n, m].
        rounds: mean micro-steps that a race took, per trial; 1 with shunting.
    """

    weights: Tensor
    rounds: Tensor


@dataclass(frozen=True)
class SpikingAttention(Circuit):
    """Attention of queries q [n, d] over keys k [m, d] with values v [m, dv], in spikes.

    **Scores.** Keys are coded about the middle of each channel, which softmax cannot tell: k'_jc =
    k_jc − middle_c within ±K_c. Query entry q_ic is a Poisson train of mean 2|q_ic|·K_c/√d per draw
    on the line of its sign. At each of its spikes key entry k'_jc fires, on its + line with
    probability (1 + k'_jc/K_c)/2 and else on its − line. A coincidence unit fires when the two
    signs differ. Each pair (i, j) has its own copies, so a thinned Poisson train is left, and the
    d of them that meet on a competitor add up to a Poisson train of mean

        x_ij = Σ_c |q_ic|·K_c/√d·(1 − sgn(q_ic)·k'_jc/K_c) = M_i − q_i·k'_j/√d.

    **Exponential.** The competitor fires unless a coincidence vetoes it: p_ij = e^{−x_ij}, which is
    e^{q_i·k_j/√d} up to a factor of the row. The score is never estimated and then exponentiated,
    which would have a bias of half its variance: this stage has no bias at any T.

    **Normalisation.** ``race``: a :func:`~spikedim.circuits.softmax.race` per row and timestep,
    whose winners have the law α exactly. ``shunting``: all competitors draw once per timestep,
    their spikes open conductances, and output units integrate N_ij/Σ_j N_ij as in
    :class:`~spikedim.circuits.softmax.ShuntingSoftmax`. A ratio of noisy counts has a bias of
    order log T/T, and is zero until a competitor of the row has fired.

    **Values.** Entry v_jc drives an integrate-and-fire encoder, on the line of its sign, at
    |v_jc|/max_j |v_jc| during the steps in which (i, j) wins. It starts at a random phase: no bias,
    variance below 1/4 spike². The output counts spikes of both lines.

    Hence with ``race`` the output is unbiased at every T, and error² is Σ_c Var_α(v_c)/T plus the
    values' rounding, which falls as 1/T²: slope −1/2.

    Inputs: q [n, d], k [m, d], v [m, dv], any real numbers. Each bound enters the cost, not the
    result: a row needs about 1/Σ_j p_ij micro-steps where that is large, exponential in M_i. A race
    of more than 1e4 is refused (:class:`~spikedim.errors.BudgetError`).

    Args:
        normalisation: ``"race"`` or ``"shunting"``.
    """

    name: ClassVar[str] = "spiking attention"
    claim: ClassVar[str] = "SOFTMAX-RACE"
    normalisation: str = "race"

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ConfigError(
                f"normalisation={self.normalisation!r} is unknown; "
                f"choose one of {', '.join(NORMALISATIONS)}"
            )

    def target(self, *inputs: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)·V, [n, dv]."""
        q, k, v = _heads(*inputs)
        return (q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v

    def steps(self, *inputs: Tensor, error: float = 0.01) -> int:
        """Timesteps at which the root mean square of ‖output − target‖/‖target‖ reaches ``error``.

        From the limit of T·E‖output − target‖² for large T: Σ α_ij·‖v_j − out_i‖² with ``race``,
        and 2·Σ α_ij·(1 − p_ij)/Σ_l p_il·‖v_j − out_i‖² with ``shunting``, by the delta method for
        the ratio, doubled because potentials of all ages are averaged.

        Raises:
            ConfigError: ``error`` not above 0, or a target that is zero.
        """
        q, k, v = _heads(*inputs)
        target = self.target(q, k, v)
        if not error > 0 or not bool(target.any()):
            raise ConfigError(
                f"error={error} relative to a target of norm "
                f"{float(target.norm()):g}; expected both above 0"
            )
        p = (-scores(q, k).mean).exp()
        total = p.sum(1, keepdim=True)
        weight = p / total
        if self.normalisation == "shunting":
            weight = 2 * weight * (1 - p) / total
        distance = (v - target.unsqueeze(1)).square().sum(-1)
        limit = float((weight * distance).sum())
        return max(1, math.ceil(limit / (error * float(target.norm())) ** 2))

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target."""
        return self.target(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> AttentionSimulation:
        """Simulate; see :meth:`Circuit.run`."""
        q, k, v = _heads(*inputs)
        check_run(T, trials)
        units = scores(q, k)
        if self.normalisation == "race":
            _check_races(units, q, k)
            tally = races(units, T, trials, generator)
        else:
            tally = _conductances(units, T, trials, generator)
        values = _values(tally.wins, v, generator)
        (n, d), (m, dv) = q.shape, v.shape
        # Per pair: two lines each of q, k and their coincidences in d channels; competitor; winner;
        # two lines of dv values. A race adds the reference channel and two detectors in each row,
        # a conductance an inhibitory relay for each pair.
        pair, row = 6 * d + 2 + 2 * dv, 0
        pair, row = (pair + 3, 2) if self.normalisation == "race" else (pair + 1, row)
        return AttentionSimulation(
            output=values.output / T,
            spikes=tally.spikes + values.spikes,
            neurons=n * (m * pair + row),
            depth=6,
            T=T,
            weights=tally.wins / T,
            rounds=tally.rounds,
        )


def scores(q: Tensor, k: Tensor) -> Veto:
    """Veto units for every query (rows) and key, driven by coincidences of two-channel codes.

    A query spike costs itself and the key's answer; where the signs differ, a coincidence as well.
    A race lowers the gain with one more such channel whose signs always differ.

    Args:
        q, k: [n, d] and [m, d], float64.
    """
    low, high = k.amin(0), k.amax(0)
    top = (high - low) / 2
    positive = ((k - low) / (high - low).where(top > 0, 1.0)).clamp(0, 1)  # P(+ line), [m, d]
    train = 2 * q.abs() * top / math.sqrt(q.shape[1])  # spikes per draw, [n, d]
    plus, minus = train * (q > 0), train * (q < 0)
    differ = plus @ (1 - positive).T + minus @ positive.T
    agree = plus @ positive.T + minus @ (1 - positive).T
    return Veto(differ.clamp(min=0), agree.clamp(min=0), (3, 2))


def _check_races(units: Veto, q: Tensor, k: Tensor) -> None:
    """Raise :class:`BudgetError` where a race would go on for more than ``_MOST_ROUNDS``."""
    rounds = -(-units.mean).logsumexp(1) / math.log(10)  # log10 of 1/Σ_j p_ij
    row = int(rounds.argmax())
    if float(rounds[row]) > math.log10(_MOST_ROUNDS):
        bound = (q[row].abs() * (k.amax(0) - k.amin(0)) / 2).sum() / math.sqrt(q.shape[1])
        raise BudgetError(
            f"row {row} of q has M_i = {number(float(bound))} and its keys fire with a probability "
            f"of 1e-{float(rounds[row]):.0f} per micro-step: a race takes about "
            f"1e{float(rounds[row]):.0f} of them, more than {_MOST_ROUNDS:,}; scale q or k down"
        )


def _conductances(units: Veto, T: int, trials: int, generator: torch.Generator) -> Tally:
    """Shunting normalisation of the competitors' spikes; see :class:`SpikingAttention`."""
    rows, m = units.mean.shape
    count = units.mean.new_zeros(trials, rows, m)
    charge = torch.full_like(count, 0.5)
    spent = units.mean.new_zeros(trials)
    for t in spans(T, trials * rows * m):
        fires, vetoes, further = draw(units.mean.expand(t, trials, rows, m), generator)
        history = count + fires.to(count.dtype).cumsum(0)
        charge += shunt(history).sum(0)
        count = history[-1]
        idle = (t * units.idle.sum()).expand(trials)
        spent += units.spikes(Events(vetoes.sum((0, 2)), further.sum((0, 2)), idle), generator)
    wins = charge.floor()
    spent += (2 * count + wins).flatten(1).sum(1)  # competitors, their relays, output units
    return Tally(wins, spent, torch.ones_like(spent))


class _Values(NamedTuple):
    output: Tensor
    spikes: Tensor


def _values(wins: Tensor, v: Tensor, generator: torch.Generator) -> _Values:
    """Values summed over the steps each key won: Σ_j sgn(v)·⌊wins·|v|/max|v| + phase⌋·max|v|."""
    trials, n, m = wins.shape
    top = v.abs().amax(0)
    drive = v.abs() / top.where(top > 0, 1.0)
    output = wins.new_zeros(trials, n, v.shape[1])
    spikes = wins.new_zeros(trials)
    for j in range(m):
        phase = torch.rand(output.shape, dtype=v.dtype, device=v.device, generator=generator)
        fired = (wins[:, :, j, None] * drive[j] + phase).floor()
        output += fired * v[j].sign() * top
        spikes += fired.flatten(1).sum(1)
    return _Values(output, spikes)


def _heads(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = arguments(inputs, "q", "k", "v")
    shapes = tuple(tuple(x.shape) for x in (q, k, v))
    if any(x.dim() != 2 for x in (q, k, v)) or q.shape[1] != k.shape[1] or len(k) != len(v):
        raise ConfigError(
            f"q, k and v have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; "
            "expected [n, d], [m, d] and [m, dv]"
        )
    return q, k, v
