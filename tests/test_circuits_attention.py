from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spikedim.circuits import convergence
from spikedim.circuits.attention import NORMALISATIONS, SpikingAttention, scores
from spikedim.circuits.softmax import draw
from spikedim.errors import BudgetError, ConfigError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(n: int, m: int, d: int, dv: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = seeded(seed)
    q, k, v = (torch.randn(*s, generator=g).double() for s in ((n, d), (m, d), (m, dv)))
    return q, k, v


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_shapes_counts_and_repeatability(normalisation):
    inputs = head(3, 5, 4, 2)
    circuit = SpikingAttention(normalisation)
    ran, again = (circuit.run(*inputs, T=20, trials=6, generator=seeded()) for _ in range(2))
    assert ran.output.shape == (6, 3, 2)
    assert ran.weights.shape == (6, 3, 5)
    assert ran.spikes.shape == ran.rounds.shape == (6,)
    assert torch.equal(ran.output, again.output)
    assert torch.equal(ran.spikes, again.spikes)
    assert torch.equal(ran.spikes, ran.spikes.round())
    per_pair = 6 * 4 + 2 + 2 * 2
    expected = 3 * (5 * (per_pair + 3) + 2) if normalisation == "race" else 15 * (per_pair + 1)
    assert ran.neurons == expected
    assert ran.depth == 6


def test_target_is_softmax_attention():
    q, k, v = head(3, 5, 4, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(SpikingAttention().target(q, k, v), expected)


@pytest.mark.parametrize(
    "shapes",
    [((3, 4), (5, 3), (5, 2)), ((3, 4), (5, 4), (4, 2)), ((4,), (5, 4), (5, 2))],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ConfigError, match="shapes"):
        SpikingAttention().run(*map(torch.zeros, shapes), T=4, generator=seeded())


def test_unusable_arguments_are_refused():
    q, k, v = head(2, 2, 2, 2)
    with pytest.raises(ConfigError, match="normalisation"):
        SpikingAttention("argmax")
    with pytest.raises(ConfigError, match="2 inputs"):
        SpikingAttention().run(q, k, T=4, generator=seeded())
    with pytest.raises(ConfigError, match="v of shape"):
        SpikingAttention().run(q, k, v * math.nan, T=4, generator=seeded())


def test_vetoes_are_scores_up_to_a_constant_of_the_row():
    q, k, _ = head(6, 7, 5, 1)
    units = scores(q, k)
    constant = units.mean + q @ k.T / math.sqrt(5)
    assert torch.allclose(constant, constant[:, :1].expand(6, 7))
    assert (units.mean >= 0).all()
    # every query spike meets a key spike: sums are the query trains alone
    total = units.mean + units.idle
    assert torch.allclose(total, total[:, :1].expand(6, 7))
    # the keys' common part is not coded
    shifted = scores(q, k + 3.0)
    assert torch.allclose(shifted.mean, units.mean)


def test_competitor_driven_by_single_trains_fires_as_the_superposed_source():
    """Coincidences simulated event by event: query spike, key line, comparison of signs."""
    q, k, _ = head(1, 3, 4, 1, seed=4)
    q, many, g = q * 0.8, 40_000, seeded(3)
    low, high = k.amin(0), k.amax(0)
    middle, top = (low + high) / 2, (high - low) / 2
    vetoes = torch.zeros(many, 3, dtype=torch.long)
    for j in range(3):
        for c in range(4):
            mean = 2 * q[0, c].abs() * top[c] / 2
            spikes = torch.poisson(mean.expand(many), generator=g).long()
            at = torch.arange(many).repeat_interleave(spikes)
            key_plus = torch.rand(len(at), generator=g) < (1 + (k[j, c] - middle[c]) / top[c]) / 2
            differs = key_plus != (q[0, c] > 0)
            vetoes[:, j] += torch.bincount(at[differs], minlength=many)
    units = scores(q, k)
    p = (-units.mean[0]).exp()
    silent = (vetoes == 0).double().mean(0)
    assert ((silent - p).abs() < 4 * (p * (1 - p) / many).sqrt()).all()
    spent = vetoes.double().mean(0)
    assert ((spent - units.mean[0]).abs() < 4 * (units.mean[0] / many).sqrt()).all()
    drawn = draw(units.mean[0].expand(many, 3), seeded())[0].double().mean(0)
    assert ((drawn - p).abs() < 4 * (p * (1 - p) / many).sqrt()).all()


@pytest.mark.parametrize("T", [1, 3, 40])
def test_race_head_has_no_bias_at_any_T(T):
    q, k, v = head(3, 4, 4, 2, seed=1)
    circuit, trials = SpikingAttention(), 4000
    ran = circuit.run(q, k, v, T=T, trials=trials, generator=seeded(T))
    error = ran.output.std(0) / math.sqrt(trials)
    assert ((ran.output.mean(0) - circuit.target(q, k, v)).abs() < 4.5 * error).all()


def test_race_head_errs_by_the_variance_of_the_values():
    q, k, v = head(4, 6, 4, 3, seed=2)
    circuit, T, trials = SpikingAttention(), 400, 150
    alpha = (q @ k.T / 2).softmax(-1)
    expected = (alpha @ v.square() - (alpha @ v).square()).sum() / T
    ran = circuit.run(q, k, v, T=T, trials=trials, generator=seeded())
    square = (ran.output - circuit.target(q, k, v)).square().sum((1, 2))
    rounding = 4 * 3 * 6 * float(v.abs().max()) ** 2 / 4 / T**2
    margin = 4 * float(square.std()) / math.sqrt(trials)
    assert float(expected) - margin < float(square.mean()) < float(expected) + rounding + margin


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_error_falls_monotonically(normalisation):
    q, k, v = head(4, 4, 4, 2, seed=6)
    found = convergence(
        SpikingAttention(normalisation),
        q,
        k,
        v,
        T_values=(16, 64, 256, 1024),
        trials=12,
        norm="frobenius",
    )
    errors = [p.error.value for p in found.points]
    assert errors == sorted(errors, reverse=True)
    assert found.converges
    assert errors[-1] < 0.08


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_steps_for_an_error_are_those_it_takes(normalisation):
    inputs = head(4, 5, 3, 2, seed=8)
    circuit = SpikingAttention(normalisation)
    target = circuit.target(*inputs)
    T = circuit.steps(*inputs, error=0.05)
    assert circuit.steps(*inputs, error=0.025) == pytest.approx(4 * T, rel=0.01)
    ran = circuit.run(*inputs, T=T, trials=100, generator=seeded())
    square = ((ran.output - target) / target.norm()).square().sum((1, 2))
    assert math.sqrt(float(square.mean())) == pytest.approx(0.05, rel=0.15)
    with pytest.raises(ConfigError, match="error=0"):
        circuit.steps(*inputs, error=0.0)
    with pytest.raises(ConfigError, match="norm 0"):
        circuit.steps(inputs[0], inputs[1], 0 * inputs[2])


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_relative_error_falls_below_one_percent(normalisation):
    inputs = head(6, 6, 4, 3, seed=7)
    circuit = SpikingAttention(normalisation)
    T_values = (16, 64, 256, 1024, 4096, circuit.steps(*inputs, error=0.008))
    found = convergence(circuit, *inputs, T_values=T_values, trials=8, norm="frobenius")
    errors = [p.error.value for p in found.points]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert found.converges
    if normalisation == "race":
        assert abs(found.slope.value + 0.5) < 0.05


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_degenerate_heads(normalisation):
    circuit = SpikingAttention(normalisation)
    q, k, v = head(2, 3, 2, 2)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return circuit.run(q, k, v, T=3000, trials=2, generator=seeded()).output

    # no query, or equal keys: the mean of the values
    for output in (run(q * 0, k, v), run(q, k[:1].expand(3, 2), v)):
        assert torch.allclose(output, v.mean(0).expand(2, 2, 2), atol=0.1)
    # one key: its value, up to a rounding
    assert torch.allclose(run(q, k[:1], v[:1]), v[0].expand(2, 2, 2), atol=0.01)
    assert torch.equal(run(q, k, v * 0), torch.zeros(2, 2, 2).double())
    # a sharp head picks the best key
    sharp = 12 * torch.eye(3, dtype=torch.float64)
    output = run(torch.eye(3).double(), sharp, 5 * torch.eye(3).double())
    assert torch.allclose(output, circuit.target(torch.eye(3), sharp, 5 * torch.eye(3)), atol=0.2)


def test_races_without_end_are_refused():
    q = torch.tensor([[1.0, 1.0], [30.0, -30.0]])
    k, v = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0], [0.0]])
    with pytest.raises(BudgetError, match=r"row 1 of q has M_i = 42\.43 .* about 1e18"):
        SpikingAttention().run(q, k, v, T=1, generator=torch.Generator())


def test_a_row_that_never_fires_is_no_verdict():
    q, k, v = (torch.tensor(rows) for rows in ([[30.0, -30.0]], [[1.0, 1], [-1, -1]], [[1.0], [0]]))
    found = convergence(SpikingAttention("shunting"), q, k, v, T_values=(4, 8, 16, 32), trials=20)
    assert found.converges is None
    assert "too few trials differ at T = 4, 8, 16, 32" in found.verdict
