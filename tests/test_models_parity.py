"""Spikformer against the original networks' reference tensors and a plain reimplementation."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from references import assert_same_gradients, assert_same_spikes, channels_third
from spikedim.models import (
    Spikformer,
    SpikformerConfig,
    calibrate_batchnorm,
    create_model,
    list_models,
    model_entry,
)
from spikedim.neurons import record


def reference(shared, layout):
    path = shared / "refs" / f"spikformer_{layout}_tiny.pt"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference tensors")
    ref = torch.load(path, weights_only=True)
    ctor = json.loads(ref["meta"])["ctor"]
    every = layout != "cifar"
    config = SpikformerConfig(
        input_shape=(ctor["in_channels"], ctor["img_size_h"], ctor["img_size_w"]),
        num_classes=ctor["num_classes"],
        embed_dim=ctor["embed_dims"],
        num_heads=ctor["num_heads"],
        depth=ctor["depths"],
        mlp_ratio=ctor["mlp_ratios"],
        layout=layout,
        pools=(every, every, True, True),
    )
    model = Spikformer(config)
    model.load_state_dict(ref["state_dict"], strict=True)
    x = ref["input"].double()
    return ref, model.double().eval(), x.transpose(0, 1) if layout == "dvs" else x


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["cifar", "imagenet", "dvs"])
def test_original_network_is_reproduced(shared, layout):
    ref, model, x = reference(shared, layout)
    assert sum(p.numel() for p in model.parameters()) == ref["n_params"]

    with record(model) as recording:
        logits = model(x)
    torch.testing.assert_close(logits, ref["output_f64"], rtol=0, atol=1e-9)

    def released(name, spikes):
        channel_last = layout == "cifar" and name.startswith("block")
        return spikes if channel_last else channels_third(name, spikes)

    assert_same_spikes(recording.spikes, ref["spikes"], released)

    loss = F.cross_entropy(logits, ref["labels"])
    assert loss.item() == pytest.approx(ref["loss_f64"], abs=1e-9)
    loss.backward()
    assert_same_gradients(model, ref["grads_f64_as_f32"], ref["no_grad_params"])


@pytest.mark.shared
def test_single_precision_fires_the_same_spikes(shared):
    ref, model, x = reference(shared, "cifar")
    torch.testing.assert_close(model.float()(x.float()), ref["output_f32"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list_models("spikformer*"))
def test_registered_counts_are_exact(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert model.unused_parameters() == entry.unused_parameters
    macs = model.macs_per_step()
    assert (macs.dense + macs.head / 4) / 1e9 == pytest.approx(entry.gmac_per_step, abs=5.001e-4)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spikformer_4_256", 4_182_404),
        ("spikformer_2_384", 5_802_772),
        ("spikformer_4_384", 9_365_524),
    ],
)
def test_cifar100_counts_are_exact(name, parameters):
    with torch.device("meta"):
        model = create_model(name, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("spikformer_2_384", 124),
        ("spikformer_4_384", 216),
        ("spikformer_6_512_imagenet", 290),
        ("spikformer_10_512_imagenet", 462),
        ("spikformer_2_256_cifar10dvs", 121),
    ],
)
def test_state_dict_size_is_the_released_one(name, entries):
    with torch.device("meta"):
        assert len(create_model(name).state_dict()) == entries


def test_dvs_layout_has_the_released_names_and_shapes():
    with torch.device("meta"):
        state = create_model("spikformer_2_256_cifar10dvs").state_dict()
    assert state["pos_embed"].shape == (1, 64, 256)
    assert state["norm.weight"].shape == (256,)
    assert state["block.0.attn.q_conv.weight"].shape == (256, 256, 1)
    assert "block.0.attn.q_conv.bias" not in state
    assert state["block.1.mlp.fc1_conv.weight"].shape == (1024, 256, 1)


def plain_lif(x, threshold=1.0):
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        v = v + (current - v) / 2
        s = (v >= threshold).to(x.dtype)
        v = v * (1 - s)
        out.append(s)
    return torch.stack(out)


def plain_spikformer(state, x, pools, heads, kind, scale):
    """Channel-first, step by step, from the description alone."""

    def norm(y, name):
        p = {k: state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(y, *p.values())

    def layer(y, name, bn, threshold=1.0):
        weight = state[f"{name}.weight"]
        weight = weight.reshape(*weight.shape[:2], 1)
        out = [F.conv1d(frame, weight, state.get(f"{name}.bias")) for frame in y]
        return plain_lif(torch.stack([norm(frame, bn) for frame in out]), threshold)

    for i, suffix in enumerate(("", "1", "2", "3")):
        w = state[f"patch_embed.proj_conv{suffix}.weight"]
        x = torch.stack([F.conv2d(f, w, padding=1) for f in x])
        x = plain_lif(torch.stack([norm(f, f"patch_embed.proj_bn{suffix}") for f in x]))
        if pools[i]:
            x = torch.stack([F.max_pool2d(f, 3, 2, 1) for f in x])
    w = state["patch_embed.rpe_conv.weight"]
    rpe = torch.stack([norm(F.conv2d(f, w, padding=1), "patch_embed.rpe_bn") for f in x])
    x = (x + plain_lif(rpe)).flatten(3)
    depth = len({k.split(".")[1] for k in state if k.startswith("block.")})
    for b in range(depth):
        at = f"block.{b}.attn"
        q, k, v = (layer(x, f"{at}.{n}_{kind}", f"{at}.{n}_bn") for n in "qkv")
        parts = []
        for h in range(heads):
            rows = slice(h * x.shape[2] // heads, (h + 1) * x.shape[2] // heads)
            attention = torch.einsum("tbdn,tbdm->tbnm", q[:, :, rows], k[:, :, rows])
            parts.append(torch.einsum("tbnm,tbdm->tbdn", attention, v[:, :, rows]) * scale)
        y = plain_lif(torch.cat(parts, 2), 0.5)
        x = x + layer(y, f"{at}.proj_{kind}", f"{at}.proj_bn")
        mlp = f"block.{b}.mlp"
        y = layer(x, f"{mlp}.fc1_{kind}", f"{mlp}.fc1_bn")
        x = x + layer(y, f"{mlp}.fc2_{kind}", f"{mlp}.fc2_bn")
    return x.mean(3) @ state["head.weight"].T + state["head.bias"]


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(["cifar", "imagenet", "dvs"]),
    heads=st.sampled_from([1, 2, 8]),
    depth=st.integers(1, 2),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(8, 21), st.integers(8, 21)),
    pools=st.none() | st.tuples(*[st.booleans()] * 4).filter(lambda p: sum(p) < 4),
    timesteps=st.integers(1, 3),
    events=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_a_plain_implementation(
    layout, heads, depth, channels, size, pools, timesteps, events, seed
):
    config = {"num_heads": heads, "depth": depth, "mlp_ratio": 2.5, "layout": layout}
    shape = (channels, *size)
    model = create_model(
        "spikformer_nano", input_shape=shape, pools=pools, seed=seed, embed_dim=16, **config
    ).double()
    generator = torch.Generator().manual_seed(seed)
    frames = (timesteps, 2) if events else (2,)
    x = torch.randn(*frames, *shape, dtype=torch.float64, generator=generator)
    calibrate_batchnorm(model, [x], timesteps)
    expected = plain_spikformer(
        model.state_dict(),
        x if events else x.expand(timesteps, *x.shape),
        model.config.stem_pools,
        heads,
        "linear" if layout == "cifar" else "conv",
        0.25 if layout == "dvs" else 0.125,
    )
    with record(model) as recording:
        actual = model.steps(x, timesteps)
    assert recording.spikes["patch_embed.rpe_lif"].sum() > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
