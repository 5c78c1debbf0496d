"""What the vision families share: checks of their options and layers on channels-last spikes.

Inside every vision network channels come last, [T, B, H, W, C] or [T, B, N, C]; layers, and with
them ``state_dict`` entries, keep the released names and kernel shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from spikedim.errors import ConfigError, ModelError
from spikedim.models.gating import check_gate
from spikedim.neurons import LIF, LIFParams

Grid = tuple[int, int]
Pools = tuple[bool, bool, bool, bool]


# -- options ------------------------------------------------------------------------------------


def check_vision(config: Any, whole: Sequence[str], positive: Sequence[str] = ()) -> None:
    """Check what every vision configuration has, and bring ``input_shape`` to plain numbers.

    Args:
        config: a frozen dataclass with ``input_shape``, ``num_classes``, ``neuron`` and ``gate``.
        whole, positive: its further fields that must be whole numbers >= 1, or positive numbers.

    Raises:
        ConfigError: a field is out of its domain.
    """
    check_shape(config)
    for name in ("num_classes", *whole):
        check_whole(name, getattr(config, name))
    for name in positive:
        check_positive(name, getattr(config, name))
    if not isinstance(config.neuron, LIFParams):
        raise ConfigError(f"neuron={config.neuron!r}: expected a spikedim.neurons.LIFParams")
    check_gate(config)


def check_shape(config: Any) -> None:
    """Bring ``input_shape`` to plain numbers, or raise ConfigError unless it is (C, H, W)."""
    value = config.input_shape
    shape = tuple(value) if isinstance(value, Sequence) else ()
    if len(shape) != 3 or not all(is_whole(n) for n in shape):
        raise ConfigError(f"input_shape={value!r}: expected three whole numbers (C, H, W)")
    object.__setattr__(config, "input_shape", tuple(int(n) for n in shape))


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number >= 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_whole(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a whole number >= 1."""
    if not is_whole(value):
        raise ConfigError(f"{name}={value!r}: expected a whole number >= 1")


def check_positive(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a positive finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value!r}: expected a positive number")


def check_hidden(mlp_ratio: float, width: int, width_name: str = "embed_dim") -> None:
    """Raise ConfigError if an MLP on ``width`` channels has no hidden channel."""
    if int(width * mlp_ratio) < 1:
        raise ConfigError(f"mlp_ratio={mlp_ratio} leaves no hidden channel at {width_name}={width}")


def check_size(shape: tuple[int, int, int], halvings: int, hint: str) -> None:
    """Raise ModelError if an image (C, H, W) cannot be halved so often."""
    if min(shape[1:]) < 2**halvings:
        raise ModelError(
            f"image {shape[1]} x {shape[2]} is too small for {halvings} halvings {hint}"
        )


def checked_pools(pools: Any, shape: tuple[int, int, int]) -> Pools | None:
    """``pools`` as booleans, one for each of the four stem stages; ``None`` stays.

    Raises:
        ConfigError: another length or type.
        ModelError: the image is too small for them.
    """
    if pools is None:
        return None
    if not isinstance(pools, Sequence) or len(pools) != 4:
        raise ConfigError(f"pools={pools!r}: expected four booleans or None")
    chosen = cast(Pools, tuple(bool(p) for p in pools))
    hint = f"(pools={chosen}); use pools=None to choose them from the image size"
    check_size(shape, sum(chosen), hint)
    return chosen


def pools_for(shape: tuple[int, int, int], grid: int = 8) -> Pools:
    """Pools of the last clamp(round(log2(sqrt(H W) / grid)), 0, 4) of four stages."""
    _, height, width = shape
    halvings = max(0, min(4, round(math.log2(math.sqrt(height * width) / grid))))
    halvings = min(halvings, int(math.log2(min(height, width))))
    return cast(Pools, tuple(stage >= 4 - halvings for stage in range(4)))


def halved(grid: Grid, times: int = 1) -> Grid:
    """Grid (H, W) after ``times`` layers of stride 2, rounded up each time."""
    for _ in range(times):
        grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
    return grid


def stem_grids(shape: tuple[int, int, int], pools: Pools) -> tuple[Grid, ...]:
    """(H, W) at which each of four stem convolutions runs, then the grid behind them."""
    grids = [shape[1:]]
    for pool in pools:
        grids.append(halved(grids[-1], pool))
    return tuple(grids)


# -- layers -------------------------------------------------------------------------------------


