from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from library_stand_ins import fast_sigmoid
from ntk_networks import FAMILIES, distance, last_token, network, small_network
from spikedim.dimension import measure
from spikedim.errors import BudgetError, ConfigError, DataError, ModelError
from spikedim.neurons import LIF, LIFParams, Surrogate
from spikedim.ntk import KernelOperator, Setup, by_timestep, gram
from spikedim.ntk.capture import Capture, logits
from spikedim.ntk.gram import Plan, block, jacobian_rows
from spikedim.ntk.kernel import Kernel


@pytest.fixture(scope="module")
def small():
    return small_network()


@pytest.fixture(scope="module")
def kernel(small):
    model, x, more = small
    return gram(model, x, **more)


# -- agreement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_agrees_with_autograd_sample_by_sample(name):
    model, x, more = network(name, 3, **FAMILIES[name])
    found = gram(model, x, **more)
    loop = gram(model, x, method="loop", **more)
    assert distance(found.values, loop.values) < 1e-10
    for part, true in loop.layers.items():
        mine = found.layers.get(part, np.zeros_like(true))
        np.testing.assert_allclose(mine, true, rtol=1e-9, atol=1e-12 * abs(loop.values).max())


@pytest.mark.parametrize("layout", ["cifar", "imagenet", "dvs"])
def test_single_precision(layout):
    model, x, more = network(
        "spikformer_nano", 4, torch.float32, input_shape=(1, 8, 8), num_classes=3, layout=layout
    )
    found = gram(model, x, **more)
    assert distance(found.values, gram(model, x, method="loop", **more).values) < 1e-4


@pytest.mark.parametrize("ratio", [0.5, 2.0])
@pytest.mark.parametrize("memory", [None, 0.003])
def test_single_precision_of_wide_layers(memory, ratio, monkeypatch):
    """Wide enough for a product of its own per sample, by whichever library is the faster one.

    The budget splits layers by channels.
    """
    monkeypatch.setattr("spikedim.ntk.multiply._race", lambda: ratio)
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(64, 96, 3), nn.BatchNorm2d(96), nn.Tanh(), nn.Flatten(2))
    net = nn.Sequential(stem, nn.Linear(36, 1024), nn.Tanh()).eval()
    x = torch.randn(3, 64, 8, 8)

    def readout(model, x, T):
        return model(x).mean(1)[:, :2]

    found = gram(net, x, memory=memory, readout=readout)
    expected = gram(net.double(), x.double(), method="loop", readout=readout)
    for name, found_block in found.layers.items():
        assert distance(found_block, expected.layers[name]) < 1e-5


