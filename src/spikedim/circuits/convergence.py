"""Error of a circuit against T: intervals, slope, floor and a verdict, one record for all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls
from scipy.stats import chi2
from scipy.stats import f as fisher
from scipy.stats import t as student
from torch import Tensor

from spikedim.circuits.base import Circuit, Simulation
from spikedim.errors import ConfigError, ModelError
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table, number

Array = NDArray[np.float64]
T_VALUES = (16, 64, 256, 1024, 4096, 16384)
CONFIDENCE = 0.95
SURE = 0.999  # of a verdict against a random circuit; two floors at 95 % err in 4 % of the runs
_ROUNDING = 1e-12  # squared relative residual that a perfect fit may leave
_NONE = 1e-9  # a slope, or an error of the limit relative to the target, that is rounding
_CARRIERS = 10  # trials that must carry the variation of the error; of few trials, almost half


class _Sample(NamedTuple):
    """Relative standard error of the error, and an unbiased estimate of the squared bias."""

    relative: float
    square_bias: float
    square_bias_error: float


@dataclass(frozen=True)
class ConvergencePoint:
    """What many trials at one T gave.

    Attributes:
        T: timesteps.
        error: root mean square over trials of the norm of output − target; without bounds where
            the circuit is not random, NaN where too few trials of a random one differ to tell it.
        bias: the same norm of (mean output over trials) − target.
        bias_error: the same norm of the standard errors of that mean. An unbiased circuit has a
            bias of about this size. NaN where ``error`` is.
        spikes: mean per trial.
        seconds: wall-clock time of the simulation.
    """

    T: int
    error: Estimate
    bias: float
    bias_error: float
    spikes: float
    seconds: float


@dataclass(frozen=True)
class Convergence(Result):
    """Error of a circuit against its timesteps.

    Attributes:
        circuit: name of the circuit.
        claim: id of its claim.
        norm: how the error of one trial is measured, see :func:`convergence`.
        trials: per T.
        seed: of the spikes.
        neurons, depth: size of the circuit.
        points: by ascending T.
        slope: of log error against log T, with a 95 % interval; NaN where fewer than three errors
            are positive and known.
        floor: the error F left at infinite T, from error² = F² + A/T + B/T² with F, A, B >= 0 (the
            laws of a variance and of a squared bias), with a 95 % interval.
        bias_floor: the part of it that averaging over trials does not remove, root mean square
            over elements (relative with ``frobenius``), from the two largest T; sharper than
            ``floor`` where the noise of one trial hides a bias. NaN without randomness.
        limit_error: the same norm of :meth:`Circuit.limit` − target; NaN where it is not known.
        converges: ``None`` where these runs cannot tell.
        reason: what decides, see :func:`convergence`.
    """

    circuit: str
    claim: str
    norm: str
    trials: int
    seed: int
    neurons: int
    depth: int
    points: tuple[ConvergencePoint, ...]
    slope: Estimate
    floor: Estimate
    bias_floor: Estimate
    limit_error: float
    converges: bool | None
    reason: str

    @property
    def verdict(self) -> str:
        """``converges`` and ``reason`` in words."""
        words = {True: "converges", False: "does not converge", None: "undecided"}
        return f"{words[self.converges]}: {self.reason}"

    def tables(self) -> list[Table]:
        """One row per T; slope, floor and verdict in the notes."""
        rows = [(p.T, str(p.error), p.bias, p.bias_error, p.spikes, p.seconds) for p in self.points]
        columns = ("T", f"error ({self.norm})", "bias", "its s.e.", "spikes", "seconds")
        notes = (
            f"{self.neurons:,} neurons, depth {self.depth}, {self.trials:,} trials per T",
            f"slope of log error: {self.slope}",
            f"floor: {self.floor}; of the bias: {self.bias_floor}",
            self.verdict,
        )
        return [Table(f"{self.circuit}: error against T", columns, rows, notes)]

    def plot(self, ax: Any = None) -> Any:
        """Errors with intervals, bias, fitted line and floor, log-log; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
        positive = [p for p in self.points if p.error.value > 0]
        shown = positive or self.points
        T = np.array([p.T for p in shown])
        error = np.array([p.error.value for p in shown])
        reach = np.array([p.error.reach for p in shown]).reshape(-1, 2).T
        ax.errorbar(T, error, reach, fmt="o", ms=4, color="#1f5a93", label="error")
        bias = [p.bias or math.nan for p in shown]
        ax.plot(T, bias, "x", ms=4, color="#777777", label="bias")
        if math.isfinite(self.slope.value):
            middle = np.log(T).mean(), np.log(error).mean()
            line = np.exp(middle[1] + self.slope.value * (np.log(T) - middle[0]))
            ax.plot(T, line, lw=1.2, color="#1f5a93", label=f"slope {self.slope}")
        known = self.limit_error > 0
        if known or (self.converges is not True and _told(self.floor)):
            left = self.limit_error if known else self.floor.value
            label = f"left at infinite T: {number(left)}" if known else f"floor {self.floor}"
            ax.axhline(left, ls="--", lw=1, color="#b8321f", label=label)
        ax.set(xscale="log", xlabel="timesteps T", ylabel=f"error ({self.norm})")
        ax.set_yscale("log" if positive else "linear")
        ax.set_title(self.circuit, loc="left", fontsize=9)
        ax.legend(fontsize=7, frameon=False)
        return ax


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms": lambda square, target: square.mean(1),
    "max": lambda square, target: square.amax(1),
    "frobenius": lambda square, target: square.sum(1) / target.square().sum(),
}


