"""Outputs of the modules of adapted networks, which work in several layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.errors import ModelError
from spikedim.models.base import SpikingModel, evaluating


def visit_outputs(
    model: SpikingModel,
    x: Tensor,
    T: int | None,
    sink: Callable[[str, Tensor], None],
    modules: Mapping[str, nn.Module],
    batch_size: int,
    axis: int,
) -> dict[str, str]:
    """Hand over the outputs of modules as [T, B, tokens..., channels], batch by batch.

    A module may see all timesteps in one call, [T, B, ...] ([B, T, ...] in layout ``"BT"``) or in
    one axis; one timestep a call; or be called once for all of them. Images are channels first. Of
    a tuple the first element counts, as for neurons that return their potential too.

    Args:
        model: an adapted network, run in eval mode.
        x, T: as for :meth:`SpikingModel.steps`.
        sink: called as ``sink(name, value)``.
        modules: by path.
        batch_size: samples per forward pass.
        axis: that of the samples in ``x``.

    Returns:
        Why a module was left out, by name.

    Raises:
        ModelError: the input does not fit, or an output is not finite.
    """
    left_out: dict[str, str] = {}
    device = next(model.parameters()).device
    if model.config.layout == "BT":
        batch_size = 1  # no module's order of samples and timesteps can be mistaken
    for batch in x.split(batch_size, axis):
        seen: dict[str, list[Any]] = {}  # in order of execution
        with ExitStack() as stack:
            for name, module in modules.items():
                stack.callback(module.register_forward_hook(_keep(seen, name)).remove)
            stack.enter_context(evaluating(model))
            with torch.no_grad():
                steps = len(model.steps(batch.to(device), T))
        left_out |= {name: "does not run" for name in modules if name not in seen}
        for name, outputs in seen.items():
            value = _read(outputs, steps, batch.shape[axis], model.config.layout)
            if isinstance(value, str):
                left_out[name] = value
            elif not torch.isfinite(value).all():
                raise ModelError(
                    f"{name} gives NaN or infinite values; check the weights and the input"
                )
            else:
                sink(name, value)
    return left_out


def _keep(seen: dict[str, list[Any]], name: str) -> Callable[..., None]:
    return lambda module, inputs, output: seen.setdefault(name, []).append(output)


def _read(outputs: list[Any], T: int, B: int, layout: str) -> Tensor | str:
    """[T, B, tokens..., channels], or why it cannot be read as that."""
    outputs = [out[0] if isinstance(out, (tuple, list)) and out else out for out in outputs]
    if not all(isinstance(out, Tensor) for out in outputs):
        return f"gives a {type(outputs[0]).__name__}"
    value: Tensor = outputs[0]
    if len(outputs) > 1 or layout == "step":
        if len(outputs) != T:
            return f"runs {len(outputs)} times in {T} timesteps"
        value = torch.stack(outputs)
    elif layout == "BT" and value.shape[:2] == (B, T):
        value = value.transpose(0, 1)
    elif value.shape[:2] != (T, B) and len(value) == T * B:
        value = value.unflatten(0, (T, B))
    elif value.shape[:2] != (T, B) and len(value) == B:
        value = value.expand(T, *value.shape)
    if value.shape[:2] != (T, B) or not 3 <= value.ndim <= 5:
        return f"gives shape {tuple(outputs[0].shape)}"
    return value.movedim(2, -1) if value.ndim == 5 else value
