"""Continuous stand-ins of neurons, and state carried from call to call on request."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikedim.errors import ConfigError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import (
    LIF,
    PLIF,
    LIFParams,
    activation_function,
    lif,
    lif_potential,
    rate_activation,
    record,
    steady_potential,
    streaming,
    surrogate_activation,
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def constant(x, T):
    return x.expand(T, *x.shape)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("decay_input", [True, False])
def test_steady_potential_is_where_a_neuron_without_reset_settles(beta, decay_input):
    x = gaussian(50)
    params = LIFParams(beta=beta, decay_input=decay_input, reset="none")
    _, u, _ = lif_potential(constant(x, 800), params)
    torch.testing.assert_close(u[-1], steady_potential(x, params), rtol=1e-10, atol=1e-10)
    smooth = surrogate_activation(x, params)
    torch.testing.assert_close(smooth, params.surrogate.primitive(u[-1] - 1.0))


@settings(max_examples=40, deadline=None)
@given(
    beta=st.sampled_from([0.3, 0.5, 0.9, 1.0]),
    refractory=st.integers(0, 3),
    v_reset=st.sampled_from([0.0, 0.3, -0.5]),
    seed=st.integers(0, 50),
)
def test_hard_reset_rate_lies_within_one_step_of_the_simulated_one(beta, refractory, v_reset, seed):
    params = LIFParams(
        beta=beta,
        reset="hard",
        v_reset=v_reset,
        refractory=refractory,
        decay_input=beta < 1,
    )
    x = gaussian(64, seed=seed).abs() * 3 + 0.05
    spikes, state = lif(constant(x, 200), params)  # past the first spike, which starts from rest
    spikes, _ = lif(constant(x, 6000), params, state)
    simulated, smooth = spikes.mean(0), rate_activation(x, params)
    edge = 2 / 6000
    assert (simulated <= smooth + edge).all()
    slowest = 1 / (1 / smooth.clamp(min=1e-12) + 1)
    assert ((simulated >= slowest - edge) | (smooth == 0)).all()


def test_rate_without_leak_and_soft_reset_is_exact():
    x = gaussian(200).abs()
    params = LIFParams(beta=1.0, reset="soft", decay_input=False)
    spikes, _ = lif(constant(x, 4000), params)
    assert (spikes.mean(0) - rate_activation(x, params)).abs().max() <= 1 / 4000
    torch.testing.assert_close(rate_activation(x, params), x.clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rate_gradient_is_finite_everywhere_off_the_threshold(dtype):
    for beta in (0.5, 1.0):
        x = torch.linspace(-2, 4, 123, dtype=dtype).requires_grad_()
        params = LIFParams(beta=beta, decay_input=beta < 1)
        rate_activation(x, params).sum().backward()
        assert torch.isfinite(x.grad).all()
        assert (x.grad >= 0).all()


@pytest.mark.parametrize("options", [{"reset": "none"}, {"beta": 0.0}])
def test_neurons_without_a_smooth_rate_say_so(options):
    with pytest.raises(ConfigError, match="surrogate"):
        rate_activation(gaussian(3), LIFParams(**options))
    with pytest.raises(ConfigError, match="surrogate or rate"):
        activation_function("relu")


def test_the_twin_shares_parameters_and_has_no_time():
    model = create_model("spikformer_nano").double()
    calibrate_batchnorm(model, [gaussian(16, *model.input_shape, seed=1)], 4)
    x = gaussian(3, *model.input_shape)
    before = model(x, 4)
    for activation in ("surrogate", "rate", lambda u, params: u.sigmoid()):
        twin = model.continuous(activation)
        steps = twin.steps(x, 3)
        torch.testing.assert_close(steps[0], steps[2])
        torch.testing.assert_close(twin(x), steps[0])
        assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
        for p, q in zip(twin.parameters(), model.parameters(), strict=True):
            assert p is q
    assert torch.equal(model(x, 4), before)
    with record(twin, ("spikes", "potential")) as recording:
        twin(x)
    assert all(((t.spikes > 0) & (t.spikes < 1)).any() for t in recording.values())
    assert all(t.potential.shape == t.spikes.shape for t in recording.values())


def test_a_learned_leak_keeps_its_gradient_in_the_twin():
    layer = PLIF(LIFParams(decay_input=False)).double()
    layer.activation = surrogate_activation
    layer(gaussian(4, 10)).sum().backward()
    assert layer.w.grad is not None
    assert layer.w.grad.abs() > 0


@pytest.mark.parametrize("recorded", [(), ("potential",)])
def test_a_stream_in_pieces_equals_the_whole(recorded):
    layer = nn.Sequential(LIF(LIFParams(refractory=1)), LIF(LIFParams(reset="soft", threshold=0.2)))
    x = gaussian(12, 5, 7) + 1
    whole = layer(x)
    with streaming(layer):
        if recorded:
            with record(layer, recorded):
                parts = [layer(x[:5]), layer(x[5:6]), layer(x[6:])]
        else:
            parts = [layer(x[:5]), layer(x[5:6]), layer(x[6:])]
        assert torch.equal(torch.cat(parts), whole)
        with pytest.raises(ConfigError, match="shape"):
            layer(x[:, :2])
    assert torch.equal(layer(x), whole)


def test_a_network_streams_events():
    model = create_model("spikformer_nano").double()
    calibrate_batchnorm(model, [gaussian(16, *model.input_shape, seed=1)], 4)
    x = gaussian(6, 2, *model.input_shape)
    with streaming(model):
        parts = torch.cat([model.steps(x[:2]), model.steps(x[2:])])
    torch.testing.assert_close(parts, model.steps(x), rtol=0, atol=1e-12)
