"""Checks on a second device: hardware, or tensors that cannot meet those of the processor.

A tensor on ``second`` is an empty shell around a tensor of the processor, which does its
arithmetic. An operation between both devices raises, as it does with a GPU; so code that gives the
same numbers here makes no tensor on the wrong device. Strides of a shell are those of a contiguous
tensor, whatever its content has, so that nothing is learned about contiguity.

The device belongs to the process: checks run in one of their own,
``python second_device.py DEVICE [NAME …]`` with DEVICE ``second`` or, on a machine with a GPU,
``cuda``.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
SLOW = ("invert", "one-sided")
_KEY = "PrivateUse1"
_VIEWS = (  # torch's own read the strides of the shell
    "alias", "detach", "diagonal", "expand", "permute", "select.int", "slice.Tensor",
    "split.Tensor", "split_with_sizes", "squeeze", "squeeze.dim", "squeeze.dims", "t",
    "transpose.int", "unbind.int", "unfold", "unsqueeze", "view.dtype",
)  # fmt: skip
_BETWEEN = ("aten::_copy_from", "aten::copy_", "aten::_to_copy")
_libraries: list[torch.library.Library] = []
_device = NAME


class Shell(torch.Tensor):
    """What a parameter may be made of: torch refuses plain tensors that Python made for it."""


def is_there(value: Any) -> bool:
    """Whether it is a tensor on the second device."""
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def content(value: Any) -> Any:
    """The tensor in a shell, which its storage keeps; anything else as it is."""
    return value.untyped_storage().content if is_there(value) else value


def shell(value: Any) -> Any:
    """A tensor of the processor on the second device; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    made = torch._C._acc.create_empty_tensor(value.shape, value.dtype)
    made.__class__ = Shell
    made.untyped_storage().content = value
    return made


def _run(op: Any, *args: Any, **options: Any) -> Any:
    """Do an operation on the contents."""
    schema = op._schema
    tensors: list[torch.Tensor] = []
    tree_map(lambda v: tensors.append(v) if isinstance(v, torch.Tensor) else None, (args, options))
    apart = [v for v in tensors if not is_there(v) and v.dim()]
    if apart and any(map(is_there, tensors)) and schema.name not in _BETWEEN:
        raise RuntimeError(f"{schema.name}: tensors on two devices")
    given, named = tree_map(content, args), tree_map(content, options)
    target = None if named.get("device") is None else torch.device(named["device"]).type
    if target is not None:
        named["device"] = "cpu"
    if schema.name == "aten::_copy_from":
        given[1].copy_(given[0])
        return args[1]
    found = op(*given, **named)
    if target == "cpu" or schema.name == "aten::_local_scalar_dense":
        return found
    written = {}
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else options.get(argument.name)
        written[tuple(argument.alias_info.before_set)] = value
        if is_there(value) and content(value).shape != value.shape:  # an output was resized
            value.data = shell(content(value))

    def give(value: Any, declared: Any) -> Any:
        if declared.alias_info is not None and declared.alias_info.is_write:
            return written[tuple(declared.alias_info.before_set)]
        return tree_map(shell, value)

    if len(schema.returns) == 1:
        return give(found, schema.returns[0])
    return tuple(map(give, found or (), schema.returns))


def _view(x: torch.Tensor, size: Any) -> Any:
    return shell(content(x).reshape(size))


def _convolve(*args: Any) -> Any:
    return _run(torch.ops.aten.convolution.default, *args)


def _convolve_backward(gradient: Any, x: Any, weight: Any, *rest: Any) -> Any:
    transposed, groups, wanted = rest[3], rest[5], rest[-1]
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]] if wanted[2] else None
    op = torch.ops.aten.convolution_backward.default
    return _run(op, gradient, x, weight, bias, *rest)


def setup() -> torch.device:
    """Make the device known to torch; once per process."""
    _setup_privateuseone_for_python_backend(NAME)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((every, aten))  # what they register lasts as long as they do
    every.fallback(_run, _KEY)
    for name in _VIEWS:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, partial(_run, op), _KEY)
    for name in ("view", "_unsafe_view"):
        aten.impl(name, _view, _KEY)
    aten.impl("_reshape_alias", lambda x, size, stride: _view(x, size), _KEY)
    aten.impl("convolution_overrideable", _convolve, _KEY)
    aten.impl("convolution_backward_overrideable", _convolve_backward, _KEY)
    address = torch.Tensor.data_ptr
    torch.Tensor.data_ptr = lambda self: address(content(self))  # that of a shell is always 0
    return torch.device(NAME)


