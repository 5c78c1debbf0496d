"""What a network turns its input into, layer by layer, as vectors.

Neuron layers give spikes, potentials before reset and firing rates; any module gives its output.
Every value is brought to ``[T, B, tokens..., channels]``, channels last: the stem of a Spikformer
is [T, B, H, W, C], a block [T, B, N, C], the head [T, B, classes] without tokens. :class:`Axes`
says how tokens and timesteps become samples and features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, ModelError
from spikedim.models.adapted import visit_outputs
from spikedim.models.base import SpikingModel, check_finite, evaluating, foreign
from spikedim.neurons import LIF
from spikedim.progress import note, track

QUANTITIES = ("spikes", "potential", "rates", "features")
TOKENS = ("flatten", "samples", "mean")
TIMES = ("mean", "flatten", "samples", "each")

Sink = Callable[[str, Tensor], None]
_ON_IMAGES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Axes:
    """How the token and time axes are read.

    Args:
        tokens: ``"flatten"`` (one vector of all tokens per sample), ``"samples"`` (every token is
            a sample) or ``"mean"`` (mean over tokens).
        time: ``"mean"`` over timesteps, ``"flatten"`` (steps side by side in one vector),
            ``"samples"`` (every step is a sample) or ``"each"`` (one measurement per step).

    Raises:
        ConfigError: another word.
    """

    tokens: str = "flatten"
    time: str = "mean"

    def __post_init__(self) -> None:
        for name, value, known in (("tokens", self.tokens, TOKENS), ("time", self.time, TIMES)):
            if value not in known:
                raise ConfigError(f"{name}={value!r}; expected one of {', '.join(known)}")

    def arrange(self, value: Tensor) -> Tensor:
        """[T, B, tokens..., C] to float32 [measurements, B, rows per sample, features].

        There is one measurement, or T of them with ``time="each"``; token and time features run
        with the channel fastest, then the token, then the step.
        """
        x = value.float()
        x = x.unsqueeze(2) if x.ndim == 3 else x.flatten(2, -2)  # [T, B, N, C]
        if self.time == "mean":
            x = x.mean(0, keepdim=True)  # [1, B, N, C]
        if self.tokens == "mean":
            x = x.mean(2, keepdim=True)  # [T, B, 1, C]
        elif self.tokens == "flatten":
            x = x.flatten(2).unsqueeze(2)  # [T, B, 1, N C]
        if self.time == "flatten":
            x = x.permute(1, 2, 0, 3).flatten(2).unsqueeze(0)  # [1, B, n, T c]
        elif self.time == "samples":
            x = x.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # [1, B, T n, c]
        return x


@dataclass(frozen=True)
class LayerShape:
    """Shape of one layer's values.

    Args:
        name: module path; later calls of the same module in one forward are ``name#2``, ...
        T: timesteps.
        grid: token axes, e.g. (H, W) in the stem, (N,) in a block, () without tokens.
        channels: length of the last axis.
    """

    name: str
    T: int
    grid: tuple[int, ...]
    channels: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return math.prod(self.grid)

    def arranged(self, axes: Axes) -> tuple[int, int, int]:
        """Measurements, rows per sample and features under ``axes``."""
        rows = self.tokens if axes.tokens == "samples" else 1
        width = self.channels * (self.tokens if axes.tokens == "flatten" else 1)
        if axes.time == "each":
            return self.T, rows, width
        times = self.T if axes.time in ("flatten", "samples") else 1
        return (1, rows * times, width) if axes.time == "samples" else (1, rows, width * times)


def visit(
    model: SpikingModel,
    x: Tensor,
    T: int | None,
    sink: Sink,
    *,
    what: str = "spikes",
    layers: str | Sequence[str] | None = None,
    batch_size: int = 16,
) -> dict[str, str]:
    """Run ``x`` through the network in batches and hand over every layer's values as they arise.

    Nothing is kept: memory is that of the forward pass of one batch. The network runs in eval
    mode without gradients and is left as found.

    Args:
        model: the network; calibrate or load it first, fresh batch norm keeps it silent.
        x: static frames [N, C, H, W], events [T, N, C, H, W], or token ids [N, S].
        T: timesteps, as in :meth:`SpikingModel.steps`.
        sink: called as ``sink(name, value)`` with ``value`` [T, B, tokens..., channels], batch by
            batch in the order of ``x``.
        what: ``"spikes"``, ``"potential"`` (before reset) or ``"rates"`` of neuron layers, or
            ``"features"``, the outputs of modules.
        layers: shell patterns of module paths, e.g. ``"block.*"`` (several: a sequence or
            comma-separated). By default all neuron layers; for features the top-level stages, so
            ``patch_embed`` (the stem), ``block.0``, ..., ``head``.
        batch_size: samples per forward pass; changes no value.

    Returns:
        Of an adapted network's features, why a module was left out, by name.

    Raises:
        ConfigError: unknown ``what``, no layer of that name, or a bad batch size.
        ModelError: the input does not fit, a value is not finite or has no [T, B, ...] reading.
        DataError: the input holds NaN or infinity.
    """
    modules = select_layers(model, what, layers)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: expected a whole number, 1 or more")
    axis = batch_axis(x)
    check_finite(x, axis)
    if what == "features" and model.family == "adapted":
        return visit_outputs(model, x, T, sink, modules, batch_size, axis)
    steps = _timesteps(model, x, T)
    images = {name for name, module in modules.items() if isinstance(module, _ON_IMAGES)}
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        for batch in track(x.split(batch_size, axis), "network"):
            size = batch.shape[axis]
            with _watching(modules, _checked(sink, steps, size, images), what):
                model.steps(batch.to(device), T)
    return {}


def layer_shapes(
    model: SpikingModel,
    x: Tensor,
    T: int | None,
    what: str = "spikes",
    layers: str | Sequence[str] | None = None,
) -> tuple[LayerShape, ...]:
    """Shapes of the layers :func:`visit` hands over, in order of execution, from two samples.

    Arguments and errors as :func:`visit`; also ModelError if none of the layers runs.
    """
    found: list[LayerShape] = []

    def take(name: str, value: Tensor) -> None:
        found.append(LayerShape(name, len(value), tuple(value.shape[2:-1]), value.shape[-1]))

    axis = batch_axis(x)
    check_finite(x, axis)
    few = x.narrow(axis, 0, min(2, x.shape[axis]))
    left_out = visit(model, few, T, take, what=what, layers=layers)
    reasons = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
    if not found:
        names = reasons or ", ".join(select_layers(model, what, layers))
        raise ModelError(f"none of the layers runs in a forward pass: {names}; choose others")
    if reasons:
        note(f"left out: {reasons}", topic="left out")
    return tuple(found)


def representations(
    model: SpikingModel,
    x: Tensor,
    T: int | None = None,
    what: str = "spikes",
    *,
    layers: str | Sequence[str] | None = None,
    tokens: str = "flatten",
    time: str = "mean",
    batch_size: int = 16,
) -> dict[str, np.ndarray]:
    """Layer → vectors float32 [rows, features], or [T, rows, features] with ``time="each"``.

    Rows of one sample are neighbours: sample i gives rows i·k to (i+1)·k − 1, k being the rows
    per sample. All arrays are held in memory; for more than fits see
    :func:`spikedim.design.layers.layer_dimensions`. Other arguments as :func:`visit` and
    :class:`Axes`; ``"rates"`` are the mean over time of spikes and need ``time="mean"``.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
        >>> found = representations(net, torch.rand(5, 1, 8, 8), 2, layers="block.0.attn.q_lif")
        >>> found["block.0.attn.q_lif"].shape
        (5, 2048)
    """
    axes = checked_axes(what, tokens, time)
    n = x.shape[batch_axis(x)]
    arrays: dict[str, np.ndarray] = {}
    for shape in layer_shapes(model, x, T, what, layers):
        count, rows, width = shape.arranged(axes)
        arrays[shape.name] = np.empty((count, n, rows, width), np.float32)
    filled = dict.fromkeys(arrays, 0)

    def keep(name: str, value: Tensor) -> None:
        block = axes.arrange(value).cpu().numpy()
        start = filled[name]
        arrays[name][:, start : start + block.shape[1]] = block
        filled[name] += block.shape[1]

    visit(model, x, T, keep, what=what, layers=layers, batch_size=batch_size)
    flat = {name: a.reshape(len(a), -1, a.shape[-1]) for name, a in arrays.items()}
    return flat if axes.time == "each" else {name: a[0] for name, a in flat.items()}


def checked_axes(what: str, tokens: str, time: str) -> Axes:
    """The axes, refused where they contradict ``what``.

    Raises:
        ConfigError: unknown words, or rates with another time than their mean.
    """
    if what not in QUANTITIES:
        raise ConfigError(f"what={what!r}; expected one of {', '.join(QUANTITIES)}")
    if what == "rates" and time != "mean":
        raise ConfigError(f"rates are means over time; time={time!r} needs what='spikes'")
    return Axes(tokens, time)


def select_layers(
    model: nn.Module, what: str, layers: str | Sequence[str] | None
) -> dict[str, nn.Module]:
    """Modules by path that ``what`` and the patterns ``layers`` choose; see :func:`visit`."""
    if what not in QUANTITIES:
        raise ConfigError(f"what={what!r}; expected one of {', '.join(QUANTITIES)}")
    if not isinstance(model, SpikingModel):
        raise ModelError(foreign(model))
    kind: type[nn.Module] = nn.Module if what == "features" else LIF
    known = {name: m for name, m in model.named_modules() if name and isinstance(m, kind)}
    if not known:
        raise ModelError(f"{type(model).__name__} has no spikedim.neurons.LIF layer to record")
    if layers is None:
        return dict(_stages(model)) if what == "features" else known
    patterns = layers.split(",") if isinstance(layers, str) else list(layers)
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matched = {n: m for n, m in known.items() if fnmatchcase(n, pattern.strip())}
        if not matched:
            near = get_close_matches(pattern, known, n=3, cutoff=0.3) or list(known)[:3]
            noun = "module" if what == "features" else "neuron layer"
            raise ConfigError(f"no {noun} matches {pattern!r}; for instance: {', '.join(near)}")
        chosen.update(matched)
    return chosen


def batch_axis(x: Any) -> int:
    """0 for static frames [N, C, H, W] and token ids [N, S], 1 for events [T, N, C, H, W]."""
    ids = isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point()
    if not ids and (not isinstance(x, Tensor) or x.ndim not in (4, 5)):
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ModelError(
            f"input is {what}; expected a tensor [N, C, H, W] or [T, N, C, H, W], or token ids "
            "[N, S] of a text network"
        )
    return int(x.ndim == 5)


def _stages(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from _stages(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _timesteps(model: SpikingModel, x: Tensor, T: int | None) -> int:
    if x.ndim == 5:
        return len(x)
    if x.ndim == 2 and model.reads_in_time:
        return x.shape[1]
    return model.default_timesteps if T is None else T


def _checked(sink: Sink, T: int, batch: int, images: set[str]) -> Sink:
    """Number repeated calls, bring values to [T, B, ..., C] and refuse those not finite."""
    calls: dict[str, int] = {}

    def receive(name: str, value: Tensor) -> None:
        call = calls[name] = calls.get(name, 0) + 1
        key = name if call == 1 else f"{name}#{call}"
        if not isinstance(value, Tensor):
            raise ModelError(f"{key} gives a {type(value).__name__}, not a tensor; choose another")
        steps = _steps_first(key, value, T, batch, name in images)
        if not torch.isfinite(steps).all():
            raise ModelError(f"{key} gives NaN or infinite values; check the weights and the input")
        sink(key, steps)

    return receive


def _steps_first(name: str, value: Tensor, T: int, batch: int, images: bool) -> Tensor:
    """[T, B, ..., C] from the layouts that layers work in.

    Time and batch may be one axis: [T B, C, H, W] (2-D layers, channels first), [T B N, C]
    (layers on tokens), or [B, C, H, W] and [B, N, C], computed once for all steps of a static
    input.
    """
    rows = value.shape[0] if value.ndim else 0
    if not images and value.ndim >= 3 and value.shape[:2] == (T, batch):
        return value
    if value.ndim == 4 and rows in (T * batch, batch):
        value = value.permute(0, 2, 3, 1)
        if rows == batch:
            return value.expand(T, *value.shape)
        return value.unflatten(0, (T, batch))
    if value.ndim == 3 and rows == batch:  # tokens computed once for all steps
        return value.expand(T, *value.shape)
    if value.ndim == 2 and rows and rows % (T * batch) == 0:
        return value.unflatten(0, (T, batch, -1))
    raise ModelError(
        f"{name} gives shape {tuple(value.shape)}; expected [T, B, ..., C] with T={T}, B={batch}, "
        "or time and batch in one axis; choose another module"
    )


@contextmanager
def _watching(modules: dict[str, nn.Module], receive: Sink, what: str) -> Iterator[None]:
    """Call ``receive`` with the values of ``modules`` while the network runs."""
    with ExitStack() as stack:
        for name, module in modules.items():
            if what == "features":
                hook = module.register_forward_hook(_hook(receive, name))
                stack.callback(hook.remove)
            else:
                assert isinstance(module, LIF)
                observer = _observer(receive, name, what)
                module.observe(observer, potential=what == "potential")
                stack.callback(module.unobserve, observer)
        yield


def _hook(receive: Sink, name: str) -> Callable[..., None]:
    return lambda module, inputs, output: receive(name, output)


def _observer(receive: Sink, name: str, what: str) -> Callable[..., None]:
    def observe(spikes: Tensor, potential: Tensor | None) -> None:
        value = potential if what == "potential" else spikes
        assert value is not None
        receive(name, value)

    return observe
