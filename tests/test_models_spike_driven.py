"""Spike-driven Transformers 1 and 2: reference tensors, plain reimplementations, the contract."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from references import assert_same_gradients, assert_same_spikes, channels_third, counted_macs
from spikedim.errors import ConfigError, ModelError
from spikedim.models import (
    SpikeDriven,
    SpikeDrivenConfig,
    SpikeDrivenV2,
    SpikeDrivenV2Config,
    calibrate_batchnorm,
    create_model,
    list_models,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.models.spike_driven_v2 import RepConv
from spikedim.neurons import LIF, LIFParams, record

RELEASED = (2, 2, 2, 2, 1)
SMALL = {  # smallest options of each family
    "first": ("spike_driven_nano", {"embed_dim": 16, "num_heads": 2, "depth": 2}),
    "local_pool": ("spike_driven_nano", {"embed_dim": 16, "num_heads": 2, "local_pool": True}),
    "second": (
        "spike_driven_v2_nano",
        {"embed_dims": (4, 6, 8, 12), "num_heads": 2, "mlp_ratio": 1.5},
    ),
    "distilled": (
        "spike_driven_v2_nano",
        {"embed_dims": (4, 6, 8, 12), "depths": (2, 1), "mlp_ratio": 1.5, "distilled": True},
    ),
}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def enliven(model, x, T, seed=0):
    """Random norms, as if trained, so that every layer fires; statistics of ``x``."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shift = 0.8 * name.endswith(("q_bn", "k_bn", "v_bn", "q_conv.1", "k_conv.1"))
            size = module.bias.shape
            module.weight.data = 1 + torch.rand(size, dtype=x.dtype, generator=generator)
            noise = torch.randn(size, dtype=x.dtype, generator=generator)
            module.bias.data = 0.3 + shift + 0.3 * noise
    calibrate_batchnorm(model, [x], T)
    return model


def alive(kind, shape=(1, 8, 8), dtype=torch.float64, **options):
    """A small network that fires everywhere."""
    name, sizes = SMALL[kind]
    model = create_model(name, input_shape=shape, **{**sizes, **options}).to(dtype)
    return enliven(model, gaussian(4, *shape, seed=1, dtype=dtype), 2)


# -- reference tensors ------------------------------------------------------------------------


def reference(shared, file):
    path = shared / "refs" / f"{file}_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    ref = torch.load(path, weights_only=True)
    ctor = json.loads(ref["meta"])["ctor"]
    events = ref["input"].ndim == 5
    common = {
        "input_shape": tuple(ref["input"].shape[-3:]),
        "num_classes": ref["output_f64"].shape[-1],
    }
    if file == "sdt_v2":
        model = SpikeDrivenV2(
            SpikeDrivenV2Config(
                embed_dims=(16, 32, 48, 64), num_heads=2, strides=RELEASED, **common
            )
        )
    else:
        model = SpikeDriven(
            SpikeDrivenConfig(
                embed_dim=ctor["embed_dims"],
                num_heads=ctor["num_heads"],
                depth=ctor["depths"],
                mlp_ratio=ctor["mlp_ratios"],
                pools=tuple(stage == "1" for stage in ctor["pooling_stat"]),
                local_pool=ctor["dvs_mode"],
                **common,
            )
        )
    model.load_state_dict(ref["state_dict"], strict=True)
    assert sum(p.numel() for p in model.parameters()) == ref["n_params"]
    x = ref["input"].double()
    return ref, model.double().eval(), x.transpose(0, 1) if events else x


@pytest.mark.shared
@pytest.mark.parametrize("file", ["sdt_v1_cifar", "sdt_v1_imagenet", "sdt_v1_dvs", "sdt_v2"])
def test_original_network_is_reproduced(shared, file):
    ref, model, x = reference(shared, file)
    with record(model) as recording:
        logits = model(x)
    torch.testing.assert_close(logits, ref["output_f64"], rtol=0, atol=1e-9)
    assert_same_spikes(recording.spikes, ref["spikes"], channels_third)
    if not ref.get("grads_f64_as_f32"):
        return
    loss = F.cross_entropy(logits, ref["labels"])
    assert loss.item() == pytest.approx(ref["loss_f64"], abs=1e-9)
    loss.backward()
    assert_same_gradients(model, ref["grads_f64_as_f32"], ref["no_grad_params"])


