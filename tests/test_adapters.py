"""Networks of other libraries under our contract, with stand-ins for the libraries.

The stand-ins are written from the libraries' equations, step by step, and know nothing of ours;
test_adapters_extras.py runs the same comparisons with the libraries themselves.
"""

import math
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from own_files import THRESHOLD
from spikedim.adapters import AdaptedLIF, from_spikingjelly, register_neuron, to_spikingjelly, wrap
from spikedim.adapters.comparison import difference
from spikedim.adapters.surrogates import identify
from spikedim.cli import main
from spikedim.errors import CheckpointError, ConfigError, ModelError, SpikedimWarning
from spikedim.models import (
    calibrate_batchnorm,
    create_model,
    load_checkpoint,
    model_entry,
    representations,
    save_checkpoint,
)
from spikedim.neurons import SURROGATES, LIFParams, Surrogate, record, spike, streaming, surrogate
from spikedim.profiling import profile

SHAPE = (2, 6, 6)

# -- stand-ins --------------------------------------------------------------------------------


class Spike:
    """A surrogate object with a sharpness."""

    def __init__(self, kind="sigmoid", alpha=4.0):
        self.alpha, self._surrogate = alpha, Surrogate(kind, alpha)

    def __call__(self, x):
        return spike(x, self._surrogate)


class BaseNode(nn.Module):
    """SpikingJelly's neurons: a state that lasts until reset(), two step modes."""

    def __init__(self, step_mode="m", v_threshold=1.0, v_reset=0.0, detach_reset=True, **more):
        super().__init__()
        self.step_mode, self.v_threshold, self.v_reset = step_mode, v_threshold, v_reset
        self.detach_reset, self.surrogate_function = detach_reset, Spike()
        for name, value in more.items():
            setattr(self, name, value)
        self.reset()

    def reset(self):
        self.v = self.v_reset or 0.0

    def charge(self, x):
        raise NotImplementedError

    def forward(self, x):
        if self.step_mode == "s":
            return self.step(x)
        return torch.stack([self.step(x_t) for x_t in x])

    def step(self, x):
        v = self.charge(x)
        s = self.surrogate_function(v - self.v_threshold)
        z = s.detach() if self.detach_reset else s
        self.v = (
            v - z * self.v_threshold if self.v_reset is None else (1 - z) * v + z * self.v_reset
        )
        return s


class IFNode(BaseNode):
    def charge(self, x):
        return self.v + x


class LIFNode(BaseNode):
    tau, decay_input = 2.0, True

    def charge(self, x):
        rest = self.v_reset or 0.0
        if self.decay_input:
            return self.v + (x - (self.v - rest)) / self.tau
        return self.v - (self.v - rest) / self.tau + x


class ParametricLIFNode(BaseNode):
    def __init__(self, **options):
        super().__init__(**options)
        self.w, self.decay_input = nn.Parameter(torch.tensor(0.3)), True

    def charge(self, x):
        return self.v + (x - self.v) * self.w.sigmoid()


class QIFNode(BaseNode):
    def charge(self, x):
        return self.v + 0.5 * (x + self.v * (self.v - 0.8))


class Leaky(nn.Module):
    """snnTorch's neuron: one step per call, silent at threshold, reset in the next step."""

    def __init__(self, beta=0.9, threshold=1.0, reset_mechanism="subtract", **more):
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.register_buffer("graded_spikes_factor", torch.tensor(1.0))
        self.register_buffer("mem", torch.zeros(0), False)
        self.reset_mechanism, self.reset_delay = reset_mechanism, True
        self.init_hidden, self.output = True, False
        self.inhibition = self.state_quant = self.surrogate_disable = False
        self.spike_grad = _fast_sigmoid()
        for name, value in more.items():
            setattr(self, name, value)

    def reset_mem(self):
        self.mem = torch.zeros(0)
        return self.mem

    def forward(self, x, mem=None):
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        before = (self.mem > self.threshold).to(x)
        if self.reset_mechanism == "zero":
            self.mem = self.beta * (1 - before) * self.mem + x
        else:
            self.mem = self.beta * self.mem + x - before * self.threshold
        s = self.spike_grad(self.mem - self.threshold)
        return s if self.init_hidden else (s, self.mem)


def _fast_sigmoid(slope=10):
    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad / (slope * x.abs() + 1) ** 2

    return Gradient.apply


