"""SpikeGPT: the original network, a plain reimplementation, streaming, generation, learning."""

import copy
import csv
import gzip
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from references import assert_same_gradients, assert_same_spikes
from spikedim.errors import ConfigError, ModelError
from spikedim.models import (
    SpikeGPT,
    SpikeGPTConfig,
    create_model,
    l2_wrap,
    language_loss,
    list_models,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.models.wkv import wkv
from spikedim.neurons import LIFParams, Surrogate, record, streaming
from spikedim.profiling import profile

NAMES = list_models("spikegpt*")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(batch, length, vocabulary=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def network(**options):
    return create_model("spikegpt_tiny", **options).double().eval()


# -- the original network ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "refs" / "spikegpt_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    return torch.load(path, weights_only=True)


def original(ref):
    c = json.loads(ref["meta"])["config"]
    model = SpikeGPT(SpikeGPTConfig(c["vocab_size"], c["n_embd"], c["n_layer"], c["ctx_len"]))
    model.load_state_dict(ref["state_dict"], strict=True)
    return model.double().eval()


@pytest.mark.shared
def test_original_network_is_reproduced(reference):
    model = original(reference)
    assert sum(p.numel() for p in model.parameters()) == reference["n_params"]

    with record(model) as recording:
        logits = model(reference["input"])
    torch.testing.assert_close(logits, reference["output_f64"], rtol=0, atol=1e-9)

    expected = dict(reference["spikes"])
    expected["emb_lif"] = expected.pop("embedding_heaviside")  # stored as [B, S, E]

    def released(name, spikes):
        return spikes.transpose(0, 1) if name == "emb_lif" else spikes

    assert_same_spikes(recording.spikes, expected, released)

    loss = language_loss(logits, reference["targets"])
    assert loss.item() == pytest.approx(reference["loss_f64"], abs=1e-9)
    loss.backward()
    assert set(dict(model.named_parameters())) == set(reference["grads_f64_as_f32"])
    assert_same_gradients(model, reference["grads_f64_as_f32"])


@pytest.mark.shared
def test_single_precision_gives_the_same_logits(reference):
    logits = original(reference).float()(reference["input"])
    torch.testing.assert_close(logits, reference["output_f32"], rtol=0, atol=1e-5)


@pytest.mark.shared
def test_decays_bonuses_and_mixes_start_as_released(reference):
    fresh = create_model("spikegpt_tiny").state_dict()
    for name, value in reference["state_dict"].items():
        if ".time_" in name:
            torch.testing.assert_close(fresh[name], value, msg=name)


# -- what is registered -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    v, e, depth = (getattr(entry.config, k) for k in ("num_classes", "embed_dim", "depth"))
    assert entry.parameters == 2 * v * e + depth * (13 * e**2 + 11 * e) + 4 * e
    macs = model.macs_per_step()
    expected = pytest.approx(entry.gmac_per_step, rel=0.005)
    assert (macs.dense + macs.head) / 1e9 == expected


def test_published_sizes():
    published = {"46m": 46_553_088, "216m": 215_399_424, "260m": 261_456_384}
    for size, parameters in published.items():
        assert model_entry(f"spikegpt_{size}").parameters == parameters


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    rows = {
        (r["dataset"], r["T"], float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"].startswith("SpikeGPT")
    }
    found = [p for name in NAMES for p in model_entry(name).published]
    assert len(found) == 8
    assert all((p.dataset, str(p.T), p.accuracy) in rows for p in found)


def test_operations_that_run_are_those_counted():
    model = create_model("spikegpt_tiny")
    result = profile(model, tokens(3, 16), 16)
    macs = model.macs_per_step()
    assert not result.unsupported
    assert all(operation.operation == "linear" for operation in result.operations)
    dense = {o.layer: o.dense / o.copies for o in result.operations}
    assert dense.pop("head") == macs.head
    assert sum(dense.values()) == macs.dense
    assert macs.attention == 0


# -- the average ------------------------------------------------------------------------------


def direct(decay, first, k, v):
    """The definition: a softmax over past and present tokens."""
    length = len(k)
    age = torch.arange(length)[:, None] - torch.arange(length) - 1  # of token i seen from t
    exponent = k[None] - age[:, :, None, None] * torch.exp(decay)  # [t, i, B, E]
    exponent = torch.where((age < 0)[:, :, None, None], -torch.inf, exponent)
    exponent = torch.where((age == -1)[:, :, None, None], k[None] + first, exponent)
    return (torch.softmax(exponent, 1) * v[None]).sum(1)


@settings(max_examples=30)
@given(
    length=st.integers(1, 40),
    batch=st.integers(1, 2),
    spread=st.sampled_from([0.1, 1.0, 30.0, 1000.0]),
    seed=st.integers(0, 2**16),
)
def test_average_is_its_definition(length, batch, spread, seed):
    k, v = spread * draw(length, batch, 3, seed=seed), draw(length, batch, 3, seed=seed + 1)
    decay, first = 2 * draw(3, seed=seed + 2), spread * draw(3, seed=seed + 3)
    inputs = [t.requires_grad_() for t in (decay, first, k, v)]
    out, _ = wkv(*inputs)
    expected = direct(*inputs)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    weight = draw(length, batch, 3, seed=seed + 4)
    got = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@settings(max_examples=20)
@given(cut=st.integers(1, 29), seed=st.integers(0, 2**16))
def test_average_continues_from_its_sums(cut, seed):
    decay, first = draw(3, seed=seed), draw(3, seed=seed + 1)
    k, v = 5 * draw(30, 2, 3, seed=seed + 2), draw(30, 2, 3, seed=seed + 3)
    whole, end = wkv(decay, first, k, v)
    one, sums = wkv(decay, first, k[:cut], v[:cut])
    two, last = wkv(decay, first, k[cut:], v[cut:], sums)
    torch.testing.assert_close(torch.cat([one, two]), whole, rtol=1e-12, atol=1e-12)
    for part in (0, 1):
        scale = torch.exp(last.top - end.top)
        torch.testing.assert_close(last[part] * scale, end[part], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_never_overflows(dtype):
    k = torch.tensor([-1e4, 1e4, 0.0, 3e4, -3e4, 90.0])[:, None, None].to(dtype)
    v = torch.arange(6.0)[:, None, None].to(dtype)
    out, sums = wkv(torch.tensor([-8.0]), torch.tensor([0.0]), k, v)
    assert out.dtype == dtype
    assert out.flatten().tolist() == [0, 1, 1, 3, 3, 3]
    assert all(torch.isfinite(part).all() for part in sums)


# -- a plain implementation -------------------------------------------------------------------


def plain_neurons(x):
    u, out = torch.zeros_like(x[0]), []
    for current in x:
        u = u + (current - u) / 2
        s = (u >= 1).to(x.dtype)
        u = u * (1 - s)
        out.append(s)
    return torch.stack(out)


def plain_spikegpt(state, sequence, depth):
    """One sequence, token by token, [S, E]."""

    def norm(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias)

    def mixed(x, ratio):
        ratio = state[ratio].flatten()
        rows = [x[t] * ratio + (x[t - 1] * (1 - ratio) if t else 0) for t in range(len(x))]
        return torch.stack(rows)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T

    x = (state["emb.weight"][sequence] >= 0).double()
    for i in range(depth):
        b = f"blocks.{i}"
        x = norm(x, f"{b}.ln0") if i == 0 else x
        y = norm(x, f"{b}.ln1")
        k, v, r = (
            linear(mixed(y, f"{b}.att.time_mix_{n}"), f"{b}.att.{full}")
            for n, full in (("k", "key"), ("v", "value"), ("r", "receptance"))
        )
        decay, first = state[f"{b}.att.time_decay"], state[f"{b}.att.time_first"]
        average = direct(decay, first, k[:, None], v[:, None])[:, 0]
        x = x + plain_neurons(linear(torch.sigmoid(r) * average, f"{b}.att.output"))
        y = norm(x, f"{b}.ln2")
        k = linear(mixed(y, f"{b}.ffn.time_mix_k"), f"{b}.ffn.key").clamp(min=0) ** 2
        r = linear(mixed(y, f"{b}.ffn.time_mix_r"), f"{b}.ffn.receptance")
        x = x + plain_neurons(torch.sigmoid(r) * linear(k, f"{b}.ffn.value"))
    return linear(norm(x, "ln_out"), "head")


@settings(max_examples=25)
@given(
    vocabulary=st.integers(1, 60),
    embed_dim=st.sampled_from([1, 3, 16]),
    depth=st.integers(1, 3),
    length=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_plain_implementation(vocabulary, embed_dim, depth, length, seed):
    model = network(num_classes=vocabulary, embed_dim=embed_dim, depth=depth, seed=seed)
    x = tokens(2, length, vocabulary, seed)
    steps = model.steps(x)
    assert steps.shape == (length, 2, vocabulary)
    for i in range(2):
        expected = plain_spikegpt(model.state_dict(), x[i], depth)
        torch.testing.assert_close(steps[:, i], expected, rtol=0, atol=1e-9)


# -- the contract -----------------------------------------------------------------------------


def test_fresh_networks_fire_and_give_near_uniform_predictions():
    model = network(embed_dim=64, depth=3)
    with record(model) as recording, torch.no_grad():
        logits = model(tokens(8, 64))
    rates = {name: spikes.mean().item() for name, spikes in recording.spikes.items()}
    assert all(0.01 < rate < 0.6 for rate in rates.values()), rates
    assert logits.std() < 1


def test_no_state_between_calls_no_leak_between_samples_no_look_ahead():
    model, x = network(), tokens(3, 20)
    logits = model(x)
    assert torch.equal(logits, model(x, 20))
    torch.testing.assert_close(model.steps(x), logits.transpose(0, 1), rtol=0, atol=0)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1]), logits[i : i + 1], rtol=0, atol=1e-12)
    changed = x.clone()
    changed[:, 12:] = tokens(3, 8, seed=9)
    torch.testing.assert_close(model(changed)[:, :12], logits[:, :12], rtol=0, atol=1e-12)
    assert not torch.allclose(model(changed)[:, 12:], logits[:, 12:])


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=5), refractory=st.integers(0, 2))
def test_pieces_give_what_the_whole_gives(cuts, refractory):
    model = network(neuron=LIFParams(refractory=refractory, surrogate=Surrogate("atan", 2.0)))
    x = tokens(2, sum(cuts))
    expected = model(x)
    state, pieces = None, []
    for piece in x.split(cuts, 1):
        logits, state = model.stream(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-11)
    with streaming(model):
        again = torch.cat([model(piece) for piece in x.split(cuts, 1)], 1)
    assert torch.equal(again, torch.cat(pieces, 1))
    assert torch.equal(model(x), expected)  # and the network has forgotten them


