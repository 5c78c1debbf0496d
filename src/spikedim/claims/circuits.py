"""Claims about neurons, codes and circuits, checked by simulating them in spikes."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor

from spikedim.circuits.attention import SpikingAttention
from spikedim.circuits.base import Circuit
from spikedim.circuits.codes import BernoulliCode, IntegrateFireCode, LeakyCode
from spikedim.circuits.compiler import compile as compile_function
from spikedim.circuits.compiler_report import published_budget
from spikedim.circuits.convergence import Convergence, convergence
from spikedim.circuits.exponential import TaylorExponential, VetoExponential
from spikedim.circuits.functions import EQUIVARIANT, FUNCTIONS, TokenFunction
from spikedim.circuits.product import Product
from spikedim.circuits.softmax import RaceSoftmax, ShuntingSoftmax, SubtractiveSoftmax
from spikedim.claims.literature import DIGEST
from spikedim.claims.registry import Form, Measurement, Setting, claim
from spikedim.claims.statistics import average, log_slope
from spikedim.errors import ModelError
from spikedim.neurons import LIFParams, lif_potential
from spikedim.results import Estimate

OURS = "spikedim, in place of the published circuit"
STANDARD_ERRORS = 4.0
#: Largest floor, in units of the error at the largest T, that "no floor" leaves room for.
_ROOM = 0.5
UNBIASED = 2 * float(stats.norm.sf(STANDARD_ERRORS))


def published_step(
    u: float, s: float, current: float, beta: float, threshold: float
) -> tuple[float, float]:
    """One step of the published neuron: ``u = β·u + I − v_th·s``, ``s = Θ(u − v_th)``."""
    u = beta * u + current - threshold * s
    return u, float(u >= threshold)


@claim(
    "LIF",
    statement="u_t = β·u_{t−1} + I_t − v_th·s_{t−1}, s_t = Θ(u_t − v_th), hence v_th·Σs = ΣI − "
    "(1−β)·Σu + boundary terms.",
    source=DIGEST,
    expression="u_t = β·u_{t−1} + I_t − v_th·s_{t−1}, s_t = Θ(u_t − v_th)",
    formula=published_step,
)
def lif(setting: Setting) -> list[Measurement]:
    """The formula stepped in plain floats against the library's neuron, on random currents.

    Thresholds 0.5, 1 and 2.3, β from 0 to 1, and both input gains, 1 as published and 1 − β; I is
    the current after the gain.
    """
    T, neurons = setting.pick(200, 1000), 4
    noise = torch.from_numpy(setting.rng().normal(0.3, 0.5, (T, neurons)))
    differing, residual, fewest = 0, 0.0, T * neurons
    gains = [(beta, False) for beta in (0.0, 0.5, 0.9, 1.0)] + [(0.5, True), (0.9, True)]
    for threshold, (beta, decays) in itertools.product((0.5, 1.0, 2.3), gains):
        neuron = LIFParams(
            beta=beta, threshold=threshold, reset="soft", delayed_reset=True, decay_input=decays
        )
        gain = 1 - beta if decays else 1.0
        raw = noise * threshold / gain
        spikes, potentials, _ = lif_potential(raw, neuron)
        currents = gain * raw
        for j in range(neurons):
            u = s = 0.0
            for t in range(T):
                u, s = setting.formula(u, s, float(currents[t, j]), beta, threshold)
                differing += s != float(spikes[t, j])
        balance = currents.sum(0) - (1 - beta) * potentials.sum(0)
        balance += threshold * spikes[-1] - beta * potentials[-1]
        residual = max(residual, float((threshold * spikes.sum(0) - balance).abs().max()))
        fewest = min(fewest, int(spikes.sum()))
    return [
        Measurement("spikes that differ from the formula", Estimate(differing), high=0),
        Measurement("largest residual of the spike balance", Estimate(residual), high=1e-9),
        Measurement("fewest spikes of a neuron's setting", Estimate(fewest), low=T // 10),
    ]


@claim(
    "RATE",
    statement="A Bernoulli code of T steps errs by more than δ with probability at most "
    "2·exp(−2Tδ²): error O(1/√T).",
    source=DIGEST,
    expression="P(|s̄−x| > δ) ≤ 2·exp(−2Tδ²)",
    formula=lambda T, delta: 2 * math.exp(-2 * T * delta**2),
)
def rate(setting: Setting) -> list[Measurement]:
    """Exact binomial tails against the bound, and the slope of the simulated error."""
    worst = 0.0
    for T in (10, 100, 1000):
        for x in (0.05, 0.3, 0.5):
            for delta in (0.5, 1.0, 2.0, 3.0):
                d = delta * math.sqrt(1 / (4 * T))
                law = stats.binom(T, x)
                reach = T * d * (1 + 1e-12)
                tail = law.sf(math.floor(T * x + reach)) + law.cdf(math.ceil(T * x - reach) - 1)
                worst = max(worst, float(tail) / setting.formula(T, d))
    found = _converge(setting, BernoulliCode(), _grid(16))
    return [
        Measurement("largest exact tail probability / bound", Estimate(worst), high=1),
        Measurement("slope of log error", found.slope, -0.53, -0.47, shown=True),
    ]


@claim(
    "RATE-LIF",
    statement="The firing rate of a LIF neuron under constant drive encodes the drive with an "
    "error that vanishes as 1/√T.",
    source=DIGEST,
    expression="|s̄−x| ≤ 1/(2·√T)",
    formula=lambda T: 0.5 / math.sqrt(T),
    corrected="only without leak (β = 1): |s̄−x| ≤ 1/T; with leak a floor remains at any T",
    correction=lambda T: 1 / T,
)
def rate_lif(setting: Setting) -> list[Measurement]:
    """Leaky (β = 0.5) and perfect integrators over a grid of drives."""
    x = torch.from_numpy(setting.rng().uniform(size=64))
    leaky = _converge(setting, LeakyCode(), x)
    T = leaky.points[-1].T
    exact = IntegrateFireCode().run(x, T=T, generator=setting.generator())
    largest = float((exact.output[0] - x).abs().max())
    slope = _converge(setting, IntegrateFireCode(), x).slope
    return [
        Measurement(
            f"RMS error with leak, T = {T}", leaky.points[-1].error, high=setting.formula(T)
        ),
        Measurement("error floor with leak", leaky.floor, form="context"),
        Measurement(
            f"largest error without leak / its bound, T = {T}",
            Estimate(largest / setting.correction(T)),
            low=0.5,
            high=1,
            form="corrected",
        ),
        Measurement("slope of log error without leak", slope, -1.05, -0.95, "corrected", True),
    ]


@claim(
    "EXP",
    statement="Coincidences of rate-coded trains compute e^z ≈ Σ_{j≤J} z^j/j! to error δ in "
    "O(1/δ²) steps.",
    source=DIGEST,
    expression="E[Π_{i≤j} s^(i)] = r^j with r = (z+M)/(2M); no copies are named, so the s^(i) are "
    "one train",
    formula=lambda bound: TaylorExponential(bound, order=8, shared=True),
    corrected="j independent copies of the train; the constant then grows exponentially in M, at "
    "most as e^{6M}",
    correction=lambda bound: TaylorExponential(bound, order=8),
)
def exponential(setting: Setting) -> list[Measurement]:
    """Bias of the mean output in standard errors at M = 1, and how the variance grows with M."""
    z = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    T, trials = 1000, setting.pick(200, 1000)
    rows = []
    for form, build in setting.both():
        bias = _bias(setting, build(1.0), z, T=T, trials=trials)
        name = "largest |mean − e^z| / s.e., M = 1"
        rows.append(_below(name, bias, STANDARD_ERRORS, form))
    zero = torch.zeros(1, dtype=torch.float64)
    for bound in (1.0, 2.0, 4.0):
        series = TaylorExponential(bound).moments(zero).variance
        direct = VetoExponential(bound).moments(zero).variance
        name = f"variance of the series / of the veto circuit, z = 0, M = {bound:g}"
        rows.append(Measurement(name, Estimate(float(series / direct)), form="context"))
    return rows


@claim(
    "EXP-VETO",
    statement="A unit that fires unless a Poisson source of mean x spikes has mean rate e^{−x}, "
    "unbiased at every T, with variance p(1−p)/T.",
    source=OURS,
    expression="p = e^{−x}",
    formula=lambda x: torch.exp(-x),
)
def veto(setting: Setting) -> list[Measurement]:
    """Distances x from 0 to 8."""
    x, bound, T = torch.linspace(0, 8, 17, dtype=torch.float64), 8.0, 500
    trials = setting.pick(400, 4000)
    run = VetoExponential(bound).run(bound - x, T=T, trials=trials, generator=setting.generator())
    rate = run.output / math.exp(bound)
    p = setting.formula(x)
    spread = (p * (1 - p) / T).sqrt()
    z = (rate.mean(0) - p).abs() / (spread / math.sqrt(trials)).clamp(min=1e-12)
    ratio = (rate.var(0)[1:] / spread[1:] ** 2).numpy()
    return [
        _below("largest |mean − e^{−x}| / s.e.", float(z.max()), STANDARD_ERRORS),
        Measurement("variance · T / (p(1−p))", average(ratio), 0.9, 1.1),
    ]


@claim(
    "PRODUCT",
    statement="Coincidence of two rate-coded trains computes the product of their rates.",
    source=DIGEST,
    expression="E[s^Q·s^K] = x·y; queries and keys of self-attention are read from one input",
    formula=lambda x, y: x * y,
    corrected="for independent trains; trains that share their input add their covariance",
    correction=lambda x, y: x * y,
)
def product(setting: Setting) -> list[Measurement]:
    """Trains read from one input, and independent copies."""
    x, y = torch.meshgrid(_grid(4), _grid(4), indexing="ij")
    T, trials = 1000, setting.pick(100, 1000)
    rows = []
    for form, formula in setting.both():
        shared = form == "stated"
        run = Product(shared=shared).run(x, y, T=T, trials=trials, generator=setting.generator())
        error = run.output.mean(0) - formula(x, y)
        z = float((error.abs() / (run.output.std(0) / math.sqrt(trials))).max())
        kind = "one input" if shared else "independent copies"
        name = f"largest |mean − xy| / s.e., {kind}"
        rows.append(_below(name, z, STANDARD_ERRORS, form))
        name = f"largest |mean − xy|, {kind}"
        rows.append(Measurement(name, Estimate(float(error.abs().max())), form="context"))
    return rows


@claim(
    "SOFTMAX-SUBTRACTIVE",
    statement="Lateral inhibition I_inh = (1/n)·Σ_j s_j(t−1) converges to softmax.",
    source=DIGEST,
    expression="r_i → e_i/Σ_j e_j as T → ∞",
    formula=SubtractiveSoftmax,
    corrected="inhibition that divides (shunting)",
    correction=ShuntingSoftmax,
)
def subtractive(setting: Setting) -> list[Measurement]:
    """Error of the shares (root mean square), Gaussian logits, n = 4 and 16."""
    rows = []
    for n in (4, 16):
        logits = _logits(setting, n, rows=2048 // n)
        for form, build in setting.both():
            circuit = build()
            found = _converge(setting, circuit, logits)
            last = found.points[-1]
            rows += no_floor(found, f"n = {n}, {circuit.name}", form)
            name = f"error at T = {last.T}, n = {n}, {circuit.name}"
            rows.append(Measurement(name, last.error, form="context"))
    return rows


def shunting_bound(shares: Tensor, T: int) -> Tensor:
    """Largest error of each unit of the shunting softmax, any drives.

    Encoder counts N_i(t) are within ½ of e_i·t, so N_i − α_i·ΣN is at most c_i = ½·(1 + (n−2)·α_i);
    the strongest encoder fires in every step, so ΣN ≥ t and |V_i(t) − α_i| ≤ c_i/t. Summed over T
    steps that is at most c_i·(1 + ln T); the output unit rounds to half a spike more.
    """
    c = (1 + (shares.shape[-1] - 2) * shares) / 2
    return (0.5 + c * (1 + math.log(T))) / T


@claim(
    "SOFTMAX-SHUNTING",
    statement="Divisive inhibition and integrate-and-fire outputs compute softmax with error "
    "O(1/T).",
    source=OURS,
    expression="error ≤ 1/T (root mean square over units)",
    formula=lambda shares, T: torch.full_like(shares, 1 / T),
    corrected="O(log T/T) at worst: |error of unit i| ≤ (½ + c_i·(1 + ln T))/T, c_i = "
    "½·(1 + (n−2)·α_i), which drives that are dyadic fractions come near",
    correction=shunting_bound,
)
def shunting(setting: Setting) -> list[Measurement]:
    """Rows of 2 to 32 logits (to 256 with --full), ties, shares from 1 to 1/10,000; dyadic drives.

    On drives of 1, 1/2 and 1/4 the errors of the encoders do not average out.

    The corrected form is a bound, derived from encoders that err by at most half a spike; a bound
    worth its name is met to a factor of 5 on the last of these. The slope informs only: it is −1
    where T exceeds one over the shares, and less before.
    """
    circuit = ShuntingSoftmax()
    dyadic = {"drives 1, ½": (1, 0.5), "drives 1, ½, ½": (1, 0.5, 0.5), "1, ½, ¼": (1, 0.5, 0.25)}
    cases = {name: torch.tensor([e], dtype=torch.float64).log() for name, e in dyadic.items()}
    rows, nearest = [], 0.0
    for name, logits in (_cases(setting) | cases).items():
        found = _converge(setting, circuit, logits)
        shares = circuit.target(logits)
        for form, formula in setting.both():
            worst = max(
                p.error.value / float(formula(shares, p.T).square().mean().sqrt())
                for p in found.points
            )
            bound = "(1/T)" if form == "stated" else "bound"
            rows.append(_below(f"largest error / {bound}, {name}", worst, 1.0, form))
        if name in dyadic:
            nearest = max(nearest, worst)
        rows.append(Measurement(f"slope of log error, {name}", found.slope, form="context"))
    name = "most of the bound that dyadic drives reach"
    return [*rows, Measurement(name, Estimate(nearest), 0.2, 1, "corrected")]


@claim(
    "SOFTMAX-RACE",
    statement="Drawing the winner with probability α_i gives softmax unbiased with E‖α̂−α‖² = "
    "(1−Σα²)/T: error O(1/√T).",
    source=OURS,
    expression="E‖α̂−α‖² = (1−Σα²)/T",
    formula=lambda shares, T: (1 - (shares**2).sum(-1)) / T,
)
def race(setting: Setting) -> list[Measurement]:
    """Mean squared error against the formula, bias, slope; n, ties and range as for shunting."""
    T, trials = 100, setting.pick(200, 500)
    rows = []
    circuit = RaceSoftmax()
    for name, case in _cases(setting).items():
        logits = case[:4]
        run = circuit.run(logits, T=T, trials=trials, generator=setting.generator())
        shares = circuit.target(logits)
        square = ((run.output - shares) ** 2).sum(-1) / setting.formula(shares, T)
        rows.append(Measurement(f"E‖α̂−α‖² / formula, {name}", average(square.mean(1)), 0.97, 1.03))
        draws, freedom = T * trials, shares.numel() - len(shares)
        square = draws * ((run.output.mean(0) - shares) ** 2 / shares).sum()
        chance = Estimate(float(stats.chi2.sf(float(square), freedom)))
        rows.append(Measurement(f"p-value of the bias (χ²), {name}", chance, low=UNBIASED))
    steps = (16, 64, 256, 1024)
    found = convergence(
        RaceSoftmax(), _logits(setting, 8), T_values=steps, trials=30, seed=setting.seed
    )
    return [*rows, Measurement("slope of log error, n = 8", found.slope, -0.55, -0.45, shown=True)]


@claim(
    "LYAPUNOV",
    statement="V(r) = Σ(r_i−α_i)² is a Lyapunov function of lateral inhibition.",
    source=DIGEST,
    expression="V' = 2·Σ(r−α)·r' ≤ 0 with r' = max(0, e − mean r) − r",
    formula=lambda r, e: SubtractiveSoftmax().flow(r, e),
    corrected="V' = −2(Σe)·V for the divisive dynamics r' = e − r·Σe",
    correction=lambda r, e: ShuntingSoftmax().flow(r, e),
)
def lyapunov(setting: Setting) -> list[Measurement]:
    """V'/V at random rates and drives."""
    generator, shape = setting.generator(), (setting.pick(2000, 20_000), 6)
    r, e = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    shares = e / e.sum(-1, keepdim=True)
    V = ((r - shares) ** 2).sum(-1)
    rows = []
    for form, flow in setting.both():
        change = 2 * ((r - shares) * flow(r, e)).sum(-1) / V
        largest = Estimate(float(change.max()))
        rows.append(Measurement("largest V'/V", largest, high=0, form=form))
        grows = Estimate(100 * float((change > 0).double().mean()), unit="%")
        rows.append(Measurement(f"states in which V grows, {form}", grows, form="context"))
    exact = float((change / (-2 * e.sum(-1)) - 1).abs().max())
    return [*rows, _below("largest |V'/(−2(Σe)V) − 1|", exact, 1e-9, "corrected")]


