"""The circuits by name, each with inputs that show what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spikedim.circuits.attention import SpikingAttention
from spikedim.circuits.base import Circuit
from spikedim.circuits.codes import BernoulliCode, IntegrateFireCode, LeakyCode
from spikedim.circuits.exponential import TaylorExponential, VetoExponential
from spikedim.circuits.product import MatrixProduct, Product
from spikedim.circuits.softmax import RaceSoftmax, ShuntingSoftmax, SubtractiveSoftmax


@dataclass(frozen=True)
class Example:
    """A circuit with default inputs.

    Attributes:
        circuit: the circuit, its parameters at their defaults.
        computes: its target.
        takes: what its inputs are called.
        default: its default inputs in words.
        draw: makes them from a generator.
        trials: per T, by default.
        norm: of the error, see :func:`spikedim.circuits.convergence`.
    """

    circuit: Circuit
    computes: str
    takes: tuple[str, ...]
    default: str
    draw: Callable[[torch.Generator], tuple[Tensor, ...]]
    trials: int = 100
    norm: str = "rms"


def _rates(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(256, dtype=torch.float64, generator=generator),)


def _exponents(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.linspace(-2, 2, 9, dtype=torch.float64),)


def _pairs(generator: torch.Generator) -> tuple[Tensor, ...]:
    x, y = torch.rand(2, 64, dtype=torch.float64, generator=generator)
    return x, y


def _matrices(generator: torch.Generator) -> tuple[Tensor, ...]:
    a = torch.rand(4, 8, dtype=torch.float64, generator=generator)
    return a, torch.rand(8, 4, dtype=torch.float64, generator=generator)


def _logits(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(16, 8, dtype=torch.float64, generator=generator),)


def _heads(generator: torch.Generator) -> tuple[Tensor, ...]:
    q, k, v = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    return q, k, v


def _code(circuit: Circuit) -> Example:
    return Example(circuit, "x", ("x",), "256 uniform rates", _rates)


def _exponential(circuit: Circuit) -> Example:
    return Example(circuit, "exp(z)", ("z",), "9 values from -2 to 2", _exponents)


def _softmax(circuit: Circuit, trials: int = 100) -> Example:
    default = "16 rows of 8 Gaussian logits"
    return Example(circuit, "softmax(z)", ("z",), default, _logits, trials)


def _attention(normalisation: str) -> Example:
    circuit = SpikingAttention(normalisation)
    takes, default = ("q", "k", "v"), "Gaussian q, k, v of 4 tokens, 4 channels"
    return Example(circuit, "softmax(q k'/2) v", takes, default, _heads, 20, "frobenius")


EXAMPLES: Mapping[str, Example] = MappingProxyType(
    {
        "bernoulli": _code(BernoulliCode()),
        "integrate-fire": _code(IntegrateFireCode()),
        "leaky": _code(LeakyCode()),
        "veto": _exponential(VetoExponential()),
        "taylor": _exponential(TaylorExponential(order=12, form="positive")),
        "product": Example(Product(), "x y", ("x", "y"), "64 pairs of uniform rates", _pairs),
        "matrix-product": Example(
            MatrixProduct(), "A B", ("A", "B"), "uniform rates, [4, 8] by [8, 4]", _matrices, 50
        ),
        "softmax-subtractive": _softmax(SubtractiveSoftmax(), 2),
        "softmax-shunting": _softmax(ShuntingSoftmax(), 2),
        "softmax-race": _softmax(RaceSoftmax(), 20),
        "attention-race": _attention("race"),
        "attention-shunting": _attention("shunting"),
    }
)
