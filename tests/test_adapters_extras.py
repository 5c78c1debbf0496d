"""Parity with the real libraries; `make test-extras` installs them in environments of their own.

Every test compares a network that runs in its own library with the same network wrapped by us.
"""

import copy
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spikedim.adapters import from_spikingjelly, to_spikingjelly, wrap
from spikedim.errors import ModelError
from spikedim.models import calibrate_batchnorm, create_model, representations
from spikedim.neurons import LIF, record
from spikedim.profiling import profile


def library(name):
    """The library, or a skip that says what is missing."""
    try:
        version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed: run make test-extras")


@pytest.fixture
def sj():
    library("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    return SimpleNamespace(functional=functional, layer=layer, neuron=neuron, surrogate=surrogate)


@pytest.fixture
def sj2(sj):
    if version("spikingjelly").startswith("0."):
        pytest.skip("the model zoo with transformers came with SpikingJelly 2.0")
    from spikingjelly.activation_based.model import qkformer, spike_driven_transformer, spikformer

    sj.Spikformer, sj.QKFormer = spikformer.Spikformer, qkformer.QKFormer
    sj.SpikeDriven = spike_driven_transformer.SpikeDrivenTransformer
    return sj


def compare(network, run, model, x):
    """Outputs bit for bit, gradients of a random projection to rounding."""
    names = list(network.state_dict())
    parameters = dict(network.named_parameters())
    expected = run(network, x)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected)
    wanted = torch.autograd.grad(
        (expected * weights).sum(), list(parameters.values()), allow_unused=True
    )
    out = model.steps(x)
    assert torch.equal(out, expected)
    assert list(model.state_dict()) == names
    own = dict(model.named_parameters())
    assert all(own[name] is parameter for name, parameter in parameters.items())
    found = torch.autograd.grad(
        (out * weights).sum(), [own[n] for n in parameters], allow_unused=True
    )
    for a, b in zip(found, wanted, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-12))
    assert expected.abs().sum() > 0


def events(shape, dtype, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).to(dtype)


SPIKINGJELLY = {
    "lif": lambda n, s: n.LIFNode(tau=2.0, detach_reset=True),
    "lif not detached": lambda n, s: n.LIFNode(tau=2.0, surrogate_function=s.ATan()),
    "soft": lambda n, s: n.LIFNode(tau=3.0, v_reset=None),
    "other rest": lambda n, s: n.LIFNode(tau=1.7, v_reset=-0.3, v_threshold=0.8, decay_input=False),
    "if": lambda n, s: n.IFNode(v_reset=None),
    "plif": lambda n, s: n.ParametricLIFNode(init_tau=2.5),
    "kept eif": lambda n, s: n.EIFNode(),
    "kept klif": lambda n, s: n.KLIFNode(),
}


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", SPIKINGJELLY)
def test_spikingjelly_neurons(sj, kind, mode, dtype):
    torch.manual_seed(0)

    def node():
        return SPIKINGJELLY[kind](sj.neuron, sj.surrogate)

    network = nn.Sequential(
        sj.layer.Conv2d(3, 8, 3, padding=1),
        node(),
        sj.layer.MaxPool2d(2),
        sj.layer.Conv2d(8, 8, 3),
        node(),
        sj.layer.Flatten(),
        sj.layer.Linear(72, 7),
    ).to(dtype)
    sj.functional.set_step_mode(network, mode)

    def run(network, x):
        sj.functional.reset_net(network)
        out = network(x) if mode == "m" else torch.stack([network(t) for t in x])
        sj.functional.reset_net(network)
        return out

    x = events((6, 5, 3, 10, 10), dtype)
    model = wrap(network, input_shape=(3, 10, 10), layout="TB" if mode == "m" else "step")
    assert bool(model.kept) == kind.startswith("kept")
    compare(network, run, model, x)
    with record(model) as recording, torch.no_grad():
        model.steps(x)
    assert {name: s.shape for name, s in recording.spikes.items()} == {
        "1": (6, 5, 10, 10, 8),
        "4": (6, 5, 3, 3, 8),
    }