@claim(
    "ATTENTION",
    statement="A spiking attention head converges to softmax attention with error O(1/√T).",
    source=DIGEST,
    expression="error ∝ T^(−1/2)",
    formula=lambda: -0.5,
)
def attention(setting: Setting) -> list[Measurement]:
    """A head of 4 tokens and 4 channels of coincidences, vetoes and races.

    The published normalisation is SOFTMAX-SUBTRACTIVE.
    """
    rng = setting.rng()
    q, k, v = (torch.from_numpy(rng.standard_normal((4, 4))) for _ in range(3))
    steps = setting.pick((16, 64, 256, 1024), (64, 256, 1024, 4096, 16384))
    found = convergence(
        SpikingAttention(),
        q,
        k,
        v,
        T_values=steps,
        trials=100,
        seed=setting.seed,
        norm="frobenius",
    )
    last, slope = found.points[-1], setting.formula()
    return [
        Measurement(
            "slope of log relative error", found.slope, slope - 0.05, slope + 0.05, shown=True
        ),
        *no_floor(found, "attention"),
        Measurement(f"relative Frobenius error at T = {last.T}", last.error, form="context"),
    ]


@claim(
    "UNIVERSAL",
    statement="Spiking transformers with O(log 1/ε) layers, O(n²d/ε²) heads and O(n²d_k²/ε²) "
    "steps approximate every continuous permutation-equivariant map to ε.",
    source=DIGEST,
    expression="sup error < ε with at most n²·d/ε² heads and n²·d²/ε² steps (constants 1, "
    "d_k = d), and layers that grow no faster than log(1/ε)",
    formula=published_budget,
)
def universal(setting: Setting) -> list[Measurement]:
    """Compiled networks for four maps of few tokens, a zigzag, and a map that is not equivariant.

    A compiled network shows what suffices, so it bounds the fewest heads, steps and layers from
    above: one within the budget confirms it, one beyond leaves it undecided, since a better network
    may exist. This compiler spends (G+1)^d heads on G intervals per channel. The zigzag is only
    Lipschitz: G grows as 1/ε at worst and the heads as ε^−d, an order beyond the budget at d = 3.
    """
    epsilons = setting.pick((0.4, 0.2, 0.1), (0.4, 0.2, 0.1, 0.05))
    shapes = setting.pick(((2, 2),), ((2, 2), (3, 1)))
    four = [(name, n, d) for n, d in shapes for name in EQUIVARIANT]
    groups: dict[str, tuple[int, Sequence[tuple[str | TokenFunction, int, int]]]] = {
        "four maps, d ≤ 2": (setting.pick(512, 4096), four),
        "zigzag, n = 1, d = 3": (512, [(_zigzag, 1, 3)]),
    }
    worst, exact, rows = 0.0, True, []
    for group, (points, maps) in groups.items():
        used: dict[str, list[float]] = {"heads": [], "T": [], "growth of the layers": []}
        growth: dict[str, list[float]] = {"heads": [], "T": [], "neurons": []}
        for f, n, d in maps:
            reports = [
                compile_function(f, n, d, e, points=points, seed=setting.seed).report
                for e in epsilons
            ]
            budgets = [setting.formula(n, d, e) for e in epsilons]
            worst = max(worst, *(r.sup_error / r.eps for r in reports))
            exact = exact and all(r.equivariant for r in reports)
            for what in ("heads", "T"):
                used[what] += [
                    getattr(r, what) / getattr(budget, what)
                    for r, budget in zip(reports, budgets, strict=True)
                ]
            grown = (found[-1].layers / found[0].layers for found in (reports, budgets))
            used["growth of the layers"].append(operator.truediv(*grown))
            for what, slopes in growth.items():
                sizes = [getattr(r, what) for r in reports]
                slopes.append(log_slope([1 / e for e in epsilons], sizes).value)
        rows += [
            Measurement(
                f"least {what} / budget, {group}",
                Estimate(max(shares), 0.0, max(shares), method="upper bound, by construction"),
                high=1,
                shown=True,
            )
            for what, shares in used.items()
        ]
        rows += [
            Measurement(
                f"exponent of {what} in 1/ε, largest, {group}",
                Estimate(max(slopes)),
                form="context",
            )
            for what, slopes in growth.items()
        ]
    refused = set(FUNCTIONS) - set(EQUIVARIANT)
    for name in sorted(refused):
        try:
            compile_function(name, 2, 2, max(epsilons), points=64, seed=setting.seed)
        except ModelError:
            refused = refused - {name}
    return [
        _below("largest sup error / ε", worst, 1.0),
        Measurement("equivariance bit for bit", Estimate(float(exact)), low=1),
        Measurement("non-equivariant maps that compiled", Estimate(len(refused)), high=0),
        *rows,
    ]


