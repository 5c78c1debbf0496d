"""SpikedAttention: the original's primitives, exact identities, conversion and its errors."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import (
    VisionTransformer,
    ViTConfig,
    convert,
    count_spikes,
    load_checkpoint,
    save_checkpoint,
    search_timesteps,
)
from spikedim.models.phase_code import (
    binary_train,
    binary_value,
    integrate,
    phase_step,
    phase_train,
    phase_value,
    phase_weights,
    trace_product,
    winner_step,
)
from spikedim.models.spikedattention import PhaseNeurons
from spikedim.models.spikedattention_graph import Site
from spikedim.ntk import reduction

SETTINGS = [(16, 1.4), (40, 1.15)]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed=0, **options):
    """A small transformer in double precision with batch-norm statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(ViTConfig(**options)).double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
    for _ in range(30):
        model(gaussian(64, *model.config.input_shape, seed=1))
    return model.eval()


def winners(score, T, base, legacy=False):
    """What the spikes of a softmax layer stand for."""
    neurons = PhaseNeurons(Site("softmax", "winner", None), torch.ones(()))
    k, scale = neurons.phases(score, T, base, legacy)
    return scale * phase_value(k, T, base, score)


def close(actual, expected, tolerance=1e-12):
    assert (actual - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.fixture(scope="module")
def primitives(shared):
    path = shared / "refs" / "spikedattention_primitives.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    return torch.load(path, weights_only=True)


@pytest.mark.shared
@pytest.mark.parametrize(("T", "base"), SETTINGS)
def test_original_neurons(primitives, T, base):
    ref = primitives[f"neuron_T{T}_B{base}"]
    scale = ref["scale"]
    a = integrate(ref["input"], base) / base**T / scale
    for kind in ("bipolar", "relu"):
        k = phase_step(a, T, base, signed=kind == "bipolar")
        close(a.sign() * scale * phase_value(k, T, base, a), ref[f"{kind}_decoded"])
        close(a.sign() * scale * phase_value(k, T, base, a), ref[f"{kind}_trace_final"])
        close(a.sign() * scale * phase_train(k, T, a), ref[f"{kind}_spikes_scaled"])


@pytest.mark.shared
@pytest.mark.parametrize(("T", "base"), SETTINGS)
def test_original_trace_product_and_its_fault(primitives, T, base):
    ref = primitives[f"trace_T{T}_B{base}"]
    q, k = (phase_train(phase_step(x, T, base), T, x) * x.sign() for x in (ref["q"], ref["k"]))
    legacy = trace_product(q, k, base, legacy=True)
    close(legacy, ref["I"])
    close(integrate(legacy, base), ref["v_final"])
    v = integrate(trace_product(q, k, base), base)
    close(v, ref["v_final_sign_corrected"])
    close(v / base**T, ref["qhat"] @ ref["khat"].mT)


@pytest.mark.shared
@pytest.mark.parametrize(("T", "base"), SETTINGS)
def test_original_winner_softmax_and_its_fault(primitives, T, base):
    for legacy, key in ((True, "BT"), (False, "BT-1")):
        ref = primitives[f"wta_T{T}_B{base}_{key}"]
        k = winner_step(ref["score"] * ref["mult"], T, base)
        close(phase_train(k, T, ref["score"]), ref["spikes"])
        worth = phase_value(k, T, base, ref["score"])
        close(worth, ref["decoded"])
        close(worth.sum(-1), ref["spike_sum"])
        weights = winners(ref["score"], T, base, legacy)
        close(weights, ref["decoded"] / ref["spike_sum"][..., None])
        wrong = (weights - ref["score"].softmax(-1)).abs().max()
        assert (wrong > 0.05) == legacy


@settings(max_examples=25)
@given(T=st.integers(2, 40), base=st.floats(1.05, 2.0), seed=st.integers(0, 1000))
def test_code_is_the_first_threshold_crossed(T, base, seed):
    a = 2 * gaussian(50, seed=seed)
    k = phase_step(a, T, base)
    for value, phase in zip(a.abs().tolist(), k.tolist(), strict=True):
        crossed = [j for j in range(1, T + 1) if value >= base**-j * (1 + 1 / base) / 2]
        assert phase == (crossed[0] if crossed else 0)
    assert (phase_step(a, T, base, signed=False)[a < 0] == 0).all()
    value = a.sign() * phase_value(k, T, base, a)
    inside = (a.abs() <= 1 / base) & (k > 0)
    ratio = (value / a)[inside]
    assert ((ratio > 2 / (base + 1) - 1e-9) & (ratio < 2 * base / (base + 1) + 1e-9)).all()
    train = phase_train(k, T, a) * a.sign()
    assert (train.abs().sum(0) <= 1).all()
    close(integrate(train, base) / base**T, value)


@settings(max_examples=25)
@given(T=st.integers(1, 24), base=st.floats(1.05, 2.0), seed=st.integers(0, 1000))
def test_trace_product_is_the_product_of_values(T, base, seed):
    q, k = gaussian(2, 3, 5, seed=seed), gaussian(2, 4, 5, seed=seed + 1)
    trains, values = [], []
    for x in (q, k):
        phase = phase_step(x, T, base)
        trains.append(1.7 * phase_train(phase, T, x) * x.sign())
        values.append(1.7 * x.sign() * phase_value(phase, T, base, x))
    v = integrate(trace_product(*trains, base), base)
    close(v / base**T, values[0] @ values[1].mT)


def test_winner_softmax_approaches_softmax():
    score = gaussian(20, 9)
    errors = []
    for T in (8, 32, 128):
        weights = winners(score, T, 256 ** (1 / T))
        close(weights.sum(-1), torch.ones(20, dtype=torch.float64))
        errors.append((weights - score.softmax(-1)).abs().max().item())
    assert errors[2] < errors[1] / 2 < errors[0] / 4


@pytest.mark.parametrize(("T", "base"), [(1, 2.0), (8, 1.3), (60, 1.1)])
def test_input_bits(T, base):
    x = torch.cat([gaussian(40).tanh(), torch.tensor([0.0, 1.0, -1.0, 0.5])])
    value = binary_value(x, T)
    assert (value.abs() <= x.abs()).all()
    assert ((value - x).abs() <= 2.0 ** -min(T, 52)).all()
    train = binary_train(x, T, base)
    close((train * phase_weights(T, base, x).view(-1, 1)).sum(0), value)
    assert set(binary_train(x, T, 2.0).unique().tolist()) <= {-1.0, 0.0, 1.0}


class Images(nn.Module):
    """Every kind of layer that converts and that the transformer lacks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool, self.drop = nn.AvgPool2d(2), nn.Dropout(0.5)
        self.conv = nn.Conv2d(6, 6, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = F.relu(x + self.conv(self.drop(x)))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        q, k, v = self.qkv(x).chunk(3, -1)
        maps = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(6), dim=-1)
        return self.head((maps @ v)[:, 0] - x.mean(1))


class Residual(nn.Module):
    """One ReLU module serves layers of different widths, as in the usual residual networks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, stride=2), nn.Conv2d(4, 7, 1)
        self.conv3, self.relu = nn.Conv2d(7, 7, 3, padding=1), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(7, 3)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.head(self.pool(x + self.relu(self.conv3(x))).flatten(1))


