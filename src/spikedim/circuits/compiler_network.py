"""The spiking network that the universal compiler emits (claim UNIVERSAL)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams, LIFState, lif

LAYERS = ("encoder", "level", "cell", "attention", "coincidence")
_INTEGRATOR = LIFParams(beta=1.0, threshold=1.0, reset="soft", decay_input=False)
_CHUNK_BYTES = 1 << 25
_WEIGHT_BITS = 30


class LayerUnits(NamedTuple):
    """Units in each layer of a network; the field names are :data:`LAYERS`."""

    encoder: int
    level: int
    cell: int
    attention: int
    coincidence: int


def layer_units(n: int, d: int, grid: int) -> LayerUnits:
    """Units per layer for n tokens of d channels on ``grid`` levels; no table is built.

    With A = (grid + 1)^d cells: n·d, n·d·grid, n·A, n·A and n·A·C(A + n − 2, n − 1).
    """
    cells = (grid + 1) ** d
    others = math.comb(cells + n - 2, n - 1)
    return LayerUnits(n * d, n * d * grid, n * cells, n * cells, n * cells * others)


def interpolate(f: Callable[[Tensor], Tensor], x: Tensor, grid: int) -> Tensor:
    """What :class:`GridNetwork` computes with infinitely many windows.

    The piecewise-linear interpolant of f on the Freudenthal–Kuhn triangulation of the grid: the
    mean of ``f(floor(x·grid + u)/grid)`` over u uniform in [0, 1), the same u for all coordinates.

    Args:
        f: function of [..., n, d].
        x: points [..., n, d] in [0, 1].
        grid: intervals per coordinate.
    """
    scaled = (x * grid).flatten(-2)
    base = scaled.floor().clamp(max=grid - 1)
    fraction, order = (scaled - base).sort(-1, descending=True)
    one, zero = torch.ones_like(fraction[..., :1]), torch.zeros_like(fraction[..., :1])
    weights = -torch.cat([one, fraction, zero], -1).diff(dim=-1)
    vertex, total = base, weights[..., :1, None] * f((base / grid).view_as(x))
    for step in range(order.shape[-1]):
        vertex = vertex.scatter_add(-1, order[..., step, None], one)
        weight = weights[..., step + 1, None, None]
        total = total + weight * f((vertex / grid).view_as(x))
    return total


@dataclass(frozen=True, eq=False)
class GridNetwork(Circuit):
    """Spiking network for a permutation-equivariant f on [0, 1]^{n×d}, G = ``grid``.

    A clock divides time into W = ⌊T/G⌋ windows of G steps. At its start all potentials are reset,
    those of the encoders to ``(w + ½)/W`` in window w; at its end the clock spikes. Five layers,
    synapses without delay::

        encoder      (i, j)     integrate-and-fire on x_ij: k_ij = ⌊x_ij·G + (w+½)/W⌋ spikes
        level        (i, j, l)  fires once, when its encoder has fired l times: [k_ij >= l]
        cell         (i, a)     coincidence of the clock and of the levels, +1 from l = a_j and
                                −1 from l = a_j + 1: [k_i = a]
        attention    (a, m)     head a: every token attends to the tokens in cell a; of the N_a
                                spikes it receives m are enough: [N_a >= m]
        coincidence  (i, a, M)  token i in a, all tokens together in the multiset M ∋ a of cells;
                                exactly one fires per token and window

    The output of token i is the synaptic sum of the coincidence spikes, weight f_i at the corners
    (a, M)/G, over W. It is the mean of f at x rounded to the grid with a dither common to all
    coordinates, which tends to :func:`interpolate` as 1/W: T lowers the error down to that of
    interpolation, which only G lowers. The network is deterministic. Other tokens enter only
    through counts, weights are fixed-point numbers whose sums are exact, so a reordering of the
    tokens reorders the output bit for bit.

    Args:
        function: f, [B, n, d] to [B, n, d'] in float64.
        n: tokens, at least 1.
        d: channels, at least 1.
        grid: G, intervals per coordinate, at least 1.
    """

    function: Callable[[Tensor], Tensor]
    n: int
    d: int
    grid: int
    name: ClassVar[str] = "universal"
    claim: ClassVar[str] = "UNIVERSAL"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("n", "d", "grid"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected a whole number, 1 or more")

    @property
    def units(self) -> LayerUnits:
        """Units per layer, without the clock."""
        return layer_units(self.n, self.d, self.grid)

    @property
    def heads(self) -> int:
        """Attention heads: one per cell."""
        return int((self.grid + 1) ** self.d)

    @property
    def neurons(self) -> int:
        """All units, the clock included."""
        return sum(self.units) + 1

    def target(self, *inputs: Tensor) -> Tensor:
        """f(x) for x [..., n, d] in [0, 1], float64."""
        x = self.check(*inputs)
        values = self.function(x.reshape(-1, self.n, self.d))
        return values.reshape(*x.shape[:-1], values.shape[-1])

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; :func:`interpolate`."""
        x = self.check(*inputs)
        values = interpolate(self.function, x.reshape(-1, self.n, self.d), self.grid)
        return values.reshape(*x.shape[:-1], values.shape[-1])

    def run(
        self,
        *inputs: Tensor,
        T: int,
        trials: int = 1,
        generator: torch.Generator | None = None,
    ) -> Simulation:
        """Simulate the network on x [..., n, d], one copy of it for each input of the batch.

        Args:
            *inputs: x, values in [0, 1].
            T: timesteps, at least G; those beyond the last whole window are idle.
            trials: repetitions; all alike, as the network is deterministic.
            generator: not used.

        Raises:
            ConfigError: x of another shape or outside [0, 1], T < G, or trials < 1.
        """
        check_run(T, trials)
        x = self.check(*inputs)
        windows = self.windows(T)
        batch = x.reshape(-1, self.n, self.d)
        output, spikes = self.simulate(batch, windows)
        output = output.view(*x.shape[:-1], output.shape[-1])
        return Simulation(
            output=output.expand(trials, *output.shape),
            spikes=spikes.sum().expand(trials),
            neurons=len(batch) * self.neurons,
            depth=len(LAYERS),
            T=T,
        )

    def windows(self, T: int) -> int:
        """Whole windows in T steps; :class:`ConfigError` where there is none."""
        if self.grid > T:
            raise ConfigError(
                f"T={T}: this network counts up to {self.grid} spikes in a window; "
                f"give T={self.grid} or more"
            )
        return T // self.grid

    def check(self, *inputs: Tensor) -> Tensor:
        """The input x in float64; :class:`ConfigError` where the network cannot take it."""
        if len(inputs) != 1:
            raise ConfigError(f"{len(inputs)} inputs given; expected one tensor x [..., n, d]")
        x = inputs[0]
        if not isinstance(x, Tensor):
            raise ConfigError(f"x is a {type(x).__name__}; expected a tensor [..., n, d]")
        if x.shape[-2:] != (self.n, self.d):
            raise ConfigError(
                f"x has shape {tuple(x.shape)}; this network takes [..., {self.n}, {self.d}]"
            )
        if not (x.is_floating_point() and bool(((x >= 0) & (x <= 1)).all())):
            raise ConfigError("x has values that are not numbers in [0, 1]; rescale the input")
        return x.double()

    def simulate(self, x: Tensor, windows: int) -> tuple[Tensor, Tensor]:
        """Output [B, n, d'] and spikes [B, layers + clock] of x [B, n, d], float64.

        Every encoder is simulated in every step. The layers behind them start each window from rest
        and see the spike counts only, so they are simulated once for each pattern of counts.
        """
        output = x.new_zeros(len(x), self.n, self._wiring[1].shape[-1])
        spikes = x.new_zeros(len(x), len(LAYERS) + 1)
        step = max(1, _CHUNK_BYTES // (8 * (self.grid + 4) * self.units.encoder))
        for start in range(0, len(x) * windows, step):
            item = torch.arange(start, min(start + step, len(x) * windows), device=x.device)
            sample, window = item // windows, item % windows
            counts = self._encode(x[sample], (window + 0.5) / windows)
            which = _number_patterns(counts.long(), self.grid + 1)
            first = item.new_empty(int(which.max()) + 1).scatter_(0, which, item - start)
            values, fired = self._respond(counts[first])
            output.index_add_(0, sample, values[which])
            spikes.index_add_(0, sample, fired[which])
        return output / windows, spikes

    def _respond(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Weights read out [P, n, d'] and spikes [P, layers + clock] for counts [P, n, d]."""
        step = max(1, _CHUNK_BYTES // self._pattern_bytes)
        parts = [self._respond_at_once(part) for part in counts.split(step)]
        values, spikes = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(spikes)

    def _respond_at_once(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        own, readout = (table.to(counts.device) for table in self._wiring)
        levels = counts[..., None] >= torch.arange(1, self.grid + 1, device=counts.device)
        cells = self._cells(levels)
        enough = torch.arange(1, self.n + 1, device=counts.device)
        heads = (cells.sum(1)[..., None] >= enough).flatten(1)
        # Event-driven: without the spike of its own cell no coincidence unit reaches threshold.
        at, token, cell = cells.nonzero(as_tuple=True)
        source = own[:, cell] + (at * heads.shape[1])[:, None]
        potential = 1 + heads.flatten()[source].sum(0)
        event, unit = (potential >= self.n + 1).nonzero(as_tuple=True)
        values = readout.new_zeros(len(counts), self.n, readout.shape[-1])
        values.index_put_((at[event], token[event]), readout[cell[event], unit], accumulate=True)
        coincidences = torch.bincount(at[event], minlength=len(counts))
        fired = [layer.flatten(1).sum(1) for layer in (counts, levels, cells, heads)]
        clock = torch.ones_like(coincidences)
        return values, torch.stack([*fired, coincidences, clock], 1).double()

    def _encode(self, x: Tensor, phase: Tensor) -> Tensor:
        """Spikes of the encoders in a window, [items, n, d]."""
        start = phase.to(x.dtype)[:, None, None].expand_as(x)
        state = LIFState.rest(x)._replace(u=start.contiguous())
        spikes, _ = lif(x.expand(self.grid, *x.shape), _INTEGRATOR, state)
        return spikes.sum(0)

    def _cells(self, levels: Tensor) -> Tensor:
        """Spikes of the cell units at the clock's spike, [items, n, A] from [items, n, d, G]."""
        excited = torch.nn.functional.pad(levels.to(torch.int8), (1, 0), value=1)
        inhibited = torch.nn.functional.pad(levels.to(torch.int8), (0, 1), value=0)
        synapses = excited - inhibited
        potential = synapses[..., 0, :]
        for channel in range(1, self.d):
            potential = potential[..., None] + synapses[..., channel, None, :]
            potential = potential.flatten(-2)
        return potential >= self.d

    @property
    def _pattern_bytes(self) -> int:
        """Memory for one pattern of counts: the int64 sources of its potentials dominate."""
        units = self.units
        potentials = units.coincidence // self.heads
        return 8 * (3 * units.cell + 3 * self.n * potentials + 4 * units.level)

    @cached_property
    def _wiring(self) -> tuple[Tensor, Tensor]:
        """Attention units [n, A, V] that feed each coincidence unit, and its weights [A, V, d']."""
        n, cells = self.n, self.heads
        rest = list(itertools.combinations_with_replacement(range(cells), n - 1))
        others = torch.tensor(rest, dtype=torch.int64).expand(cells, -1, -1)
        mine = torch.arange(cells)[:, None, None].expand(-1, len(rest), -1)
        members, _ = torch.cat([mine, others], -1).sort(-1)
        alike = members[..., :, None] == members[..., None, :]
        occurrence = alike.tril(-1).sum(-1)
        place = torch.cartesian_prod(*[torch.arange(self.grid + 1)] * self.d).view(cells, self.d)
        corners = place[torch.cat([mine, others], -1)].double() / self.grid
        values = self.function(corners.flatten(0, 1))[:, 0]
        sources = (members * n + occurrence).permute(2, 0, 1).contiguous()
        return sources, fixed_point(values).view(cells, len(rest), -1)


def _number_patterns(counts: Tensor, base: int) -> Tensor:
    """Number 0, 1, ... of the pattern of each [n, d] of counts below base, [items]."""
    places = base ** torch.arange(counts.shape[-1], device=counts.device)
    number = counts.new_zeros(len(counts))
    for token in (counts * places).sum(-1).unbind(1):
        _, number = (number * base ** counts.shape[-1] + token).unique(return_inverse=True)
    return number


def fixed_point(values: Tensor) -> Tensor:
    """Values rounded to 2^-30 of the largest: their sums are exact in float64, in any order."""
    peak = float(values.abs().amax())
    unit = 2.0 ** (math.frexp(peak)[1] - _WEIGHT_BITS)
    return (values / unit).round() * unit