def convergence(
    circuit: Circuit,
    *inputs: Tensor,
    T_values: Sequence[int] = T_VALUES,
    trials: int = 200,
    seed: int = 0,
    norm: str = "rms",
) -> Convergence:
    """Measure the error of ``circuit`` on ``inputs`` at several T.

    The slope is that of the least-squares line of log error on log T, the floor is fitted to
    relative residuals. Both intervals come from the spread of the trials (Student; a
    likelihood-ratio test for the floor), unless the errors scatter about the fit more than that
    explains, by a χ² test at 5 %, as where nothing is random: then from the scatter. The floor of
    the bias b is the root of (b²(T) − b²(T')·T'/T)/(1 − T'/T) at the largest T and the next, T',
    positive only if b falls more slowly than 1/√T; b² is estimated from pairs of trials, its error
    by the jackknife.

    Where the limit of the circuit is known, it decides: the circuit does not converge if the limit
    misses the target, and converges if it meets it and the error is seen to fall
    (``slope.high < 0``). Elsewhere the circuit does not converge if either floor can be told from
    zero, at 99.9 % where it is random, and converges if neither can at 95 % and the error is seen
    to fall. All else is undecided. Points where too few trials differ are left out of both fits:
    the spread of rare events that did not happen is not 0.

    Args:
        circuit: any circuit.
        *inputs: its inputs; give a deterministic code many values, or its errors are those of one
            rounding and follow no line.
        T_values: at least four, ascending.
        trials: independent repetitions per T, at least 2.
        seed: of the spikes; each T draws from its own generator.
        norm: error of one trial: ``"rms"`` over the elements of the output, ``"max"`` their largest
            absolute error, or ``"frobenius"``, ‖output − target‖/‖target‖.

    Raises:
        ConfigError: an argument out of its range, or ``frobenius`` of a target that is zero.
        ModelError: the circuit returned a value that is not finite.

    Example:
        >>> import torch
        >>> from spikedim.circuits import BernoulliCode
        >>> found = convergence(BernoulliCode(), torch.linspace(0.1, 0.9, 9))
        >>> found.converges, -0.53 < found.slope.value < -0.47
        (True, True)
    """
    _check(T_values, trials, norm, seed)
    target = circuit.target(*inputs)
    if norm == "frobenius" and not bool(target.any()):
        raise ConfigError(
            "the target is zero, and norm 'frobenius' is relative to it; give other inputs, or "
            "norm 'rms'"
        )
    points, samples = [], []
    with task(f"{circuit.name}: convergence", sum(T_values)) as progress:
        for T in T_values:
            derived = int(np.random.SeedSequence([seed, T]).generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator(target.device).manual_seed(derived)
            start = time.perf_counter()
            ran = circuit.run(*inputs, T=T, trials=trials, generator=generator)
            spikes = float(ran.spikes.mean())  # waits for a device that works in the background
            seconds = time.perf_counter() - start
            point, sample = _measure(circuit, ran, target, norm, spikes, seconds)
            points.append(point)
            samples.append(sample)
            progress.advance(T, f"T={T}")
    values = np.array([p.error.value for p in points])
    spread = np.array([s.relative for s in samples])
    steps = np.array(T_values, np.float64)
    slope = _slope(steps, values, spread, trials)
    ratio = T_values[-2] / T_values[-1]
    floors, sure = (
        (
            _floor(steps, values, spread, trials, level),
            _bias_floor(ratio, samples[-2], samples[-1], trials, level),
        )
        for level in (CONFIDENCE, SURE)
    )
    limit_error = _limit_error(circuit, inputs, target, norm)
    converges, reason = _judge(circuit, points, slope, floors, sure, limit_error)
    return Convergence(
        circuit=circuit.name,
        claim=circuit.claim,
        norm=norm,
        trials=trials,
        seed=seed,
        neurons=ran.neurons,
        depth=ran.depth,
        points=tuple(points),
        slope=slope,
        floor=floors[0],
        bias_floor=floors[1],
        limit_error=limit_error,
        converges=converges,
        reason=reason,
    )


def _check(T_values: Sequence[int], trials: int, norm: str, seed: int) -> None:
    whole = all(isinstance(T, int) for T in T_values)
    ascending = all(a < b for a, b in pairwise(T_values))
    if len(T_values) < 4 or not (whole and ascending) or T_values[0] < 1:
        raise ConfigError(
            f"timesteps T {', '.join(map(str, T_values))}: expected at least four, ascending, "
            "whole numbers from 1 on, e.g. 16,64,256,1024"
        )
    if not isinstance(trials, int) or trials < 2:
        raise ConfigError(f"trials={trials}: an interval needs at least 2, a whole number")
    if norm not in NORMS:
        raise ConfigError(f"norm={norm!r} is unknown; choose one of {', '.join(NORMS)}")
    if seed < 0:
        raise ConfigError(f"seed={seed}: expected a whole number, 0 or more")


def _limit_error(circuit: Circuit, inputs: Sequence[Tensor], target: Tensor, norm: str) -> float:
    limit = circuit.limit(*inputs)
    if limit is None:
        return math.nan
    left = limit - target
    if float(left.norm()) <= _NONE * float(target.norm()):
        return 0.0
    return math.sqrt(float(_size(left[None].square(), target, norm)))


def _judge(
    circuit: Circuit,
    points: Sequence[ConvergencePoint],
    slope: Estimate,
    floors: tuple[Estimate, Estimate],
    sure: tuple[Estimate, Estimate],
    limit_error: float,
) -> tuple[bool | None, str]:
    """Whether it converges and why, see :func:`convergence`; ``sure``: the floors at 99.9 %."""
    if all(point.error.value == 0 for point in points):
        return None, "exact on these inputs, which says nothing about convergence"
    if limit_error > 0:
        return False, f"at infinite T an error of {number(limit_error)} is left"
    measured = math.isnan(limit_error)
    if measured and any(map(_told, sure)):
        level = SURE if circuit.random else CONFIDENCE
        return False, f"a floor is told from 0 at {100 * level:g} %"
    if measured and any(map(_told, floors)):
        return (
            None,
            f"a floor is told from 0 at {100 * CONFIDENCE:g} % but not at {100 * SURE:g} %; "
            "raise trials",
        )
    few = [str(point.T) for point in points if math.isnan(point.error.value)]
    ended = not circuit.random and points[-1].error.value == 0
    unknown = measured and math.isnan(floors[0].value)
    if unknown or not (ended or (slope.high or 0.0) < -_NONE):
        why = f"too few trials differ at T = {', '.join(few)}" if few else f"slope {slope}"
        more = "T or trials" if circuit.random else "T"
        return None, f"the error is not seen to fall, {why}; raise {more}"
    if measured:
        return True, f"the error falls, no floor above {number(floors[0].high or 0.0)} (95 %)"
    return True, "the error falls, and its limit is known to be 0"


def _told(floor: Estimate) -> bool:
    """Whether it is told from zero."""
    return (floor.low or 0.0) > 0


def _size(square: Tensor, target: Tensor, norm: str) -> Tensor:
    """Squared errors [trials, *shape] in a norm, [trials]."""
    return NORMS[norm](square.reshape(len(square), -1), target)


def _measure(
    circuit: Circuit, ran: Simulation, target: Tensor, norm: str, spikes: float, seconds: float
) -> tuple[ConvergencePoint, _Sample]:
    output = ran.output
    if not bool(torch.isfinite(output).all()):
        raise ModelError(
            f"{circuit.name} returned a value that is not finite at T={ran.T}; raise T"
        )
    trials = len(output)
    squares = _size((output - target).square(), target, norm)
    mean_square = float(squares.mean())
    error = math.sqrt(mean_square)
    relative = 0.0
    if not circuit.random or mean_square == 0:
        estimate = Estimate(error, n=trials, method="the same in every trial")
    elif _carriers(squares) < max(0.5, min(_CARRIERS, trials / 2 - 2)):
        estimate = Estimate(math.nan, n=trials, method="too few trials differ")
    else:
        relative = float(squares.std()) / math.sqrt(trials) / (2 * mean_square)
        factor = math.exp(_two_sided(trials - 1) * relative)
        method = "Student, on the log scale"
        estimate = Estimate(error, error / factor, error * factor, trials, "", CONFIDENCE, method)
    bias = _size((output.mean(0, keepdim=True) - target).square(), target, norm)
    noise = _size(output.var(0, keepdim=True) / trials, target, norm)
    point = ConvergencePoint(
        T=ran.T,
        error=estimate,
        bias=float(bias.sqrt()),
        bias_error=math.nan if math.isnan(estimate.value) else float(noise.sqrt()),
        spikes=spikes,
        seconds=seconds,
    )
    deviations = (output - target).reshape(trials, -1).cpu().numpy()
    scale = float(target.norm()) if norm == "frobenius" else math.sqrt(target.numel())
    return point, _Sample(relative, *_square_bias(deviations / scale))


def _carriers(squares: Tensor) -> float:
    """Trials that carry the variation, (Σd)²/Σd² of their errors' distances d from the least."""
    if torch.allclose(squares, squares[0], rtol=1e-9, atol=0.0):
        return 0.0
    errors = (squares / squares.max()).sqrt()
    distance = errors - errors.min()
    return float(distance.sum() ** 2 / distance.square().sum())


def _square_bias(deviations: Array) -> tuple[float, float]:
    """‖E d‖² from pairs of different rows of d [trials, elements], and its jackknife error."""
    n = len(deviations)
    total = deviations.sum(0)
    own = (deviations**2).sum(1)
    pairs = float(total @ total - own.sum())
    if n < 3:
        return pairs / (n * (n - 1)), math.nan
    without = (pairs - 2 * (deviations @ total - own)) / ((n - 1) * (n - 2))
    return pairs / (n * (n - 1)), math.sqrt((n - 1) * float(without.var()))


def _slope(T: Array, error: Array, relative: Array, trials: int) -> Estimate:
    """Least-squares slope of log error on log T, see :func:`convergence`."""
    used = error > 0
    count = int(used.sum())
    if count < 3:
        return Estimate(math.nan, method="fewer than three positive errors")
    x, y = np.log(T[used]), np.log(error[used])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope = float(weights @ y)
    residual = y - y.mean() - slope * (x - x.mean())
    scatter = math.sqrt(residual @ residual / (count - 2) * (weights @ weights))
    sampling = math.sqrt(weights**2 @ relative[used] ** 2)
    half = _two_sided(trials - 1) * sampling
    if not _explained(residual @ residual, count - 2, relative[used] ** 2):
        half = max(half, _two_sided(count - 2) * scatter)
    method = "least squares of log error on log T"
    return Estimate(slope, slope - half, slope + half, count, "", CONFIDENCE, method)


def _floor(T: Array, error: Array, relative: Array, trials: int, confidence: float) -> Estimate:
    """F of error² = F² + A/T + B/T², non-negative least squares, see :func:`convergence`."""
    used = error > 0
    count = int(used.sum())
    if error[-1] == 0 and not relative.any():
        return Estimate(0.0, 0.0, 0.0, method="no error at the largest T")
    if count < 4:
        return Estimate(math.nan, method="fewer than four positive errors")
    square, steps = error[used] ** 2, T[used] / T[used][0]
    # In units of the smallest square, so that the unknown F² is of order one
    unit = float(square.min())
    laws = np.stack([1 / steps, steps**-2.0], 1) * unit / square[:, None]
    level = unit / square

    def misfit(floor: float) -> float:
        return float(nnls(laws, 1 - floor * level)[1] ** 2)

    (found, *_), best = nnls(np.column_stack([level, laws]), np.ones(count))
    variance = 4 * relative[used] ** 2
    allowed = max(float(variance.mean()) * _two_sided(trials - 1, confidence) ** 2, _ROUNDING)
    # The few degrees of freedom of the scatter would tell nothing at more than 95 %.
    if not _explained(best**2, count - 3, variance):
        lack = best**2 / (count - 3) * float(fisher.ppf(CONFIDENCE, 1, count - 3))
        allowed = max(allowed, lack)
    allowed += best**2

    def excess(floor: float) -> float:
        return misfit(floor) - allowed

    low = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, found))
    top = found + 1.0
    while excess(top) <= 0:
        top *= 2
    high = float(brentq(excess, found, top))
    value, low, high = (math.sqrt(max(v, 0.0) * unit) for v in (found, low, high))
    method = "error² = F² + A/T + B/T², likelihood ratio"
    return Estimate(value, low, high, count, "", confidence, method)


