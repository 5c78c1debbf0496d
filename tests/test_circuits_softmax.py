from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from spikedim.circuits import codes, convergence
from spikedim.circuits.base import Circuit
from spikedim.circuits.softmax import (
    RaceSoftmax,
    ShuntingSoftmax,
    SubtractiveSoftmax,
    Veto,
    draw,
    race,
)
from spikedim.errors import ConfigError
from spikedim.neurons import LIFParams, lif

CIRCUITS = (SubtractiveSoftmax(), ShuntingSoftmax(), RaceSoftmax())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def rms(circuit: Circuit, logits: Tensor, T: int, trials: int = 1) -> float:
    ran = circuit.run(logits, T=T, trials=trials, generator=seeded(1))
    return float((ran.output - circuit.target(logits)).square().sum(-1).mean().sqrt())


@pytest.mark.parametrize("circuit", CIRCUITS, ids=lambda c: c.name)
def test_shapes_counts_and_repeatability(circuit):
    logits = gaussian(2, 3, 5)
    ran, again = (circuit.run(logits, T=32, trials=4, generator=seeded()) for _ in range(2))
    assert ran.output.shape == (4, 2, 3, 5)
    assert ran.output.dtype == ran.spikes.dtype == torch.float64
    assert ran.spikes.shape == (4,)
    assert torch.equal(ran.output, again.output)
    assert torch.equal(ran.spikes, again.spikes)
    assert torch.equal(ran.spikes, ran.spikes.round())
    per_row = {"subtractive softmax": 6, "shunting softmax": 15, "race softmax": 17}
    assert ran.neurons == 6 * per_row[circuit.name]
    assert (ran.output >= 0).all()
    assert torch.allclose(circuit.target(logits), logits.softmax(-1))


@pytest.mark.parametrize("circuit", CIRCUITS, ids=lambda c: c.name)
@pytest.mark.parametrize(
    "inputs",
    [
        (torch.tensor(1.0),),
        (torch.tensor([0.0, math.nan]),),
        (torch.zeros(3, 0),),
        (torch.zeros(2), torch.zeros(2)),
        ([0.0, 1.0],),
    ],
)
def test_unusable_logits_are_refused(circuit, inputs):
    with pytest.raises(ConfigError):
        circuit.run(*inputs, T=4, generator=seeded())


@pytest.mark.parametrize("field", [{"scale": 0.0}, {"scale": math.inf}, {"beta": 0}, {"beta": 1.5}])
def test_unusable_parameters_are_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        SubtractiveSoftmax(**field)


@pytest.mark.parametrize("circuit", CIRCUITS, ids=lambda c: c.name)
def test_steps_and_trials_are_checked(circuit):
    for wrong in ({"T": 0}, {"T": 4, "trials": 0}):
        with pytest.raises(ConfigError):
            circuit.run(torch.zeros(2), **wrong, generator=seeded())


# Subtractive


def test_subtractive_is_the_published_network_step_by_step():
    """A plain loop over neurons: same spikes."""
    logits = gaussian(5)
    circuit, T = SubtractiveSoftmax(scale=0.9, beta=0.95), 60
    e = [0.9 * math.exp(float(z - logits.max())) for z in logits]
    u, s, count = [0.0] * 5, [0] * 5, [0] * 5
    for _ in range(T):
        inhibition = sum(s) / 5
        u = [0.95 * u[i] - s[i] + e[i] - inhibition for i in range(5)]
        s = [int(v >= 1) for v in u]
        count = [c + v for c, v in zip(count, s, strict=True)]
    expected = torch.tensor(count, dtype=torch.float64) / sum(count)
    ran = circuit.run(logits, T=T, generator=seeded())
    assert torch.equal(ran.output[0], expected)
    assert float(ran.spikes) == 2 * sum(count)


