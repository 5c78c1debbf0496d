"""A first run of an adapted network: what it gives, and what it should not do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikedim.adapters.comparison import difference
from spikedim.adapters.neurons import AdaptedLIF
from spikedim.adapters.registry import how_to_register
from spikedim.errors import ModelError, SpikedimWarning
from spikedim.models.base import SpikingModel, evaluating

_T, _SAMPLES, _SCALE = 2, 3, 10.0
_MIXED = 0.05
_LAYOUTS = (
    "wrap(..., layout=...) says what one call takes: 'TB' [T, B, C, H, W], 'BT' [B, T, C, H, W], "
    "'step' one timestep [B, C, H, W] (as networks of snnTorch do), 'static' [B, C, H, W] that the "
    "network itself repeats"
)


def probe(model: SpikingModel, original: nn.Module, source: str, layout: str) -> int:
    """Run twice from rest and count the classes.

    Args:
        model: the adapted network.
        original: the network inside, called in ``layout``.
        source: what messages call it.

    Raises:
        ModelError: it does not run, a module remembers the first run, or samples are mixed.
    """
    weight = next(model.parameters(), None)
    if weight is None:
        raise ModelError(f"{source} has no parameters; there is nothing to measure")
    generator = torch.Generator().manual_seed(0)
    x = _SCALE * torch.randn(_SAMPLES, *model.input_shape, generator=generator)
    x = x.to(weight)
    seen: list[dict[tuple[str, str], Tensor]] = []
    outputs: list[Tensor] = []
    with evaluating(model), torch.no_grad(), _inputs(model) as inputs:
        for _ in range(2):
            try:
                outputs.append(model.steps(x, _T))
            except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
                raise ModelError(
                    f"{source} fails on frames {tuple(x.shape)} with layout="
                    f"{layout!r}: {_line(error)}; check input_shape and flatten; {_LAYOUTS}"
                ) from error
            seen.append(dict(_memories(original)))
    first, second = seen
    modules = {"": original, **dict(original.named_modules(remove_duplicate=False))}
    for (path, name), value in second.items():
        old = first.get((path, name))
        if old is None or old.shape != value.shape or not torch.equal(old, value):
            cls = type(modules[path])
            raise ModelError(
                f"{cls.__name__} at {path!r} keeps state between calls (attribute {name!r}): reset "
                "it with wrap(..., reset=function of the network) or, if it is a neuron, say what "
                f"it is:{how_to_register(cls.__name__)}"
            )
    _check_samples(model, x, outputs[0], outputs[1], source, layout)
    _compare(model, inputs)
    return int(outputs[0].shape[-1])


def _compare(model: SpikingModel, inputs: dict[AdaptedLIF, Tensor]) -> None:
    """Warn, once per class, of registered replacements that are other neurons."""
    told: dict[type, str] = {}
    for layer, current in inputs.items():
        (neuron,) = layer.stands_for
        if not told.get(type(neuron)):
            told[type(neuron)] = difference(neuron, layer, current)
    for text in filter(None, told.values()):
        warnings.warn(text, SpikedimWarning, stacklevel=4)
    for layer in _standing_in(model):
        layer.stands_for = ()


def _standing_in(model: SpikingModel) -> list[AdaptedLIF]:
    return [m for m in model.modules() if isinstance(m, AdaptedLIF) and m.stands_for]


@contextmanager
def _inputs(model: SpikingModel) -> Iterator[dict[AdaptedLIF, Tensor]]:
    """The first input of every layer that stands for a registered neuron."""
    found: dict[AdaptedLIF, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs) == 1:
            found.setdefault(cast(AdaptedLIF, layer), inputs[0])

    handles = [layer.register_forward_pre_hook(keep) for layer in _standing_in(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check_samples(
    model: SpikingModel, x: Tensor, out: Tensor, again: Tensor, source: str, layout: str
) -> None:
    """Refuse a network that mixes samples, as one does whose layout is another."""
    fits = out.shape[1] == _SAMPLES
    if fits and torch.equal(out, again):  # it draws no random numbers
        with evaluating(model), torch.no_grad():
            alone = model.steps(x[-1:], _T)  # the last, were samples read as timesteps
        # Of the order of the outputs themselves: a spike more by rounding does not count.
        fits = bool((alone - out[:, -1:]).abs().mean() <= _MIXED * out.abs().mean())
    if not fits:
        raise ModelError(
            f"the output of {source} for a sample depends on the other samples: its "
            f"layout is perhaps not {layout!r}; {_LAYOUTS}"
        )


def _memories(network: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Tensors that modules hold besides parameters."""
    for path, module in network.named_modules():
        if isinstance(module, AdaptedLIF):
            continue
        held = {**module.__dict__, **module._buffers, **module.__dict__.get("_memories", {})}
        for name, value in held.items():
            if isinstance(value, Tensor):
                yield (path, name), value.detach().clone()


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]
