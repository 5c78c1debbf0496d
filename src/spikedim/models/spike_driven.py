"""Spike-driven Transformer (Yao et al., NeurIPS 2023, arXiv 2307.01694).

Attention without any product of matrices: per channel, neurons that sum k∘v over the tokens decide
whether q passes. The residual stream is the membrane: it is real-valued, each branch starts with
neurons, and so every weight layer behind the first one sees spikes only. Released stems::

    data set                    input    pools    token mixing
    CIFAR                       32       0011     plain
    ImageNet                    224      1111     plain
    CIFAR10-DVS                 64       0011     max-pools (``local_pool``)
    DVS128 Gesture              128      0111     plain

Layers carry the names of the released code (github.com/BICLab/Spike-Driven-Transformer,
Apache-2.0), including a convolution over heads that it stores and never uses. Released training on
events keeps the logits of every step (TET): ``steps`` gives them.

Channels come last everywhere inside, [T, B, H, W, C], and so do recorded spikes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from spikedim.errors import ConfigError
from spikedim.models.base import Macs, SpikingModel, scaled
from spikedim.models.blocks import (
    Grid,
    Pointwise,
    Pools,
    Units,
    check_hidden,
    check_vision,
    checked_pools,
    conv3x3,
    halving_pool,
    init_linear,
    on_images,
    pools_for,
    split_heads,
    static_current,
    stem_grids,
)
from spikedim.models.gating import gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, LIFParams

STAGES = ("", "1", "2", "3")


@dataclass(frozen=True)
class SpikeDrivenConfig:
    """What determines a Spike-driven Transformer.

    Args:
        input_shape: (channels, height, width) of one frame; any channels, need not be square.
        num_classes: classes of the head.
        embed_dim: token width D, divisible by 8 and by ``num_heads``.
        num_heads: heads; they matter to ``local_pool`` and to the stored parameters only.
        depth: number of blocks.
        mlp_ratio: hidden width of the MLP over D.
        pools: which of the four stem stages halve the image; ``None`` pools the last
            clamp(round(log2(sqrt(H W) / 8)), 0, 4) stages, for a grid of about 8 x 8 tokens.
        local_pool: max-pool k, v, k∘v and the attention's output 3 x 3, as released for
            CIFAR10-DVS; the last two over (token, channel of the head), not over the image.
        attention_threshold: threshold of the neurons that sum k∘v, as a multiple of
            ``neuron.threshold``: a change of the threshold scales both.
        neuron: parameters of every neuron.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a field is out of its domain.
        ModelError: the image is too small for ``pools``.
    """

    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    embed_dim: int = 512
    num_heads: int = 8
    depth: int = 2
    mlp_ratio: float = 4.0
    pools: Pools | None = None
    local_pool: bool = False
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
        if not isinstance(self.local_pool, bool):
            raise ConfigError(f"local_pool={self.local_pool!r}: expected True or False")
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
    def stem_widths(self) -> tuple[int, ...]:
        """Channels of a frame, then after each stem stage: D/8, D/4, D/2, D."""
        return self.input_shape[0], *(self.embed_dim // n for n in (8, 4, 2, 1))

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)


class Stem(nn.Module):
    """Patch splitting: three Conv3x3-BN-LIF[-MaxPool], a Conv3x3-BN[-MaxPool], a residual one."""

    proj_lif3: LIF

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        self.pools = config.stem_pools
        widths = config.stem_widths
        for stage, suffix in enumerate(STAGES):
            self.add_module(f"proj_conv{suffix}", conv3x3(widths[stage], widths[stage + 1]))
            self.add_module(f"proj_bn{suffix}", nn.BatchNorm2d(widths[stage + 1]))
            self.add_module(f"proj_lif{suffix}", LIF(config.neuron))
        self.maxpool = halving_pool()
        self.rpe_conv = conv3x3(config.embed_dim, config.embed_dim)
        self.rpe_bn = nn.BatchNorm2d(config.embed_dim)

    def forward(self, x: Tensor, T: int, static: bool) -> Tensor:
        """Frames [B, C, H, W] if static or [T, B, C, H, W] to real tokens [T, B, h, w, D]."""
        x = x.movedim(-3, -1).contiguous()  # [(T,) B, H, W, C]
        for stage, suffix in enumerate(STAGES):
            conv, bn = getattr(self, f"proj_conv{suffix}"), getattr(self, f"proj_bn{suffix}")
            if stage == 0 and static:
                x = static_current(x, T, self.training, conv, bn)  # [T, B, H, W, D/8]
            else:
                x = on_images(x, conv, bn)  # [T, B, H, W, D_stage]
            if stage < 3:
                x = getattr(self, f"proj_lif{suffix}")(x)
            if self.pools[stage]:
                x = on_images(x, self.maxpool)  # [T, B, ceil(H/2), ceil(W/2), D_stage]
        return x + on_images(self.proj_lif3(x), self.rpe_conv, self.rpe_bn)


class Attention(Units):
    """Spike-driven self-attention: a channel of q passes where its k and v coincide often."""

    attention_map: ClassVar[str] = "talking_heads_lif"
    output_projection: ClassVar[str] = "proj_conv"

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        dim, neuron = config.embed_dim, config.neuron
        self.gate = make_gate(config, dim, self.heads)
        self.shortcut_lif = LIF(neuron)
        for name in ("q", "k", "v"):
            self.add_unit(name, Pointwise(dim, dim, False, layout_axes=2), neuron)
        self.talking_heads_lif = LIF(scaled(neuron, config.attention_threshold))
        # stored by the released code, never applied
        self.talking_heads = nn.Conv1d(self.heads, self.heads, kernel_size=1, bias=False)
        self.add_unit("proj", Pointwise(dim, dim, True, layout_axes=2))
        self.pool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1) if config.local_pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, D] to a current of the same shape."""
        z = self.shortcut_lif(x)
        q, k, v = (self.spikes(name, z) for name in "qkv")
        if self.pool is not None:
            k, v = on_images(k, self.pool), on_images(v, self.pool)
        q, k, v = (y.flatten(2, 3) for y in (q, k, v))  # [T, B, N, D]
        together = self._pooled(k * v).sum(2)  # [T, B, D]
        passing = self.talking_heads_lif(together)[:, :, None]  # [T, B, 1, D]
        y = self._pooled(q * passing).unflatten(2, x.shape[2:4])  # [T, B, H, W, D]
        return self.current("proj", gated(self.gate, y))

    def _pooled(self, x: Tensor) -> Tensor:
        """[T, B, N, D], with ``local_pool`` the maximum over neighbours in (N, d) of each head."""
        if self.pool is None:
            return x
        y = self.pool(split_heads(x, self.heads).flatten(0, 1))  # [T B, h, N, d]
        return y.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2])


