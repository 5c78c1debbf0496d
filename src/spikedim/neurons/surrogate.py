"""Surrogate derivatives of the spike: a step forward, a bump backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikedim.errors import ConfigError


class _Shape(NamedTuple):
    """One surrogate family; ``peak`` is the derivative at zero per unit of width."""

    derivative: Callable[[Tensor, float], Tensor]
    primitive: Callable[[Tensor, float], Tensor]
    peak: float


def _sigmoid_derivative(x: Tensor, a: float) -> Tensor:
    y = torch.sigmoid(a * x)
    return a * y * (1 - y)


def _gaussian_derivative(x: Tensor, a: float) -> Tensor:
    return (a / math.sqrt(math.pi)) * torch.exp(-((a * x) ** 2))


def _quadratic_primitive(x: Tensor, a: float) -> Tensor:
    y = (a * x).clamp(-0.75, 0.75)
    return 0.5 + y - (16 / 27) * y * y * y


_SHAPES: dict[str, _Shape] = {
    "sigmoid": _Shape(_sigmoid_derivative, lambda x, a: torch.sigmoid(a * x), 1 / 4),
    "gaussian": _Shape(
        _gaussian_derivative,
        lambda x, a: 0.5 * torch.erfc(-a * x),
        1 / math.sqrt(math.pi),
    ),
    "piecewise_linear": _Shape(
        lambda x, a: a * (1 - (a * x).abs()).clamp(min=0),
        lambda x, a: _triangle_primitive((a * x).clamp(-1, 1)),
        1.0,
    ),
    "piecewise_quadratic": _Shape(
        lambda x, a: a * (1 - (16 / 9) * (a * x) ** 2).clamp(min=0), _quadratic_primitive, 1.0
    ),
    "atan": _Shape(
        lambda x, a: (a / 2) / (1 + (math.pi / 2 * a * x) ** 2),
        lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5,
        1 / 2,
    ),
    "fast_sigmoid": _Shape(
        lambda x, a: (a / 2) / (1 + (a * x).abs()) ** 2,
        lambda x, a: 0.5 + 0.5 * a * x / (1 + (a * x).abs()),
        1 / 2,
    ),
    "rectangular": _Shape(
        lambda x, a: a * (x.abs() <= 0.5 / a).to(x.dtype),
        lambda x, a: (a * x + 0.5).clamp(0, 1),
        1.0,
    ),
}


def _triangle_primitive(y: Tensor) -> Tensor:
    return 0.5 + y - 0.5 * y * y.abs()


SURROGATES: tuple[str, ...] = tuple(_SHAPES)


@dataclass(frozen=True)
class Surrogate:
    """Smooth step of the distance to threshold whose slope replaces the spike's.

    Every primitive rises from 0 to ``scale``, which is the area of the derivative: 1 unless another
    library's says otherwise. With a = ``width`` and ``scale`` = 1:

    ===================== =============================== ========
    kind                  derivative at x                 peak
    ===================== =============================== ========
    sigmoid               a·σ(ax)·(1 − σ(ax))             a/4
    gaussian              (a/√π)·exp(−(ax)²)              a/√π
    piecewise_linear      a·max(0, 1 − a·abs(x))          a
    piecewise_quadratic   a·max(0, 1 − (16/9)(ax)²)       a
    atan                  (a/2) / (1 + (πax/2)²)          a/2
    fast_sigmoid          (a/2) / (1 + a·abs(x))²         a/2
    rectangular           a if 2a·abs(x) <= 1, else 0     a
    ===================== =============================== ========

    A kind is named by the shape of its derivative (SpikingJelly names its ``PiecewiseQuadratic``
    by the primitive: it is ``piecewise_linear`` here). ``Surrogate("sigmoid", 4.0)`` and
    ``Surrogate("atan", 2.0)`` are SpikingJelly's ``Sigmoid(4)`` and ``ATan(2)``; ``fast_sigmoid``
    is SuperSpike's (Zenke & Ganguli 2018) scaled to area 1; snnTorch's ``fast_sigmoid(a)``, which
    peaks at 1, is ``Surrogate("fast_sigmoid", a, scale=2 / a)``.

    Args:
        kind: one of :data:`SURROGATES`.
        width: sharpness a > 0, in 1/potential: a larger value is a narrower, taller bump.
        scale: what derivative and primitive are multiplied by, > 0.

    Raises:
        ConfigError: unknown kind, or a width or scale that is not a positive finite number.
    """

    kind: str
    width: float
    scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            known = ", ".join(SURROGATES)
            raise ConfigError(f"surrogate kind {self.kind!r} is unknown; choose one of {known}")
        for name, value, what in (
            ("width", self.width, "the sharpness"),
            ("scale", self.scale, "the area of the derivative"),
        ):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"surrogate {name}={value!r} must be a positive finite number ({what})"
                )

    def __repr__(self) -> str:
        """The call that makes it; runs are found again by it, so a scale of 1 is left out."""
        scale = "" if self.scale == 1 else f", scale={self.scale!r}"
        return f"{type(self).__name__}(kind={self.kind!r}, width={self.width!r}{scale})"

    def derivative(self, x: Tensor) -> Tensor:
        """Pseudo-derivative of the spike at ``x`` = potential − threshold, same shape and dtype."""
        return self._scaled(_SHAPES[self.kind].derivative(x, self.width))

    def primitive(self, x: Tensor) -> Tensor:
        """Smooth step in [0, scale] with slope :meth:`derivative`, same shape and dtype."""
        return self._scaled(_SHAPES[self.kind].primitive(x, self.width))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else self.scale * x

    @property
    def peak(self) -> float:
        """Largest value of the derivative, reached at x = 0."""
        return _SHAPES[self.kind].peak * self.width * self.scale


def surrogate(kind: str, width: float | None = None, scale: float = 1.0) -> Surrogate:
    """Make a surrogate; without a width, the one whose derivative peaks at ``scale``.

    Args:
        kind: one of :data:`SURROGATES`.
        width: sharpness; ``None`` for a peak of ``scale`` (sigmoid 4, atan 2, ...).
        scale: what the derivative is multiplied by.

    Raises:
        ConfigError: unknown kind, or an unusable width or scale.
    """
    if width is None and kind in _SHAPES:
        width = 1 / _SHAPES[kind].peak
    return Surrogate(kind, 1.0 if width is None else width, scale=scale)


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shape: Surrogate) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        x, ctx.shape = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.shape.derivative(x), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * ctx.shape.derivative(x)


def spike(x: Tensor, surrogate: Surrogate) -> Tensor:
    """Spikes of potentials: s = 1 where x >= 0, else 0; ds/dx is the surrogate's derivative.

    Works under ``torch.func`` (vmap, jacrev, jacfwd, and second derivatives by jacrev of jacrev,
    jacfwd of jacrev, jacrev of jacfwd) and for double backward. Do not nest jacfwd in jacfwd:
    PyTorch drops the outer tangent of a custom function and the result is wrong.

    Args:
        x: potential minus threshold, any shape, floating.
        surrogate: what the backward (and forward-mode) pass uses for the derivative.

    Returns:
        Zeros and ones in the shape and dtype of ``x``.
    """
    if torch.compiler.is_compiling():  # the compiler refuses a custom forward-mode rule
        smooth = surrogate.primitive(x)
        return (x >= 0).to(x.dtype) + (smooth - smooth.detach())
    spikes: Tensor = _Spike.apply(x, surrogate)
    return spikes
