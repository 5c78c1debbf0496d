"""Batch-norm statistics from data, without training."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikedim.errors import DataError
from spikedim.models.base import SpikingModel


def calibrate_batchnorm(
    model: SpikingModel, batches: Iterable[Tensor], T: int | None = None
) -> None:
    """Replace the running statistics of every batch norm by their mean over ``batches``.

    A network with fresh weights stays silent in eval mode until this is done: the initial
    statistics (mean 0, variance 1) leave the membrane far below threshold. The network ends in
    eval mode; weights and momenta are unchanged.

    Args:
        model: the network.
        batches: inputs of :meth:`SpikingModel.steps`, weighted equally; use equal sizes.
        T: timesteps of static inputs.

    Raises:
        DataError: there is no batch, or one makes a statistic that is not finite.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    before = copy.deepcopy([norm.state_dict() for norm in norms])
    seen, finished = 0, False
    model.train()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for batch in batches:
                model.steps(batch, T)
                seen += 1
        if not seen:
            raise DataError("no batch to calibrate batch norm with; give at least one")
        if not all(torch.isfinite(m.running_var).all() for m in norms if m.running_var is not None):
            raise DataError(
                "batch-norm statistics are not finite: an input holds NaN or infinity, "
                "or a batch has one value per channel"
            )
        finished = True
    finally:
        for norm, momentum, state in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not finished:
                norm.load_state_dict(state)
        model.eval()
