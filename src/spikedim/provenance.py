"""Where a number came from: versions, platform, seed, configuration and data fingerprint."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

_PACKAGES = ("spikedim", "torch", "numpy", "scipy", "scikit-learn", "lightning")


@dataclass(frozen=True)
class Provenance:
    """Everything needed to obtain the same numbers again.

    Two runs that differ only in ``created`` and ``platform`` are the same experiment.
    """

    seed: int | None
    config: dict[str, Any]
    data_fingerprint: str | None
    versions: dict[str, str]
    platform: str
    command: str
    created: str
    device: str = "cpu"
    notes: tuple[str, ...] = field(default_factory=tuple)


def provenance(
    *,
    seed: int | None = None,
    config: dict[str, Any] | None = None,
    data_fingerprint: str | None = None,
    device: str = "cpu",
    notes: tuple[str, ...] = (),
) -> Provenance:
    """Collect the provenance of a result computed now, in this process."""
    return Provenance(
        seed=seed,
        config=dict(config or {}),
        data_fingerprint=data_fingerprint,
        versions=versions(),
        platform=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        command=" ".join([_program(), *sys.argv[1:]]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        notes=notes,
    )


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    return "python -m spikedim" if name == "__main__.py" else name


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine the numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
