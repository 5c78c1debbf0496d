"""Running statistics from data, without training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from spikedim.errors import DataError
from spikedim.models.base import SpikingModel
from spikedim.models.features import batch_axis


def brings_statistics(model: SpikingModel) -> bool:
    """Whether some running statistics of the network are not the initial ones.

    Such a network was trained or calibrated: its weights belong to its statistics, which other
    ones must not replace.
    """
    for keeper in _keepers(model):
        fresh = copy.deepcopy(keeper, {id(p): p for p in keeper.parameters()})
        fresh.reset_running_stats()
        pairs = zip(keeper.buffers(recurse=False), fresh.buffers(recurse=False), strict=True)
        if not all(torch.equal(own, initial) for own, initial in pairs):
            return True
    return False


def settle_batchnorm(
    model: SpikingModel, batches: Iterable[Tensor], T: int | None = None
) -> tuple[bool, str]:
    """:func:`calibrate_batchnorm`, unless the network :func:`brings_statistics` of its own.

    Args:
        model: the network, which ends in eval mode.
        batches, T: as for :func:`calibrate_batchnorm`; not read where they are not needed.

    Returns:
        Whether the network was taken as it is, and which of the two happened, in words.

    Raises:
        DataError: as :func:`calibrate_batchnorm`.
    """
    if brings_statistics(model):
        model.eval()
        return True, "batch norm as the network brings it"
    if not _keepers(model):
        model.eval()
        return False, "no batch norm to calibrate"
    seen = 0

    def counted() -> Iterator[Tensor]:
        nonlocal seen
        for batch in batches:
            seen += batch.shape[batch_axis(batch)]
            yield batch

    calibrate_batchnorm(model, counted(), T)
    return False, f"batch norm calibrated on {seen:,} samples"


def calibrate_batchnorm(
    model: SpikingModel, batches: Iterable[Tensor], T: int | None = None
) -> None:
    """Replace the running statistics of every batch norm by their mean over ``batches``.

    A network with fresh weights stays silent in eval mode until this is done: the initial
    statistics (mean 0, variance 1) leave the membrane far below threshold. The firing rates that
    a SpikingResformer scales its attention by are running statistics too and are replaced
    likewise. The network ends in eval mode; weights and momenta are unchanged.

    Args:
        model: the network.
        batches: inputs of :meth:`SpikingModel.steps`, weighted equally; use equal sizes.
        T: timesteps of static inputs.

    Raises:
        DataError: there is no batch, or one makes a statistic that is not finite.
    """
    keepers = _keepers(model)
    momenta = [keeper.momentum for keeper in keepers]
    buffers = [buffer for keeper in keepers for buffer in keeper.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    seen, finished = 0, False
    model.train()
    try:
        for keeper in keepers:
            keeper.reset_running_stats()
            keeper.momentum = None
        with torch.no_grad():
            for batch in batches:
                model.steps(batch, T)
                seen += 1
        if not seen:
            raise DataError("no batch to calibrate batch norm with; give at least one")
        if not all(torch.isfinite(buffer).all() for buffer in buffers):
            raise DataError(
                "batch-norm statistics are not finite: an input holds NaN or infinity, "
                "or a batch has one value per channel"
            )
        finished = True
    finally:
        for keeper, momentum in zip(keepers, momenta, strict=True):
            keeper.momentum = momentum
        if not finished:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        model.eval()


def _keepers(model: SpikingModel) -> list[Any]:
    """Modules with batch norm's protocol: reset_running_stats(), momentum=None for the mean."""
    return [m for m in model.modules() if hasattr(m, "reset_running_stats")]
