"""Where a network's attention projects its heads, and what runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.models import SpikingModel
from spikedim.models.base import evaluating

UNKNOWN = "No attention with a known output projection, as registered networks have: left out."


@dataclass(frozen=True)
class Site:
    """One attention whose heads lie side by side in front of an output projection.

    Attributes:
        name: module path of the attention.
        module: the attention; ``module.output_projection`` names the projection inside it.
        heads: H.
    """

    name: str
    module: nn.Module
    heads: int

    @property
    def projection(self) -> nn.Module:
        """The map from heads side by side to tokens; affine in eval mode."""
        layer: nn.Module = getattr(self.module, str(self.module.output_projection))
        return layer


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every attention of a network that names its output projection, in order.

    Registered networks do; of adapted and converted ones the projection is not known.
    """
    return tuple(
        Site(name, module, int(module.heads))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "output_projection", None), str)
    )


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Remove hooks when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: nn.Module, x: Tensor, T: int | None) -> Tensor:
    """Output in eval mode without gradients: logits [T, B, classes] of a spiking network."""
    with torch.no_grad(), evaluating(model):
        out: Tensor = model.steps(x, T) if isinstance(model, SpikingModel) else model(x)
    return out


def residuals(model: SpikingModel, x: Tensor, T: int | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Stream X before every attention and what attention adds to it, [T, B, n, d] each.

    By attention; in SpikingBERT the update is W_o C of LN(W_o C + X).
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    modules = dict(model.named_modules())
    handles: list[Any] = []
    for site in sites(model):
        name = site.name
        if model.reads_in_time:  # x + lif1(att(ln1(x))), [S, B, E]
            block: Any = modules[name.rpartition(".")[0]]
            handles += _pair(found, name, block.ln1, 0, block.lif1, _sequence)
        elif model.family == "spikingbert":
            handles += _pair(found, name, site.module, 1, site.projection, _grid)
        else:
            handles += _pair(found, name, site.module, 0, site.module, _grid)
    with hooked(*handles):
        run(model, x, T)
    if model.family == "spikingresformer":  # its attention adds its input itself
        found = {name: (a, b - a) for name, (a, b) in found.items()}
    return found


def _pair(
    found: dict[str, tuple[Tensor, Tensor]],
    name: str,
    before: nn.Module,
    argument: int,
    after: nn.Module,
    shaped: Callable[[Tensor], Tensor],
) -> tuple[Any, Any]:
    """Keep the input of one module and the output of another."""
    kept: list[Tensor] = []

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept[:] = [shaped(inputs[argument])]

    def give(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        found[name] = (kept[0], shaped(output).reshape(kept[0].shape))

    return before.register_forward_pre_hook(take), after.register_forward_hook(give)


def _grid(x: Tensor) -> Tensor:
    return x.flatten(2, -2)  # [T, B, n, d]


def _sequence(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]  # [S, B, E] to [1, B, S, E]
