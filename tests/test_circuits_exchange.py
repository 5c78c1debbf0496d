from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spikedim.circuits import (
    BernoulliCode,
    IntegrateFireCode,
    LeakyCode,
    Product,
    RaceSoftmax,
    ShuntingSoftmax,
    SpikingAttention,
    SubtractiveSoftmax,
    VetoExponential,
    from_nir,
    to_nir,
    write_nir,
)
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import create_model
from spikedim.neurons import LIF, LIFParams, lif

nir = pytest.importorskip("nir", reason="the package nir is not installed")

NEURONS = {
    "hard": LIFParams(),
    "hard, delayed, slow": LIFParams(beta=0.9, delayed_reset=True),
    "hard, gain 1": LIFParams(beta=0.75, decay_input=False, threshold=1.5),
    "hard, reset to -0.2": LIFParams(beta=0.6, v_reset=-0.2),
    "hard, no leak": LIFParams(beta=1.0, decay_input=False, delayed_reset=True),
    "soft, published": LIFParams(reset="soft", delayed_reset=True, decay_input=False),
    "soft, gain 1 - beta": LIFParams(beta=0.75, reset="soft"),
    "soft, no leak": LIFParams(beta=1.0, reset="soft", decay_input=False),
    "no reset": LIFParams(beta=0.5, reset="none"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(params: LIFParams, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 30), LIF(params), nn.Linear(30, 10, bias=False), LIF(params))
    for layer in (net[0], net[2]):
        layer.weight.data.mul_(6)
    return net.requires_grad_(False)


def convolutional(params: LIFParams) -> nn.Sequential:
    """For frames [1, 8, 8]; evaluated one batch of steps at a time by :func:`by_step`."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        LIF(params),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 10), LIF(params)),
    )
    net[0].weight.data.mul_(4)
    net[1].running_mean.uniform_(-0.2, 0.2)
    net[1].running_var.uniform_(0.02, 0.1)
    net[6][0].weight.data.mul_(8)
    return net.eval().requires_grad_(False)


def by_step(net: nn.Module, x: Tensor) -> Tensor:
    """Layers on [T, B, ...]: those without time see T·B samples."""
    if isinstance(net, nn.Sequential):
        for layer in net:
            x = by_step(layer, x)
        return x
    return net(x) if isinstance(net, LIF) else net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def continuous(layer: LIF) -> LIF:
    layer.activation = lambda current, params: current
    return layer


def drive(circuit: SubtractiveSoftmax, z: Tensor) -> Tensor:
    return circuit.scale * (z - z.amax(-1, keepdim=True)).exp()


def through_file(graph, folder):
    return from_nir(write_nir(folder / "graph.nir", graph))


@pytest.mark.parametrize("params", NEURONS.values(), ids=NEURONS)
def test_layers_return_with_the_same_spikes(params, tmp_path):
    net = dense(params)
    x = 2 * torch.rand(40, 8, 20, generator=seeded())
    expected = net(x)
    assert 0.001 < expected.mean() < 0.999
    assert torch.equal(through_file(to_nir(net, (20,)), tmp_path)(x), expected)


def test_convolutions_return_with_batch_norm_folded(tmp_path):
    net = convolutional(LIFParams())
    x = torch.rand(12, 5, 1, 8, 8, generator=seeded())
    expected = by_step(net, x)
    assert 0.02 < expected.mean() < 0.9
    network = through_file(to_nir(net, (1, 8, 8)), tmp_path)
    assert "batchnorm2d" not in "".join(network.graph.nodes)
    assert torch.equal(network(x), expected)


def test_a_layer_used_twice_is_written_twice():
    torch.manual_seed(0)
    twice, neuron = nn.Linear(6, 6), LIF(LIFParams(threshold=0.3))
    twice.weight.data.mul_(3)
    net = nn.Sequential(twice, neuron, twice, neuron).requires_grad_(False)
    x = 2 * torch.rand(20, 3, 6, generator=seeded())
    network = from_nir(to_nir(net, (6,)))
    assert len(network.order) == 6
    assert 0 < net(x).mean() < 1
    assert torch.equal(network(x), net(x))


def test_code_of_its_own_is_not_taken_for_the_layer_it_derives_from():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(ModelError, match="Residual: a forward of their own"):
        to_nir(nn.Sequential(Residual(nn.Linear(4, 4))), (4,))


def test_a_convolution_over_one_axis_and_a_learnable_layer_by_neuron():
    torch.manual_seed(0)
    beta, threshold = torch.rand(6, 9), 0.2 + torch.rand(6, 9)
    params = LIFParams(beta, threshold, reset="soft", delayed_reset=True, decay_input=False)
    net = nn.Sequential(nn.Conv1d(2, 6, 3, stride=2), LIF(params)).requires_grad_(False)
    x = 3 * torch.rand(30, 4, 2, 19, generator=seeded())
    expected = by_step(net, x)
    assert expected.mean() > 0.05
    assert torch.equal(from_nir(to_nir(net, (2, 19)))(x), expected)


@pytest.mark.parametrize(
    "circuit", [IntegrateFireCode(), LeakyCode(), LeakyCode(0.3), LeakyCode(0.9)], ids=repr
)
def test_codes_return_bit_for_bit(circuit, tmp_path):
    x = torch.rand(50, dtype=torch.float64, generator=seeded())
    T = 500
    found = through_file(to_nir(circuit, (50,)), tmp_path)(x.expand(T, 50))
    assert torch.equal(found.mean(0), circuit.run(x, T=T, generator=seeded()).output[0])
    neuron = LIFParams(
        getattr(circuit, "beta", 1.0), reset="soft", delayed_reset=True, decay_input=False
    )
    assert torch.equal(found, lif(x.expand(T, 50), neuron)[0])


@given(
    n=st.sampled_from((2, 4, 8, 16)),
    scale=st.sampled_from((0.5, 1.0, 3.0)),
    beta=st.sampled_from((1.0, 0.75)),
    seed=st.integers(0, 2**16),
)
def test_the_subtractive_softmax_returns_exactly_where_one_over_n_is_exact(n, scale, beta, seed):
    circuit = SubtractiveSoftmax(scale, beta)
    z = torch.randn(n, dtype=torch.float64, generator=seeded(seed))
    count = from_nir(to_nir(circuit, (n,)))(drive(circuit, z).expand(64, n)).sum(0)
    ran = circuit.run(z, T=64, generator=seeded())
    assert torch.equal(count / count.sum().clamp(min=1), ran.output[0])
    assert 2 * count.sum() == ran.spikes[0]


def test_for_other_n_a_tie_may_break_the_other_way_by_a_spike():
    circuit, T = SubtractiveSoftmax(), 256
    for n in (3, 5, 6, 7, 10, 12):
        z = torch.randn(n, dtype=torch.float64, generator=seeded(n))
        count = from_nir(to_nir(circuit, (n,)))(drive(circuit, z).expand(T, n)).sum(0)
        ran = circuit.run(z, T=T, generator=seeded())
        expected = ran.output[0] * ran.spikes[0] / 2
        assert (count - expected).abs().max() <= 1 + 1e-9


def test_files_carry_arrays_by_neuron_without_a_batch_and_the_step(tmp_path):
    graph = nir.read(write_nir(tmp_path / "a.nir", to_nir(dense(LIFParams()), (20,), dt=1e-3)))
    layer = graph.nodes["lif_1"]
    for values in (layer.tau, layer.r, layer.v_leak, layer.v_threshold, layer.v_reset):
        assert values.shape == (30,)
    assert np.allclose(layer.tau, 2e-3)
    assert np.allclose(layer.r, 1)
    assert tuple(graph.input_type["input"]) == (20,)
    assert from_nir(graph).dt == 1e-3
    assert from_nir(graph, dt=1e-4).dt == 1e-4


@pytest.mark.parametrize(
    ("circuit", "lacks"),
    [
        (BernoulliCode(), "Bernoulli source"),
        (Product(), "coincidence"),
        (VetoExponential(), "Poisson source"),
        (RaceSoftmax(), "first-to-fire"),
        (ShuntingSoftmax(), "conductance"),
        (SpikingAttention(), "coincidence"),
    ],
)
def test_circuits_beyond_nir_are_refused_with_the_node_that_lacks(circuit, lacks):
    with pytest.raises(ModelError, match=lacks):
        to_nir(circuit, (4,))


def test_a_transformer_is_refused_with_every_node_that_nir_lacks():
    with pytest.raises(ModelError) as caught:
        to_nir(create_model("spikformer_nano", num_classes=10, input_shape=(1, 8, 8)), (1, 8, 8))
    for lacking in ("block.0.attn.product", "no product", "patch_embed.maxpool", "no maximum",
                    "LayerNorm", "Attention"):  # fmt: skip
        assert lacking in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "shape", "says"),
    [
        ((LIF(LIFParams(refractory=2)),), (4,), "lif_0 .* no refractory"),
        ((LIF(LIFParams(smooth=True)),), (4,), "smooth"),
        ((LIF(LIFParams(v_reset=0.1, delayed_reset=True)),), (4,), "after the leak"),
        ((LIF(LIFParams(torch.tensor([1.0, 0.5]), decay_input=False)),), (2,), "do not"),
        ((continuous(LIF()),), (4,), "continuous"),
        ((nn.BatchNorm1d(4),), (4,), "no linear layer"),
        ((nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)), (4,), "no statistics"),
        ((nn.Linear(4, 3),), (2, 4), "vectors only"),
        ((nn.Linear(4, 3),), (5,), "does not fit"),
        ((nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),), (1, 8, 8), "circular"),
        ((nn.Conv2d(2, 2, 3, groups=2),), (2, 8, 8), "one group"),
        ((nn.Conv2d(1, 2, (3, 5)), LIF()), (1, 8, 8), "these shapes"),
        ((nn.AvgPool2d(3, ceil_mode=True),), (1, 8, 8), "full windows"),
        ((nn.Flatten(0),), (4,), "batch"),
        ((nn.Linear(4, 4), nn.MaxPool1d(2), nn.GELU()), (4,), "MaxPool1d.*no maximum.*GELU"),
    ],
)
def test_layers_beyond_nir_are_named(layers, shape, says):
    with pytest.raises(ModelError, match=says):
        to_nir(nn.Sequential(*layers), shape)


def test_mistakes_are_one_clear_line(tmp_path, monkeypatch):
    code = IntegrateFireCode()
    with pytest.raises(ConfigError, match="positive sizes"):
        to_nir(code, (0,))
    with pytest.raises(ConfigError, match="positive sizes"):
        to_nir(code, 3)
    with pytest.raises(ConfigError, match="dt=inf"):
        to_nir(code, (3,), dt=float("inf"))
    with pytest.raises(ConfigError, match="one row"):
        to_nir(SubtractiveSoftmax(), (2, 3))
    with pytest.raises(ConfigError, match=r"\[T, ...\] followed by \(4,\)"):
        from_nir(to_nir(code, (4,)))(torch.rand(10, 3))
    (tmp_path / "no.nir").write_text("not HDF5")
    with pytest.raises(DataError, match=r"no\.nir"):
        from_nir(tmp_path / "no.nir")
    with pytest.raises(ConfigError, match="dt=0"):
        from_nir(to_nir(code, (4,)), dt=0.0)
    one = np.ones(3)
    leaky = nir.LIF(tau=one, r=one, v_leak=one, v_threshold=one)
    with pytest.raises(ModelError, match="v_leak"):
        from_nir(nir.NIRGraph.from_list(leaky))(torch.rand(5, 3))
    cuba = nir.CubaLI(tau_syn=one, tau_mem=one, r=one, v_leak=one)
    with pytest.raises(ModelError, match=r"cubali \(CubaLI\)"):
        from_nir(nir.NIRGraph.from_list(cuba))
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(ConfigError, match=r"spikedim\[nir\]"):
        to_nir(code, (4,))


# Other simulators. Optional: these run where the packages are installed.


def stepped(module, x: Tensor) -> Tensor:
    """Outputs of a module (x, state) -> (y, state), step by step."""
    state, outputs = None, []
    for x_t in x:
        y, state = module(x_t, state)
        outputs.append(y.detach())
    return torch.stack(outputs)


@pytest.fixture(scope="module")
def spikingjelly():
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    name = "spikingjelly.activation_based.nir_exchange.from_nir"
    return pytest.importorskip(name, reason="SpikingJelly 2 is not installed")


@pytest.mark.parametrize("name", [n for n in NEURONS if n.startswith("hard") and "-0.2" not in n])
def test_spikingjelly_imports_hard_reset_layers_with_the_same_spikes(name, spikingjelly):
    net = dense(NEURONS[name])
    x = 2 * torch.rand(64, 16, 20, generator=seeded())
    assert torch.equal(stepped(spikingjelly.import_from_nir(to_nir(net, (20,))), x), net(x))


def test_spikingjelly_imports_a_convolutional_network_with_the_same_spikes(spikingjelly):
    net = convolutional(LIFParams())
    x = torch.rand(16, 5, 1, 8, 8, generator=seeded())
    network = spikingjelly.import_from_nir(to_nir(net, (1, 8, 8)))
    assert torch.equal(stepped(network, x), by_step(net, x))


LEAKY = [name for name in NEURONS if name.startswith("hard") and "-0.2" not in name
         and "no leak" not in name]  # fmt: skip


@pytest.mark.parametrize("name", LEAKY)
def test_snntorch_imports_leaky_layers_with_the_same_spikes(name):
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    snntorch = pytest.importorskip("snntorch.import_nir", reason="snnTorch is not installed")
    net = dense(NEURONS[name])
    x = 2 * torch.rand(64, 16, 20, generator=seeded())
    module = snntorch.import_from_nir(to_nir(net, (20,)))
    found = stepped(lambda x, state: module(x) if state is None else module(x, state), x)
    assert torch.equal(found, net(x))


@pytest.mark.parametrize("name", LEAKY)
def test_norse_imports_leaky_layers_with_the_same_spikes_unless_it_has_to_read_r(name):
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    reason = "Norse is not installed"
    norse = pytest.importorskip("norse.torch.utils.import_nir", reason=reason)
    params = NEURONS[name]
    net = dense(params)
    x = 2 * torch.rand(64, 16, 20, generator=seeded())
    found = stepped(norse.from_nir(to_nir(net, (20,)), dt=1e-4), x)
    differ = float((found != net(x)).float().mean())
    assert differ == 0 if params.decay_input else 0.05 < differ < 0.5


class Integrator(nn.Module):
    """nir.I by SpikingJelly's integrate-and-fire neuron, which never reaches its threshold."""

    def __init__(self, node) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron

        assert np.allclose(node.r, 1e4)
        self.neuron = neuron.IFNode(v_threshold=float("inf"))

    def forward(self, x, state=None):
        self.neuron.v = torch.zeros_like(x) if state is None else state
        self.neuron(x)
        return self.neuron.v, self.neuron.v


class Elementwise(nn.Module):
    def __init__(self, function, values) -> None:
        super().__init__()
        self.function, self.values = function, torch.from_numpy(values)

    def forward(self, x):
        return self.function(x, self.values).to(x)


@pytest.mark.parametrize("n", [4, 8, 10])
@pytest.mark.parametrize("circuit", [IntegrateFireCode(), SubtractiveSoftmax()], ids=type)
def test_codes_and_softmax_run_in_spikingjelly_through_nirtorch(circuit, n, spikingjelly):
    import nirtorch

    mapping = spikingjelly._NodeMapper(dt=1e-4).map_dict
    mapping |= {
        nir.I: Integrator,
        nir.Threshold: lambda node: Elementwise(torch.ge, node.threshold),
        nir.Scale: lambda node: Elementwise(torch.mul, node.scale),
    }
    graph = to_nir(circuit, (n,))
    module = nirtorch.nir_to_torch(graph, mapping, dtype=torch.float64)
    z = torch.randn(n, dtype=torch.float64, generator=seeded(n))
    x = (z.sigmoid() if n == 4 else z.sub(z.max()).exp()).expand(1000, n)
    found = stepped(module, x)
    assert found.sum() > 500
    assert torch.equal(found, from_nir(graph)(x))
