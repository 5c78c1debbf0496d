"""SpikingResformer: dual spike self-attention on a convolutional pyramid (CVPR 2024, 2403.14302).

A prologue without neurons, then stages at halving resolution, each of repeated pairs of

    dual spike self-attention (:class:`DSSA`)    x + BN(Conv1x1(o))
    group-wise feed-forward (:class:`GWFFN`)     x + BN(Conv1x1(...)), hidden width 4 C

and a linear classifier of the pooled stream at each timestep. The residual stream is real; every
weight layer behind the prologue sees binary spikes.

Layers, and with them ``state_dict`` entries, carry the names of the released code
(github.com/xyshi2000/SpikingResformer, MIT). Channels come last inside, [T, B, H, W, C], and so
do recorded spikes; attention neurons are [T, B, heads, pixel, patch].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, ModelError
from spikedim.models.base import Macs, SpikingModel
from spikedim.models.blocks import (
    Grid,
    check_vision,
    halved,
    is_whole,
    merge_heads,
    on_images,
    split_heads,
    static_current,
)
from spikedim.models.gating import GateScores, gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, PLIF, LIFParams, Surrogate

PROLOGUES = ("cifar", "imagenet")
EXPANSION = 4


@dataclass(frozen=True)
class SpikingResformerConfig:
    """What determines a SpikingResformer; sequences have one value per stage.

    Args:
        input_shape: (channels, height, width) of one frame; need not be square.
        num_classes: classes of the classifier.
        planes: width C of each stage.
        num_heads: attention heads, dividing C.
        depths: pairs of attention and feed-forward.
        patch_sizes: pixels p along a side of an attention patch, dividing the stage's grid.
        group_size: channels of a group of the 3x3 convolution, dividing 4 C.
        prologue: ``"cifar"`` (Conv3x3) or ``"imagenet"`` (Conv7x7 and max-pool, both stride 2).
        plif: learn the leak of every neuron layer, from the ``beta`` of ``neuron``.
        neuron: parameters of all neurons.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a value out of its domain.
        ModelError: a stage's grid is not made of whole patches.
    """

    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    planes: tuple[int, ...] = (64, 192, 384)
    num_heads: tuple[int, ...] = (1, 3, 6)
    depths: tuple[int, ...] = (1, 2, 3)
    patch_sizes: tuple[int, ...] = (4, 2, 1)
    group_size: int = 64
    prologue: str = "cifar"
    plif: bool = False
    neuron: LIFParams = field(default_factory=lambda: LIFParams(surrogate=Surrogate("atan", 2.0)))
    gate: str = "none"

    def __post_init__(self) -> None:
        check_vision(self, ("group_size",))
        for name in ("planes", "num_heads", "depths", "patch_sizes"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or not value or not all(map(is_whole, value)):
                raise ConfigError(f"{name}={value!r}: expected whole numbers >= 1, one per stage")
            object.__setattr__(self, name, tuple(int(n) for n in value))
            if len(value) != len(self.planes):
                raise ConfigError(
                    f"{name}={value!r} has {len(value)} stages, planes={self.planes} has "
                    f"{len(self.planes)}; give one number per stage"
                )
        if self.prologue not in PROLOGUES:
            raise ConfigError(f"prologue={self.prologue!r}: expected one of {', '.join(PROLOGUES)}")
        if not isinstance(self.plif, bool):
            raise ConfigError(f"plif={self.plif!r}: expected True or False")
        for width, heads in zip(self.planes, self.num_heads, strict=True):
            if width % heads:
                raise ConfigError(
                    f"planes={self.planes}: {width} is not divisible by {heads} heads"
                )
            if EXPANSION * width % self.group_size:
                raise ConfigError(
                    f"group_size={self.group_size} does not divide the hidden width "
                    f"{EXPANSION * width} of planes={self.planes}"
                )
        _, height, width = self.input_shape
        for stage, ((h, w), p) in enumerate(zip(self.grids, self.patch_sizes, strict=True)):
            if h % p or w % p:
                raise ModelError(
                    f"stage {stage} of a {height} x {width} image is a grid of {h} x {w}, not "
                    f"divisible into patches of {p} x {p}; resize the image or change "
                    f"patch_sizes={self.patch_sizes}"
                )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """(H, W) of each stage."""
        _, height, width = self.input_shape
        first = halved((height, width), 2 if self.prologue == "imagenet" else 0)
        return tuple(halved(first, stage) for stage in range(len(self.planes)))


def _neuron(config: SpikingResformerConfig) -> LIF:
    return PLIF(config.neuron) if config.plif else LIF(config.neuron)


class Norm(nn.Module):
    """Batch norm under its released name ``bn``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[T B, C, H, W] to the same shape."""
        out: Tensor = self.bn(x)
        return out


class Unit(nn.Sequential):
    """Neurons, a convolution and batch norm on [T, B, H, W, C]."""

    def __init__(self, config: SpikingResformerConfig, conv: nn.Conv2d) -> None:
        super().__init__(_neuron(config), conv, Norm(conv.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to [T, B, H, W, C']."""
        neurons, *layers = self
        return on_images(neurons(x), *layers)


