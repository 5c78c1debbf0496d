"""Claims about lower bounds: what must be spent, against what explicit codes spend."""

from __future__ import annotations

import heapq
import itertools
import math
from functools import partial

import numpy as np
from scipy import stats

from spikedim import theory
from spikedim.claims.literature import DIGEST
from spikedim.claims.registry import Formula, Measurement, Setting, claim
from spikedim.claims.statistics import average, log_slope
from spikedim.results import Estimate

TOKENS, CHANNELS = 4, 8
#: By what factor the best of the explicit codes may exceed a bound that is worth its name.
_NEAR = 2.0


def information_spikes(components: int, epsilon: float, rate: float) -> float:
    """Spikes that carry the Shannon lower bound of ``components`` uniform values."""
    return theory.spikes_for_bits(theory.bits_shannon(components, epsilon), rate)


@claim(
    "BOUND-WORST",
    statement="Approximating an L_f-Lipschitz map of n tokens with d channels to error ε takes at "
    "least L_f²·n·d/ε² spikes.",
    source=DIGEST,
    expression="N ≥ L_f²·n·d/ε²",
    formula=theory.spikes_worst_case,
    corrected="N ≥ R·r/H_b(r) with R = (m/2)·log2(m·L_f²/(2πe·ε²)) bits, m = n·d, at rate r; "
    "binary and latency codes come within a factor of 2",
    correction=information_spikes,
)
def bound_worst(setting: Setting) -> list[Measurement]:
    """The identity (L_f = 1) of uniform values in three codes, from dense to sparse.

    Integrate-and-fire neurons; the binary digits of a value, each a spike or none; and one spike
    whose time is the value. The last two are near the optimum, so that a bound they undercut is
    wrong and one that they exceed by more than twice is not the limit: both refute it. ε is the
    root mean square of their errors.
    """
    correction = setting.correction
    m = TOKENS * CHANNELS
    epsilons = setting.pick((0.3, 0.1, 0.03), (0.3, 0.1, 0.03, 0.01))
    trials = setting.pick(200, 1000)
    x = setting.rng().uniform(size=(trials, m))
    errors, spikes = zip(*(_integrate_and_fire(setting, x, e) for e in epsilons), strict=True)
    stated = [
        n.mean() / setting.formula(TOKENS, CHANNELS, e)
        for n, e in zip(spikes, epsilons, strict=True)
    ]
    needed = [
        n.mean() / correction(m, e, n.mean() / (m * _steps(m, e)))
        for n, e in zip(spikes, epsilons, strict=True)
    ]
    worst = max(float(error.max()) / e for error, e in zip(errors, epsilons, strict=True))
    near = {"binary": _binary, "latency": _latency}
    return [
        Measurement("least spikes used / bound, identity map", Estimate(min(stated)), low=1),
        Measurement(
            "least spikes / corrected bound, integrate-and-fire",
            Estimate(min(needed)),
            low=1,
            form="corrected",
        ),
        *(
            row
            for name, code in near.items()
            for row in _near(
                f"{name} code", [_against(correction, m, *code(x, e)) for e in epsilons]
            )
        ),
        Measurement("largest error / ε of that code", Estimate(worst), high=1, form="corrected"),
        Measurement(
            "exponent of the spikes used in 1/ε (the bound has 2)",
            log_slope([1 / e for e in epsilons], [n.mean() for n in spikes]),
            form="context",
        ),
    ]


