"""SpikingResformer: the original networks, a plain reimplementation, firing rates, errors."""

import copy
import csv
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from references import assert_same_gradients, assert_same_spikes, channels_third
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import (
    SpikingResformer,
    SpikingResformerConfig,
    calibrate_batchnorm,
    create_model,
    list_models,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.models.spikingresformer import DSSA
from spikedim.neurons import PLIF, LIFParams, record, streaming
from spikedim.profiling import profile

NAMES = list_models("spikingresformer*")
DIGITS = (1, 8, 8)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alive(shape=DIGITS, **options):
    """A calibrated nano network in double precision."""
    model = create_model("spikingresformer_nano", input_shape=shape, **options).double()
    calibrate_batchnorm(model, [gaussian(8, *shape, seed=1)], 4)
    return model


def attention_layers(model):
    return [module for module in model.modules() if isinstance(module, DSSA)]


# -- the original networks --------------------------------------------------------------------


def reference(shared, name):
    path = shared / "refs" / f"spikingresformer_{name}_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    ref = torch.load(path, weights_only=True)
    ctor = json.loads(ref["meta"])["ctor"]
    side = ctor["img_size"]
    config = SpikingResformerConfig(
        input_shape=(3, side, side),
        num_classes=ctor["num_classes"],
        planes=tuple(ctor["planes"]),
        num_heads=tuple(ctor["num_heads"]),
        depths=tuple(stage.count("DSSA") for stage in ctor["layers"]),
        patch_sizes=tuple(ctor["patch_sizes"]),
        group_size=ctor["group_size"],
        prologue="imagenet" if name == "imagenet" else "cifar",
        plif=ctor.get("activation") == "PLIF",
    )
    model = SpikingResformer(config)
    model.load_state_dict(ref["state_dict"], strict=True)
    x = ref["input"].double()
    return ref, model.double().eval(), x.transpose(0, 1) if x.ndim == 5 else x


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cifar", "imagenet", "dvs_plif"])
def test_original_network_is_reproduced(shared, name):
    ref, model, x = reference(shared, name)
    assert sum(p.numel() for p in model.parameters()) == ref["n_params"]

    with record(model) as recording:
        steps = model.steps(x)
    torch.testing.assert_close(steps, ref["output_f64"], rtol=0, atol=1e-9)

    def released(layer, spikes):
        return spikes.mT if layer.endswith("attn") else channels_third(layer, spikes)

    assert_same_spikes(recording.spikes, ref["spikes"], released)

    loss = F.cross_entropy(steps.mean(0), ref["labels"])
    assert loss.item() == pytest.approx(ref["loss_f64"], abs=1e-9)
    loss.backward()
    assert set(dict(model.named_parameters())) == set(ref["grads_f64_as_f32"])
    assert_same_gradients(model, ref["grads_f64_as_f32"])


@pytest.mark.shared
def test_single_precision_gives_the_same_logits(shared):
    ref, model, x = reference(shared, "cifar")
    steps = model.float().steps(x.float())
    torch.testing.assert_close(steps, ref["output_f32"], rtol=0, atol=1e-6)


# -- what is registered -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    macs = model.macs_per_step()
    assert (macs.dense + macs.head) / 1e9 == pytest.approx(entry.gmac_per_step, abs=5.001e-4)
    if entry.source != "spikedim":
        assert len(model.state_dict()) == (249 if entry.config.plif else 211)


@pytest.mark.parametrize(
    ("name", "conv", "matmul"),
    [
        ("ti_imagenet", 3.742, 0.285),
        ("s_imagenet", 5.513, 0.354),
        ("m_imagenet", 10.202, 0.492),
        ("l_imagenet", 17.655, 0.708),
        ("ti_cifar", 1.185, 0.030),
    ],
)
def test_operations_are_the_published_ones(name, conv, matmul):
    with torch.device("meta"):
        macs = create_model(f"spikingresformer_{name}").macs_per_step()
    assert round((macs.dense + macs.head) / 1e9, 3) == conv
    assert round(macs.attention / 1e9, 3) == matmul


@pytest.mark.parametrize(
    ("name", "parameters"), [("ti_cifar", 10_827_712), ("s_transfer", 17_353_024)]
)
def test_hundred_class_counts_are_exact(name, parameters):
    with torch.device("meta"):
        model = create_model(f"spikingresformer_{name}", num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_large_prologue_count_is_exact():
    options = {"depths": (1, 2, 1), "prologue": "imagenet", "input_shape": (3, 64, 64)}
    model = create_model("spikingresformer_tiny", **options)
    assert sum(p.numel() for p in model.parameters()) == 203_024


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    rows = {
        (r["dataset"], r["T"], r["accuracy"] and float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"].startswith("SpikingResformer")
    }
    found = [p for name in NAMES for p in model_entry(name).published]
    assert len(found) == 10
    assert all((p.dataset, str(p.T), p.accuracy) in rows for p in found)


@pytest.mark.parametrize("name", ["spikingresformer_nano", "spikingresformer_tiny"])
def test_operations_that_run_are_those_counted(name):
    model = create_model(name, input_shape=DIGITS)
    calibrate_batchnorm(model, [gaussian(8, *DIGITS, dtype=torch.float32)], 2)
    result = profile(model, gaussian(2, *DIGITS, dtype=torch.float32), 2)
    macs = model.macs_per_step()
    assert not result.unsupported
    assert not [finding for finding in result.gates if finding.severity == "error"]
    dense = {"conv": 0, "linear": 0, "matmul": 0}
    for operation in result.operations:
        dense[operation.operation.split()[0]] += operation.dense / operation.copies
    assert dense == {"conv": macs.dense, "linear": macs.head, "matmul": macs.attention}


# -- a plain implementation -------------------------------------------------------------------


def plain_neurons(x, gain):
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        v = v + (current - v) * gain
        s = (v >= 1).to(x.dtype)
        v = v * (1 - s)
        out.append(s)
    return torch.stack(out)


def plain_spikingresformer(state, x, config):
    """Channel-first, frame by frame, head by head, from the description alone."""

    def fire(y, name):
        w = state.get(f"{name}.w")
        return plain_neurons(y, 0.5 if w is None else torch.sigmoid(w))

    def conv(y, name, norm, **options):
        p = [state[f"{norm}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        weight = state[f"{name}.weight"]
        return torch.stack([F.batch_norm(F.conv2d(f, weight, **options), *p) for f in y])

    large = config.prologue == "imagenet"
    x = conv(x, "prologue.0", "prologue.1", stride=2 if large else 1, padding=3 if large else 1)
    if large:
        x = torch.stack([F.max_pool2d(f, 3, 2, 1) for f in x])
    for stage, (p, heads) in enumerate(zip(config.patch_sizes, config.num_heads, strict=True)):
        at = f"layers.{stage}"
        if stage:
            y = fire(x, f"{at}.0.activation")
            x = conv(y, f"{at}.0.conv", f"{at}.0.norm", stride=2, padding=1)
        for pair in range(config.depths[stage]):
            a, g = (f"{at}.{bool(stage) + 2 * pair + i}" for i in (0, 1))
            z = fire(x, f"{a}.activation_in")
            y = conv(z, f"{a}.W", f"{a}.norm", stride=p).flatten(3)
            d, patches = x.shape[2] // heads, y.shape[3]
            scores, values = [], []
            for h in range(heads):
                part = y[:, :, 2 * d * h : 2 * d * (h + 1)]
                rate = state[f"{a}.firing_rate_x"].flatten()[h]
                mine = z[:, :, d * h : d * (h + 1)].flatten(3)
                scores.append(torch.einsum("tbdl,tbdn->tbln", part[:, :, :d], mine))
                scores[-1] /= (rate * d) ** 0.5
                values.append(part[:, :, d:])
            attention = fire(torch.stack(scores, 2), f"{a}.activation_attn")
            out = []
            for h in range(heads):
                rate = state[f"{a}.firing_rate_attn"].flatten()[h]
                o = torch.einsum("tbdl,tbln->tbdn", values[h], attention[:, :, h])
                out.append(o / (rate * patches) ** 0.5)
            o = fire(torch.cat(out, 2).reshape(x.shape), f"{a}.activation_out")
            x = x + conv(o, f"{a}.Wproj", f"{a}.norm_proj")
            u = conv(fire(x, f"{g}.up.0"), f"{g}.up.1", f"{g}.up.2")
            inner = {"padding": 1, "groups": u.shape[2] // config.group_size}
            u = u + conv(fire(u, f"{g}.conv.0.0"), f"{g}.conv.0.1", f"{g}.conv.0.2", **inner)
            x = x + conv(fire(u, f"{g}.down.0"), f"{g}.down.1", f"{g}.down.2")
    return x.mean((3, 4)) @ state["classifier.weight"].T


@settings(max_examples=25)
@given(
    prologue=st.sampled_from(["cifar", "imagenet"]),
    heads=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 4])),
    depths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    group_size=st.sampled_from([8, 16, 32]),
    channels=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    timesteps=st.integers(1, 3),
    plif=st.booleans(),
    events=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_plain_implementation(
    prologue, heads, depths, group_size, channels, grid, timesteps, plif, events, seed
):
    scale = 8 if prologue == "imagenet" else 4
    shape = (channels, scale * grid[0], scale * grid[1])
    model = create_model(
        "spikingresformer_nano",
        input_shape=shape,
        planes=(8, 16),
        num_heads=heads,
        depths=depths,
        group_size=group_size,
        prologue=prologue,
        plif=plif,
        seed=seed,
    ).double()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, PLIF):
            module.w.data = torch.randn((), generator=generator, dtype=torch.float64)
        if isinstance(module, torch.nn.BatchNorm2d):  # so that most layers fire within one step
            torch.nn.init.constant_(module.weight, 3.0)
            torch.nn.init.constant_(module.bias, 1.0)
    frames = (timesteps, 3) if events else (3,)
    x = torch.randn(*frames, *shape, dtype=torch.float64, generator=generator)
    calibrate_batchnorm(model, [x], timesteps)
    for layer in attention_layers(model):  # heads that stayed silent have no plain counterpart
        layer.firing_rate_x.clamp_(min=0.05)
        layer.firing_rate_attn.clamp_(min=0.05)
    expected = plain_spikingresformer(
        model.state_dict(), x if events else x.expand(timesteps, *x.shape), model.config
    )
    with record(model) as recording:
        actual = model.steps(x, timesteps)
    assert sum(spikes.any().item() for spikes in recording.spikes.values()) > 5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


# -- firing rates -----------------------------------------------------------------------------


def batch_rates(model, x, T):
    """Rates per head of each attention layer's input and attention neurons in this run."""
    with record(model) as recording:
        model.steps(x, T)
    rates = []
    for name, module in model.named_modules():
        if isinstance(module, DSSA):
            z = recording.spikes[f"{name}.activation_in"].unflatten(-1, (module.heads, -1))
            a = recording.spikes[f"{name}.activation_attn"]
            rates.append((z.mean((0, 1, 2, 3, 5)), a.mean((0, 1, 3, 4))))
    return rates


def stored_rates(model):
    return [
        (layer.firing_rate_x.flatten().clone(), layer.firing_rate_attn.flatten().clone())
        for layer in attention_layers(model)
    ]


def test_rates_start_at_the_first_batch_and_then_average():
    model = create_model("spikingresformer_nano", input_shape=DIGITS).double()
    first = batch_rates(model, gaussian(8, *DIGITS), 3)
    torch.testing.assert_close(stored_rates(model), first)
    assert all(rate.min() > 0 for pair in first for rate in pair)
    second = batch_rates(model, gaussian(8, *DIGITS, seed=5), 3)
    moved = [
        tuple(0.999 * old + 0.001 * new for old, new in zip(*pair, strict=True))
        for pair in zip(first, second, strict=True)
    ]
    torch.testing.assert_close(stored_rates(model), moved, rtol=1e-12, atol=0)


def test_rates_are_updated_before_they_are_used():
    model = create_model("spikingresformer_nano", input_shape=DIGITS).double()
    layer = attention_layers(model)[0]
    products = []
    layer.activation_attn.register_forward_pre_hook(lambda m, inputs: products.append(inputs[0]))
    x = gaussian(8, *DIGITS)
    model.steps(x, 2)
    layer.firing_rate_x *= 4  # 0.999 of which remain in the second pass
    model.steps(x, 2)
    ratio = (4 * 0.999 + 0.001) ** 0.5
    torch.testing.assert_close(products[0], products[1] * ratio)


def test_eval_uses_the_stored_rates_and_changes_nothing():
    model = alive()
    before = copy.deepcopy(model.state_dict())
    model.steps(gaussian(2, *DIGITS, seed=3) * 3, 2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_silent_head_contributes_nothing_and_starts_with_the_next_batch():
    model = alive()
    layer = attention_layers(model)[1]
    layer.firing_rate_x[:, :, 0] = 0
    with record(model) as recording:
        assert torch.isfinite(model.steps(gaussian(4, *DIGITS), 3)).all()
    assert recording.spikes["layers.1.1.activation_attn"][:, :, 0].sum() == 0
    assert recording.spikes["layers.1.1.activation_attn"][:, :, 1].sum() > 0
    (expected, _) = batch_rates(model.train(), gaussian(4, *DIGITS), 3)[1]
    assert layer.firing_rate_x.flatten()[0] == expected[0] > 0


def test_fresh_network_says_that_it_has_no_rates():
    model = create_model("spikingresformer_nano", input_shape=DIGITS).double().eval()
    x = gaussian(2, *DIGITS)
    with pytest.raises(ModelError, match=r"layers\.0\.0 has no firing rates.*calibrate") as caught:
        model(x)
    assert "\n" not in str(caught.value)
    model.train()(x)
    assert torch.isfinite(model.eval()(x)).all()


def test_a_layer_that_saw_only_silence_is_calibrated():
    """A threshold that no input reaches: rates of 0 are then what was measured."""
    model = create_model(
        "spikingresformer_nano", input_shape=DIGITS, neuron=LIFParams(threshold=1e6)
    ).double()
    calibrate_batchnorm(model, [gaussian(4, *DIGITS)], 2)
    assert not attention_layers(model)[0].firing_rate_x.any()
    assert torch.isfinite(model(gaussian(2, *DIGITS))).all()


def test_calibration_averages_rates_over_batches():
    model = create_model("spikingresformer_nano", input_shape=DIGITS).double()
    batches = [gaussian(8, *DIGITS, seed=s) for s in range(3)]
    twin = copy.deepcopy(model)
    calibrate_batchnorm(model, batches, 2)
    mean = torch.stack([batch_rates(twin, b, 2)[0][0] for b in batches]).mean(0)
    torch.testing.assert_close(stored_rates(model)[0][0], mean)
    assert all(layer.momentum == 0.001 for layer in attention_layers(model))
    again = stored_rates(model)
    calibrate_batchnorm(model, batches, 2)
    torch.testing.assert_close(stored_rates(model), again)


def test_failed_calibration_leaves_rates_as_they_were():
    model = alive()
    before = copy.deepcopy(model.state_dict())
    for batches in ([], [gaussian(4, *DIGITS), torch.full((4, *DIGITS), torch.nan).double()]):
        with pytest.raises(DataError):
            calibrate_batchnorm(model, batches, 2)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# -- the contract -----------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    batch=st.integers(2, 4),
    timesteps=st.integers(1, 4),
    plif=st.booleans(),
    refractory=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_samples_do_not_leak_into_each_other(batch, timesteps, plif, refractory, seed):
    model = alive(plif=plif, neuron=LIFParams(refractory=refractory), seed=seed)
    x = gaussian(batch, *DIGITS, seed=seed)
    together = model.steps(x, timesteps)
    alone = torch.cat([model.steps(x[i : i + 1], timesteps) for i in range(batch)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_no_state_between_calls_and_the_past_is_independent_of_the_future():
    model, x = alive(), gaussian(3, *DIGITS)
    long = model.steps(x, 6)
    assert torch.equal(long, model.steps(x, 6))
    torch.testing.assert_close(model.steps(x, 2), long[:2], rtol=0, atol=1e-12)
    assert torch.equal(model(x, 6), long.mean(0))
    events = gaussian(6, 3, *DIGITS)
    with streaming(model):
        pieces = torch.cat([model.steps(events[:2]), model.steps(events[2:])])
    torch.testing.assert_close(pieces, model.steps(events), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_static_input_equals_the_same_frames_as_events(training):
    static, events = (alive().train(training) for _ in range(2))
    x = gaussian(3, *DIGITS)
    one, two = static.steps(x, 4), events.steps(x.expand(4, *x.shape))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    one.square().sum().backward()
    two.square().sum().backward()
    for (name, p), q in zip(static.named_parameters(), events.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, p), q in zip(static.named_buffers(), events.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=name)


def test_function_transforms_give_per_sample_gradients():
    model, x = alive(plif=True), gaussian(3, *DIGITS)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def logits(weights, sample):
        return functional_call(model, (weights, buffers), (sample[None], 3))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(weights, x), model(x, 3).detach())
    jacobians = vmap(jacrev(logits), (None, 0))(weights, x[:2])
    for i in range(2):
        model.zero_grad()
        model(x[i : i + 1], 3)[0, 2].backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, jacobians[name][i, 2], msg=name)


def test_event_networks_learn_their_leak_and_are_saved_with_it(tmp_path):
    model = create_model("spikingresformer_gesture", input_shape=(3, 16, 16)).double()
    x = gaussian(3, 2, 3, 16, 16)
    model(x).square().sum().backward()
    leaks = [m.w for m in model.modules() if isinstance(m, PLIF)]
    assert len(leaks) == 38
    assert all(w.grad is not None for w in leaks)
    assert sum(bool(w.grad) for w in leaks) > 30
    model.set_neurons(beta=0.75)
    assert all(torch.sigmoid(w).item() == pytest.approx(0.25) for w in leaks)
    again = load_model(save_checkpoint(model, tmp_path / "net.safetensors"))
    assert again.config == model.config
    assert torch.equal(again(x), model.eval()(x))


def test_network_compiles_to_one_graph():
    model, x = (
        alive(planes=(16,), num_heads=(2,), depths=(1,), patch_sizes=(2,)),
        gaussian(2, 1, 8, 8),
    )
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, 2), model(x, 2))


def test_continuous_twin_is_smooth_and_shares_the_weights():
    model = alive()
    twin = model.continuous()
    x = gaussian(2, *DIGITS).requires_grad_()
    steps = twin.steps(x, 2)
    torch.testing.assert_close(steps[0], steps[1])
    assert twin.layers[0][0].W.weight is model.layers[0][0].W.weight
    steps.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 12, 20)])
