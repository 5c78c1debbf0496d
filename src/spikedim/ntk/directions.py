"""Better sums of outputs to differentiate than the outputs one by one.

The trace kernel Σ_o J_o J_oᵀ is the same in every orthonormal basis of the outputs. Behind a linear
head of weights W [O, D], the left singular vectors of W are the best known one:

- Where D < O, the O − D vectors beside them have a gradient in the head alone, and there each has
  the same kernel, so that one of them, times √(O − D), stands for all: D + 1 sums.
- Random sums of the outputs estimate the kernel with an error that comes from the inner products of
  the gradients of different outputs, and those of different singular vectors are smaller.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.ntk.capture import Capture
from spikedim.ntk.gram import Setup
from spikedim.ntk.passes import Call

_ROUNDING = 1e3  # units in the last place that a vanishing gradient may have
# Between head and outputs, only what is linear with the same coefficients for every sample.
_LINEAR = re.compile(
    r"(Mean|Sum|(Unsafe)?View|ReshapeAlias|Alias|T|Transpose|Permute|Select|Slice|"
    r"(Un)?Squeeze|Expand|Clone)Backward\d*"
)


def fewest_sums(setup: Setup, x: Tensor, without: tuple[str, ...] = ()) -> Tensor | None:
    """Sums [D + 1, O] whose kernels add up to the trace kernel, ``None`` where it takes all O.

    What lies between head and outputs must be linear and the same for all samples. That the other
    vectors reach nothing below the head, and have the same kernel there, is measured on a sample,
    in single precision or better.

    Args:
        without: parameters that have no rule.
    """
    capture = setup.capture(setup.batch(x, 0, 1), without)
    head = _head(capture)
    if head is None or not _ends_in(capture.output, head):
        return None
    weight = head.module.weight.detach()
    outputs, features = weight.shape
    if (
        weight.itemsize < 4
        or features >= outputs
        or sum(c.layer == head.layer for c in capture.calls) > 1
    ):
        return None
    vectors = _singular(weight)
    draws = torch.randn(2, outputs, generator=torch.Generator().manual_seed(0))
    others = _beside(vectors, draws.to(weight))

    def gradients(weights: Tensor) -> tuple[Tensor, float]:
        """At the head's output, [rows, O], and the largest at that of any other layer."""
        there, elsewhere = weight.new_zeros(1, outputs), 0.0

        def receive(call: Call, gradient: Tensor) -> None:
            nonlocal there, elsewhere
            if call is head:
                there = gradient.flatten(0, -2)
            else:
                elsewhere = max(elsewhere, float(gradient.abs().max()))

        leaks = capture.run(weights, receive, leaks=list(capture.leaks))
        return there, max(elsewhere, *(float(g.abs().max()) for g in leaks.values()), 0.0)

    signs = torch.ones(features, 1).to(weight)
    signs[::2] = -1
    with torch.no_grad():
        _, reaching = gradients((signs * vectors).sum(0))
        (one, below), (two, below_too) = (gradients(other) for other in others)
        allowed = _ROUNDING * torch.finfo(weight.dtype).eps
        first, second = one @ one.mT, two @ two.mT
        alike = (first - second).abs().max() <= allowed * first.abs().max()
    if not first.any() or max(below, below_too) > allowed * reaching or not alike:
        return None
    return torch.cat([vectors, others[:1]])


def random_sums(
    setup: Setup, x: Tensor, probes: int, outputs: int, seed: int, without: tuple[str, ...] = ()
) -> Tensor:
    """Random sums [probes, O], each of whose kernels has the trace kernel as its mean.

    Random signs of the outputs, or of the singular vectors of the head and, where it has fewer
    features than outputs, a random direction beside them.

    Args:
        outputs: O.
        seed: of the signs.
        without: parameters that have no rule.
    """
    draw = np.random.default_rng((seed, 0))
    capture = setup.capture(setup.batch(x, 0, 1), without)
    like = capture.output.detach()
    head = _head(capture)
    vectors = None if head is None else _singular(head.module.weight.detach())
    count = outputs if vectors is None else len(vectors)
    signs = torch.as_tensor(draw.choice((-1.0, 1.0), (probes, count)))
    if vectors is None:
        return signs.to(like)
    vectors = vectors.to(signs)
    sums = signs @ vectors
    if count < outputs:
        sums += _beside(vectors, torch.as_tensor(draw.standard_normal((probes, outputs))))
    return sums.to(like)


def _head(capture: Capture) -> Call | None:
    """The last linear layer, if it has as many outputs as the network."""
    heads = [c for c in capture.calls if type(c.module) is nn.Linear]
    if not heads or heads[-1].scale is not None:
        return None
    return heads[-1] if len(heads[-1].module.weight) == capture.outputs else None


def _singular(weight: Tensor) -> Tensor:
    """Left singular vectors of ``weight`` [O, D] as rows, [min(O, D), O]."""
    vectors: Tensor = torch.linalg.svd(weight.double().cpu(), full_matrices=False)[0]
    return vectors.mT.to(weight)


def _beside(vectors: Tensor, draws: Tensor) -> Tensor:
    """Directions [k, O] orthogonal to ``vectors`` [D, O], of length √(O − D); of normal draws."""
    for _ in range(2):  # once leaves rounding
        draws = draws - draws @ vectors.mT @ vectors
    size = float(draws.shape[1] - len(vectors)) ** 0.5
    return draws * (size / draws.norm(dim=1, keepdim=True))


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