def test_subtractive_keeps_an_error_that_T_does_not_lower():
    """Theory: the maximal error stays near 0.13–0.19 for n = 4..16 Gaussian logits, any T."""
    for n in (4, 8, 16):
        logits = gaussian(200, n, seed=n)
        circuit = SubtractiveSoftmax()
        ran = circuit.run(logits, T=1000, generator=seeded())
        error = (ran.output[0] - circuit.target(logits)).abs().amax(-1).mean()
        assert 0.11 < float(error) < 0.2


def test_subtractive_is_reported_as_not_converging_with_its_floor():
    logits = gaussian(50, 8)
    found = convergence(
        SubtractiveSoftmax(), logits, T_values=(16, 64, 256, 1024, 4096), trials=2, norm="rms"
    )
    assert not found.converges
    assert found.floor.low > 0.05
    assert abs(found.slope.value) < 0.05
    assert found.points[-1].error.value == pytest.approx(found.points[2].error.value, rel=0.02)


def test_subtractive_rests_where_the_gain_is_missing():
    """r = max(0, e − mean r): differences of rates are those of the drives, at any sum."""
    logits = gaussian(8)
    e = (logits - logits.max()).exp()
    flow, r = SubtractiveSoftmax().flow, torch.zeros_like(e)
    for _ in range(2000):
        r = r + 0.1 * flow(r, e)
    measured = SubtractiveSoftmax().run(logits, T=8000, generator=seeded()).output[0]
    assert torch.allclose(measured, r / r.sum(), atol=2e-3)


@pytest.mark.parametrize(("beta", "scales"), [(1.0, (1.0, 2.0)), (0.8, (0.5, 1.0))])
def test_subtractive_shares_move_when_drives_are_rescaled(beta, scales):
    logits = gaussian(6, seed=3)
    small, large = (
        SubtractiveSoftmax(c, beta).run(logits, T=2000, generator=seeded()).output for c in scales
    )
    assert float((small - large).abs().max()) > 0.03


# Lyapunov


def lyapunov_slope(circuit, rates, drive):
    alpha = drive / drive.sum(-1, keepdim=True)
    return 2 * ((rates - alpha) * circuit.flow(rates, drive)).sum(-1)


def test_distance_to_softmax_falls_along_the_shunting_flow_only():
    drive, rates = gaussian(500, 6).exp(), torch.rand(500, 6, generator=seeded(1)).double()
    alpha = drive / drive.sum(-1, keepdim=True)
    V = (rates - alpha).square().sum(-1)
    shunting = lyapunov_slope(ShuntingSoftmax(), rates, drive)
    assert torch.allclose(shunting, -2 * drive.sum(-1) * V)
    subtractive = lyapunov_slope(SubtractiveSoftmax(), rates, drive)
    assert float((subtractive > 0).double().mean()) > 0.1


# Shunting


def test_shunting_is_its_network_of_neurons_step_by_step():
    """Encoders and output units simulated by ``lif`` over the same conductances."""
    logits = torch.tensor([1.3, -0.4, 0.2, -2.0], dtype=torch.float64)
    T, half = 300, 0.5
    neuron = LIFParams(beta=1.0, reset="soft", decay_input=False)

    def fire(current: Tensor) -> Tensor:
        start = torch.zeros(1, 4, dtype=torch.float64)
        start[0] = half
        current = current.clone()
        current[0] += start[0]
        return lif(current, neuron)[0]

    # the largest drive sits at threshold in every step; the others are irrational
    drive = (logits - logits.max()).exp()
    encoders = fire(drive.expand(T, 4))
    conductance = encoders.cumsum(0)
    potential = conductance / conductance.sum(1, keepdim=True)
    expected = fire(potential).sum(0)
    ran = ShuntingSoftmax().run(logits, T=T, generator=seeded())
    assert torch.equal((ran.output[0] * T).round(), expected)
    assert float(ran.spikes) == 2 * float(encoders.sum()) + float(expected.sum())


def test_shunting_error_falls_as_one_over_T():
    found = convergence(ShuntingSoftmax(), gaussian(50, 8), trials=2)
    assert found.converges
    assert found.slope.high <= -0.9
    assert found.floor.low == 0


