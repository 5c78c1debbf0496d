"""Spike-driven Transformer V2, Meta-SpikeFormer (Yao et al., ICLR 2024, arXiv 2404.03663).

A pyramid of two convolutional and two attention stages on a real-valued membrane; every branch
starts with neurons, so that every layer behind the first one sees spikes. Released, at 224²::

    downsample1_1   Conv7 s2           E0/2   112²    ConvBlock1_1
    downsample1_2   LIF Conv3 s2       E0     56²     ConvBlock1_2
    downsample2     LIF Conv3 s2       E1     28²     ConvBlock2_1, ConvBlock2_2
    downsample3     LIF Conv3 s2       E2     14²     block3: 6 attention blocks
    downsample4     LIF Conv3          E3     14²     block4: 2 attention blocks
    head            mean, LIF, Linear

Layers carry the names of the released code (github.com/BICLab/Spike-Driven-Transformer-V2).
Channels come last everywhere inside, [T, B, H, W, C], and so do recorded spikes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikedim.errors import ConfigError
from spikedim.models.base import Macs, SpikingModel, scaled
from spikedim.models.blocks import (
    Grid,
    Pointwise,
    SpikeProduct,
    Units,
    check_hidden,
    check_size,
    check_vision,
    halved,
    init_linear,
    is_whole,
    merge_heads,
    on_images,
    on_tokens,
    pools_for,
    product_macs,
    split_heads,
    static_current,
)
from spikedim.models.gating import gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, LIFParams

SEPARABLE_RATIO, SEPARABLE_KERNEL = 2, 7  # of the token mixers of the convolutional blocks


class Stage(NamedTuple):
    """One downsampling and the blocks behind it."""

    name: str
    width: int
    kernel: int
    stride: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class SpikeDrivenV2Config:
    """What determines a Spike-driven Transformer V2.

    Args:
        input_shape: (channels, height, width) of one frame; any channels, need not be square.
        num_classes: classes of the head.
        embed_dims: widths E0 to E3; E0 even, E2 and E3 divisible by ``num_heads``.
        num_heads: attention heads.
        depths: attention blocks in the last two stages.
        mlp_ratio: hidden width of MLPs and convolutional blocks over their width.
        strides: stride, 1 or 2, of the five downsamplings; ``None`` halves in the first
            clamp(round(log2(sqrt(H W) / 4)), 0, 4) of them, for about 4 x 4 tokens.
        distilled: a second head, trained on a teacher's classes; logits are the mean of both.
        scale: factor of the attention product.
        attention_threshold: threshold of the neurons after the attention product, as a multiple
            of ``neuron.threshold``: a change of the threshold scales both.
        neuron: parameters of every neuron.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a field is out of its domain.
        ModelError: the image is too small for ``strides``.
    """

    input_shape: tuple[int, int, int] = (3, 224, 224)
    num_classes: int = 1000
    embed_dims: tuple[int, int, int, int] = (128, 256, 512, 640)
    num_heads: int = 8
    depths: tuple[int, int] = (6, 2)
    mlp_ratio: float = 4.0
    strides: tuple[int, int, int, int, int] | None = None
    distilled: bool = False
    scale: float = 0.125
    attention_threshold: float = 0.5
    neuron: LIFParams = field(default_factory=LIFParams)
    gate: str = "none"

    def __post_init__(self) -> None:
        positive = ("mlp_ratio", "scale", "attention_threshold")
        check_vision(self, ("num_heads",), positive=positive)
        for name, length in (("embed_dims", 4), ("depths", 2), ("strides", 5)):
            value = getattr(self, name)
            if name == "strides" and value is None:
                continue
            if (
                not isinstance(value, Sequence)
                or len(value) != length
                or not all(is_whole(n) for n in value)
            ):
                raise ConfigError(f"{name}={value!r}: expected {length} whole numbers >= 1")
            object.__setattr__(self, name, tuple(int(n) for n in value))
        first, _, *last = self.embed_dims
        if first % 2 or any(width % self.num_heads for width in last):
            raise ConfigError(
                f"embed_dims={self.embed_dims}: the first must be even (first stage E0/2), the "
                f"last two divisible by num_heads={self.num_heads}"
            )
        check_hidden(self.mlp_ratio, first // 2, "width")
        if not isinstance(self.distilled, bool):
            raise ConfigError(f"distilled={self.distilled!r}: expected True or False")
        if self.strides is not None:
            if max(self.strides) > 2:
                raise ConfigError(f"strides={self.strides}: expected each to be 1 or 2")
            hint = f"(strides={self.strides}); use strides=None to choose them from the image size"
            check_size(self.input_shape, self.strides.count(2), hint)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The five downsamplings in order, with the names of the blocks behind them."""
        halves = reversed(pools_for(self.input_shape, grid=4))  # early, where it saves most
        strides = self.strides or (*(1 + half for half in halves), 1)
        e0, e1, e2, e3 = self.embed_dims
        return (
            Stage("downsample1_1", e0 // 2, 7, strides[0], ("ConvBlock1_1",)),
            Stage("downsample1_2", e0, 3, strides[1], ("ConvBlock1_2",)),
            Stage("downsample2", e1, 3, strides[2], ("ConvBlock2_1", "ConvBlock2_2")),
            Stage("downsample3", e2, 3, strides[3], ("block3",)),
            Stage("downsample4", e3, 3, strides[4], ("block4",)),
        )


class Downsample(nn.Module):
    """[LIF-]Conv-BN; neurons everywhere but on the image."""

    def __init__(self, inputs: int, stage: Stage, neuron: LIFParams | None) -> None:
        super().__init__()
        self.encode_lif = None if neuron is None else LIF(neuron)
        padding = stage.kernel // 2
        self.encode_conv = nn.Conv2d(inputs, stage.width, stage.kernel, stage.stride, padding)
        self.encode_bn = nn.BatchNorm2d(stage.width)

    def forward(self, x: Tensor, shown: int | None = None) -> Tensor:
        """[T, B, H, W, C], or frames [B, H, W, C] and how often they are shown, to the next grid.

        Returns:
            Membrane [T, B, h, w, C'].
        """
        if shown is not None:
            return static_current(x, shown, self.training, self.encode_conv, self.encode_bn)
        x = x if self.encode_lif is None else self.encode_lif(x)
        return on_images(x, self.encode_conv, self.encode_bn)


class SeparableConv(nn.Module):
    """Token mixing LIF-1x1-BN-LIF-depthwise 7x7-1x1-BN, of twice the width inside."""

    def __init__(self, width: int, neuron: LIFParams) -> None:
        super().__init__()
        inner, kernel = SEPARABLE_RATIO * width, SEPARABLE_KERNEL
        self.lif1, self.lif2 = LIF(neuron), LIF(neuron)
        self.pwconv1 = Pointwise(width, inner, False, layout_axes=2)
        self.bn1 = nn.BatchNorm1d(inner)
        self.dwconv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False)
        self.pwconv2 = Pointwise(inner, width, False, layout_axes=2)
        self.bn2 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, C] to a current of the same shape."""
        y = self.lif2(on_tokens(self.lif1(x), self.pwconv1, self.bn1))  # [T, B, H, W, 2 C]
        return on_tokens(on_images(y, self.dwconv), self.pwconv2, self.bn2)  # [T, B, H, W, C]


class ConvBlock(nn.Module):
    """x + separable(x), then x + two 3x3 convolutions behind neurons, of ``mlp_ratio`` width."""

    def __init__(self, width: int, config: SpikeDrivenV2Config) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.Conv = SeparableConv(width, config.neuron)
        self.lif1, self.lif2 = LIF(config.neuron), LIF(config.neuron)
        self.conv1 = nn.Conv2d(width, hidden, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, C] to the same shape."""
        x = x + self.Conv(x)
        y = on_images(self.lif1(x), self.conv1, self.bn1)  # [T, B, H, W, C r]
        return x + on_images(self.lif2(y), self.conv2, self.bn2)