@pytest.mark.parametrize("name", ["Sigmoid", "ATan", "SoftSign", "PiecewiseQuadratic", "Erf"])
def test_spikingjelly_surrogates(sj, name):
    function = getattr(sj.surrogate, name)(alpha=1.5)
    node = sj.neuron.IFNode(surrogate_function=function, step_mode="m")
    model = wrap(nn.Sequential(nn.Flatten(2), nn.Linear(4, 2), node), input_shape=(1, 2, 2))
    x = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(function(x).sum(), x)
    found = model.config.neuron.surrogate.derivative(x.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


SNNTORCH = {
    "subtract": {},
    "zero": {"reset_mechanism": "zero"},
    "none": {"reset_mechanism": "none"},
    "zero at once": {"reset_mechanism": "zero", "reset_delay": False},
    "learned": {"learn_beta": True, "learn_threshold": True, "threshold": 0.7},
    "kept: subtract at once": {"reset_delay": False},
    "kept: inhibition": {"inhibition": True, "threshold": 0.1},
}


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable")
@pytest.mark.parametrize("kind", SNNTORCH)
def test_snntorch_leaky(kind):
    library("snntorch")
    import snntorch
    from snntorch import surrogate, utils

    torch.manual_seed(0)
    options = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid(slope=10), **SNNTORCH[kind]}
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 30),
        snntorch.Leaky(init_hidden=True, **options),
        nn.Linear(30, 7),
        snntorch.Leaky(init_hidden=True, output=True, **options),
    )

    def run(network, x):
        utils.reset(network)
        return torch.stack([network(t)[0] for t in x])

    model = wrap(network, input_shape=(1, 8, 8), layout="step")
    assert bool(model.kept) == kind.startswith("kept")
    compare(network, run, model, events((6, 5, 1, 8, 8), torch.float32, scale=5.0))


def test_snntorch_network_that_owns_its_loop():
    library("snntorch")
    import snntorch

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_steps = 25
            self.fc1, self.fc2 = nn.Linear(64, 30), nn.Linear(30, 7)
            self.lif1, self.lif2 = snntorch.Leaky(beta=0.8), snntorch.Leaky(beta=0.8)

        def forward(self, x):
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.reset_mem()
            spikes, potentials = [], []
            for _ in range(self.num_steps):
                s, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
                s, mem2 = self.lif2(self.fc2(s), mem2)
                spikes.append(s)
                potentials.append(mem2)
            return torch.stack(spikes), torch.stack(potentials)

    torch.manual_seed(0)
    network = Network()
    x = events((5, 1, 8, 8), torch.float32)
    for output, expected in enumerate(network(x)):
        model = wrap(network, input_shape=(1, 8, 8), layout="static", output=output)
        assert torch.equal(model.steps(x, 25), expected)
        assert torch.equal(model.steps(x, 3), expected[:3])


def norse_networks():
    library("norse")
    import norse.torch as norse
    from norse.torch.functional.reset import reset_subtract

    leaks = norse.LIFParameters(
        v_th=torch.tensor(0.5), v_leak=torch.tensor(0.1), v_reset=torch.tensor(-0.2)
    )
    subtract = norse.LIFBoxParameters(v_th=torch.tensor(0.1), reset_method=reset_subtract)
    return {
        "LIF": (2, norse.LIF(), norse.LIF(), "TB"),
        "LIF, other potentials": (2, norse.LIF(leaks), norse.LI(), "TB"),
        "LIFCell": (1, norse.LIFCell(), norse.LICell(), "step"),
        "LIFBoxCell": (1, norse.LIFBoxCell(), norse.LIFBoxCell(subtract), "step"),
        "IAF": (2, norse.IAF(), norse.IAF(), "TB"),
        "kept LIFRecurrent": (2, norse.LIFRecurrent(30, 30), norse.LI(), "TB"),
    }


@pytest.mark.parametrize(
    "kind",
    ["LIF", "LIF, other potentials", "LIFCell", "LIFBoxCell", "IAF", "kept LIFRecurrent"],
)
def test_norse_neurons(kind):
    torch.manual_seed(0)
    flatten, first, last, layout = norse_networks()[kind]
    import norse.torch as norse

    layers = (nn.Flatten(flatten), nn.Linear(64, 30), first, nn.Linear(30, 7), last)
    network = norse.SequentialState(*layers)

    def run(network, x):
        if layout == "TB":
            return network(x)[0]
        state, out = None, []
        for x_t in x:
            y, state = network(x_t, state)
            out.append(y)
        return torch.stack(out)

    model = wrap(network, input_shape=(1, 8, 8), layout=layout)
    assert bool(model.kept) == kind.startswith("kept")
    compare(network, run, model, events((12, 5, 1, 8, 8), torch.float32, scale=8.0))


# -- spiking transformers -------------------------------------------------------------------


def small(name, **config):
    """A network in double precision that spikes everywhere, and an input of its kind."""
    model = create_model(name, seed=0, embed_dim=48, num_heads=4, num_classes=10, **config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.8, 1.6, generator=generator)
                module.bias.normal_(0.0, 0.1, generator=generator)
            elif path != "head" and getattr(module, "bias", None) is not None:
                module.bias.normal_(0.0, 0.05, generator=generator)
    x = torch.rand(6, *model.input_shape, generator=generator).double()
    calibrate_batchnorm(model, [x], 4)
    return model, x


