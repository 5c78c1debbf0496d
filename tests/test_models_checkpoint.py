"""Weights files: round trips, every usual wrapping, and every way they break."""

import argparse
import errno
import json
import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spikedim.errors import CheckpointError, StorageError
from spikedim.models import (
    VisionTransformer,
    calibrate_batchnorm,
    convert,
    create_model,
    diagram,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from spikedim.neurons import LIFParams, surrogate

SHAPE = (1, 8, 8)


def network(seed=0, **options):
    model = create_model("spikformer_nano", input_shape=SHAPE, seed=seed, **options)
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm(model, [x], 3)
    return model


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_rebuilds_network_neurons_and_precision(tmp_path, dtype):
    neuron = LIFParams(beta=0.7, threshold=0.9, refractory=1, surrogate=surrogate("atan", 2.0))
    model = network(neuron=neuron, depth=2, pools=(False, False, False, True)).to(dtype)
    model.set_neurons(reset="soft")
    path = save_checkpoint(model, tmp_path / "deep" / "net.safetensors")
    again = load_model(path)
    assert again.config == model.config
    assert again.config.neuron.reset == "soft"
    assert same(again, model)
    assert not again.training
    x = torch.randn(2, *SHAPE).to(dtype)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=1e-3), "arch": "spikformer"},
        lambda s: {"ema": {"module." + k: v for k, v in s.items()}},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"model._orig_mod." + k: v for k, v in s.items()}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"net": {"network." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": s, "state_dict_ema": s, "metric": np.float64(91.5)},
        lambda s: {
            "model": s,
            "args": argparse.Namespace(out=Path("runs"), gpu=torch.device("cuda:0")),
        },
        lambda s: {"state_dict": s, "losses": np.ones(3), "log": defaultdict(list, a=[1])},
        lambda s: {"model": s, "neuron": LIFParams(beta=0.7)},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth.tar"])
def test_usual_wrappings_are_understood(tmp_path, wrap, suffix):
    source, target = network(0), network(1)
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(source.state_dict()), path)
    report = load_checkpoint(target, path)
    assert same(source, target)
    assert report.entries == len(source.state_dict())
    assert report.reshaped == ()
    assert "path" in str(report)


def test_files_of_the_format_before_pytorch_1_6(tmp_path):
    source, target = network(0), network(1)
    beside = {"args": argparse.Namespace(out=Path("runs")), "best": np.float64(91.5)}
    content = {"state_dict": source.state_dict(), **beside}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(target, tmp_path / "old.pth")
    assert same(source, target)


def test_two_networks_under_one_name_are_refused(tmp_path):
    state = network().state_dict()
    both = {f"{prefix}.{k}": v for prefix in ("model", "net") for k, v in state.items()}
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match=r"several networks: entries such as model\.block"):
        load_checkpoint(network(1), tmp_path / "both.pt")


def test_neurons_that_differ_come_back(tmp_path):
    beta = torch.linspace(0.1, 0.9, 7)[2:3]
    model = network(neuron=LIFParams(beta=beta))
    assert "β per neuron (1,)" in str(diagram(model))
    again = load_model(save_checkpoint(model, tmp_path / "net.safetensors"))
    assert torch.equal(again.config.neuron.beta.float(), beta)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(again(x), model(x))


def test_converted_network_is_converted_again_and_loaded(tmp_path):
    def converted(seed):
        torch.manual_seed(seed)
        return convert(VisionTransformer().eval(), [torch.rand(4, *SHAPE)], T=8)

    source, target = converted(0), converted(1)
    path = save_checkpoint(source, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"family 'spikedattention'.*load_checkpoint"):
        load_model(path)
    load_checkpoint(target, path)
    x = torch.rand(3, *SHAPE)
    assert torch.equal(target(x), source(x))


