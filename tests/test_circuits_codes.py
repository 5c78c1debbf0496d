import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spikedim.circuits import (
    BernoulliCode,
    IntegrateFireCode,
    LeakyCode,
    MatrixProduct,
    Product,
    TaylorExponential,
    VetoExponential,
    codes,
    compare_exponentials,
)
from spikedim.circuits.codes import bernoulli_spikes, poisson_spikes, uniform_draws
from spikedim.circuits.exponential import FORMS
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams, lif
from spikedim.theory import timesteps_hoeffding

UNIT = LIFParams(beta=0.0, threshold=1.0, reset="soft", decay_input=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=7):
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def within(measured, exact, variance, n, deviations=4.0):
    """Every measured mean of n values lies within some exact standard errors of its exact value."""
    error = (torch.as_tensor(variance) / n).sqrt()
    return bool(((measured - exact).abs() <= deviations * error + 1e-9 * exact.abs()).all())


Z = torch.tensor([-1.0, -0.3, 0.0, 0.6, 1.0], dtype=torch.float64)
X = uniform(5)
A, B = uniform(3, 4, seed=1), uniform(4, 3, seed=2)
CIRCUITS = {
    "bernoulli": (BernoulliCode(), (X,)),
    "integrate-and-fire": (IntegrateFireCode(), (X,)),
    "leaky": (LeakyCode(), (X,)),
    "leaky affine": (LeakyCode(affine=True), (X,)),
    "veto": (VetoExponential(1.0), (Z,)),
    "product": (Product(), (X, X.flip(0))),
    "product shared": (Product(shared=True), (X, X.flip(0))),
    "matrix": (MatrixProduct(), (A, B)),
    "matrix shared": (MatrixProduct(shared=True), (A, B)),
    **{
        f"Taylor {form} {'shared' if shared else ''}": (
            TaylorExponential(1.0, 4, form, shared),
            (Z,),
        )
        for form in FORMS
        for shared in (False, True)
    },
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_same_numbers_from_the_same_generator_whatever_the_chunk(name, monkeypatch):
    circuit, inputs = CIRCUITS[name]
    first = circuit.run(*inputs, T=50, trials=6, generator=seeded(3))
    again = circuit.run(*inputs, T=50, trials=6, generator=seeded(3))
    for size in (1, 700):
        monkeypatch.setattr(codes, "_CHUNK_ELEMENTS", size)
        small = circuit.run(*inputs, T=50, trials=6, generator=seeded(3))
        for other in (again, small):
            assert torch.equal(first.output, other.output)
            assert torch.equal(first.spikes, other.spikes)


@pytest.mark.parametrize("name", CIRCUITS)
def test_output_has_the_shape_of_the_target_in_float64(name):
    circuit, inputs = CIRCUITS[name]
    target = circuit.target(*inputs)
    ran = circuit.run(*(x.float() for x in inputs), T=3, trials=2, generator=seeded())
    assert ran.output.shape == (2, *target.shape)
    assert ran.spikes.shape == (2,)
    assert {ran.output.dtype, ran.spikes.dtype, target.dtype} == {torch.float64}
    assert "neurons" in str(ran)


@pytest.mark.parametrize(
    "circuit",
    [BernoulliCode(), IntegrateFireCode(), LeakyCode(), VetoExponential(), TaylorExponential()],
    ids=lambda c: c.name,
)
def test_scalars_and_whole_numbers_are_inputs_too(circuit):
    one = circuit.run(torch.tensor(1), T=4, trials=3, generator=seeded())
    assert one.output.shape == (3,)
    many = circuit.run(torch.ones(2, 1, 2), T=4, trials=3, generator=seeded())
    assert many.output.shape == (3, 2, 1, 2)
    assert many.neurons == 4 * one.neurons


# --- rate codes ---------------------------------------------------------------------------------


def test_bernoulli_counts_are_binomial():
    x, T, trials = torch.tensor([0.0, 0.03, 0.5, 0.9, 1.0], dtype=torch.float64), 20, 4000
    ran = BernoulliCode().run(x, T=T, trials=trials, generator=seeded())
    counts = (ran.output * T).round()
    assert torch.equal(ran.spikes, counts.sum(1))
    assert (ran.neurons, ran.depth) == (5, 1)
    assert torch.equal(counts[:, 0], torch.zeros(trials).double())
    assert torch.equal(counts[:, -1], torch.full((trials,), float(T)).double())
    for column, rate in list(zip(counts.T, x.tolist(), strict=True))[1:-1]:
        seen = torch.bincount(column.long(), minlength=T + 1).double()
        law = torch.from_numpy(stats.binom.pmf(range(T + 1), T, rate)) * trials
        likely = law > 5
        pooled = [torch.cat([v[likely], v[~likely].sum()[None]]).numpy() for v in (seen, law)]
        assert stats.chisquare(*pooled).pvalue > 1e-4


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_hoeffding_steps_keep_the_promised_failure_probability(rate):
    delta, failure = 0.05, 0.1
    T = math.ceil(timesteps_hoeffding(delta, failure))
    ran = BernoulliCode().run(torch.tensor(rate), T=T, trials=4000, generator=seeded())
    assert float(((ran.output - rate).abs() > delta).double().mean()) <= failure


@given(st.floats(0, 1), st.integers(1, 300))
def test_integrate_and_fire_is_within_one_spike(x, T):
    ran = IntegrateFireCode().run(
        torch.tensor(x, dtype=torch.float64), T=T, trials=2, generator=seeded()
    )
    assert abs(float(ran.output[0]) - x) <= 1 / T + 1e-12
    assert torch.equal(ran.output[0], ran.output[1])


@given(st.integers(0, 64), st.integers(1, 300))
def test_integrate_and_fire_counts_the_whole_part_of_the_charge(numerator, T):
    x = Fraction(numerator, 64)  # exact in binary, as every sum of it
    ran = IntegrateFireCode().run(torch.tensor(float(x)), T=T, generator=seeded())
    assert round(float(ran.output) * T) == math.floor(x * T) == int(ran.spikes)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_leaky_code_is_the_published_neuron_step_by_step(beta):
    T, drives = 200, torch.linspace(0, 1, 41, dtype=torch.float64)
    ran = LeakyCode(beta).run(drives, T=T, generator=seeded())
    for rate, drive in zip(ran.output[0].tolist(), drives.tolist(), strict=True):
        u = s = count = 0
        for _ in range(T):
            u = beta * u - s + drive
            s = int(u >= 1)
            count += s
        assert rate == count / T
        assert drive >= 1 - beta - 1e-12 or count == 0


def test_leaky_code_has_the_stated_errors_over_uniform_drive():
    x = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    raw = LeakyCode(0.5).run(x, T=2048, generator=seeded()).output[0]
    affine = LeakyCode(0.5, affine=True).run(x, T=2048, generator=seeded()).output[0]
    assert float((raw - x).square().mean().sqrt()) == pytest.approx(0.343, abs=0.002)
    assert float((affine - x).square().mean().sqrt()) == pytest.approx(0.106, abs=0.002)
    # no other affine decoder does better
    predictors = torch.stack([raw, torch.ones_like(raw)], 1)
    best = predictors @ torch.linalg.lstsq(predictors, x[:, None]).solution
    assert torch.allclose(best[:, 0], affine, atol=1e-3)


# --- exponentials -------------------------------------------------------------------------------


def test_veto_is_unbiased_with_the_stated_variance():
    M, T, trials = 4.0, 500, 1000
    x = torch.linspace(0, 8, 17, dtype=torch.float64)
    circuit = VetoExponential(M)
    ran = circuit.run(M - x, T=T, trials=trials, generator=seeded())
    step = circuit.moments(M - x)
    assert torch.allclose(step.mean, (M - x).exp(), rtol=1e-12)
    assert within(ran.output.mean(0), (M - x).exp(), step.variance / T, trials)
    ratio = ran.output.var(0)[1:] / (step.variance / T)[1:]
    assert 0.75 < float(ratio.min()) < float(ratio.max()) < 1.25
    assert float(ran.spikes.mean()) == pytest.approx(T * float(step.spikes.sum()), rel=0.01)
    assert (ran.neurons, ran.depth) == (34, 2)


def test_veto_is_a_threshold_unit_with_an_inhibitory_source():
    z, T, trials = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 200, 5
    (inhibition,) = poisson_spikes(1.0 - z, T, trials, seeded(4))
    unit, _ = lif(1.0 - inhibition, UNIT)
    ran = VetoExponential(1.0).run(z, T=T, trials=trials, generator=seeded(4))
    assert torch.equal(ran.output, unit.sum(0) / T * math.e)
    assert torch.equal(ran.spikes, (unit + inhibition).sum((0, 2)))


@given(
    st.floats(0.2, 6), st.integers(1, 30), st.floats(0, 1), st.sampled_from(FORMS), st.booleans()
)
def test_series_computes_the_polynomial_of_its_form(bound, order, r, form, shared):
    circuit = TaylorExponential(bound, order, form, shared)
    z = bound * (2 * r - 1)
    mean = float(circuit.moments(torch.tensor(z, dtype=torch.float64)).mean)
    base, scale = (2 * bound, math.exp(-bound)) if form == "positive" else (bound, 1.0)

    def polynomial(r):
        value = r if form == "positive" else 2 * r - 1
        return scale * sum((base * value) ** j / math.factorial(j) for j in range(order + 1))

    expected = polynomial(0) + r * (polynomial(1) - polynomial(0)) if shared else polynomial(r)
    assert mean == pytest.approx(expected, rel=1e-9, abs=1e-13 * circuit.mass())


@pytest.mark.parametrize("bound", [0.5, 2.0, 4.0])
def test_mass_of_the_forms(bound):
    order = 40
    mass = {form: TaylorExponential(bound, order, form).mass() for form in FORMS}
    assert mass["published"] == pytest.approx(math.exp(3 * bound), rel=1e-6)
    assert mass["positive"] == pytest.approx(math.exp(bound), rel=1e-6)
    # collecting the powers of r cancels the alternating signs: the positive form is what is left
    assert mass["collected"] == pytest.approx(math.exp(bound), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_moments_are_those_of_every_pattern_of_spikes(form):
    circuit = TaylorExponential(1.5, 3, form)
    z = torch.tensor([-0.9, 0.4], dtype=torch.float64)
    rate = (z + 1.5) / 3
    mean, square, spikes = 0.0, 0.0, 0.0
    cascades = circuit.cascades()
    sizes = [len(weights) - 1 for weights in cascades]
    for pattern in itertools.product((0, 1), repeat=sum(sizes)):
        chance = math.prod([rate if s else 1 - rate for s in pattern])
        value, start = 0.0, 0
        fired = sum(pattern)
        for weights, size in zip(cascades, sizes, strict=True):
            train = pattern[start : start + size]
            start += size
            powers = [all(train[:k]) for k in range(size + 1)]
            value += sum(w * p for w, p in zip(weights, powers, strict=True))
            fired += sum(powers[2:])
        mean = mean + chance * value
        square = square + chance * value**2
        spikes = spikes + chance * fired
    step = circuit.moments(z)
    assert torch.allclose(step.mean, mean)
    assert torch.allclose(step.variance, square - mean**2)
    assert torch.allclose(step.spikes, spikes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [False, True])
def test_series_has_its_moments_and_counts(form, shared):
    circuit, T, trials = TaylorExponential(1.0, 4, form, shared), 200, 2000
    step = circuit.moments(Z)
    ran = circuit.run(Z, T=T, trials=trials, generator=seeded(1))
    assert within(ran.output.mean(0), step.mean, step.variance / T, trials)
    ratio = (ran.output.var(0) / (step.variance / T))[1:-1]
    assert 0.8 < float(ratio.min()) < float(ratio.max()) < 1.25
    assert float(ran.spikes.mean()) == pytest.approx(T * float(step.spikes.sum()), rel=0.01)
    copies, units = (10, 6) if form == "published" else (4, 3)
    assert ran.neurons == len(Z) * ((1 if shared else copies) + units)
    assert ran.depth == 2


def test_one_train_with_itself_gives_its_rate_not_its_power():
    circuit = TaylorExponential(2.0, 30, "positive", shared=True)
    rate = (Z + 2) / 4
    chord = math.exp(-2) + rate * (math.exp(2) - math.exp(-2))
    assert torch.allclose(circuit.moments(Z).mean, chord, rtol=1e-9)


def test_coincidences_are_threshold_units():
    z, T, trials, order = torch.tensor([0.2, 0.9], dtype=torch.float64), 150, 4, 3
    circuit = TaylorExponential(1.0, order, "positive")
    (trains,) = bernoulli_spikes(((z + 1) / 2).expand(order, 2), T, trials, seeded(2))
    (weights,) = circuit.cascades()
    output, spikes = weights[0], trains.sum((0, 2, 3)).double()
    for k in range(1, order + 1):
        unit = LIFParams(beta=0.0, threshold=float(k), reset="soft", decay_input=False)
        fired, _ = lif(trains[:, :, :k].double().sum(2), unit)
        output = output + weights[k] * fired.mean(0)
        spikes += fired.sum((0, 2)) * (k > 1)
    ran = circuit.run(z, T=T, trials=trials, generator=seeded(2))
    assert torch.allclose(ran.output, output, rtol=1e-12)
    assert torch.equal(ran.spikes, spikes)


@pytest.fixture(scope="module")
def comparison():
    return compare_exponentials((0, 0.5, 2, 4, 6.5, 8), budget=600, trials=300, seed=2)


def test_comparison_is_at_equal_spikes(comparison):
    for p in comparison.points:
        silent = p.x == 8 and p.circuit != "veto"
        assert p.spikes == 0 if silent else 0.6 * 600 < p.spikes < 1.4 * 600


def test_comparison_is_reproducible():
    first, again, other = (
        compare_exponentials((0, 0.5), budget=60, trials=10, seed=seed).to_dict()
        for seed in (2, 2, 3)
    )
    assert first == again
    assert first["points"] != other["points"]


def test_comparison_finds_the_veto_unbiased_and_what_the_series_cost(comparison):
    at = {(p.circuit, p.x): p for p in comparison.points}
    for x in (0, 0.5, 2, 4, 6.5, 8):
        veto = at["veto", x]
        assert not abs(veto.deviations) > 4
        assert abs(veto.exact_bias) <= 1e-12 * veto.target
    for x in (0.5, 2, 4, 6.5):
        for form in FORMS:
            assert not abs(at[f"Taylor, {form}", x].deviations) > 4
        assert at["Taylor, published", x].cost > 1e4 * at["Taylor, collected", x].cost
        assert at["Taylor, one train", x].deviations > 10
    # near the bound the veto is the cheaper circuit, far below it the collected series is
    assert at["veto", 0.5].cost < at["Taylor, positive", 0.5].cost / 5
    assert at["veto", 6.5].cost > at["Taylor, positive", 6.5].cost * 5
    for p in comparison.points:
        assert p.bias.low is not None
        assert p.bias.low <= p.bias.value <= p.bias.high


def test_comparison_is_shown(comparison):
    assert "Taylor, one train" in str(comparison)
    assert len(comparison.to_dict()["points"]) == 30
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    assert len(comparison.plot().lines) == 5


# --- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_product_and_its_covariance(shared):
    x, y = uniform(6, seed=1), uniform(6, seed=2)
    circuit, T, trials = Product(shared), 100, 4000
    ran = circuit.run(x, y, T=T, trials=trials, generator=seeded())
    exact = torch.minimum(x, y) if shared else x * y
    assert torch.allclose(circuit.covariance(x, y), exact - x * y, atol=1e-15)
    assert within(ran.output.mean(0), exact, exact * (1 - exact) / T, trials)
    spread = ran.covariance.var(0)
    assert within(ran.covariance.mean(0), exact - x * y, spread, trials)
    assert (ran.neurons, ran.depth) == (18, 2)
    expected = T * float((x + y + exact).sum())
    assert float(ran.spikes.mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("shared", [False, True])
def test_matrix_product_sums_coincidences_of_single_spikes(shared):
    n, k, T, trials = 3, 4, 40, 3
    ran = MatrixProduct(shared).run(A, B, T=T, trials=trials, generator=seeded(5))
    (u,) = uniform_draws((n if shared else 2 * n, k), T, trials, seeded(5))
    left, right = (u[:, :, :n] < A).long(), (u[:, :, -n:] < B.T).long()
    product = torch.einsum("tbik,tbjk->bij", left, right)
    assert torch.equal(ran.output, product.double() / T)
    counts = [s.sum((0, 2, 3)) for s in (left, right)]
    assert torch.equal(ran.spikes, (sum(counts) + product.sum((1, 2))).double())
    rates = (s.double().mean(0) for s in (left, right))
    means = torch.einsum("bik,bjk->bij", *rates)
    assert torch.allclose(ran.covariance, (ran.output - means) * T / (T - 1))
    assert (ran.neurons, ran.depth) == (2 * n * k + n * n * k, 2)


@pytest.mark.parametrize("shared", [False, True])
def test_scores_of_tokens_with_themselves(shared):
    x = uniform(4, 5, seed=3)
    circuit, T, trials = MatrixProduct(shared), 100, 3000
    ran = circuit.run(x, x.T, T=T, trials=trials, generator=seeded())
    excess = torch.diag((x * (1 - x)).sum(1)) if shared else torch.zeros(4, 4)
    assert torch.allclose(circuit.covariance(x, x.T), excess.double())
    exact = circuit.target(x, x.T) + excess
    assert within(ran.output.mean(0), exact, ran.output.var(0), trials)
    assert within(ran.covariance.mean(0), excess, ran.covariance.var(0), trials)


def test_one_step_has_no_covariance():
    ran = Product().run(X, X, T=1, generator=seeded())
    assert bool(ran.covariance.isnan().all())


# --- faults -------------------------------------------------------------------------------------


def faulty():
    bad = torch.tensor([0.5, 1.5])
    fine = torch.tensor([0.5, 0.6])
    yield "above 1", BernoulliCode(), (bad,), "runs from 0.5 to 1.5"
    yield "below 0", IntegrateFireCode(), (-fine,), r"expected \[0, 1\]"
    yield "NaN", LeakyCode(), (torch.tensor([math.nan]),), "not finite"
    yield "empty", BernoulliCode(), (torch.zeros(0),), "empty"
    yield "list", BernoulliCode(), ([0.5],), "expected a real tensor"
    yield "too many", BernoulliCode(), (fine, fine), "takes 1: x"
    yield "too few", Product(), (fine,), "takes 2: x, y"
    yield "shapes", Product(), (fine, fine[:1]), "expected one shape"
    yield "inner", MatrixProduct(), (A, A), r"expected \[n, k\] and \[k, m\]"
    yield "vector", MatrixProduct(), (fine, fine), r"expected \[n, k\] and \[k, m\]"
    yield "pairs", MatrixProduct(shared=True), (A[:2], B), "2 rows of A with the 3 columns"
    yield "above M", VetoExponential(1.0), (bad,), "raise bound"
    yield "below -M", TaylorExponential(1.0), (-bad,), "raise bound"


@pytest.mark.parametrize("case", faulty(), ids=lambda case: case[0])
def test_inputs_outside_the_domain_are_named(case):
    _, circuit, inputs, message = case
    for call in (circuit.target, lambda *x: circuit.run(*x, T=4, generator=seeded())):
        with pytest.raises(ConfigError, match=message):
            call(*inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeakyCode(1.0), "IntegrateFireCode"),
        (lambda: LeakyCode(-0.1), "beta=-0.1"),
        (lambda: VetoExponential(0.0), "bound=0.0"),
        (lambda: TaylorExponential(math.inf), "bound=inf"),
        (lambda: TaylorExponential(order=0), "order=0"),
        (lambda: TaylorExponential(order=True), "order=True"),
        (lambda: TaylorExponential(form="signed"), "published, collected, positive"),
        (lambda: compare_exponentials(trials=1), "trials=1"),
        (lambda: compare_exponentials((9,)), "raise bound"),
    ],
)
def test_parameters_outside_the_domain_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("fault", [{"T": 0}, {"T": 2.0}, {"T": 4, "trials": 0}])
def test_steps_and_trials_are_whole(name, fault):
    circuit, inputs = CIRCUITS[name]
    with pytest.raises(ConfigError, match="whole number"):
        circuit.run(*inputs, **fault, generator=seeded())


def test_counts_too_large_for_64_bits_are_means():
    generator, mean = torch.Generator().manual_seed(0), torch.tensor([3.0, 1e20]).double()
    (counts,) = poisson_spikes(mean, 100, 2, generator)
    assert float(counts[..., 0].mean()) == pytest.approx(3, abs=0.5)
    assert torch.allclose(counts[..., 1], torch.tensor(1e20).double(), rtol=1e-7)
    spikes = VetoExponential().run(torch.tensor([-1e19]), T=3, generator=generator).spikes
    assert float(spikes) == pytest.approx(3e19)


@pytest.mark.parametrize(("x", "budget"), [((), 100), ((0.0,), -5)])
def test_comparison_of_nothing_is_refused(x, budget):
    with pytest.raises(ConfigError, match="expected at least 1 of both"):
        compare_exponentials(x, budget=budget, trials=10)
