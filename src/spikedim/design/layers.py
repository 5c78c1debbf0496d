"""Effective dimension of every layer of a network, and of every timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedim.dimension import DimensionReport, get_estimator, measure
from spikedim.dimension.clusters import GROUPS, ClusterStream, measure_clustered, spectral
from spikedim.dimension.intervals import INTERVALS
from spikedim.errors import BudgetError, ConfigError
from spikedim.models import SpikingModel
from spikedim.models.features import Axes, LayerShape, batch_axis, checked_axes, layer_shapes, visit
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table

ESTIMATORS = ("pca95", "pr_corrected", "stable_rank")
MEMORY = float(2 << 30)
_FEWEST = 16


@dataclass(frozen=True)
class LayerDimension:
    """Effective dimension of one layer, at one timestep or over all.

    Args:
        layer: module path.
        step: timestep from 1, or ``None`` for all of them together.
        n, d: vectors measured and their length.
        samples: inputs the vectors come from.
        grid, channels: token axes and channels of the layer.
        mean: mean value; for spikes the firing rate per neuron and step.
        estimates: estimator key → value with its interval.
    """

    layer: str
    step: int | None
    n: int
    d: int
    samples: int
    grid: tuple[int, ...]
    channels: int
    mean: float
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class LayerDimensions(Result):
    """Effective dimension along a network.

    Args:
        model: class of the network.
        what: the quantity: spikes, potential, rates or features.
        tokens, time: how axes were read, see :class:`spikedim.models.features.Axes`.
        T, samples: timesteps and inputs.
        centered: the mean was subtracted.
        layers: in order of execution, by timestep within a layer.
        memory: predicted bytes of the largest pass, without the network's own.
        passes: runs over the data that the memory limit made of it.
        warnings: what limits the numbers.
        seed: of every random draw.
    """

    model: str
    what: str
    tokens: str
    time: str
    T: int
    samples: int
    centered: bool
    layers: tuple[LayerDimension, ...]
    memory: int
    passes: int
    warnings: tuple[str, ...]
    seed: int = 0

    @property
    def estimators(self) -> tuple[str, ...]:
        """Keys of the estimators."""
        return tuple(self.layers[0].estimates)

    def series(self, estimator: str | None = None) -> dict[str, list[Estimate]]:
        """Layer → one estimate per timestep (a single one unless measured for each step).

        Raises:
            ConfigError: the estimator was not measured.
        """
        key = self.estimators[0] if estimator is None else estimator
        if key not in self.estimators:
            raise ConfigError(f"{key!r} was not measured; choose from {', '.join(self.estimators)}")
        return {
            layer: [row.estimates[key] for row in rows]
            for layer, rows in groupby(self.layers, lambda row: row.layer)
        }

    def tables(self) -> list[Table]:
        """Layers by estimators, or layers by timesteps for every estimator."""
        about = f"{self.model}, {self.samples:,} samples; tokens: {self.tokens}, time: {self.time}"
        notes = (about + (", centred" if self.centered else ", uncentred"), *self.warnings)
        if self.time != "each":
            rows = [
                (r.layer, r.n, r.d, r.mean, *(str(e) for e in r.estimates.values()))
                for r in self.layers
            ]
            columns = ("layer", "n", "d", self._mean_name, *self.estimators)
            return [Table(f"Effective dimension of {self.what}, T={self.T}", columns, rows, notes)]
        columns = ("layer", *(f"t={t + 1}" for t in range(self.T)))
        tables = []
        for key in self.estimators:
            rows = [(layer, *(e.value for e in found)) for layer, found in self.series(key).items()]
            tables.append(Table(f"{key} of {self.what} by timestep", columns, rows))
        return [*tables[:-1], replace(tables[-1], notes=notes)]

    def plot(self, ax: Any = None) -> Any:
        """Dimension along the layers, a line per estimator or per timestep; returns the axes."""
        names = list(self.series())
        if ax is None:
            import matplotlib.pyplot as plt

            size = (max(5.0, 0.32 * len(names)), 4.0)
            _, ax = plt.subplots(figsize=size, layout="constrained")
        place = np.arange(len(names))
        for label, line in self._lines():
            values = np.array([e.value for e in line])
            bounds = [(e.value if e.low is None else e.low,
                       e.value if e.high is None else e.high) for e in line]  # fmt: skip
            low, high = np.array(bounds, np.float64).T
            (drawn,) = ax.plot(place, values, "o-", ms=3, lw=1.2, label=label)
            ax.fill_between(place, low, high, color=drawn.get_color(), alpha=0.15, lw=0)
        ax.set_xticks(place, names, rotation=90, fontsize=7)
        ax.set_ylabel("effective dimension" if self.time != "each" else self.estimators[0])
        ax.set_title(f"{self.what}, T={self.T}, n={self.samples:,}", loc="left", fontsize=9)
        ax.legend(fontsize=7, frameon=False)
        return ax

    @property
    def _mean_name(self) -> str:
        return "rate" if self.what in ("spikes", "rates") else "mean"

    def _lines(self) -> list[tuple[str, list[Estimate]]]:
        if self.time != "each":
            return [(key, [r.estimates[key] for r in self.layers]) for key in self.estimators]
        found = self.series().values()
        return [(f"t={t + 1}", [line[t] for line in found]) for t in range(self.T)]


def layer_dimensions(
    model: SpikingModel,
    x: Tensor,
    T: int | None = None,
    what: str = "spikes",
    estimators: Sequence[str] = ESTIMATORS,
    *,
    layers: str | Sequence[str] | None = None,
    tokens: str = "flatten",
    time: str = "mean",
    center: bool = True,
    interval: str = "auto",
    confidence: float = 0.95,
    batch_size: int = 16,
    memory_limit: float = MEMORY,
    seed: int = 0,
) -> LayerDimensions:
    """Measure the effective dimension of every layer of a network on its inputs.

    Vectors of one sample (``tokens`` or ``time`` = ``"samples"``) depend on each other: they are
    summed in one pass and their intervals leave out whole samples. Layers that do not fit
    ``memory_limit`` together are measured in several runs over the data; where one layer alone
    does not fit, a random subset of the samples is measured and the result says so.

    Args:
        model: the network, with calibrated or loaded weights.
        x: static frames [N, C, H, W] or events [T, N, C, H, W].
        T: timesteps, as in :meth:`SpikingModel.steps`.
        what: ``"spikes"``, ``"potential"`` (before reset), ``"rates"`` or ``"features"``.
        estimators: keys of :func:`spikedim.dimension.list_estimators`.
        layers: shell patterns of module paths; all neuron layers (or stages) by default.
        tokens, time: how axes become vectors, see :class:`spikedim.models.features.Axes`.
        center: subtract the mean.
        interval: as in :func:`spikedim.dimension.measure`, for one vector per sample.
        confidence: nominal coverage.
        batch_size: samples per forward pass; changes no number.
        memory_limit: bytes for what is kept between batches; 2 GiB by default.
        seed: of subsets, groups and resamples.

    Raises:
        ConfigError: an argument out of its domain.
        DataError: fewer than two samples (one when uncentred).
        ModelError: the input does not fit the network.
        BudgetError: the limit does not hold 16 samples of a layer.

    Example:
        >>> import torch
        >>> from spikedim.models import calibrate_batchnorm, create_model
        >>> net = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)
        >>> x = torch.rand(64, 1, 8, 8)
        >>> calibrate_batchnorm(net, [x], T=4)
        >>> found = layer_dimensions(net, x, T=4, time="each")
        >>> len(found.layers) == 4 * len(found.series())
        True
    """
    axes = checked_axes(what, tokens, time)
    if not estimators:
        raise ConfigError("no estimator given; name at least one, e.g. pca95")
    for key in estimators:
        get_estimator(key)
    if interval not in INTERVALS:
        raise ConfigError(f"interval={interval!r}; expected one of {', '.join(INTERVALS)}")
    shapes = layer_shapes(model, x, T, what, layers)
    n = x.shape[batch_axis(x)]
    if shapes[0].arranged(axes)[1] > 1:
        spectral(estimators)
    plans = [_plan(shape, axes, n, memory_limit) for shape in shapes]
    passes = _packed(plans, memory_limit)
    # groups of samples that intervals leave out are then random, whatever the order of the data
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    shuffled = x.index_select(batch_axis(x), order.to(x.device))
    found: dict[str, list[LayerDimension]] = {}
    notes: dict[str, list[str]] = {}
    with task("layers", len(plans)) as progress:
        for chosen in passes:
            stores = {plan.shape.name: _Store(plan, axes) for plan in chosen}

            def keep(name: str, value: Tensor, stores: dict[str, _Store] = stores) -> None:
                if name in stores:
                    stores[name].add(value)

            wanted = sorted({name.split("#")[0] for name in stores})
            visit(model, shuffled, T, keep, what=what, layers=wanted, batch_size=batch_size)
            for name, store in stores.items():
                reports = store.reports(estimators, center, interval, confidence, seed)
                found[name] = [store.row(k, report) for k, report in enumerate(reports)]
                notes[name] = [note for report in reports for note in report.warnings]
                progress.advance(detail=name)
    return LayerDimensions(
        type(model).__name__,
        what,
        tokens,
        time,
        shapes[0].T,
        n,
        center,
        tuple(row for plan in plans for row in found[plan.shape.name]),
        max(sum(plan.bytes for plan in chosen) for chosen in passes),
        len(passes),
        tuple(_warnings(what, plans, found, notes, n)),
        seed,
    )


@dataclass(frozen=True)
class _Plan:
    """What is kept of one layer: sums over groups (``stream``) or the vectors of some samples."""

    shape: LayerShape
    stream: bool
    samples: int
    bytes: int


def _plan(shape: LayerShape, axes: Axes, n: int, limit: float) -> _Plan:
    count, rows, width = shape.arranged(axes)
    sums = 8 * width**2 * (count * (min(GROUPS, n) + 1) + 4)
    if rows > 1 and n * rows >= width and sums <= limit:
        return _Plan(shape, True, n, sums)

    def bytes_of(samples: int) -> int:
        side = min(samples * rows, width)
        return 4 * count * samples * rows * width + 4 * 8 * side**2

    if bytes_of(n) <= limit:
        return _Plan(shape, False, n, bytes_of(n))
    few, many = 0, n
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if bytes_of(middle) <= limit else (few, middle)
    if few < _FEWEST:
        raise BudgetError(
            f"layer {shape.name} has vectors of {width:,} features: {_FEWEST} samples need "
            f"{bytes_of(_FEWEST) / 2**20:,.0f} MiB, over memory_limit={limit / 2**20:,.0f} MiB; "
            "raise the limit, or use tokens='mean' or 'samples'"
        )
    return _Plan(shape, False, few, bytes_of(few))


def _packed(plans: Sequence[_Plan], limit: float) -> list[list[_Plan]]:
    passes: list[list[_Plan]] = []
    room = 0.0
    for plan in plans:
        if plan.bytes > room:
            passes.append([])
            room = max(limit, plan.bytes)
        passes[-1].append(plan)
        room -= plan.bytes
    return passes


class _Store:
    """Collects the vectors of one layer over the batches of one pass."""

    def __init__(self, plan: _Plan, axes: Axes) -> None:
        self.plan, self.axes = plan, axes
        self.count, self.rows, self.width = plan.shape.arranged(axes)
        self.sums = np.zeros(self.count)
        self.taken = 0
        self.streams: list[ClusterStream] = []
        if plan.stream:
            self.streams = [ClusterStream(plan.samples) for _ in range(self.count)]
        else:
            size = (self.count, plan.samples, self.rows, self.width)
            self.kept = np.empty(size, np.float32)

    def add(self, value: Tensor) -> None:
        block = self.axes.arrange(value)[:, : self.plan.samples - self.taken].cpu().numpy()
        self.sums += block.sum(axis=(1, 2, 3), dtype=np.float64)
        for k, stream in enumerate(self.streams):
            stream.update(block[k])
        if not self.streams:
            self.kept[:, self.taken : self.taken + block.shape[1]] = block
        self.taken += block.shape[1]

    def reports(
        self,
        estimators: Sequence[str],
        center: bool,
        interval: str,
        confidence: float,
        seed: int,
    ) -> list[DimensionReport]:
        if self.streams:
            return [stream.report(estimators, center, confidence) for stream in self.streams]
        vectors = self.kept.reshape(self.count, -1, self.width)
        if self.rows > 1:
            sample = np.repeat(np.arange(self.plan.samples), self.rows)
            return [
                measure_clustered(v, sample, estimators, center, confidence, seed) for v in vectors
            ]
        return [
            measure(v, estimators, center, confidence=confidence, seed=seed, interval=interval)
            for v in vectors
        ]

    def row(self, step: int, report: DimensionReport) -> LayerDimension:
        shape = self.plan.shape
        return LayerDimension(
            shape.name,
            step + 1 if self.axes.time == "each" else None,
            report.n,
            report.d,
            self.taken,
            shape.grid,
            shape.channels,
            float(self.sums[step]) / (self.taken * self.rows * self.width),
            report.estimates,
        )


def _warnings(
    what: str,
    plans: Sequence[_Plan],
    found: dict[str, list[LayerDimension]],
    notes: dict[str, list[str]],
    n: int,
) -> list[str]:
    """The notes of all layers, alike ones merged."""
    lines = []
    silent = [name for name, rows in found.items() if all(_is_silent(row) for row in rows)]
    if silent:
        fault = "emit no spike" if what in ("spikes", "rates") else "never change"
        lines.append(
            f"{len(silent)} of {len(found)} layers {fault} on these samples, dimension 0: "
            f"{_some(silent)}"
        )
    for plan in plans:
        if plan.samples < n:
            lines.append(
                f"{plan.shape.name} is measured on {plan.samples:,} of {n:,} samples, drawn at "
                "random, to fit the memory limit"
            )
    limited: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in dict.fromkeys(texts):
            key, found_it, _ = text.partition(" is limited by n")
            if found_it:
                limited.setdefault(key, []).append(name)
            elif not text.startswith("no variance"):
                other.setdefault(text, []).append(name)
    for key, names in limited.items():
        names = list(dict.fromkeys(names))
        lines.append(f"{key} is limited by n in {len(names)} layers: {_some(names)}")
    lines += [f"{text} ({_some(names)})" for text, names in other.items()]
    return lines


def _is_silent(row: LayerDimension) -> bool:
    return all(e.value == 0 for e in row.estimates.values())


def _some(names: Sequence[str]) -> str:
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "")
