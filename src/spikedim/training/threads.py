"""How many math threads a training gets: settled by network and cores, so that numbers repeat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spikedim.models import create_model, model_entry

#: Networks below this many parameters count as small: another thread does not speed them up.
SMALL_PARAMETERS = 1_000_000


def cores() -> int:
    """Cores this process may run on, which a container or scheduler can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parameter_count(model_name: str) -> int:
    """Parameters of a registered network.

    Raises:
        ModelError: unknown model.
    """
    known = model_entry(model_name).parameters
    if known is not None:
        return known
    return sum(p.numel() for p in create_model(model_name).parameters())


def threads_for(parameters: int, running: int = 1) -> int:
    """Math threads of a network: one for a small one, else its share of the cores.

    Args:
        parameters: of the network.
        running: trainings at once.
    """
    return 1 if parameters < SMALL_PARAMETERS else max(1, cores() // running)


@contextmanager
def math_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
