"""LIF dynamics against exact identities and an independent NumPy loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedim.errors import ConfigError
from spikedim.neurons import (
    LIF,
    PLIF,
    LIFParams,
    LIFState,
    Surrogate,
    kernel_info,
    lif,
    lif_potential,
)
from spikedim.neurons.choice import choose

GRID = [
    options
    for options in itertools.product(
        ("soft", "hard", "none"), (False, True), (False, True), (0, 1, 3), (0.0, 0.3, 1.0)
    )
    if not (options[2] and options[4] == 1)  # gain 0 is refused
]


def currents(seed: int, shape: tuple[int, ...], scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + 0.5


def numpy_lif(x, beta, gain, threshold, reset, v_reset, delayed, refractory):
    """One neuron at a time, one step at a time, straight from the definition."""
    steps, neurons = x.shape
    spikes, potentials = np.zeros_like(x), np.zeros_like(x)
    for n in range(neurons):
        u, fired, wait = 0.0, False, 0
        for t in range(steps):
            blocked = wait > 0
            leak = 1.0 if blocked else beta
            u = leak * u if delayed else u
            if fired:
                u = {"soft": u - threshold, "hard": v_reset, "none": u}[reset]
            u = u if delayed else leak * u
            if blocked:
                wait -= 1
                fired = False
            else:
                u += gain * x[t, n]
                fired = u >= threshold
                wait = refractory if fired else 0
            spikes[t, n], potentials[t, n] = fired, u
    return spikes, potentials


@pytest.mark.parametrize(("reset", "delayed", "decay_input", "refractory", "beta"), GRID)
def test_every_option_agrees_with_the_numpy_loop(reset, delayed, decay_input, refractory, beta):
    params = LIFParams(
        beta=beta,
        threshold=0.7,
        reset=reset,
        v_reset=0.2 if reset == "hard" else 0.0,
        delayed_reset=delayed,
        decay_input=decay_input,
        refractory=refractory,
    )
    x = currents(3, (12, 40))
    gain = 1 - beta if decay_input else 1.0
    want = numpy_lif(x.numpy(), beta, gain, 0.7, reset, params.v_reset, delayed, refractory)
    spikes, potentials, _ = lif_potential(x, params)
    np.testing.assert_array_equal(spikes.numpy(), want[0])
    np.testing.assert_allclose(potentials.numpy(), want[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(lif(x, params, kernel="fused")[0], spikes)
    assert 0 < spikes.mean() < 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beta=st.floats(0, 1),
    threshold=st.floats(0.1, 3),
    steps=st.integers(1, 30),
    decay_input=st.booleans(),
    delayed=st.booleans(),
    kernel=st.sampled_from(("reference", "fused")),
)
def test_soft_reset_conserves_charge(seed, beta, threshold, steps, decay_input, delayed, kernel):
    """v_th·Σs = g·ΣI − (1−β)·Σu + boundary terms, exactly, from any starting state."""
    if decay_input and beta == 1:
        beta = 0.5
    params = LIFParams(
        beta=beta,
        threshold=threshold,
        reset="soft",
        delayed_reset=delayed,
        decay_input=decay_input,
    )
    x = currents(seed, (steps, 6))
    start = lif(currents(seed + 1, (3, 6)), params)[1]
    _, u, _ = lif_potential(x, params, start)
    s, end = lif(x, params, start, kernel=kernel)
    driven = params.gain * x.sum(0)
    if delayed:  # u_t = βu_{t−1} + gI_t − θs_{t−1}
        boundary = beta * (start.u - end.u) + threshold * (end.s - start.s)
        right = driven - (1 - beta) * u.sum(0) + boundary
    else:  # with v_t = u_t − θs_t, the potential after the reset: v_t = βv_{t−1} + gI_t − θs_t
        v = u - threshold * s
        v_start, v_end = start.u - threshold * start.s, end.u - threshold * end.s
        right = driven - (1 - beta) * v.sum(0) + beta * (v_start - v_end)
    scale = 1 + float(x.abs().sum()) + steps * threshold
    torch.testing.assert_close(threshold * s.sum(0), right, rtol=0, atol=1e-12 * scale)


def test_integrate_and_fire_codes_a_constant_to_within_one_spike():
    rate = torch.linspace(0, 1, 41, dtype=torch.float64)
    params = LIFParams(beta=1.0, reset="soft", decay_input=False)
    for steps in (1, 7, 64):
        spikes, _ = lif(rate.expand(steps, -1), params)
        assert float((spikes.mean(0) - rate).abs().max()) <= 1 / steps + 1e-12


def test_leaky_neuron_is_silent_below_its_rheobase():
    params = LIFParams(beta=0.5, decay_input=False)
    spikes, _ = lif(torch.tensor([0.499, 0.51]).expand(200, 2), params)
    assert spikes[:, 0].sum() == 0
    assert spikes[:, 1].sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["reference", "fused"])
@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.1, 0.7])
def test_a_neuron_at_threshold_fires_and_dtype_is_kept(dtype, kernel, threshold):
    at = torch.tensor(threshold, dtype=dtype)
    below = at - at * torch.finfo(dtype).eps
    params = LIFParams(threshold=threshold, decay_input=False)
    spikes, state = lif(torch.stack([below, at])[None], params, kernel=kernel)
    assert spikes.tolist() == [[0.0, 1.0]]
    assert spikes.dtype == state.u.dtype == state.s.dtype == dtype


def test_spikingjelly_form_of_the_update():
    """v ← v + (x − v)/τ, fire at >= v_th, v ← (1 − s)·v; and exact ties of attention inputs."""
    x = torch.randint(0, 33, (6, 500), generator=torch.Generator().manual_seed(0)) * 0.125
    v, expected = torch.zeros(500), []
    for x_t in x:
        v = v + (x_t - v) / 2
        s = (v - 0.5 >= 0).float()
        v = (1 - s) * v
        expected.append(s)
    spikes, _ = lif(x, LIFParams.from_tau(2.0, threshold=0.5))
    assert torch.equal(spikes, torch.stack(expected))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    first=st.integers(1, 6),
    second=st.integers(1, 6),
    reset=st.sampled_from(("soft", "hard", "none")),
    delayed=st.booleans(),
    refractory=st.integers(0, 4),
    detach=st.booleans(),
    kernel=st.sampled_from(("reference", "fused")),
)
def test_carried_state_equals_one_run(
    seed, first, second, reset, delayed, refractory, detach, kernel
):
    params = LIFParams(
        beta=0.8,
        reset=reset,
        delayed_reset=delayed,
        refractory=refractory,
        detach_reset=detach,
        decay_input=False,
    )
    x = currents(seed, (first + second, 2, 5)).requires_grad_()
    weight = currents(seed + 1, tuple(x.shape))
    whole, end = lif(x, params, kernel=kernel)
    head, middle = lif(x[:first], params, kernel=kernel)
    tail, last = lif(x[first:], params, middle, kernel=kernel)
    split = torch.cat([head, tail])
    assert torch.equal(whole, split)
    assert torch.equal(end.u, last.u)
    assert torch.equal(end.refractory, last.refractory)
    grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (whole, split)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_refractory_period_is_absolute_and_frozen():
    params = LIFParams(beta=0.5, reset="soft", refractory=2, decay_input=False)
    x = torch.full((7, 1), 3.0)
    spikes, potential, state = lif_potential(x, params)
    assert spikes[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert potential[:4, 0].tolist() == [3.0, 2.0, 2.0, 4.0]
    assert state.refractory.tolist() == [2]


def test_parameters_per_neuron_and_learnable():
    beta = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    spikes, _ = lif(currents(0, (8, 3, 2)), LIFParams(beta=beta, threshold=threshold))
    spikes.sum().backward()
    assert beta.grad is not None
    assert beta.grad.shape == (2,)
    assert threshold.grad is not None
    assert float(beta.grad.abs().min()) > 0
    assert float(threshold.grad) < 0


def test_plif_starts_at_its_tau_and_learns():
    layer = PLIF(LIFParams.from_tau(2.0))
    x = currents(0, (5, 7)).float()
    assert list(layer.state_dict()) == ["w"]
    assert float(layer.w.detach()) == 0
    assert torch.equal(layer(x), LIF(LIFParams.from_tau(2.0))(x))
    layer(x).sum().backward()
    assert layer.w.grad is not None


def test_module_has_no_state_and_deep_copies():
    layer = LIF()
    x = currents(1, (4, 3))
    assert torch.equal(layer(x), layer(x))
    assert not layer.state_dict()
    assert "beta=0.5" in repr(layer)


def test_tau_and_beta():
    params = LIFParams.from_tau(4.0)
    assert (params.beta, params.tau, params.gain) == (0.75, 4.0, 0.25)
    assert LIFParams(beta=1.0, decay_input=False).tau == math.inf
    assert LIFParams.from_tau(1.0).beta == 0
    assert LIFParams.from_tau(math.inf, decay_input=False).beta == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 1.5}, r"beta=1.5 .*from_tau\(1.5\)"),
        ({"beta": -0.1}, r"beta=-0.1 is outside \[0, 1\]"),
        ({"beta": math.nan}, "outside"),
        ({"beta": "0.5"}, "must be a number"),
        ({"beta": torch.tensor([0.5, 2.0])}, r"values in \[0.5, 2\]"),
        ({"beta": torch.tensor(1)}, "floating"),
        ({"beta": 1.0}, "decay_input=False"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": -1}, "threshold=-1"),
        ({"threshold": math.inf}, "positive finite"),
        ({"reset": "zero"}, "soft, hard, none"),
        ({"v_reset": math.nan}, "v_reset"),
        ({"refractory": -1}, "refractory=-1"),
        ({"refractory": 1.5}, "whole number"),
        ({"refractory": True}, "whole number"),
        ({"surrogate": "sigmoid"}, "Surrogate"),
        ({"smooth": True, "refractory": 1}, "refractory=0"),
    ],
)
def test_bad_parameters_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        LIFParams(**options)


def test_bad_time_constants_are_named():
    with pytest.raises(ConfigError, match=r"tau=0.5 must be at least 1 step.*beta=0.5"):
        LIFParams.from_tau(0.5)
    with pytest.raises(ConfigError, match="give one"):
        LIFParams.from_tau(2.0, beta=0.5)
    with pytest.raises(ConfigError, match="exclusive"):
        PLIF(LIFParams(beta=0.0))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(4, 2, dtype=torch.int64), r"int64.*x.float\(\)"),
        (torch.ones(4, 2, dtype=torch.bool), "bool"),
        (torch.ones(0, 2), "T=0"),
        (torch.tensor(1.0), "at least one step"),
        ([[1.0]], "list"),
    ],
)
def test_bad_inputs_are_named(x, words):
    with pytest.raises(ConfigError, match=words):
        lif(x, LIFParams())


def test_misfit_state_and_parameters_are_named():
    _, state = lif(torch.ones(2, 3), LIFParams())
    with pytest.raises(ConfigError, match=r"\(3,\).*\(5,\)"):
        lif(torch.ones(2, 5), LIFParams(), state)
    with pytest.raises(ConfigError, match=r"float32.*float64"):
        lif(torch.ones(2, 3, dtype=torch.float64), LIFParams(), state)
    with pytest.raises(ConfigError, match="refractory"):
        lif(torch.ones(2, 3), LIFParams(), state._replace(refractory=torch.zeros(2)))
    with pytest.raises(ConfigError, match=r"beta has shape \(4,\).*\(3,\)"):
        lif(torch.ones(2, 3), LIFParams(beta=torch.full((4,), 0.5)))


def test_kernel_choice_is_automatic_visible_and_overridable(monkeypatch):
    assert kernel_info(x=torch.ones(2, 3)).kernel == "fused"
    smooth = LIFParams(smooth=True)
    assert kernel_info(smooth).kernel == "reference"
    with pytest.raises(ConfigError, match="smooth"):
        kernel_info(smooth, "fused")
    with pytest.raises(ConfigError, match="cuda"):
        lif(torch.ones(2, 3), LIFParams(), kernel="cuda")
    monkeypatch.setenv("SPIKEDIM_KERNEL", "reference")
    assert kernel_info().kernel == "reference"
    assert kernel_info(kernel="fused").kernel == "fused"
    monkeypatch.setenv("SPIKEDIM_KERNEL", "fused")
    assert kernel_info(smooth).kernel == "reference"
    monkeypatch.setenv("SPIKEDIM_KERNEL", "fast")
    with pytest.raises(ConfigError, match="SPIKEDIM_KERNEL='fast'"):
        lif(torch.ones(2, 3), LIFParams())


@pytest.mark.parametrize("interpreted", [False, True])
def test_triton_is_automatic_on_a_gpu_alone(interpreted, monkeypatch):
    monkeypatch.setattr("spikedim.neurons.choice._triton_found", lambda: True)
    monkeypatch.setenv("SPIKEDIM_KERNEL", "auto")
    if interpreted:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.ones(2, 3)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert kernel_info().kernel == ("triton" if gpu else "fused")
        assert kernel_info(x=x).kernel == choose(LIFParams(), None, x) == "fused"
    if interpreted:
        assert kernel_info(kernel="triton", x=x).kernel == "triton"
    else:
        with pytest.raises(ConfigError, match="currents on a GPU; use 'fused'"):
            kernel_info(kernel="triton", x=x)
        monkeypatch.setenv("SPIKEDIM_KERNEL", "triton")
        assert kernel_info(x=x).kernel == choose(LIFParams(), None, x) == "fused"


def test_edge_shapes():
    for shape in ((3,), (1, 1), (2, 0), (4, 2, 3, 5)):
        x = torch.full(shape, 3.0, requires_grad=True)
        spikes, state = lif(x, LIFParams())
        assert spikes.shape == x.shape
        assert state.u.shape == state.refractory.shape == x.shape[1:]
        spikes.sum().backward()
    x = currents(0, (5, 3, 4))
    turned = x.transpose(1, 2)
    assert torch.equal(lif(turned, LIFParams())[0], lif(x, LIFParams())[0].transpose(1, 2))
    still = currents(0, (1, 8)).expand(6, 8)
    assert torch.equal(lif(still, LIFParams())[0], lif(still.clone(), LIFParams())[0])
    assert LIFState.rest(x[0]).refractory.dtype == torch.int32
    assert isinstance(LIFParams().surrogate, Surrogate)