@pytest.mark.parametrize("gain", [0.0, 1e-200, -2.0])
def test_a_channel_whose_norm_has_any_gain(gain):
    """A gain of zero in one channel stops the weights behind it, not the gain's own gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    net.eval()
    with torch.no_grad():
        net[1].weight[2] = gain
    x = torch.randn(4, 5, dtype=torch.float64)
    plain = lambda model, x, T: model(x)  # noqa: E731
    expected = gram(net, x, method="loop", readout=plain)
    found = gram(net, x, readout=plain)
    for name, part in expected.layers.items():
        np.testing.assert_allclose(found.layers[name], part, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_half_of_a_norm_frozen(frozen, norm, gain):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), norm(6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    with torch.no_grad():
        net[1].weight[2] = gain
    getattr(net[1], frozen).requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64)
    plain = lambda model, x, T: model(x)  # noqa: E731
    expected, found = (gram(net, x, method=m, readout=plain) for m in ("loop", "structured"))
    assert set(found.layers) == set(expected.layers)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-11)


def test_half_precision_of_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).bfloat16().eval()
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    plain = lambda model, x, T: model(x)  # noqa: E731
    expected = gram(net.float(), x.float(), readout=plain).values
    assert distance(gram(net.bfloat16(), x, readout=plain).values, expected) < 0.05


def test_layers_that_read_one_input_share_its_rows():
    from spikedim.ntk.deposit import deposit

    model, x, _ = network("spikformer_nano", 3)
    capture = Setup(model, 2, logits, False).capture(x)

    def room(module, layer, name, shape):
        return x.new_empty(shape), True

    def receive(call, gradient):
        deposit(call, gradient, capture.samples, capture.steps, slice(None), room)

    with torch.no_grad():
        capture.run(torch.ones(model.num_classes).to(x), receive)
    calls = {call.layer: call for call in capture.calls}
    q, k, v = (calls[f"block.0.attn.{name}_linear"] for name in "qkv")
    assert q.rows.value is k.rows.value is v.rows.value
    assert calls["block.0.mlp.fc1_linear"].rows.value is not q.rows.value
    assert q.input.isnan().all()  # the original is let go
    assert v.input.untyped_storage().nbytes() == v.input.element_size()


def test_an_embedding_tied_to_the_read_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 7)
            self.head = nn.Linear(7, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x, T):
            return self.head(torch.tanh(self.embedding(x)).mean(1))

    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randint(0, 5, (4, 6))
    expected = gram(net, x, method="loop").values
    np.testing.assert_allclose(gram(net, x).values, expected, rtol=1e-10)


def test_jacobian_by_torch_func_agrees(small, kernel):
    model, x, more = small
    assert distance(gram(model, x, method="jacobian", **more).values, kernel.values) < 1e-10


def test_learned_leak_has_its_own_gradient_per_sample():
    options = {"input_shape": (1, 16, 16), "num_classes": 3, "plif": True}
    model, x, more = network("spikingresformer_nano", 3, **options)
    found, loop = gram(model, x, **more), gram(model, x, method="loop", **more)
    leaks = [name for name in found.layers if name.endswith(".w")]
    assert len(leaks) > 5
    assert distance(found.values, loop.values) < 1e-10
    for name in leaks:
        np.testing.assert_allclose(found.layers[name], loop.layers[name], rtol=1e-9, atol=1e-12)


def test_event_inputs(small):
    model, x, _ = small
    events = x[None] * torch.linspace(0.5, 1.5, 3).double().view(3, 1, 1, 1, 1)
    loop = gram(model, events, method="loop").values
    assert distance(gram(model, events).values, loop) < 1e-10


def test_pairs_of_outputs(small, kernel):
    model, x, more = small
    full = gram(model, x, outputs="full", **more)
    pairs = full.values.reshape(5, 3, 5, 3)
    np.testing.assert_allclose(np.einsum("iojo->ij", pairs), kernel.values, rtol=1e-10)
    one = gram(model, x, outputs=2, **more).values
    np.testing.assert_allclose(pairs[:, 2, :, 2], one, rtol=1e-9, atol=1e-12)
    assert np.array_equal(full.values, full.values.T)


def test_cross_kernel(small, kernel):
    model, x, more = small
    cross = gram(model, x[:2], x[2:], **more)
    np.testing.assert_allclose(cross.values, kernel.values[:2, 2:], rtol=1e-10)
    with pytest.raises(ConfigError, match="leave x2 out"):
        cross.dimension()


@pytest.mark.parametrize(
    "params",
    [
        LIFParams(reset="soft"),
        LIFParams(reset="none"),
        LIFParams(v_reset=-0.2),
        LIFParams(refractory=1),
        LIFParams(detach_reset=False),
        LIFParams(delayed_reset=True),
        LIFParams(decay_input=False, surrogate=Surrogate("rectangular", 1.0)),
    ],
    ids=str,
)
def test_every_kind_of_neuron(params):
    options = {"input_shape": (1, 8, 8), "num_classes": 3, "neuron": params}
    model, x, more = network("spikformer_nano", 3, **options)
    loop = gram(model, x, method="loop", **more).values
    assert distance(gram(model, x, **more).values, loop) < 1e-10


class Odd(nn.Module):
    """Layers used twice, a norm whose input is read elsewhere, tied weights, odd convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding="same", groups=2)
        self.norm = nn.BatchNorm1d(4)
        self.twice = nn.Linear(6, 6)
        self.scale = nn.LayerNorm(6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.twice.weight
        self.strided = nn.Conv1d(4, 5, 2, stride=2, dilation=2)
        self.after = nn.BatchNorm1d(5, affine=False)
        self.head = nn.Linear(10, 3)

    def forward(self, x, T=None):
        y = self.first(x)
        y = self.norm(y) + y
        y = self.scale(torch.tanh(self.twice(torch.tanh(self.twice(y)))))
        y = torch.tanh(self.tied(y))
        return self.head(self.after(self.strided(y)).flatten(1))


@pytest.mark.parametrize("memory", [None, 2e-5, 1.2e-5])
def test_odd_networks(memory):
    torch.manual_seed(0)
    model = Odd().double().eval()
    for norm in (model.norm, model.after):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    found, loop = gram(model, x, memory=memory), gram(model, x, method="loop")
    assert set(found.layers) == set(loop.layers)
    for name, part in loop.layers.items():
        np.testing.assert_allclose(found.layers[name], part, rtol=1e-9, atol=1e-12)


# -- properties ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_symmetric_positive_and_the_sum_of_its_layers(precision):
    model, x, more = network("spikformer_nano", 6, precision, input_shape=(1, 8, 8))
    found = gram(model, x, **more)
    assert np.array_equal(found.values, found.values.T)
    values = np.linalg.eigvalsh(found.values)
    assert values[0] > -(1e-12 if precision is torch.float64 else 1e-6) * values[-1]
    np.testing.assert_allclose(sum(found.layers.values()), found.values, rtol=1e-13)
    assert sum(found.contributions().values()) == pytest.approx(1)


@settings(max_examples=15)
@given(st.permutations(range(5)), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_neither_order_nor_chunks_matter(small, kernel, order, batch, flight, keep):
    model, x, more = small
    setup = Setup(model, more["T"], logits, False)
    eye = torch.eye(3, dtype=torch.float64)
    found = sum(block(setup, x[list(order)], None, eye, False, Plan(batch, flight, keep)).values())
    np.testing.assert_allclose(found.numpy(), kernel.values[np.ix_(order, order)], rtol=1e-10)


@settings(max_examples=8)
@given(st.floats(-2.0, 0.0))
def test_any_budget_gives_the_same_kernel_or_an_error(small, kernel, exponent):
    model, x, more = small
    try:
        found = gram(model, x, memory=0.02 * 10**exponent, **more)
    except BudgetError:
        assert exponent < -0.5
        return
    assert found.bytes <= 0.02 * 10**exponent * 2**30 * (1 + 1e-9)
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)


def test_the_network_is_left_as_it_was(small, kernel):
    model, x, more = small
    before = {n: (id(p), p.clone()) for n, p in model.named_parameters()}
    gram(model, x, width=2.0, **more)
    assert {n: id(p) for n, p in model.named_parameters()} == {n: i for n, (i, _) in before.items()}
    assert all(p.grad is None and torch.equal(p, before[n][1]) for n, p in model.named_parameters())
    assert not any("forward" in vars(m) for m in model.modules())
    assert np.array_equal(gram(model, x, **more).values, kernel.values)


def test_the_surrogate_belongs_to_the_result(small, kernel):
    model, x, more = small
    other = gram(model, x, surrogate="atan", width=2.0, **more)
    assert other.surrogate == (("atan", 2.0, 1.0),)
    assert kernel.surrogate == (("sigmoid", 4.0, 1.0),)
    assert distance(other.values, kernel.values) > 1e-6
    narrow = gram(model, x, width=8.0, **more)
    assert narrow.surrogate == (("sigmoid", 8.0, 2.0),)
    same = gram(model, x, surrogate=Surrogate("sigmoid", 8.0), **more)
    assert np.array_equal(same.values, narrow.values)


def test_frozen_parameters_are_left_out(small):
    model, x, more = small
    model.head.weight.requires_grad_(False)
    try:
        found = gram(model, x, **more)
    finally:
        model.head.weight.requires_grad_(True)
    assert "head.weight" not in found.layers
    assert "head.bias" in found.layers


def test_one_output_of_the_head_bias_is_one(small):
    model, x, more = small
    np.testing.assert_allclose(gram(model, x, outputs=0, **more).layers["head.bias"], 1)


class Smooth(nn.Module):
    """f(x) = a·φ(Wx)/√width, φ the smooth step of an escape-noise neuron, erf in shape."""

    def __init__(self, width, inputs, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = {"generator": generator, "dtype": torch.float64}
        self.hidden = nn.Linear(inputs, width, bias=False, dtype=torch.float64)
        self.out = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        self.hidden.weight.data = torch.randn(width, inputs, **draw)
        self.out.weight.data = torch.randn(1, width, **draw)
        self.width = width

    def forward(self, x, T=None):
        return self.out(torch.erf(self.hidden(x))) / self.width**0.5


def limit(x):
    """Infinite-width kernel of Smooth (Williams 1997 and its derivative)."""
    s = x @ x.T
    a, b = np.meshgrid(1 + 2 * np.diag(s), 1 + 2 * np.diag(s), indexing="ij")
    ratio = 2 * s / np.sqrt(a * b)
    slopes = 4 / np.pi / np.sqrt(a * b - 4 * s**2)
    return 2 / np.pi * np.arcsin(ratio) + s * slopes


def test_wide_networks_approach_their_limit():
    """Hidden units are independent, so the mean squared error is exactly V/width: slope −0.5."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = limit(x.numpy())
    widths, draws = [64, 256, 1024, 4096], 200
    squares = np.empty((len(widths), draws))
    for row, width in zip(squares, widths, strict=True):
        for draw in range(draws):  # every width has networks of its own
            found = gram(Smooth(width, 3, width * draws + draw).eval(), x)
            row[draw] = distance(found.values, true) ** 2
    logs = np.log(widths)
    per_width = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    mean, error = squares.mean(1), squares.std(1, ddof=1) / draws**0.5
    slope = per_width @ np.log(mean) / 2
    half = stats.norm.ppf(0.995) * np.linalg.norm(per_width * error / mean) / 2  # 99 % interval
    assert half < 0.04
    assert slope - half < -0.5 < slope + half


# -- what the kernel says -----------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["trace", 1])
def test_dimensions_are_those_of_the_gradients(small, outputs):
    model, x, more = small
    setup = Setup(model, more["T"], logits, False)
    rows = jacobian_rows(setup, x, torch.eye(3, dtype=x.dtype), "loop")
    gradients = torch.cat([row.detach() for _, row in rows], 2).transpose(0, 1)  # [n, O, P]
    gradients = gradients if outputs == "trace" else gradients[:, outputs]
    found = gram(model, x, **more, outputs=outputs).dimension()
    true = measure(gradients.flatten(1).numpy(), list(found.estimates))
    assert found.d == true.d
    for key, estimate in true.estimates.items():
        mine = found[key]
        values = (mine.value, mine.low, mine.high), (estimate.value, estimate.low, estimate.high)
        np.testing.assert_allclose(*np.array(values, float), rtol=1e-6, err_msg=key)


def test_dependent_rows_have_no_intervals(small):
    model, x, more = small
    report = gram(model, x, **more, outputs="full").dimension()
    assert "pr_corrected" not in report.estimates
    assert all(e.low is None and e.high is None for e in report.estimates.values())
    for options in ({"interval": "halves"}, {"estimators": ["pr", "pr_corrected"]}):
        with pytest.raises(ConfigError, match="depend on each other"):
            gram(model, x, **more, outputs="full").dimension(**options)


def test_dimension_alignment_and_regression():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    rows = rng.standard_normal((60, 40)) * 0.3 + 2 * np.eye(3)[labels] @ rng.standard_normal(
        (3, 40)
    )
    values = rows @ rows.T
    made = Kernel(
        values, {"a.w": values}, "trace", 3, True, None, (), "loop", "float64", 40, 0.0, 0
    )
    report = made.dimension(interval="none")
    spectrum = np.linalg.eigvalsh(np.cov(rows.T))
    assert report["pr"].value == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum())
    assert report.d == 3 * 40
    assert made.dimension(center=False, interval="none")["pr"].value < report["pr"].value * 2
    same = np.equal.outer(labels, labels)
    perfect = Kernel(same * 1.0, {}, "trace", 3, True, None, (), "loop", "float64", 1, 0.0, 0)
    assert perfect.alignment(labels) == pytest.approx(1)
    assert 0.3 < made.alignment(torch.tensor(labels)) < 1
    chance = made.alignment_by_chance(labels)
    assert chance.low < chance.value < chance.high < made.alignment(labels)
    assert chance == made.alignment_by_chance(torch.tensor(labels))
    ignorant = made.alignment(np.random.default_rng(1).permutation(labels))
    assert chance.low < ignorant < chance.high
    assert made.regression(labels).value == 100
    assert made.regression(labels).n == 15
    vectors = made.eigenvectors(2)[1]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-12)
    with pytest.raises(DataError, match="one per sample"):
        made.alignment([0, 1])
    with pytest.raises(DataError, match="side of the split"):
        made.regression(labels, held_out=0)


def test_tables_and_plot(kernel):
    text = str(kernel)
    assert "Share of each layer" in text
    assert "sigmoid (width 4, peak 1)" in text
    assert kernel.plot().get_xlabel() == "rank"
    assert kernel.to_dict()["parameters"] == kernel.parameters


# -- mistakes -----------------------------------------------------------------------------------


def test_training_mode_is_refused(small):
    model, x, _ = small
    model.train()
    try:
        with pytest.raises(ModelError, match="training mode"):
            gram(model, x)
    finally:
        model.eval()


def test_a_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(ModelError, match="track_running_stats"):
        gram(model, torch.randn(3, 3))


def test_a_parameter_without_a_rule_is_named():
    model, x, _ = network("spikegpt_nano", 2, num_classes=7, embed_dim=16)
    with pytest.raises(ModelError, match=r"blocks\.0\.att\.time_decay of TimeMix .*fallback=True"):
        gram(model, x, readout=last_token)
    with pytest.raises(ModelError, match="give a readout"):
        gram(model, x)


class Shared(nn.Module):
    """A linear layer on something that all samples share."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.register_buffer("fixed", torch.randn(4, 3))

    def forward(self, x, T=None):
        return self.head(torch.tanh(x * self.inner(self.fixed).mean(0)))


class Steps(nn.Module):
    """Integrates along its first axis, [T, B, 3] to [T, B, 2]."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x).cumsum(0)))


def test_functions_that_torch_func_refuses():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[1](fast_sigmoid()(self[0](x)))

    torch.manual_seed(0)
    model, x = Net(nn.Linear(3, 8), nn.Linear(8, 2)).double(), torch.randn(5, 3).double()
    true = gram(model, x, method="loop").values
    assert distance(gram(model, x).values, true) < 1e-12
    product = KernelOperator(model, x, center=False).apply(np.eye(5))
    assert distance(product, true) < 1e-12
    assert "the network's own" in str(gram(model, x))
    for options in ({"surrogate": "atan"}, {"width": 3.0}):
        with pytest.raises(ModelError, match="surrogate of Net cannot be changed, it has no neur"):
            gram(model, x, **options)
    with pytest.raises(ModelError, match="setup_context; use method='structured' or 'loop'"):
        gram(model, x, method="jacobian")


def test_timesteps_are_not_taken_for_samples():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3)
    with pytest.raises(ModelError, match=r"network gives shape \(1, 6, 2\).*model\(x\)\[:, -1\]"):
        gram(Steps(), x)
    with pytest.raises(ModelError, match="samples influence each other, as timesteps do"):
        gram(Steps(), x, readout=lambda model, x, T: model(x)[:, -1])
    frames = lambda model, x, T: model(x.transpose(0, 1))  # noqa: E731
    with pytest.raises(ModelError, match=r"readout gives shape \(4, 1, 2\).*model\(x\).mean\(0\)"):
        gram(Steps(), x.transpose(0, 1), readout=frames)
    options = {"readout": lambda model, x, T: frames(model, x, T).mean(0)}
    with pytest.raises(ModelError, match="give T, the timesteps"):
        gram(Steps(), x.transpose(0, 1), **options)
    torch.manual_seed(0)
    model = Steps()
    found = gram(model, x.transpose(0, 1), T=4, **options)
    true = gram(model, x.transpose(0, 1), T=4, method="loop", **options)
    assert distance(found.values, true.values) < 1e-5


def test_rows_without_samples_are_noticed():
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="not told apart by sample"):
        gram(Shared().eval(), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outputs": 3}, "outputs 0 to 2"),
        ({"outputs": "sum"}, "'trace', 'full'"),
        ({"method": "magic"}, "structured"),
        ({"engine": "cloud"}, "local, ray"),
        ({"surrogate": Surrogate("atan", 2.0), "width": 1.0}, "give one"),
    ],
)
def test_unknown_options(small, options, text):
    model, x, more = small
    with pytest.raises(ConfigError, match=text):
        gram(model, x, **more, **options)


def test_neurons_under_observation_are_counted(small, kernel):
    from spikedim.neurons import record

    model, x, more = small
    with record(model, what=("potential",)):
        assert distance(gram(model, x, **more).values, kernel.values) < 1e-12
    assert sum(isinstance(m, LIF) for m in model.modules()) > 5


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("memory", [None, 0.01])
def test_more_outputs_than_features_need_fewer_passes(memory, cross, monkeypatch):
    model, x, more = network("spikformer_nano", 5, input_shape=(1, 4, 4), embed_dim=8)
    model.head = nn.Linear(8, 30).double()
    passes = []
    run = Capture.run

    def counted(self, *given, **options):
        passes.append(self.samples)
        return run(self, *given, **options)

    monkeypatch.setattr(Capture, "run", counted)
    x2 = x[:2].roll(1, -1) if cross else None
    found = gram(model, x, x2, **more, memory=memory)
    assert sum(passes) <= (5 + cross * 2) * 9 + 6  # beside those of the checks, of a sample or two
    true = gram(model, x, x2, **more, method="loop")
    assert distance(found.values, true.values) < 1e-12
    for name, part in true.layers.items():
        mine = found.layers.get(name, np.zeros_like(part))  # a norm that nothing reads
        assert np.abs(mine - part).max() <= 1e-10 * np.abs(part).max(), name


def test_a_head_that_is_not_all_there_is_differentiated_output_by_output():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 9).double(), nn.Linear(6, 9).double()

        def forward(self, x, T=None):
            return self.one(x) + self.two(x.flip(1))

    class Squashed(Two):
        def forward(self, x, T=None):
            return self.two(self.one(x)[:, :6]).tanh()

    class Rectified(Two):
        """Linear at the first sample, which is where the basis is measured."""

        def forward(self, x, T=None):
            return (self.two(self.one(x)[:, :6]) + 9 * x[:, :1]).relu()

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0] = torch.tensor([1.0, 0.02, -0.02, 0.0])

    class Mixed(Two):
        """Linear, but one output of the head reaches all outputs and the others none."""

        def forward(self, x, T=None):
            return self.two(self.one(x)[:, :6])[:, :1].expand(-1, 9)

    for kind in (Two, Squashed, Rectified, Mixed):
        torch.manual_seed(0)
        model = kind().eval()
        found, true = gram(model, x), gram(model, x, method="loop")
        assert distance(found.values, true.values) < 1e-12
        coarse = gram(model.bfloat16(), x.bfloat16()).values  # too coarse to measure a head in
        assert distance(coarse, true.values) < 0.05


def merging(layer, factor=1.0):
    """A subclass that takes [T, B, C, H, W], as libraries of spiking networks have them."""

    class Merging(layer):
        def forward(self, x):
            y = layer.forward(self, x.flatten(0, 1)) * factor
            return y.view(*x.shape[:2], *y.shape[1:])

    return Merging


NEURON = LIFParams(threshold=0.3)


class Multistep(nn.Module):
    """Convolution, batch norm and neurons on [T, B, C, H, W], twice."""

    def __init__(self, factor=1.0, padding_mode="zeros"):
        super().__init__()
        norm = merging(nn.BatchNorm2d, factor)
        self.body = nn.Sequential(
            merging(nn.Conv2d)(1, 4, 3, padding=1, padding_mode=padding_mode), norm(4), LIF(NEURON),
            merging(nn.Conv2d)(4, 4, 3), norm(4), LIF(NEURON), nn.Flatten(2), nn.Linear(144, 3),
        )  # fmt: skip

    def forward(self, x, T):
        return self.body(x.expand(T, *x.shape)).mean(0)


def test_layers_that_merge_time_with_the_samples_have_the_rules_of_theirs():
    torch.manual_seed(0)
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    readout = {"readout": lambda net, x, T: net(x, T), "T": 3}
    net = Multistep().double()
    net(x, 3)
    net.eval()
    exact = gram(net, x, method="loop", **readout)
    found = gram(net, x, **readout)
    assert exact.values.trace() > 0
    assert distance(found.values, exact.values) < 1e-12
    assert set(found.layers) == set(exact.layers)
    for name, part in exact.layers.items():
        assert distance(found.layers[name], part) < 1e-12
    assert distance(by_timestep(net, x, **readout).values, exact.values) < 1e-12

    for other in (Multistep(0.5), Multistep(padding_mode="circular")):  # neither is torch's layer
        other.double().load_state_dict(net.state_dict())
        other.eval()
        with pytest.raises(ModelError, match="of Merging has no"):
            gram(other, x, **readout)
        exact = gram(other, x, method="loop", **readout).values
        assert distance(gram(other, x, fallback=True, **readout).values, exact) < 1e-12


def test_another_width_keeps_kind_and_scale():
    model, x, more = small_network()
    for layer in model.modules():
        if isinstance(layer, LIF):
            shape = Surrogate("atan", 2.0, scale=0.5)
            layer.params = replace(layer.params, surrogate=shape)
    wanted = gram(model, x, surrogate=Surrogate("atan", 4.0, scale=0.5), **more).values
    assert np.array_equal(gram(model, x, width=4.0, **more).values, wanted)
    assert not np.allclose(gram(model, x, surrogate=Surrogate("atan", 4.0), **more).values, wanted)