@claim(
    "BOUND-INPUT",
    statement="On inputs of effective dimension d_eff at least L_f²·d_eff/ε² spikes are needed.",
    source=DIGEST,
    expression="N ≥ L_f²·d_eff/ε² (also found: L_f²·n·d_eff/ε²)",
    formula=theory.spikes_input_dependent,
    corrected="N ≥ R·r/H_b(r) with R from water-filling on the covariance spectrum at D = "
    "(ε/L_f)², for Gaussian inputs; an entropy code comes within a factor of 2",
    correction=lambda values, epsilon, rate: theory.spikes_for_bits(
        theory.water_filling(values, epsilon**2).bits, rate
    ),
)
def bound_input(setting: Setting) -> list[Measurement]:
    """Gaussian inputs on a low-dimensional subspace, coded along their principal axes.

    By integrate-and-fire neurons, and by the bits of a Huffman code of the rounded components that
    lie above the water level, each a spike or none. The second is near the optimum: a bound that it
    undercuts or exceeds by more than twice is refuted. ε is the root mean square of the errors.
    """
    from spikedim.dimension import pca_count, spectrum

    correction = setting.correction
    rng, k, d = setting.rng(), 8, 64
    epsilons = setting.pick((0.1, 0.03), (0.1, 0.03, 0.01))
    scales = 2 ** (-3 - np.arange(k) / 2)
    normal = rng.standard_normal((setting.pick(500, 2000), k)) * scales
    latent = np.clip(0.5 + normal, 0, 1)
    axes, _ = np.linalg.qr(rng.standard_normal((d, k)))
    measured = spectrum(latent @ axes.T)
    d_eff = pca_count(measured)
    stated, needed, near = [], [], []
    for epsilon in epsilons:
        errors, spikes = _integrate_and_fire(setting, latent, epsilon)
        used = float(spikes.mean())
        rate = used / (k * _steps(k, epsilon))
        stated.append(used / setting.formula(d_eff, epsilon))
        needed.append(
            used / correction(measured.eigenvalues, float((errors**2).mean() ** 0.5), rate)
        )
        near.append(_against(correction, measured.eigenvalues, *_entropy(normal, scales, epsilon)))
    return [
        Measurement("d_eff (PCA-95 %)", Estimate(d_eff), form="context"),
        Measurement("least spikes used / bound", Estimate(min(stated)), low=1),
        Measurement(
            "least spikes / corrected bound, integrate-and-fire",
            Estimate(min(needed)),
            low=1,
            form="corrected",
        ),
        *_near("entropy code", near),
    ]


@claim(
    "BOUND-BITS",
    statement="The rate-distortion function of the representation is R(D) = n·d·log2(L_f/ε).",
    source=DIGEST,
    expression="R = n·d·log2(L_f/ε)",
    formula=theory.bits_published,
    corrected="R ≥ (m/2)·log2(m/(2πe·D)), D = (ε/L_f)², for m uniform components",
    correction=theory.bits_shannon,
)
def bound_bits(setting: Setting) -> list[Measurement]:
    """Against R(D) of m = 1 and 32 uniform values, in bits per value.

    That of one value by Blahut and Arimoto; of m independent ones exactly m·R(D/m). The formula may
    be off by a tenth of a bit per value, as the corrected bound is.
    """
    correction = setting.correction
    points = setting.pick(300, 1000)
    grid = (np.arange(points) + 0.5) / points
    squared = (grid[:, None] - grid[None, :]) ** 2
    widths = setting.pick((0.1, 0.03, 0.01), (0.1, 0.03, 0.01, 0.005))
    found = [
        theory.blahut_arimoto(np.full(points, 1 / points), squared, 0.5 / w**2, gap=1e-3)
        for w in widths
    ]
    rows = []
    for m in (1, 32):
        epsilons = [math.sqrt(m * point.distortion) for point in found]
        off, above = (
            [bits(e) / m - p.bits for p, e in zip(found, epsilons, strict=True)]
            for bits in (partial(setting.formula, 1, m), partial(correction, m))
        )
        rows += [
            Measurement(
                f"formula − R(D), furthest from 0, m = {m}",
                Estimate(max(off, key=abs), unit="bits"),
                -0.1,
                0.1,
            ),
            Measurement(
                f"corrected bound − R(D), most, m = {m}",
                Estimate(max(above), unit="bits"),
                high=1e-3,
                form="corrected",
            ),
            Measurement(
                f"R(D) − corrected bound at ε = {epsilons[-1]:.3g}, m = {m}",
                Estimate(-above[-1], unit="bits"),
                0,
                0.1,
                form="corrected",
            ),
        ]
    return rows


