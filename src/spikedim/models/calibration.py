"""Running statistics from data, without training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spikedim.errors import DataError
from spikedim.models.base import SpikingModel
from spikedim.models.registry import is_file

BatchNorm = Literal["fresh", "own", "absent"]


def batchnorm_of(model: SpikingModel) -> BatchNorm:
    """Whether a network needs :func:`calibrate_batchnorm`: its running statistics are ``"fresh"``.

    ``"own"`` statistics, of which some are not the initial ones, were trained or calibrated: the
    weights belong to them, others must not replace them. ``"absent"``: it keeps none.
    """
    keepers = _keepers(model)
    for keeper in keepers:
        fresh = copy.deepcopy(keeper, {id(p): p for p in keeper.parameters()})
        fresh.reset_running_stats()
        pairs = zip(keeper.buffers(recurse=False), fresh.buffers(recurse=False), strict=True)
        if not all(torch.equal(mine, initial) for mine, initial in pairs):
            return "own"
    return "fresh" if keepers else "absent"


def settle_batchnorm(
    model: SpikingModel, batches: Iterable[Tensor], T: int | None = None
) -> BatchNorm:
    """:func:`calibrate_batchnorm` where :func:`batchnorm_of` is ``"fresh"``.

    Args:
        model: the network, which ends in eval mode.
        batches, T: as for :func:`calibrate_batchnorm`; not read where they are not needed.

    Returns:
        What batch norm was found.

    Raises:
        DataError: as :func:`calibrate_batchnorm`.
    """
    found = batchnorm_of(model)
    if found == "fresh":
        calibrate_batchnorm(model, batches, T)
    model.eval()
    return found


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


def is_trained(
    name: str, checkpoint: str | Path | None, batchnorm: BatchNorm = "fresh"
) -> bool | None:
    """Whether a network that was not trained here is trained; ``None`` where only its file knows.

    Args:
        name, checkpoint, batchnorm: as for :func:`weights_in_words`. Batch norm of its own comes
            from training; a function of a file may load weights without any.
    """
    if checkpoint is not None or batchnorm == "own":
        return True
    return None if is_file(name) else False


def weights_in_words(
    name: str,
    checkpoint: str | Path | None,
    samples: int,
    T: int | None = None,
    batchnorm: BatchNorm = "fresh",
) -> str:
    """Which weights a network has that was not trained here, for beside its figures.

    Args:
        name: of the network, or FILE.py:FUNCTION.
        checkpoint: whose weights it has, if any.
        samples: training samples that it was calibrated on.
        T: timesteps that it was calibrated at; ``None`` for each T anew.
        batchnorm: what it was built with; only a fresh one was calibrated.
    """
    if checkpoint is not None:
        return f"weights of {Path(checkpoint).name}"
    weights = f"weights as {name} makes them" if is_file(name) else "untrained"
    if batchnorm == "own":
        return f"{weights}, batch norm as the network brings it"
    if batchnorm == "absent":
        return f"{weights}, no batch norm"
    at = "each T" if T is None else f"T = {T}"
    return f"{weights}, batch norm calibrated at {at} on {samples} training samples"


def _keepers(model: SpikingModel) -> list[Any]:
    """Modules with batch norm's protocol: reset_running_stats(), momentum=None for the mean."""
    return [m for m in model.modules() if hasattr(m, "reset_running_stats")]
