"""What stored pieces of a kernel depend on, so that another run cannot take them for its own."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError
from spikedim.ntk.gram import Setup
from spikedim.storage import digest

FORMAT = 2  # of the stored pieces: raised when the same settings give other numbers
_LENGTH = 16


def identity(setup: Setup, **values: Tensor | None) -> dict[str, Any]:
    """Settings of a run directory: everything that the gradients depend on, by digest.

    Of the network these are its weights, which of them are differentiated, and every public plain
    attribute of its modules, neuron parameters and configuration among them.

    Args:
        setup: what is differentiated.
        values: samples and sums of outputs, by role.

    Raises:
        ConfigError: the readout holds something that cannot be told from another of its kind.
    """
    model = setup.model
    modules = [
        (name, _name(type(module)), {k: _seen(v) for k, v in _attributes(module).items()})
        for name, module in model.named_modules()
    ]
    parts = {
        "weights": {name: described(v) for name, v in model.state_dict().items()},
        "trainable parameters": [n for n, p in model.named_parameters() if p.requires_grad],
        "network": modules,
        "readout": described(setup.readout),
        **{name: described(value) for name, value in values.items()},
    }
    found = {name: digest(part, _LENGTH) for name, part in parts.items()}
    return {"format": FORMAT, "T": setup.T, "events": setup.events} | found


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}


def _seen(value: Any) -> Any:
    """An attribute of a module; of what has no plain form its type."""
    try:
        return described(value)
    except ConfigError:
        return _name(type(value))


def described(value: Any) -> Any:
    """Plain data that is equal for equal values only.

    Functions by their code, defaults, closures and bound arguments, but not by the globals they
    read; modules by their state and attributes.

    Raises:
        ConfigError: a value without such a form.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum)):
        return [_name(type(value)), repr(value)]
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Mapping):
        return [[described(k), described(v)] for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_name(type(value)), *map(described, value)]
    if isinstance(value, functools.partial):
        return ["partial", *map(described, (value.func, value.args, value.keywords))]
    if isinstance(value, types.MethodType):
        return ["method", described(value.__func__), described(value.__self__)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        bound = (value.__defaults__, value.__kwdefaults__, cells)
        return [value.__module__, value.__qualname__, _code(value.__code__), *map(described, bound)]
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return _name(value)
    if isinstance(value, nn.Module):
        return [_name(type(value)), described(value.state_dict()), described(_attributes(value))]
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return [_name(type(value)), described(parts)]
    raise ConfigError(
        f"a readout that holds a {_name(type(value))} cannot be recognised when a run resumes; "
        "leave the directory out, or pass a function of tensors, numbers and networks"
    )


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
