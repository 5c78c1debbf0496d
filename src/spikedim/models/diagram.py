"""The block diagram of a network: its modules in the order they run, with shapes and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.models.base import SpikingModel, evaluating
from spikedim.models.registry import create_model, is_file, model_entry
from spikedim.neurons import LIF
from spikedim.results import Result, Table


@dataclass(frozen=True)
class Stage:
    """One module of a network, or several equal ones in a row.

    Attributes:
        name: module path below the enclosing stage; ``block.0 … block.3`` where it repeats.
        depth: nesting, 0 for the network's own modules.
        kind: what it is, e.g. ``"Conv2d 3×3, 48 → 96"``.
        shape: of its output, as the module gives it, for one sample.
        parameters: of one repetition, everything inside included.
        repeats: equal modules in a row that this line stands for.
    """

    name: str
    depth: int
    kind: str
    shape: str
    parameters: int
    repeats: int


@dataclass(frozen=True)
class Diagram(Result):
    """Modules of a network in the order they run, repeated blocks once.

    Attributes:
        title: the network.
        stages: outermost first.
    """

    title: str
    stages: tuple[Stage, ...]

    def tables(self) -> list[Table]:
        """One row per stage, nested by indentation."""
        rows = [
            (
                "  " * s.depth + s.name + (f"  (× {s.repeats})" if s.repeats > 1 else ""),
                s.kind,
                s.shape,
                s.parameters or None,
            )
            for s in self.stages
        ]
        columns = ("module", "what", "output", "parameters")
        note = "Outputs as the modules give them for one sample: T, B = 1, tokens and channels."
        return [Table(self.title, columns, rows, (note,))]


@dataclass
class _Node:
    """A module that ran: where, what it gave, and the modules that ran inside it."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    inside: list[_Node]

    @property
    def signature(self) -> Any:
        """What two repetitions have in common."""
        return _kind(self.module), self.shape, tuple(n.signature for n in self.inside)


def diagram(network: SpikingModel | str, T: int | None = None, depth: int = 3) -> Diagram:
    """Draw a network as text by running it on a sample without data.

    Args:
        network: a network, or the name of one. A registered one is then never allocated; that of
            ``file.py:function`` is, since its code may read values.
        T: timesteps; ``None`` for the network's default, or 1 step per token for a text model.
        depth: levels of nesting to show.

    Raises:
        ModelError: an unknown name.

    Example:
        >>> from spikedim.models import diagram
        >>> print(diagram("spikformer_4_384"))  # doctest: +SKIP
    """
    title = network if isinstance(network, str) else type(network).__name__
    if isinstance(network, str):
        model_entry(network)
        with torch.device("cpu" if is_file(network) else "meta"):
            network = create_model(network, seed=None)
    text = len(network.input_shape) == 1
    parameter = next(network.parameters())
    dtype = torch.int64 if text else parameter.dtype
    x = torch.zeros(1, *network.input_shape, dtype=dtype, device=parameter.device)
    roots = _run(network, x, T)
    return Diagram(title, tuple(_stages(roots, 0, depth)))


def _run(model: SpikingModel, x: Tensor, T: int | None) -> list[_Node]:
    roots: list[_Node] = []
    open_nodes: list[_Node] = []
    handles = []

    def enter(name: str, module: nn.Module) -> None:
        node = _Node(name, module, (), [])
        (open_nodes[-1].inside if open_nodes else roots).append(node)
        open_nodes.append(node)

    def leave(output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        open_nodes.pop().shape = tuple(first.shape) if isinstance(first, Tensor) else ()

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(
                    module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m))
                )
                handles.append(module.register_forward_hook(lambda _m, _i, out: leave(out)))
        with torch.no_grad(), evaluating(model):
            model(x, T)
    finally:
        for handle in handles:
            handle.remove()
    return roots


def _stages(nodes: list[_Node], level: int, depth: int, parent: str = "") -> Iterator[Stage]:
    index = 0
    while index < len(nodes):
        period, repeats = _repetition(nodes, index)
        for place in range(index, index + period):
            node, last = nodes[place], nodes[place + period * (repeats - 1)]
            name = node.name.removeprefix(parent)
            if repeats > 1:
                name += f" … {last.name.removeprefix(parent)}"
            count = sum(p.numel() for p in node.module.parameters())
            shape = " × ".join(map(str, node.shape))
            yield Stage(name, level, _kind(node.module), shape, count, repeats)
            if level + 1 < depth:
                yield from _stages(node.inside, level + 1, depth, f"{node.name}.")
        index += period * repeats


def _repetition(nodes: list[_Node], start: int) -> tuple[int, int]:
    """Length of the group of modules at ``start`` that repeats most, and how often."""
    signatures = [node.signature for node in nodes[start:]]
    best = (1, 1)
    for period in range(1, len(signatures) // 2 + 1):
        repeats = 1
        group = signatures[:period]
        while signatures[repeats * period : (repeats + 1) * period] == group:
            repeats += 1
        composite = any(node.inside for node in nodes[start : start + period])
        if composite and repeats > 1 and period * repeats > best[0] * best[1]:
            best = (period, repeats)
    return best


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        size = "×".join(map(str, module.kernel_size))
        extra = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
        extra += f", {module.groups} groups" if module.groups > 1 else ""
        return f"Conv {size}, {module.in_channels} → {module.out_channels}{extra}"
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features} → {module.out_features}"
    if isinstance(module, LIF):
        if not module.known:
            return f"{module.extra_repr()}, kept as it is"
        p = module.params
        learned = next(module.parameters(), None) is not None
        beta = "learned β" if learned else f"β {_value(p.beta)}"
        return f"{type(module).__name__} v_th {_value(p.threshold)}, {beta}, {p.reset} reset"
    return type(module).__name__


def _value(value: float | Tensor) -> str:
    return f"per neuron {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value:g}"