def _zigzag(x: Tensor) -> Tensor:
    """Mean over the channels of a triangle wave of period 1/3: Lipschitz, with turns."""
    return ((3 * x - 0.4).abs() % 1 - 0.5).abs().mean(-1, keepdim=True).expand_as(x)


def _grid(n: int) -> Tensor:
    """N rates in the open interval (0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def _converge(setting: Setting, circuit: Circuit, *inputs: Tensor) -> Convergence:
    steps = [2**k for k in range(4, setting.pick(13, 15))]
    trials = setting.pick(50, 100)
    return convergence(circuit, *inputs, T_values=steps, trials=trials, seed=setting.seed)


def _logits(setting: Setting, n: int, rows: int = 16) -> Tensor:
    return torch.from_numpy(setting.rng().standard_normal((rows, n)))


def _cases(setting: Setting) -> dict[str, Tensor]:
    """Logits of several sizes, with ties, and with shares from 1 to 1/10,000."""
    sizes = setting.pick((2, 32), (2, 8, 32, 256))
    cases = {f"n = {n}": _logits(setting, n) for n in sizes}
    tied = _logits(setting, 8).repeat(1, 2)
    reach = torch.linspace(0, math.log(1e4), 8, dtype=torch.float64)
    wide = reach + 0.01 * _logits(setting, 8)
    return {**cases, "ties": tied, "range 1e4": wide}


def _bias(setting: Setting, circuit: Circuit, *inputs: Tensor, T: int, trials: int) -> float:
    run = circuit.run(*inputs, T=T, trials=trials, generator=setting.generator())
    return _standard_errors(run.output, circuit.target(*inputs), run.output.std(0))


def _standard_errors(output: Tensor, target: Tensor, spread: Tensor) -> float:
    """Largest deviation of the mean over trials, in standard errors."""
    error = (output.mean(0) - target).abs()
    return float((error / (spread / math.sqrt(len(output))).clamp(min=1e-12)).max())


def no_floor(found: Convergence, name: str, form: Form = "stated") -> list[Measurement]:
    """Floors of the error, and of the bias of random circuits: none told from 0.

    They must also be shown to be below a part of the error at the largest T, or T was too small to
    tell.
    """
    last = found.points[-1]
    rows = []
    for what, floor in (("error", found.floor), ("bias", found.bias_floor)):
        if what == "bias" and math.isnan(floor.value):
            continue  # no randomness: the error is the bias
        rows.append(Measurement(f"floor of the {what}, {name}", floor, 0, 0, form))
        label = f"floor of the {what} / error at T = {last.T}, {name}"
        rows.append(
            Measurement(label, _relative(floor, last.error.value), 0, _ROOM, form, shown=True)
        )
    return rows


def _relative(estimate: Estimate, unit: float) -> Estimate:
    """The estimate in that unit; a zero unit leaves it as it is."""
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (None if end is None else end / (unit or 1.0) for end in ends)
    return replace(estimate, value=math.nan if value is None else value, low=low, high=high)


def _below(name: str, value: float, high: float, form: Form = "stated") -> Measurement:
    return Measurement(name, Estimate(value), high=high, form=form)
