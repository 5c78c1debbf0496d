"""Which layers of a continuous network become what in its one-spike conversion.

The network is traced to a graph of operations. Everything linear is synapses; a neuron layer
stands wherever a value has to travel as spikes: at a ReLU or softmax, in front of weights and
products that would otherwise read a potential, and where a potential goes two ways.
"""

from __future__ import annotations

import builtins
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from spikedim.errors import ModelError

_MODULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Conv1d, nn.Conv2d), "weights"),
    ((nn.BatchNorm1d, nn.BatchNorm2d), "affine"),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "affine"),
    ((nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten), "shape"),
    ((nn.ReLU,), "relu"),
    ((nn.Softmax,), "softmax"),
)
_FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(("add", "iadd", "sub", "cat"), "sum"),
    **dict.fromkeys(("mul", "imul", "div", "truediv", "neg"), "scale"),
    **dict.fromkeys(("mean", "sum", "avg_pool2d", "adaptive_avg_pool2d"), "affine"),
    **dict.fromkeys(("matmul", "bmm"), "product"),
    **dict.fromkeys(("flatten", "unflatten", "reshape", "view", "permute", "transpose"), "shape"),
    **dict.fromkeys(("squeeze", "unsqueeze", "movedim", "contiguous", "getitem"), "shape"),
    **dict.fromkeys(("chunk", "split", "unbind"), "parts"),
    "relu": "relu",
    "softmax": "softmax",
}
_VIEWS = ("mT", "T")
_HINTS = {
    "LayerNorm": "use BatchNorm, which folds into weights, and train again",
    "GELU": "use ReLU and train again",
    **dict.fromkeys(("MaxPool2d", "max_pool2d"), "use average pooling and train again"),
    "MultiheadAttention": "write the attention out as matmul, softmax, matmul",
    "scaled_dot_product_attention": "write the attention out as matmul, softmax, matmul",
}


