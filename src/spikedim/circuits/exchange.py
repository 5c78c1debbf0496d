"""Circuits and layered networks as NIR graphs, and back (neuroir.org; needs the package ``nir``).

NIR is written in continuous time; a step here is ``dt`` seconds of it by Euler's method, with the
drive of the step itself, as SpikingJelly and snnTorch read it::

    I, IF     v_t = v_{t−1} + dt·r·x_t
    LI, LIF   v_t = (1 − dt/tau)·v_{t−1} + (dt/tau)·r·x_t

IF and LIF are reset to ``v_reset`` in the step of the spike. A neuron at threshold fires (NIR
prints v > v_thr, the same in continuous time). What returns along a cycle takes one step.

NIR has no soft reset, but feedback: an integrator, a Threshold and a negative Scale in a cycle are
exactly the reset in the step after the spike. It has no product of signals and no random source, so
no circuit built on coincidence, veto, race or a conductance can be written. Parameters are written
per neuron, without a batch axis.

Of those who read the files, SpikingJelly 2.0.0 and snnTorch 1.0.0 give the same spikes for layers
with a hard reset, Norse 1.1.0 only for r = 1 (``decay_input``): it ignores r. snnTorch
refuses an IF whose r is not 1. None of the three reads I, LI and Threshold: the feedback form needs
a mapping of these for nirtorch, and then has the same spikes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikedim.circuits.base import Circuit
from spikedim.circuits.codes import BernoulliCode, IntegrateFireCode, LeakyCode
from spikedim.circuits.softmax import SubtractiveSoftmax
from spikedim.errors import ConfigError, ModelError
from spikedim.neurons import LIF, LIFParams
from spikedim.storage import write_bytes

if TYPE_CHECKING:
    import nir

DT = 1e-4  # what SpikingJelly assumes by default and snnTorch always
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
_SHAPING = (nn.AvgPool2d, nn.Flatten)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_IDLE = (nn.Identity, nn.Dropout)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KNOWN: tuple[type[nn.Module], ...] = (LIF, *_LINEAR, *_SHAPING, *_NORMS, *_IDLE, *_CONTAINERS)
_MISSING = {
    "MaxPool1d": "no maximum",
    "MaxPool2d": "no maximum",
    "SpikeProduct": "no product of two signals, hence no attention",
    "LayerNorm": "no normalisation by the sample",
    "Embedding": "no look-up",
    "Softmax": "no division",
}


def package() -> ModuleType:
    """The module ``nir``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import nir
    except ImportError as error:
        raise ConfigError("NIR files need the package nir: pip install 'spikedim[nir]'") from error
    return nir


def to_nir(source: Circuit | nn.Module, shape: Sequence[int], dt: float = DT) -> nir.NIRGraph:
    """Write a circuit or a sequence of layers as a NIR graph.

    - :class:`IntegrateFireCode` and :class:`LeakyCode`: I or LI, Threshold, feedback; input x,
      output the spikes, whose mean is the code.
    - :class:`SubtractiveSoftmax`: I or LI, Threshold, feedback −(Id + 11ᵀ/n); input the drive
      e = c·e^{z − max z} in every step (NIR has no exponential), output the spikes.
    - ``nn.Sequential`` of Linear, Conv1d, Conv2d, AvgPool2d, Flatten and :class:`LIF`, with
      Identity and Dropout left out and batch norm folded, as in evaluation. Each layer is taken as
      it acts on one step of a batch, [B, ...].

    LIF layers: hard reset is nir.LIF (nir.IF without leak), soft reset the feedback form above.

    Args:
        source: what to write.
        shape: of the input, without time and batch, e.g. ``(8,)``.
        dt: seconds per step; kept in the metadata of the graph.

    Raises:
        ModelError: NIR cannot express it; the message names every node that it lacks.
        ConfigError: ``shape`` or ``dt`` out of its domain, or ``nir`` not installed.
    """
    sizes = isinstance(shape, Sequence) and all(isinstance(n, int) and n > 0 for n in shape)
    if not (sizes and 0 < dt < math.inf):
        raise ConfigError(
            f"shape={shape}, dt={dt}: expected positive sizes such as (8,), and positive seconds"
        )
    graph = _Graph(package(), tuple(shape), dt)
    if isinstance(source, Circuit):
        _write_circuit(graph, source)
    else:
        _write_layers(graph, source)
    return graph.finished()


def write_nir(path: str | Path, graph: nir.NIRGraph) -> Path:
    """Write a graph to an HDF5 file, atomically."""
    buffer = io.BytesIO()
    package().write(buffer, graph)
    return write_bytes(path, buffer.getvalue())