def test_a_module_called_twice_becomes_two_layers_with_scales_per_channel():
    spiking = convert(Residual().eval(), [torch.rand(4, 2, 6, 6)], T=8)
    peaks = {name: tuple(layer.peak.shape) for name, layer in spiking.neurons.items()}
    assert peaks.pop("flatten") == (1, 7)
    assert peaks == {"relu": (1, 4, 1, 1), "relu#2": (1, 7, 1, 1), "relu#3": (1, 7, 1, 1)}


@pytest.mark.parametrize("kind", ["transformer", "images", "residual"])
def test_closed_form_is_the_simulation(kind):
    torch.manual_seed(0)
    made = {"transformer": network, "images": Images, "residual": Residual}[kind]
    ann = made().double().eval()
    shape = (1, 8, 8) if kind == "transformer" else (2, 6, 6)
    x = gaussian(5, *shape, seed=3)
    spiking = convert(ann, [gaussian(32, *shape, seed=4)], T=12)
    with torch.no_grad():
        for T in (1, 12, 20):
            close(spiking.steps(x, T).mean(0), spiking(x, T), 1e-9)
        assert spiking.steps(x).shape == (12, 5, spiking.num_classes)
        torch.testing.assert_close(spiking.continuous()(x), ann(x))
        errors = [(spiking(x, T) - ann(x)).abs().mean().item() for T in (16, 64, 512)]
    assert errors[2] < errors[1] < errors[0]