@dataclass(frozen=True)
class Site:
    """A neuron layer of the conversion.

    Args:
        name: where it stands; the second one of a module called twice is ``name#2``.
        kind: ``"signed"``, ``"relu"`` or ``"winner"``.
        axis: axis of the channels that have scales of their own; ``None`` for one common scale.
    """

    name: str
    kind: str
    axis: int | None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = any(isinstance(m, types) for types, _ in _MODULES)
        return known or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule:
    """The network as a graph; its modules are shared.

    Raises:
        ModelError: the forward pass depends on values, or takes more than one input.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot trace {type(network).__name__}: {reason[:160]}; its forward pass may not "
            "branch on values"
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise ModelError(
            f"{type(network).__name__} takes {len(inputs)} inputs ({names}); expected 1"
        )
    return fx.GraphModule(network, graph)


def roles(module: fx.GraphModule) -> dict[fx.Node, str]:
    """What every node is: constant, input, output, weights, affine, scale, sum, product, ...

    Raises:
        ModelError: a node has no spiking equivalent; the message names its module.
    """
    found: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            found[node] = "input" if node.op == "placeholder" else "output"
        elif all(found[source] == "constant" for source in node.all_input_nodes):
            found[node] = "constant"
        else:
            found[node] = _role(module, node, found)
    return found


def sites(module: fx.GraphModule, role: dict[fx.Node, str]) -> dict[fx.Node, Site]:
    """Nodes whose value passes through neurons."""
    kinds: dict[fx.Node, str] = {}
    state: dict[fx.Node, str] = {}  # spikes, affine (of spikes), potential

    def fire(node: fx.Node, kind: str = "signed") -> None:
        kinds[node], state[node] = kind, "spikes"

    for node in module.graph.nodes:
        sources = [n for n in node.all_input_nodes if role[n] != "constant"]
        if role[node] in ("constant", "output"):
            continue
        allowed = {"weights": ("spikes", "affine"), "product": ("spikes",)}.get(role[node])
        for source in sources:
            if allowed and state[source] not in allowed:
                fire(source)
        before = {state[source] for source in sources}
        if role[node] in ("relu", "softmax"):
            fire(node, "relu" if role[node] == "relu" else "winner")
            continue
        if role[node] == "input":
            state[node] = "affine"  # several bits per value: weights read them, products cannot
        elif role[node] in ("weights", "product") or "potential" in before:
            state[node] = "potential"
        elif role[node] in ("shape", "parts"):
            state[node] = before.pop()
        else:
            state[node] = "potential" if len(sources) > 1 else "affine"
        readers = [n for n in node.users if role[n] != "constant"]
        split = all(n.target is operator.getitem for n in readers)
        if state[node] == "potential" and len(readers) > 1 and not split and role[node] != "parts":
            fire(node)
    calls: Counter[str] = Counter()
    found: dict[fx.Node, Site] = {}
    for node, kind in kinds.items():
        calls[place := _place(node)] += 1  # one ReLU module may serve several layers
        name = place if calls[place] == 1 else f"{place}#{calls[place]}"
        found[node] = Site(name, kind, _channels(module, node, role))
    return found


def _role(module: fx.GraphModule, node: fx.Node, found: dict[fx.Node, str]) -> str:
    active = [source for source in node.all_input_nodes if found[source] != "constant"]
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        role = next((role for types, role in _MODULES if isinstance(layer, types)), None)
        if role is None:
            raise _unsupported(f"layer {node.target}", type(layer).__name__)
        if role == "softmax" and layer.dim != -1:
            raise ModelError(
                f"layer {node.target} (Softmax) runs over dim={layer.dim}; expected -1"
            )
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is None:
            raise ModelError(f"layer {node.target} has no running statistics to fold into weights")
        return role
    if node.target is builtins.getattr and node.args[1] in ("shape", "ndim", "device", "dtype"):
        return "constant"
    if node.target == "size":
        return "constant"
    if node.target is builtins.getattr and node.args[1] in _VIEWS:
        return "shape"
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    role = _FUNCTIONS.get(name)
    if role is None:
        raise _unsupported(f"operation {name} in {_inside(node) or 'the network'}", name)
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if role == "softmax" and dim != -1:
        raise ModelError(f"softmax in {_inside(node)} runs over dim={dim}; expected -1")
    moving = [n for n in node.args if isinstance(n, fx.Node) and n in active]
    if role == "scale" and (len(moving) > 1 or ("div" in name and moving[0] != node.args[0])):
        what = "product" if "mul" in name else "quotient"
        raise _unsupported(f"{what} of activations in {_inside(node) or 'the network'}", name)
    if role == "product" and len(moving) == 1:
        return "weights"
    return role


def _unsupported(what: str, kind: str) -> ModelError:
    hint = _HINTS.get(kind, "linear layers, batch norm, ReLU, softmax, sums and products convert")
    return ModelError(f"{what} ({kind}) has no one-spike equivalent; {hint}")


def _channels(module: fx.GraphModule, node: fx.Node, role: dict[fx.Node, str]) -> int | None:
    """Operands of products share one scale; images have theirs first, all else last."""
    readers = [n for n in node.users if role[n] != "constant"]
    while readers:
        reader = readers.pop()
        if role[reader] == "product":
            return None
        if role[reader] in ("shape", "parts", "sum"):
            readers += list(reader.users)
        elif reader.op == "call_module" and not isinstance(
            module.get_submodule(str(reader.target)), (nn.Linear, nn.BatchNorm1d)
        ):
            return 1
    return -1


def _inside(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack), "") if stack else ""


def _place(node: fx.Node) -> str:
    path = str(node.target) if node.op == "call_module" else f"{_inside(node)}.{node.name}"
    return path.strip(".").replace(".", "_")


def call(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """Evaluate one node on values."""
    if node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def dense_macs(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> int:
    """Multiply-accumulates per sample of a weights or product node, its value known."""
    value, first = env[node], env[node.all_input_nodes[0]]
    per_output = first.shape[-1]
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        per_output = layer.weight[0].numel()  # type: ignore[index]
    count: int = value.numel() // value.shape[0] * per_output
    return count