class SNN(nn.Module):
    """Norse's sequence modules: explicit state, synaptic current, silent at threshold."""

    def __init__(self, **p):
        super().__init__()
        self.dt, defaults = 0.001, {"tau_syn_inv": 200.0, "tau_mem_inv": 100.0, "v_leak": 0.0}
        defaults |= {"v_th": 1.0, "v_reset": 0.0, "method": "super", "alpha": 1.0}
        self.p = SimpleNamespace(**(defaults | p))

    def forward(self, x, state=None):
        p, out = self.p, []
        v, i = (torch.as_tensor(p.v_leak), torch.zeros(())) if state is None else state
        for x_t in x:
            i = i + x_t
            v = v + self.dt * p.tau_mem_inv * ((p.v_leak - v) + i)
            i = i - self.dt * p.tau_syn_inv * i
            z = _fast_sigmoid(1)(v - p.v_th)
            v = (1 - z) * v + z * p.v_reset
            out.append(z)
        return torch.stack(out), (v, i)


class LIF(SNN):
    pass


for _cls in (BaseNode, IFNode, LIFNode, ParametricLIFNode, QIFNode):
    _cls.__module__ = "spikingjelly.activation_based.neuron.lif"
Leaky.__module__ = "snntorch._neurons.leaky"
SNN.__module__ = LIF.__module__ = "norse.torch.module.lif"


@pytest.fixture(autouse=True)
def norse_threshold(monkeypatch):
    """Where Norse keeps its surrogates."""
    names = ("norse", "norse.torch", "norse.torch.functional", "norse.torch.functional.threshold")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].threshold = lambda x, method, alpha: _fast_sigmoid(1)(x)


class Folded(nn.Module):
    """Time and batch as one axis for a layer of torch."""

    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class OneByOne(nn.Sequential):
    """A network called with one timestep."""


def network(first, second=None, classes=5):
    """Convolution, neurons, read-out; in float64 so that rounding decides nothing."""
    torch.manual_seed(0)
    layers = [Folded(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)), first, nn.Flatten(2)]
    if second is not None:
        layers += [nn.Linear(144, 8), second]
    return nn.Sequential(*layers, nn.Linear(8 if second is not None else 144, classes)).double()


def stepwise(neuron, classes=5):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), neuron, nn.Flatten(), nn.Linear(144, classes)]
    return nn.Sequential(*layers).double()


def reset(net):
    for module in net.modules():
        for name in ("reset", "reset_mem"):
            if hasattr(module, name):
                getattr(module, name)()


