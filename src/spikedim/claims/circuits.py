"""Claims about neurons, codes and circuits, checked by simulating them in spikes."""

from __future__ import annotations

import math

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
from spikedim.circuits.functions import EQUIVARIANT, FUNCTIONS
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
UNBIASED = 2 * float(stats.norm.sf(STANDARD_ERRORS))


def published_step(u: float, s: float, current: float, beta: float) -> tuple[float, float]:
    """One step of the published neuron: ``u = β·u − s + I``, ``s = Θ(u − 1)``."""
    u = beta * u - s + current
    return u, float(u >= 1)


@claim(
    "LIF",
    statement="u_t = β·u_{t−1} + I_t − v_th·s_{t−1}, s_t = Θ(u_t − v_th), hence v_th·Σs = ΣI − "
    "(1−β)·Σu + boundary terms.",
    source=DIGEST,
    expression="u_t = β·u_{t−1} + I_t − s_{t−1}, s_t = Θ(u_t − 1)",
    formula=published_step,
)
def lif(setting: Setting) -> list[Measurement]:
    """The formula stepped in plain floats against the library's neuron, on random currents."""
    T, neurons = setting.pick(200, 1000), 8
    currents = torch.from_numpy(setting.rng().normal(0.3, 0.5, (T, neurons)))
    differing, residual = 0, 0.0
    for beta in (0.0, 0.5, 0.9, 1.0):
        neuron = LIFParams(beta=beta, reset="soft", delayed_reset=True, decay_input=False)
        spikes, potentials, _ = lif_potential(currents, neuron)
        for j in range(neurons):
            u = s = 0.0
            for t in range(T):
                u, s = setting.formula(u, s, float(currents[t, j]), beta)
                differing += s != float(spikes[t, j])
        balance = currents.sum(0) - (1 - beta) * potentials.sum(0)
        balance += spikes[-1] - beta * potentials[-1]
        residual = max(residual, float((spikes.sum(0) - balance).abs().max()))
    return [
        Measurement("spikes that differ from the formula", Estimate(differing), high=0),
        Measurement("largest residual of the spike balance", Estimate(residual), high=1e-9),
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
        Measurement("slope of log error", found.slope, -0.53, -0.47),
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
        Measurement("slope of log error without leak", slope, -1.05, -0.95, "corrected"),
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
    """Largest share error over rows of Gaussian logits, n = 4 and 16."""
    rows = []
    for n in (4, 16):
        logits = _logits(setting, n)
        for form, build in setting.both():
            circuit = build()
            found = _converge(setting, circuit, logits, norm="max")
            last = found.points[-1]
            name = f"error floor, n = {n}, {circuit.name}"
            rows.append(Measurement(name, found.floor, 0, 0, form))
            name = f"largest error at T = {last.T}, n = {n}, {circuit.name}"
            rows.append(Measurement(name, last.error, form="context"))
    return rows


@claim(
    "SOFTMAX-SHUNTING",
    statement="Divisive inhibition and integrate-and-fire outputs compute softmax with error "
    "O(1/T).",
    source=OURS,
    expression="error ≤ 1/T (root mean square over units), no floor",
    formula=lambda T: 1 / T,
)
def shunting(setting: Setting) -> list[Measurement]:
    """Rows of 2 to 32 logits (to 256 with --full), ties, and shares from 1 to 1/10,000.

    The slope informs only: it is −1 where T exceeds one over the shares, and less before.
    """
    rows = []
    for name, logits in _cases(setting).items():
        found = _converge(setting, ShuntingSoftmax(), logits)
        worst = max(p.error.value / setting.formula(p.T) for p in found.points)
        rows.append(_below(f"largest error / (1/T), {name}", worst, 1.0))
        rows.append(Measurement(f"floor, {name}", found.floor, 0, 0))
        rows.append(Measurement(f"slope of log error, {name}", found.slope, form="context"))
    return rows


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
    return [*rows, Measurement("slope of log error, n = 8", found.slope, -0.55, -0.45)]


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
    steps = setting.pick((16, 64, 256, 1024), (64, 256, 1024, 4096, 16384, 65536))
    found = convergence(
        SpikingAttention(),
        q,
        k,
        v,
        T_values=steps,
        trials=setting.pick(20, 10),
        seed=setting.seed,
        norm="frobenius",
    )
    last, slope = found.points[-1], setting.formula()
    return [
        Measurement("slope of log relative error", found.slope, slope - 0.05, slope + 0.05),
        Measurement("error floor", found.floor, 0, 0),
        Measurement(f"relative Frobenius error at T = {last.T}", last.error, form="context"),
    ]


@claim(
    "UNIVERSAL",
    statement="Spiking transformers with O(log 1/ε) layers, O(n²d/ε²) heads and O(n²d_k²/ε²) "
    "steps approximate every continuous permutation-equivariant map to ε.",
    source=DIGEST,
    expression="sup error < ε with at most n²·d/ε² heads and n²·d²/ε² steps (constants 1, d_k = d)",
    formula=published_budget,
)
def universal(setting: Setting) -> list[Measurement]:
    """Compiled networks for four maps of few tokens, and one map that is not equivariant."""
    epsilons = setting.pick((0.4, 0.2, 0.1), (0.4, 0.2, 0.1, 0.05))
    shapes = setting.pick(((2, 2),), ((2, 2), (3, 1)))
    worst, exact, layers = 0.0, True, 0
    used: dict[str, list[float]] = {"heads": [], "T": []}
    growth: dict[str, list[float]] = {"heads": [], "T": [], "neurons": []}
    for n, d in shapes:
        for name in EQUIVARIANT:
            reports = [
                compile_function(
                    name, n, d, e, points=setting.pick(512, 4096), seed=setting.seed
                ).report
                for e in epsilons
            ]
            worst = max(worst, *(r.sup_error / r.eps for r in reports))
            exact = exact and all(r.equivariant for r in reports)
            layers = max(layers, *(r.layers for r in reports))
            budgets = [setting.formula(n, d, e) for e in epsilons]
            for what, shares in used.items():
                shares += [
                    getattr(r, what) / getattr(budget, what)
                    for r, budget in zip(reports, budgets, strict=True)
                ]
            for what, slopes in growth.items():
                sizes = [getattr(r, what) for r in reports]
                slopes.append(log_slope([1 / e for e in epsilons], sizes).value)
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
        _below("largest heads / budget", max(used["heads"]), 1.0),
        _below("largest T / budget", max(used["T"]), 1.0),
        Measurement("most layers", Estimate(layers), form="context"),
        *(
            Measurement(
                f"exponent of {what} in 1/ε, largest", Estimate(max(slopes)), form="context"
            )
            for what, slopes in growth.items()
        ),
    ]


def _grid(n: int) -> Tensor:
    """N rates in the open interval (0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def _converge(
    setting: Setting, circuit: Circuit, *inputs: Tensor, norm: str = "rms"
) -> Convergence:
    steps = setting.pick((16, 64, 256, 1024), (16, 64, 256, 1024, 4096, 16384))
    trials = setting.pick(50, 100)
    return convergence(
        circuit, *inputs, T_values=steps, trials=trials, seed=setting.seed, norm=norm
    )


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


def _below(name: str, value: float, high: float, form: Form = "stated") -> Measurement:
    return Measurement(name, Estimate(value), high=high, form=form)
