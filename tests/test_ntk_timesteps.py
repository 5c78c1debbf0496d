"""The kernel as a sum over pairs of timesteps, against plain autograd."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from spikedim.errors import BudgetError, ConfigError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.ntk import by_timestep, gram

T, N = 3, 5


def network(name="spikformer_nano", **options):
    options = {"input_shape": (1, 4, 4), "num_classes": 3, **options}
    net = create_model(name, seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *net.input_shape, generator=generator, dtype=torch.float64)
    calibrate_batchnorm(net, [x], T)
    return net.eval(), x


@pytest.fixture(scope="module")
def measured():
    net, x = network()
    return net, x, by_timestep(net, x, T=T)


def gradients_by_step(net, x, paths):
    """Gradients [T, outputs, n, P] of each weight, a copy of which is used at each timestep."""
    copies, handles = {}, []
    for path in paths:
        module = net.get_submodule(path)
        copies[path] = [module.weight.detach().clone().requires_grad_() for _ in range(T)]
        if isinstance(module, nn.Conv2d):
            plain = functools.partial(nn.functional.conv2d, padding=1)
        else:
            plain = functools.partial(nn.functional.linear, bias=module.bias)

        def hook(module, inputs, out, plain=plain, weights=copies[path]):
            parts = zip(inputs[0].chunk(T), weights, strict=True)
            return torch.cat([plain(part, weight) for part, weight in parts])

        handles.append(module.register_forward_hook(hook))
    found = {path: np.zeros((T, 3, len(x), w[0].numel())) for path, w in copies.items()}
    for sample in range(len(x)):
        y = net(x[sample : sample + 1].expand(T, 1, *x.shape[1:]))[0]
        for output in range(3):
            for path, weights in copies.items():
                rows = torch.autograd.grad(y[output], weights, retain_graph=True)
                for step, row in enumerate(rows):
                    found[path][step, output, sample] = row.numpy().ravel()
    for handle in handles:
        handle.remove()
    return found


def test_the_blocks_add_up_to_the_kernel(measured):
    net, x, found = measured
    kernel = gram(net, x, T=T)
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    assert not found.shared
    assert found.blocks.shape == (T, T, N, N)
    np.testing.assert_array_equal(found.blocks, found.blocks.transpose(1, 0, 3, 2))
    assert set(found.traces) == set(kernel.layers)
    for name, part in kernel.layers.items():
        assert found.traces[name].sum() == pytest.approx(np.trace(part), rel=1e-9, abs=1e-14)
    assert sum(found.shares().values()) == pytest.approx(1)


def test_each_pair_of_steps_is_that_of_autograd(measured):
    net, x, found = measured
    paths = ("patch_embed.proj_conv", "block.0.attn.q_linear", "head")
    true = gradients_by_step(net, x, paths)
    for path, rows in true.items():
        traces = np.einsum("sonp,tonp->st", rows, rows)
        np.testing.assert_allclose(found.traces[f"{path}.weight"], traces, rtol=1e-9, atol=1e-14)


def test_steps_of_the_head_bias_are_equal(measured):
    _, _, found = measured
    np.testing.assert_allclose(found.traces["head.bias"], N * 3 / T**2)


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_a_small_budget_gives_the_same(measured, share):
    net, x, found = measured
    part = by_timestep(net, x, T=T, memory=share * found.bytes / 2**30)
    assert part.bytes <= share * found.bytes * (1 + 1e-9)
    np.testing.assert_allclose(part.blocks, found.blocks, rtol=1e-9, atol=1e-13)
    with pytest.raises(BudgetError):
        by_timestep(net, x, T=T, memory=1e-6)


def test_learned_leaks_belong_to_all_steps():
    net, x = network("spikingresformer_nano", input_shape=(1, 8, 8), num_classes=1, plif=True)
    found, kernel = by_timestep(net, x[:2], T=2), gram(net, x[:2], T=2)
    assert found.shared
    assert found.steps[-1] == "all"
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    leaks = [name for name in found.traces if name.endswith(".w")]
    assert leaks
    for name in leaks:
        assert np.count_nonzero(found.traces[name][:-1]) == 0


def test_token_networks_have_embeddings_for_all_steps():
    net = create_model("spikingbert_nano", seed=0, vocabulary=11).double().eval()
    x = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
    found = by_timestep(net, x, T=T)
    np.testing.assert_allclose(found.values, gram(net, x, T=T).values, rtol=1e-9)
    assert found.shared


def test_events_and_single_outputs(measured):
    net, x, _ = measured
    events = x * torch.linspace(0.5, 1.5, 2).double().view(2, 1, 1, 1, 1)
    found = by_timestep(net, events, outputs=1)
    np.testing.assert_allclose(found.values, gram(net, events, outputs=1).values, rtol=1e-10)


def test_networks_without_time_have_one_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    found = by_timestep(net, x, readout=lambda model, x, T: model(x))
    assert found.steps == ("1",)
    assert found.shares() == {"1": 1.0}


def test_the_result_is_shown_and_stored(measured):
    _, _, found = measured
    assert "Share of each timestep" in str(found)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "blocks" not in data
    assert data["shares"] == pytest.approx(found.shares())
    assert found.plot().get_xlabel() == "timestep"
    with pytest.raises(ConfigError, match="'trace' or an index"):
        by_timestep(*measured[:2], outputs="full")
