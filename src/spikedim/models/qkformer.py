"""QKFormer: hierarchical spiking transformer with Q-K attention (NeurIPS 2024, arXiv 2403.16552).

Stages of decreasing grid and increasing width. Each starts with a patch embedding, a path of
convolutions and a 1x1 shortcut whose spikes are added; early stages use token Q-K attention,
linear in the number of tokens, the last one spiking self-attention. Three released layouts::

    layout     stage widths   blocks               grid (released input)   last attention, MLP
    cifar      D/4, D/2, D    1, 1, depth - 2      32, 16, 8   (32)        ssa, mlp1 mlp2
    imagenet   D/4, D/2, D    1, 2, depth - 3      56, 28, 14  (224)       attn, fc1 fc2
    dvs        D/2, D         1, depth - 1         16, 8       (128)       ssa, mlp1 mlp2

Pools act on currents, before the neurons. Layers carry the names of the released code
(github.com/zhouchenlin2096/QKFormer). That code lets the neurons after each self-attention run
over the merged time and batch axis, so that samples of a batch leak into each other (its issue
#14). Here every sample is on its own; ``legacy_tb_lif=True`` reproduces the leak, for measuring
released checkpoints as they were published.

Channels come last everywhere inside, [T, B, H, W, C], and so do recorded spikes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

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
    conv3x3,
    halved,
    halving_pool,
    init_linear,
    merge_heads,
    product_macs,
    split_heads,
)
from spikedim.models.gating import gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, LIFParams

LAYOUTS = {"cifar": (1, 1), "imagenet": (1, 2), "dvs": (1,)}  # blocks before the last stage


class Unit(NamedTuple):
    """One Conv3x3-BN[-MaxPool]-LIF: its released name, its channels, whether it halves."""

    name: str
    width: int
    halves: bool


class Embedding(NamedTuple):
    """A patch embedding: its units, and before which of them the shortcut leaves."""

    units: tuple[Unit, ...]
    start: int

    @property
    def shortcut_halvings(self) -> int:
        """How often the image is halved beside the shortcut."""
        return sum(unit.halves for unit in self.units[self.start :])


@dataclass(frozen=True)
class QKFormerConfig:
    """What determines a QKFormer.

    Args:
        input_shape: (channels, height, width) of one frame; any channels, need not be square.
        num_classes: classes of the head.
        embed_dim: width D of the last stage, divisible by 8 (``dvs``: 16).
        num_heads: attention heads in every stage; they divide every stage's width.
        depth: number of blocks over all stages, see the module.
        mlp_ratio: hidden width of the MLPs over their stage's width.
        layout: ``"cifar"``, ``"imagenet"`` or ``"dvs"``, see the module.
        scale: factor of the self-attention product.
        attention_threshold: threshold of the neurons after attention sums and products, as a
            multiple of ``neuron.threshold``: a change of the threshold scales both.
        legacy_tb_lif: let the neurons after each self-attention leak over the batch as released.
        neuron: parameters of every neuron.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a field is out of its domain.
        ModelError: the image is too small for the layout.
    """

    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    embed_dim: int = 384
    num_heads: int = 8
    depth: int = 4
    mlp_ratio: float = 4.0
    layout: str = "cifar"
    scale: float = 0.125
    attention_threshold: float = 0.5
    legacy_tb_lif: bool = False
    neuron: LIFParams = field(default_factory=LIFParams)
    gate: str = "none"

    def __post_init__(self) -> None:
        whole = ("embed_dim", "num_heads", "depth")
        check_vision(self, whole, positive=("mlp_ratio", "scale", "attention_threshold"))
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout={self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        parts = 16 if self.layout == "dvs" else 8
        if self.embed_dim % parts or any(w % self.num_heads for w in self.stage_widths):
            raise ConfigError(
                f"embed_dim={self.embed_dim} must be divisible by {parts} (first convolution "
                f"D/{parts}), and each stage width {self.stage_widths} by "
                f"num_heads={self.num_heads}"
            )
        check_hidden(self.mlp_ratio, self.stage_widths[0], "stage_width")
        least = sum(LAYOUTS[self.layout]) + 1
        if self.depth < least:
            raise ConfigError(
                f"depth={self.depth}: layout {self.layout!r} needs {least} blocks or more, "
                f"{', '.join(map(str, LAYOUTS[self.layout]))} and at least 1 in its stages"
            )
        if not isinstance(self.legacy_tb_lif, bool):
            raise ConfigError(f"legacy_tb_lif={self.legacy_tb_lif!r}: expected True or False")
        halvings = sum(unit.halves for e in self.embeddings for unit in e.units)
        check_size(self.input_shape, halvings, f"of layout={self.layout!r}; enlarge it")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        stages = len(LAYOUTS[self.layout])
        return tuple(self.embed_dim // 2 ** (stages - i) for i in range(stages + 1))

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        early = LAYOUTS[self.layout]
        return (*early, self.depth - sum(early))

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """Patch embedding of each stage."""
        first, *later = self.stage_widths
        if self.layout == "dvs":
            units = [Unit("proj", first // 8, False), Unit("proj1", first // 4, True)]
            units += [Unit("proj2", first // 2, True), Unit("proj3", first, True)]
        elif self.layout == "imagenet":
            units = [Unit("proj", first // 2, True), Unit("proj1", first, True)]
            units += [Unit("proj2", first, False)]
        else:
            units = [Unit("proj", first // 2, False), Unit("proj1", first, False)]
        stem = Embedding(tuple(units), 2 if self.layout == "dvs" else 1)
        name, early = "proj" if self.layout == "dvs" else "proj3", self.layout == "imagenet"
        return (
            stem,
            *(Embedding((Unit(name, w, early), Unit("proj4", w, not early)), 0) for w in later),
        )


class PatchEmbed(Units):
    """Conv3x3-BN[-MaxPool]-LIF units, plus the spikes of a 1x1 shortcut beside some of them."""

    def __init__(self, inputs: int, embedding: Embedding, neuron: LIFParams) -> None:
        super().__init__()
        self.units, self.start = embedding.units, embedding.start
        self.stride = 2**embedding.shortcut_halvings
        for index, unit in enumerate(self.units):
            if index == self.start:
                shortcut = Pointwise(inputs, self.units[-1].width, False, layout_axes=2)
            self.add_unit(unit.name, conv3x3(inputs, unit.width), neuron)
            inputs = unit.width
        self.add_unit("proj_res", shortcut, neuron)
        self.maxpool = halving_pool()

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Events [T, B, H, W, C], or with T frames [B, H, W, C], to [T, B, h, w, width]."""
        for index, (name, _, halves) in enumerate(self.units):
            if index == self.start:
                shortcut = x[:, :, :: self.stride, :: self.stride]  # [T, B, h, w, C']
            pool = (self.maxpool,) if halves else ()
            if index == 0 and T is not None:
                x = getattr(self, f"{name}_lif")(self.shown(name, x, T, *pool))
            else:
                x = self.spikes(name, x, *pool)  # halved where the unit halves
        return x + self.spikes("proj_res", shortcut)