def test_small_networks_run_forward_and_backward(shape):
    model, x = create_model("spikingresformer_tiny", input_shape=shape), gaussian(2, *shape).float()
    assert model.steps(x).shape == (4, 2, 10)
    F.cross_entropy(model(x, 2), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("x", "T", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), 0, ConfigError, "T=0"),
        (torch.zeros(2, 3, 8, 8), 4, ModelError, "3 x 8 x 8, this network takes 1 x 8 x 8"),
        (torch.zeros(3, 2, 1, 8, 8), 4, ModelError, "T=4, but the event input has 3"),
        (torch.zeros(0, 1, 8, 8), 4, ModelError, "nothing to compute"),
    ],
)
def test_wrong_inputs_are_named(x, T, error, message):
    with pytest.raises(error, match=message):
        create_model("spikingresformer_nano", input_shape=DIGITS)(x, T)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_shape": (1, 7, 8)}, ModelError, "stage 0 of a 7 x 8 image.*7 x 8, not divisible"),
        ({"input_shape": (1, 30, 30), "patch_sizes": (2, 2)}, ModelError, "stage 1.*15 x 15"),
        ({"input_shape": (8, 8)}, ConfigError, r"input_shape=\(8, 8\)"),
        ({"planes": (15, 32), "num_heads": (2, 2)}, ConfigError, "15 is not divisible by 2"),
        ({"planes": (16,)}, ConfigError, r"num_heads=\(1, 2\) has 2 stages.*has 1"),
        ({"depths": (1, 0)}, ConfigError, r"depths=\(1, 0\)"),
        ({"depths": 2}, ConfigError, "depths=2"),
        ({"patch_sizes": ()}, ConfigError, r"patch_sizes=\(\)"),
        ({"group_size": 24}, ConfigError, "group_size=24"),
        ({"group_size": 0}, ConfigError, "group_size=0"),
        ({"prologue": "imagnet"}, ConfigError, "prologue='imagnet'"),
        ({"plif": 1}, ConfigError, "plif=1"),
        ({"plif": True, "neuron": LIFParams(beta=0.0)}, ConfigError, "between 0 and 1"),
        ({"neuron": 0.5}, ConfigError, r"neuron=0\.5"),
        ({"plane": (16, 32)}, ConfigError, "'plane'.*planes"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model("spikingresformer_nano", **options)
    assert "\n" not in str(caught.value)