def checks() -> dict[str, Callable[[], float]]:
    """Largest relative difference between the devices, by what is computed on both."""
    from ntk_networks import FAMILIES, network, small_network
    from spikedim.design.layers import layer_dimensions
    from spikedim.models import calibrate_batchnorm
    from spikedim.ntk import (
        KernelOperator,
        by_timestep,
        gram,
        invert,
        kernel_spectrum,
        kernel_traces,
        one_sided,
        reduction,
        sketched_gram,
        sweep,
    )
    from spikedim.profiling import profile
    from spikedim.rank import rank_profile

    def kernel(name: str, head: int | None = None, **more: Any) -> Callable[[], float]:
        def run() -> float:
            chosen = FAMILIES[name] | ({} if head is None else {"num_classes": head})
            model, x, options = network(name, 4, **chosen)
            return compared(lambda model, x: gram(model, x, **options, **more), model, x)

        return run

    def small(function: Callable[..., Any], samples: int = 5) -> Callable[[], float]:
        def run() -> float:
            model, x, _ = small_network()
            return compared(function, model, torch.cat([x, 0.9 * x.flip(0)])[:samples])

        return run

    def statistics(model: Any, x: torch.Tensor) -> Any:
        calibrate_batchnorm(model, [x], 2)
        return {name: value.tolist() for name, value in model.state_dict().items()}

    def events() -> float:
        model, _, _ = network("spikformer_nano", 1, input_shape=(2, 8, 8))
        x = torch.rand(3, 5, 2, 8, 8, dtype=torch.float64)
        return compared(lambda model, x: gram(model, x), model, x)

    vectors = np.random.default_rng(0).standard_normal((5, 3))
    return {
        **{f"kernel of {name}": kernel(name) for name in FAMILIES},
        "kernel by jacobian": kernel("spikformer_nano", method="jacobian"),
        "kernel by loop": kernel("spikformer_nano", method="loop"),
        "kernel of all pairs of outputs": kernel("spikformer_nano", outputs="full"),
        "kernel of more outputs than features": kernel("spikformer_nano", head=40),
        "kernel in little memory": kernel("spikformer_nano", memory=0.006),
        "kernel between two sets": small(lambda m, x: gram(m, x, x[:2], T=2)),
        "kernel of recordings": events,
        "sketch": small(lambda m, x: sketched_gram(m, x, T=2), 10),
        "sketch in little memory": small(lambda m, x: sketched_gram(m, x, T=2, memory=0.002), 10),
        "implicit products": small(lambda m, x: KernelOperator(m, x, T=2).apply(vectors)),
        "traces": small(lambda m, x: kernel_traces(KernelOperator(m, x, T=2))),
        "spectrum": small(lambda m, x: kernel_spectrum(KernelOperator(m, x, T=2))),
        "timesteps": small(lambda m, x: by_timestep(m, x, T=2)),
        "one-sided": small(lambda m, x: one_sided(m, x, T=2), 8),
        "reduction": small(lambda m, x: reduction(m, x, T=2), 8),
        "sweep": small(lambda m, x: sweep(m, x, "v_th", (0.5, 1.0), T=2), 8),
        "invert": small(lambda m, x: invert(m, x, T=2, target_d_eff=3.0), 8),
        "batch norm": small(statistics),
        "profile": small(lambda m, x: profile(m, x, 2)),
        "dimension of layers": small(lambda m, x: layer_dimensions(m, x, T=2), 10),
        "rank of layers": small(lambda m, x: rank_profile(m, x, T=2)),
    }


def compared(function: Callable[..., Any], model: torch.nn.Module, x: torch.Tensor) -> float:
    """Largest difference of a result's numbers, relative to the largest of their kind."""
    there = copy.deepcopy(model).to(_device)
    assert {value.device.type for value in there.state_dict().values()} == {_device}
    one, two = numbers(function(model, x)), numbers(function(there, x.to(_device)))
    assert one
    assert one.keys() == two.keys()
    worst = 0.0
    for name, mine in one.items():
        assert len(mine) == len(two[name]), name
        a, b = np.array(mine), np.array(two[name])
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), name
        kept = np.isfinite(a)
        if kept.any():
            scale = max(float(abs(a[kept]).max()), 1e-6)
            worst = max(worst, float(abs(a - b)[kept].max()) / scale)
    return worst


def numbers(result: Any) -> dict[str, list[float]]:
    """Numbers of a result by the names they stand under, those that tell time left out."""
    from spikedim.results import plain

    found: dict[str, list[float]] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in ("seconds", "bytes", "created"):
                    collect(inner, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for inner in value:
                collect(inner, path)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.setdefault(path, []).append(float(value))

    collect(result.tolist() if isinstance(result, np.ndarray) else plain(result), "")
    return found


def main() -> None:
    """Run the checks named, or all but the slow ones; print as JSON what came out of each.

    That is a number, or the traceback.
    """
    global _device
    torch.set_num_threads(1)
    _device, *wanted = sys.argv[1:]
    if _device == NAME:
        setup()
    found: dict[str, float | str] = {}
    mixed = torch.ones(3).to(_device)
    try:
        found["mixing"] = float((mixed + torch.ones(3)).sum())
    except RuntimeError as error:
        found["mixing"] = str(error)
    for name, check in checks().items():
        if name not in wanted and (name in SLOW or wanted):
            continue
        try:
            found[name] = check()
        except Exception:  # whatever it is, the other checks go on
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
