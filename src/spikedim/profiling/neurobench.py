"""NeuroBench: its keys in our export, and our energies as metrics inside its benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError
from spikedim.profiling.energy import Energy
from spikedim.profiling.records import NeuronRecord, OperationRecord
from spikedim.results import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from spikedim.profiling.conventions import EnergyConvention

_STATELESS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def neurobench_keys(
    model: nn.Module,
    neurons: Iterable[NeuronRecord],
    records: Sequence[OperationRecord],
    charged: Energy,
    accuracy: Estimate | None = None,
) -> dict[str, Any]:
    """The figures NeuroBench 2.3.0 reports, under the names of its metrics.

    ``SynapticOperations`` covers convolutions and linear layers alone, as there; ``Dense`` leaves
    out padding. ``ActivationSparsityByLayer`` is keyed by module path (NeuroBench uses the last
    part of it and merges equal ones).

    Args:
        model: for the static metrics.
        neurons: spiking layers.
        records: counted operations.
        charged: energy under the ``neurobench`` convention.
        accuracy: in percent, where labels were given.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, _STATELESS)]
    size = sum(w.numel() for w in weights)
    zeros = size - sum(int(torch.count_nonzero(w)) for w in weights if not w.is_meta)
    tensors = (*model.parameters(), *model.buffers())
    layers = {r.layer: 1 - r.nonzero / r.elements for r in neurons}
    fired = sum(r.nonzero for r in neurons)
    elements = sum(r.elements for r in neurons)
    keys: dict[str, Any] = {
        "ParameterCount": sum(p.numel() for p in model.parameters()),
        "Footprint": sum(t.numel() * t.element_size() for t in tensors),
        "ConnectionSparsity": round(zeros / size, 4) if size else 0.0,
        "ActivationSparsity": 1 - fired / elements if elements else 0.0,
        "ActivationSparsityByLayer": layers,
        "SynapticOperations": {
            "Effective_MACs": charged.macs,
            "Effective_ACs": charged.accumulates,
            "Dense": sum(r.inside for r in records if not r.product),
        },
    }
    if accuracy is not None:
        keys["ClassificationAccuracy"] = accuracy.value / 100
    return keys


def neurobench_model(net: nn.Module, T: int, forward: Any = None) -> Any:
    """A ``NeuroBenchModel`` that counts as it runs, for :func:`neurobench_metrics`.

    NeuroBench's own metrics work on it as on its ``TorchModel``; neurons registered with
    :func:`spikedim.profiling.register_neuron` are its activation layers.

    Args:
        net: as for :func:`spikedim.profiling.profile`.
        T: timesteps.
        forward: runs ``forward(net, batch, T)``; by default ``net(batch, T)`` gives the logits.

    Raises:
        ConfigError: neurobench is not installed; when run, a batch of several samples of a network
            with ``layout="BT"``.
    """
    base = _peer().models.NeuroBenchModel
    from spikedim.profiling.counter import Counter
    from spikedim.profiling.registry import neuron_types

    class CountedModel(base):  # type: ignore[misc, valid-type]
        """Runs a network under the operation counter."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net.eval()
            self.T, self.static = T, True
            self.counter = Counter(net, T)
            for kind in neuron_types():
                self.add_activation_module(kind)

        def __net__(self) -> nn.Module:
            return self.net

        def __call__(self, batch: Tensor) -> Any:
            self.static = batch.ndim < 5
            size = len(batch) if self.static else batch.shape[1]
            if self.counter.layout == "BT" and size > 1:
                raise ConfigError("a network with layout='BT' is counted one sample a batch")
            with torch.no_grad(), self.counter.batch(size):
                return net(batch, T) if forward is None else forward(net, batch, T)

    return CountedModel()


def neurobench_metrics(*conventions: str | Path | EnergyConvention) -> list[type]:
    """Workload metrics for NeuroBench's ``Benchmark``: one energy, in mJ, for each convention.

    Each counts attention products and everything else the convention charges, which NeuroBench's
    ``SynapticOperations`` does not; they need a model made by :func:`neurobench_model`.

    Args:
        conventions: names, YAML paths or conventions.

    Returns:
        Metric classes; the result of each is keyed ``Energy[convention]`` and holds mJ per sample,
        MACs and accumulations.

    Raises:
        ConfigError: neurobench is not installed, or a convention is unknown.

    Example:
        >>> from neurobench.benchmarks import Benchmark  # doctest: +SKIP
        >>> metrics = neurobench_metrics("paper-sop", "exact-fanout")  # doctest: +SKIP
        >>> model = neurobench_model(net, 4)  # doctest: +SKIP
        >>> Benchmark(model, loader, [], [], [[], metrics]).run()  # doctest: +SKIP
    """
    from spikedim.profiling.conventions import convention

    return [_metric(convention(name)) for name in conventions]


def _metric(rule: EnergyConvention) -> type:
    base = _peer().metrics.abstract.workload_metric.AccumulatedMetric

    class EnergyMetric(base):  # type: ignore[misc, valid-type]
        """Energy under one convention, over all batches so far."""

        def __init__(self) -> None:
            super().__init__(requires_hooks=False)
            self.model: Any = None

        def reset(self) -> None:
            if self.model is not None:
                self.model.counter = type(self.model.counter)(self.model.net, self.model.T)

        def __call__(self, model: Any, preds: Any, data: Any) -> dict[str, float]:
            self.model = model
            return self.compute()

        def compute(self) -> dict[str, float]:
            from spikedim.profiling.assemble import charge_counter

            charged = charge_counter(self.model.counter, rule, self.model.static)
            return {
                "mJ": charged.total.value,
                "MACs": charged.macs,
                "ACs": charged.accumulates,
            }

    EnergyMetric.__name__ = EnergyMetric.__qualname__ = f"Energy[{rule.name}]"
    return EnergyMetric


def _peer() -> Any:
    try:
        import neurobench.metrics.abstract.workload_metric
        import neurobench.models
    except ImportError as error:
        raise ConfigError(
            "neurobench is needed for this: pip install --no-deps neurobench==2.3.0 snntorch"
        ) from error
    return neurobench