class Downsample(nn.Module):
    """Neurons, a 3x3 convolution of stride 2, batch norm."""

    def __init__(self, config: SpikingResformerConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.activation = _neuron(config)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to [T, B, ceil(H/2), ceil(W/2), C']."""
        return on_images(self.activation(x), self.conv, self.norm)


class DSSA(nn.Module):
    """Dual spike self-attention of one stage: C channels, h heads of d, patches of p x p.

    With z the input spikes, L patches, and r a firing rate per head::

        y1, y2 = BN(Conv_{p, stride p}(z))            real, d channels each, per head
        A      = LIF(z y1^T / sqrt(r_z d))            [pixel, patch], binary
        o      = LIF(A y2 / sqrt(r_A L))

    Rates are stored like batch-norm statistics: in training the rate of the batch enters a moving
    average, then the average is used; in eval the stored one is. A head whose stored rate is 0
    takes that of the batch, in training, and contributes nothing, in eval.

    Attributes:
        momentum: weight of a batch in the average, ``None`` for the mean over batches.
    """

    firing_rate_x: Tensor
    firing_rate_attn: Tensor

    attention_map: ClassVar[str] = "activation_attn"
    output_projection: ClassVar[str] = "Wproj"

    def __init__(self, config: SpikingResformerConfig, stage: int) -> None:
        super().__init__()
        dim, patch = config.planes[stage], config.patch_sizes[stage]
        self.heads = config.num_heads[stage]
        self.gate = make_gate(config, dim, self.heads)
        self.momentum: float | None = 0.001
        self.batches = 0
        for name in ("firing_rate_x", "firing_rate_attn"):
            self.register_buffer(name, torch.zeros(1, 1, self.heads, 1, 1))
        self.activation_in = _neuron(config)
        self.W = nn.Conv2d(dim, 2 * dim, patch, stride=patch, bias=False)
        self.norm = Norm(2 * dim)
        self.activation_attn = _neuron(config)
        self.activation_out = _neuron(config)
        self.Wproj = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm_proj = Norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to the same shape."""
        if self.training and self.momentum is None:
            self.batches += 1
        spikes = self.activation_in(x)
        z = split_heads(spikes.flatten(2, 3), self.heads)  # [T, B, h, HW, d]
        y = on_images(spikes, self.W, self.norm).flatten(2, 3)  # [T, B, L, 2C]
        y1, y2 = split_heads(y, self.heads).chunk(2, -1)  # [T, B, h, L, d] each
        a = z @ y1.mT * self._gain(self.firing_rate_x, z, z.shape[-1])
        a = self.activation_attn(a)  # [T, B, h, HW, L]
        o = a @ y2 * self._gain(self.firing_rate_attn, a, a.shape[-1])  # [T, B, h, HW, d]
        o = self.activation_out(merge_heads(o).unflatten(2, x.shape[2:4]))  # [T, B, H, W, C]
        return x + on_images(gated(self.gate, o), self.Wproj, self.norm_proj)

    def _gain(self, stored: Tensor, spikes: Tensor, terms: int) -> Tensor:
        """1 / sqrt(rate * terms) of each head, [1, 1, h, 1, 1], 0 where the rate is 0."""
        if self.training:
            rate = spikes.detach().mean((0, 1, 3, 4), keepdim=True, dtype=stored.dtype)
            weight = 1 / self.batches if self.momentum is None else self.momentum
            stored.copy_(torch.where(stored == 0, rate, stored.lerp(rate, weight)))
        rate = torch.where(stored > 0, stored, torch.inf)
        return (rate * terms).rsqrt().to(spikes.dtype)

    def reset_running_stats(self) -> None:
        """Forget the stored rates."""
        self.firing_rate_x.zero_()
        self.firing_rate_attn.zero_()
        self.batches = 0

    @property
    def calibrated(self) -> bool:
        """Whether rates are stored, or batches were seen in which no neuron fired."""
        stored = (self.firing_rate_x, self.firing_rate_attn, self.norm.bn.num_batches_tracked)
        try:
            return any(value.sum().item() for value in stored if value is not None)
        except RuntimeError:  # values cannot be read on the meta device or inside torch.func
            return True


class GWFFN(nn.Module):
    """Group-wise feed-forward: C to 4 C, a residual 3x3 convolution in groups, back to C."""

    def __init__(self, config: SpikingResformerConfig, stage: int) -> None:
        super().__init__()
        dim, hidden = config.planes[stage], EXPANSION * config.planes[stage]
        groups = hidden // config.group_size
        self.up = Unit(config, nn.Conv2d(dim, hidden, 1, bias=False))
        inner = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups, bias=False)
        self.conv = nn.ModuleList([Unit(config, inner)])
        self.down = Unit(config, nn.Conv2d(hidden, dim, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, H, W, C] to the same shape."""
        u = self.up(x)  # [T, B, H, W, 4C]
        u = u + self.conv[0](u)
        out: Tensor = x + self.down(u)
        return out


@register_family(SpikingResformerConfig)
class SpikingResformer(SpikingModel):
    """SpikingResformer classifier; see :class:`SpikingResformerConfig` for its options.

    In eval mode every :class:`DSSA` uses stored firing rates: of a checkpoint, of a training pass
    or of :func:`spikedim.models.calibrate_batchnorm`. Without them ``steps`` raises ModelError
    (compiled by ``torch.compile``, where values cannot be asked for, attention adds nothing).
    """

    family = "spikingresformer"
    config: SpikingResformerConfig

    def __init__(self, config: SpikingResformerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        channels, first = config.input_shape[0], config.planes[0]
        large = config.prologue == "imagenet"
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        conv = nn.Conv2d(channels, first, kernel, stride, padding, bias=False)
        pool = [nn.MaxPool2d(kernel_size=3, stride=2, padding=1)] if large else []
        self.prologue = nn.Sequential(conv, Norm(first), *pool)
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            down = [Downsample(config, *config.planes[stage - 1 : stage + 1])] if stage else []
            pairs = [kind(config, stage) for _ in range(depth) for kind in (DSSA, GWFFN)]
            self.layers.append(nn.Sequential(*down, *pairs))
        self.classifier = nn.Linear(config.planes[-1], config.num_classes, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(module, GateScores):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        if not self.training and not torch.compiler.is_compiling():
            self._check_rates()
        x = x.movedim(-3, -1)  # [(T,) B, H, W, C]
        if static:
            conv, *more = self.prologue
            x = static_current(x, T, self.training, conv, *more)
        else:
            x = on_images(x, *self.prologue)
        for stage in self.layers:
            x = stage(x)  # [T, B, H, W, planes of the stage]
        logits: Tensor = self.classifier(x.mean((2, 3)))  # [T, B, classes]
        return logits

    def _check_rates(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, DSSA) and not module.calibrated:
                raise ModelError(
                    f"{name} has no firing rates to scale its attention by; load a checkpoint, "
                    "train, or run spikedim.models.calibrate_batchnorm(model, batches, T) first"
                )

    def set_neurons(self, **changes: Any) -> SpikingResformer:
        """As :meth:`SpikingModel.set_neurons`; a new ``beta`` also restarts learned leaks."""
        super().set_neurons(**changes)
        for module in self.modules():
            if isinstance(module, PLIF) and "beta" in changes:
                module.w.data.copy_(PLIF(self.config.neuron).w.detach())
        return self

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one sample; see :class:`Macs`.

        Released code applies the classifier at each step, and so do published counts.
        """
        c = self.config
        taps, rows = (
            (49, halved(c.input_shape[1:])) if c.prologue == "imagenet" else (9, c.grids[0])
        )
        dense = taps * c.input_shape[0] * c.planes[0] * math.prod(rows)
        attention = 0
        for stage, dim in enumerate(c.planes):
            pixels = math.prod(c.grids[stage])
            patches = pixels // c.patch_sizes[stage] ** 2
            if stage:
                dense += 9 * c.planes[stage - 1] * dim * pixels
            dssa = 2 * dim * dim * pixels + dim * dim * pixels
            gwffn = EXPANSION * dim * pixels * (2 * dim + 9 * c.group_size)
            dense += c.depths[stage] * (dssa + gwffn)
            attention += c.depths[stage] * 2 * dim * patches * pixels
        return Macs(dense, attention, c.planes[-1] * c.num_classes)
