"""Which implementation runs a LIF layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.neurons.params import LIFParams
from spikedim.results import Result

KERNELS: tuple[str, ...] = ("triton", "fused", "reference")
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


def kernel_info(
    params: LIFParams | None = None, kernel: str | None = None, x: Tensor | None = None
) -> KernelInfo:
    """Which kernel :func:`spikedim.neurons.lif` runs for these parameters.

    ``reference`` is a loop over steps differentiated by autograd. ``fused`` is one autograd
    Function with a hand-written reverse scan, equal in spikes bit for bit, and faster; ``triton``
    is the same with each scan as one GPU kernel, for float32 currents. Automatic: triton on a GPU
    where Triton is installed, fused elsewhere, and reference inside ``torch.compile``, which fuses
    the loop. Override by the argument ``kernel`` of ``lif`` or, process-wide, by the environment
    variable ``SPIKEDIM_KERNEL`` (``auto``, ``triton``, ``fused`` or ``reference``); where the
    variable names a kernel that cannot run, the choice is automatic.

    Args:
        params: the neuron; ``None`` for the default one.
        kernel: an explicit request, as for ``lif``.
        x: the currents; ``None`` for float32 on the GPU, where there is one.

    Raises:
        ConfigError: unknown kernel, or an explicitly requested one that cannot run ``params``
            or ``x``.
    """
    params = LIFParams() if params is None else params
    for asked, source in ((kernel, "argument kernel"), (os.environ.get(VARIABLE), VARIABLE)):
        if asked not in (None, "", "auto", *KERNELS):
            raise ConfigError(
                f"{source}={asked!r} is unknown; choose one of auto, {', '.join(KERNELS)}"
            )
        fault = _fault(asked, params, x)
        if fault:
            if source == VARIABLE:
                break
            raise ConfigError(fault)
        if asked in KERNELS:
            return KernelInfo(asked, f"{source}={asked}")
        if asked == "auto":
            break
    if params.smooth:
        return KernelInfo("reference", "automatic: smooth outputs are not spikes")
    if _on_gpu(x) and _fault("triton", params, x) is None:
        return KernelInfo("triton", "automatic: one GPU kernel per layer and direction")
    return KernelInfo("fused", "automatic: fastest kernel for these parameters")


def choose(params: LIFParams, kernel: str | None, x: Tensor) -> str:
    """Name of the kernel to run; arguments and errors as :func:`kernel_info`."""
    if torch.compiler.is_compiling():  # a plain loop, which the compiler fuses
        return "reference"
    if kernel is None and VARIABLE not in os.environ and not x.is_cuda:
        return "reference" if params.smooth else "fused"
    return kernel_info(params, kernel, x).kernel


def _fault(kernel: str | None, params: LIFParams, x: Tensor | None) -> str | None:
    """Why ``kernel`` cannot run this, if it cannot."""
    if kernel not in ("fused", "triton"):
        return None
    if params.smooth:
        return f"kernel={kernel!r} emits spikes only; use 'reference' with smooth=True"
    if kernel == "fused":
        return None
    if not _triton_found():
        return "kernel='triton' needs Triton, which is not installed; use 'fused'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (_on_gpu(x) or interpreted):
        return "kernel='triton' needs currents on a GPU; use 'fused'"
    if x is not None and x.dtype != torch.float32:
        return f"kernel='triton' takes float32 currents, not {x.dtype}; use 'fused'"
    return None


def _on_gpu(x: Tensor | None) -> bool:
    return torch.cuda.is_available() if x is None else x.is_cuda


@lru_cache(maxsize=1)
def _triton_found() -> bool:
    return find_spec("triton") is not None