class PaddedNorm(nn.Module):
    """Batch norm, then one ring of padding that holds the norm of zero, without gradient.

    So the layers around it remain one 3x3 convolution of a zero-padded image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] to [n, C, H + 2, W + 2]."""
        bn, y = self.bn, functional.pad(self.bn(x), (1, 1, 1, 1))
        assert bn.running_mean is not None
        assert bn.running_var is not None
        ring = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        outside = functional.pad(y.new_zeros(x.shape[2:]), (1, 1, 1, 1), value=1.0)
        return y + ring.detach()[:, None, None] * outside


class RepConv(nn.Module):
    """1x1 - padded norm - depthwise 3x3 - 1x1 - norm: a 3x3 convolution in training form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, kernel_size=3, groups=width, bias=False)
        inner = (depthwise, _conv1x1(width), nn.BatchNorm2d(width))
        self.body = nn.Sequential(_conv1x1(width), PaddedNorm(width), nn.Sequential(*inner))

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] to the same shape."""
        y: Tensor = self.body(x)
        return y


class Attention(nn.Module):
    """Spiking self-attention with re-parametrised convolutions for q, k, v and the output."""

    output_projection: ClassVar[str] = "proj_conv"

    proj_conv: nn.Sequential

    def __init__(self, width: int, config: SpikeDrivenV2Config) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.gate = make_gate(config, width, self.heads)
        self.head_lif = LIF(config.neuron)
        for name in ("q", "k", "v", "proj"):
            conv = nn.Sequential(RepConv(width), nn.BatchNorm2d(width))
            self.add_module(f"{name}_conv", conv)
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_lif", LIF(config.neuron))
        self.product = SpikeProduct(config.scale)
        self.attn_lif = LIF(scaled(config.neuron, config.attention_threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, C] to a current of the same shape."""
        z = self.head_lif(x)
        q, k, v = (self._heads(name, z) for name in "qkv")  # [T, B, h, N, d]
        y = self.attn_lif(merge_heads(self.product(q, k, v)))  # [T, B, N, C]
        return on_images(gated(self.gate, y.unflatten(2, x.shape[2:4])), self.proj_conv)

    def _heads(self, name: str, z: Tensor) -> Tensor:
        spikes = getattr(self, f"{name}_lif")(on_images(z, getattr(self, f"{name}_conv")))
        return split_heads(spikes.flatten(2, 3), self.heads)


class Mlp(Units):
    """Two 1x1 layers, each behind neurons and before batch norm."""

    def __init__(self, width: int, config: SpikeDrivenV2Config) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.fc1_lif, self.fc2_lif = LIF(config.neuron), LIF(config.neuron)
        self.add_unit("fc1", Pointwise(width, hidden, True, layout_axes=1))
        self.add_unit("fc2", Pointwise(hidden, width, True, layout_axes=1))

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, C] to a current of the same shape."""
        x = self.current("fc1", self.fc1_lif(x))  # [T, B, H, W, C r]
        return self.current("fc2", self.fc2_lif(x))


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), on the membrane."""

    def __init__(self, width: int, config: SpikeDrivenV2Config) -> None:
        super().__init__()
        self.attn = Attention(width, config)
        self.mlp = Mlp(width, config)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to the same shape."""
        x = x + self.attn(x)
        return x + self.mlp(x)


