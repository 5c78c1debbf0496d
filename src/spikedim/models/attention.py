"""What a network attends to: its attention maps by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikedim.errors import ModelError
from spikedim.models.base import SpikingModel, evaluating
from spikedim.models.blocks import SpikeProduct


def attention_maps(model: SpikingModel, x: Tensor, T: int | None = None) -> dict[str, Tensor]:
    """Attention of every block, as the network computes it.

    What a map is depends on the family:

    - products of spike trains (Spikformer, QKFormer's last stage, Meta-SpikeFormer): scale·q kᵀ,
      [T, B, heads, N, N], rows are queries, values are whole multiples of the scale;
    - softmax (SpikingBERT): its weights, [T, B, heads, N, N];
    - SpikingResformer: the binary map, [T, B, heads, pixels, patches];
    - QKFormer's token attention and the Spike-driven Transformer have no pairs: the binary mask of
      tokens [T, B, H, W, heads], or of channels [T, B, D].

    Args:
        model: the network; run in eval mode without gradients.
        x, T: as for :meth:`SpikingModel.forward`.

    Returns:
        By the path of the module that computes it, in the order they run.

    Raises:
        ModelError: the network has no attention known here (SpikeGPT mixes along a recurrence).
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, SpikeProduct):
                maps[name] = inputs[0] @ inputs[1].mT * module.scale
            else:
                maps[name] = output

        return hook

    masks = {
        f"{path}.{module.attention_map}" if path else module.attention_map
        for path, module in model.named_modules()
        if isinstance(getattr(module, "attention_map", None), str)
    }
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in masks or isinstance(module, SpikeProduct | nn.Softmax)
    ]
    try:
        with torch.no_grad(), evaluating(model):
            model(x, T)
    finally:
        for handle in handles:
            handle.remove()
    if not maps:
        raise ModelError(f"{type(model).__name__} computes no attention maps")
    return maps
