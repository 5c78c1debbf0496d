"""Fewer backward passes through a network whose linear head has more outputs than features.

The trace kernel Σ_o J_o J_oᵀ is the same in every orthonormal basis of the outputs. With a head of
weights W [O, D], D < O, take one whose first D vectors span the columns of W: the O − D others are
orthogonal to all that reaches the outputs through the head's input, so that only the head itself
has a gradient there, and nothing below it has to be differentiated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.ntk.gram import Setup
from spikedim.ntk.passes import Call

_ROUNDING = 1e3  # units in the last place that a vanishing gradient may have
# Between head and outputs, only what is linear with the same coefficients for every sample.
_LINEAR = re.compile(
    r"(Mean|Sum|(Unsafe)?View|ReshapeAlias|Alias|T|Transpose|Permute|Select|Slice|"
    r"(Un)?Squeeze|Expand|Clone)Backward\d*"
)


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the outputs.

    Attributes:
        vectors: [O, O], a vector in each row.
        through: how many of them, the first, reach beyond the head.
        head: path of the head.
    """

    vectors: Tensor
    through: int
    head: str


def basis(setup: Setup, x: Tensor) -> Basis | None:
    """The basis for the last linear layer of a network, ``None`` where it spares nothing.

    What lies between head and outputs must be linear and the same for all samples; that the other
    vectors then reach nothing below the head is measured on one of them.
    """
    capture = setup.capture(setup.batch(x, 0, 1))
    heads = [c for c in capture.calls if type(c.module) is nn.Linear and c.scale is None]
    if not heads or sum(c.layer == heads[-1].layer for c in capture.calls) > 1:
        return None
    head = heads[-1]
    weight: Tensor = head.module.weight.detach()
    outputs, features = weight.shape
    if outputs != capture.outputs or features >= outputs or not _ends_in(capture.output, head):
        return None
    vectors, _ = torch.linalg.qr(weight.double().cpu(), mode="complete")
    vectors = vectors.mT.to(weight)

    def size(weights: Tensor, last: bool) -> tuple[float, float]:
        """Largest gradient at the head's output, and at that of any other layer."""
        at = {True: 0.0, False: 0.0}

        def receive(call: Call, gradient: Tensor) -> None:
            at[call is head] = max(at[call is head], float(gradient.abs().max()))

        with torch.no_grad():
            leaks = capture.run(weights, receive, leaks=list(capture.leaks), keep=not last)
        for gradient in leaks.values():
            at[False] = max(at[False], float(gradient.abs().max()))
        return at[True], at[False]

    signs = torch.ones(outputs, 1).to(weight)
    signs[::2] = -1
    reaching = size((signs * vectors)[:features].sum(0), last=False)
    others = size((signs * vectors)[features:].sum(0), last=True)
    allowed = _ROUNDING * torch.finfo(weight.dtype).eps * reaching[1]
    if reaching[1] == 0 or others[0] == 0 or others[1] > allowed:
        return None
    return Basis(vectors, features, head.layer)


def _ends_in(output: Tensor, head: Call) -> bool:
    """Whether only linear operations lie between the head and the outputs."""
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if getattr(node, "call", None) is head:
            continue
        if not _LINEAR.fullmatch(type(node).__name__):
            return False
        waiting.extend(below for below, _ in node.next_functions)
    return True