def test_plain_safetensors_and_other_precision(tmp_path):
    source, target = network(0), network(1).double()
    save_file(
        {k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    report = load_checkpoint(target, tmp_path / "w.safetensors")
    assert same(source.double(), target)
    assert len(report.dtype_changed) == sum(
        v.is_floating_point() for v in target.state_dict().values()
    )
    with pytest.raises(CheckpointError, match="no usable network configuration"):
        load_model(tmp_path / "w.safetensors")


def test_kernels_of_length_one_are_reshaped_and_reported(tmp_path):
    source, target = network(0, layout="dvs"), network(1, layout="imagenet")
    state = {k: v for k, v in source.state_dict().items() if k in target.state_dict()}
    torch.save(state, tmp_path / "w.pt")
    report = load_checkpoint(target, tmp_path / "w.pt")
    assert report.reshaped == ("block.0.mlp.fc1_conv.weight", "block.0.mlp.fc2_conv.weight")
    x = torch.randn(2, *SHAPE)
    target.block[0].attn.product.scale = 0.25
    assert torch.equal(source(x), target(x))


def test_every_mismatch_is_in_one_message_and_nothing_is_loaded(tmp_path):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = create_model("spikformer_nano", input_shape=SHAPE, num_classes=7, seed=9).state_dict()
    for gone in ("head.bias", "block.0.norm1.weight"):
        del state[gone]
    state |= {f"teacher.{i}": torch.zeros(1) for i in range(5)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "w.pt")
    text = str(caught.value)
    for part in (
        "2 missing from the file (block.0.norm1.weight, head.bias)",
        "5 unknown to the network (teacher.0, teacher.1, teacher.2 and 2 more)",
        "1 of another shape (head.weight (7, 32) in the file, (10, 32) in the network)",
    ):
        assert part in text
    assert "\n" not in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


def damaged_files(folder):
    weights = network().state_dict()
    torch.save(weights, folder / "good.pt")
    save_checkpoint(network(), folder / "good.safetensors")
    for name in ("good.pt", "good.safetensors"):
        data = (folder / name).read_bytes()
        (folder / f"half_{name}").write_bytes(data[: len(data) // 2])
        (folder / f"few_{name}").write_bytes(data[:5])
        (folder / f"empty_{name}").write_bytes(b"")
        (folder / f"noise_{name}").write_bytes(bytes(range(256)) * 40)
    (folder / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save(network(), folder / "whole_module.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({"epoch": 3}, folder / "no_tensors.pt")
    torch.save(weights | {"head.bias": torch.full((10,), float("nan"))}, folder / "nan.pt")
    (folder / "folder.pt").mkdir()
    good = {"good.pt", "good.safetensors"}
    return [p for p in sorted(folder.iterdir()) if p.name not in good] + [folder / "absent.pt"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_give_one_clear_line_and_leave_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    files = damaged_files(tmp_path)
    assert len(files) == 16
    for path in files:
        for load in (lambda p: load_checkpoint(model, p), load_model):
            with pytest.raises(CheckpointError) as caught:
                load(path)
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value), path
    assert not (tmp_path / "owned").exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h | {"version": "spikedim-model-9"},
        lambda h: h | {"family": "convnet"},
        lambda h: h | {"config": h["config"] | {"depth": "many"}},
        lambda h: h | {"config": h["config"] | {"colour": 1}},
        lambda h: h | {"config": {k: v for k, v in h["config"].items() if k != "depth"}},
        lambda h: h | {"config": None},
        lambda h: [],
    ],
)
def test_wrong_configuration_in_the_header(tmp_path, change):
    from safetensors import safe_open

    model = network()
    path = save_checkpoint(model, tmp_path / "w.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["spikedim"])
    save_file(model.state_dict(), path, metadata={"spikedim": json.dumps(change(header))})
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_model(path)
    assert load_checkpoint(network(3), path).entries == len(model.state_dict())


def test_full_disk_keeps_the_older_file(tmp_path, monkeypatch):
    path = save_checkpoint(network(0), tmp_path / "w.safetensors")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spikedim.storage.os.fsync", full)
    with pytest.raises(StorageError, match="no disk space left"):
        save_checkpoint(network(1), path)
    assert same(load_model(path), network(0))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
