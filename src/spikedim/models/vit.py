"""A small plain vision transformer with real activations, to be converted to spikes.

Batch norm and ReLU are the defaults because they are what :func:`spikedim.models.convert`
converts: batch norm folds into weights and a neuron that only fires for positive potentials is a
ReLU. Layer norm and GELU are there to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, ModelError
from spikedim.models.blocks import check_shape, check_whole, merge_heads, split_heads

_NORMS = ("batch", "layer")
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class ViTConfig:
    """What determines a :class:`VisionTransformer`.

    Args:
        input_shape: (channels, height, width); height and width are multiples of ``patch``.
        num_classes: classes of the head.
        patch: side of a patch in pixels.
        embed_dim: token width, divisible by ``num_heads``.
        num_heads, depth: attention heads and blocks.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        norm: ``"batch"`` or ``"layer"``.
        activation: ``"relu"`` or ``"gelu"``.

    Raises:
        ConfigError: a field is out of its domain.
        ModelError: the image is no whole number of patches.
    """

    input_shape: tuple[int, int, int] = (1, 8, 8)
    num_classes: int = 10
    patch: int = 2
    embed_dim: int = 32
    num_heads: int = 4
    depth: int = 2
    mlp_ratio: int = 2
    norm: str = "batch"
    activation: str = "relu"

    def __post_init__(self) -> None:
        check_shape(self)
        for name in ("num_classes", "patch", "embed_dim", "num_heads", "depth", "mlp_ratio"):
            check_whole(name, getattr(self, name))
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"embed_dim={self.embed_dim} must be divisible by num_heads={self.num_heads}"
            )
        if self.norm not in _NORMS:
            raise ConfigError(f"norm={self.norm!r}: expected one of {', '.join(_NORMS)}")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"activation={self.activation!r}: expected one of {', '.join(_ACTIVATIONS)}"
            )
        height, width = self.input_shape[1:]
        if height % self.patch or width % self.patch:
            raise ModelError(
                f"image {height} x {width} is no whole number of patches of side {self.patch}"
            )

    @property
    def tokens(self) -> int:
        """Number of patches N."""
        return self.input_shape[1] * self.input_shape[2] // self.patch**2


class TokenNorm(nn.BatchNorm1d):
    """Batch norm over the channels of tokens [B, N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Softmax attention, written out in products so that each can be converted."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads, width = config.num_heads, config.embed_dim
        self.scale = (width // config.num_heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.softmax = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        maps = self.softmax(q @ k.transpose(-2, -1) * self.scale)  # [B, h, N, N]
        out: Tensor = self.proj(merge_heads(maps @ v))
        return out


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = config.embed_dim * config.mlp_ratio
        self.norm1, self.attn = _norm(config), SelfAttention(config)
        self.norm2, self.fc1 = _norm(config), nn.Linear(config.embed_dim, hidden)
        self.act, self.fc2 = _ACTIVATIONS[config.activation](), nn.Linear(hidden, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Patches, position embedding, pre-norm blocks, mean over tokens, linear head."""

    def __init__(self, config: ViTConfig | None = None) -> None:
        super().__init__()
        self.config = config = ViTConfig() if config is None else config
        channels, width = config.input_shape[0], config.embed_dim
        self.patches = nn.Conv2d(channels, width, config.patch, config.patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, config.tokens, width))
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = _norm(config)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position  # [B, N, C]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def _norm(config: ViTConfig) -> nn.Module:
    return TokenNorm(config.embed_dim) if config.norm == "batch" else nn.LayerNorm(config.embed_dim)