class Mlp(Units):
    """Two 1x1 layers, each behind neurons and before batch norm; hidden width ``mlp_ratio`` D."""

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, config.hidden_dim
        self.fc1_lif, self.fc2_lif = LIF(config.neuron), LIF(config.neuron)
        self.add_unit("fc1", Pointwise(dim, hidden, True, layout_axes=2))
        self.add_unit("fc2", Pointwise(hidden, dim, True, layout_axes=2))

    def forward(self, x: Tensor) -> Tensor:
        """Membrane [T, B, H, W, D] to a current of the same shape."""
        x = self.current("fc1", self.fc1_lif(x))  # [T, B, H, W, D r]
        return self.current("fc2", self.fc2_lif(x))


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), on the membrane."""

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, D] to the same shape."""
        x = x + self.attn(x)
        return x + self.mlp(x)


@register_family(SpikeDrivenConfig)
class SpikeDriven(SpikingModel):
    """Spike-driven Transformer classifier; see :class:`SpikeDrivenConfig` for its options."""

    family = "spike_driven"
    config: SpikeDrivenConfig

    def __init__(self, config: SpikeDrivenConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        self.patch_embed = Stem(config)
        self.block = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_lif = LIF(config.neuron)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        init_linear(self.head)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        x = self.patch_embed(x, T, static)  # [T, B, H, W, D]
        for block in self.block:
            x = block(x)
        logits: Tensor = self.head(self.head_lif(x.mean((2, 3))))  # [T, B, classes]
        return logits

    def threshold_ratio(self, name: str) -> float:
        """``attention_threshold`` for the neurons that sum k∘v, else 1."""
        return self.config.attention_threshold if name.endswith("talking_heads_lif") else 1.0

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample; see :class:`Macs`.

        Attention is the sum of k∘v over tokens; letting q pass or not accumulates nothing.
        """
        c = self.config
        widths, dim = c.stem_widths, c.embed_dim
        dense = sum(
            9 * widths[i] * widths[i + 1] * height * width
            for i, (height, width) in enumerate(c.stem_grids[:4])
        )
        tokens = c.stem_grids[-1][0] * c.stem_grids[-1][1]
        dense += 9 * dim**2 * tokens + c.depth * tokens * dim * (4 * dim + 2 * c.hidden_dim)
        return Macs(dense, c.depth * tokens * dim, dim * c.num_classes)

    def unused_parameters(self) -> int:
        """Parameters that the released code stores and that never act."""
        named = self.named_parameters()
        return sum(p.numel() for name, p in named if name.endswith("talking_heads.weight"))
