"""SpikingBERT: the original's tensors, a step-by-step reimplementation, promises, and sentiment."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from spikedim.errors import CheckpointError, ConfigError, ModelError
from spikedim.models import (
    create_model,
    list_models,
    load_checkpoint,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.models.spikingbert import SpikingBERT, SpikingBERTConfig
from spikedim.neurons import LIF, LIFParams, record

# Where all value neurons fire, attention sums its softmax weights to 1 up to rounding; at the
# released threshold of 1 two orders of summation then disagree about a spike.
NO_TIES = 0.97
LOW = {"dropout": 0.0, "init_std": 0.3}


def ids(*shape, high=100, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def alive(seed=0, **options):
    """A double-precision network in eval mode whose neurons fire."""
    model = create_model("spikingbert_nano", seed=seed, **{**LOW, **options}).double()
    return model.eval()


def reference(shared):
    path = shared / "refs" / "spikingbert4_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    ref = torch.load(path, weights_only=True)
    config = SpikingBERTConfig(
        vocabulary=100,
        positions=32,
        hidden=32,
        num_heads=4,
        depth=4,
        intermediate=64,
        dropout=0.0,
    )
    model = SpikingBERT(config)
    model.load_state_dict(model.released_state(ref["state_dict"]), strict=True)
    inputs = {"x": ref["input_ids"], "mask": ref["attention_mask"], "types": ref["segment_ids"]}
    return ref, model.double().eval(), inputs


@pytest.mark.shared
def test_original_network_is_reproduced(shared):
    ref, model, inputs = reference(shared)
    assert sum(p.numel() for p in model.parameters()) == 41_730
    for T, expected in ref["results_f64"].items():
        with torch.no_grad(), record(model) as recording:
            logits = model(T=T, **inputs)
        torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-9)
        steps = model.steps(T=T, **inputs)
        torch.testing.assert_close(steps.mean(0), logits, rtol=0, atol=1e-12)
        rates = [spikes.mean(0) for spikes in recording.spikes.values()]
        assert len(rates) == len(expected["asr_per_layer"]) == 25
        for name, rate, mean in zip(
            recording.spikes, rates, expected["asr_per_layer"], strict=True
        ):
            assert rate.mean().item() == pytest.approx(mean.item(), abs=1e-7), name  # kept as f32
        if T == 16:
            for rate, expected_rate in zip(rates, ref["asr_T16"], strict=True):
                torch.testing.assert_close(rate, expected_rate.double(), rtol=0, atol=1e-9)
    with torch.no_grad():
        layers = model.student_layers(T=16, **inputs)
    for layer, expected_layer in zip(layers, ref["fit_dense_reps_T16"], strict=True):
        torch.testing.assert_close(layer, expected_layer.double(), rtol=0, atol=1e-6)


@pytest.mark.shared
def test_published_training_gradients_are_reproduced(shared):
    ref, model, inputs = reference(shared)
    loss = F.cross_entropy(model.train()(T=16, **inputs), ref["train_labels"])
    assert loss.item() == pytest.approx(ref["train_loss_f64_T16"], abs=1e-12)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(ref["train_grads_f64_as_f32_T16"])
    for name, expected in ref["train_grads_f64_as_f32_T16"].items():
        difference = (gradients[name] - expected.double()).norm()
        assert difference <= 1e-6 * expected.double().norm(), name


@pytest.mark.shared
def test_released_aliases_must_agree(shared, tmp_path):
    ref, model, _ = reference(shared)
    state = dict(ref["state_dict"])
    own = model.released_state(state)
    assert set(own) == set(model.state_dict()) < set(state)
    frozen = {f"snn_func_copy.{n}": torch.zeros(1) for n in list(own)[:3]}
    assert set(model.released_state({**state, **frozen})) == set(own)
    alias = "snn_ide_conv.snn_func.network_s_list.3.dense.bias"
    with pytest.raises(CheckpointError, match=rf"{alias}.*network_s4\.dense\.bias"):
        model.released_state({**state, alias: state[alias] + 1})
    with pytest.raises(CheckpointError, match="network_s99"):
        model.released_state({**own, "snn_func.network_s_list.98.dense.bias": torch.zeros(32)})
    torch.save({"state_dict": own}, tmp_path / "own.pt")
    assert load_checkpoint(model, tmp_path / "own.pt").entries == len(own)


@pytest.mark.parametrize("name", list_models("spikingbert*"))
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    if entry.parameters is None:
        return
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert model.unused_parameters() == entry.unused_parameters
    macs = model.macs_per_step()
    assert (macs.dense + macs.head / 4) / 1e9 == pytest.approx(entry.gmac_per_step, abs=5.001e-4)


def test_neurons_are_the_released_ones():
    neuron = model_entry("spikingbert_4").config.neuron
    assert (neuron.beta, neuron.threshold, neuron.reset) == (1.0, 1.0, "soft")
    assert not neuron.decay_input
    assert model_entry("spikingbert_2_general").config.neuron.beta == 0.99


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    import csv

    rows = {
        (r["dataset"], r["T"], r["accuracy"] and float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"] == "SpikingBERT"
    }
    published = model_entry("spikingbert_4").published
    assert len(published) == 6
    for p in published:
        assert (p.dataset, str(p.T), p.accuracy) in rows, p


class Plain:
    """The released network one step and one neuron layer at a time, from the description alone."""

    def __init__(self, state, heads, depth, neuron):
        self.state, self.heads, self.depth, self.neuron = state, heads, depth, neuron
        self.potentials = {}

    def fire(self, name, current):
        v = self.potentials.get(name, torch.zeros_like(current)) + current
        spikes = (v >= self.neuron.threshold).to(v.dtype)
        self.potentials[name] = (v - self.neuron.threshold * spikes) * self.neuron.beta
        return spikes

    def dense(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return x * self.state[f"{name}.LayerNorm.weight"] + self.state[f"{name}.LayerNorm.bias"]

    def attention(self, s, k, v, mask, name):
        q, out = self.dense(s, f"{name}.query"), torch.zeros_like(s)
        d = s.shape[-1] // self.heads
        for b in range(s.shape[0]):
            for h in range(self.heads):
                part = slice(h * d, (h + 1) * d)
                scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(d)
                weights = (scores - 10_000.0 * (1 - mask[b])).exp()
                out[b, :, part] = weights / weights.sum(1, keepdim=True) @ v[b, :, part]
        return out

    def step(self, x, mask, types):
        e = "network_x"
        current = self.state[f"{e}.word_embeddings.weight"][x]
        current = current + self.state[f"{e}.token_type_embeddings.weight"][types]
        current = current + self.state[f"{e}.position_embeddings.weight"][: x.shape[1]]
        s = self.fire("x", self.norm(current, e))
        for layer in range(self.depth):
            n = [f"network_s{6 * layer + i}" for i in range(7)]
            k = self.fire(n[1], self.dense(s, f"{n[1]}.dense"))
            v = self.fire(n[2], self.dense(s, f"{n[2]}.dense"))
            c = self.fire(n[3], self.attention(s, k, v, mask, n[3]))
            y = self.fire(n[4], self.norm(self.dense(c, f"{n[4]}.dense") + s, n[4]))
            m = self.dense(y, f"{n[5]}.dense")
            m = self.fire(n[5], m * 0.5 * (1 + torch.erf(m / math.sqrt(2))))
            s = self.fire(n[6], self.norm(self.dense(m, f"{n[6]}.dense") + y, n[6]))
        return self.dense(s[:, 0], "classification")


@settings(max_examples=15)
@given(
    depth=st.integers(1, 2),
    heads=st.sampled_from([1, 4]),
    leak=st.sampled_from([1.0, 0.99, 0.5]),
    tokens=st.integers(1, 7),
    timesteps=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_plain_implementation(depth, heads, leak, tokens, timesteps, seed):
    neuron = LIFParams(beta=leak, threshold=NO_TIES, reset="soft", decay_input=False)
    model = alive(seed, depth=depth, num_heads=heads, neuron=neuron, num_classes=3)
    x, types = ids(2, tokens, seed=seed), ids(2, tokens, high=2, seed=seed + 1)
    mask = ids(2, tokens, high=2, seed=seed + 2)
    mask[:, 0] = 1
    plain = Plain(model.state_dict(), heads, depth, neuron)
    expected = torch.stack([plain.step(x, mask, types) for _ in range(timesteps)])
    with record(model) as recording:
        actual = model.steps(x, timesteps, mask, types)
    assert recording.spikes["network_x.lif"].sum() > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@settings(max_examples=15)
@given(batch=st.integers(2, 4), timesteps=st.integers(1, 4), seed=st.integers(0, 1000))
def test_samples_and_padding_do_not_leak(batch, timesteps, seed):
    model, x = alive(seed).set_neurons(threshold=NO_TIES), ids(batch, 6, seed=seed)
    together = model.steps(x, timesteps)
    alone = torch.cat([model.steps(x[i : i + 1], timesteps) for i in range(batch)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    padded = torch.cat([x, ids(batch, 3, seed=seed + 1)], 1)
    mask = (torch.arange(9) < 6).expand(batch, -1)
    torch.testing.assert_close(model.steps(padded, timesteps, mask), together, rtol=0, atol=1e-12)


def test_no_state_between_calls_and_the_past_is_independent_of_the_future():
    model, x = alive(), ids(3, 6)
    long = model.steps(x, 6)
    assert torch.equal(long, model.steps(x, 6))
    torch.testing.assert_close(model.steps(x, 2), long[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x, 6), long.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x), model(x, 16))


def test_equilibrium_is_the_limit_of_neurons_but_not_of_the_network():
    """Constant current gives clamp(x, 0, 1); the mean of f(spikes) is not f of their mean."""
    model, x = alive(), ids(4, 6)
    with torch.no_grad():
        limit = model.continuous("rate")._rates(x, 1, None, None)
        rates = {T: model._rates(x, T, None, None) for T in (16, 1024)}
    for T, found in rates.items():
        assert (found[0] - limit[0]).abs().max() <= 1 / T + 1e-12
    assert (rates[1024][1] - limit[1]).abs().mean() > 0.01


def test_gradient_modes():
    x, y = ids(4, 6), torch.tensor([0, 1, 0, 1])
    gradients, values = {}, {}
    for mode in ("equilibrium", "surrogate"):
        model = alive(gradient=mode)
        logits = model(x, 8)
        values[mode] = logits.detach()
        F.cross_entropy(logits, y).backward()
        gradients[mode] = model.network_s2.dense.weight.grad
    assert torch.equal(values["equilibrium"], values["surrogate"])
    assert all(g.abs().sum() > 0 for g in gradients.values())
    assert not torch.allclose(gradients["equilibrium"], gradients["surrogate"])
    twin = alive().continuous("rate")
    rates = twin._rates(x, 1, None, None)[-1]
    F.cross_entropy(alive().classification(rates[:, 0]), y).backward()
    assert twin.network_s2.dense.weight.grad.abs().sum() > 0


def test_function_transforms_give_per_sample_gradients():
    model, x = alive(), ids(3, 5)
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def logits(weights, sample):
        return functional_call(model, weights, (sample[None], 3))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(weights, x), model(x, 3).detach())
    jacobians = vmap(jacrev(logits), (None, 0))(weights, x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1], 3)[0, 1].backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected = jacobians[name][i, 1]
                torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12, msg=name)


def test_layers_are_reachable_by_name():
    model, x = alive(depth=2), ids(2, 5)
    neurons = [n for n, m in model.named_modules() if isinstance(m, LIF)]
    assert neurons == ["network_x.lif", *(f"network_s{i}.lif" for i in range(1, 13))]
    maps = []
    hook = model.network_s3.softmax.register_forward_hook(lambda m, i, out: maps.append(out))
    with record(model, what=("spikes", "potential")) as recording:
        model.steps(x, 3)
    hook.remove()
    assert maps[0].shape == (3, 2, 4, 5, 5)
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 2, 4, 5, dtype=torch.float64))
    assert list(recording.spikes) == neurons
    assert model.set_neurons(threshold=0.5).network_s9.lif.params.threshold == 0.5


def test_training_dropout_is_held_for_all_steps_and_off_in_eval():
    model = alive(dropout=0.5).train()
    x = ids(2, 6)
    with torch.no_grad(), record(model) as recording:
        model(x, 4)
    assert (recording.spikes["network_x.lif"][:, 0, 0] > 0).any()
    assert not torch.equal(model.steps(x, 4), model.steps(x, 4))
    model.eval()
    assert torch.equal(model.steps(x, 4), model.steps(x, 4))


def test_checkpoint_rebuilds_the_network(tmp_path):
    model, x = alive(num_classes=3), ids(2, 6)
    again = load_model(save_checkpoint(model, tmp_path / "bert.safetensors"))
    assert again.config == model.config
    assert torch.equal(again.steps(x, 3), model.steps(x, 3))


def test_distilled_network_has_no_classifier():
    config = copy.deepcopy(SpikingBERTConfig(num_classes=None, hidden=32, num_heads=4, depth=1))
    model = SpikingBERT(config)
    layers = model.student_layers(ids(2, 6), 3)
    assert [layer.shape for layer in layers] == [(2, 6, 32)] * 2
    layers[-1].sum().backward()
    assert model.fit_dense.weight.grad is not None
    for call in (model, model.steps):
        with pytest.raises(ModelError, match="num_classes=None"):
            call(ids(2, 6), 3)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"x": ids(2, 6), "T": 0}, ConfigError, "T=0"),
        ({"x": ids(2, 6), "T": 2.0}, ConfigError, "T=2.0"),
        ({"x": [[1, 2]]}, ModelError, "list"),
        ({"x": ids(6)}, ModelError, r"shape \(6,\)"),
        ({"x": ids(0, 6)}, ModelError, r"shape \(0, 6\)"),
        ({"x": ids(2, 33)}, ModelError, r"shape \(2, 33\).*1 to 32"),
        ({"x": ids(2, 6).double()}, ModelError, "torch.float64"),
        ({"x": ids(2, 6) + 95}, ModelError, r"token ids must lie in \[0, 100\)"),
        ({"x": -1 - ids(2, 6)}, ModelError, "token ids"),
        ({"x": ids(2, 6), "types": ids(2, 6) + 2}, ModelError, "segment ids"),
        ({"x": ids(2, 6), "mask": torch.ones(2, 5)}, ModelError, r"mask is \(2, 5\)"),
        ({"x": ids(2, 6), "types": [0]}, ModelError, "types is list"),
        ({"x": ids(2, 6), "types": torch.zeros(2, 6)}, ModelError, "types has type torch.float32"),
    ],
)
def test_wrong_inputs_are_named(inputs, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model("spikingbert_nano")(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 33}, "hidden=33"),
        ({"depth": 0}, "depth=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"init_std": 0.0}, "init_std=0.0"),
        ({"gradient": "exact"}, "gradient='exact'"),
        ({"neuron": 1.0}, "neuron=1.0"),
        ({"neuron": LIFParams(reset="hard")}, r"reset='hard'.*gradient='surrogate'"),
        ({"input_shape": (3, 8, 8)}, "input_shape"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        create_model("spikingbert_nano", **options)
    assert "\n" not in str(caught.value)


def token_table(texts, index):
    """[CLS] and the words of each text as ids, padded with 0; unknown words share one id."""
    from spikedim.data.words import _words

    rows = [[1] + [index.get(w, 2) for w in words] for words in _words(list(texts))]
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = torch.tensor(found)
    return table


def rates_of(current, neuron):
    return (current / neuron.threshold).clamp(0, 1)


def batches_of_like_length(lengths, size, generator):
    chunks = torch.randperm(len(lengths), generator=generator).split(20 * size)
    batches = [b for chunk in chunks for b in chunk[lengths[chunk].argsort()].split(size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


@pytest.mark.slow
@pytest.mark.shared
def test_sentiment_of_sentences(shared, capsys):
    """SST-2: 10,000 phrases train, the 872 sentences of the official dev set decide."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from spikedim.data import load_dataset
    from spikedim.data.words import _words
    from spikedim.theory.statistics import wilson_interval

    data = load_dataset("sst2", root=shared / "data")
    words = sorted({w for text in _words(list(data.train.inputs)) for w in text})
    index = {word: place for place, word in enumerate(words, 3)}
    x, held_out = token_table(data.train.inputs, index), token_table(data.test.inputs, index)
    y, truth = (torch.as_tensor(s.labels).long() for s in (data.train, data.test))

    model = create_model("spikingbert_small", vocabulary=len(words) + 3)
    with torch.no_grad():  # phrases differ by their words first, then by their order
        model.network_x.position_embeddings.weight *= 0.2
        model.network_x.token_type_embeddings.weight *= 0.2
    words_only = [model.network_x.word_embeddings.weight]
    others = [p for p in model.parameters() if p is not words_only[0]]
    optimizer = torch.optim.AdamW([{"params": words_only}, {"params": others}])
    lengths, order = (x != 0).sum(1), torch.Generator().manual_seed(0)
    epochs, size, T = (2, 3), 64, 16
    total = sum(epochs) * len(batches_of_like_length(lengths, size, torch.Generator()))
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [1e-2, 5e-4], total_steps=total, pct_start=0.1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The rates alone first, which is one pass instead of T; then the spikes themselves.
        for network, count in ((model.continuous(rates_of), epochs[0]), (model, epochs[1])):
            for _ in range(count):
                for rows in batches_of_like_length(lengths, size, order):
                    batch = x[rows, : lengths[rows].max()]
                    steps = T if network is model else 1
                    loss = F.cross_entropy(network(batch, steps, batch != 0), y[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    rate.step()
    model.eval()
    with torch.no_grad():
        guess = torch.cat([model(t, T, t != 0).argmax(1) for t in held_out.split(109)])
    vectorizer = TfidfVectorizer()
    baseline = LogisticRegression(max_iter=1000)
    baseline.fit(vectorizer.fit_transform(data.train.inputs), y.numpy())
    linear = torch.as_tensor(baseline.predict(vectorizer.transform(data.test.inputs)))
    with capsys.disabled():
        for name, found in (("SpikingBERT-small", guess), ("TF-IDF + logistic", linear)):
            hits = int((found == truth).sum())
            low, high = wilson_interval(hits, len(truth))
            print(f"\n{name}: {100 * hits / len(truth):.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    assert (guess == truth).double().mean() >= 0.70
