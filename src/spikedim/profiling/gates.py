"""Sanity gates: faults that make a spike or energy figure meaningless, found before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from spikedim.profiling.result import LayerProfile, OperationProfile

_MEND_BN = (
    "load a trained checkpoint, or run spikedim.models.calibrate_batchnorm(model, batches, T) "
    "before profiling"
)


@dataclass(frozen=True)
class Finding:
    """One fault of one layer.

    Attributes:
        gate: ``dead``, ``saturated``, ``uncalibrated-batchnorm``, ``non-binary``, ``real-input``,
            ``integer-input``, ``uncounted``.
        severity: ``error`` (the figures describe no working network, or not all of it),
            ``warning`` or ``note``.
        layer: the layer at fault.
        message: what was found.
        mend: what to do.
    """

    gate: str
    severity: str
    layer: str
    message: str
    mend: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.message}; {self.mend}"


def spike_gates(layers: Iterable[LayerProfile], saturation: float) -> list[Finding]:
    """Dead, saturated and non-binary spiking layers."""
    found = []
    for layer in layers:
        rate = layer.rate.value
        if layer.output != "binary":
            found.append(
                Finding(
                    "non-binary",
                    "warning" if layer.output == "integer" else "error",
                    layer.name,
                    f"{layer.type} emits {layer.output} values where spikes (0 or 1) are expected",
                    "turn smoothing off (LIFParams(smooth=False)), or read its figures as graded",
                )
            )
        if rate == 0:
            found.append(
                Finding(
                    "dead",
                    "error",
                    layer.name,
                    f"no spike from {layer.neurons:,} neurons in any sample or step",
                    "lower the threshold, or calibrate the BatchNorm before it",
                )
            )
        elif rate > saturation:
            found.append(
                Finding(
                    "saturated",
                    "warning",
                    layer.name,
                    f"{rate:.0%} of neurons fire at every step (gate: {saturation:.0%})",
                    "raise the threshold, or calibrate the BatchNorm before it",
                )
            )
    return found


def operation_gates(operations: Iterable[OperationProfile]) -> list[Finding]:
    """Weighted layers behind the first neuron that receive real values or integers, not spikes."""
    behind = [o for o in operations if o.coincident is None and not o.before_neurons]
    found = [
        Finding(
            "real-input",
            "note",
            operation.layer,
            f"{operation.operation} runs on real values behind the first spiking layer",
            "it is charged as MACs; place a spiking layer before it if it has to be event-driven",
        )
        for operation in behind
        if operation.inputs == ("real",)
    ]
    integer = [o.layer for o in behind if o.inputs in (("integer",), ("ternary",))]
    if integer:
        others = f", as do {', '.join(integer[1:])}" if len(integer) > 1 else ""
        found.append(
            Finding(
                "integer-input",
                "note",
                integer[0],
                f"it receives whole numbers (sums of spikes), not spikes{others}",
                "conventions differ most here: compare nonzero events, unit spikes and MACs "
                "(paper-sop, integer-as-spikes, neurobench, spikingjelly)",
            )
        )
    return found


def uncounted_gates(operations: Mapping[str, str]) -> list[Finding]:
    """Operations without a counting rule that read weights, by the layer each first ran in."""
    return [
        Finding(
            "uncounted",
            "error",
            layer,
            f"{name} reads weights and has no counting rule: no energy includes its synapses",
            "give it one (spikedim.profiling.register_rule)",
        )
        for name, layer in operations.items()
    ]


def batchnorm_gates(model: nn.Module) -> list[Finding]:
    """BatchNorm layers whose running statistics never saw data."""
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        mean, variance = module.running_mean, module.running_var
        untouched = not torch.any(mean) and (variance is None or bool(torch.all(variance == 1)))
        tracked = module.num_batches_tracked
        uncounted = tracked is not None and int(tracked) == 0
        if untouched:
            message = "BatchNorm statistics are at their initial values (mean 0, variance 1)"
            found.append(Finding("uncalibrated-batchnorm", "error", name, message, _MEND_BN))
        elif uncounted:
            message = (
                "BatchNorm has counted no batch (num_batches_tracked is 0), its values are set"
            )
            mend = f"ignore this if they came with the weights, else {_MEND_BN}"
            found.append(Finding("uncalibrated-batchnorm", "note", name, message, mend))
    return found
