import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from spikedim.circuits import (
    BernoulliCode,
    Circuit,
    IntegrateFireCode,
    LeakyCode,
    MatrixProduct,
    Product,
    RaceSoftmax,
    ShuntingSoftmax,
    Simulation,
    SpikingAttention,
    TaylorExponential,
    VetoExponential,
    convergence,
)
from spikedim.circuits.compiler_network import GridNetwork
from spikedim.errors import ConfigError, ModelError
from spikedim.results import number

UNIFORM = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FEW = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Law(Circuit):
    """Gaussian outputs 2 + bias + shift/T + jitter·N(0, 1) + spread·N(0, 1/T), no spikes."""

    name: ClassVar[str] = "law"
    claim: ClassVar[str] = "none"
    spread: float = 1.0
    shift: float = 0.0
    bias: float = 0.0
    jitter: float = 0.0

    @property
    def random(self):
        return self.spread > 0 or self.jitter > 0

    def target(self, *inputs):
        return torch.full((4,), 2.0, dtype=torch.float64)

    def run(self, *inputs, T, trials=1, generator):
        noise, offset = torch.randn((2, trials, 4), dtype=torch.float64, generator=generator)
        error = self.spread * noise / math.sqrt(T) + self.shift / T + self.bias
        return Simulation(2 + error + self.jitter * offset, torch.ones(trials).double(), 1, 1, T)


def inside(estimate, value):
    return estimate.low <= value <= estimate.high


def test_bernoulli_slope():
    found = convergence(BernoulliCode(), torch.linspace(0.1, 0.9, 5))
    assert -0.53 <= found.slope.low <= found.slope.value <= found.slope.high <= -0.47
    assert inside(found.slope, -0.5)
    assert found.converges
    for point in found.points:
        exact = math.sqrt(float((torch.linspace(0.1, 0.9, 5) * torch.linspace(0.9, 0.1, 5)).mean()))
        assert point.error.low * 0.95 < exact / math.sqrt(point.T) < point.error.high * 1.05
        assert point.bias < 3 * point.bias_error
    assert (found.neurons, found.depth, found.claim) == (5, 1, "RATE")


@pytest.mark.parametrize("norm", ["rms", "max"])
def test_integrate_and_fire_slope(norm):
    found = convergence(IntegrateFireCode(), UNIFORM, trials=2, norm=norm)
    assert -1.05 <= found.slope.low <= found.slope.high <= -0.95
    assert found.converges
    for point in found.points:
        assert point.error.low is None  # nothing is random
        assert point.error.value <= 1 / point.T
        assert point.bias == pytest.approx(point.error.value)


@pytest.mark.parametrize(("affine", "floor"), [(False, 0.343), (True, 0.106)])
def test_leaky_code_keeps_its_floor(affine, floor):
    x = (torch.arange(1000) + 0.5) / 1000
    found = convergence(LeakyCode(0.5, affine), x, trials=2, T_values=(64, 256, 1024, 4096))
    assert found.floor.value == pytest.approx(floor, abs=0.002)
    assert found.floor.low > 0.9 * floor
    assert not found.converges


def test_veto_slope():
    found = convergence(
        VetoExponential(1.0), torch.linspace(-1, 1, 4), trials=100, norm="frobenius"
    )
    assert inside(found.slope, -0.5)
    assert -0.55 < found.slope.value < -0.45
    assert found.converges


@pytest.mark.parametrize("shared", [False, True])
def test_only_independent_copies_converge(shared):
    x, T_values = UNIFORM[:12].reshape(4, 3), (16, 64, 256, 1024, 4096)
    for circuit, inputs in (
        (Product(shared), (x, x)),
        (MatrixProduct(shared), (x, x.T)),
        (TaylorExponential(1.0, 24, "positive", shared), (x,)),
    ):
        found = convergence(circuit, *inputs, trials=60, T_values=T_values)
        assert found.converges is not shared
        assert (found.limit_error > 0) is shared
        assert (found.floor.low == found.bias_floor.low == 0) is not shared
        if shared:
            assert found.floor.low > 0
            assert found.bias_floor.low > 0
            assert found.points[-1].bias == pytest.approx(found.floor.value, rel=0.05)