@claim(
    "BITS-PER-SPIKE",
    statement="A spike carries at most one bit, so R bits need at least R spikes.",
    source=DIGEST,
    expression="N ≥ R",
    formula=lambda rate: 1.0,
    corrected="at rate r per step a spike carries at most H_b(r)/r bits: N ≥ R·r/H_b(r)",
    correction=theory.bits_per_spike,
)
def bits_per_spike(setting: Setting) -> list[Measurement]:
    """Entropy of blocks of Bernoulli trains, Miller-Madow corrected, per spike."""
    correction = setting.correction
    rng, length = setting.rng(), 8
    blocks = setting.pick(1 << 17, 1 << 20)
    excess, ratio = [], []
    for rate in (0.5, 0.1, 0.02):
        words = (rng.random((blocks, length)) < rate) @ (1 << np.arange(length))
        counts = np.bincount(words)
        p = counts[counts > 0] / blocks
        entropy = -(p * np.log2(p)).sum() + (len(p) - 1) / (2 * blocks * math.log(2))
        carried = entropy / (length * rate)
        excess.append(carried / setting.formula(rate))
        ratio.append(carried / correction(rate))
    return [
        Measurement(
            "most bits per spike / allowed, r = 0.5, 0.1, 0.02", Estimate(max(excess)), high=1
        ),
        Measurement("measured / H_b(r)/r, least", Estimate(min(ratio)), 0.98, 1.02, "corrected"),
        Measurement("measured / H_b(r)/r, most", Estimate(max(ratio)), 0.98, 1.02, "corrected"),
    ]


@claim(
    "BOUND-CODE",
    statement="Rate coding m values to error ε takes T ≥ (L_f²/ε²)·Σx(1−x) = O(1/ε²) timesteps.",
    source=DIGEST,
    expression="T ≥ (L_f²/ε²)·Σx(1−x)",
    formula=theory.timesteps_bernoulli,
    corrected="that is the variance of the Bernoulli code; a deterministic code needs L_f·√m/ε",
    correction=theory.timesteps_deterministic,
)
def bound_code(setting: Setting) -> list[Measurement]:
    """Both codes at the number of steps their formula asks for, one vector of 16 values.

    The fewest steps of the deterministic code are found by trying; its formula, a bound for every
    vector, may ask for up to four times as many for this one.
    """
    import torch

    from spikedim.circuits.codes import BernoulliCode, IntegrateFireCode

    correction = setting.correction
    m, epsilon = 16, 0.1
    x = setting.rng().uniform(size=m)
    values = torch.from_numpy(x)
    bernoulli = max(1, math.ceil(setting.formula(x, epsilon)))
    trials = setting.pick(1000, 10_000)
    run = BernoulliCode().run(values, T=bernoulli, trials=trials, generator=setting.generator())
    square = average(((run.output - values) ** 2).sum(-1).numpy() / epsilon**2)

    def error(T: int) -> float:
        exact = IntegrateFireCode().run(values, T=T, trials=1, generator=setting.generator())
        return float((exact.output - values).norm())

    fewest = next(T for T in itertools.count(1) if error(T) <= epsilon)
    asked = correction(m, epsilon)
    return [
        Measurement("squared error / ε² of the Bernoulli code at that T", square, 0.9, 1.0001),
        Measurement(
            "fewest T of an integrate-and-fire code with error ≤ ε / formula",
            Estimate(fewest / bernoulli),
            low=1,
        ),
        Measurement(
            "fewest T of that code / corrected formula",
            Estimate(fewest / asked),
            low=1 / _NEAR**2,
            high=1,
            form="corrected",
        ),
        Measurement(
            "its error / ε at the T of the corrected formula",
            Estimate(error(math.ceil(asked)) / epsilon),
            high=1,
            form="corrected",
        ),
        Measurement(
            "squared error / ε² of the Bernoulli code",
            square,
            0.9,
            1.0001,
            form="corrected",
        ),
    ]