def spikes_of(model, run):
    """Spikes of every neuron by path, whatever library it is of."""
    found, handles = {}, []
    for path, module in model.named_modules():
        if isinstance(module, LIF) or type(module).__name__ == "LIFNode":

            def keep(module, inputs, output, path=path):
                found[path] = output.detach()

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        run(model)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_spikformer_spikes_are_those_of_spikingjellys_neurons(sj, dtype):
    model, x = small("spikformer_tiny", input_shape=(3, 16, 16), depth=2)
    model, x = model.to(dtype), x.to(dtype)
    theirs = copy.deepcopy(model)
    for parent in list(theirs.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF):
                p = child.params
                node = sj.neuron.LIFNode(
                    tau=p.tau, v_threshold=p.threshold, detach_reset=True, step_mode="m"
                )
                setattr(parent, name, node)
    adapted = wrap(theirs, input_shape=model.input_shape, layout="TB")
    sequence = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
    T = 4
    own = spikes_of(model, lambda m: m.steps(sequence, T))
    for other in (
        spikes_of(theirs, lambda m: m.steps(sequence, T)),
        spikes_of(adapted, lambda m: m.steps(sequence, T)),
    ):
        assert other.keys() == own.keys()
        assert all(torch.equal(other[path], spikes) for path, spikes in own.items())
    assert len(own) == 19
    assert all(spikes.any() for spikes in own.values())


ZOO = {
    "spikformer": (
        "spikformer_tiny",
        {"input_shape": (3, 16, 16), "depth": 2, "pools": (False, False, True, True)},
        lambda sj: sj.Spikformer(
            img_size_h=16, img_size_w=16, patch_size=4, num_classes=10, embed_dims=48, num_heads=4,
            depths=2,
        ),
    ),
    "qkformer": (
        "qkformer_10_384_imagenet",
        {"input_shape": (3, 32, 32), "depth": 5},
        lambda sj: sj.QKFormer(
            num_classes=10, embed_dims=48, num_heads=(4, 4, 4), depths=(1, 2, 2)
        ),
    ),
    "spike-driven": (
        "spike_driven_nano",
        {"input_shape": (3, 16, 16), "depth": 2, "pools": (False, True, True, False),
         "mlp_ratio": 4.0},
        lambda sj: sj.SpikeDriven(
            num_classes=10, embed_dims=48, num_heads=4, depths=2, pooling_stat="0110"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("family", ZOO)
def test_weights_give_the_same_logits_in_spikingjellys_model_zoo(sj2, family, T):
    name, config, make = ZOO[family]
    model, x = small(name, **config)
    theirs = make(sj2).double().eval()
    theirs.load_state_dict(to_spikingjelly(model))
    sequence = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
    with torch.no_grad():
        expected, own = theirs(sequence), model.steps(x, T)
    sj2.functional.reset_net(theirs)
    own = own.mean(0) if expected.ndim == 2 else own
    if (family, T) == ("spikformer", 4):  # it pools currents where the released one pools spikes
        assert (own - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)
    adapted = wrap(theirs, input_shape=model.input_shape)
    with torch.no_grad():
        out = adapted.steps(x, T)
    torch.testing.assert_close(out[-1], expected[-1] if expected.ndim == 3 else expected)
    other = create_model(name, seed=1, embed_dim=48, num_heads=4, num_classes=10, **config).double()
    other.load_state_dict(from_spikingjelly(other, theirs.state_dict()))
    with torch.no_grad():
        back = other.eval().steps(x, T)
    torch.testing.assert_close(back, model.steps(x, T), rtol=0, atol=1e-12)


def test_measurements_take_a_wrapped_network(sj):
    torch.manual_seed(0)
    network = nn.Sequential(
        sj.layer.Conv2d(1, 8, 3, padding=1),
        sj.layer.BatchNorm2d(8),
        sj.neuron.LIFNode(tau=2.0, detach_reset=True),
        sj.layer.Flatten(),
        sj.layer.Linear(512, 10),
    )
    sj.functional.set_step_mode(network, "m")
    model = wrap(network, input_shape=(1, 8, 8), num_classes=10)
    x = torch.rand(12, 1, 8, 8)
    calibrate_batchnorm(model, [x], 4)
    found = representations(model, x, 4)
    assert found["2"].shape == (12, 512)
    assert representations(model, x, 4, tokens="mean")["2"].shape == (12, 8)
    counted = profile(model, x, 4)
    assert counted.spikes_per_sample.value == pytest.approx(4 * found["2"].sum() / 12)
    tangent = torch.func.vmap(
        torch.func.jacrev(lambda p, s: torch.func.functional_call(model, p, (s[None], 2))[0]),
        in_dims=(None, 0),
    )
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    assert tangent(parameters, x)["0.weight"].shape == (12, 10, 8, 1, 3, 3)
    assert all(p.grad_fn is None for p in model.buffers())


def test_a_subclass_is_refused(sj):
    class Mine(sj.neuron.LIFNode):
        pass

    network = nn.Sequential(nn.Flatten(2), Mine(step_mode="m"), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"Mine at '1' extends a neuron of spikingjelly"):
        wrap(network, input_shape=(1, 2, 2))
