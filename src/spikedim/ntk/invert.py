"""From a wanted effective dimension to threshold, leak and refractory period (claim INVERT).

The closed form of R starts the search; what counts is d_eff measured on the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from spikedim.errors import ConfigError, ModelError
from spikedim.models.base import SpikingModel
from spikedim.ntk.capture import parameters_of
from spikedim.ntk.variants import (
    QUIET,
    Array,
    Membrane,
    Prepare,
    as_networks,
    combined,
    estimators,
    exponential,
    firing_rate,
    kernel_logs,
    log_dimensions,
    membrane,
    pooled,
    samples_of,
    split,
    variant,
)
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table, number
from spikedim.theory.reduction import threshold_corrected

#: Leaks and refractory periods tried after the network's own.
BETAS = (0.25, 0.5, 0.75, 0.9)
REFRACTORIES = (0, 1, 2)
_RANGE = 100.0  # thresholds searched: this factor either way from the network's own
_LEAST = 1e-4  # rate that stands for none
_RATE_HALVINGS, _HALVINGS, _GRID = 10, 10, 4


@dataclass(frozen=True)
class Trial:
    """One neuron, measured.

    Attributes:
        threshold, beta, refractory: the neuron.
        dimension: measured d_eff; NaN where the network is silent.
        reduction: R, d_eff over that of the continuous twin of this neuron; ``None`` where it was
            not asked for.
        rate: spikes per neuron and step.
    """

    threshold: float
    beta: float
    refractory: int
    dimension: float
    reduction: float | None
    rate: float


@dataclass(frozen=True)
class Inversion(Result):
    """The neuron that meets a target, or how far it can be approached.

    Attributes:
        quantity: ``"d_eff"`` or ``"R"``.
        target: its wanted value.
        tolerance: relative error allowed.
        window: allowed firing rates, spikes per neuron and step.
        dt: seconds per step, where rates were given in Hz.
        found: the neuron nearest to the target inside the window; ``None`` if no neuron fires at
            such a rate.
        feasible: whether it meets the target.
        reachable: least and largest value measured inside the window; of a feasible target, on the
            way to it.
        guess: threshold by the closed form for the network's own leak; NaN where it has none.
        trials: every measurement, in order.
        most: largest value that so few samples can show at all, which is that of equal
            eigenvalues; infinite for R. A target that it misses by more than the tolerance is
            given up after the first leak and refractory period.
        estimate: value of the neuron found with the interval for other samples of as many;
            ``None`` without one. The search met the target on these samples only.
        estimator, centered: which dimension of which kernel d_eff is.
    """

    quantity: str
    target: float
    tolerance: float
    window: tuple[float, float]
    dt: float | None
    found: Trial | None
    feasible: bool
    reachable: tuple[float, float] | None
    guess: float
    trials: tuple[Trial, ...]
    most: float = math.inf
    estimate: Estimate | None = None
    estimator: str = "pr"
    centered: bool = True

    def value(self, trial: Trial) -> float:
        """What the target is about, of one trial."""
        return trial.dimension if trial.reduction is None else trial.reduction

    @property
    def error(self) -> float:
        """Relative error of the search, on its own samples; NaN where no neuron was found."""
        return math.nan if self.found is None else self.value(self.found) / self.target - 1

    def require(self) -> None:
        """Raise ConfigError, with the reachable range, if no neuron meets the target."""
        if self.feasible:
            return
        window = " to ".join(number(rate) for rate in self.window)
        wanted = f"no neuron has {self.quantity} = {number(self.target)}"
        rates = f"while it fires {window} spikes per step"
        if self.reachable is None:
            raise ConfigError(f"{wanted} {rates}: none of those tried fires at such a rate")
        low, high = (number(value) for value in self.reachable)
        few = ""
        if self.target > self.most:
            few = f"; a kernel of so few samples has d_eff {number(self.most)} at most"
        raise ConfigError(f"{wanted} {rates}; reachable: {low} to {high}{few}")

    def tables(self) -> list[Table]:
        """The answer, then every measurement."""
        best = self.found
        rows: list[tuple[str, Any]] = [
            (f"target {self.quantity}", self.target),
            ("rate window", " to ".join(self._rate(rate) for rate in self.window)),
        ]
        if best is not None:
            rows += [
                (f"measured {self.quantity}", self.estimate or self.value(best)),
                ("error of the search", f"{number(100 * self.error, 3)} %"),
                ("v_th", best.threshold),
                ("beta", best.beta),
                ("t_ref, steps", best.refractory),
                ("rate", self._rate(best.rate)),
            ]
        if self.reachable is not None and not self.feasible:
            rows.append(("reachable", " to ".join(map(number, self.reachable))))
        if self.target > self.most:
            rows.append(("at most, by the number of samples", self.most))
        rows.append(("v_th by the closed form", self.guess))
        trials = [
            (t.threshold, t.beta, t.refractory, t.dimension, t.reduction, t.rate)
            for t in self.trials
        ]
        columns = ("v_th", "beta", "t_ref", "d_eff", "R", "spikes/step")
        answer = "feasible" if self.feasible else "infeasible: the nearest neuron"
        if best is None:
            answer = "infeasible: no neuron tried fires at such a rate"
        about = "centred" if self.centered else "uncentred"
        notes = [f"d_eff: {self.estimator} of the {about} trace kernel of these samples."]
        if best is not None and best.rate < QUIET:
            notes.append(
                f"It hardly fires, below {QUIET:g} spikes per step: its {self.quantity} rests on a "
                "few spikes. Ask for a higher rate."
            )
        return [
            Table(f"Inversion, {answer}", ("quantity", "value"), rows, notes),
            Table("Measurements", columns, trials),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Every measurement against its firing rate, with target and window."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
        leaks = list(dict.fromkeys(t.beta for t in self.trials))
        dead = list(dict.fromkeys(t.refractory for t in self.trials))
        for pair in dict.fromkeys((t.beta, t.refractory) for t in self.trials):
            some = [t for t in self.trials if (t.beta, t.refractory) == pair]
            label = f"beta {pair[0]:g}, t_ref {pair[1]}"
            # A colour for each leak, a mark for each refractory period: all pairs differ.
            mark, colour = "o^sv"[dead.index(pair[1]) % 4], f"C{leaks.index(pair[0])}"
            found = [t.rate for t in some], [self.value(t) for t in some]
            ax.plot(*found, mark, color=colour, ms=4, label=label)
        e = self.estimate
        if self.found is not None and e is not None and e.low is not None and e.high is not None:
            reach = [[e.value - e.low], [e.high - e.value]]
            style = {"fmt": "D", "mfc": "none", "color": "k", "capsize": 3}
            label = f"found, {e.confidence:.0%} interval"
            ax.errorbar([self.found.rate], [e.value], reach, label=label, **style)
        ends = (self.target * (1 - self.tolerance), self.target * (1 + self.tolerance))
        ax.axhspan(*ends, color="#3d8b40", alpha=0.2, lw=0, label="target ± tolerance")
        ax.axvspan(*self.window, color="0.8", alpha=0.4, lw=0, label="rate window")
        ax.set(xlabel="spikes per neuron and step", ylabel=self.quantity)
        # Beside the axes: its marks would pass for measurements inside.
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
        return ax

    def _rate(self, rate: float) -> str:
        text = f"{number(rate)} spikes/step"
        return text if self.dt is None else f"{number(rate / self.dt)} Hz ({text})"


def invert(
    model: SpikingModel,
    x: Tensor,
    *,
    target_d_eff: float | None = None,
    target_reduction: float | None = None,
    rate_window: tuple[float, float] | None = None,
    dt: float | None = None,
    betas: Sequence[float] | None = None,
    refractories: Sequence[int] = REFRACTORIES,
    tolerance: float = 0.05,
    T: int | None = None,
    estimator: str = "pr",
    center: bool = True,
    prepare: Prepare | None = None,
    method: str = "auto",
    memory: float | None = None,
) -> Inversion:
    """Find v_th, beta and t_ref whose measured d_eff, or R, meets a target.

    For each leak and refractory period, the network's own first: the thresholds at the ends of
    the rate window by bisection of the measured rate, then d_eff at both, at the closed form's
    guess and between them, until two neighbours enclose the target and bisection meets it.

    Args:
        model: a network, at initialisation or trained; it is left as it is.
        x: samples [n, C, H, W], or events [T, n, C, H, W]; at least 8.
        target_d_eff: wanted d_eff. Give this or
        target_reduction: wanted R = d_eff(spiking)/d_eff(continuous twin of the same neuron); a
            reduction "by 30 %" is 0.7.
        rate_window: least and largest firing rate, spikes per neuron and step, or Hz with ``dt``;
            any rate by default.
        dt: seconds per step.
        betas: leaks to try; the network's own and :data:`BETAS` by default.
        refractories: refractory periods in steps to try; the network's own is tried first, those
            it cannot have are left out.
        tolerance: relative error that meets the target.
        T: timesteps of static inputs.
        estimator, center, prepare, method, memory: as for
            :func:`~spikedim.ntk.reduction.reduction`; ``prepare`` is run on every neuron that is
            measured.

    Raises:
        ConfigError: no target or two, a target or window out of its domain; no leak and refractory
            period that the network can have.
        DataError, ModelError: as :func:`~spikedim.ntk.reduction.reduction`.

    Example:
        >>> from spikedim.ntk.invert import invert
        >>> neuron = invert(net, x, target_d_eff=6, rate_window=(0.02, 0.2)).found  # doctest: +SKIP
        >>> net.set_neurons(
        ...     threshold=neuron.threshold, beta=neuron.beta, refractory=neuron.refractory
        ... )  # doctest: +SKIP
    """
    (model,) = as_networks(model)
    own = model.config.neuron
    if isinstance(own.beta, Tensor) or isinstance(own.threshold, Tensor):
        raise ModelError("the neurons differ within a layer; invert finds one v_th and one beta")
    target, quantity = _target(target_d_eff, target_reduction)
    window = _window(rate_window, dt)
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance={tolerance} must lie between 0 and 1")
    search = _Search(model, x, T, estimator, center, prepare, method, memory, quantity == "R")
    leaks = (own.beta, *BETAS) if betas is None else betas
    dead = sorted(set(refractories), key=lambda steps: steps != own.refractory)
    if not (leaks and dead):
        raise ConfigError("betas and refractories must not be empty")
    pairs = [
        (beta, t_ref)
        for t_ref in dead
        for beta in dict.fromkeys(leaks)
        if model.can_have(beta=beta, refractory=t_ref)
    ]
    if not pairs:
        raise ConfigError(
            f"the network can have none of the leaks {list(leaks)} with any of the refractory "
            f"periods {dead}; give others"
        )
    most = math.inf if quantity == "R" else search.most()
    if most < target * (1 - tolerance):
        pairs = pairs[:1]

    def error(trial: Trial | None) -> float:
        if trial is None or not window[0] <= trial.rate <= window[1]:
            return math.inf
        off = abs(search.value(trial) / target - 1)
        return math.inf if math.isnan(off) else off

    best: Trial | None = None
    with task("inversion", len(pairs)) as progress:
        for beta, t_ref in pairs:
            for trial in search.approach(beta, t_ref, window, target):
                best = trial if error(trial) < error(best) else best
                if error(best) <= tolerance:
                    break
            progress.advance(detail=f"beta {beta:g}, t_ref {t_ref}")
            if error(best) <= tolerance:
                break
    inside = [search.value(t) for t in search.trials if window[0] <= t.rate <= window[1]]
    inside = [value for value in inside if math.isfinite(value)]
    return Inversion(
        quantity,
        target,
        tolerance,
        window,
        dt,
        best,
        error(best) <= tolerance,
        (min(inside), max(inside)) if inside else None,
        search.guess(pairs[0][0], target),
        tuple(search.trials),
        most,
        None if best is None else search.estimate(best),
        estimator,
        center,
    )


class _Search:
    """Measurements of neurons, each made once."""

    def __init__(
        self,
        model: SpikingModel,
        x: Tensor,
        T: int | None,
        estimator: str,
        center: bool,
        prepare: Prepare | None,
        method: str,
        memory: float | None,
        relative: bool,
    ) -> None:
        self._model, self._x, self._T, self._prepare = model, x, T, prepare
        self._items, self._center = estimators(estimator)[:1], center
        self._method, self._memory = method, memory
        self._relative = relative
        self._groups = split(samples_of(x), 0)  # refuses too few samples
        self.trials: list[Trial] = []
        self._guesses: dict[float, float] = {}

    def value(self, trial: Trial) -> float:
        """What the target is about."""
        return trial.dimension if trial.reduction is None else trial.reduction

    def estimate(self, trial: Trial) -> Estimate:
        """What the target is about, with the interval for other samples."""
        logs = self._logs(self._changed(trial.threshold, trial.beta, trial.refractory))
        if self._relative:  # both from the same samples, left out together
            logs = logs - self._logs(self._continuous(trial.threshold, trial.beta))
        found = combined(logs[None])
        if math.isnan(found.value):  # silent without some of the samples
            return Estimate(self.value(trial), method="no interval: silent without some samples")
        return exponential(found)

    def most(self) -> float:
        """The largest d_eff that any kernel of these samples has."""
        most = np.eye(samples_of(self._x))
        logs = log_dimensions(most, self._items, self._center, parameters_of(self._model), ())
        return math.exp(float(logs[0, 0]))

    def thresholds(
        self, beta: float, t_ref: int, window: tuple[float, float]
    ) -> tuple[float, float]:
        """Thresholds at which the rate enters and leaves the window; reversed if it never does.

        The rate falls as the threshold rises, up to exceptions that each measurement is tested
        for.
        """
        own = float(self._model.config.neuron.threshold)

        def rate_of(threshold: float) -> float:
            return self._rate(threshold, beta, t_ref)

        _, lower = crossing(rate_of, own, window[1])
        upper, _ = crossing(rate_of, own, max(window[0], _LEAST))
        return lower, upper

    def guess(self, beta: float, target: float) -> float:
        """Threshold whose corrected closed form is the target; NaN where there is none.

        A target d_eff is compared with the continuous twin at the network's own threshold.
        """
        if beta not in self._guesses:
            self._guesses[beta] = self._closed_form(beta, target)
        return self._guesses[beta]

    def _closed_form(self, beta: float, target: float) -> float:
        own = float(self._model.config.neuron.threshold)
        m = self._potential(beta)
        wanted = target if self._relative else target / self._twin(own, beta)
        if not (0 < wanted < 1 and m.deviation > 0):
            return math.nan
        a, b = 0.0, 20 * m.deviation + abs(m.mean)
        for _ in range(60):
            middle = (a + b) / 2
            falls = threshold_corrected(middle, m.mean, m.deviation) > wanted
            a, b = (middle, b) if falls else (a, middle)
        return a * own

    def approach(
        self, beta: float, t_ref: int, window: tuple[float, float], target: float
    ) -> Iterator[Trial]:
        """Measurements that close in on the target, for one leak and refractory period."""
        low, high = self.thresholds(beta, t_ref, window)
        if low >= high:
            return
        guess = self.guess(beta, target)
        grid = [low * (high / low) ** (k / _GRID) for k in range(1, _GRID)]
        made: list[Trial] = []
        pair = None
        for threshold in (*([guess] if low < guess < high else []), low, high, *grid):
            made.append(self.measure(threshold, beta, t_ref))
            yield made[-1]
            if pair := self._enclosing(made, target):
                break
        for _ in range(_HALVINGS if pair else 0):
            assert pair is not None
            a, b = pair
            middle = self.measure(math.sqrt(a.threshold * b.threshold), beta, t_ref)
            yield middle
            pair = self._enclosing([a, middle, b], target)
            if pair is None:  # the network is silent in between
                return

    def measure(self, threshold: float, beta: float, t_ref: int) -> Trial:
        """d_eff, R and rate of one neuron."""
        network = self._changed(threshold, beta, t_ref)
        dimension = self._dimension(network)
        reduction = dimension / self._twin(threshold, beta) if self._relative else None
        rate = firing_rate(network, self._x)
        trial = Trial(threshold, beta, t_ref, dimension, reduction, rate)
        self.trials.append(trial)
        return trial

    def _enclosing(self, trials: Sequence[Trial], target: float) -> tuple[Trial, Trial] | None:
        """Neighbouring thresholds with the target between their values."""
        known = sorted(
            (t for t in trials if math.isfinite(self.value(t))), key=lambda t: t.threshold
        )
        for a, b in pairwise(known):
            if (self.value(a) - target) * (self.value(b) - target) <= 0:
                return a, b
        return None

    def _changed(self, threshold: float, beta: float, t_ref: int) -> SpikingModel:
        changes = {"threshold": threshold, "beta": beta, "refractory": t_ref}
        return variant(self._model, None, self._T, self._prepare, **changes)

    def _rate(self, threshold: float, beta: float, t_ref: int) -> float:
        return firing_rate(self._changed(threshold, beta, t_ref), self._x)

    def _potential(self, beta: float) -> Membrane:
        """Membrane without reset and refractory period, in units of the own threshold."""
        on = ("threshold", "leak")
        network = variant(self._model, on, self._T, self._prepare, beta=beta)
        return pooled(membrane(network, self._x))

    def _continuous(self, threshold: float, beta: float) -> SpikingModel:
        changes = {"threshold": threshold, "beta": beta}
        return variant(self._model, (), self._T, self._prepare, **changes)

    def _twin(self, threshold: float, beta: float) -> float:
        return self._dimension(self._continuous(threshold, beta))

    def _logs(self, network: SpikingModel) -> Array:
        """Of the dimension, with all samples and without each group of them."""
        return self._measured(network, self._groups)[:, 0]

    def _dimension(self, network: SpikingModel) -> float:
        return math.exp(float(self._measured(network, ())[0, 0]))

    def _measured(self, network: SpikingModel, groups: Sequence[Array]) -> Array:
        rest = self._method, self._memory
        return kernel_logs(network, self._x, self._items, self._center, groups, *rest)


def crossing(rate_of: Callable[[float], float], own: float, rate: float) -> tuple[float, float]:
    """Two close thresholds between which a falling firing rate passes ``rate``.

    Args:
        rate_of: firing rate at a threshold.
        own: where the search starts; it reaches a factor of 100 either way.
        rate: spikes per neuron and step.
    """
    low, high = math.log(own / _RANGE), math.log(own * _RANGE)
    for _ in range(_RATE_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_of(math.exp(middle)) > rate else (low, middle)
    return math.exp(low), math.exp(high)


def _target(d_eff: float | None, reduction: float | None) -> tuple[float, str]:
    if (d_eff is None) == (reduction is None):
        raise ConfigError("give one target: target_d_eff or target_reduction")
    target, quantity = (d_eff, "d_eff") if d_eff is not None else (reduction, "R")
    assert target is not None
    least = 1.0 if quantity == "d_eff" else 0.0
    if not (math.isfinite(target) and target > 0 and target >= least):
        raise ConfigError(f"target {quantity} = {target} must be {'1 or more' if least else '> 0'}")
    return float(target), quantity


def _window(rates: tuple[float, float] | None, dt: float | None) -> tuple[float, float]:
    if dt is not None and not dt > 0:
        raise ConfigError(f"dt={dt} must be a positive number of seconds per step")
    if rates is None:
        return 0.0, 1.0
    low, high = (float(rate) * (1.0 if dt is None else dt) for rate in rates)
    if not 0 <= low < high <= 1:
        unit = "spikes per step" if dt is None else f"Hz at {dt:g} s per step"
        raise ConfigError(
            f"rate window {rates[0]:g} to {rates[1]:g} {unit} must lie between 0 and "
            f"{1 if dt is None else 1 / dt:g}, low < high"
        )
    return low, high
