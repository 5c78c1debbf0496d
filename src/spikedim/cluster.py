"""Work on a Ray cluster: joining it, and its faults as one clear error."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spikedim.errors import ConfigError, SpikedimError

ENGINES = ("local", "ray")
_PATIENCE_S = 10.0


def fetch(ray: Any, reference: Any, fault: Callable[[str], SpikedimError]) -> Any:
    """Result of a remote task.

    Args:
        ray: as :func:`connected` gives it.
        reference: of the task.
        fault: makes the error to raise from what Ray says where a worker or its data are lost.

    Raises:
        SpikedimError: what the task raised, or ``fault``.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SpikedimError):
            raise error.cause from None
        if isinstance(error.cause, ray.exceptions.RayError):
            raise fault(_last_line(error.cause)) from error
        raise
    except ray.exceptions.RayError as error:
        raise fault(_last_line(error)) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray joined for the length of the block; a connection that was open before stays open."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine='ray' needs Ray, which is not installed; pip install spikedim[ray]"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers}
    _check_reachable(address)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(options if address is None else {}),
        )
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"cannot join Ray at {address or 'local'}: {text}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Fail within seconds where nobody listens; Ray itself tries for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(
            f"cannot join Ray at {address}: {error}; start it there with 'ray start --head'"
        ) from error