def test_spikes_are_reachable_and_counted():
    x = gaussian(4, 1, 8, 8)
    spiking = convert(network(), [gaussian(32, 1, 8, 8, seed=4)], T=10)
    trains = spiking.trains(x)
    assert set(trains) == set(spiking.neurons)
    assert "blocks_0_attn_softmax" in trains
    count = count_spikes(spiking, x)
    assert [name for name, _, _ in count.layers] == list(trains)
    for name, neurons, spikes in count.layers:
        train = trains[name]
        assert train.shape[:2] == (10, 4)
        assert (train.abs().sum(0) <= 1).all()
        assert neurons == train[0, 0].numel()
        assert spikes == train.abs().sum().item() / 4
        if spiking.neurons[name].site.kind != "signed":
            assert (train >= 0).all()
    assert count.spikes == pytest.approx(sum(t.abs().sum().item() for t in trains.values()) / 4)
    assert count.input_bits > 0
    assert "share that fires" in str(count)


def test_legacy_behaviour_is_behind_one_flag():
    ann, batches = network(), [gaussian(32, 1, 8, 8, seed=4)]
    x = gaussian(6, 1, 8, 8, seed=5)
    with torch.no_grad():
        exact = ann(x)
        errors = {
            legacy: (convert(ann, batches, T=40, legacy=legacy)(x) - exact).abs().mean().item()
            for legacy in (False, True)
        }
    assert errors[False] < errors[True]
    faulty = convert(ann, batches, T=8, legacy=True)
    count = count_spikes(faulty, x)
    total = sum(t.abs().sum().item() for t in faulty.trains(x).values())
    assert count.spikes == pytest.approx(total / 6)


def test_conversion_leaves_the_original_alone_and_keeps_promises(tmp_path):
    ann = network().train()
    before = copy.deepcopy(ann.state_dict())
    x = gaussian(4, 1, 8, 8)
    spiking = convert(ann, [gaussian(32, 1, 8, 8, seed=4)], T=9)
    assert ann.training
    assert all(torch.equal(v, before[k]) for k, v in ann.state_dict().items())
    with torch.no_grad():
        together = spiking.train()(x)
        close(torch.cat([spiking(x[i : i + 1]) for i in range(4)]), together, 1e-9)
        twin = copy.deepcopy(spiking)
        assert torch.equal(twin(x), together)
        fresh = convert(ann, [gaussian(8, 1, 8, 8)], T=9)
        load_checkpoint(fresh, save_checkpoint(spiking, tmp_path / "converted.safetensors"))
        assert torch.equal(fresh(x), together)
    assert spiking.macs_per_step() == (264_192, 32_768, 320)
    with pytest.raises(ConfigError, match="LIF"):
        spiking.set_neurons(threshold=0.5)
    with pytest.raises(ModelError, match="SpikedAttention has no LIF neurons to vary"):
        reduction(spiking, x)
    assert not spiking.can_have(threshold=0.5)
    for activation in ("surrogate", "rate"):
        close(spiking.continuous(activation)(x), ann.eval()(x))
    with pytest.raises(ConfigError, match="activation='relu' is unknown"):
        spiking.continuous("relu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (VisionTransformer(ViTConfig(norm="layer")), r"blocks\.0\.norm1 \(LayerNorm\).*BatchNorm"),
        (VisionTransformer(ViTConfig(activation="gelu")), r"blocks\.0\.act \(GELU\).*ReLU"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2)), r"layer 1 \(MaxPool2d\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(0)), r"2 \(Softmax\).*dim=0"),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), r"logits \[B, classes\]"),
    ],
)
def test_what_does_not_convert_is_named(model, message):
    with pytest.raises(ModelError, match=message) as caught:
        convert(model, [torch.rand(4, 1, 8, 8)])
    assert "\n" not in str(caught.value)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Squaring(nn.Module):
    def forward(self, x):
        return (x * x).flatten(1)