Coded = tuple[np.ndarray, np.ndarray, float]


def _binary(x: np.ndarray, epsilon: float) -> Coded:
    """Binary digits as spikes: Frobenius errors, spikes of every row, and spikes per digit."""
    digits = math.ceil(math.log2(math.sqrt(x.shape[1] / 12) / epsilon))
    level = np.floor(x * 2**digits).astype(int)
    spikes = sum((level >> k & 1).sum(axis=1) for k in range(digits))
    errors = np.linalg.norm((level + 0.5) / 2**digits - x, axis=1)
    return errors, np.asarray(spikes), float(np.mean(spikes)) / (x.shape[1] * digits)


def _latency(x: np.ndarray, epsilon: float) -> Coded:
    """One spike per value, its slot the value: errors, spikes of every row, spikes per slot."""
    slots = math.ceil(math.sqrt(x.shape[1] / 12) / epsilon)
    errors = np.linalg.norm((np.floor(x * slots) + 0.5) / slots - x, axis=1)
    return errors, np.full(len(x), x.shape[1]), 1 / slots


def _entropy(x: np.ndarray, scales: np.ndarray, epsilon: float) -> Coded:
    """Huffman code of rounded normal values with these deviations, as spikes per bit."""
    level = theory.water_filling(scales**2, epsilon**2).level
    step = math.sqrt(12 * level)
    decoded = np.zeros_like(x)
    bits, spikes = np.zeros(len(x)), np.zeros(len(x))
    for k in np.flatnonzero(scales**2 > level):
        reach = math.ceil(np.abs(x[:, k]).max() / step) + 1
        edges = (np.arange(-reach, reach + 2) - 0.5) * step
        lengths, ones = _huffman(np.diff(stats.norm.cdf(edges, scale=scales[k])))
        index = np.rint(x[:, k] / step).astype(int)
        decoded[:, k] = index * step
        bits += lengths[index + reach]
        spikes += ones[index + reach]
    return np.linalg.norm(decoded - x, axis=1), spikes, float(spikes.mean() / bits.mean())


def _huffman(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits of every codeword, and the ones among them; the rarer branch is the one."""
    lengths, ones = (np.zeros(len(probabilities), int) for _ in range(2))
    heap = [(float(p), k, [k]) for k, p in enumerate(probabilities)]
    heapq.heapify(heap)
    while len(heap) > 1:
        rare, first, few = heapq.heappop(heap)
        common, _, many = heapq.heappop(heap)
        lengths[few + many] += 1
        ones[few] += 1
        heapq.heappush(heap, (rare + common, first, few + many))
    return lengths, ones


def _against(
    bound: Formula, source: object, errors: np.ndarray, spikes: np.ndarray, rate: float
) -> Estimate:
    """Spikes over what the bound asks for the error that the code makes."""
    return average(spikes / bound(source, float((errors**2).mean() ** 0.5), rate))


def _near(name: str, ratios: list[Estimate]) -> list[Measurement]:
    """Least and most of the ratios, which a bound that is the limit has within [1, 2]."""
    ends = {"least": min, "most": max}
    return [
        Measurement(
            f"{end} spikes / corrected bound, {name}",
            choose(ratios, key=lambda ratio: ratio.value),
            1,
            _NEAR,
            "corrected",
            shown=True,
        )
        for end, choose in ends.items()
    ]


def _steps(components: int, epsilon: float) -> int:
    return math.ceil(theory.timesteps_deterministic(components, epsilon))


def _integrate_and_fire(
    setting: Setting, x: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Frobenius error and spikes of every row of ``x``, coded in just enough steps for ε."""
    import torch

    from spikedim.circuits.codes import IntegrateFireCode

    values = torch.from_numpy(x)
    run = IntegrateFireCode().run(
        values, T=_steps(x.shape[1], epsilon), trials=1, generator=setting.generator()
    )
    errors = (run.output[0] - values).norm(dim=1).numpy()
    return errors, np.array([float(run.spikes.mean()) / len(x)])
