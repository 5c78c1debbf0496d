"""Spikformer: spiking self-attention without softmax (Zhou et al., ICLR 2023, arXiv 2209.15425).

One network in the three layouts in which it was released, which differ in the kind of the 1x1
layers (hence in their checkpoints), in the stem's pooling and in the scale of the attention::

    layout     1x1 layers               q/k/v bias   released stem       scale
    cifar      Linear                   yes          pools 2 of 4        0.125
    imagenet   Conv1d, in MLP Conv2d    no           pools 4 of 4        0.125
    dvs        Conv1d                   no           pools 4 of 4        0.25

Layers, and with them ``state_dict`` entries, carry the names of the released code
(github.com/ZK-Zhou/spikformer, MIT), including parameters it stores and never uses.

Channels come last everywhere inside, [T, B, H, W, C] in the stem and [T, B, N, C] in the blocks,
and so do recorded spikes: on a CPU that makes pooling five and batch norm two times faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError
from spikedim.models.base import Macs, SpikingModel, scaled
from spikedim.models.blocks import (
    Grid,
    Pointwise,
    Pools,
    SpikeProduct,
    check_hidden,
    check_positive,
    check_vision,
    checked_pools,
    conv3x3,
    halving_pool,
    init_linear,
    merge_heads,
    on_images,
    on_tokens,
    pools_for,
    product_macs,
    split_heads,
    static_current,
    stem_grids,
)
from spikedim.models.gating import gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, LIFParams

LAYOUTS = ("cifar", "imagenet", "dvs")
STAGES = ("", "1", "2", "3")


@dataclass(frozen=True)
class SpikformerConfig:
    """What determines a Spikformer.

    Args:
        input_shape: (channels, height, width) of one frame; any channels, need not be square.
        num_classes: classes of the head.
        embed_dim: token width D, divisible by 8 and by ``num_heads``.
        num_heads: attention heads.
        depth: number of blocks.
        mlp_ratio: hidden width of the MLP over D.
        layout: ``"cifar"``, ``"imagenet"`` or ``"dvs"``, see the module.
        pools: which of the four stem stages halve the image; ``None`` pools the last
            clamp(round(log2(sqrt(H W) / 8)), 0, 4) stages, for a grid of about 8 x 8 tokens.
        scale: factor of the attention product; ``None`` takes the layout's.
        attention_threshold: threshold of the neurons after the attention product, as a multiple
            of ``neuron.threshold``: a change of the threshold scales both.
        neuron: parameters of every neuron.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a field is out of its domain.
        ModelError: the image is too small for ``pools``.
    """

    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    embed_dim: int = 384
    num_heads: int = 12
    depth: int = 4
    mlp_ratio: float = 4.0
    layout: str = "cifar"
    pools: Pools | None = None
    scale: float | None = None
    attention_threshold: float = 0.5
    neuron: LIFParams = field(default_factory=LIFParams)
    gate: str = "none"

    def __post_init__(self) -> None:
        whole = ("embed_dim", "num_heads", "depth")
        check_vision(self, whole, positive=("mlp_ratio", "attention_threshold"))
        if self.embed_dim % 8 or self.embed_dim % self.num_heads:
            raise ConfigError(
                f"embed_dim={self.embed_dim} must be divisible by 8 (stem widths D/8, D/4, D/2) "
                f"and by num_heads={self.num_heads}"
            )
        check_hidden(self.mlp_ratio, self.embed_dim)
        if self.scale is not None:
            check_positive("scale", self.scale)
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout={self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        object.__setattr__(self, "pools", checked_pools(self.pools, self.input_shape))

    @property
    def stem_pools(self) -> Pools:
        """``pools``, or the choice made from the image size."""
        return self.pools or pools_for(self.input_shape)

    @property
    def stem_grids(self) -> tuple[Grid, ...]:
        """(H, W) at which each of the four stem convolutions runs, then the token grid."""
        return stem_grids(self.input_shape, self.stem_pools)

    @property
    def stem_widths(self) -> tuple[int, int, int, int]:
        """Channels after each stem stage: D/8, D/4, D/2, D."""
        return self.embed_dim // 8, self.embed_dim // 4, self.embed_dim // 2, self.embed_dim

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        height, width = self.stem_grids[-1]
        return height * width

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def attention_scale(self) -> float:
        """``scale``, or the layout's released value."""
        return self.scale if self.scale is not None else 0.25 if self.layout == "dvs" else 0.125


