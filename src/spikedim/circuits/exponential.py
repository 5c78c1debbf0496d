"""Two spike circuits for e^z: the published truncated series and a Poisson veto (claims EXP*).

The series needs many independent copies of its input and coefficients that reach e^{3M} as
published; the veto needs one inhibitory source and is exact in the mean at every T.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation, check_run
from spikedim.circuits.codes import arguments, bernoulli_spikes, in_range, per_trial, poisson_spikes
from spikedim.errors import ConfigError
from spikedim.results import Estimate, Result, Table
from spikedim.theory import mean_interval

FORMS = ("published", "collected", "positive")


class Moments(NamedTuple):
    """Exact mean and variance of the decoded value of one step, and its expected spikes."""

    mean: Tensor
    variance: Tensor
    spikes: Tensor


@dataclass(frozen=True)
class Exponential(Circuit):
    """A circuit for e^z with z bounded by M; input z of any shape.

    Args:
        bound: M > 0.
    """

    bound: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 100:
            raise ConfigError(f"bound={self.bound}: expected M above 0 and at most 100")

    def target(self, *inputs: Tensor) -> Tensor:
        """e^z."""
        return self._domain(*inputs).exp()

    def limit(self, *inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.limit`; the mean of one step."""
        return self.moments(*inputs).mean

    @abstractmethod
    def moments(self, *inputs: Tensor) -> Moments:
        """What one timestep gives; over T steps the output has variance ``variance/T``."""

    @abstractmethod
    def _domain(self, *inputs: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class VetoExponential(Exponential):
    """Poisson-veto exponential: e^z = e^M·P(no inhibitory spike) for z <= M (claim EXP-VETO).

    A unit with constant drive at its threshold fires in every step in which its inhibitory
    Poisson source of mean x = M − z per step stays silent, with probability p = e^{−x}. Decoded
    e^M·s̄ is unbiased at every T, with variance e^{2M}·p(1−p)/T.
    """

    name: ClassVar[str] = "veto exponential"
    claim: ClassVar[str] = "EXP-VETO"

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`."""
        mean = self.bound - self._domain(*inputs)
        check_run(T, trials)
        drive = threshold = 1.0
        count = mean.new_zeros((trials, *mean.shape))
        spent = mean.new_zeros(trials)
        for inhibition in poisson_spikes(mean, T, trials, generator):
            count += (drive - inhibition >= threshold).sum(0)
            spent += per_trial(inhibition.sum(0))
        spent += per_trial(count)
        return Simulation(count / T * math.exp(self.bound), spent, 2 * mean.numel(), 2, T)

    def moments(self, *inputs: Tensor) -> Moments:
        """See :meth:`Exponential.moments`; spikes are x of the source and p of the unit."""
        x = self.bound - self._domain(*inputs)
        p = (-x).exp()
        scale = math.exp(self.bound)
        return Moments(scale * p, scale**2 * p * (1 - p), x + p)

    def _domain(self, *inputs: Tensor) -> Tensor:
        (z,) = arguments(inputs, "z")
        return in_range("z", z, -math.inf, self.bound, "raise bound or scale z")


@dataclass(frozen=True)
class TaylorExponential(Exponential):
    """Truncated Taylor series of e^z for |z| <= M, powers by coincidence (claim EXP).

    z is coded as r = (z+M)/(2M) in independent Bernoulli trains. In a cascade of them the
    coincidence of the first k, a unit with threshold k, fires with probability r^k; the decoder
    weighs the rates. With J = ``order`` the forms are

    - ``published``: Σ_{j<=J} z^j/j! with z = M(2r−1), each j with a cascade of its own and the
      alternating weights (M^j/j!)·C(j,k)·2^k·(−1)^{j−k}, whose mass Σ|weight| tends to e^{3M};
    - ``collected``: the same polynomial in powers of r, from one cascade of J: the signs cancel in
      the decoder and the mass tends to that of the positive form;
    - ``positive``: e^{−M}·Σ_{j<=J} (2M)^j/j!·r^j from one cascade; mass e^M.

    All have truncation bias. A variance is at most mass²/T.

    Args:
        bound: M > 0.
        order: J, the highest power, 1 to 200.
        form: one of :data:`FORMS`.
        shared: give every coincidence unit one and the same train k times. It then fires at rate
            r, not r^k, and the circuit computes the chord e^{−M} + r·(e^M − e^{−M}).
    """

    name: ClassVar[str] = "Taylor exponential"
    claim: ClassVar[str] = "EXP"
    order: int = 24
    form: str = "published"
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.order, bool)
            or not isinstance(self.order, int)
            or not 1 <= self.order <= 200
        ):
            raise ConfigError(f"order={self.order!r}: expected a whole number J from 1 to 200")
        if self.form not in FORMS:
            raise ConfigError(f"form={self.form!r} is unknown; choose one of {', '.join(FORMS)}")

    def cascades(self) -> list[list[float]]:
        """Weights of the rates r^0 … r^k of every cascade, whose last index is its trains."""
        M, J = self.bound, self.order
        if self.form == "positive":
            return [[math.exp(-M) * term for term in _series(2 * M, J)]]
        powers = [
            [term * math.comb(j, k) * 2**k * (-1) ** (j - k) for k in range(j + 1)]
            for j, term in enumerate(_series(M, J))
        ]
        if self.form == "published":
            return powers
        return [[math.fsum(power[k] for power in powers[k:]) for k in range(J + 1)]]

    def mass(self) -> float:
        """Sum of the absolute weights."""
        return math.fsum(abs(weight) for cascade in self.cascades() for weight in cascade)

    def run(
        self, *inputs: Tensor, T: int, trials: int = 1, generator: torch.Generator
    ) -> Simulation:
        """Simulate; see :meth:`Circuit.run`."""
        rate = self._rate(*inputs)
        check_run(T, trials)
        cascades = self.cascades()
        # Of every coincidence: its power, and whether it is the train itself and needs no unit.
        order = [k for weights in cascades for k in range(1, len(weights))]
        trains = 1 if self.shared else len(order)
        count = rate.new_zeros((len(order), trials, *rate.shape))
        spent = rate.new_zeros(trials)
        for spikes in bernoulli_spikes(rate.expand(trains, *rate.shape), T, trials, generator):
            spent += per_trial(spikes.sum(0))
            by_train = spikes.movedim(2, 0).contiguous()
            coincidence = by_train[0]
            for index, power in enumerate(order):
                train = by_train[0 if self.shared else index]
                coincidence = train if power == 1 else coincidence & train
                count[index] += coincidence.sum(0)
        unit = torch.tensor(order, device=rate.device) > 1
        spent += per_trial(count[unit].sum(0))
        weights = rate.new_tensor([w for weights in cascades for w in weights[1:]])
        constant = math.fsum(weights[0] for weights in cascades)
        output = constant + torch.tensordot(weights, count / T, 1)
        units = int(unit.sum())
        return Simulation(output, spent, (trains + units) * rate.numel(), 1 + (units > 0), T)

    def moments(self, *inputs: Tensor) -> Moments:
        """See :meth:`Exponential.moments`, from the law of the leading spikes of a cascade."""
        rate = self._rate(*inputs)
        cascades = self.cascades()
        if self.shared:
            constant = math.fsum(weights[0] for weights in cascades)
            rise = math.fsum(weight for weights in cascades for weight in weights[1:])
            units = sum(max(len(weights) - 2, 0) for weights in cascades)
            variance = rate * (1 - rate) * rise**2
            return Moments(constant + rate * rise, variance, (1 + units) * rate)
        r = rate.unsqueeze(-1)
        mean, variance, spikes = (torch.zeros_like(rate) for _ in range(3))
        for weights in cascades:
            # The first N trains fire with P(N >= k) = r^k, and decode to w_0 + … + w_N
            value = r.new_tensor(weights).cumsum(0)
            powers = r ** torch.arange(len(weights), device=r.device)
            law = torch.cat([powers[..., :-1] * (1 - r), powers[..., -1:]], -1)
            expected = (law * value).sum(-1, keepdim=True)
            mean += expected.squeeze(-1)
            variance += (law * (value - expected) ** 2).sum(-1)
            spikes += (len(weights) - 1) * rate + powers[..., 2:].sum(-1)
        return Moments(mean, variance, spikes)

    def _rate(self, *inputs: Tensor) -> Tensor:
        return (self._domain(*inputs) + self.bound) / (2 * self.bound)

    def _domain(self, *inputs: Tensor) -> Tensor:
        (z,) = arguments(inputs, "z")
        return in_range("z", z, -self.bound, self.bound, "raise bound or scale z")


def _series(base: float, order: int) -> list[float]:
    """base^j/j! for j = 0 … order."""
    terms = [1.0]
    for j in range(1, order + 1):
        terms.append(terms[-1] * base / j)
    return terms


@dataclass(frozen=True)
class ExponentialPoint:
    """One circuit at one input, over many trials.

    Attributes:
        circuit: which of the compared circuits.
        x: distance M − z to the bound.
        T: timesteps that spend the budget.
        spikes: mean per trial.
        target: e^z.
        bias: mean over trials − e^z, with Student's interval.
        exact_bias: what infinitely many trials would give.
        deviations: measured bias in exact standard errors; NaN where the output never varies.
        variance: measured, of one trial.
        exact_variance: the same for infinitely many trials.
        cost: spikes that bring the standard deviation to 1 % of e^z, whatever the bias:
            ``spikes·variance/(0.01·e^z)²``, both expected.
    """

    circuit: str
    x: float
    T: int
    spikes: float
    target: float
    bias: Estimate
    exact_bias: float
    deviations: float
    variance: float
    exact_variance: float
    cost: float


@dataclass(frozen=True)
class ExponentialComparison(Result):
    """Bias, variance and spikes of the exponentials at equal spike budget (claims EXP, EXP-VETO).

    Attributes:
        budget: expected spikes per trial and input.
        bound: M.
        order: J of the series.
        trials: per point.
        seed: of the spikes.
        points: every circuit at every x.
    """

    budget: int
    bound: float
    order: int
    trials: int
    seed: int
    points: tuple[ExponentialPoint, ...]

    def tables(self) -> list[Table]:
        """One row per circuit and input; bias and standard deviation in per cent of e^z."""
        columns = ("circuit", "x", "T", "spikes", "bias %", "exact bias %", "bias / s.e.", "s.d. %",
                   "spikes to 1 %")  # fmt: skip
        rows = [
            (p.circuit, p.x, p.T, p.spikes, round(100 * p.bias.value / p.target, 6),
             round(100 * p.exact_bias / p.target, 6), round(p.deviations, 2),
             round(100 * math.sqrt(p.variance) / p.target, 6), f"{p.cost:.1e}")
            for p in self.points
        ]  # fmt: skip
        notes = (
            f"M = {self.bound:g}, J = {self.order}, {self.trials:,} trials; z = M - x; "
            "spikes to 1 %: until the standard deviation is 1 % of e^z, whatever the bias",
        )
        return [Table(f"e^z at {self.budget:,} spikes", columns, rows, notes)]

    def plot(self, ax: Any = None) -> Any:
        """Relative root-mean-square error against x where it is random; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
        for name in dict.fromkeys(p.circuit for p in self.points):
            line = [p for p in self.points if p.circuit == name and p.exact_variance > 0]
            error = [math.hypot(p.exact_bias, math.sqrt(p.exact_variance)) for p in line]
            relative = [e / p.target for e, p in zip(error, line, strict=True)]
            # dashed, because the collected series would lie hidden under it
            kind = "o--" if name.endswith("positive") else "o-"
            ax.plot([p.x for p in line], relative, kind, ms=3, lw=1.2, label=name)
        ax.set(yscale="log", xlabel="x = M − z", ylabel=f"relative RMSE, {self.budget:,} spikes")
        ax.legend(fontsize=7, frameon=False)
        return ax


def compare_exponentials(
    x: Sequence[float] = tuple(range(9)),
    *,
    budget: int = 1000,
    bound: float = 4.0,
    order: int = 24,
    trials: int = 400,
    seed: int = 0,
) -> ExponentialComparison:
    """Run the veto and every form of the series, and the series on one train, at equal spikes.

    Each circuit gets the T at which it is expected to spend ``budget`` spikes, but at most one step
    per spike: near x = 2M, where the input of a series falls silent, a series spends less.

    Args:
        x: distances M − z, in [0, 2M].
        budget: spikes per trial and input.
        bound: M.
        order: J of the series.
        trials: per circuit and input, at least 2.
        seed: of the spikes.

    Raises:
        ConfigError: a value out of its range.
    """
    if trials < 2:
        raise ConfigError(f"trials={trials}: an interval needs at least 2")
    if budget < 1 or not len(x):
        raise ConfigError(f"budget={budget}, {len(x)} distances x: expected at least 1 of both")
    circuits: dict[str, Exponential] = {
        "veto": VetoExponential(bound),
        "Taylor, published": TaylorExponential(bound, order),
        "Taylor, collected": TaylorExponential(bound, order, "collected"),
        "Taylor, positive": TaylorExponential(bound, order, "positive"),
        "Taylor, one train": TaylorExponential(bound, order, shared=True),
    }
    generator = torch.Generator().manual_seed(seed)
    points = []
    for name, circuit in circuits.items():
        for distance in x:
            z = torch.tensor(bound - distance, dtype=torch.float64)
            step = circuit.moments(z)
            spikes = float(step.spikes)
            T = max(1, round(budget / max(spikes, 1.0))) if spikes > 0 else 1
            ran = circuit.run(z, T=T, trials=trials, generator=generator)
            points.append(_point(name, float(distance), float(z.exp()), step, ran))
    return ExponentialComparison(budget, bound, order, trials, seed, tuple(points))


def _point(name: str, x: float, target: float, step: Moments, ran: Simulation) -> ExponentialPoint:
    trials, variance = len(ran.output), float(ran.output.var())
    bias = float(ran.output.mean()) - target
    exact = float(step.variance) / ran.T
    error = math.sqrt(exact / trials)
    spikes = float(ran.spikes.mean())
    low, high = mean_interval(bias, math.sqrt(variance), trials)
    return ExponentialPoint(
        circuit=name,
        x=x,
        T=ran.T,
        spikes=spikes,
        target=target,
        bias=Estimate(bias, low, high, trials, method="Student"),
        exact_bias=float(step.mean) - target,
        deviations=bias / error if error > 0 else math.nan,
        variance=variance,
        exact_variance=exact,
        cost=float(step.spikes) * float(step.variance) / (0.01 * target) ** 2,
    )
