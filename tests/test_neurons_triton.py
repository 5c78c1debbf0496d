"""The GPU kernels against the reference; without a GPU, Triton's interpreter runs them."""

import itertools
import os
from importlib.util import find_spec

import pytest
import torch

from spikedim.errors import ConfigError
from spikedim.neurons import SURROGATES, LIFParams, Surrogate, kernel_info, lif

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = [
    options
    for options in itertools.product(
        ("soft", "hard", "none"), (False, True), (False, True), (0, 2), (False, True)
    )
    if options[4] or options[0] != "none"
]


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    before = os.environ.get("TRITON_INTERPRET")
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    yield
    if before is None:
        os.environ.pop("TRITON_INTERPRET", None)


def outcome(kernel, params, x, beta, threshold, start, weight):
    """Spikes, final state and every gradient of one kernel, from rest or from a moved state."""
    leaves = {"x": x.clone().requires_grad_()}
    changed = {}
    if beta is not None:
        leaves["beta"] = changed["beta"] = beta.clone().requires_grad_()
    if threshold is not None:
        leaves["threshold"] = changed["threshold"] = threshold.clone().requires_grad_()
    params = LIFParams(**{**params, **changed})
    state = None
    if start:
        state = lif(x.flip(0)[:3] + 0.3, params, kernel=kernel)[1]
        for name in ("u", "s"):
            leaves[name] = getattr(state, name).detach().requires_grad_()
        state = state._replace(u=leaves["u"], s=leaves["s"])
    spikes, end = lif(leaves["x"], params, state, kernel=kernel)
    loss = (spikes * weight).sum() + (end.u * weight[0]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return spikes.detach(), end, dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("reset", "delayed", "decay_input", "refractory", "detach"), GRID)
def test_spikes_are_the_same_bits_and_gradients_agree(
    reset, delayed, decay_input, refractory, detach, learned, start
):
    params = {
        "beta": 0.6,
        "threshold": 0.7,
        "reset": reset,
        "v_reset": 0.15 if reset == "hard" else 0.0,
        "delayed_reset": delayed,
        "decay_input": decay_input,
        "refractory": refractory,
        "detach_reset": detach,
    }
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(9, 3, 100, generator=generator) * 1.5 + 0.4).to(DEVICE)
    weight = torch.randn(9, 3, 100, generator=generator).to(DEVICE)
    beta = threshold = None
    if learned:
        beta = (0.2 + 0.6 * torch.rand(100, generator=generator)).to(DEVICE)
        threshold = (0.5 + torch.rand(3, 1, generator=generator)).to(DEVICE)
    want = outcome("reference", params, x, beta, threshold, start, weight)
    got = outcome("triton", params, x, beta, threshold, start, weight)
    assert 0 < float(want[0].mean()) < 1
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1].refractory, want[1].refractory)
    torch.testing.assert_close(got[1].u, want[1].u, rtol=1e-6, atol=1e-6)
    assert want[2].keys() == got[2].keys()
    for name, grad in want[2].items():
        torch.testing.assert_close(got[2][name], grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", SURROGATES)
def test_every_surrogate_has_its_derivative(kind):
    params = LIFParams(surrogate=Surrogate(kind, 1.7, scale=0.3), threshold=0.8)
    x = torch.linspace(-3, 3, 601, device=DEVICE).repeat(2, 1)
    grads = []
    for kernel in ("fused", "triton"):
        leaf = x.clone().requires_grad_()
        lif(leaf, params, kernel=kernel)[0].sum().backward()
        grads.append(leaf.grad)
    assert float(grads[0].abs().max()) > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-6)


def test_vmap_and_odd_sizes():
    params = LIFParams(beta=0.5)
    x = torch.randn(4, 5, 257, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def spikes(kernel):
        return torch.func.vmap(lambda row: lif(row, params, kernel=kernel)[0], in_dims=1)(x)

    assert torch.equal(spikes("triton"), spikes("reference"))
    empty = lif(x[:, :0], params, kernel="triton")[0]
    assert empty.shape == (4, 0, 257)


def test_other_dtypes_are_left_to_the_fused_kernel():
    x = torch.ones(2, 3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ConfigError, match="float32"):
        lif(x, LIFParams(), kernel="triton")
    assert kernel_info(x=x).kernel == "fused"
    assert kernel_info(x=x.float()).kernel == ("triton" if DEVICE == "cuda" else "fused")
    assert kernel_info(x=x.float(), kernel="triton").kernel == "triton"


def test_whole_numbers_as_parameters():
    params = LIFParams(beta=0, threshold=1, reset="hard", v_reset=1, surrogate=Surrogate("atan", 2))
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    grads = []
    for kernel in ("reference", "triton"):
        leaf = x.clone().requires_grad_()
        spikes = lif(leaf, params, kernel=kernel)[0]
        spikes.sum().backward()
        grads.append((spikes.detach(), leaf.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=1e-5, atol=1e-6)