def test_bias_hidden_in_the_noise_of_one_trial_is_found():
    circuit, z = TaylorExponential(1.0, 6, "positive"), torch.tensor([0.9])
    bias = abs(float(circuit.moments(z).mean - circuit.target(z)))
    found = convergence(circuit, z, trials=800, T_values=FEW)
    assert found.points[-1].error.value > 2 * bias
    assert found.floor.low == 0
    assert found.bias_floor.low > 0.5 * bias
    assert inside(found.bias_floor, bias)
    assert not found.converges


LAWS = {
    "variance": Law(),
    "variance and 1/T bias": Law(shift=8.0),
    "floor of the bias": Law(bias=0.02),
    "floor of the spread": Law(jitter=0.05),
}


@pytest.mark.parametrize("name", LAWS)
def test_intervals_cover_and_verdicts_hold(name):
    law, repeats = LAWS[name], 100
    truth = math.hypot(law.bias, law.jitter)
    found = [convergence(law, torch.zeros(1), seed=s, trials=100) for s in range(repeats)]
    assert sum(inside(f.floor, truth) for f in found) >= 0.9 * repeats
    assert sum(inside(f.bias_floor, law.bias) for f in found) >= 0.9 * repeats
    if name == "variance":
        assert sum(inside(f.slope, -0.5) for f in found) >= 0.9 * repeats
    right = sum(f.converges is (truth == 0) for f in found)
    assert right >= 0.93 * repeats
    if truth == 0:  # seldom undecided, never against
        assert all(f.converges is not False for f in found)
        assert all(f"no floor above {number(f.floor.high)}" in f.verdict
                   for f in found if f.converges)  # fmt: skip


def test_deterministic_laws():
    exact = convergence(Law(spread=0.0, shift=1.0), torch.zeros(1), trials=3)
    assert exact.slope.value == pytest.approx(-1)
    assert exact.floor.high < 1e-6
    assert exact.converges
    stuck = convergence(Law(spread=0.0, bias=0.1), torch.zeros(1), trials=3)
    assert stuck.floor.value == pytest.approx(0.1)
    assert stuck.slope.value == pytest.approx(0, abs=1e-9)
    assert not stuck.converges
    perfect = convergence(Law(spread=0.0), torch.zeros(1), trials=3)
    assert math.isnan(perfect.slope.value)
    assert (perfect.floor.value, perfect.floor.high) == (0, 0)
    assert perfect.converges is None
    assert "exact on these inputs, which says nothing" in str(perfect)
    assert math.isnan(perfect.bias_floor.value)


RARE = {
    "race": (RaceSoftmax(), [0.0, 8.0], 20),
    "veto": (VetoExponential(), [-6.0], 100),
    "veto, silent": (VetoExponential(), [-20.0], 100),
}


@pytest.mark.parametrize("name", RARE)
def test_events_too_rare_to_be_seen_are_no_verdict(name):
    circuit, values, trials = RARE[name]
    found = convergence(circuit, torch.tensor(values), T_values=FEW, trials=trials)
    assert found.converges is None
    assert "too few trials differ at T = 16, 64, 256" in str(found)
    first = found.points[0]
    assert math.isnan(first.error.value)
    assert math.isnan(first.bias_error)
    assert math.isnan(found.bias_floor.value) or found.bias_floor.low == 0


def test_intervals_cover_where_events_are_few():
    alpha = torch.tensor([0.0, 3.0], dtype=torch.float64).softmax(0)
    exact = float((1 - alpha.square().sum()) / 2)
    points = [
        point
        for seed in range(30)
        for point in convergence(
            RaceSoftmax(), alpha.log(), T_values=(4, 8, 16, 32), trials=40, seed=seed
        ).points
        if not math.isnan(point.error.value)
    ]
    covered = sum(inside(p.error, math.sqrt(exact / p.T)) for p in points)
    assert len(points) > 30
    assert covered > 0.85 * len(points)


def test_a_unit_below_one_spike_is_no_floor():
    found = convergence(ShuntingSoftmax(), torch.tensor([0.0, 10.0]), T_values=FEW, trials=2)
    assert found.limit_error == 0
    assert found.converges is None
    assert "not seen to fall" in found.verdict