@pytest.mark.shared
def test_single_precision_gives_the_released_logits(shared):
    ref, model, x = reference(shared, "sdt_v1_cifar")
    torch.testing.assert_close(model.float()(x.float()), ref["output_f32"], rtol=0, atol=1e-6)


# -- plain implementations --------------------------------------------------------------------


def plain_lif(x, threshold=1.0):
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        v = v + (current - v) / 2
        s = (v >= threshold).to(x.dtype)
        v = v * (1 - s)
        out.append(s)
    return torch.stack(out)


class Plain:
    """Channel-first layers on [T, B, C, H, W], frame by frame, from a state_dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1, padding=None, groups=1):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        weight = weight[..., None] if weight.ndim == 3 else weight
        padding = weight.shape[-1] // 2 if padding is None else padding
        return torch.stack([F.conv2d(f, weight, bias, stride, padding, 1, groups) for f in x])

    def norm(self, x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.state[f"{name}.{k}"][:, None, None] for k in keys)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def head(self, x, name="head"):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def mlp(self, x, at):
        y = self.norm(self.conv(plain_lif(x), f"{at}.fc1_conv"), f"{at}.fc1_bn")
        return self.norm(self.conv(plain_lif(y), f"{at}.fc2_conv"), f"{at}.fc2_bn")


def heads_of(x, heads):
    """[T, B, C, H, W] to [T, B, h, N, d]."""
    return x.flatten(3).unflatten(2, (heads, -1)).transpose(-1, -2)


def plain_first(state, x, pools, heads, local_pool):
    net = Plain(state)

    def halve(x):
        return torch.stack([F.max_pool2d(f, 3, 2, 1) for f in x])

    def local(x):
        return F.max_pool3d(x, (1, 3, 3), 1, (0, 1, 1)) if local_pool else x

    for i, suffix in enumerate(("", "1", "2", "3")):
        at = "patch_embed.proj"
        x = net.norm(net.conv(x, f"{at}_conv{suffix}"), f"{at}_bn{suffix}")
        x = x if i == 3 else plain_lif(x)
        x = halve(x) if pools[i] else x
    x = x + net.norm(net.conv(plain_lif(x), "patch_embed.rpe_conv"), "patch_embed.rpe_bn")
    for b in range(len({k.split(".")[1] for k in state if k.startswith("block.")})):
        at, z = f"block.{b}.attn", plain_lif(x)
        q, k, v = (
            plain_lif(net.norm(net.conv(z, f"{at}.{n}_conv"), f"{at}.{n}_bn")) for n in "qkv"
        )
        q, k, v = (heads_of(y, heads) for y in (q, local(k), local(v)))  # [T, B, h, N, d]
        gate = plain_lif(local(k * v).sum(-2, keepdim=True), 0.5)
        y = local(q * gate).transpose(3, 4).reshape(x.shape)
        x = x + net.norm(net.conv(y, f"{at}.proj_conv"), f"{at}.proj_bn")
        x = x + net.mlp(x, f"block.{b}.mlp")
    return net.head(plain_lif(x.mean((3, 4))))


def plain_second(state, x, strides, heads, distilled):
    net = Plain(state)

    def down(x, name, stride):
        return net.norm(net.conv(x, f"{name}.encode_conv", stride), f"{name}.encode_bn")

    def conv_block(x, at):
        y = net.norm(net.conv(plain_lif(x), f"{at}.Conv.pwconv1"), f"{at}.Conv.bn1")
        y = net.conv(plain_lif(y), f"{at}.Conv.dwconv", groups=y.shape[2])
        x = x + net.norm(net.conv(y, f"{at}.Conv.pwconv2"), f"{at}.Conv.bn2")
        y = net.norm(net.conv(plain_lif(x), f"{at}.conv1"), f"{at}.bn1")
        return x + net.norm(net.conv(plain_lif(y), f"{at}.conv2"), f"{at}.bn2")

    def rep(x, at):
        body = f"{at}.0.body"
        y = net.norm(net.conv(x, f"{body}.0"), f"{body}.1.bn")
        p = {k: state[f"{body}.1.bn.{k}"] for k in ("weight", "bias", "running_mean")}
        deviation = torch.sqrt(state[f"{body}.1.bn.running_var"] + 1e-5)
        value = p["bias"] - p["running_mean"] * p["weight"] / deviation
        height, width = y.shape[-2:]
        padded = value[:, None, None].expand(*y.shape[:3], height + 2, width + 2).clone()
        padded[..., 1:-1, 1:-1] = y
        y = net.conv(padded, f"{body}.2.0", padding=0, groups=y.shape[2])
        y = net.norm(net.conv(y, f"{body}.2.1"), f"{body}.2.2")
        return net.norm(y, f"{at}.1")

    def block(x, at):
        z = plain_lif(x)
        q, k, v = (plain_lif(rep(z, f"{at}.attn.{n}_conv")) for n in "qkv")
        q, k, v = (heads_of(y, heads) for y in (q, k, v))
        y = torch.einsum("tbhnd,tbhme,tbhmd->tbhne", q, v, k) * 0.125
        y = plain_lif(y.transpose(-1, -2).reshape(x.shape), 0.5)
        x = x + rep(y, f"{at}.attn.proj_conv")
        return x + net.mlp(x, f"{at}.mlp")

    x = conv_block(down(x, "downsample1_1", strides[0]), "ConvBlock1_1.0")
    x = conv_block(down(plain_lif(x), "downsample1_2", strides[1]), "ConvBlock1_2.0")
    x = conv_block(down(plain_lif(x), "downsample2", strides[2]), "ConvBlock2_1.0")
    x = conv_block(x, "ConvBlock2_2.0")
    for index, name in ((3, "downsample3"), (4, "downsample4")):
        x = down(plain_lif(x), name, strides[index])
        for i in range(len({k.split(".")[1] for k in state if k.startswith(f"block{index}.")})):
            x = block(x, f"block{index}.{i}")
    spikes = plain_lif(x.mean((3, 4)))
    if distilled:
        return (net.head(spikes) + net.head(spikes, "head_kd")) / 2
    return net.head(spikes)


@pytest.mark.parametrize("local_pool", [False, True])
@settings(max_examples=6)
@given(
    heads=st.sampled_from([1, 2, 8]),
    depth=st.integers(1, 2),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(8, 15), st.integers(8, 15)),
    pools=st.none() | st.tuples(*[st.booleans()] * 4).filter(lambda p: sum(p) < 4),
    timesteps=st.integers(1, 3),
    events=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_first_agrees_with_a_plain_implementation(
    local_pool, heads, depth, channels, size, pools, timesteps, events, seed
):
    shape = (channels, *size)
    config = {"num_heads": heads, "depth": depth, "mlp_ratio": 2.5, "local_pool": local_pool}
    model = create_model(
        "spike_driven_nano", input_shape=shape, embed_dim=16, pools=pools, seed=seed, **config
    ).double()
    x = gaussian(*((timesteps, 2) if events else (2,)), *shape, seed=seed)
    enliven(model, x, timesteps, seed)
    frames = x if events else x.expand(timesteps, *x.shape)
    expected = plain_first(model.state_dict(), frames, model.config.stem_pools, heads, local_pool)
    with record(model) as recording:
        actual = model.steps(x, timesteps)
    assert np.mean([bool(s.any()) for s in recording.spikes.values()]) > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@settings(max_examples=8)
@given(
    heads=st.sampled_from([1, 2, 4]),
    depths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(16, 19), st.integers(16, 19)),
    strides=st.none() | st.just(RELEASED) | st.tuples(*[st.sampled_from([1, 2])] * 4, st.just(2)),
    distilled=st.booleans(),
    timesteps=st.integers(1, 3),
    events=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_second_agrees_with_a_plain_implementation(
    heads, depths, channels, size, strides, distilled, timesteps, events, seed
):
    if strides is not None and strides.count(2) > 4:
        strides = RELEASED
    shape = (channels, *size)
    model = create_model(
        "spike_driven_v2_nano",
        input_shape=shape,
        embed_dims=(4, 6, 8, 12),
        num_heads=heads,
        depths=depths,
        mlp_ratio=1.5,
        strides=strides,
        distilled=distilled,
        neuron=LIFParams(),
        seed=seed,
    ).double()
    x = gaussian(*((timesteps, 2) if events else (2,)), *shape, seed=seed)
    enliven(model, x, timesteps, seed)
    frames = x if events else x.expand(timesteps, *x.shape)
    used = [stage.stride for stage in model.config.stages]
    expected = plain_second(model.state_dict(), frames, used, heads, distilled)
    with record(model) as recording:
        actual = model.steps(x, timesteps)
    assert np.mean([bool(s.any()) for s in recording.spikes.values()]) > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_re_parametrised_convolution_is_one_convolution_of_a_zero_padded_image():
    torch.manual_seed(0)
    layer = RepConv(3).double()
    layer(gaussian(8, 3, 6, 6))
    layer.eval()
    x = gaussian(2, 3, 5, 4, seed=1)
    offset = layer(torch.zeros_like(x))
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset))
    impulse = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    impulse[range(3), range(3), 1, 1] = 1
    kernel = (layer(impulse) - offset[0, :, :1, :1]).flip(2, 3).transpose(0, 1)
    folded = F.conv2d(x, kernel, offset[0, :, 0, 0], padding=1)
    torch.testing.assert_close(layer(x), folded, rtol=0, atol=1e-12)


def test_padding_value_takes_no_gradient():
    torch.manual_seed(0)
    layer = RepConv(2).double().eval()
    layer.body[1].bn.bias.data += 1.0
    layer(torch.zeros(1, 2, 1, 1, dtype=torch.float64)).sum().backward()
    depthwise, mixing, norm = layer.body[2]
    centre = depthwise.weight[:, 0, 1, 1] * mixing.weight[:, :, 0, 0].sum(0)  # not the ring's
    scale = norm.weight[0] / torch.sqrt(norm.running_var[0] + 1e-5)
    torch.testing.assert_close(layer.body[1].bn.bias.grad, scale * centre)


# -- registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models("spike_driven*"))
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    unused = sum(p.numel() for n, p in model.named_parameters() if "talking_heads" in n)
    assert unused == entry.unused_parameters
    if isinstance(model, SpikeDriven):
        assert model.unused_parameters() == unused
    macs = model.macs_per_step()
    assert (macs.dense + macs.head) / 1e9 == pytest.approx(entry.gmac_per_step, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "options", "parameters", "entries"),
    [
        ("spike_driven_2_256", {}, 2_567_082, 112),
        ("spike_driven_2_256", {"num_classes": 100}, 2_590_212, 112),
        ("spike_driven_2_512", {}, 10_233_546, 112),
        ("spike_driven_2_512", {"num_classes": 100}, 10_279_716, 112),
        ("spike_driven_8_384_imagenet", {}, 16_816_536, 352),
        ("spike_driven_6_512_imagenet", {}, 23_373_736, 272),
        ("spike_driven_8_512_imagenet", {}, 29_689_896, 352),
        ("spike_driven_10_512_imagenet", {}, 36_006_056, 432),
        ("spike_driven_8_768_imagenet", {}, 66_339_144, 352),
        ("spike_driven_2_256_cifar10dvs", {}, 2_566_794, 112),
        ("spike_driven_2_256_gesture", {}, 2_567_051, 112),
        (
            "spike_driven_8_512_imagenet",
            {"embed_dim": 64, "depth": 1, "num_classes": 10},
            113_042,
            72,
        ),
        ("spike_driven_v2_8_256_imagenet", {}, 15_112_208, 825),
        ("spike_driven_v2_8_384_imagenet", {}, 31_333_864, 825),
        ("spike_driven_v2_8_512_imagenet", {}, 55_350_248, 825),
        ("spike_driven_v2_8_768_imagenet", {}, 123_741_160, 825),
        ("spike_driven_v2_8_384_distilled_imagenet", {}, 31_814_864, 827),
        ("spike_driven_v2_8_512_distilled_imagenet", {}, 55_991_248, 827),
        ("spike_driven_v2_8_768_distilled_imagenet", {}, 124_702_160, 827),
        ("spike_driven_v2_tiny", {"num_heads": 2}, 623_018, 825),
    ],
)
def test_counts_are_the_released_ones(name, options, parameters, entries):
    with torch.device("meta"):
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_second_has_the_released_names_and_shapes():
    with torch.device("meta"):
        state = create_model("spike_driven_v2_8_512_distilled_imagenet").state_dict()
    weights = {name: tuple(value.shape) for name, value in state.items()}
    assert weights["downsample1_1.encode_conv.weight"] == (64, 3, 7, 7)
    assert weights["downsample1_2.encode_conv.bias"] == (128,)
    assert weights["downsample4.encode_bn.weight"] == (640,)
    assert weights["ConvBlock1_1.0.Conv.pwconv1.weight"] == (128, 64, 1, 1)
    assert weights["ConvBlock1_2.0.Conv.dwconv.weight"] == (256, 1, 7, 7)
    assert weights["ConvBlock2_2.0.conv1.weight"] == (1024, 256, 3, 3)
    assert weights["ConvBlock2_2.0.bn2.weight"] == (256,)
    assert weights["block3.5.attn.q_conv.0.body.0.weight"] == (512, 512, 1, 1)
    assert weights["block3.5.attn.q_conv.0.body.1.bn.running_mean"] == (512,)
    assert weights["block3.5.attn.k_conv.0.body.2.0.weight"] == (512, 1, 3, 3)
    assert weights["block4.1.attn.v_conv.0.body.2.1.weight"] == (640, 640, 1, 1)
    assert weights["block4.1.attn.proj_conv.0.body.2.2.bias"] == (640,)
    assert weights["block4.1.attn.proj_conv.1.weight"] == (640,)
    assert weights["block4.1.mlp.fc1_conv.weight"] == (2560, 640, 1)
    assert weights["block4.1.mlp.fc2_bn.bias"] == (640,)
    assert weights["head_kd.weight"] == (1000, 640)


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    rows = {
        (r["dataset"], r["T"], r["accuracy"] and float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"].startswith(("Spike-driven Transformer", "Meta-SpikeFormer"))
    }
    for name in list_models("spike_driven*"):
        for p in model_entry(name).published:
            assert (p.dataset, str(p.T), p.accuracy) in rows, (name, p)


# -- contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 19, 34)])
def test_macs_are_those_of_the_layers_that_run(kind, shape):
    model = create_model(SMALL[kind][0], input_shape=shape, **SMALL[kind][1]).eval()
    counts = counted_macs(model, shape)
    macs = model.macs_per_step()
    assert counts.pop("head") + counts.pop("head_kd", 0) == macs.head
    assert sum(counts.values()) == macs.dense


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 13, 9), (1, 1, 5)])
def test_samples_are_independent_and_the_past_of_the_future(kind, shape):
    model, x = alive(kind, shape), gaussian(3, *shape, seed=3)
    together = model.steps(x, 3)
    alone = torch.cat([model.steps(x[i : i + 1], 3) for i in range(3)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model.steps(x[order], 3), together[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.steps(x, 2), together[:2], rtol=0, atol=1e-12)
    assert torch.equal(model(x, 3), together.mean(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", list(SMALL))
def test_static_input_equals_the_same_frames_as_events(kind, training):
    static, events = (alive(kind).train(training) for _ in range(2))
    x = gaussian(3, 1, 8, 8)
    one, two = static.steps(x, 3), events.steps(x.expand(3, *x.shape))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
    one.square().sum().backward()
    two.square().sum().backward()
    for (name, p), q in zip(static.named_parameters(), events.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=name)
    for (name, p), q in zip(static.named_buffers(), events.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", list(SMALL))
def test_function_transforms_give_per_sample_gradients(kind):
    model, x = alive(kind), gaussian(2, 1, 8, 8)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def logits(weights, sample):
        return functional_call(model, (weights, buffers), (sample[None], 2))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(weights, x), model(x, 2).detach())
    jacobians = vmap(jacrev(logits), (None, 0))(weights, x)
    model(x[1:], 2)[0, 4].backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            expected = jacobians[name][1, 4]
            torch.testing.assert_close(p.grad, expected, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(("kind", "gate"), [("first", "talking_heads_lif"), ("second", "attn_lif")])
def test_neurons_are_replaced_and_attention_keeps_its_share(kind, gate):
    model = alive(kind, attention_threshold=0.25)
    assert model.set_neurons(beta=0.8, threshold=0.6, refractory=1) is model
    layers = {n: m.params for n, m in model.named_modules() if isinstance(m, LIF)}
    scaled = {n for n, p in layers.items() if p.threshold == pytest.approx(0.15)}
    assert scaled == {n for n in layers if n.endswith(gate)}
    assert len(scaled) == 2
    assert {p.threshold for n, p in layers.items() if n not in scaled} == {0.6}
    assert {(p.beta, p.refractory) for p in layers.values()} == {(0.8, 1)}


@pytest.mark.parametrize("kind", list(SMALL))
def test_saved_network_is_rebuilt(kind, tmp_path):
    model = alive(kind)
    again = load_model(save_checkpoint(model, tmp_path / "net.safetensors"))
    assert again.config == model.config
    x = gaussian(2, 1, 8, 8)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((8, 8), (2, 1, 1, 1, 1)),
        ((28, 28), (2, 2, 2, 1, 1)),
        ((224, 224), RELEASED),
        ((1, 784), (1, 1, 1, 1, 1)),
    ],
)
def test_strides_follow_the_image(size, strides):
    config = SpikeDrivenV2Config(input_shape=(3, *size))
    assert tuple(stage.stride for stage in config.stages) == strides


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("spike_driven_nano", {"embed_dim": 36}, ConfigError, "embed_dim=36"),
        ("spike_driven_nano", {"num_heads": 3}, ConfigError, "num_heads=3"),
        ("spike_driven_nano", {"depth": 0}, ConfigError, "depth=0"),
        ("spike_driven_nano", {"mlp_ratio": 0.01}, ConfigError, r"mlp_ratio=0\.01"),
        ("spike_driven_nano", {"local_pool": 1}, ConfigError, "local_pool=1"),
        ("spike_driven_nano", {"pools": (1, 1)}, ConfigError, "pools="),
        ("spike_driven_nano", {"heads": 2}, ConfigError, "'heads'.*num_heads"),
        (
            "spike_driven_8_384_imagenet",
            {"input_shape": (3, 8, 8)},
            ModelError,
            "8 x 8 is too small for 4",
        ),
        ("spike_driven_v2_nano", {"embed_dims": (8, 8, 8)}, ConfigError, r"embed_dims=\(8, 8, 8\)"),
        ("spike_driven_v2_nano", {"embed_dims": (7, 8, 8, 8)}, ConfigError, "must be even"),
        ("spike_driven_v2_nano", {"num_heads": 5}, ConfigError, "num_heads=5"),
        ("spike_driven_v2_nano", {"depths": 3}, ConfigError, "depths=3: expected 2"),
        ("spike_driven_v2_nano", {"depths": (1, 0)}, ConfigError, r"depths=\(1, 0\)"),
        ("spike_driven_v2_nano", {"strides": (3, 1, 1, 1, 1)}, ConfigError, "to be 1 or 2"),
        ("spike_driven_v2_nano", {"mlp_ratio": 0.01}, ConfigError, r"mlp_ratio=0\.01"),
        ("spike_driven_v2_nano", {"distilled": None}, ConfigError, "distilled=None"),
        ("spike_driven_v2_nano", {"scale": 0}, ConfigError, "scale=0"),
        ("spike_driven_v2_nano", {"input_shape": (1, 8)}, ConfigError, r"input_shape=\(1, 8\)"),
        (
            "spike_driven_v2_8_384_imagenet",
            {"input_shape": (3, 15, 20)},
            ModelError,
            "15 x 20 is too small for 4",
        ),
    ],
)
def test_wrong_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["spike_driven_nano", "spike_driven_v2_nano"])
@pytest.mark.parametrize(
    ("x", "T", "error"),
    [
        (torch.zeros(2, 1, 8, 8), 0, ConfigError),
        (torch.zeros(3, 2, 1, 8, 8), 4, ModelError),
        (torch.zeros(2, 3, 8, 8), 4, ModelError),
        (torch.zeros(2, 1, 8, 9), 4, ModelError),
    ],
)
def test_wrong_inputs_are_refused(name, x, T, error):
    with pytest.raises(error) as caught:
        create_model(name, input_shape=(1, 8, 8))(x, T)
    assert "\n" not in str(caught.value)