class Stem(nn.Module):
    """Spiking patch splitting: four Conv3x3-BN-LIF[-MaxPool] stages and a position branch."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.pools = config.stem_pools
        widths = (config.input_shape[0], *config.stem_widths)
        for stage, suffix in enumerate(STAGES):
            self.add_module(f"proj_conv{suffix}", conv3x3(widths[stage], widths[stage + 1]))
            self.add_module(f"proj_bn{suffix}", nn.BatchNorm2d(widths[stage + 1]))
            self.add_module(f"proj_lif{suffix}", LIF(config.neuron))
        self.maxpool = halving_pool()
        self.rpe_conv = conv3x3(config.embed_dim, config.embed_dim)
        self.rpe_bn = nn.BatchNorm2d(config.embed_dim)
        self.rpe_lif = LIF(config.neuron)

    def forward(self, x: Tensor, T: int, static: bool) -> Tensor:
        """Frames [B, C, H, W] if static or [T, B, C, H, W] to tokens [T, B, h, w, D] of 0, 1, 2."""
        x = x.movedim(-3, -1).contiguous()  # [(T,) B, H, W, C]
        for stage, suffix in enumerate(STAGES):
            conv, bn = getattr(self, f"proj_conv{suffix}"), getattr(self, f"proj_bn{suffix}")
            if stage == 0 and static:
                x = static_current(x, T, self.training, conv, bn)  # [T, B, H, W, D/8]
            else:
                x = on_images(x, conv, bn)  # [T, B, H, W, D_stage]
            x = getattr(self, f"proj_lif{suffix}")(x)
            if self.pools[stage]:
                x = on_images(x, self.maxpool)  # [T, B, ceil(H/2), ceil(W/2), D_stage]
        return x + self.rpe_lif(on_images(x, self.rpe_conv, self.rpe_bn))


class Attention(nn.Module):
    """Spiking self-attention: scale * (q k^T) v of spike trains, neurons, a projection, neurons."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.kind = "linear" if config.layout == "cifar" else "conv"
        self.heads = config.num_heads
        dim, qkv_bias = config.embed_dim, config.layout == "cifar"
        axes = 0 if config.layout == "cifar" else 1
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_{self.kind}", Pointwise(dim, dim, qkv_bias, axes))
            self.add_module(f"{name}_bn", nn.BatchNorm1d(dim))
            self.add_module(f"{name}_lif", LIF(config.neuron))
        self.product = SpikeProduct(config.attention_scale)
        self.attn_lif = LIF(scaled(config.neuron, config.attention_threshold))
        self.output_projection = f"proj_{self.kind}"
        self.gate = make_gate(config, dim, config.num_heads)
        self.add_module(self.output_projection, Pointwise(dim, dim, True, axes))
        self.proj_bn = nn.BatchNorm1d(dim)
        self.proj_lif = LIF(config.neuron)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [T, B, N, D] to spikes [T, B, N, D]."""
        q, k, v = (self._branch(name, x) for name in "qkv")
        y = self.product(*(split_heads(x, self.heads) for x in (q, k, v)))  # [T, B, h, N, d]
        return self._branch("proj", gated(self.gate, self.attn_lif(merge_heads(y))))  # [T, B, N, D]

    def _branch(self, name: str, x: Tensor) -> Tensor:
        dense, bn = getattr(self, f"{name}_{self.kind}"), getattr(self, f"{name}_bn")
        spikes: Tensor = getattr(self, f"{name}_lif")(on_tokens(x, dense, bn))
        return spikes


class Mlp(nn.Module):
    """Two 1x1 layers, each followed by batch norm and neurons; hidden width ``mlp_ratio`` D."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.kind = "linear" if config.layout == "cifar" else "conv"
        axes = {"cifar": 0, "imagenet": 2, "dvs": 1}[config.layout]
        widths = (config.embed_dim, config.hidden_dim, config.embed_dim)
        for layer in (1, 2):
            dense = Pointwise(widths[layer - 1], widths[layer], True, axes)
            self.add_module(f"fc{layer}_{self.kind}", dense)
            self.add_module(f"fc{layer}_bn", nn.BatchNorm1d(widths[layer]))
            self.add_module(f"fc{layer}_lif", LIF(config.neuron))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [T, B, N, D] to spikes [T, B, N, D]."""
        for layer in (1, 2):
            dense, bn = getattr(self, f"fc{layer}_{self.kind}"), getattr(self, f"fc{layer}_bn")
            x = getattr(self, f"fc{layer}_lif")(on_tokens(x, dense, bn))  # width D r, then D
        return x


class Block(nn.Module):
    """x + attention(x), then x + mlp(x): residuals add spikes, so tokens are whole numbers."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim)  # stored by the released code, never applied
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens of the same shape."""
        x = x + self.attn(x)
        return x + self.mlp(x)


@register_family(SpikformerConfig)
class Spikformer(SpikingModel):
    """Spikformer classifier; see :class:`SpikformerConfig` for its options."""

    family = "spikformer"
    config: SpikformerConfig

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        self.patch_embed = Stem(config)
        self.block = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.layout == "dvs":  # stored by the released code, never applied
            self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.embed_dim))
            self.norm = nn.LayerNorm(config.embed_dim)
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        init_linear(self.head)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        x = self.patch_embed(x, T, static).flatten(2, 3)  # [T, B, N, D]
        for block in self.block:
            x = block(x)
        logits: Tensor = self.head(x.mean(2))  # [T, B, classes]
        return logits

    def threshold_ratio(self, name: str) -> float:
        """``attention_threshold`` for the neurons after an attention product, else 1."""
        return self.config.attention_threshold if name.endswith("attn_lif") else 1.0

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample; see :class:`Macs`."""
        c = self.config
        channels = (c.input_shape[0], *c.stem_widths)
        dense = sum(
            9 * channels[i] * channels[i + 1] * height * width
            for i, (height, width) in enumerate(c.stem_grids[:4])
        )
        dense += 9 * c.embed_dim**2 * c.tokens
        dense += c.depth * c.tokens * c.embed_dim * (4 * c.embed_dim + 2 * c.hidden_dim)
        attention = c.depth * product_macs(c.tokens, c.embed_dim, c.num_heads)
        return Macs(dense, attention, c.embed_dim * c.num_classes)

    def unused_parameters(self) -> int:
        """Parameters that the released code stores and that never act."""
        unused = (*(f"block.{i}.norm" for i in range(self.config.depth)), "norm.", "pos_embed")
        return sum(p.numel() for n, p in self.named_parameters() if n.startswith(unused))
