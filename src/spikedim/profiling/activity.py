"""What neurons do on a few samples: rasters, membrane potentials, spikes per neuron."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, ModelError
from spikedim.models.base import check_finite, evaluating
from spikedim.neurons import LIF
from spikedim.results import Result, Table

Forward = Callable[[nn.Module, Tensor, int], Any]
_LOW, _HIGH, _BINS = -2.0, 2.0, 80


@dataclass(frozen=True)
class LayerActivity:
    """One LIF layer on a few samples.

    Attributes:
        name: module path.
        potential: mean and standard deviation of the potential before reset, in thresholds.
        at_threshold: fraction of potentials within 5 % of the threshold: spikes that a small
            change of the input would add or remove.
        histogram: share of potentials in each bin of :attr:`Activity.edges`; potentials beyond
            the ends are in the outermost bins.
        raster: uint8 [T, neurons] of one sample, evenly chosen neurons.
        neurons: index of each of them in the flattened layer.
    """

    name: str
    potential: tuple[float, float]
    at_threshold: float
    histogram: tuple[float, ...]
    raster: np.ndarray = field(compare=False, repr=False)
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Activity(Result):
    """Potentials and spikes of every LIF layer.

    Attributes:
        T: timesteps.
        samples: inputs behind the histograms; the raster shows the first of them.
        edges: bounds of the histogram bins, in thresholds.
        layers: in order of execution.
    """

    T: int
    samples: int
    edges: tuple[float, ...]
    layers: tuple[LayerActivity, ...]

    def tables(self) -> list[Table]:
        """Potentials of every layer, with a small histogram."""
        from spikedim.profiling.tables import blocks

        width = _BINS // 16
        rows = []
        for layer in self.layers:
            coarse = np.asarray(layer.histogram).reshape(16, width).sum(1)
            bars = blocks([float(share) for share in coarse])
            mean, deviation = layer.potential
            text = f"{bars[:12]}|{bars[12:]}"
            rows.append((layer.name, mean, deviation, f"{layer.at_threshold:.1%}", text))
        span = "-2 v_th … v_th | … 2 v_th"
        columns = ("spiking layer", "mean", "std", "within 5 % of v_th", span)
        title = f"Membrane potentials before reset, in thresholds ({self.samples} samples)"
        return [Table(title, columns, rows)]


class _Watch:
    """Reduces what one layer does as it happens, so that nothing large is kept."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.histogram = torch.zeros(_BINS, dtype=torch.float64)
        self.near = self.count = 0.0
        self.moments = np.zeros(2)
        self.raster: np.ndarray | None = None
        self.neurons: tuple[int, ...] = ()

    def __call__(self, layer: LIF, spikes: Tensor, potential: Tensor | None) -> None:
        assert potential is not None
        threshold = layer.dynamics().threshold
        u = (potential / threshold).float().flatten()
        clamped = u.clamp(_LOW, np.nextafter(np.float32(_HIGH), np.float32(0)))
        self.histogram += torch.histc(clamped, _BINS, _LOW, _HIGH).double().cpu()
        self.near += float(((u - 1).abs() <= 0.05).sum())
        self.count += u.numel()
        self.moments += [float(u.double().sum()), float(u.double().square().sum())]
        if self.raster is None and spikes.ndim > 1:
            first = spikes[:, 0].flatten(1)
            chosen = torch.linspace(0, first.shape[1] - 1, min(self.most, first.shape[1])).long()
            self.neurons = tuple(chosen.tolist())
            self.raster = first[:, chosen.to(first.device)].ne(0).byte().cpu().numpy()


def activity(
    model: nn.Module,
    x: Tensor,
    T: int,
    *,
    neurons: int = 24,
    batch_size: int = 4,
    forward: Forward | None = None,
) -> Activity:
    """Record potentials and a raster of every :class:`LIF` layer whose neuron is known.

    Args:
        model: a network with LIF layers; it runs in eval mode and is left as found.
        x: inputs as for :func:`spikedim.profiling.profile`; a few are enough.
        T: timesteps.
        neurons: neurons of each layer in the raster.
        batch_size: samples per forward pass; bounds memory.
        forward: as for :func:`profile`.

    Raises:
        ConfigError: ``neurons`` is not positive.
        DataError: the input holds NaN or infinity.
        ModelError: the network has no such layer, or none ran.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_nano", seed=0)
        >>> found = activity(net, torch.rand(2, *net.input_shape), T=4)
        >>> found.layers[0].raster.shape
        (4, 24)
    """
    if neurons < 1:
        raise ConfigError(f"neurons={neurons}: a raster shows at least one neuron of a layer")
    check_finite(x, int(x.ndim == 5))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LIF) and m.known}
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no spikedim.neurons.LIF layer whose potential is known"
        )
    watches = {name: _Watch(neurons) for name in layers}
    order: list[str] = []

    def observer(name: str, layer: LIF) -> Callable[[Tensor, Tensor | None], None]:
        def observe(spikes: Tensor, potential: Tensor | None) -> None:
            if name not in order:
                order.append(name)
            watches[name](layer, spikes, potential)

        return observe

    observers = {name: observer(name, layer) for name, layer in layers.items()}
    axis = 0 if x.ndim < 5 else 1
    for name, layer in layers.items():
        layer.observe(observers[name], potential=True)
    try:
        with evaluating(model), torch.no_grad():
            for batch in x.split(batch_size, axis):
                if forward is not None:
                    forward(model, batch, T)
                else:
                    model.steps(batch, T)  # type: ignore[operator]
    finally:
        for name, layer in layers.items():
            layer.unobserve(observers[name])
    if not order:
        raise ModelError(f"no LIF layer of {type(model).__name__} ran")
    edges = tuple(float(edge) for edge in np.linspace(_LOW, _HIGH, _BINS + 1))
    found = tuple(_layer(name, watches[name]) for name in order)
    return Activity(T, x.shape[axis], edges, found)


def _layer(name: str, watch: _Watch) -> LayerActivity:
    mean, square = watch.moments / watch.count
    raster = np.zeros((0, 0), np.uint8) if watch.raster is None else watch.raster
    return LayerActivity(
        name,
        (float(mean), float(np.sqrt(max(0.0, square - mean**2)))),
        watch.near / watch.count,
        tuple(float(share) for share in (watch.histogram / watch.count).tolist()),
        raster,
        watch.neurons,
    )
