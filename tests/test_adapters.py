"""Networks of other libraries under our contract, with stand-ins for the libraries.

test_adapters_extras.py runs the same comparisons with the libraries themselves.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from library_stand_ins import (
    LIF,
    SHAPE,
    IFNode,
    Leaky,
    LIFNode,
    ParametricLIFNode,
    QIFNode,
    events,
    network,
    norse_threshold,  # noqa: F401  # for every test here
    reset,
    stepwise,
)
from own_files import THRESHOLD
from spikedim.adapters import AdaptedLIF, from_spikingjelly, to_spikingjelly, wrap
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