@pytest.mark.parametrize(
    "logits",
    [
        gaussian(40, 2),
        gaussian(40, 16),
        gaussian(40, 64),
        gaussian(20, 256),
        0.1 * gaussian(40, 8),
        5 * gaussian(40, 8),
        torch.zeros(6),
        torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]),
        torch.tensor([0.0, -math.log(2)], dtype=torch.float64),
        torch.linspace(0, -math.log(1e4), 8, dtype=torch.float64),
        torch.tensor([3.0]),
    ],
    ids=[
        "n=2",
        "n=16",
        "n=64",
        "n=256",
        "flat",
        "peaked",
        "tied",
        "partly-tied",
        "half",
        "range-1e4",
        "n=1",
    ],
)
def test_shunting_errs_by_few_spikes_in_a_unit(logits):
    circuit, T = ShuntingSoftmax(), 4096
    ran = circuit.run(logits, T=T, generator=seeded())
    worst = float((ran.output[0] - circuit.target(logits)).abs().max()) * T
    assert worst < 3


@given(
    st.lists(st.floats(-9.5, 9.5), min_size=1, max_size=12), st.integers(min_value=1, max_value=300)
)
@settings(max_examples=60, deadline=None)
def test_shunting_keeps_its_worst_case(values, T):
    """Encoders err by half a spike, so V − α by (1/2 + α·n/2)/Σ_j N_j, and outputs by one spike."""
    logits = torch.tensor(values, dtype=torch.float64)
    circuit, n = ShuntingSoftmax(), len(values)
    alpha, total = circuit.target(logits), (logits - logits.max()).exp().sum()
    reached = (total * torch.arange(1, T + 1) - n / 2).clamp(min=1)
    bound = 1 + (0.5 + alpha * n / 2) * (1 / reached).sum()
    output = circuit.run(logits, T=T, generator=seeded()).output[0]
    assert ((output - alpha).abs() * T <= bound + 1e-9).all()


def test_shunting_ignores_a_common_shift():
    logits = gaussian(7)
    a = ShuntingSoftmax().run(logits, T=500, generator=seeded()).output
    shifted = ShuntingSoftmax().run(logits + 4.0, T=500, generator=seeded()).output
    assert float((a - shifted).abs().max()) <= 1 / 500 + 1e-12


@pytest.mark.parametrize("circuit", [ShuntingSoftmax(), RaceSoftmax()], ids=lambda c: c.name)
def test_memory_for_chunks_changes_no_deterministic_spike(circuit, monkeypatch):
    logits = gaussian(3, 4)
    whole = circuit.run(logits, T=400, trials=3, generator=seeded())
    monkeypatch.setattr(codes, "_CHUNK_ELEMENTS", 16 * 3 * 3 * 4 * 7)
    parts = circuit.run(logits, T=400, trials=3, generator=seeded())
    if circuit.name == "shunting softmax":
        assert torch.equal(whole.output, parts.output)
        assert torch.equal(whole.spikes, parts.spikes)
    else:  # a race draws a random number of times; only its law is free of the chunks
        assert torch.allclose(parts.output.sum(-1), torch.ones(3, 3, dtype=torch.float64))


# Race


def test_veto_draws_have_the_law_of_counted_poisson_spikes():
    mean = torch.tensor([0.0, 0.3, 2.0, 6.0], dtype=torch.float64)
    units, many = Veto(mean[None], torch.zeros(1, 4)), 200_000
    fires, first, further = draw(mean.expand(many, 4), seeded())
    p = (-mean).exp()
    error = (p * (1 - p) / many).sqrt()
    assert ((fires.double().mean(0) - p).abs() <= 4 * error).all()
    total = first + torch.poisson(further, generator=seeded(1))
    assert abs(float(total.mean()) - 8.3) < 4 * math.sqrt(8.3 / many)
    assert float(total.var()) == pytest.approx(8.3, rel=0.02)
    assert units.cost == (1, 0)