def _bias_floor(
    ratio: float, before: _Sample, last: _Sample, trials: int, confidence: float
) -> Estimate:
    """Floor of the bias from the two largest T, see :func:`convergence`; ratio = T'/T."""
    if trials < 3:
        return Estimate(math.nan, method="fewer than 3 trials")
    if not (before.relative > 0 and last.relative > 0):
        return Estimate(math.nan, method="no randomness, or too few trials that differ")
    found = (last.square_bias - ratio * before.square_bias) / (1 - ratio)
    error = math.hypot(last.square_bias_error, ratio * before.square_bias_error) / (1 - ratio)
    half = _two_sided(trials - 1, confidence) * error
    value, low, high = (math.sqrt(max(v, 0.0)) for v in (found, found - half, found + half))
    method = "contrast of the two largest T, jackknife"
    return Estimate(value, low, high, trials, "", confidence, method)


def _explained(scatter: float, degrees: int, variance: Array) -> bool:
    """Whether sampling alone can leave a sum of squared residuals as large as ``scatter``."""
    return scatter <= float(chi2.ppf(CONFIDENCE, degrees)) * float(variance.mean())


def _two_sided(degrees: int, confidence: float = CONFIDENCE) -> float:
    return float(student.ppf(0.5 + confidence / 2, degrees))
