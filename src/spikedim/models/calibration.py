"""Running statistics from data, without training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikedim.errors import DataError
from spikedim.models.base import SpikingModel
from spikedim.models.registry import is_file


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
    # Batch norm's protocol: reset_running_stats(), and momentum=None for the mean over batches.
    keepers: list[Any] = [m for m in model.modules() if hasattr(m, "reset_running_stats")]
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


def weights_in_words(
    name: str, checkpoint: str | Path | None, samples: int, T: int | None = None
) -> str:
    """Which weights a network has that was not trained here, for beside its figures.

    Args:
        name: of the network, or FILE.py:FUNCTION.
        checkpoint: whose weights it has; ``None`` where its batch norm was calibrated instead.
        samples: training samples that it was calibrated on.
        T: timesteps that it was calibrated at; ``None`` for each T anew.
    """
    if checkpoint is not None:
        return f"weights of {Path(checkpoint).name}"
    at = "each T" if T is None else f"T = {T}"
    weights = f"weights as {name} makes them" if is_file(name) else "untrained"
    return f"{weights}, batch norm calibrated at {at} on {samples} training samples"
