"""Surrogates, gradients, and the fused kernel against the reference."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacfwd, jacrev, vmap

from spikedim.errors import ConfigError
from spikedim.neurons import (
    LIF,
    SURROGATES,
    LIFParams,
    LIFState,
    Surrogate,
    lif,
    spike,
    surrogate,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("width", [None, 0.7, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_derivative_is_the_slope_of_the_primitive(kind, width, scale):
    shape = surrogate(kind, width, scale)
    x = torch.linspace(-3.001, 3.003, 997, dtype=torch.float64)
    h = 1e-6
    slope = (shape.primitive(x + h) - shape.primitive(x - h)) / (2 * h)
    smooth = (x.abs() - 0.5 / shape.width).abs() > 1e-3  # the rectangle's edges
    torch.testing.assert_close(shape.derivative(x)[smooth], slope[smooth], rtol=1e-6, atol=1e-7)
    zero = torch.zeros((), dtype=torch.float64)
    assert float(shape.derivative(zero)) == pytest.approx(shape.peak)
    assert float(shape.derivative(x).max()) <= shape.peak * (1 + 1e-12)
    assert float(shape.primitive(zero)) == pytest.approx(0.5 * scale)
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    torch.testing.assert_close(
        shape.primitive(far), torch.tensor([0.0, scale]).double(), atol=1e-8, rtol=0
    )


def test_default_widths_peak_at_one_and_match_published_forms():
    assert all(surrogate(kind).peak == pytest.approx(1.0) for kind in SURROGATES)
    assert surrogate("sigmoid") == Surrogate("sigmoid", 4.0)
    assert surrogate("atan") == Surrogate("atan", 2.0)
    x = draw(50)
    y = torch.sigmoid(4 * x)
    torch.testing.assert_close(surrogate("sigmoid").derivative(x), 4 * y * (1 - y))
    torch.testing.assert_close(surrogate("atan").derivative(x), 1 / (1 + (torch.pi * x) ** 2))


def test_runs_are_found_again_by_the_text_of_a_surrogate():
    assert repr(surrogate("atan")) == "Surrogate(kind='atan', width=2.0)"
    assert repr(surrogate("atan", scale=0.5)) == "Surrogate(kind='atan', width=2.0, scale=0.5)"


@pytest.mark.parametrize("width", [0, -1.0, float("inf"), float("nan"), "4", True])
def test_bad_surrogates_are_named(width):
    with pytest.raises(ConfigError, match="width"):
        surrogate("sigmoid", width)
    with pytest.raises(ConfigError, match=r"'relu' is unknown.*sigmoid"):
        surrogate("relu")
    with pytest.raises(ConfigError, match="surrogate scale"):
        surrogate("sigmoid", 1.0, width)


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_spike_is_a_step_with_a_surrogate_slope(kind, dtype):
    shape = surrogate(kind)
    x = torch.tensor([-1.0, -0.1, -0.0, 0.0, 0.1, 1.0], dtype=dtype, requires_grad=True)
    s = spike(x, shape)
    assert s.tolist() == [0, 0, 1, 1, 1, 1]
    assert s.dtype == dtype
    (grad,) = torch.autograd.grad(s.sum(), x)
    assert torch.equal(grad, shape.derivative(x.detach()))
    assert grad.dtype == dtype


def test_spike_under_every_transform():
    shape = surrogate("atan")
    x = draw((4, 3))
    slope = shape.derivative(x)
    one = vmap(vmap(jacrev(lambda z: spike(z, shape))))(x)
    torch.testing.assert_close(one, slope)
    torch.testing.assert_close(vmap(vmap(jacfwd(lambda z: spike(z, shape))))(x), slope)
    z = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(spike(z, shape).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    h = 1e-6
    numeric = (shape.derivative(x + h) - shape.derivative(x - h)) / (2 * h)
    torch.testing.assert_close(second, numeric, rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    """Two LIF layers between three linear maps; [B, 5] -> [B, 3]."""

    def __init__(self, params: LIFParams, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.maps = nn.ModuleList(
            [nn.Linear(a, b, dtype=torch.float64) for a, b in ((5, 8), (8, 6), (6, 3))]
        )
        generator = torch.Generator().manual_seed(7)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.neurons = nn.ModuleList([LIF(params), LIF(params)])

    def forward(self, x):
        y = self.maps[0](x).expand(self.steps, *x.shape[:-1], 8)
        y = self.maps[1](self.neurons[0](y))
        return self.maps[2](self.neurons[1](y)).mean(0)


SMOOTH_OPTIONS = list(itertools.product(("soft", "hard", "none"), (False, True), (False, True)))


@pytest.mark.parametrize(("reset", "delayed", "decay_input"), SMOOTH_OPTIONS)
def test_gradcheck_of_the_smooth_network(reset, delayed, decay_input):
    params = LIFParams(
        reset=reset,
        delayed_reset=delayed,
        decay_input=decay_input,
        detach_reset=False,
        smooth=True,
    )
    net = Net(params)
    x = draw((2, 5)).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,), fast_mode=True)
    beta = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    threshold = torch.full((4,), 0.9, dtype=torch.float64, requires_grad=True)

    def layer(x, beta, threshold):
        options = {"reset": reset, "delayed_reset": delayed, "detach_reset": False, "smooth": True}
        spikes, state = lif(x, LIFParams(beta=beta, threshold=threshold, **options))
        return spikes, state.u

    assert torch.autograd.gradcheck(layer, (draw((3, 4)).requires_grad_(), beta, threshold))


@pytest.mark.parametrize("kernel", ["reference", "fused"])
@pytest.mark.parametrize("options", [{}, {"reset": "soft", "refractory": 1, "detach_reset": False}])
def test_vmapped_jacobian_equals_per_sample_autograd(kernel, options, monkeypatch):
    monkeypatch.setenv("SPIKEDIM_KERNEL", kernel)
    net = Net(LIFParams(surrogate=surrogate("atan"), **options))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    x = draw((6, 5), 3)

    def output(weights, sample):
        return functional_call(net, weights, (sample,))

    jacobian = vmap(jacrev(output), in_dims=(None, 0))(weights, x)
    for i, sample in enumerate(x):
        for k in range(3):
            grads = torch.autograd.grad(net(sample)[k], list(net.parameters()))
            for name, grad in zip(weights, grads, strict=True):
                torch.testing.assert_close(jacobian[name][i, k], grad, rtol=1e-12, atol=1e-12)
    forward = vmap(jacfwd(output), in_dims=(None, 0))(weights, x)
    for name, value in jacobian.items():
        torch.testing.assert_close(forward[name], value, rtol=1e-10, atol=1e-12)


OPTIONS = list(
    itertools.product(("soft", "hard", "none"), (False, True), (False, True), (0, 2), (False, True))
)


def run(kernel, dtype, option, tensors, carry):
    reset, delayed, decay_input, refractory, detach = option
    shape = (3, 5)
    x = (draw((9, *shape)) * 2 + 0.6).to(dtype).requires_grad_()
    leaves = [x]
    beta, threshold = 0.6, 0.7
    if tensors:
        full = tensors == "neuron"
        beta = (torch.linspace(0.2, 0.9, 5) if full else torch.tensor(0.6)).to(dtype)
        threshold = (torch.linspace(0.5, 1, 3)[:, None] if full else torch.tensor(0.7)).to(dtype)
        leaves += [beta.requires_grad_(), threshold.requires_grad_()]
    params = LIFParams(
        beta=beta,
        threshold=threshold,
        reset=reset,
        v_reset=0.25 if refractory else 0.0,
        delayed_reset=delayed,
        decay_input=decay_input,
        refractory=refractory,
        detach_reset=detach,
    )
    state = None
    if carry:
        u = draw(shape, 1, dtype).requires_grad_()
        s = (draw(shape, 2) > 0).to(dtype).requires_grad_()
        waiting = torch.arange(15, dtype=torch.int32).reshape(shape) % (refractory + 1)
        state = LIFState(u, s, waiting)
        leaves += [u, s]
    spikes, end = lif(x, params, state, kernel=kernel)
    loss = (spikes * draw(spikes.shape, 3, dtype)).sum() + ((end.u + end.s) * 0.3).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return spikes, end, [torch.zeros(()) if g is None else g for g in grads]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensors", ["", "layer", "neuron"])
def test_fused_equals_reference_over_the_option_grid(dtype, tensors):
    for option, carry in itertools.product(OPTIONS, (False, True)):
        spikes, end, grads = run("reference", dtype, option, tensors, carry)
        fast_spikes, fast_end, fast_grads = run("fused", dtype, option, tensors, carry)
        assert torch.equal(spikes, fast_spikes), option
        assert torch.equal(end.u, fast_end.u), option
        assert torch.equal(end.refractory, fast_end.refractory), option
        assert fast_spikes.dtype == fast_end.u.dtype == dtype
        for want, got in zip(grads, fast_grads, strict=True):
            assert got.dtype == dtype or not got.dim()
            tolerance = 1e-12 if dtype == torch.float64 else 60 * torch.finfo(dtype).eps
            error = float((want - got).abs().max())
            assert error <= tolerance * max(1.0, float(want.abs().max())), option


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_fused_uses_every_surrogate(kind, scale):
    params = LIFParams(surrogate=surrogate(kind, 1.3, scale))
    grads = []
    for kernel in ("reference", "fused"):
        x = draw((5, 40)).requires_grad_()
        lif(x, params, kernel=kernel)[0].pow(2).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-13)


def test_fused_is_chunked_without_a_seam(monkeypatch):
    x = draw((4, 3, 1400))
    whole, _ = lif(x, LIFParams(), kernel="fused")
    monkeypatch.setattr("spikedim.neurons.scan.CHUNK_BYTES", 1)
    cut, _ = lif(x, LIFParams(), kernel="fused")
    assert torch.equal(whole, cut)


SECOND = {
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
}


@pytest.mark.parametrize("transform", SECOND)
@pytest.mark.parametrize(
    "options",
    [{}, {"reset": "soft", "detach_reset": False, "delayed_reset": True, "refractory": 1}],
)
def test_second_derivatives_of_fused_equal_reference(transform, options):
    x = draw((4, 2, 3)) * 1.5 + 0.5
    beta = torch.linspace(0.3, 0.8, 3, dtype=torch.float64)
    state = LIFState(draw((2, 3), 1), torch.ones(2, 3).double(), torch.zeros(2, 3).int())

    weight = draw(x.shape, 5)

    def loss(kernel):
        def function(x, beta):
            spikes, end = lif(x, LIFParams(beta=beta, **options), state, kernel=kernel)
            return (spikes * weight).sum() + (end.u * spikes[0]).sum()

        return function

    for arg in (0, 1):
        hessians = []
        for kernel in ("reference", "fused"):
            f = loss(kernel)
            g = (lambda z, f=f: f(z, beta)) if arg == 0 else (lambda z, f=f: f(x, z))
            hessians.append(SECOND[transform](g)((x, beta)[arg]))
        torch.testing.assert_close(*hessians, rtol=1e-10, atol=1e-10)


def test_double_backward_through_plain_autograd():
    hessians = []
    for kernel in ("reference", "fused"):
        x = draw((4, 6)).requires_grad_()
        spikes, _ = lif(x, LIFParams(), kernel=kernel)
        (grad,) = torch.autograd.grad((spikes * draw((4, 6), 1)).sum(), x, create_graph=True)
        hessians.append(torch.autograd.grad(grad.pow(2).sum(), x)[0])
    torch.testing.assert_close(*hessians, rtol=1e-10, atol=1e-12)
    assert float(hessians[0].abs().max()) > 0


def test_vmap_over_learnable_parameters():
    x = draw((4, 2, 3)) + 0.5
    betas = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)

    def grad(beta, x):
        return jacrev(lambda b: lif(x, LIFParams(beta=b))[0].sum())(beta)

    rows = vmap(grad, in_dims=(0, None))(betas, x)
    torch.testing.assert_close(rows, torch.stack([grad(b, x) for b in betas]))


@pytest.mark.parametrize("kind", SURROGATES)
def test_compiled_layers_give_the_same_spikes_and_gradients(kind):
    params = LIFParams(reset="soft", refractory=1, surrogate=surrogate(kind))
    drive = draw((5, 40)) + 1
    torch.compiler.reset()
    compiled = torch.compile(LIF(params), fullgraph=True, backend="aot_eager")
    outcomes = []
    for layer in (LIF(params), compiled):
        x = drive.clone().requires_grad_()
        spikes = layer(x)
        spikes.square().sum().backward()
        outcomes.append((spikes.detach(), x.grad))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-12, atol=1e-12)
