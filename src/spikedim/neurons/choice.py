"""Which implementation runs a LIF layer."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from spikedim.errors import ConfigError
from spikedim.neurons.params import LIFParams
from spikedim.results import Result

KERNELS: tuple[str, ...] = ("fused", "reference")
VARIABLE = "SPIKEDIM_KERNEL"


@dataclass(frozen=True)
class KernelInfo(Result):
    """Which LIF kernel runs, and why.

    Args:
        kernel: the implementation that runs.
        reason: why this one.
        available: every implementation.
        variable: environment variable that overrides the automatic choice.
    """

    kernel: str
    reason: str
    available: tuple[str, ...] = KERNELS
    variable: str = VARIABLE


def kernel_info(params: LIFParams | None = None, kernel: str | None = None) -> KernelInfo:
    """Which kernel :func:`spikedim.neurons.lif` runs for these parameters.

    ``reference`` is a loop over steps differentiated by autograd; ``fused`` is one autograd
    Function with a hand-written reverse scan, equal in spikes bit for bit, and faster. Automatic:
    fused wherever it applies, and reference inside ``torch.compile``, which fuses the loop.
    Override by the argument ``kernel`` of ``lif`` or, process-wide, by the environment variable
    ``SPIKEDIM_KERNEL`` (``auto``, ``fused`` or ``reference``).

    Args:
        params: the neuron; ``None`` for the default one.
        kernel: an explicit request, as for ``lif``.

    Raises:
        ConfigError: unknown kernel, or an explicitly requested one that cannot run ``params``.
    """
    params = LIFParams() if params is None else params
    for asked, source in ((kernel, "argument kernel"), (os.environ.get(VARIABLE), VARIABLE)):
        if asked not in (None, "", "auto", *KERNELS):
            raise ConfigError(
                f"{source}={asked!r} is unknown; choose one of auto, {', '.join(KERNELS)}"
            )
        if asked == "fused" and params.smooth:
            if source == VARIABLE:
                break
            raise ConfigError("kernel='fused' emits spikes only; use 'reference' with smooth=True")
        if asked in KERNELS:
            return KernelInfo(asked, f"{source}={asked}")
        if asked == "auto":
            break
    if params.smooth:
        return KernelInfo("reference", "automatic: smooth outputs are not spikes")
    return KernelInfo("fused", "automatic: fastest kernel for these parameters")


def choose(params: LIFParams, kernel: str | None) -> str:
    """Name of the kernel to run; arguments and errors as :func:`kernel_info`."""
    if torch.compiler.is_compiling():  # a plain loop, which the compiler fuses
        return "reference"
    if kernel is None and VARIABLE not in os.environ:
        return "reference" if params.smooth else "fused"
    return kernel_info(params, kernel).kernel
