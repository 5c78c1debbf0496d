import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from spikedim import theory
from spikedim.circuits import compile
from spikedim.claims.statistics import average
from spikedim.design.plan import Target
from spikedim.dimension import measure
from spikedim.errors import ConfigError
from spikedim.results import Estimate
from spikedim.theory.statistics import mean_estimate, share

positive = st.floats(0.01, 100)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (3, 10), (50, 100), (999, 1000), (20, 20)])
def test_wilson_matches_scipy(successes, n):
    reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert theory.wilson_interval(successes, n) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ConfigError):
        theory.wilson_interval(successes, n)


def test_mean_estimate_is_not_cut_at_zero():
    found = mean_estimate(np.array([-3.0, -1.0, -2.0]), "points")
    assert (found.value, found.n, found.unit) == (-2.0, 3, "points")
    assert (found.low, found.high) == pytest.approx(theory.mean_interval(-2.0, 1.0, 3))
    assert found.low < found.value < found.high < 1
    assert mean_estimate(np.array([2.0])).low is None
    assert average([2.0]).low == -math.inf
    assert str(average([-3.0, -1.0, -2.0], "points")) == str(found)


def test_share_is_a_percentage_with_the_interval_of_wilson():
    found = share(30, 40, 0.9)
    assert (found.value, found.n, found.confidence) == (75.0, 40, 0.9)
    assert (found.low / 100, found.high / 100) == theory.wilson_interval(30, 40, 0.9)


def test_mean_interval_matches_scipy():
    sample = np.random.default_rng(0).normal(size=17)
    expected = stats.t.interval(0.9, 16, sample.mean(), stats.sem(sample))
    got = theory.mean_interval(sample.mean(), sample.std(ddof=1), 17, 0.9)
    assert got == pytest.approx(expected)