@pytest.mark.parametrize(
    "logits",
    [
        gaussian(5),
        torch.zeros(3),
        torch.tensor([0.0, 0.0, -1.0, -1.0]),
        torch.tensor([0.0, -0.7]),
        4 * gaussian(6, seed=2),
        gaussian(64),
        torch.zeros(256),
        torch.linspace(0, -math.log(1e4), 8),
    ],
    ids=["gaussian", "tied", "partly-tied", "two", "peaked", "n=64", "n=256", "range-1e4"],
)
def test_race_is_won_with_the_softmax_probability(logits):
    """χ² goodness of fit of the winners; rare units pooled."""
    T, trials = 500, 80
    ran = RaceSoftmax().run(logits, T=T, trials=trials, generator=seeded(5))
    races = T * trials
    wins = ran.output.sum(0) * T
    assert float(wins.sum()) == races
    expected = RaceSoftmax().target(logits) * races
    rare = expected < 8
    if bool(rare.any()):
        wins = torch.cat([wins[~rare], wins[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert stats.chisquare(wins.numpy(), expected.numpy()).pvalue > 1e-3


def test_a_race_without_the_second_micro_step_would_be_biased():
    """The lone bidder follows the odds p/(1−p): what the confirmation corrects."""
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    fires, _, _ = draw((-p.log()).expand(200_000, 3), seeded())
    lone = fires[fires.sum(1) == 1].double().mean(0)
    odds = p / (1 - p)
    assert torch.allclose(lone, odds / odds.sum(), atol=0.005)
    assert abs(float(lone[0]) - 0.5) > 0.05


def test_race_of_units_that_cannot_be_silent_still_ends():
    """Sources that never fire (p = 1) always collide until the gain falls."""
    ran = race(Veto(torch.zeros(1, 2), torch.zeros(1, 2)), torch.zeros(4000).long(), seeded())
    assert abs(float(ran.winner.double().mean()) - 0.5) < 0.04
    assert float(ran.rounds.min()) >= 2


def test_race_error_has_the_multinomial_variance_at_every_T():
    logits = gaussian(6)
    alpha = RaceSoftmax().target(logits)
    for T in (1, 4, 64):
        trials = 20_000 // T + 500
        ran = RaceSoftmax().run(logits, T=T, trials=trials, generator=seeded(T))
        square = (ran.output - alpha).square().sum(-1)
        expected = float(1 - alpha.square().sum()) / T
        assert abs(float(square.mean()) - expected) < 4 * float(square.std()) / math.sqrt(trials)
        error = ran.output.std(0) / math.sqrt(trials)
        assert ((ran.output.mean(0) - alpha).abs() < 4.5 * error + 1e-12).all()


def test_race_slope_is_one_half():
    found = convergence(
        RaceSoftmax(), gaussian(4, 8), T_values=(16, 64, 256, 1024), trials=60, seed=2
    )
    assert found.converges
    assert abs(found.slope.value + 0.5) < 0.05


@pytest.mark.slow
def test_slopes_over_the_whole_range():
    race_found = convergence(RaceSoftmax(), gaussian(8), trials=100)
    assert abs(race_found.slope.value + 0.5) < 0.05
    assert race_found.converges
    assert not race_found.bias_floor.low
    for n in (2, 8, 64):
        assert convergence(ShuntingSoftmax(), gaussian(50, n), trials=2).slope.high <= -0.9


def test_rounds_of_a_race_stay_few():
    for n in (2, 16, 256):
        for logits in (torch.zeros(n), gaussian(n), 6 * gaussian(n)):
            ran = RaceSoftmax().run(logits, T=40, trials=20, generator=seeded())
            assert 2 <= float(ran.rounds.mean()) < 12


def test_spikes_of_a_logit_far_below_are_not_negative():
    ran = RaceSoftmax().run(torch.tensor([0.0, -1e20]), T=4, generator=torch.Generator())
    assert float(ran.spikes) > 4e20
