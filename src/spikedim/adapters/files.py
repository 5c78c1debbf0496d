"""Networks named ``path/to/file.py:function``: the function returns the network."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from spikedim.adapters.network import adapted_neuron, wrap
from spikedim.errors import ModelError, SpikedimError
from spikedim.models.base import SpikingModel
from spikedim.models.registry import ModelEntry
from spikedim.neurons import LIFParams
from spikedim.storage import digest

_FALLBACK = {"num_classes": 10, "input_shape": (3, 32, 32)}
_LOADED: dict[tuple[Path, int], Any] = {}


def file_model(
    name: str,
    *,
    num_classes: int | None,
    input_shape: tuple[int, int, int] | None,
    neuron: LIFParams | None,
    seed: int | None,
    **options: Any,
) -> SpikingModel:
    """The network that the function makes, under our contract.

    Args:
        name: ``path/to/file.py:function``. The function receives those of ``num_classes``,
            ``input_shape`` and ``options`` that it has arguments for, and returns a network of
            SpikingJelly, snnTorch, Norse or our neurons that takes [T, B, C, H, W], or what
            :func:`wrap` makes of another one: with ``layout="step"`` of one that is called once
            per timestep, as nearly every network of snnTorch is.
        num_classes, input_shape, neuron, seed: as for :func:`spikedim.models.create_model`.

    Raises:
        ModelError: there is no such file or function, it fails, or what it returns does not fit.
    """
    given = {**_FALLBACK, **_present(num_classes=num_classes, input_shape=input_shape), **options}
    network = _made(name, given, seed)
    if not isinstance(network, SpikingModel):
        network = wrap(
            network, input_shape=given["input_shape"], num_classes=num_classes, source=name
        )
    for what, asked in _present(num_classes=num_classes, input_shape=input_shape).items():
        own = getattr(network, what)
        if own != asked:
            raise ModelError(
                f"{name} makes a network with {what}={own}, the data need {asked}; give the "
                f"function an argument {what}"
            )
    if neuron is not None:
        own = network.config.neuron
        wanted = {f.name: getattr(neuron, f.name) for f in fields(neuron)}
        network.set_neurons(
            **{n: v for n, v in wanted.items() if own is None or v != getattr(own, n)}
        )
    return network


def file_entry(name: str) -> ModelEntry:
    """What is known of such a network without running it.

    Raises:
        ModelError: as :func:`file_model`.
    """
    network = _made(name, _FALLBACK, 0)
    count = sum(p.numel() for p in network.parameters())
    config = (
        network.config if isinstance(network, SpikingModel) else FileConfig(adapted_neuron(network))
    )
    return ModelEntry(name, "adapted", type(network).__name__, config, name, count)


def fingerprint(name: str) -> str:
    """Digest of the file, and of the modules beside it that it imports, directly or through others.

    What is installed elsewhere is not read.
    """
    path = _path(name)
    sources = {path: path.read_bytes()}
    waiting = [path]
    while waiting:
        source = waiting.pop()
        for found in _imported(sources[source], source.parent, path.parent):
            if found not in sources:
                sources[found] = found.read_bytes()
                waiting.append(found)
    if len(sources) == 1:
        return digest(sources[path].hex())
    beside = {s.relative_to(path.parent).as_posix(): s for s in sources}
    return digest({place: sources[source].hex() for place, source in sorted(beside.items())})


def _imported(source: bytes, here: Path, root: Path) -> set[Path]:
    """Files under ``root`` that a source file in the folder ``here`` imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # said when it is loaded
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [root, here, *here.parents]
            base = above[min(node.level, len(above) - 1)]
            module = [node.module] if node.module else []
            names = [(base, ".".join([*module, alias.name])) for alias in node.names]
        else:
            continue
        for base, name in names:
            place = base
            for part in name.split("."):
                place = place / part
                found |= {place.with_suffix(".py"), place / "__init__.py"}
    return {p for p in found if p.is_file() and p.is_relative_to(root)}


@dataclass(frozen=True)
class FileConfig:
    """As much of a configuration as the network tells without running.

    Attributes:
        neuron: as in :class:`AdaptedConfig`.
    """

    neuron: LIFParams | None


def _made(name: str, given: dict[str, Any], seed: int | None) -> nn.Module:
    function = _function(name)
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [n for n in given if n not in parameters and n not in _FALLBACK]
    if unknown and not open_ended:
        raise ModelError(f"{name} has no argument {', '.join(unknown)}")
    accepted = {n: value for n, value in given.items() if open_ended or n in parameters}
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            network = function(**accepted)
    except SpikedimError:
        raise
    except Exception as error:
        raise ModelError(f"{name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def _function(name: str) -> Callable[..., Any]:
    path, attribute = _path(name), name.rpartition(":")[2]
    function = getattr(_module(path), attribute, None)
    if not callable(function):
        raise ModelError(f"{path} has no function {attribute}; --model FILE.py:FUNCTION names one")
    return cast(Callable[..., Any], function)


def _path(name: str) -> Path:
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise ModelError(f"file {path} of model {name!r} does not exist; check the path")
    return path.resolve()


def _module(path: Path) -> Any:
    key = path, path.stat().st_mtime_ns
    if key not in _LOADED:
        module_name = f"spikedim_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        sys.path.insert(0, str(path.parent))  # it may import its neighbours
        try:
            spec.loader.exec_module(module)
        except SpikedimError:
            raise
        except Exception as error:
            raise ModelError(f"{path} fails: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(path.parent))
        _LOADED[key] = module
    return _LOADED[key]


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
