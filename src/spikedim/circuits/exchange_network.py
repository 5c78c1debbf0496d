"""Run a NIR graph, whoever wrote it; the conventions are those of :mod:`.exchange`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spikedim.circuits.exchange import DT, package
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.neurons import LIFParams, lif

if TYPE_CHECKING:
    import nir

_RUNNABLE = ("Input", "Output", "Linear", "Affine", "Scale", "Conv1d", "Conv2d", "AvgPool2d",
             "SumPool2d", "Flatten", "Threshold", "I", "LI", "IF", "LIF")  # fmt: skip


def from_nir(graph: nir.NIRGraph | str | Path, dt: float | None = None) -> NirNetwork:
    """Make a NIR graph runnable.

    Args:
        graph: a graph with one input and one output, or the path of a file that holds one.
        dt: seconds per step; by default what the graph's metadata say, else 1e-4.

    Raises:
        DataError: the file cannot be read.
        ModelError: the graph has nodes or parameters that this cannot run; the message names them.

    Example:
        >>> from spikedim.circuits import IntegrateFireCode, to_nir
        >>> network = from_nir(to_nir(IntegrateFireCode(), (2,)))
        >>> network(torch.tensor([0.25, 0.5]).expand(8, 2)).mean(0)
        tensor([0.2500, 0.5000])
    """
    nir = package()
    if isinstance(graph, str | Path):
        try:
            graph = nir.read(graph)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"cannot read {graph} as NIR: {error}") from error
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    for kind, ends in (("Input", graph.inputs), ("Output", graph.outputs)):
        if len(ends) != 1:
            raise ModelError(f"the NIR graph has {len(ends)} {kind} nodes; expected one")
    foreign = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _RUNNABLE]
    if foreign:
        raise ModelError(
            f"cannot run NIR nodes {', '.join(foreign)}; known are {', '.join(_RUNNABLE)}"
        )
    step = float(graph.metadata.get("dt", DT)) if dt is None else dt
    if not step > 0:
        raise ConfigError(f"dt={step}: expected the seconds of one step")
    return NirNetwork(graph, step, *_order(graph))


@dataclass(frozen=True, eq=False)
class NirNetwork:
    """A NIR graph that runs step by step from rest; call it on an input.

    Attributes:
        graph: the graph.
        dt: seconds per step.
        order: nodes in the order in which a step visits them.
        delayed: edges that close a cycle: they carry what left their source one step before.
    """

    graph: nir.NIRGraph
    dt: float
    order: tuple[str, ...]
    delayed: frozenset[tuple[str, str]]

    def __call__(self, x: Tensor) -> Tensor:
        """Signals of the output node, [T, ..., *output shape], for ``x`` [T, ..., *input shape].

        Signals that meet are added one by one in the order of the graph's edges, so that a graph
        of ours runs to the last bit as the circuit does.
        """
        shape = _shape(next(iter(self.graph.inputs.values())))
        if x.dim() <= len(shape) or x.shape[x.dim() - len(shape) :] != shape:
            raise ConfigError(
                f"input has shape {tuple(x.shape)}; expected [T, ...] followed by {tuple(shape)}"
            )
        states: dict[str, Any] = {}
        output = self.order[-1]
        if not self.delayed:
            return self._steps(x, {}, states)[output]
        values: dict[str, Tensor] = {}
        outputs = []
        for x_t in x.split(1):
            values = self._steps(x_t, values, states)
            outputs.append(values[output])
        return torch.cat(outputs)

    def _steps(
        self, x: Tensor, before: dict[str, Tensor], states: dict[str, Any]
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for name in self.order:
            node = self.graph.nodes[name]
            arriving = [
                (before if edge in self.delayed else values).get(edge[0])
                for edge in self.graph.edges
                if edge[1] == name
            ]
            signals = [signal for signal in arriving if signal is not None] or [x]
            values[name], states[name] = _run(node, signals, states.get(name), self.dt)
        return values


def _order(graph: Any) -> tuple[tuple[str, ...], frozenset[tuple[str, str]]]:
    """Nodes reached from the input in topological order, and the edges that close cycles."""
    after: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        after[source].append(target)
    open_nodes: set[str] = set()
    finished: list[str] = []
    delayed = set()

    def visit(name: str) -> None:
        open_nodes.add(name)
        for target in after[name]:
            if target in open_nodes:
                delayed.add((name, target))
            elif target not in finished:
                visit(target)
        open_nodes.remove(name)
        finished.append(name)

    visit(next(iter(graph.inputs)))
    output = next(iter(graph.outputs))
    if output not in finished:
        raise ModelError("the output of the NIR graph cannot be reached from its input")
    finished.remove(output)
    return (*reversed(finished), output), frozenset(delayed)


def _shape(node: Any) -> torch.Size:
    """Shape of one sample at the input of ``node``."""
    (given,) = node.input_type.values()
    return torch.Size(int(size) for size in np.atleast_1d(given))


def _run(node: Any, signals: list[Tensor], state: Any, dt: float) -> tuple[Tensor, Any]:
    """Output [T, ...] of a node, and its state after it."""
    kind = type(node).__name__
    if kind in ("I", "LI"):
        decay, gain = _dynamics(node, signals[0], dt)
        return _integrate([gain * signal for signal in signals], decay, state)
    x = signals[0]
    for signal in signals[1:]:
        x = x + signal
    if kind in ("IF", "LIF"):
        decay, gain = _dynamics(node, x, dt)
        threshold, v_reset = _values(node.v_threshold, x), _values(node.v_reset, x)
        if isinstance(v_reset, Tensor):
            raise ModelError(f"{kind} node: v_reset differs between its neurons; expected one")
        neuron = LIFParams(decay, threshold, "hard", v_reset, decay_input=False)
        return lif(gain * x, neuron, state)
    return _stateless(kind, node, x), None


def _integrate(signals: list[Tensor], decay: float | Tensor, v: Any) -> tuple[Tensor, Tensor]:
    """Potentials v_t = decay·v_{t−1} + Σ signals, added in their order."""
    potentials = []
    for arriving in zip(*(signal.unbind(0) for signal in signals), strict=True):
        v = torch.zeros_like(arriving[0]) if v is None else decay * v
        for signal in arriving:
            v = v + signal
        potentials.append(v)
    return torch.stack(potentials), v


def _dynamics(node: Any, x: Tensor, dt: float) -> tuple[float | Tensor, float | Tensor]:
    """Decay and gain per step, see :mod:`.exchange`."""
    kind = type(node).__name__
    r = np.asarray(node.r, np.float64)
    if kind in ("I", "IF"):
        return 1.0, _values(_exact(r * dt), x)
    rate = _exact(dt / np.asarray(node.tau, np.float64))
    if np.any(node.v_leak) or not ((rate >= 0) & (rate <= 1)).all():
        raise ModelError(
            f"{kind} node: expected v_leak = 0 and tau of at least dt = {dt:g} s; its smallest tau "
            f"is {np.min(node.tau):g}, its v_leak reaches {np.abs(node.v_leak).max():g}"
        )
    return _values(1 - rate, x), _values(_exact(rate * r), x)


def _exact(factor: Any) -> Any:
    """``factor`` per step, 1 where only the rounding of seconds keeps it from 1."""
    return np.where(np.isclose(factor, 1, rtol=1e-12, atol=0), 1.0, factor)


def _values(array: Any, x: Tensor) -> float | Tensor:
    """One number where all neurons share it, else a tensor like ``x``."""
    array = np.asarray(array)
    first = array.flat[0].item()
    return first if (array == first).all() else torch.as_tensor(array).to(x)


def _stateless(kind: str, node: Any, x: Tensor) -> Tensor:
    if kind in ("Input", "Output"):
        return x
    if kind == "Threshold":
        return (x >= torch.as_tensor(np.asarray(node.threshold)).to(x)).to(x.dtype)
    if kind == "Scale":
        return x * torch.as_tensor(node.scale).to(x)
    if kind == "Flatten":
        lead = x.dim() - len(_shape(node))
        start, end = (int(d) + lead if d >= 0 else int(d) for d in (node.start_dim, node.end_dim))
        return x.flatten(start, end)
    if kind in ("Linear", "Affine"):
        bias = torch.as_tensor(node.bias).to(x) if kind == "Affine" else None
        return F.linear(x, torch.as_tensor(node.weight).to(x), bias)
    return _windows(kind, node, x)


def _windows(kind: str, node: Any, x: Tensor) -> Tensor:
    """Convolutions and pools, on time and batch as one axis."""
    axes = 2 if kind == "Conv1d" else 3
    lead = x.shape[:-axes]
    flat = x.reshape(-1, *x.shape[-axes:])
    if kind in ("Conv1d", "Conv2d"):
        weight, bias = (torch.as_tensor(v).to(x) for v in (node.weight, node.bias))
        settings = (_sizes(node.stride), _sizes(node.padding), _sizes(node.dilation))
        convolve = F.conv1d if kind == "Conv1d" else F.conv2d
        y = convolve(flat, weight, bias, *settings, int(node.groups))
    else:
        kernel, stride, padding = map(_sizes, (node.kernel_size, node.stride, node.padding))
        divisor = 1 if kind == "SumPool2d" else None
        y = F.avg_pool2d(flat, kernel, stride, padding, divisor_override=divisor)
    return y.reshape(*lead, *y.shape[1:])


def _sizes(value: Any) -> Any:
    """Python numbers, or a word such as ``same``."""
    if isinstance(value, bytes | str):
        return value.decode() if isinstance(value, bytes) else value
    return np.asarray(value).tolist()
