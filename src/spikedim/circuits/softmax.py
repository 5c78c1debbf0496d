"""Softmax by competition between spiking units (claims SOFTMAX-*, LYAPUNOV).

Target α_i = e^{z_i}/Σ_j e^{z_j} of logits z [..., n], each row on its own. The published circuit
subtracts, which has no gain 1/Σe and does not converge; a conductance divides; a race draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run, same_trials
from spikedim.circuits.codes import arguments, poisson, spans
from spikedim.errors import ConfigError

_LN2 = math.log(2)


class Softmax(Circuit):
    """A circuit for the softmax over the last axis of logits [..., n]."""

    def target(self, *inputs: Tensor) -> Tensor:
        """Shares α, [..., n]."""
        return _logits(*inputs).softmax(-1)


@dataclass(frozen=True)
class SubtractiveSoftmax(Softmax):
    """Lateral inhibition that subtracts, as published (claim SOFTMAX-SUBTRACTIVE).

    Integrate-and-fire units under drive e_i = c·e^{z_i − max z} less the mean activity of the step
    before: u_t = β·u_{t−1} − s_{t−1} + e − (1/n)·Σ_j s_j(t−1). The output is the share of all
    spikes, the reading most favourable to it; zero where nothing fired.

    It subtracts the same from every unit, so at rest r = max(0, e − mean r) and r_i − r_j = e_i −
    e_j, while α needs a gain 1/Σe: T does not lower the error. Where a unit saturates (c > 1) or
    leaks (β < 1) the shares also change with c, which α does not. Deterministic: trials are equal.

    Args:
        scale: c > 0, the largest drive; 1 is a spike per step without inhibition.
        beta: decay per step in (0, 1].
    """

    name: ClassVar[str] = "subtractive softmax"
    claim: ClassVar[str] = "SOFTMAX-SUBTRACTIVE"
    random: ClassVar[bool] = False
    scale: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale={self.scale}: expected the largest drive, above 0")
        if not 0 < self.beta <= 1:
            raise ConfigError(f"beta={self.beta}: expected a decay per step above 0 and at most 1")

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`."""
        logits = _logits(*inputs)
        check_run(T, trials)
        e = self.scale * _relative(logits)
        u, s, count = torch.zeros_like(e), torch.zeros_like(e), torch.zeros_like(e)
        for _ in range(T):
            u.mul_(self.beta).add_(e).sub_(s).sub_(s.mean(-1, keepdim=True))
            s = (u >= 1).to(e.dtype)
            count += s
        # the inhibitory unit repeats every spike, with weight 1/n
        return same_trials(shunt(count), 2 * count.sum(), e.numel() + _rows(e), 2, T, trials)

    def flow(self, rates: Tensor, drive: Tensor) -> Tensor:
        """Mean-rate dynamics r' = max(0, e − mean r) − r; V = Σ(r−α)² is no Lyapunov function."""
        return (drive - rates.mean(-1, keepdim=True)).clamp(min=0) - rates


@dataclass(frozen=True)
class ShuntingSoftmax(Softmax):
    """Lateral inhibition that divides (claim SOFTMAX-SHUNTING).

    Encoder i integrates the drive e_i = e^{z_i − max z} and fires (no leak, soft reset). Its spikes
    open an excitatory conductance on output unit i and, relayed by an inhibitory unit, a shunting
    one on all the others. With conductances N_i that decay slowly compared with T and a membrane
    that follows them at once, the potential is the ratio V_i = N_i/Σ_j N_j, so

        V_i(t) − V_i(t−1) = (s_i(t) − V_i(t−1)·Σ_j s_j(t)) / Σ_j N_j(t),

    which is r' = e_i − r_i·Σe with gain 1/Σ_j N_j. Its fixed point is α and V' = −2(Σe)·V for
    V = Σ(r−α)². The output unit integrates V_i and fires; its rate is the output.

    All units start at half their threshold, so the encoders err by at most 1/2 spike, to either
    side: |V − α| = O(1/t). The output errs by O(1/T) while those errors average out over time and
    by O(log T/T) at worst (drives that are fractions with a small even denominator). A share below
    1/(2T) gives no spike: the fall by 1/T sets in where T exceeds 1/α of the units that matter.
    Deterministic: trials are equal.
    """

    name: ClassVar[str] = "shunting softmax"
    claim: ClassVar[str] = "SOFTMAX-SHUNTING"
    random: ClassVar[bool] = False

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target."""
        return self.target(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`."""
        logits = _logits(*inputs)
        check_run(T, trials)
        e = _relative(logits)
        charge = torch.full_like(e, 0.5)
        last = torch.zeros_like(e)
        start = 1
        for t in spans(T, e.numel()):
            clock = torch.arange(start, start + t, dtype=e.dtype, device=e.device)
            count = integrate_and_fire(clock.view(t, *[1] * e.dim()) * e)
            charge += shunt(count).sum(0)
            last, start = count[-1], start + t
        fired = charge.floor()
        return same_trials(fired / T, 2 * last.sum() + fired.sum(), 3 * e.numel(), 3, T, trials)

    def flow(self, rates: Tensor, drive: Tensor) -> Tensor:
        """Mean-rate dynamics r' = e − r·Σe, with V' = −2(Σe)·V for V = Σ(r−α)²."""
        return drive - rates * drive.sum(-1, keepdim=True)