def test_product_interval_covers_log_normal_product():
    rng = np.random.default_rng(1)
    z, sigmas, hits, runs = 1.959964, (0.1, 0.2), 0, 4000
    for _ in range(runs):
        draws = [math.exp(rng.normal(0, s)) for s in sigmas]
        low, high = theory.product_interval(
            *[
                (d, d * math.exp(-z * s), d * math.exp(z * s))
                for d, s in zip(draws, sigmas, strict=True)
            ]
        )
        hits += low <= 1 <= high
    # Binomial 4 standard errors around 95 %.
    assert abs(hits / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize(("d_eff", "expected"), [(47, 4.324), (68, 6.256), (89, 8.188)])
def test_rule_in_percent_gives_the_published_range(d_eff, expected):
    prediction = theory.timestep_rule(d_eff, 5)
    assert prediction.raw.value == pytest.approx(expected)
    assert prediction.timesteps.value == math.ceil(expected)


def test_rule_asks_for_one_estimate_of_a_report():
    report = measure(np.random.default_rng(0).standard_normal((40, 5)), ["pca95", "pr"])
    with pytest.raises(ConfigError, match=r"DimensionReport.*Estimate: .*report\['pca95'\]"):
        theory.timestep_rule(report, 5)
    with pytest.raises(ConfigError, match=r"d_eff is a list; expected a number or an Estimate$"):
        theory.timestep_rule([47], 5)
    assert theory.timestep_rule(report["pca95"], 5).d_eff == report["pca95"]


def test_rule_as_fraction_can_never_give_four():
    assert theory.timestep_rule(47, 1.0, "fraction").raw.value == pytest.approx(108.1)


@given(d=positive, epsilon=positive, factor=st.floats(1.1, 10))
def test_rule_scales_and_its_interval_contains_it(d, epsilon, factor):
    one = theory.timestep_rule(Estimate(d, d / 1.2, d * 1.1), epsilon)
    scaled = theory.timestep_rule(d, epsilon * factor)
    assert one.raw.low < one.raw.value < one.raw.high
    assert scaled.raw.value == pytest.approx(one.raw.value / factor**2)
    assert one.timesteps.low <= one.timesteps.value <= one.timesteps.high


def test_a_dimension_open_above_leaves_the_timesteps_open():
    prediction = theory.timestep_rule(Estimate(47, 45, None), 5)
    assert prediction.timesteps.high is None
    assert prediction.timesteps.low <= prediction.timesteps.value
    assert str(prediction.timesteps) == "5 [4 or more] timesteps"


@pytest.mark.parametrize(
    ("d_eff", "epsilon", "unit"),
    [(0, 5, "percent"), (10, 0, "percent"), (10, math.nan, "percent"), (10, 5, "points")],
)
def test_rule_refuses_nonsense(d_eff, epsilon, unit):
    with pytest.raises(ConfigError):
        theory.timestep_rule(d_eff, epsilon, unit)


spectra = st.lists(st.floats(0, 50), min_size=1, max_size=12).filter(lambda v: sum(v) > 1e-3)


@given(spectra, st.floats(0.001, 0.999))
def test_water_filling_meets_its_defining_equations(values, share):
    eigenvalues = np.asarray(values)
    solution = theory.water_filling(eigenvalues, share * eigenvalues.sum())
    assert np.minimum(solution.level, eigenvalues).sum() == pytest.approx(solution.distortion)
    above = eigenvalues[eigenvalues > solution.level]
    assert solution.bits == pytest.approx(0.5 * np.log2(above / solution.level).sum(), abs=1e-9)


def test_water_filling_agrees_with_a_numerical_optimiser():
    eigenvalues = np.array([5.0, 3.0, 1.0, 0.25, 0.01])
    distortion = 2.0

    def rate(d):
        return 0.5 * np.log2(eigenvalues / d).sum()

    solution = optimize.minimize(
        rate,
        np.minimum(eigenvalues, distortion / 5) * 0.9,
        bounds=[(1e-9, v) for v in eigenvalues],
        constraints={"type": "ineq", "fun": lambda d: distortion - d.sum()},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert theory.water_filling(eigenvalues, distortion).bits == pytest.approx(
        solution.fun, rel=1e-8
    )


def test_water_filling_needs_no_bits_beyond_the_total_variance():
    assert theory.water_filling([2.0, 1.0], 3.0).bits == 0


@pytest.mark.parametrize(("rate", "bits"), [(0.5, 2.0), (0.1, 4.69), (0.02, 7.07)])
def test_bits_per_spike_published_values(rate, bits):
    assert theory.bits_per_spike(rate) == pytest.approx(bits, abs=0.005)


def test_spikes_for_bits_at_the_extremes():
    assert theory.spikes_for_bits(10, 0.5) == pytest.approx(5)
    assert math.isinf(theory.spikes_for_bits(10, 1.0))
    assert theory.spikes_for_bits(0, 1.0) == 0


@given(m=st.integers(1, 500), epsilon=st.floats(1e-3, 1))
def test_shannon_bound_never_exceeds_the_uniform_quantiser(m, epsilon):
    # A uniform quantiser of step Δ has distortion mΔ²/12 and log2(1/Δ) bits per component.
    step = math.sqrt(12 / m) * epsilon
    quantiser = m * max(0.0, math.log2(math.ceil(1 / step))) if step < 1 else None
    if quantiser is not None:
        assert theory.bits_shannon(m, epsilon) <= quantiser + 1e-9


def test_code_requirements():
    rates = [0.5] * 4
    assert theory.timesteps_bernoulli(rates, 0.1) == pytest.approx(100)
    assert theory.timesteps_deterministic(4, 0.1) == pytest.approx(20)
    assert theory.timesteps_hoeffding(0.1, 0.05) == pytest.approx(math.log(40) / 0.02)
    assert theory.timesteps_bernoulli([0.0, 1.0], 0.1) == 0


def test_published_bounds():
    assert theory.spikes_worst_case(64, 10, 0.1, lipschitz=2) == pytest.approx(256_000)
    assert theory.spikes_input_dependent(50, 0.1) == pytest.approx(5_000)
    assert theory.spikes_input_dependent(50, 0.1, tokens=64) == pytest.approx(320_000)
    assert theory.bits_published(4, 2, 0.25) == pytest.approx(16)
    assert theory.spikes_worst_case(64, 10, 0.1, lipschitz=0) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.water_filling([], 1.0),
        lambda: theory.water_filling([-1.0], 1.0),
        lambda: theory.water_filling([1.0], 0.0),
        lambda: theory.bits_per_spike(0.0),
        lambda: theory.binary_entropy(1.5),
        lambda: theory.timesteps_bernoulli([1.5], 0.1),
        lambda: theory.timesteps_hoeffding(0.1, 1.0),
        lambda: theory.spikes_worst_case(0, 1, 0.1),
        lambda: theory.bits_shannon(1, -1.0),
        lambda: theory.spikes_for_bits(-1, 0.5),
        lambda: theory.product_interval((1.0, 2.0, 3.0)),
    ],
)
def test_bounds_refuse_values_outside_their_domain(call):
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parametrize("epsilon", [1e-200, 1e200])
def test_errors_whose_square_is_no_number_are_named(epsilon):
    for call in (
        lambda: theory.spikes_worst_case(4, 4, epsilon),
        lambda: theory.timestep_rule(47, epsilon),
        lambda: theory.timesteps_deterministic(16, epsilon),
        lambda: theory.bits_shannon(16, epsilon),
        lambda: theory.bits_published(4, 4, epsilon),
        lambda: Target(epsilon=epsilon),
    ):
        with pytest.raises(ConfigError, match=r"epsilon=1e.*from 1e-50 to 1e"):
            call()
    with pytest.raises(ConfigError, match="delta=1e"):
        theory.timesteps_hoeffding(epsilon)
    with pytest.raises(ConfigError, match="eps=1e"):
        compile(lambda x: x, 1, 1, epsilon, points=16)


def test_a_constant_of_the_source_letter_changes_no_rate():
    near = np.array([[0.0, 1], [1, 0]])
    plain = theory.blahut_arimoto([0.5, 0.5], near, 1000)
    moved = theory.blahut_arimoto([0.5, 0.5], near + np.array([[5], [7]]), 1000)
    assert (moved.bits, moved.lower) == pytest.approx((plain.bits, plain.lower))
    assert moved.bits == pytest.approx(1)
    assert moved.distortion == pytest.approx(plain.distortion + 6)