def test_limits_are_what_long_runs_give():
    x, generator = UNIFORM[:4].reshape(2, 2), torch.Generator()
    compiled = GridNetwork(lambda values: values**2, 1, 1, 2)
    for circuit, inputs in (
        (IntegrateFireCode(), (x,)),
        (ShuntingSoftmax(), (x,)),
        (BernoulliCode(), (x,)),
        (RaceSoftmax(), (x,)),
        (SpikingAttention(), (x, x, x)),
        (SpikingAttention("shunting"), (x, x, x)),
        (VetoExponential(1.0), (x,)),
        (TaylorExponential(1.0, 2), (x,)),
        (Product(True), (x, x)),
        (MatrixProduct(True), (x, x.T)),
        (compiled, (UNIFORM[:1].reshape(1, 1, 1),)),
    ):
        long = circuit.run(*inputs, T=20_000, trials=4, generator=generator).output.mean(0)
        assert torch.allclose(circuit.limit(*inputs), long, atol=0.02), circuit.name
    assert LeakyCode().limit(x) is None


def test_truncation_bias_under_the_noise_is_known():
    found = convergence(
        TaylorExponential(order=12, form="positive"),
        torch.linspace(1, 2, 9),
        T_values=FEW,
        trials=20,
    )
    assert found.floor.low == found.bias_floor.low == 0
    assert found.converges is False
    assert "at infinite T an error of 0.0" in str(found)


def test_two_trials_are_too_few_for_a_verdict():
    found = convergence(RaceSoftmax(), torch.tensor([0.0, 1.0, 2.0]), trials=2, T_values=FEW)
    assert found.converges is None
    assert found.bias_floor.method == "fewer than 3 trials"


def test_norms_measure_what_they_say():
    law = Law(spread=0.0, shift=1.0)
    error = {
        norm: convergence(law, torch.zeros(1), trials=2, norm=norm).points[0].error.value * 16
        for norm in ("rms", "max", "frobenius")
    }
    assert error == pytest.approx({"rms": 1.0, "max": 1.0, "frobenius": 0.5})


def test_same_seed_same_numbers_and_each_T_on_its_own():
    x = torch.tensor([0.3, 0.4])

    def numbers(**options):
        found = convergence(BernoulliCode(), x, trials=20, **options)
        return {p.T: (p.error, p.bias, p.spikes) for p in found.points}

    full = numbers(T_values=FEW)
    assert full == numbers(T_values=FEW)
    assert full != numbers(T_values=FEW, seed=1)
    assert full.items() <= numbers(T_values=(8, *FEW)).items()


def test_record_is_shown_and_exported():
    found = convergence(LeakyCode(), UNIFORM, T_values=FEW, trials=2)
    assert "does not converge" in str(found)
    assert len(found.to_dict()["points"]) == 4
    assert "leaky code" in found._repr_html_()
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = found.plot()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert any("floor" in t.get_text() for t in axes.get_legend().get_texts())
    perfect = convergence(Law(spread=0.0), torch.zeros(1), trials=3, T_values=FEW)
    axes = perfect.plot()
    assert axes.get_title(loc="left") == "law"
    axes.get_figure().canvas.draw()  # no error to draw on a log scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"T_values": (16, 64, 256)}, "at least four, ascending"),
        ({"T_values": (16, 64, 64, 256)}, "at least four, ascending"),
        ({"T_values": (0, 16, 64, 256)}, "at least four, ascending"),
        ({"T_values": (1, 2, 3, 4.5)}, "whole numbers"),
        ({"trials": 1}, "trials=1"),
        ({"trials": 2.5}, "trials=2.5"),
        ({"norm": "l1"}, "rms, max, frobenius"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_outside_the_domain_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        convergence(BernoulliCode(), torch.tensor([0.5]), **options)


def test_relative_error_of_zero_is_refused():
    with pytest.raises(ConfigError, match="or norm 'rms'"):
        convergence(BernoulliCode(), torch.zeros(3), norm="frobenius")


def test_value_that_is_not_finite_is_named():
    with pytest.raises(ModelError, match="not finite at T=16"):
        convergence(Law(bias=math.nan), torch.zeros(1), trials=2)