@register_family(SpikeDrivenV2Config)
class SpikeDrivenV2(SpikingModel):
    """Meta-SpikeFormer classifier; see :class:`SpikeDrivenV2Config` for its options."""

    family = "spike_driven_v2"
    config: SpikeDrivenV2Config

    def __init__(self, config: SpikeDrivenV2Config) -> None:
        super().__init__()
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        depths = dict(zip(("block3", "block4"), config.depths, strict=True))
        inputs = config.input_shape[0]
        for index, stage in enumerate(config.stages):
            neuron = config.neuron if index else None
            self.add_module(stage.name, Downsample(inputs, stage, neuron))
            for name in stage.blocks:
                kind = Block if name in depths else ConvBlock
                blocks = (kind(stage.width, config) for _ in range(depths.get(name, 1)))
                self.add_module(name, nn.ModuleList(blocks))
            inputs = stage.width
        self.lif = LIF(config.neuron)
        self.head = nn.Linear(inputs, config.num_classes)
        init_linear(self.head)
        if config.distilled:
            self.head_kd = nn.Linear(inputs, config.num_classes)
            init_linear(self.head_kd)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        x = x.movedim(-3, -1).contiguous()  # [(T,) B, H, W, C]
        for index, stage in enumerate(self.config.stages):
            shown = T if static and not index else None
            x = getattr(self, stage.name)(x, shown)  # [T, B, H_s, W_s, C_s]
            for name in stage.blocks:
                for block in getattr(self, name):
                    x = block(x)
        spikes = self.lif(x.mean((2, 3)))  # [T, B, E3]
        logits: Tensor = self.head(spikes)  # [T, B, classes]
        return (logits + self.head_kd(spikes)) / 2 if self.config.distilled else logits

    def threshold_ratio(self, name: str) -> float:
        """``attention_threshold`` for the neurons after an attention product, else 1."""
        return self.config.attention_threshold if name.endswith("attn_lif") else 1.0

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample; see :class:`Macs`."""
        c = self.config
        depths = dict(zip(("block3", "block4"), c.depths, strict=True))
        dense, attention, inputs = 0, 0, c.input_shape[0]
        grid: Grid = c.input_shape[1:]
        for _, width, kernel, stride, blocks in c.stages:
            grid = halved(grid, stride - 1)
            tokens, hidden = grid[0] * grid[1], int(width * c.mlp_ratio)
            dense += tokens * kernel**2 * inputs * width
            for block in blocks:
                if block in depths:
                    rep = 2 * width**2 + 9 * width
                    dense += depths[block] * tokens * (4 * rep + 2 * width * hidden)
                    attention += depths[block] * product_macs(tokens, width, c.num_heads)
                else:
                    inner = SEPARABLE_RATIO * width
                    separable = 2 * width * inner + SEPARABLE_KERNEL**2 * inner
                    dense += tokens * (separable + 2 * 9 * width * hidden)
            inputs = width
        heads = 2 if c.distilled else 1
        return Macs(dense, attention, heads * inputs * c.num_classes)


def _conv1x1(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel_size=1, bias=False)
