"""QKFormer against its reference tensors, a plain reimplementation, and the common contract."""

import csv
import json
from itertools import pairwise

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
    QKFormer,
    QKFormerConfig,
    calibrate_batchnorm,
    create_model,
    list_models,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.neurons import LIF, record

LAYOUTS = {  # smallest options of each layout
    "cifar": {"embed_dim": 16, "num_heads": 2, "depth": 4, "mlp_ratio": 1.5},
    "imagenet": {"embed_dim": 16, "num_heads": 2, "depth": 5, "mlp_ratio": 1.5},
    "dvs": {"embed_dim": 32, "num_heads": 4, "depth": 3, "mlp_ratio": 1.5},
}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def enliven(model, x, T, seed=0):
    """Random norms, as if trained, so that every layer fires; statistics of ``x``."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            size, shift = module.bias.shape, 0.8 * name.endswith(("q_bn", "k_bn", "v_bn"))
            module.weight.data = 1 + torch.rand(size, dtype=x.dtype, generator=generator)
            noise = torch.randn(size, dtype=x.dtype, generator=generator)
            module.bias.data = 0.3 + shift + 0.3 * noise
    calibrate_batchnorm(model, [x], T)
    return model


def alive(layout="cifar", shape=(1, 8, 8), dtype=torch.float64, **options):
    """A small network that fires everywhere."""
    options = {"layout": layout, **LAYOUTS[layout], **options}
    model = create_model("qkformer_nano", input_shape=shape, **options).to(dtype)
    return enliven(model, gaussian(4, *shape, seed=1, dtype=dtype), 2)


def reference(shared, layout, legacy):
    path = shared / "refs" / f"qkformer_{layout}_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    ref = torch.load(path, weights_only=True)
    ctor = json.loads(ref["meta"])["ctor"]
    config = QKFormerConfig(
        input_shape=(ctor["in_channels"], ctor["img_size_h"], ctor["img_size_w"]),
        num_classes=ctor["num_classes"],
        embed_dim=ctor["embed_dims"],
        num_heads={"cifar": 8, "imagenet": 4, "dvs": 16}[layout],
        depth=2 if layout == "dvs" else ctor["depths"],
        mlp_ratio=ctor["mlp_ratios"],
        layout=layout,
        legacy_tb_lif=legacy,
    )
    model = QKFormer(config)
    model.load_state_dict(ref["state_dict"], strict=True)
    assert sum(p.numel() for p in model.parameters()) == ref["n_params"]
    x = ref["input"].double()
    return ref, model.double().eval(), x.transpose(0, 1) if layout == "dvs" else x


def released(name, spikes):
    """Channels before tokens; [T B, N, C] where the leak merges the axes."""
    return spikes.movedim(-1, 1) if spikes.ndim == 3 else channels_third(name, spikes)


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["cifar", "imagenet", "dvs"])
def test_released_network_is_reproduced_with_its_leak(shared, layout):
    ref, model, x = reference(shared, layout, legacy=True)
    with record(model) as recording:
        logits = model(x)
    torch.testing.assert_close(logits, ref["output_f64"], rtol=0, atol=1e-9)
    assert_same_spikes(recording.spikes, ref["spikes"], released)
    loss = F.cross_entropy(logits, ref["labels"])
    assert loss.item() == pytest.approx(ref["loss_f64"], abs=1e-9)
    loss.backward()
    assert_same_gradients(model, ref["grads_f64_as_f32"], ref["no_grad_params"])


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["cifar", "imagenet", "dvs"])
def test_correct_network_gives_every_sample_what_it_gets_alone(shared, layout):
    ref, model, x = reference(shared, layout, legacy=False)
    alone = ref.get("output_f64_each_sample_B1", ref["output_f64"])  # dvs: one sample anyway
    together = model(x)
    torch.testing.assert_close(together, alone.reshape(together.shape), rtol=0, atol=1e-9)
    first = x[:, :1] if layout == "dvs" else x[:1]
    with record(model) as recording:
        logits = model(first)
    assert_same_spikes(recording.spikes, ref.get("B1_spikes", ref["spikes"]), released)
    loss = F.cross_entropy(logits, ref.get("B1_label", ref["labels"]))
    assert loss.item() == pytest.approx(ref.get("B1_loss_f64", ref["loss_f64"]), abs=1e-9)
    loss.backward()
    expected = ref.get("B1_grads_f64_as_f32", ref["grads_f64_as_f32"])
    assert_same_gradients(model, expected, ref["no_grad_params"])


@pytest.mark.shared
def test_single_precision_gives_the_released_logits(shared):
    ref, model, x = reference(shared, "cifar", legacy=True)
    torch.testing.assert_close(model.float()(x.float()), ref["output_f32"], rtol=0, atol=1e-6)


# -- a plain implementation -----------------------------------------------------------------------


def plain_lif(x, threshold=1.0):
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        v = v + (current - v) / 2
        s = (v >= threshold).to(x.dtype)
        v = v * (1 - s)
        out.append(s)
    return torch.stack(out)


def plain_qkformer(state, x, layout, heads, depths):
    """Channel-first, frame by frame, from the description alone; ``x`` [T, B, C, H, W]."""

    def frames(x, function):
        return torch.stack([function(frame) for frame in x])

    def conv_bn(x, name, stride=1):
        weight, bias = state[f"{name}_conv.weight"], state.get(f"{name}_conv.bias")
        weight = weight[..., None] if weight.ndim == 3 else weight
        padding = weight.shape[-1] // 2
        keys = ("running_mean", "running_var", "weight", "bias")
        norm = [state[f"{name}_bn.{key}"] for key in keys]
        return frames(x, lambda f: F.batch_norm(F.conv2d(f, weight, bias, stride, padding), *norm))

    def pool(x):
        return frames(x, lambda f: F.max_pool2d(f, 3, 2, 1))

    def layer(x, name, threshold=1.0, stride=1):
        return plain_lif(conv_bn(x, name, stride), threshold)

    def embed(x, at, first):
        if not first:
            name = "proj" if layout == "dvs" else "proj3"
            shortcut = layer(x, f"{at}.proj_res", stride=2)
            if layout == "imagenet":
                x = plain_lif(pool(conv_bn(x, f"{at}.{name}")))
                return layer(x, f"{at}.proj4") + shortcut
            return plain_lif(pool(conv_bn(layer(x, f"{at}.{name}"), f"{at}.proj4"))) + shortcut
        if layout == "cifar":
            x = layer(x, f"{at}.proj")
            return layer(x, f"{at}.proj1") + layer(x, f"{at}.proj_res")
        if layout == "imagenet":
            x = plain_lif(pool(conv_bn(x, f"{at}.proj")))
            y = plain_lif(pool(conv_bn(x, f"{at}.proj1")))
            return layer(y, f"{at}.proj2") + layer(x, f"{at}.proj_res", stride=2)
        x = plain_lif(pool(conv_bn(layer(x, f"{at}.proj"), f"{at}.proj1")))
        y = plain_lif(pool(conv_bn(x, f"{at}.proj2")))
        y = plain_lif(pool(conv_bn(y, f"{at}.proj3")))
        return y + layer(x, f"{at}.proj_res", stride=4)

    def token_attention(x, at):
        q, k = (layer(x, f"{at}.{name}") for name in "qk")
        d = q.shape[2] // heads
        parts = []
        for h in range(heads):
            rows = slice(h * d, (h + 1) * d)
            a = plain_lif(q[:, :, rows].sum(2, keepdim=True), 0.5)
            parts.append(a * k[:, :, rows])
        return layer(torch.cat(parts, 2), f"{at}.proj")

    def self_attention(x, at):
        q, k, v = (layer(x, f"{at}.{name}").flatten(3) for name in "qkv")
        d = q.shape[2] // heads
        parts = []
        for h in range(heads):
            rows = slice(h * d, (h + 1) * d)
            attention = torch.einsum("tbdn,tbdm->tbnm", q[:, :, rows], k[:, :, rows])
            parts.append(torch.einsum("tbnm,tbdm->tbdn", attention, v[:, :, rows]) * 0.125)
        y = plain_lif(torch.cat(parts, 2), 0.5).reshape(x.shape)
        return layer(y, f"{at}.proj")

    for stage, depth in enumerate(depths, start=1):
        x = embed(x, f"patch_embed{stage}", stage == 1)
        for i in range(depth):
            at = f"stage{stage}.{i}"
            if stage < len(depths):
                x = x + token_attention(x, f"{at}.tssa")
            else:
                name = "attn" if layout == "imagenet" else "ssa"
                x = x + self_attention(x, f"{at}.{name}")
            fc = "fc" if layout == "imagenet" else "mlp"
            x = x + layer(layer(x, f"{at}.mlp.{fc}1"), f"{at}.mlp.{fc}2")
    return x.mean((3, 4)) @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(max_examples=5)
@given(
    heads=st.sampled_from([1, 2, 4]),
    extra=st.integers(0, 1),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(16, 21), st.integers(16, 21)),
    timesteps=st.integers(1, 3),
    events=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_plain_implementation(
    layout, heads, extra, channels, size, timesteps, events, seed
):
    depth = {"cifar": 3, "imagenet": 4, "dvs": 2}[layout] + extra
    early = {"cifar": (1, 1), "imagenet": (1, 2), "dvs": (1,)}[layout]
    shape = (channels, *size)
    options = {**LAYOUTS[layout], "num_heads": heads, "depth": depth}
    model = create_model(
        "qkformer_nano", input_shape=shape, layout=layout, seed=seed, **options
    ).double()
    x = gaussian(*((timesteps, 2) if events else (2,)), *shape, seed=seed)
    enliven(model, x, timesteps, seed)
    frames = x if events else x.expand(timesteps, *x.shape)
    depths = (*early, depth - sum(early))
    expected = plain_qkformer(model.state_dict(), frames, layout, heads, depths)
    with record(model) as recording:
        actual = model.steps(x, timesteps)
    assert np.mean([bool(spikes.any()) for spikes in recording.spikes.values()]) > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


# -- registry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models("qkformer*"))
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    macs = model.macs_per_step()
    digits = 3 if entry.gmac_per_step > 0.1 else 4
    assert round((macs.dense + macs.head) / 1e9, digits) == pytest.approx(
        entry.gmac_per_step, abs=5e-4
    )


@pytest.mark.parametrize(
    ("name", "options", "parameters", "entries"),
    [
        ("qkformer_4_384", {}, 6_706_234, 200),
        ("qkformer_4_384", {"num_classes": 100}, 6_740_884, 200),
        ("qkformer_10_384_imagenet", {}, 16_473_688, 434),
        ("qkformer_10_512_imagenet", {}, 29_079_336, 434),
        ("qkformer_10_768_imagenet", {}, 64_962_760, 434),
        ("qkformer_2_256_cifar10dvs", {}, 1_504_138, 122),
        ("qkformer_2_256_gesture", {}, 1_999_371, 122),
        (
            "qkformer_10_384_imagenet",
            {"embed_dim": 64, "num_heads": 4, "depth": 4, "num_classes": 10},
            154_610,
            200,
        ),
    ],
)
def test_counts_are_the_released_ones(name, options, parameters, entries):
    with torch.device("meta"):
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_imagenet_layout_has_the_released_names_and_shapes():
    with torch.device("meta"):
        state = create_model("qkformer_10_384_imagenet").state_dict()
    weights = {name: tuple(value.shape) for name, value in state.items()}
    assert weights["patch_embed1.proj_conv.weight"] == (48, 3, 3, 3)
    assert weights["patch_embed1.proj1_conv.weight"] == (96, 48, 3, 3)
    assert weights["patch_embed1.proj2_conv.weight"] == (96, 96, 3, 3)
    assert weights["patch_embed1.proj_res_conv.weight"] == (96, 48, 1, 1)
    assert weights["patch_embed3.proj3_conv.weight"] == (384, 192, 3, 3)
    assert weights["patch_embed3.proj4_conv.weight"] == (384, 384, 3, 3)
    assert weights["stage2.1.tssa.k_conv.weight"] == (192, 192, 1)
    assert weights["stage3.6.attn.v_conv.weight"] == (384, 384, 1)
    assert weights["stage3.6.attn.proj_conv.bias"] == (384,)
    assert weights["stage3.6.mlp.fc1_conv.weight"] == (1536, 384, 1, 1)
    assert not any("q_conv.bias" in n or "tssa.v" in n or "stage3.7" in n for n in weights)


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    rows = {
        (r["dataset"], r["T"], r["accuracy"] and float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"].startswith("QKFormer")
    }
    for name in list_models("qkformer*"):
        for p in model_entry(name).published:
            assert (p.dataset, str(p.T), p.accuracy) in rows, (name, p)


# -- contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 19, 34)])
def test_macs_are_those_of_the_layers_that_run(layout, shape):
    model = QKFormer(QKFormerConfig(input_shape=shape, layout=layout, **LAYOUTS[layout])).eval()
    counts = counted_macs(model, shape)
    macs = model.macs_per_step()
    assert counts.pop("head") == macs.head
    assert sum(counts.values()) == macs.dense


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_samples_do_not_leak_into_each_other_by_default(layout):
    shape = (1, 17, 20)
    model, x = alive(layout, shape), gaussian(4, *shape, seed=3)
    together = model.steps(x, 3)
    alone = torch.cat([model.steps(x[i : i + 1], 3) for i in range(4)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.steps(x[order], 3), together[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.steps(x, 2), together[:2], rtol=0, atol=1e-12)

    leaky = alive(layout, shape, legacy_tb_lif=True)
    leaky.load_state_dict(model.state_dict())
    assert (leaky.steps(x, 3)[:, 1:] - together[:, 1:]).abs().max() > 1e-4
    torch.testing.assert_close(leaky(x[:1], 3), model(x[:1], 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_static_input_equals_the_same_frames_as_events(layout, training):
    shape = (2, 16, 16)
    static, events = (alive(layout, shape).train(training) for _ in range(2))
    x = gaussian(3, *shape)
    one, two = static.steps(x, 3), events.steps(x.expand(3, *x.shape))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    one.square().sum().backward()
    two.square().sum().backward()
    for (name, p), q in zip(static.named_parameters(), events.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, p), q in zip(static.named_buffers(), events.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_function_transforms_give_per_sample_gradients(layout):
    model, x = alive(layout, (1, 16, 16)), gaussian(2, 1, 16, 16)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def logits(weights, sample):
        return functional_call(model, (weights, buffers), (sample[None], 2))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(weights, x), model(x, 2).detach())
    jacobians = vmap(jacrev(logits), (None, 0))(weights, x)
    model(x[1:], 2)[0, 4].backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, jacobians[name][1, 4], rtol=1e-7, atol=1e-9, msg=name)


def test_neurons_are_replaced_and_attention_keeps_its_share():
    model = alive("imagenet", (1, 16, 16), attention_threshold=0.25)
    assert model.set_neurons(beta=0.8, threshold=0.6, refractory=1) is model
    layers = {n: m.params for n, m in model.named_modules() if isinstance(m, LIF)}
    halved = {n for n, p in layers.items() if p.threshold == pytest.approx(0.15)}
    assert halved == {n for n in layers if n.endswith("attn_lif")}
    assert len(halved) == 5
    assert {p.threshold for n, p in layers.items() if n not in halved} == {0.6}
    assert {(p.beta, p.refractory) for p in layers.values()} == {(0.8, 1)}


def test_saved_network_is_rebuilt(tmp_path):
    model = alive("dvs", (2, 16, 16), legacy_tb_lif=True)
    again = load_model(save_checkpoint(model, tmp_path / "net.safetensors"))
    assert again.config == model.config
    x = gaussian(2, 2, 16, 16)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(("layout", "least"), [("cifar", 4), ("imagenet", 16), ("dvs", 16)])
def test_smallest_image_works_and_a_smaller_one_is_refused(layout, least):
    options = {"layout": layout, **LAYOUTS[layout]}
    model = create_model("qkformer_nano", input_shape=(1, least, least + 1), **options)
    assert model(torch.rand(2, 1, least, least + 1)).shape == (2, 10)
    with pytest.raises(ModelError, match=rf"{least - 1} x {least} is too small .*{layout}"):
        create_model("qkformer_nano", input_shape=(1, least - 1, least), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 36}, "embed_dim=36"),
        ({"embed_dim": 40, "layout": "dvs", "depth": 2}, "embed_dim=40.* by 16"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"depth": 2}, "depth=2: layout 'cifar' needs 3"),
        ({"depth": 3, "layout": "imagenet"}, "depth=3: layout 'imagenet' needs 4"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01 leaves no hidden channel at stage_width=8"),
        ({"scale": -1.0}, r"scale=-1\.0"),
        ({"layout": "cifer"}, "layout='cifer'"),
        ({"legacy_tb_lif": 1}, "legacy_tb_lif=1"),
        ({"input_shape": (8, 8)}, r"input_shape=\(8, 8\)"),
        ({"neuron": None, "num_classes": 0}, "num_classes=0"),
        ({"blocks": 3}, "'blocks'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        create_model("qkformer_nano", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "T", "error"),
    [
        (torch.zeros(2, 1, 8, 8), 0, ConfigError),
        (torch.zeros(3, 2, 1, 8, 8), 4, ModelError),
        (torch.zeros(2, 3, 8, 8), 4, ModelError),
        (torch.zeros(2, 1, 8, 9), 4, ModelError),
    ],
)
def test_wrong_inputs_are_refused(x, T, error):
    with pytest.raises(error) as caught:
        create_model("qkformer_nano", input_shape=(1, 8, 8))(x, T)
    assert "\n" not in str(caught.value)


def test_grid_halves_from_stage_to_stage():
    model = create_model("qkformer_nano", input_shape=(1, 8, 8))
    with record(model) as recording, torch.no_grad():
        model(torch.rand(1, 1, 8, 8), 1)
    grids = [recording.spikes[f"patch_embed{s}.proj_res_lif"].shape[2:4] for s in (1, 2, 3)]
    assert grids[0] == (8, 8)
    assert all(big[0] == 2 * small[0] for big, small in pairwise(grids))