class Pointwise(nn.Linear):
    """1x1 layer on channels-last tokens; its weight keeps the released shape [C', C, 1, ...].

    A convolution of kernel 1 is this matrix product; its default initialisation is Linear's too.

    Args:
        inputs, outputs: channels C and C'.
        bias: whether it has a bias.
        layout_axes: 0 for a released Linear, 1 for Conv1d, 2 for Conv2d.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, layout_axes: int) -> None:
        super().__init__(inputs, outputs, bias)
        shape = (outputs, inputs, *[1] * layout_axes)
        self.weight = nn.Parameter(self.weight.detach().reshape(shape))
        if layout_axes == 0:
            init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C']."""
        return functional.linear(x, self.weight.flatten(1), self.bias)


class SpikeProduct(nn.Module):
    """scale * q k^T v over the last two axes, [..., N, d] each, in the cheaper order.

    Spikes are whole numbers, so both orders are exact and equal as long as N d < 2^24 (float32).
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return [..., N, d]."""
        tokens, width = q.shape[-2:]
        if tokens <= width:
            return (q @ k.mT) @ v * self.scale  # [..., N, N] -> [..., N, d]
        return q @ (k.mT @ v) * self.scale  # [..., d, d] -> [..., N, d]


def product_macs(tokens: int, dim: int, heads: int) -> int:
    """Multiply-accumulates of one :class:`SpikeProduct` over all heads."""
    return 2 * tokens * dim * min(tokens, dim // heads)


class Units(nn.Module):
    """A module of named units: weights ``NAME_conv``, norm ``NAME_bn``, neurons ``NAME_lif``."""

    def add_unit(
        self, name: str, conv: nn.Conv2d | nn.Linear, neuron: LIFParams | None = None
    ) -> None:
        """Register weights, their batch norm and, with ``neuron``, the neurons behind it."""
        self.add_module(f"{name}_conv", conv)
        norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm1d
        self.add_module(f"{name}_bn", norm(len(conv.weight)))
        if neuron is not None:
            self.add_module(f"{name}_lif", LIF(neuron))

    def current(self, name: str, x: Tensor, *more: nn.Module) -> Tensor:
        """Weights, norm and ``more`` 2-D layers of unit ``name``: [T, B, ..., C] to [..., C']."""
        conv, bn = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        if isinstance(conv, nn.Conv2d):
            return on_images(x, conv, bn, *more)
        return on_tokens(x, conv, bn)

    def spikes(self, name: str, x: Tensor, *more: nn.Module) -> Tensor:
        """:meth:`current`, then the neurons of the unit."""
        out: Tensor = getattr(self, f"{name}_lif")(self.current(name, x, *more))
        return out

    def shown(self, name: str, x: Tensor, T: int, *more: nn.Module) -> Tensor:
        """:meth:`current` of a convolution on frames [B, H, W, C] shown T times."""
        conv, bn = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        return static_current(x, T, self.training, conv, bn, *more)


# -- functions ----------------------------------------------------------------------------------


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution that keeps the grid, without bias."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def halving_pool() -> nn.MaxPool2d:
    """Max-pooling 3x3 of stride 2: (H, W) to (ceil(H/2), ceil(W/2))."""
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def init_linear(layer: nn.Linear) -> None:
    """Truncated normal weights of standard deviation 0.02 and no bias, as released."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def on_images(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply 2-D layers to [T, B, H, W, C]; the channel-first view they see is channels-last."""
    y = x.flatten(0, 1).permute(0, 3, 1, 2)  # [T B, C, H, W]
    for layer in layers:
        y = layer(y)
    return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def on_tokens(x: Tensor, dense: nn.Module, bn: nn.Module) -> Tensor:
    """Apply a 1x1 layer and batch norm to tokens [T, B, ..., C]."""
    tokens: Tensor = bn(dense(x.flatten(0, -2)))  # [T B N, C']
    return tokens.unflatten(0, x.shape[:-1])


def static_current(x: Tensor, T: int, training: bool, conv: nn.Module, *more: nn.Module) -> Tensor:
    """Input current of frames shown T times, [B, H, W, C] to [T, B, H', W', C'].

    The convolution of T equal frames is computed once. In training the batch norm in ``more``
    still sees all T copies: its running variance divides by T B H W - 1, not by B H W - 1.
    """
    if training:
        current = on_images(x[None], conv)  # [1, B, H', W', C']
        return on_images(current.expand(T, -1, -1, -1, -1), *more)
    return on_images(x[None], conv, *more).expand(T, -1, -1, -1, -1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., N, D] to [..., h, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """[..., h, N, d] to [..., N, D]."""
    return x.transpose(-3, -2).flatten(-2)
