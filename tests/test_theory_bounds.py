"""Bounds against independent references, and against the codes they bound."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize

from spikedim import theory
from spikedim.errors import ConfigError
from spikedim.theory import reduction


@pytest.mark.parametrize("seed", range(6))
def test_water_filling_agrees_with_a_numerical_optimiser(seed):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 2.0, rng.integers(2, 9))
    distortion = rng.uniform(0.05, 0.9) * values.sum()

    # Convex in the per-component distortions d: minimise the dual over the one multiplier,
    # R(D) = max over s of Σ min over d of ½·log2(λ/d) + s·(d − D).
    def dual(log_s):
        s = math.exp(log_s)
        d = np.minimum(values, 1 / (2 * math.log(2) * s))
        return -float((0.5 * np.log2(values / d) + s * d).sum() - s * distortion)

    found = optimize.minimize_scalar(dual, bounds=(-12, 12), options={"xatol": 1e-12})
    assert theory.water_filling(values, distortion).bits == pytest.approx(-found.fun, abs=1e-8)

    primal = optimize.minimize(
        lambda d: 0.5 * np.log2(values / d).sum(),
        np.full(len(values), 0.9) * np.minimum(values, distortion / len(values)),
        jac=lambda d: -0.5 / (math.log(2) * d),
        bounds=[(1e-9, v) for v in values],
        constraints={
            "type": "ineq",
            "fun": lambda d: distortion - d.sum(),
            "jac": lambda d: -np.ones(len(d)),
        },
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 2000},
    )
    assert theory.water_filling(values, distortion).bits == pytest.approx(primal.fun, abs=1e-8)


@given(
    values=st.lists(st.floats(1e-9, 1e6) | st.just(0.0) | st.just(1.0), min_size=1, max_size=40),
    exponent=st.floats(0, 20),
)
def test_the_water_level_leaves_the_distortion_asked_for_however_small(values, exponent):
    assume(sum(values) > 0)
    distortion = sum(values) * 10**-exponent
    found = theory.water_filling(values, distortion)
    assert math.isfinite(found.bits)
    assert np.minimum(found.level, values).sum() == pytest.approx(distortion, rel=1e-12)
    assert found.active == (np.array(values) > found.level).sum()


spectra = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(spectra, st.integers(2, 60), st.integers(0, 10_000))
def test_water_filling_never_exceeds_what_an_integrate_and_fire_code_spends(values, T, seed):
    """Gaussian inputs of that spectrum, scaled into [0, 1] and coded by spike counts 0..T."""
    scale = np.sqrt(values)
    z = np.random.default_rng(seed).standard_normal((400, len(values)))
    rate = np.clip(0.5 + z / 8, 0, 1)
    count = np.floor(rate * T)
    # At the reconstruction that suits the code best, the mean of what gave each count.
    decoded = np.empty_like(z)
    for j in range(len(values)):
        sums = np.bincount(count[:, j].astype(int), z[:, j], T + 1)
        decoded[:, j] = (
            sums / np.maximum(np.bincount(count[:, j].astype(int), minlength=T + 1), 1)
        )[count[:, j].astype(int)]
    measured = np.linalg.eigvalsh(np.cov((z * scale).T, bias=True).reshape(len(values), -1))
    distortion = float((((z - decoded) * scale) ** 2).sum(1).mean())
    bits = theory.water_filling(np.maximum(measured, 0), max(distortion, 1e-12)).bits
    # The code's own requirement: one of T + 1 counts per component, at its mean rate.
    assert bits <= len(values) * math.log2(T + 1) + 1e-9
    mean_rate = float(np.clip(count.mean() / T, 1e-6, 1 - 1e-6))
    if T >= 8:
        assert theory.spikes_for_bits(bits, mean_rate) <= count.sum(1).mean() + 1e-9


@given(m=st.integers(1, 400), epsilon=st.floats(1e-4, 10), lipschitz=st.floats(0.1, 10))
def test_shannon_bound_never_exceeds_the_code_requirements(m, epsilon, lipschitz):
    """Uniform values: mean rate ½, Σx(1−x) = m/6 on average; spikes are m·T·½."""
    needed = theory.spikes_for_bits(theory.bits_shannon(m, epsilon, lipschitz), 0.5)
    deterministic = theory.timesteps_deterministic(m, epsilon, lipschitz)
    bernoulli = (lipschitz / epsilon) ** 2 * m / 6
    assert needed <= m * deterministic / 2
    assert needed <= m * bernoulli / 2


def test_corrected_shannon_bound_meets_blahut_arimoto_at_high_resolution():
    points = 300
    grid = (np.arange(points) + 0.5) / points
    squared = (grid[:, None] - grid[None, :]) ** 2
    gaps = []
    for width in (0.1, 0.03, 0.01):
        found = theory.blahut_arimoto(
            np.full(points, 1 / points), squared, 0.5 / width**2, gap=1e-3
        )
        bound = theory.bits_shannon(1, math.sqrt(found.distortion))
        assert bound <= found.bits
        gaps.append(found.bits - bound)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01


def test_blahut_arimoto_agrees_with_the_closed_form_of_a_gaussian():
    x = np.linspace(-5, 5, 161)
    p = np.exp(-(x**2) / 2)
    found = theory.blahut_arimoto(p / p.sum(), (x[:, None] - x) ** 2, 0.5 / 0.1, gap=1e-3)
    assert found.lower <= found.bits <= found.lower + 1e-3
    assert found.bits == pytest.approx(0.5 * math.log2(1 / found.distortion), abs=1e-3)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_blahut_arimoto_agrees_with_the_closed_form_of_a_coin(p):
    found = theory.blahut_arimoto([p, 1 - p], 1 - np.eye(2), 2.0)
    expected = theory.binary_entropy(p) - theory.binary_entropy(found.distortion)
    assert found.bits == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.blahut_arimoto([0.5, 0.6], np.eye(2), 1.0),
        lambda: theory.blahut_arimoto([0.5, 0.5], np.eye(3), 1.0),
        lambda: theory.blahut_arimoto([0.5, 0.5], np.eye(2), 0.0),
        lambda: theory.blahut_arimoto([0.5, 0.5], -np.eye(2), 1.0),
        lambda: theory.blahut_arimoto([0.5, 0.5], np.full((2, 2), np.inf), 1.0),
    ],
)
def test_blahut_arimoto_refuses_nonsense(call):
    with pytest.raises(ConfigError):
        call()


def test_published_threshold_factor_as_digested():
    ratios = np.linspace(-3, 3, 6001)
    at_zero = np.array([reduction.threshold_published(0.0, ratio, 1.0) for ratio in ratios])
    assert at_zero[ratios >= 0].max() == pytest.approx(0.5, abs=1e-3)
    assert at_zero.max() == pytest.approx(0.6102, abs=1e-4)
    assert ratios[at_zero.argmax()] == pytest.approx(-0.506, abs=1e-3)
    values = [reduction.threshold_published(v, 0.0, 1.0) for v in np.linspace(0, 4, 50)]
    assert max(np.diff(values)) > 0 > min(np.diff(values))
    assert max(values) < 0.6103


@given(
    mean=st.floats(-2, 2), deviation=st.floats(0.1, 3), v=st.floats(0, 5), step=st.floats(0.01, 2)
)
def test_corrected_reduction_has_the_stated_limits(mean, deviation, v, step):
    assert reduction.reduction_corrected(0.0, mean, deviation) == pytest.approx(1.0)
    here = reduction.reduction_corrected(v, mean, deviation)
    beyond = reduction.reduction_corrected(v + step, mean, deviation)
    assert 0 <= beyond < here <= 1 + 1e-12 or here == 0


def test_refractory_and_reset_factors():
    assert reduction.refractory_published(2, 10) == pytest.approx(0.8)
    # T_ISI of a renewal neuron is t_ref + 1/q, where the two forms agree, however often it fires.
    for dead, q in ((2, 0.25), (2, 0.75), (10, 1.0)):
        interval = dead + 1 / q
        assert reduction.refractory_renewal(dead, q) == pytest.approx(
            reduction.refractory_published(dead, interval)
        )
    assert reduction.reset_published(0.0, 1.0) == 1
    assert reduction.reset_published(-1.0, 2.0) == pytest.approx(0.8)
    joint = reduction.reduction_published(1.0, 0.0, 1.0, v_reset=-0.5, refractory=1)
    assert reduction.reduction_published(100.0, 0.0, 1.0, refractory=1) == 0  # never fires
    rate = 0.15865525393145707
    others = reduction.refractory_published(1, 1 + 1 / rate) / 1.25
    assert joint == pytest.approx(reduction.threshold_published(1.0, 0.0, 1.0) * others)
    corrected = reduction.reduction_corrected(1.0, 0.0, 1.0, v_reset=-0.5, refractory=1)
    assert corrected == pytest.approx(reduction.threshold_corrected(1.0, 0.0, 1.0) * others)
    assert reduction.reduction_published(0.0, 0.0, 1.0, refractory=9) == pytest.approx(0.5 / 5.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: reduction.threshold_published(-1, 0, 1),
        lambda: reduction.threshold_corrected(1, 0, 0),
        lambda: reduction.reset_published(0, 0),
        lambda: reduction.refractory_published(3, 2),
        lambda: reduction.refractory_renewal(-1, 0.5),
        lambda: reduction.refractory_renewal(1, 1.5),
    ],
)
def test_reduction_refuses_values_outside_its_domain(call):
    with pytest.raises(ConfigError):
        call()