class TokenAttention(Units):
    """Token Q-K attention: neurons that sum q over a head's channels decide which k pass."""

    attention_map: ClassVar[str] = "attn_lif"
    output_projection: ClassVar[str] = "proj_conv"

    def __init__(self, width: int, config: QKFormerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.gate = make_gate(config, width, self.heads)
        for name in ("q", "k"):
            self.add_unit(name, Pointwise(width, width, False, layout_axes=1), config.neuron)
        self.attn_lif = LIF(scaled(config.neuron, config.attention_threshold))
        self.add_unit("proj", Pointwise(width, width, True, layout_axes=1), config.neuron)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to spikes of the same shape."""
        q, k = (self.spikes(name, x).unflatten(-1, (self.heads, -1)) for name in "qk")
        passing = self.attn_lif(q.sum(-1))  # [T, B, H, W, h, d] -> [T, B, H, W, h]
        y = gated(self.gate, (passing[..., None] * k).flatten(-2))  # [T, B, H, W, C]
        return self.spikes("proj", y)


class SelfAttention(Units):
    """Spiking self-attention: scale * (q k^T) v, neurons, a projection, neurons."""

    output_projection: ClassVar[str] = "proj_conv"

    proj_lif: LIF

    def __init__(self, width: int, config: QKFormerConfig) -> None:
        super().__init__()
        self.gate = make_gate(config, width, config.num_heads)
        self.heads, self.leak = config.num_heads, config.legacy_tb_lif
        for name in ("q", "k", "v"):
            self.add_unit(name, Pointwise(width, width, False, layout_axes=1), config.neuron)
        self.product = SpikeProduct(config.scale)
        self.attn_lif = LIF(scaled(config.neuron, config.attention_threshold))
        self.add_unit("proj", Pointwise(width, width, True, layout_axes=1), config.neuron)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to spikes of the same shape."""
        tokens = x.flatten(2, 3)  # [T, B, N, C]
        q, k, v = (split_heads(self.spikes(name, tokens), self.heads) for name in "qkv")
        y = self.attn_lif(merge_heads(self.product(q, k, v)))  # [T, B, h, N, d] -> [T, B, N, C]
        current = self.current("proj", gated(self.gate, y))
        if self.leak:  # one long sequence: the next sample starts where the last one stopped
            spikes = self.proj_lif(current.flatten(0, 1)).unflatten(0, x.shape[:2])
        else:
            spikes = self.proj_lif(current)
        return spikes.unflatten(2, x.shape[2:4])


class Mlp(Units):
    """Two 1x1 units; hidden width ``mlp_ratio`` times their stage's."""

    def __init__(self, width: int, config: QKFormerConfig) -> None:
        super().__init__()
        stem = "fc" if config.layout == "imagenet" else "mlp"
        self.names = (f"{stem}1", f"{stem}2")
        widths = (width, int(width * config.mlp_ratio), width)
        for name, inputs, outputs in zip(self.names, widths[:2], widths[1:], strict=True):
            self.add_unit(name, Pointwise(inputs, outputs, True, layout_axes=2), config.neuron)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to spikes of the same shape."""
        for name in self.names:
            x = self.spikes(name, x)  # [T, B, H, W, C r], then [T, B, H, W, C]
        return x


class Block(nn.Module):
    """x + attention(x), then x + mlp(x): residuals add spikes, so tokens are whole numbers."""

    def __init__(self, width: int, last: bool, config: QKFormerConfig) -> None:
        super().__init__()
        self.attention = "tssa" if not last else "attn" if config.layout == "imagenet" else "ssa"
        kind = SelfAttention if last else TokenAttention
        self.add_module(self.attention, kind(width, config))
        self.mlp = Mlp(width, config)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to the same shape."""
        x = x + getattr(self, self.attention)(x)
        return x + self.mlp(x)


@register_family(QKFormerConfig)
class QKFormer(SpikingModel):
    """QKFormer classifier; see :class:`QKFormerConfig` for its options."""

    family = "qkformer"
    config: QKFormerConfig

    def __init__(self, config: QKFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        inputs, stages = config.input_shape[0], len(config.stage_depths)
        for stage, (embedding, width, depth) in enumerate(self._stages(), start=1):
            self.add_module(f"patch_embed{stage}", PatchEmbed(inputs, embedding, config.neuron))
            blocks = (Block(width, stage == stages, config) for _ in range(depth))
            self.add_module(f"stage{stage}", nn.ModuleList(blocks))
            inputs = width
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        init_linear(self.head)

    def _stages(self) -> list[tuple[Embedding, int, int]]:
        c = self.config
        return list(zip(c.embeddings, c.stage_widths, c.stage_depths, strict=True))

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        x = x.movedim(-3, -1).contiguous()  # [(T,) B, H, W, C]
        for stage in range(1, len(self.config.stage_depths) + 1):
            shown = T if static and stage == 1 else None
            x = getattr(self, f"patch_embed{stage}")(x, shown)  # [T, B, H_s, W_s, C_s]
            for block in getattr(self, f"stage{stage}"):
                x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))  # [T, B, classes]
        return logits

    def threshold_ratio(self, name: str) -> float:
        """``attention_threshold`` for the neurons after attention, else 1."""
        return self.config.attention_threshold if name.endswith("attn_lif") else 1.0

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample; see :class:`Macs`.

        Token attention multiplies nothing: it adds the q of a head and lets k pass or not.
        """
        c = self.config
        dense, attention, inputs = 0, 0, c.input_shape[0]
        grid: Grid = c.input_shape[1:]
        for stage, (embedding, width, depth) in enumerate(self._stages(), start=1):
            for index, unit in enumerate(embedding.units):
                if index == embedding.start:
                    height, wide = halved(grid, embedding.shortcut_halvings)
                    dense += inputs * width * height * wide
                dense += 9 * inputs * unit.width * grid[0] * grid[1]
                inputs, grid = unit.width, halved(grid, unit.halves)
            tokens, last = grid[0] * grid[1], stage == len(c.stage_depths)
            hidden = int(width * c.mlp_ratio)
            dense += depth * tokens * width * ((4 if last else 3) * width + 2 * hidden)
            attention += depth * product_macs(tokens, width, c.num_heads) if last else 0
        return Macs(dense, attention, c.embed_dim * c.num_classes)
