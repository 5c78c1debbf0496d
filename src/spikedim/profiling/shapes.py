"""Operations of a network from its shapes alone: no weights, no data, no arithmetic."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from spikedim.models import create_model, model_entry
from spikedim.models.base import SpikingModel, evaluating
from spikedim.profiling.assemble import operation_names
from spikedim.profiling.counter import Counter


@dataclass(frozen=True)
class OperationShape:
    """One operation, per sample and timestep.

    Attributes:
        layer, operation: where.
        product: both operands are activations.
        stem: it runs ahead of the first spiking layer.
        dense: MACs, padding included.
        inside: the same without padding.
        weights: weights read.
    """

    layer: str
    operation: str
    product: bool
    stem: bool
    dense: int
    inside: int
    weights: int


@dataclass(frozen=True)
class Shapes:
    """A network by its shapes.

    Attributes:
        operations: in order of execution.
        neurons: spiking neurons, all layers.
    """

    operations: tuple[OperationShape, ...]
    neurons: int

    def macs(self, *, stem: bool | None = None, product: bool | None = None) -> int:
        """Dense MACs per timestep of the operations of that sort (``None``: either)."""
        return sum(
            o.dense
            for o in self.operations
            if stem in (None, o.stem) and product in (None, o.product)
        )


def shapes(model: str | SpikingModel, size: int | None = None) -> Shapes:
    """Count the operations of one timestep without computing anything.

    The network runs on PyTorch's meta device, where tensors have shapes and no values, so that
    the largest published networks take a second and no memory.

    Args:
        model: a registered name, or a network (which is copied, not changed).
        size: height and width of the frame, for a registered vision network.

    Raises:
        ModelError: unknown name, or a size the network cannot take.

    Example:
        >>> found = shapes("spikformer_8_512_imagenet")
        >>> round(found.macs(product=False) / 1e9, 3)
        8.257
    """
    if isinstance(model, str):
        native = tuple(getattr(model_entry(model).config, "input_shape", ()))
        frame: tuple[int, int, int] | None = None
        if size is not None and len(native) == 3 and native[1:] != (size, size):
            frame = (native[0], size, size)
        with torch.device("meta"):
            network = create_model(model, seed=None, input_shape=frame)
    else:
        network = copy.deepcopy(model).to("meta")
    shape: tuple[int, ...] = tuple(network.input_shape)
    tokens = len(shape) == 1
    if network.reads_in_time:
        shape = (2,)  # of tokens, which all cost the same
    x = torch.empty(1, *shape, device="meta", dtype=torch.long if tokens else torch.float32)
    T = shape[0] if network.reads_in_time else 1
    counter = Counter(network, T)
    with evaluating(network), torch.no_grad(), counter.batch(1):
        network.steps(x, T)
    records = list(counter.operations.values())
    operations = tuple(
        OperationShape(
            record.layer,
            name,
            record.product,
            record.stem,
            round(record.dense / T),
            round(record.inside / T),
            round(record.size(2) / record.copies),
        )
        for record, name in zip(records, operation_names(records), strict=True)
    )
    return Shapes(operations, round(sum(r.elements for r in counter.neurons.values()) / T))