class _Graph:
    """A graph that grows node by node from its input."""

    def __init__(self, nir: ModuleType, shape: tuple[int, ...], dt: float) -> None:
        self.nir, self.shape, self.dt = nir, shape, dt
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.last = "input"

    def add(self, name: str, node: Any) -> None:
        """Append ``node`` behind the last one."""
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last = name

    def feed_back(self, name: str, node: Any, to: str, first: bool) -> None:
        """Close a cycle from the last node through ``node``; ``first``: summed before the drive."""
        self.nodes[name] = node
        arrival = next(i for i, (_, target) in enumerate(self.edges) if target == to)
        self.edges.insert(arrival if first else len(self.edges), (name, to))
        self.edges.append((self.last, name))

    def full(self, value: float | Tensor) -> NDArray[np.float64]:
        """``value`` for every neuron of the current shape, float64."""
        given = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        return np.array(np.broadcast_to(np.asarray(given, np.float64), self.shape))

    def finished(self) -> Any:
        self.add("output", self.nir.Output({"output": np.array(self.shape)}))
        try:
            return self.nir.NIRGraph(self.nodes, self.edges, metadata={"dt": self.dt})
        except ValueError as error:
            raise ModelError(f"NIR cannot express these shapes: {error}") from error


def _write_circuit(graph: _Graph, circuit: Circuit) -> None:
    nir = graph.nir
    if isinstance(circuit, IntegrateFireCode | LeakyCode):
        decay = circuit.beta if isinstance(circuit, LeakyCode) else 1.0
        neuron = LIFParams(decay, reset="soft", delayed_reset=True, decay_input=False)
        _write_neuron(graph, "encoder", neuron)
    elif isinstance(circuit, SubtractiveSoftmax):
        if len(graph.shape) != 1:
            raise ConfigError(f"shape={graph.shape}: expected one row of logits, (n,)")
        (n,) = graph.shape
        _write_integrator(graph, "competitor", graph.full(circuit.beta), np.ones(n))
        graph.add("spike", nir.Threshold(np.ones(n)))
        inhibition = nir.Linear(-(np.eye(n) + np.full((n, n), 1 / n)))
        graph.feed_back("inhibition", inhibition, "competitor", first=False)
    else:
        lacks = "Bernoulli source" if isinstance(circuit, BernoulliCode) else _lacking(circuit.name)
        raise ModelError(f"{circuit.name} cannot be written as NIR, which has no {lacks}")


def _lacking(name: str) -> str:
    for word, node in (
        ("shunting", "shunting (divisive) conductance"),
        ("race", "Poisson source and no first-to-fire unit"),
        ("veto", "Poisson source"),
        ("attention", "Poisson source and no coincidence (product of two signals)"),
    ):
        if word in name:
            return node
    return "Bernoulli source and no coincidence (product of two signals)"


def _write_integrator(
    graph: _Graph, name: str, beta: NDArray[np.float64], gain: NDArray[np.float64]
) -> None:
    """A unit v_t = β·v_{t−1} + gain·x_t."""
    if (beta == 1).all():
        graph.add(name, graph.nir.I(gain / graph.dt))
    else:
        graph.add(name, graph.nir.LI(**_leak(graph, beta, gain, name)))


def _leak(
    graph: _Graph, beta: NDArray[np.float64], gain: NDArray[np.float64], name: str
) -> dict[str, NDArray[np.float64]]:
    if (beta == 1).any():
        raise ModelError(f"{name}: some of its neurons leak and some do not; NIR tells them apart")
    return {"tau": graph.dt / (1 - beta), "r": gain / (1 - beta), "v_leak": np.zeros_like(beta)}


def _write_neuron(graph: _Graph, name: str, params: LIFParams) -> None:
    """A layer of LIF neurons; see :func:`to_nir`."""
    nir = graph.nir
    if params.refractory or params.smooth:
        lacks = "refractory period" if params.refractory else "smooth spike"
        raise ModelError(f"{name} cannot be written as NIR, which has no {lacks}")
    beta, threshold = graph.full(params.beta), graph.full(params.threshold)
    gain = graph.full(params.gain)
    if params.reset == "hard":
        if params.v_reset and params.delayed_reset and (beta < 1).any():
            raise ModelError(
                f"{name} is reset to {params.v_reset:g} after the leak; NIR resets before it"
            )
        reset = {"v_threshold": threshold, "v_reset": graph.full(params.v_reset)}
        if (beta == 1).all():
            graph.add(name, nir.IF(r=gain / graph.dt, **reset))
        else:
            graph.add(name, nir.LIF(**_leak(graph, beta, gain, name), **reset))
        return
    _write_integrator(graph, name, beta, gain)
    graph.add(f"{name}_spike", nir.Threshold(threshold))
    if params.reset == "soft":
        lost = threshold if params.delayed_reset else beta * threshold
        graph.feed_back(f"{name}_reset", nir.Scale(-lost / gain), name, first=True)


