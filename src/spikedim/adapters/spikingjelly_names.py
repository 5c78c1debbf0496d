"""Weights of our networks under the names of SpikingJelly 2.0's model zoo, and back.

SpikingJelly fuses q, k (and v) into one layer and leaves out biases in front of a batch norm: a
bias b is folded into the running mean, BN(x + b; m) = BN(x; m − b), which is exact up to rounding
in eval mode.

Its Spikformer pools currents before the neurons where the released one pools spikes behind them:
with the same weights both agree for T = 1 and differ for more steps. Its QKFormer (the ImageNet
form) and its Spike-driven Transformer are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spikedim.errors import CheckpointError, ModelError
from spikedim.models import QKFormer, SpikeDriven, Spikformer, SpikingModel

_NORM = ("weight", "bias", "running_mean", "running_var")
_SHOWN = 3


class _Unit(NamedTuple):
    """One layer and its batch norm there, one or several fused ones here.

    Attributes:
        ours: path of each layer and of its norm.
        layer, norm: their paths there.
        biased: whether the layer has a bias there.
        axes: trailing kernel axes of the layer there.
    """

    ours: tuple[tuple[str, str], ...]
    layer: str
    norm: str
    biased: bool
    axes: int


def to_spikingjelly(model: SpikingModel) -> dict[str, Tensor]:
    """The ``state_dict`` for SpikingJelly 2.0's network of the same shape.

    Args:
        model: a Spikformer, a QKFormer with ``layout="imagenet"`` or a Spike-driven Transformer
            without ``local_pool``.

    Raises:
        ModelError: SpikingJelly has no such network.
    """
    state, out = model.state_dict(), {}
    for unit in _units(model):
        weights = [state[f"{layer}.weight"] for layer, _ in unit.ours]
        fused = torch.cat(weights)
        kernel = fused.shape[2:] if fused[0, 0].numel() > 1 else (1,) * unit.axes
        out[f"{unit.layer}.weight"] = fused.reshape(*fused.shape[:2], *kernel)
        bias = torch.cat([_bias(state, layer) for layer, _ in unit.ours])
        for name in _NORM:
            out[f"{unit.norm}.{name}"] = torch.cat(
                [state[f"{norm}.{name}"] for _, norm in unit.ours]
            )
        if unit.biased:
            out[f"{unit.layer}.bias"] = bias
        else:
            out[f"{unit.norm}.running_mean"] = out[f"{unit.norm}.running_mean"] - bias
        counter = "num_batches_tracked"
        out[f"{unit.norm}.{counter}"] = state[f"{unit.ours[0][1]}.{counter}"]
    return {**out, "head.weight": state["head.weight"], "head.bias": state["head.bias"]}


def from_spikingjelly(model: SpikingModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` for ``model`` from one of SpikingJelly 2.0; entries it never uses stay.

    Args:
        model: the network the weights are for, as for :func:`to_spikingjelly`.
        state: the other ``state_dict``.

    Raises:
        ModelError: SpikingJelly has no such network.
        CheckpointError: an entry is missing, left over or of another shape.

    Example:
        >>> model.load_state_dict(from_spikingjelly(model, theirs.state_dict()))  # doctest: +SKIP
    """
    expected = to_spikingjelly(model)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [n for n in expected if n in state and state[n].shape != expected[n].shape]
    for kind, names in (("lack", missing), ("have unknown", unexpected), ("misshape", shapes)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise CheckpointError(
                f"these SpikingJelly weights {kind} {', '.join(names[:_SHOWN])}{more}; check the "
                "variant, num_classes and input_shape of the network"
            )
    out = {name: value.clone() for name, value in model.state_dict().items()}
    for unit in _units(model):
        sizes = [len(out[f"{layer}.weight"]) for layer, _ in unit.ours]
        weights = state[f"{unit.layer}.weight"].split(sizes)
        norms = {name: state[f"{unit.norm}.{name}"].split(sizes) for name in _NORM}
        bias = state[f"{unit.layer}.bias"] if unit.biased else torch.zeros(sum(sizes))
        for index, ((layer, norm), b) in enumerate(zip(unit.ours, bias.split(sizes), strict=True)):
            own = out[f"{layer}.weight"]
            out[f"{layer}.weight"] = weights[index].reshape(own.shape).to(own)
            for name in _NORM:
                out[f"{norm}.{name}"] = norms[name][index].to(own)
            if f"{layer}.bias" in out:
                out[f"{layer}.bias"] = b.to(own)
            else:
                out[f"{norm}.running_mean"] = out[f"{norm}.running_mean"] - b.to(own)
            out[f"{norm}.num_batches_tracked"] = state[f"{unit.norm}.num_batches_tracked"].clone()
    for name in ("head.weight", "head.bias"):
        out[name] = state[name].to(out[name])
    return out


def _bias(state: Mapping[str, Tensor], layer: str) -> Tensor:
    weight = state[f"{layer}.weight"]
    return state.get(f"{layer}.bias", weight.new_zeros(len(weight)))


def _units(model: SpikingModel) -> Iterator[_Unit]:
    if isinstance(model, Spikformer):
        return _spikformer(model)
    if isinstance(model, QKFormer) and model.config.layout == "imagenet":
        return _qkformer(model)
    if isinstance(model, SpikeDriven) and not model.config.local_pool:
        return _spike_driven(model)
    raise ModelError(
        f"SpikingJelly 2.0 has no counterpart of this {type(model).__name__}: it has Spikformer, "
        "QKFormer in its ImageNet form and Spike-driven Transformer without local pooling"
    )


def _spikformer(model: Spikformer) -> Iterator[_Unit]:
    kind = "linear" if model.config.layout == "cifar" else "conv"
    for i, suffix in enumerate(("", "1", "2", "3")):
        ours = (f"patch_embed.proj_conv{suffix}", f"patch_embed.proj_bn{suffix}")
        block = f"patch_embed.stages.{i}.conv_bn.block"
        yield _Unit((ours,), f"{block}.0", f"{block}.1", False, 2)
    ours, block = (
        ("patch_embed.rpe_conv", "patch_embed.rpe_bn"),
        "positional_encoding.conv_bn.block",
    )
    yield _Unit((ours,), f"patch_embed.{block}.0", f"patch_embed.{block}.1", False, 2)
    for i in range(model.config.depth):
        here, there = f"block.{i}", f"blocks.{i}"
        qkv = tuple((f"{here}.attn.{n}_{kind}", f"{here}.attn.{n}_bn") for n in "qkv")
        yield _fused(qkv, f"{there}.attn.qkv_conv_bn")
        yield _fused(
            ((f"{here}.attn.proj_{kind}", f"{here}.attn.proj_bn"),), f"{there}.attn.proj_conv_bn"
        )
        for n in (1, 2):
            yield _fused(
                ((f"{here}.mlp.fc{n}_{kind}", f"{here}.mlp.fc{n}_bn"),), f"{there}.mlp.fc{n}"
            )


def _qkformer(model: QKFormer) -> Iterator[_Unit]:
    for stage, depth in enumerate(model.config.stage_depths, start=1):
        embed = f"patch_embed{stage}"
        names = ("proj", "proj1", "proj2") if stage == 1 else ("proj3", "proj4")
        for n, name in enumerate(names, start=1):
            ours = (f"{embed}.{name}_conv", f"{embed}.{name}_bn")
            yield _Unit((ours,), f"{embed}.conv{n}", f"{embed}.bn{n}", True, 2)
        ours = (f"{embed}.proj_res_conv", f"{embed}.proj_res_bn")
        yield _Unit((ours,), f"{embed}.shortcut.0", f"{embed}.shortcut.1", True, 2)
        last = stage == len(model.config.stage_depths)
        for i in range(depth):
            here = f"stage{stage}.{i}"
            attn, fused = (f"{here}.attn", "qkv") if last else (f"{here}.tssa", "qk")
            units = tuple((f"{attn}.{n}_conv", f"{attn}.{n}_bn") for n in fused)
            yield _fused(units, f"{here}.attn.{fused}_conv_bn")
            yield _fused(((f"{attn}.proj_conv", f"{attn}.proj_bn"),), f"{here}.attn.proj_conv_bn")
            for n in (1, 2):
                ours = (f"{here}.mlp.fc{n}_conv", f"{here}.mlp.fc{n}_bn")
                yield _Unit((ours,), f"{here}.mlp.fc{n}", f"{here}.mlp.bn{n}", True, 1)


def _spike_driven(model: SpikeDriven) -> Iterator[_Unit]:
    stem = "patch_embed"
    for i, suffix in enumerate(("", "1", "2", "3")):
        there = f"{stem}.stages.{i}" if i < 3 else f"{stem}.final_stage"
        ours = (f"{stem}.proj_conv{suffix}", f"{stem}.proj_bn{suffix}")
        yield _Unit((ours,), f"{there}.0", f"{there}.1", True, 2)
    ours = (f"{stem}.rpe_conv", f"{stem}.rpe_bn")
    yield _Unit((ours,), *ours, False, 2)
    for i in range(model.config.depth):
        here, there = f"block.{i}", f"blocks.{i}"
        for n in ("q", "k", "v", "proj"):
            paths = (f"attn.{n}_conv", f"attn.{n}_bn")
            ours = (f"{here}.{paths[0]}", f"{here}.{paths[1]}")
            yield _Unit((ours,), f"{there}.{paths[0]}", f"{there}.{paths[1]}", n == "proj", 2)
        for n in ("1", "2"):
            ours = (f"{here}.mlp.fc{n}_conv", f"{here}.mlp.fc{n}_bn")
            yield _Unit((ours,), f"{there}.mlp.fc{n}", f"{there}.mlp.bn{n}", True, 2)


def _fused(ours: tuple[tuple[str, str], ...], there: str) -> _Unit:
    """Layer and norm numbered 0 and 1 of a container, an unbiased Conv1d."""
    return _Unit(ours, f"{there}.0", f"{there}.1", False, 1)