@dataclass(frozen=True)
class RaceSimulation(Simulation):
    """A simulation of races.

    Attributes:
        rounds: mean micro-steps that a race took, per trial, [trials].
    """

    rounds: Tensor


@dataclass(frozen=True)
class RaceSoftmax(Softmax):
    """First to fire inhibits the rest (claim SOFTMAX-RACE).

    One race per timestep, run by :func:`race` in micro-steps between veto units with firing
    probability e^{z_i − M}, M = max z + ln 2: the logits enter as Poisson rates M − z_i and no unit
    computes an exponential or a sum. The winner is i with probability α_i exactly, so the counts
    are multinomial: unbiased, E‖α̂−α‖² = (1−Σα²)/T, slope −1/2.

    A race takes a random number of micro-steps, reported as ``rounds``; T counts races.
    """

    name: ClassVar[str] = "race softmax"
    claim: ClassVar[str] = "SOFTMAX-RACE"

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the target."""
        return self.target(*inputs)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> RaceSimulation:
        """Simulate; see :meth:`Circuit.run`."""
        logits = _logits(*inputs)
        check_run(T, trials)
        n = logits.shape[-1]
        mean = _LN2 + logits.amax(-1, keepdim=True) - logits
        mean = mean.reshape(-1, n)
        tally = races(Veto(mean, torch.zeros_like(mean)), T, trials, generator)
        output = tally.wins.view(trials, *logits.shape) / T
        units = _rows(logits) * (3 * n + 2)  # sources, competitors, winners; two detectors
        return RaceSimulation(output, tally.spikes, units, 4, T, tally.rounds)


def integrate_and_fire(charge: Tensor) -> Tensor:
    """Spikes so far of a unit without leak, threshold 1, soft reset, started at 1/2.

    ⌊charge + 1/2⌋ of the charge received so far, in steps of at most 1.
    """
    return (charge + 0.5).floor()


def shunt(conductance: Tensor) -> Tensor:
    """Potential of units that the conductances of the others shunt: N_i/Σ_j N_j, 0 if all are 0.

    Args:
        conductance: spikes received so far, whole numbers, [..., n].
    """
    return conductance / conductance.sum(-1, keepdim=True).clamp(min=1)


class Veto(NamedTuple):
    """Veto units in rows: unit i of row r fires in a draw if its Poisson source is silent.

    Attributes:
        mean: mean spikes x of the source per draw, [rows, n]; the unit fires with p = e^{−x}.
        idle: mean events per draw that cost spikes and veto nothing, [rows, n].
        cost: spikes per event that vetoes, and per event that does not.
    """

    mean: Tensor
    idle: Tensor
    cost: tuple[int, int] = (1, 0)

    def spikes(self, events: Events, generator: torch.Generator) -> Tensor:
        """Spikes that the sources spent, drawn from what is known of their events."""
        vetoes = events.vetoes + poisson(events.further, generator)
        per_veto, per_idle = self.cost
        return per_veto * vetoes + per_idle * poisson(events.idle, generator)


class Events(NamedTuple):
    """Events of Poisson sources: first ones, counted, and mean numbers of the others."""

    vetoes: Tensor
    further: Tensor
    idle: Tensor


def draw(mean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One draw of veto units with sources of mean x, [..., n].

    A source is silent when its first spike, at an exponential time τ of rate x, falls after the
    end of the draw. If τ < 1 it fires Poisson(x·(1−τ)) times more; these spikes change nothing but
    the cost, and are drawn summed over units, see :meth:`Veto.spikes`.

    Returns:
        Which units fire, [..., n]; sources that spiked, and Σ x·(1−τ) over them, [...].
    """
    uniform = torch.rand(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    left = mean + uniform.neg_().log1p_()  # mean − x·τ; several times faster than exponential_
    fires = left < 0
    return fires, mean.shape[-1] - fires.sum(-1), left.clamp(min=0).sum(-1)


class Tally(NamedTuple):
    """Outcome of races: wins [trials, rows, n], spikes [trials], mean micro-steps [trials]."""

    wins: Tensor
    spikes: Tensor
    rounds: Tensor


def races(units: Veto, T: int, trials: int, generator: torch.Generator) -> Tally:
    """T races in each row and trial, see :func:`race`.

    The races of a chunk of time run side by side; the size of the chunks is fixed by ``trials`` and
    the shape of ``units``, so equal generators give equal spikes, whatever the memory.
    """
    rows, n = units.mean.shape
    line = torch.arange(trials * rows, device=units.mean.device)
    wins = units.mean.new_zeros(trials * rows * n)
    spent, rounds = units.mean.new_zeros(2, trials)

    def per_trial(of_race: Tensor) -> Tensor:
        return of_race.view(-1, trials, rows).sum((0, 2))

    for t in spans(T, 16 * trials * rows * n):
        lane = line.repeat(t)
        ran = race(units, lane % rows, generator)
        wins += torch.bincount(lane * n + ran.winner, minlength=len(wins))
        spent += units.spikes(Events(*map(per_trial, ran.events)), generator)
        spent += per_trial(ran.spikes)
        rounds += per_trial(ran.rounds)
    return Tally(wins.view(trials, rows, n), spent, rounds / (T * rows))


class Race(NamedTuple):
    """Winner, micro-steps, spikes of all units but the sources, and their events; all [races]."""

    winner: Tensor
    rounds: Tensor
    spikes: Tensor
    events: Events


def race(units: Veto, row: Tensor, generator: torch.Generator) -> Race:
    """Race the units of each listed row until one of them has won.

    In a micro-step every unit i bids with probability p_i = e^{−x_i}. A lone bidder inhibits the
    others, and wins if it stays silent in the next micro-step, in which it alone can fire; two or
    more bidders, a lone one that fires again, or nobody: the race goes on. Then

        P(i wins now) = p_i·Π_{j≠i}(1−p_j)·(1−p_i) = p_i·Π_j(1−p_j),

    proportional to p_i: whatever happened before, the winner is i with probability p_i/Σp exactly.
    Without the second micro-step the law would be that of the odds p_i/(1−p_i), since discrete time
    voids ties; a tie broken at random is biased as well.

    The product must not vanish, so the units' common gain follows the traffic: k bidders lower all
    p by the factor k, a lone bidder that fires again by 2, and silence raises them by 2, up to
    where they started. The gain is common and set by the past alone, so p_i/Σp stays.

    Args:
        units: the competitors.
        row: rows of ``units`` to race, [races].
        generator: source of all randomness.
    """
    mean, idle = units.mean, units.idle
    idle_row = idle.sum(-1)
    winner = torch.zeros_like(row)
    rounds, spikes, vetoes, further, unused = mean.new_zeros(5, len(row))
    level = mean.new_zeros(len(row))  # log2 of the factor by which the gain is lowered
    active = torch.arange(len(row), device=row.device)
    while len(active):
        here, damping = row[active], _LN2 * level[active]
        bids, stopped, more = draw(mean[here] + damping[:, None], generator)
        bidders = bids.sum(-1)
        rounds[active] += 1
        # bids; one spike of the unit that inhibits the others; one of the detector of ties
        spikes[active] += bidders + bidders.clamp(max=2)
        vetoes[active] += stopped
        further[active] += more
        unused[active] += idle_row[here]

        (alone,) = (bidders == 1).nonzero(as_tuple=True)
        lone, unit = active[alone], bids[alone].to(torch.uint8).argmax(-1)
        own = mean[here[alone], unit] + damping[alone]
        again, stopped, more = draw(own[:, None], generator)
        rounds[lone] += 1
        spikes[lone] += 1  # it fires again, or as the winner
        vetoes[lone] += stopped
        further[lone] += more
        unused[lone] += idle[here[alone], unit]
        winner[lone] = unit

        change = bidders.to(mean.dtype).clamp(min=0.5).log2()  # -1 for silence
        change[alone] = 1
        level[active] = (level[active] + change).clamp(min=0)
        lost = torch.ones_like(active, dtype=torch.bool)
        lost[alone] = again.squeeze(-1)
        active = active[lost]
    return Race(winner, rounds, spikes, Events(vetoes, further, unused))


def _logits(*inputs: Tensor) -> Tensor:
    (logits,) = arguments(inputs, "logits")
    if logits.dim() == 0:
        raise ConfigError("logits is a single number; expected [..., n]: a row of logits at least")
    return logits


def _relative(logits: Tensor) -> Tensor:
    return (logits - logits.amax(-1, keepdim=True)).exp()


def _rows(values: Tensor) -> int:
    return values.numel() // values.shape[-1]