class Inverse(nn.Module):
    def forward(self, x):
        return (1 / x).flatten(1)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x).flatten(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), "cannot trace Branching"),
        (Squaring(), "product of activations in the network"),
        (Inverse(), "quotient of activations in the network"),
        (Sine(), r"operation sin in the network"),
    ],
)
def test_operations_that_do_not_convert_are_named(model, message):
    with pytest.raises(ModelError, match=message) as caught:
        convert(model, [torch.rand(4, 1, 8, 8)])
    assert "\n" not in str(caught.value)


def test_wrong_settings_and_inputs_are_named():
    ann, batch = VisionTransformer(), torch.rand(4, 1, 8, 8)
    for options, message in (
        ({"T": 0}, "T=0"),
        ({"base": 1.0}, "base=1.0"),
        ({"base": 3}, "base=3"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(ann, [batch], **options)
    for batches, message in (
        ([], "no batch"),
        ([torch.rand(4, 8, 8)], r"\[B, C, H, W\]"),
        ([batch * math.nan], "not finite"),
    ):
        with pytest.raises(DataError, match=message):
            convert(ann, batches)
    with pytest.raises(ModelError, match=r"batch of shape \(4, 3, 8, 8\)"):
        convert(ann, [torch.rand(4, 3, 8, 8)])
    spiking = convert(ann, [batch], T=8)
    for x, T, error, message in (
        (batch, 0, ConfigError, "T=0"),
        (batch[None], None, ModelError, "static frames"),
        (torch.rand(4, 3, 8, 8), None, ModelError, "3 x 8 x 8"),
        (batch.double(), None, ModelError, "float64"),
    ):
        with pytest.raises(error, match=message):
            spiking(x, T)
    with pytest.raises(ConfigError, match="T_values"):
        search_timesteps(spiking, batch, torch.zeros(4), ())
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        search_timesteps(spiking, batch, torch.zeros(3))
    with pytest.raises(ModelError, match="8 x 9"):
        ViTConfig(input_shape=(1, 8, 9))
    for options in ({"embed_dim": 30}, {"norm": "group"}, {"activation": "tanh"}, {"depth": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ViTConfig(**options)


def test_search_states_the_smallest_sufficient_window():
    ann = network()
    x = gaussian(40, 1, 8, 8, seed=6)
    with torch.no_grad():
        labels = ann(x).argmax(1)
    spiking = convert(ann, [gaussian(64, 1, 8, 8, seed=4)])
    found = search_timesteps(spiking, x, labels, (2, 64, 256), tolerance=10.0)
    assert found.original.value == 100.0
    assert [p.T for p in found.points] == [2, 64, 256]
    lost = {p.T: p.lost for p in found.points}
    assert lost[found.T] <= 10.0 < lost[2]
    assert search_timesteps(spiking, x, labels, (1,), tolerance=0.0).T is None


@pytest.mark.slow
def test_converted_transformer_keeps_its_accuracy_on_digits(capsys):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:1200], order[1200:]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ann = VisionTransformer()
    optimizer = torch.optim.AdamW(ann.parameters(), lr=3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=30 * 19)
    for _ in range(30):
        for rows in train[torch.randperm(1200, generator=generator)].split(64):
            loss = F.cross_entropy(ann(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    spiking = convert(ann, x[train].split(300))
    found = search_timesteps(spiking, x[held_out], y[held_out])
    with capsys.disabled():
        print(f"\n{found}")
    assert found.original.value >= 95
    assert found.T is not None
    assert found.T <= 64
