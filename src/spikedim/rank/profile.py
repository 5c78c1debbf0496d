"""Rank of token representations through depth and time, spiking beside continuous."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from spikedim.errors import ConfigError, ModelError
from spikedim.models import SpikingModel
from spikedim.models.features import batch_axis, visit
from spikedim.rank.matrix import POLICY, token_ranks
from spikedim.results import Estimate, Result, Table, number
from spikedim.theory.statistics import mean_estimate

TWINS = ("surrogate", "rate", "none")
SPIKING, CONTINUOUS = "spiking", "continuous"
QUANTITIES = {
    "rank": "rank",
    "affine": "affine rank",
    "stable": "stable rank",
    "dimension": "d_eff (PCA-95 %)",
}


@dataclass(frozen=True)
class LayerRanks:
    """Ranks of one layer's token matrices.

    Attributes:
        network: ``"spiking"`` or ``"continuous"``.
        layer: module path.
        tokens, channels: n and d of a token matrix.
        values: quantity → mean over samples of the mean over timesteps.
        steps: quantity → mean over samples at each timestep.
        collapsed: share of token matrices in which all tokens are equal (affine rank 1).
        ambiguous: share whose rank hangs on the tolerance.
    """

    network: str
    layer: str
    tokens: int
    channels: int
    values: dict[str, Estimate]
    steps: dict[str, tuple[float, ...]]
    collapsed: float
    ambiguous: float

    @property
    def largest(self) -> int:
        """Largest affine rank that n tokens of d channels can have."""
        return min(self.tokens, self.channels + 1)


@dataclass(frozen=True)
class RankProfile(Result):
    """Ranks along a network.

    Attributes:
        model: class of the network.
        what: ``"features"`` (outputs of modules), ``"spikes"``, ``"potential"`` or ``"rates"``.
        T, samples: timesteps and inputs.
        layers: in order of execution, the spiking network first.
        notes: what was left out, and why.
    """

    model: str
    what: str
    T: int
    samples: int
    layers: tuple[LayerRanks, ...]
    notes: tuple[str, ...] = ()

    def of(self, network: str) -> tuple[LayerRanks, ...]:
        """Layers of ``"spiking"`` or ``"continuous"``."""
        return tuple(layer for layer in self.layers if layer.network == network)

    @property
    def headline(self) -> str:
        """Affine rank where the tokens end, by network."""
        parts = []
        for network in dict.fromkeys(layer.network for layer in self.layers):
            last = self.of(network)[-1]
            parts.append(f"{number(last.values['affine'].value, 3)} of {last.largest} ({network})")
        return f"Affine rank in {self.layers[-1].layer}: {', '.join(parts)}"

    @property
    def verdict(self) -> str:
        """Whether the tokens collapse, by network."""
        parts = []
        for network in dict.fromkeys(layer.network for layer in self.layers):
            layers = self.of(network)
            first, last = layers[0], layers[-1]
            change = (
                f"affine rank {first.values['affine']} of {first.largest} in {first.layer}, "
                f"{last.values['affine']} of {last.largest} in {last.layer}; stable rank "
                f"{first.values['stable']} to {last.values['stable']}"
            )
            worst = max(layers, key=lambda layer: layer.collapsed)
            equal = (
                f"; all tokens equal in {100 * worst.collapsed:.0f} % of the matrices of "
                f"{worst.layer}"
                if worst.collapsed
                else ""
            )
            parts.append(f"{network}: {change}{equal}")
        return ". ".join(parts) + "."

    def tables(self) -> list[Table]:
        """Layers by quantity; then the affine rank by timestep."""
        rows = [
            (
                f"{r.layer}",
                r.network,
                f"{r.tokens} × {r.channels}",
                *(str(r.values[q]) for q in QUANTITIES),
                f"{100 * r.collapsed:.0f} %",
            )
            for r in self.layers
        ]
        columns = ("layer", "network", "n × d", *QUANTITIES.values(), "all tokens equal")
        notes = [f"{self.samples:,} samples; {POLICY}.", self.verdict, *self.notes]
        doubtful = [r for r in self.layers if r.ambiguous > 0]
        if doubtful:
            names = ", ".join(f"{r.layer} ({100 * r.ambiguous:.0f} %)" for r in doubtful[:4])
            notes.insert(1, f"Ranks within a factor 10 of the tolerance: {names}.")
        title = f"Rank of {self.what} through depth, {self.model}, T={self.T}"
        tables = [Table(title, columns, rows, notes)]
        if self.T > 1:
            times = [(r.layer, *(steps for steps in r.steps["affine"])) for r in self.of(SPIKING)]
            columns = ("layer", *(f"t={t + 1}" for t in range(self.T)))
            tables.append(Table("Affine rank through time, spiking", columns, times))
        return tables

    def plot(self, ax: Any = None) -> Any:
        """Quantities along the depth, continuous dashed; without ``ax`` also affine rank by step.

        Returns the axes of the first picture.
        """
        second = None
        if ax is None:
            import matplotlib.pyplot as plt
            from matplotlib.ticker import MaxNLocator

            wide = max(5.5, 0.3 * len(self.of(SPIKING)) + 2)
            if self.T > 1:
                _, (ax, second) = plt.subplots(
                    2, 1, figsize=(wide, 6.6), layout="constrained", height_ratios=(3, 2)
                )
            else:
                _, ax = plt.subplots(figsize=(wide, 4.0), layout="constrained")
        names = list(dict.fromkeys(layer.layer for layer in self.layers))
        colours = dict(zip(QUANTITIES, ("#7a7a7a", "#1f5a93", "#b1541c", "#3d7a3d"), strict=True))
        for network, style in ((SPIKING, "-"), (CONTINUOUS, "--")):
            layers = self.of(network)
            place = [names.index(layer.layer) for layer in layers]
            for key, label in QUANTITIES.items():
                values = [layer.values[key].value for layer in layers]
                shown = label if network == SPIKING else None
                ax.plot(place, values, f"o{style}", ms=3, lw=1.3, color=colours[key], label=shown)
        limits = self.of(SPIKING)
        ax.plot(
            [names.index(layer.layer) for layer in limits],
            [layer.largest for layer in limits],
            "k_",
            ms=10,
            label="largest affine rank",
        )
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        # linear below 1, so that the zeros of a silent network are drawn
        ax.set_yscale("symlog", base=2, linthresh=1)
        ax.set_ylim(-0.1, 1.15 * ax.dataLim.y1)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel("per token matrix")
        dashed = "; dashed: continuous" if self.of(CONTINUOUS) else ""
        ax.set_title(f"{self.what}, n={self.samples:,}{dashed}", loc="left", fontsize=9)
        ax.legend(fontsize=7, frameon=False, ncols=2)
        if second is not None:
            grid = np.array([layer.steps["affine"] for layer in self.of(SPIKING)])
            top = max(float(grid.max()), 2.0)
            image = second.imshow(grid, aspect="auto", cmap="viridis", vmin=1, vmax=top)
            second.set_yticks(range(len(grid)), [r.layer for r in self.of(SPIKING)], fontsize=7)
            second.set_xticks(range(self.T), range(1, self.T + 1), fontsize=7)
            second.set_xlabel("timestep")
            second.set_title("affine rank through time, spiking", loc="left", fontsize=9)
            whole = MaxNLocator(integer=True, min_n_ticks=1)
            ax.get_figure().colorbar(image, ax=second, label="affine rank", ticks=whole)
        return ax


def rank_profile(
    model: SpikingModel,
    x: Tensor,
    T: int | None = None,
    what: str = "features",
    *,
    layers: str | Sequence[str] | None = None,
    twin: str = "surrogate",
    batch_size: int = 16,
    eps: float | None = None,
) -> RankProfile:
    """Measure the ranks of every layer's token matrices [n, d], by sample and timestep.

    Args:
        model: the network, calibrated or trained; a copy in float64 makes the decisions sharper.
        x: static frames [N, C, H, W], events [T, N, C, H, W], or token ids [N, S].
        T: timesteps of static inputs.
        what: ``"features"``, ``"spikes"`` or ``"potential"``.
        layers: shell patterns of module paths; stages, or neuron layers, by default. Those
            without tokens (the head) are left out, and of adapted networks those whose output has
            another shape than token matrices or images.
        twin: continuous twin beside it: its activation, or ``"none"``. A network with neurons that
            are kept as they are has none.
        batch_size: samples per forward pass.
        eps: spacing of the values, see :mod:`spikedim.rank.matrix`.

    Raises:
        ConfigError: unknown words.
        ModelError: the input does not fit, or no layer has tokens.
    """
    if twin not in TWINS:
        raise ConfigError(f"twin={twin!r}; expected one of {', '.join(TWINS)}")
    if what == "rates":
        raise ConfigError("what='rates' has no timesteps; use 'spikes'")
    common: dict[str, Any] = {"what": what, "layers": layers, "batch_size": batch_size}
    found, steps, notes = _network(model, SPIKING, x, T, eps, common)
    if twin != "none" and model.kept:
        names = ", ".join(model.kept)
        notes += (f"No continuous twin, since neurons are kept as they are: {names}.",)
    elif twin != "none":
        fixed = x.ndim == 5 or model.reads_in_time  # the input has as many steps as it has
        other = model.continuous(twin)
        found += _network(other, CONTINUOUS, x, T if fixed else 1, eps, common)[0]
    samples = x.shape[batch_axis(x)]
    return RankProfile(type(model).__name__, what, steps, samples, tuple(found), notes)


def double(model: SpikingModel) -> SpikingModel:
    """A copy in float64; inputs must be converted likewise (token ids not)."""
    return copy.deepcopy(model).double()


def _network(
    model: SpikingModel,
    network: str,
    x: Tensor,
    T: int | None,
    eps: float | None,
    common: dict[str, Any],
) -> tuple[list[LayerRanks], int, tuple[str, ...]]:
    kept: dict[str, list[Any]] = {}
    shapes: dict[str, tuple[int, int]] = {}

    def measure(name: str, value: Tensor) -> None:
        matrices = _matrices(model, value)
        if matrices is None:
            return
        shapes[name] = (matrices.shape[2], matrices.shape[3])
        kept.setdefault(name, []).append(token_ranks(matrices, eps))

    left_out = visit(model, x, T, measure, **common)
    reasons = [f"{name} ({reason})" for name, reason in left_out.items()]
    notes = (f"Left out: {', '.join(reasons)}.",) if reasons else ()
    if not kept:
        raise ModelError(
            "none of the layers has two tokens or more; choose others with layers"
            + "".join(f". {note}" for note in notes).removesuffix(".")
        )
    layers = []
    for name, parts in kept.items():
        arrays = {
            key: np.concatenate([getattr(part, key) for part in parts], 1)  # [T, samples]
            for key in (*QUANTITIES, "ambiguous")
        }
        layers.append(
            LayerRanks(
                network,
                name,
                *shapes[name],
                {key: mean_estimate(arrays[key].mean(0)).within(0, math.inf) for key in QUANTITIES},
                {key: tuple(map(float, arrays[key].mean(1))) for key in QUANTITIES},
                float((arrays["affine"] == 1).mean()),
                float(arrays["ambiguous"].mean()),
            )
        )
    return layers, len(layers[0].steps["rank"]), notes


def _matrices(model: SpikingModel, value: Tensor) -> Tensor | None:
    """[T, B, n, d], or ``None`` without tokens; the time of a SpikeGPT is its tokens."""
    if model.reads_in_time:
        return value.transpose(0, 1)[None]  # [S, B, E] to [1, B, S, E]
    if value.ndim == 3:
        return None
    matrices = value.flatten(2, -2)
    return matrices if matrices.shape[2] > 1 else None