def _write_layers(graph: _Graph, module: nn.Module) -> None:
    """Layers one after the other; see :func:`to_nir`."""
    _check_layers(module)
    layers = [
        (path, layer)
        for path, layer in module.named_modules(remove_duplicate=False)
        if not isinstance(layer, (*_CONTAINERS, *_IDLE))
    ]
    for index, (path, layer) in enumerate(layers):
        kind = type(layer).__name__.lower()
        name = f"{kind}_{path.replace('.', '_')}" if path else kind
        if isinstance(layer, LIF):
            if layer.activation is not None:
                raise ModelError(f"{name} is continuous; NIR's neurons spike")
            _write_neuron(graph, name, layer.dynamics())
        elif isinstance(layer, _NORMS):
            if index == 0 or not isinstance(layers[index - 1][1], _LINEAR):
                raise ModelError(f"{name} follows no linear layer that it could be folded into")
        else:
            after = _shape_after(name, layer, graph.shape)
            norm = layers[index + 1][1] if index + 1 < len(layers) else None
            if isinstance(layer, _LINEAR):
                node = _weighted(graph, name, layer, norm if isinstance(norm, _NORMS) else None)
            else:
                node = _shaping(graph, name, layer)
            graph.add(name, node)
            graph.shape = after


def _check_layers(module: nn.Module) -> None:
    """Raise :class:`ModelError` with everything in ``module`` that is no chain of NIR nodes."""
    lacking: dict[str, list[str]] = {}
    coded: dict[str, None] = {}
    for path, layer in module.named_modules():
        kind = type(layer).__name__
        base = next((known for known in _KNOWN if isinstance(layer, known)), None)
        if base is not None and type(layer).forward is base.forward:
            continue
        if base is not None or any(layer.children()):
            coded[kind] = None
        else:
            lacking.setdefault(kind, []).append(path or kind)
    faults = []
    for kind, places in lacking.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        why = _MISSING.get(kind, "no such node")
        faults.append(f"{kind} ({places[0]}{more}): {why}")
    if coded:
        faults.append(
            f"{', '.join(coded)}: a forward of their own; of what joins layers, only nn.Sequential "
            "is a graph"
        )
    if faults:
        raise ModelError(f"{type(module).__name__} cannot be written as NIR. {'; '.join(faults)}")


def _shape_after(name: str, layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that ``layer`` makes of one sample."""
    weight = getattr(layer, "weight", torch.empty(0))
    x = torch.empty(1, *shape, dtype=weight.dtype, device="meta")
    try:
        found: Tensor = deepcopy(layer).to("meta")(x)
    except (RuntimeError, IndexError) as error:
        raise ModelError(f"{name} does not fit an input of shape {shape}: {error}") from error
    return tuple(found.shape[1:])


def _weighted(graph: _Graph, name: str, layer: Any, norm: Any) -> Any:
    """Linear or Conv, with the batch norm behind it folded in."""
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    bias = bias.to(weight)
    if norm is not None:
        if norm.running_var is None:
            raise ModelError(f"the batch norm behind {name} keeps no statistics to fold")
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double() * gain
        if norm.affine:
            gain, shift = gain * norm.weight.detach(), shift * norm.weight.detach()
            shift = shift + norm.bias.detach()
        weight = weight * gain.view(-1, *[1] * (weight.dim() - 1))
        bias = bias * gain + shift
    dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    weights, biases = (v.to(dtype).cpu().numpy() for v in (weight, bias))
    nir = graph.nir
    if isinstance(layer, nn.Linear):
        if len(graph.shape) != 1:
            raise ModelError(f"{name} acts on shape {graph.shape}; NIR multiplies vectors only")
        if layer.bias is None and norm is None:
            return nir.Linear(weights)
        return nir.Affine(weights, biases)
    if layer.padding_mode != "zeros" or layer.groups != 1:
        raise ModelError(
            f"{name}: groups={layer.groups}, padding_mode={layer.padding_mode!r}; NIR's shapes "
            "allow one group and zeros only"
        )
    flat = isinstance(layer, nn.Conv1d)
    settings = {
        key: value[0] if flat and not isinstance(value, str) else value
        for key in ("stride", "padding", "dilation")
        for value in (getattr(layer, key),)
    }
    size = graph.shape[1] if flat else graph.shape[1:]
    kind = nir.Conv1d if flat else nir.Conv2d
    return kind(input_shape=size, weight=weights, groups=1, bias=biases, **settings)


def _shaping(graph: _Graph, name: str, layer: Any) -> Any:
    """AvgPool2d or Flatten."""
    nir = graph.nir
    if isinstance(layer, nn.Flatten):
        if layer.start_dim == 0:
            raise ModelError(f"{name} flattens the batch")
        start, end = (d - 1 if d > 0 else d for d in (layer.start_dim, layer.end_dim))
        return nir.Flatten({"input": np.array(graph.shape)}, start, end)
    padded = not layer.count_include_pad and layer.padding not in (0, (0, 0))
    if layer.ceil_mode or padded or layer.divisor_override is not None:
        raise ModelError(f"{name}: NIR has only the plain mean over full windows")
    pairs = (layer.kernel_size, layer.stride, layer.padding)
    return nir.AvgPool2d(*(np.array(np.broadcast_to(pair, 2)) for pair in pairs))