def events(T=7, B=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(T, B, *SHAPE, dtype=torch.float64, generator=generator)


def assert_same(net, run, model):
    """Output and gradients of the wrapped network are those of the original."""
    x = events()
    reset(net)
    expected = run(net.eval(), x)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    names, parameters = zip(*net.named_parameters(), strict=True)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    out = model.eval().steps(x)
    assert torch.equal(out, model.steps(x)), "the second call started from rest"
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    own = dict(model.named_parameters())
    assert all(own[name] is parameter for name, parameter in zip(names, parameters, strict=True))
    found = torch.autograd.grad((out * weights).sum(), [own[name] for name in names])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert list(model.state_dict()) == list(net.state_dict())


# -- neurons ------------------------------------------------------------------------------------

NEURONS = {
    "lif": lambda mode: LIFNode(step_mode=mode),
    "gradient through the reset": lambda mode: LIFNode(step_mode=mode, detach_reset=False),
    "soft": lambda mode: LIFNode(step_mode=mode, v_reset=None, tau=3.0),
    "other rest": lambda mode: LIFNode(
        step_mode=mode, v_reset=-0.3, v_threshold=0.8, decay_input=False, tau=1.6
    ),
    "if": lambda mode: IFNode(step_mode=mode, v_reset=None),
    "plif": lambda mode: ParametricLIFNode(step_mode=mode),
    "kept": lambda mode: QIFNode(step_mode=mode),
}


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("kind", NEURONS)
def test_spikingjelly_neurons(kind, mode):
    neuron = NEURONS[kind](mode)
    if mode == "m":
        net, layout, run = network(neuron), "TB", lambda n, x: n(x)
    else:
        net, layout = stepwise(neuron), "step"
        run = lambda n, x: torch.stack([n(x_t) for x_t in x])  # noqa: E731
    model = wrap(net, input_shape=SHAPE, layout=layout)
    assert model.num_classes == 5
    assert model.kept == (("1",) if kind == "kept" else ())
    assert_same(net, run, model)
    assert net[1] is neuron, "the original is as it was"


@pytest.mark.parametrize("options", [{}, {"reset_mechanism": "zero"}, {"threshold": 0.6}], ids=str)
def test_snntorch_neurons(options):
    net = stepwise(Leaky(**options))
    model = wrap(net, input_shape=SHAPE, layout="step")
    assert_same(net, lambda n, x: torch.stack([n(x_t) for x_t in x]), model)
    assert model.config.neuron.surrogate == Surrogate("fast_sigmoid", 10.0, scale=0.2)


def test_snntorch_potential_handed_over_by_the_network():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.T, self.fc = 5, nn.Linear(72, 3)
            self.lif = Leaky(init_hidden=False)

        def forward(self, x):
            mem, spikes, potentials = self.lif.reset_mem(), [], []
            for _ in range(self.T):
                s, mem = self.lif(self.fc(x.flatten(1)), mem)
                spikes.append(s)
                potentials.append(mem)
            return torch.stack(spikes), torch.stack(potentials)

    torch.manual_seed(0)
    net, x = Loop().double(), events()[0]
    for output, expected in enumerate(net(x)):
        model = wrap(net, input_shape=SHAPE, layout="static", output=output)
        assert torch.equal(model.steps(x, 5), expected)
        assert torch.equal(model.steps(x, 2), expected[:2])
    with pytest.raises(ModelError, match="repeats its input itself"):
        model.steps(events())


@pytest.mark.parametrize("p", [{}, {"v_leak": 0.2, "v_th": 0.7, "v_reset": -0.1}], ids=str)
def test_norse_neurons(p):
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.head = nn.Linear(72, 9), LIF(**p), nn.Linear(9, 3)

        def forward(self, x):
            half = len(x) // 2
            first, state = self.lif(self.fc(x[:half].flatten(2)))
            second, _ = self.lif(self.fc(x[half:].flatten(2)), state)
            return self.head(torch.cat([first, second]))

    torch.manual_seed(0)
    net = Stateful().double()
    model = wrap(net, input_shape=SHAPE)
    assert_same(net, lambda n, x: n(x), model)
    with record(model) as recording, torch.no_grad():
        model.steps(events())
    assert recording["lif"].spikes.shape == (7, 4, 9)
    with pytest.raises(ModelError, match="streaming"), streaming(model):
        model.steps(events())


def test_state_passes_from_call_to_call_within_one_forward():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(72, 4), LIFNode(step_mode="m")

        def forward(self, x):
            return torch.cat(
                [
                    self.lif(self.fc(half.flatten(2)))
                    for half in (x[: len(x) // 2], x[len(x) // 2 :])
                ]
            )

    torch.manual_seed(0)
    net = Shared().double()
    model = wrap(net, input_shape=SHAPE)
    assert_same(net, lambda n, x: n(x), model)
    with record(model, ("spikes", "potential")) as recording, torch.no_grad():
        out = model.steps(events())
    assert torch.equal(recording["lif"].spikes, out)
    assert recording["lif"].potential.shape == out.shape


# -- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["m", "s"])
def test_what_is_recorded_is_what_measurements_expect(mode):
    net = network(LIFNode()) if mode == "m" else stepwise(LIFNode(step_mode="s"))
    model = wrap(net, input_shape=SHAPE, layout="TB" if mode == "m" else "step").eval()
    x = events()
    with record(model, ("spikes", "potential")) as recording, torch.no_grad():
        model.steps(x)
    assert recording["1"].spikes.shape == (7, 4, 6, 6, 4), "channels last, as in our networks"
    assert torch.equal(recording["1"].spikes, (recording["1"].potential >= 1).double())
    rates = representations(model, x, what="rates", tokens="mean")["1"]
    assert rates.shape == (4, 4)
    counted = profile(model, x, 7)
    assert counted.spikes_per_sample.value == pytest.approx(float(recording["1"].spikes.sum()) / 4)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_samples_do_not_meet_and_streams_continue(mode):
    net = network(LIFNode()) if mode == "m" else stepwise(LIFNode(step_mode="s"))
    model = wrap(net, input_shape=SHAPE, layout="TB" if mode == "m" else "step").eval()
    x = events()
    with torch.no_grad():
        whole = model.steps(x)
        alone = torch.cat([model.steps(x[:, i : i + 1]) for i in range(4)], 1)
        torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)
        with streaming(model):
            pieces = torch.cat([model.steps(x[:3]), model.steps(x[3:])])
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_torch_func_sees_every_parameter(mode):
    net = network(LIFNode()) if mode == "m" else stepwise(ParametricLIFNode(step_mode="s"))
    model = wrap(net, input_shape=SHAPE, layout="TB" if mode == "m" else "step").eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = events()[0]

    def logits(p, sample):
        return torch.func.functional_call(model, p, (sample[None], 3))[0]

    rows = torch.func.vmap(torch.func.jacrev(logits), in_dims=(None, 0))(parameters, x)
    out = model(x, 3)
    for name, parameter in model.named_parameters():
        (expected,) = torch.autograd.grad(out[1, 2], parameter, retain_graph=True)
        torch.testing.assert_close(rows[name][1, 2], expected)


def test_neuron_settings_keep_their_ratios():
    net = network(LIFNode(v_threshold=0.5), LIFNode(v_threshold=2.0, tau=4.0))
    model = wrap(net, input_shape=SHAPE)
    assert model.threshold_ratio("4") == 4
    model.set_neurons(threshold=1.0, refractory=1)
    params = [m.params for m in model.modules() if isinstance(m, AdaptedLIF)]
    assert [p.threshold for p in params] == [1.0, 4.0]
    assert [p.beta for p in params] == [0.5, 0.75], "what was not changed differs as before"
    assert {p.refractory for p in params} == {1}
    with pytest.raises(ConfigError, match="unknown neuron parameter"):
        model.set_neurons(tau=2.0)


def test_learned_leaks_and_thresholds_can_be_set():
    plif = wrap(network(ParametricLIFNode()), input_shape=SHAPE).set_neurons(beta=0.8)
    assert plif.get_submodule("1").dynamics().beta.item() == pytest.approx(0.8)
    net = stepwise(Leaky())
    leaky = wrap(net, input_shape=SHAPE, layout="step").set_neurons(threshold=0.25, refractory=2)
    assert leaky.state_dict()["1.threshold"] == 0.25
    assert net[1].threshold == 1, "the original is as it was"
    with torch.no_grad(), record(leaky) as recording:
        leaky.steps(events())
    spikes = recording["1"].spikes
    assert spikes.any()
    assert not (spikes[1:] * spikes[:-1]).any(), "a refractory neuron does not fire twice in a row"


def test_continuous_twin_and_operations():
    model = wrap(network(LIFNode()), input_shape=SHAPE).eval()
    twin, x = model.continuous("rate"), events()[0]
    assert torch.equal(twin.steps(x, 2)[0], twin.steps(x, 2)[1])
    assert (model(x, 400) - twin(x)).abs().max() < 0.15
    assert tuple(model.macs_per_step()) == (2 * 4 * 9 * 36 + 144 * 5, 0, 0)
    kept = wrap(network(QIFNode()), input_shape=SHAPE)
    for ask in (lambda: kept.continuous("rate"), lambda: kept.set_neurons(beta=0.1)):
        with pytest.raises(ModelError, match="QIFNode is kept as it is"):
            ask()


def test_batchnorm_calibration_and_checkpoints(tmp_path):
    model = wrap(network(LIFNode()), input_shape=SHAPE)
    x = events()[0]
    calibrate_batchnorm(model, [x], 3)
    path = save_checkpoint(model, tmp_path / "weights.safetensors")
    other = wrap(network(LIFNode()), input_shape=SHAPE)
    other.load_state_dict({n: torch.zeros_like(v) for n, v in other.state_dict().items()})
    load_checkpoint(other, path)
    assert torch.equal(other.eval()(x, 3), model(x, 3))


# -- layouts ------------------------------------------------------------------------------------


def test_layouts_agree():
    class BatchFirst(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(72, 5), LIFNode()

        def forward(self, x):
            return self.lif(self.fc(x)).mean(0)

    x = events()
    plain = wrap(network(LIFNode()), input_shape=SHAPE).eval()
    turned = wrap(BatchFirst(network(LIFNode())), input_shape=SHAPE, layout="BT").eval()
    assert torch.equal(turned.steps(x), plain.steps(x))
    assert torch.equal(plain.steps(x[0], 3), plain.steps(x[:1].repeat(3, 1, 1, 1, 1)))
    once = wrap(Vectors().double(), input_shape=SHAPE, flatten=True)
    assert once.steps(x).shape == (7, 4, 5)
    assert torch.equal(once.steps(x)[0], once.steps(x)[6]), "one output for all steps"


# -- refusals -----------------------------------------------------------------------------------


class MyNode(LIFNode):
    """A user's own variant."""


class MyOwn(nn.Module):
    """A user's own neuron."""

    leak, v_th = 0.75, 0.5

    def __init__(self):
        super().__init__()
        self.mem = torch.zeros(())

    def forward(self, x):
        self.mem = self.leak * self.mem + x
        s = (self.mem >= self.v_th).to(x)
        self.mem = self.mem - s * self.v_th
        return s


def test_unknown_neurons_are_named_and_can_be_registered():
    with pytest.raises(
        ModelError, match="MyNode at '1' extends a neuron of spikingjelly"
    ) as caught:
        wrap(network(MyNode()), input_shape=SHAPE)
    assert "register_neuron(MyNode)" in str(caught.value)
    net = stepwise(MyOwn())
    with pytest.raises(ModelError, match=r"no spiking neuron found .* MyOwn") as caught:
        wrap(net, input_shape=SHAPE, layout="step")
    assert "register_neuron(MyOwn)" in str(caught.value)
    both = nn.Sequential(*stepwise(LIFNode(step_mode="s"))[:2], MyOwn(), nn.Flatten()).double()
    with pytest.raises(ModelError, match="MyOwn at '2' keeps state between calls") as caught:
        wrap(both, input_shape=SHAPE, layout="step")
    assert "attribute 'mem'" in str(caught.value)

    @register_neuron(MyOwn)
    def convert(neuron):
        params = {"reset": "soft", "decay_input": False}
        return LIFParams(beta=neuron.leak, threshold=neuron.v_th, **params)

    with warnings.catch_warnings():
        warnings.simplefilter("error", SpikedimWarning)
        model = wrap(net, input_shape=SHAPE, layout="step")
    net[1].mem = torch.zeros(())
    expected = torch.stack([net(x_t) for x_t in events()])
    torch.testing.assert_close(model.steps(events()), expected, rtol=1e-12, atol=1e-12)


def test_a_registered_neuron_may_be_kept():
    class Odd(MyOwn):
        def reset(self):
            self.mem = torch.zeros(())

    @register_neuron(Odd)
    def convert(neuron):
        return None

    with pytest.warns(SpikedimWarning, match="Odd at '1' is kept as it is.* returned None"):
        model = wrap(stepwise(Odd()), input_shape=SHAPE, layout="step")
    assert model.kept == ("1",)
    assert torch.equal(model.steps(events()), model.steps(events()))
    with pytest.raises(ConfigError, match="expected a subclass"):
        register_neuron(7)


def test_what_is_no_neuron_is_not_taken_for_one():
    class Described(MyOwn):
        pass

    register_neuron(Described)(lambda neuron: {"beta": 0.5})
    with pytest.raises(ConfigError, match=r"registered for Described returned a dict; return .*"):
        wrap(stepwise(Described()), input_shape=SHAPE, layout="step")


class Inline(nn.Module):
    """Spikes inside a forward."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(72, 5)

    def forward(self, x):
        return (self.fc(x.flatten(2)) > 0).to(x)


def test_neurons_that_are_no_modules_are_asked_to_be():
    with pytest.raises(ModelError, match=r"classes: none.*Neurons must be modules"):
        wrap(Inline().double(), input_shape=SHAPE)
    outer = nn.Sequential(Inline(), nn.Linear(5, 5)).double()
    with pytest.raises(ModelError, match=r"classes: Inline.*Neurons must be modules"):
        wrap(outer, input_shape=SHAPE)


# -- neurons beside those that are known --------------------------------------------------------


class Gate(nn.Module):
    """A spike function."""

    def forward(self, x):
        return (x >= 0).to(x)


class Beside(nn.Module):
    """A neuron without stored state; what it calls to fire may be a module."""

    def __init__(self, multistep=True):
        super().__init__()
        self.multistep, self.fire = multistep, Gate()

    def forward(self, x):
        if not self.multistep:
            return self.fire(x - 0.3)
        u, out = torch.zeros_like(x[0]), []
        for x_t in x:
            u = 0.8 * u + x_t
            s = self.fire(u - 0.3)
            u = u - 0.3 * s
            out.append(s)
        return torch.stack(out)


class Holder(nn.Module):
    """A container of the user's own."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def unknown(net, **options):
    """What is warned of at the conversion of ``net``, which stays as it was."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    drawn = torch.random.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = wrap(net, input_shape=SHAPE, **options)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(drawn, torch.random.get_rng_state())
    return [str(w.message) for w in caught if issubclass(w.category, SpikedimWarning)]


def test_a_neuron_nobody_registered_is_warned_of():
    net = network(Beside(), LIFNode())
    net.append(nn.Linear(5, 6)).append(Beside()).append(nn.Linear(6, 5)).double()
    (said,) = unknown(net)
    assert said.startswith("Beside at '1', '7' gives zeros and ones"), "not its spike function"
    assert "register_neuron(Beside)" in said
    assert "\n" not in said


def test_what_holds_a_neuron_is_not_warned_of():
    inner = Holder(Beside(), Folded(nn.MaxPool2d(1)))
    outer = Holder(Folded(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), inner)
    first, *rest = network(LIFNode())
    (said,) = unknown(nn.Sequential(first, outer, *rest).double())
    assert said.startswith("Beside at '1.layers.1.layers.0' gives")


def test_a_neuron_called_once_per_timestep_is_warned_of():
    conv, lif, *rest = stepwise(LIFNode(step_mode="s"))
    (said,) = unknown(nn.Sequential(conv, Beside(False), lif, *rest), layout="step")
    assert said.startswith("Beside at '1' gives")


def test_what_passes_spikes_on_is_no_neuron():
    class Pass(nn.Module):
        def forward(self, x):
            return x * 1

    conv, lif, *rest = network(LIFNode())
    held = Holder(lif, Pass(), Folded(nn.MaxPool2d(1)), nn.Dropout(0.5))
    assert unknown(nn.Sequential(conv, Pass(), nn.ReLU(), held, Pass(), *rest)) == []


def test_state_we_know_nothing_of_is_reset_by_the_users_function():
    class Trace(nn.Module):
        total = 0.0

        def forward(self, x):
            self.total = self.total + x
            return self.total

    net = nn.Sequential(*stepwise(LIFNode(step_mode="s")), Trace())
    with pytest.raises(ModelError, match="Trace at '4' keeps state"):
        wrap(net, input_shape=SHAPE, layout="step")

    def clear(network):
        network[4].total = 0.0

    model = wrap(net, input_shape=SHAPE, layout="step", reset=clear)
    assert torch.equal(model.steps(events()), model.steps(events()))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layout": "CT"}, ConfigError, "layout='CT'"),
        ({"input_shape": (2, 6)}, ConfigError, "three whole numbers"),
        ({"input_shape": (3, 6, 6)}, ModelError, r"fails on frames .*'step' one timestep \[B, C"),
        ({"num_classes": 3}, ModelError, "gives 5 classes"),
        ({"layout": "BT"}, ModelError, "depends on the other samples"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(options, error, words):
    with pytest.raises(error, match=words):
        wrap(network(LIFNode()), **{"input_shape": SHAPE, **options})


def test_a_network_in_the_middle_of_a_sequence_is_refused():
    net = network(LIFNode())
    net(events())
    with pytest.raises(ModelError, match="reset it first"):
        wrap(net, input_shape=SHAPE)


# -- surrogates ---------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(SURROGATES),
    width=st.floats(0.05, 50),
    scale=st.sampled_from([1.0, 0.3, 7.0]),
)
def test_surrogates_are_recognised_by_their_derivative(kind, width, scale):
    original = Surrogate(kind, width, scale=scale)
    found = identify(lambda x: spike(x, original), "test")
    x = torch.linspace(-4 / width, 4 / width, 41, dtype=torch.float64)[1::2] * 1.001
    torch.testing.assert_close(found.derivative(x), original.derivative(x), rtol=1e-4, atol=1e-6)
    assert found.peak == pytest.approx(original.peak, rel=1e-6)
    assert (found.scale == 1) == (scale == 1)


def test_an_unknown_surrogate_is_said():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * (1 + torch.cos(3 * x)) / (1 + x * x)

    with pytest.warns(SpikedimWarning, match="spikes are unaffected"):
        assert identify(Odd.apply, "odd") == surrogate("atan")


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("spikformer_nano", {}),
        ("spikformer_nano", {"layout": "dvs"}),
        ("qkformer_10_384_imagenet", {"embed_dim": 48, "depth": 4, "num_classes": 10}),
        ("spike_driven_nano", {}),
    ],
    ids=str,
)
def test_weights_go_to_spikingjellys_names_and_back(name, config):
    generator = torch.Generator().manual_seed(0)

    def made(seed):
        model = create_model(name, seed=seed, input_shape=(3, 32, 32), **config).double()
        for value in model.state_dict().values():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(0.5 + noise if value.ndim == 1 else noise - 0.3)
        return model.eval()

    model, other = made(0), made(1)
    theirs = to_spikingjelly(model)
    other.load_state_dict(from_spikingjelly(other, theirs))
    x = torch.rand(2, 3, 32, 32, generator=generator).double()
    with torch.no_grad():
        torch.testing.assert_close(other.steps(x, 2), model.steps(x, 2), rtol=1e-9, atol=1e-9)
    again = to_spikingjelly(other)
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(again[key], value, rtol=1e-9, atol=1e-9)
    missing = dict(theirs)
    del missing["head.weight"]
    with pytest.raises(CheckpointError, match="lack head"):
        from_spikingjelly(other, missing)


def test_fused_layers_and_folded_biases():
    model = create_model("spikformer_nano", seed=0).double()
    names = to_spikingjelly(model)
    attn, width = model.block[0].attn, model.config.embed_dim
    fused = names["blocks.0.attn.qkv_conv_bn.0.weight"]
    assert fused.shape == (3 * width, width, 1)
    assert torch.equal(fused[width : 2 * width, :, 0], attn.k_linear.weight)
    folded = attn.v_bn.running_mean - attn.v_linear.bias
    assert torch.equal(names["blocks.0.attn.qkv_conv_bn.1.running_mean"][2 * width :], folded)
    with pytest.raises(ModelError, match="has no counterpart"):
        to_spikingjelly(create_model("qkformer_nano", seed=0))


# -- files --------------------------------------------------------------------------------------

FILE = (
    THRESHOLD
    + """

def make(input_shape, num_classes, width=16):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(size, width), Threshold(), nn.Linear(width, num_classes)
    )


def fixed():
    return wrap(make((1, 8, 8), 10), input_shape=(1, 8, 8))


def broken(input_shape):
    raise ValueError("no luck")


def nothing():
    return 3
"""
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_network_from_a_file(file):
    name = f"{file}:make"
    model = create_model(name, num_classes=4, input_shape=(1, 8, 8), seed=3, width=12)
    same = create_model(name, num_classes=4, input_shape=(1, 8, 8), seed=3, width=12)
    assert (model.num_classes, model.input_shape) == (4, (1, 8, 8))
    weights = zip(model.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    entry = model_entry(name)
    assert entry.config.neuron.threshold == 0.3
    assert entry.parameters == 3072 * 16 + 16 + 170
    changed = create_model(
        name, num_classes=4, input_shape=(1, 8, 8), neuron=LIFParams(beta=0, threshold=0.6)
    )
    assert changed.get_submodule("2").params.threshold == 0.6
    assert math.isclose(create_model(f"{file}:fixed").config.neuron.threshold, 0.3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py:make", "does not exist"),
        ("mine.py:other", "no function other"),
        ("mine.py:broken", "ValueError: no luck"),
        ("mine.py:nothing", "returns a int"),
        ("mine.py:fixed", "num_classes=10, the data need 4"),
    ],
)
def test_files_that_do_not_make_a_network(file, monkeypatch, name, words):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ModelError, match=words):
        create_model(name, num_classes=4, input_shape=(1, 8, 8))


@pytest.mark.parametrize("verb", ["measure", "profile", "design"])
def test_the_verbs_take_a_file(file, monkeypatch, capsys, verb):
    monkeypatch.chdir(file.parent)
    limit = {"measure": ["--limit", "20"], "profile": ["--samples", "8"], "design": []}[verb]
    with pytest.raises(SystemExit) as caught:
        main([verb, "--data", "digits", "--model", "mine.py:make", "--quiet", *limit])
    assert caught.value.code in (0, None), capsys.readouterr().err
    if verb == "design":
        (run,) = (file.parent / "runs").iterdir()
        assert run.name.startswith("design-digits-mine.py-make-")


# -- what is registered against what it stands for ---------------------------------------------


class Custom(nn.Module):
    """u = beta·u + x, soft reset, atan derivative; one threshold per channel where asked."""

    def __init__(self, multistep, per_channel=False):
        super().__init__()
        self.multistep, self.mem = multistep, None
        self.threshold = torch.tensor([0.5, 1.0, 0.7, 0.9])[:, None, None] if per_channel else 0.7

    def reset(self):
        self.mem = None

    def forward(self, x):
        return torch.stack([self.step(x_t) for x_t in x]) if self.multistep else self.step(x)

    def step(self, x):
        self.mem = x if self.mem is None or self.mem.shape != x.shape else 0.8 * self.mem + x
        s = spike(self.mem - self.threshold, Surrogate("atan", 2.0))
        self.mem = self.mem - s.detach() * self.threshold
        return s


def registered(multistep, per_channel=False, **options):
    """Wrap a network of ``Custom`` neurons, of which ``options`` are said, and what was warned."""
    kind = type("Custom", (Custom,), {})
    right = {"reset": "soft", "decay_input": False, "surrogate": Surrogate("atan", 2.0)}

    @register_neuron(kind)
    def convert(neuron):
        return LIFParams(beta=0.8, threshold=neuron.threshold, **{**right, **options})

    neuron = kind(multistep, per_channel)
    net = network(neuron, kind(multistep), 5) if multistep else stepwise(neuron)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrap(net, input_shape=SHAPE, layout="TB" if multistep else "step")
    return [str(w.message) for w in caught if issubclass(w.category, SpikedimWarning)]


@pytest.mark.parametrize("multistep", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_registered_neuron_that_is_the_same_is_not_warned_of(multistep, per_channel):
    assert registered(multistep, per_channel) == []


@pytest.mark.parametrize("multistep", [True, False])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay_input": True}, "; decay_input=False gives those of the neuron"),
        ({"reset": "hard"}, "; reset='soft' gives those of the neuron"),
        ({"refractory": 3}, "; no other reset or gain gives them"),
        (
            {"surrogate": Surrogate("sigmoid", 4.0)},
            'is another, surrogate("sigmoid", 4); surrogate=surrogate("atan", 2) is its own',
        ),
    ],
)
def test_a_registered_neuron_that_is_another_is_warned_of_once(multistep, options, words):
    (said,) = registered(multistep, **options)
    assert said.startswith("Custom: what is registered for it")
    assert said.endswith(words)


class Integrator(nn.Module):
    """u = beta·u + (1 − beta)·x with a hard reset and an atan derivative, all timesteps at once."""

    def __init__(self, beta, check=None):
        super().__init__()
        self.beta, self.check = beta, check or (lambda x: None)
        self.slope = Surrogate("atan", 2.0)

    def forward(self, x):
        self.check(x)
        u, out = torch.zeros_like(x[0]), []
        for x_t in x:
            u = self.beta * u + (1 - self.beta) * x_t
            s = spike(u - 0.7, self.slope)
            u = u * (1 - s.detach())
            out.append(s)
        return torch.stack(out)


def warned_of(neuron, **options):
    """What is warned of when ``neuron`` is registered with ``options``."""
    kind = type(neuron)
    right = {"beta": neuron.beta, "reset": "hard", "surrogate": Surrogate("atan", 2.0)}
    register_neuron(kind)(lambda _: LIFParams(threshold=0.7, **{**right, **options}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrap(network(neuron), input_shape=SHAPE, layout="TB")
    return [str(w.message) for w in caught if issubclass(w.category, SpikedimWarning)]


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_neurons_of_any_gain_are_made_to_fire(beta):
    assert warned_of(Integrator(beta)) == []
    (said,) = warned_of(Integrator(beta), reset="soft")
    assert said.endswith("; reset='hard' gives those of the neuron")


@pytest.mark.parametrize("wrong", [{"beta": 0.98}, {"beta": 0.9}])
def test_another_leak_is_not_blamed_on_the_surrogate(wrong):
    (said,) = warned_of(Integrator(0.999), **wrong)
    assert "is another neuron" in said
    assert "surrogate" not in said


def test_a_surrogate_is_named_only_where_it_is_seen_to_be_another():
    def scale(x):  # a gradient that no surrogate of ours has
        if x.requires_grad:
            x.register_hook(lambda g: g * (1 + x.detach().abs()))

    (said,) = warned_of(Integrator(0.5, scale))
    assert said.endswith("fires as it does, but its derivative (training, ntk) is another")


def test_the_mend_of_a_surrogate_of_another_area_can_be_written():
    neuron = Integrator(0.5)
    neuron.slope = Surrogate("fast_sigmoid", 10.0, scale=0.2)
    (said,) = warned_of(neuron, surrogate=surrogate("fast_sigmoid", 10))
    assert said.endswith('; surrogate=surrogate("fast_sigmoid", 10, scale=0.2) is its own')
    assert warned_of(neuron, surrogate=surrogate("fast_sigmoid", 10, scale=0.2)) == []


class Mute(AdaptedLIF):
    """Never fires."""

    def forward(self, x):
        return 0 * x


def test_silent_neurons_are_not_compared():
    neuron = nn.Sequential()
    neuron.forward = lambda x: x - x.detach()  # silent too, with another derivative
    assert difference(neuron, Mute(LIFParams()), torch.rand(3, 2, 4)) == ""


def asserts(x):
    assert len(x) == 4


@pytest.mark.parametrize("check", [asserts, lambda x: {4: 0}[len(x)], lambda x: 1 / (len(x) - 16)])
def test_an_exception_of_the_neuron_does_not_end_the_conversion(check):
    assert warned_of(Integrator(0.5, check)) == []


def test_the_lines_to_register_name_what_decides():
    with pytest.raises(ModelError, match=r"decay_input=False is u = beta\*u \+ x") as caught:
        wrap(network(Beside()), input_shape=SHAPE)
    assert 'surrogate=spikedim.neurons.surrogate("atan", 2.0)' in str(caught.value)
