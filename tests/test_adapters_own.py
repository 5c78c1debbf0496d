"""Neurons of one's own under our contract: asked for, registered, warned of, compared."""

import warnings

import pytest
import torch
from torch import nn

from library_stand_ins import (
    SHAPE,
    Folded,
    LIFNode,
    events,
    network,
    stepwise,
)
from spikedim.adapters import AdaptedLIF, register_neuron, wrap
from spikedim.adapters.comparison import difference
from spikedim.errors import ConfigError, ModelError, SpikedimWarning
from spikedim.neurons import LIF, PLIF, LIFParams, Surrogate, record, spike, streaming, surrogate
from spikedim.neurons.rounding import snapped
from spikedim.ntk import gram
from spikedim.profiling import profile

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
    assert not model.can_have(beta=0.5)
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


# -- straight-through spikes --------------------------------------------------------------------


class StraightThrough(nn.Module):
    """The derivative of a sigmoid by s + g - g: a spike is 1 but for rounding."""

    def forward(self, u):
        g = torch.sigmoid(4 * (u - 1))
        return ((u >= 1).to(u).detach() + g) - g.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_real_values_of_half_precision_are_no_spikes(dtype):
    x = torch.tensor([5.1, 17.2, 33.1, 64.2]).to(dtype)
    assert torch.equal(snapped(x), x)
    assert not torch.equal(x, x.round())


def test_a_straight_through_spike_is_a_spike():
    class Seen(StraightThrough):
        pass

    class Chosen(StraightThrough):
        pass

    register_neuron(Seen)(lambda neuron: None)
    register_neuron(Chosen)(
        lambda neuron: LIFParams(beta=0.0, decay_input=False, surrogate=surrogate("sigmoid", 4.0))
    )
    with torch.no_grad():
        assert not set(Seen()(5 * torch.rand(99)).tolist()) <= {0.0, 1.0}
    x = events().float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpikedimWarning)
        chosen = wrap(network(Chosen()).float(), input_shape=SHAPE)
    with pytest.warns(SpikedimWarning, match="Seen at '1' is kept as it is"):
        kept = wrap(network(Seen()).float(), input_shape=SHAPE)
    a, b = profile(kept, x, len(x)), profile(chosen, x, len(x))
    assert [layer.output for layer in a.layers] == ["binary"]
    assert not any(finding.gate == "non-binary" for finding in a.gates)
    assert a.spikes_per_sample.value == b.spikes_per_sample.value > 0
    assert [o.inputs for o in a.operations] == [o.inputs for o in b.operations]
    with pytest.warns(SpikedimWarning, match="StraightThrough at '1' gives zeros and ones"):
        wrap(network(StraightThrough(), LIF()).float(), input_shape=SHAPE)


# -- our own neurons ----------------------------------------------------------------------------


class Twice(nn.Module):
    """Calls one neuron at two widths of current: every call is a sequence of its own."""

    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x):
        return self.neuron(x) + self.neuron(2 * x)


def double_lif():
    return network(LIF(LIFParams(beta=0.7)), LIF(LIFParams(threshold=0.5, reset="soft")))


@pytest.mark.parametrize(
    "make",
    [double_lif, lambda: network(PLIF()), lambda: network(Twice(LIF(LIFParams(beta=0.9))))],
)
def test_neurons_of_ours_are_known(make):
    net, x = make().eval(), events()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpikedimWarning)
        model = wrap(net, input_shape=SHAPE).eval()
    assert model.kept == ()
    assert model.state_dict().keys() == net.state_dict().keys()
    expected = net(x)
    assert expected.std() > 0
    assert torch.equal(model.steps(x), expected)
    own, found = [], []
    for into, each in ((own, net), (found, model)):
        with record(each, what=("spikes", "potential")) as recording:
            each(x) if each is net else each.steps(x)
        into.extend(recording.items())
    assert [key for key, _ in own] == [key for key, _ in found]
    for (_, a), (_, b) in zip(own, found, strict=True):
        assert torch.equal(a.spikes.flatten(2).sum(2), b.spikes.flatten(2).sum(2))
        assert a.potential.shape.numel() == b.potential.shape.numel()
    with streaming(model):
        pieces = torch.cat([model.steps(x[:3]), model.steps(x[3:])])
    if not any(isinstance(m, Twice) for m in net):
        torch.testing.assert_close(pieces, expected)
    assert not torch.equal(model.set_neurons(beta=0.1).steps(x), expected)


def test_the_kernel_and_the_spikes_of_neurons_of_ours_are_those_of_the_bare_network():
    net, x = double_lif().eval(), events(T=3)
    model = wrap(net, input_shape=SHAPE).eval()
    outputs = net(x).mean(0)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(o, net.parameters(), retain_graph=True)]
        )
        for o in outputs.flatten()
    ]
    jacobian = torch.stack(rows).unflatten(0, outputs.shape)
    expected = torch.einsum("iop,jop->ij", jacobian, jacobian)
    found = torch.as_tensor(gram(model, x, T=3).values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    with record(net) as recording:
        net(x)
    spikes = sum(float(s.detach().sum()) for s in recording.spikes.values())
    assert profile(model, x, 3).spikes_per_sample.value * x.shape[1] == pytest.approx(spikes)


class Learned(LIF):
    """May do anything."""


def test_a_subclass_of_a_neuron_of_ours_is_asked_for():
    with pytest.raises(ModelError, match="Learned at '1' extends a neuron of spikedim"):
        wrap(network(Learned()), input_shape=SHAPE)