def test_streaming_is_recorded():
    model, x = network(), tokens(2, 6)
    with record(model, ("spikes", "potential")) as whole:
        model(x)
    with streaming(model), record(model, ("spikes", "potential")) as parts:
        model(x[:, :4])
        model(x[:, 4:])
    joined = torch.cat([parts.spikes["blocks.1.lif2"], parts.spikes["blocks.1.lif2#2"]])
    assert torch.equal(joined, whole.spikes["blocks.1.lif2"])
    assert torch.equal(whole.potential["emb_lif"], model.emb(x.T))


def test_generation_follows_the_generator_and_the_temperature():
    model, prompt = network(), tokens(3, 5)
    one, two, other = (
        model.generate(prompt, 8, 1.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert one.shape == (3, 13)
    assert torch.equal(one[:, :5], prompt)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    greedy = model.generate(prompt, 6, temperature=0)
    for t in range(5, 11):
        assert torch.equal(greedy[:, t], model(greedy[:, :t])[:, -1].argmax(-1))
    cold = model.generate(prompt, 6, 1e-6, torch.Generator().manual_seed(0))
    assert torch.equal(cold, greedy)
    model.train().generate(prompt, 2, 0)
    assert model.training


def test_generation_draws_from_the_softmax():
    model, n = network(num_classes=4), 4000
    prompt = torch.zeros(n, 1, dtype=torch.int64)
    drawn = model.generate(prompt, 1, 0.5, torch.Generator().manual_seed(0))[:, 1]
    expected = torch.softmax(model(prompt[:1])[0, 0] / 0.5, -1)
    frequency = torch.bincount(drawn, minlength=4) / n
    assert ((frequency - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


def test_largest_logits_are_pulled_to_zero():
    logits, targets = draw(2, 5, 7).requires_grad_(), tokens(2, 5, 7)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    wrapped = language_loss(logits, targets)
    assert wrapped.item() == plain.item()
    pull = torch.autograd.grad(wrapped, logits)[0] - torch.autograd.grad(plain, logits)[0]
    largest = F.one_hot(logits.argmax(-1), 7)
    torch.testing.assert_close(pull, 1e-4 / 10 * largest * logits.detach(), rtol=1e-6, atol=1e-12)
    assert l2_wrap(plain, logits, 0.0) == plain


def test_gradients_flow_through_resets_and_embeddings():
    model, x = network(), tokens(2, 12)
    language_loss(model(x), tokens(2, 12, seed=1)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    detached = copy.deepcopy(model).set_neurons(detach_reset=True)
    detached.zero_grad()
    language_loss(detached(x), tokens(2, 12, seed=1)).backward()
    assert not torch.allclose(model.emb.weight.grad, detached.emb.weight.grad)


def test_dropout_acts_in_training_only():
    model, x = network(dropout=0.5), tokens(2, 12)
    assert torch.equal(model(x), model(x))
    torch.manual_seed(0)
    one = model.train()(x)
    assert not torch.equal(one, model(x))
    torch.manual_seed(0)
    assert torch.equal(one, model(x))
    still = network(dropout=0.0)
    assert torch.equal(still.train()(x), still.eval()(x))


def test_function_transforms_give_per_sample_gradients():
    model, x = network(), tokens(3, 10)
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def loss(weights, sequence):
        return language_loss(functional_call(model, weights, (sequence[None],)), sequence[None])

    found = vmap(grad(loss), (None, 0))(weights, x)
    for i in range(3):
        model.zero_grad()
        loss(dict(model.named_parameters()), x[i]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, found[name][i], msg=name)


def test_network_compiles_to_one_graph():
    model, x = network(depth=1), tokens(2, 5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_continuous_twin_is_smooth_and_shares_the_weights():
    model, x = network(), tokens(2, 8)
    twin = model.continuous()
    with record(twin) as recording:
        logits = twin(x)
    assert all(((s > 0) & (s < 1)).all() for s in recording.spikes.values())
    smooth = Surrogate("atan", 2.0).primitive(model.emb(x.T))
    torch.testing.assert_close(recording.spikes["emb_lif"], smooth)
    assert twin.head.weight is model.head.weight
    parts, state = twin.stream(x[:, :3])
    rest, _ = twin.stream(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([parts, rest], 1), logits)


def test_smooth_neurons_smooth_the_embedding_too():
    model, x = network().set_neurons(smooth=True), tokens(1, 4)
    with record(model) as recording:
        model(x)
    smooth = Surrogate("atan", 2.0).primitive(model.emb(x.T))
    assert torch.equal(recording.spikes["emb_lif"], smooth)


def test_round_trip_through_a_file(tmp_path):
    model = network(num_classes=30, depth=3, dropout=0.1)
    again = load_model(save_checkpoint(model, tmp_path / "net.safetensors"))
    assert again.config == model.config
    assert again.config.neuron.detach_reset is False
    assert torch.equal(again(tokens(2, 9, 30)), model(tokens(2, 9, 30)))


@pytest.mark.parametrize(
    ("x", "T", "error", "message"),
    [
        (torch.zeros(2, 8), None, ModelError, r"float32, expected tokens \[B, S\] of torch\.int64"),
        (torch.zeros(2, 1, 8, 8), None, ModelError, r"shape \(2, 1, 8, 8\)"),
        (torch.zeros(8, dtype=torch.int64), None, ModelError, r"shape \(8,\)"),
        (torch.zeros(2, 0, dtype=torch.int64), None, ModelError, "nothing to compute"),
        (torch.zeros(2, 8, dtype=torch.int64), 0, ConfigError, "T=0"),
        (torch.zeros(2, 8, dtype=torch.int64), 5, ModelError, "T=5, but the sequences have 8"),
        (
            torch.full((2, 8), 50),
            None,
            ModelError,
            "run from 50 to 50, the vocabulary from 0 to 49",
        ),
        (torch.full((2, 8), -1), None, ModelError, "run from -1 to -1"),
        ([[1]], None, ModelError, "list"),
    ],
)
def test_wrong_inputs_are_named(x, T, error, message):
    with pytest.raises(error, match=message) as caught:
        network()(x, T)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"length": 2.5}, r"length=2\.5"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"generator": None}, "needs a generator"),
    ],
)
def test_wrong_generation_is_named(options, message):
    options = {"length": 2, "generator": torch.Generator(), **options}
    with pytest.raises(ConfigError, match=message):
        network().generate(tokens(1, 3), **options)


def test_generation_refuses_broken_weights_and_foreign_states():
    model = network()
    _, state = model.stream(tokens(2, 3))
    with pytest.raises(ModelError, match="state is of 2 sequences, the tokens of 3"):
        model.stream(tokens(3, 3), state)
    with pytest.raises(ModelError, match="nothing to compute"):
        model.generate(tokens(2, 3)[:, :0], 4, 0)
    model.head.weight.data[3] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        model.generate(tokens(1, 3), 2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"embed_dim": 2.5}, r"embed_dim=2\.5"),
        ({"depth": True}, "depth=True"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"dropout": "a"}, "dropout='a'"),
        ({"neuron": 1}, "neuron=1"),
        ({"input_shape": (1, 8, 8)}, "'input_shape'"),
        ({"vocabulary": 5}, "'vocabulary'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        create_model("spikegpt_tiny", **options)


# -- learning ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_shakespeare_is_predicted_better_than_by_a_bigram_model(shared):
    path = shared / "data" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the samples")
    text = gzip.decompress(path.read_bytes()).decode()
    characters = sorted(set(text))
    number = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([number[c] for c in text])
    size, cut = len(characters), int(0.9 * len(data))
    train, held_out = data[:cut], data[cut:]

    counts = torch.full((size, size), 0.1, dtype=torch.float64)
    pairs = (train[:-1], train[1:])
    counts.index_put_(pairs, torch.ones(cut - 1, dtype=torch.float64), accumulate=True)
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    bigram = -log_p[held_out[:-1], held_out[1:]].mean().item()

    length, batch, steps = 64, 32, 150
    model = create_model("spikegpt_small", num_classes=size, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(steps):
        start = torch.randint(0, cut - length - 1, (batch,), generator=generator)
        window = train[start[:, None] + torch.arange(length + 1)]
        loss = language_loss(model(window[:, :-1]), window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    rows = (len(held_out) - 1) // 256
    x, y = (held_out[i : i + rows * 256].view(rows, 256) for i in (0, 1))
    with torch.no_grad():
        validation = F.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten()).item()
    print(f"validation loss {validation:.3f} nats, bigram model {bigram:.3f}")
    assert validation < bigram - 0.3
