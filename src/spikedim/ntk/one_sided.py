"""Which kernel governs training with surrogate gradients: J_sg·J_sgᵀ, J_true·J_sgᵀ, J_true·J_trueᵀ?

Steps along −J_sgᵀ(f − y) change the outputs by −J_true·J_sgᵀ(f − y): the one-sided kernel, not
symmetric, is the one of surrogate training. For a network of true spikes J_true is zero almost
everywhere before the last spikes, so that its one-sided kernel is that of the parameters behind
them. Where spikes are replaced by their probability under escape noise, σ((u − v_th)/δ), J_true
exists, and all three kernels can be computed on the same forward pass.

The one-sided kernel as the object of surrogate training: Eilers, Memmesheimer & Goedeke, "A
generalized neural tangent kernel for surrogate gradient learning" (NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedim.dimension.arrays import spans
from spikedim.dimension.moments import centered_gram
from spikedim.errors import BudgetError, ConfigError
from spikedim.models.base import SpikingModel
from spikedim.neurons import Surrogate
from spikedim.ntk.capture import Capture, logits
from spikedim.ntk.gram import Setup, products, with_surrogate
from spikedim.ntk.kernel import gram, output_sums, setup_of
from spikedim.ntk.plan import budget_of, probe
from spikedim.ntk.variants import (
    Array,
    Prepare,
    as_networks,
    combined,
    exponential,
    samples_of,
    split,
    variant,
)
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table

#: Widths of the surrogate tried by default, as multiples of the escape noise's 1/δ.
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
_ROUNDING = 1e-16  # a relative error below it is none
TWO_SIDED, ONE_SIDED = "J_sg·J_sgᵀ", "J_true·J_sgᵀ"
SPIKING, LAST = "J_sg·J_sgᵀ of the spiking network", "J_true·J_sgᵀ of the spiking network"


@dataclass(frozen=True)
class Mismatched(Surrogate):
    """The smooth step of ``step`` with the slope of this surrogate.

    What a surrogate gradient is to a network of expected spikes: forward the truth, backward not.
    """

    step: Surrogate = field(default=Surrogate("sigmoid", 4.0))

    def primitive(self, x: Tensor) -> Tensor:
        """Values of ``step``, gradient of this surrogate."""
        own = super().primitive(x)
        return self.step.primitive(x).detach() + (own - own.detach())


@dataclass(frozen=True)
class _Flat(Surrogate):
    """The true derivative of a spike: zero."""

    def derivative(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Likeness:
    """One kernel K against the true one, J_true·J_trueᵀ of the smooth network.

    Attributes:
        kernel: which.
        width: of the surrogate; ``None`` where it has no part.
        error: ‖K − K_true‖_F/‖K_true‖_F of the kernels as they are.
        alignment: cosine of the two, centred: 1 where they differ by a factor.
        dimension: participation ratio (Σσ)²/Σσ² of the singular values of the centred kernel, which
            of a symmetric one are its eigenvalues.
        asymmetry: ‖K − Kᵀ‖_F/2‖K‖_F.
    """

    kernel: str
    width: float | None
    error: Estimate
    alignment: Estimate
    dimension: Estimate
    asymmetry: Estimate


@dataclass(frozen=True)
class OneSided(Result):
    """The kernels of surrogate training beside the true one.

    Attributes:
        escape: smooth step of the neurons; its slope is the true derivative, 1/δ its width.
        kind: of the surrogates.
        T, samples, networks: of the kernels.
        dimension: participation ratio of the centred true kernel.
        rows: every other kernel against it.
    """

    escape: Surrogate
    kind: str
    T: int | None
    samples: int
    networks: int
    dimension: Estimate
    rows: tuple[Likeness, ...]

    def find(self, kernel: str, width: float | None = None) -> Likeness:
        """The row of a kernel at a width.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.kernel == kernel and row.width == width:
                return row
        raise ConfigError(f"no kernel {kernel!r} at width {width}")

    def tables(self) -> list[Table]:
        """One row per kernel and width."""
        some = f"{self.samples} samples, {self.networks} network{'s' * (self.networks > 1)}"
        title = (
            f"Kernels against J_true·J_trueᵀ of the escape-noise network "
            f"({self.escape.kind}, 1/δ = {self.escape.width:g}), {some}"
        )
        rows = [
            (r.kernel, r.width, r.error, r.alignment, r.dimension, r.asymmetry) for r in self.rows
        ]
        columns = ("kernel", f"{self.kind} width", "error", "alignment", "d_eff", "asymmetry")
        notes = (
            f"d_eff of the true kernel: {self.dimension} (pr, centred).",
            "error: relative Frobenius distance as they are; alignment: of the centred kernels.",
            "Intervals leave out samples (and cover initialisations, where several were given).",
        )
        return [Table(title, columns, rows, notes)]

    def plot(self, ax: Any = None) -> Any:
        """Alignment with the true kernel against the surrogate's width; returns the axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5), layout="constrained")[1] if ax is None else ax
        for kernel in (TWO_SIDED, ONE_SIDED, SPIKING):
            some = [r for r in self.rows if r.kernel == kernel]
            ax.plot([r.width for r in some], [r.alignment.value for r in some], "o-", label=kernel)
        last = next(r for r in self.rows if r.kernel == LAST)
        ax.axhline(last.alignment.value, color="0.6", lw=0.8, ls="--", label=LAST)
        ax.axvline(self.escape.width, color="0.8", lw=0.8)
        ax.set(xscale="log", xlabel=f"width of the {self.kind} surrogate", ylabel="alignment")
        ax.legend(fontsize=7, frameon=False)
        return ax


def one_sided(
    models: SpikingModel | Sequence[SpikingModel],
    x: Tensor,
    *,
    escape: Surrogate | None = None,
    kind: str | None = None,
    widths: Sequence[float] | None = None,
    T: int | None = None,
    prepare: Prepare | None = None,
    memory: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> OneSided:
    """Compare the kernels of surrogate training with the true kernel of an escape-noise network.

    The smooth network emits its expected spikes, ``escape.primitive(u − v_th)``, gradients flow
    through the reset, and its Jacobian is exact. Beside it: the same forward pass with the slopes
    of a surrogate (two- and one-sided), and the network of true spikes.

    Args:
        models: a spiking network in eval mode, or several initialisations of one configuration; a
            refractory period, which needs spikes, is left out.
        x: samples [n, C, H, W], or events [T, n, C, H, W]; at least 8.
        escape: smooth step whose width is 1/δ, a firing probability and so of scale 1; the
            network's own surrogate, without its scale, by default.
        kind: of the surrogates; the kind of ``escape`` by default.
        widths: of the surrogates; :data:`RATIOS` times that of ``escape`` by default.
        T: timesteps of static inputs.
        prepare: calibrates the smooth and the spiking network each on its own.
        memory: GiB the gradients may take; half of the free memory by default.
        confidence: nominal coverage of the intervals.
        seed: of the groups of samples left out in turn.

    Raises:
        ConfigError: an unknown surrogate, a scale other than 1, or no widths.
        DataError: fewer than 8 samples.
        ModelError: networks that differ, a continuous one, or one the kernel does not cover.
        BudgetError: the gradients of all samples do not fit ``memory``.
    """
    networks = as_networks(models)
    step = replace(networks[0].config.neuron.surrogate, scale=1.0) if escape is None else escape
    if step.scale != 1:
        raise ConfigError(
            f"escape has scale {step.scale:g}: its smooth step would end there, and a firing "
            "probability ends at 1; give scale=1"
        )
    shape = step.kind if kind is None else kind
    tried = sorted(
        {float(w) for w in ([r * step.width for r in RATIOS] if widths is None else widths)}
    )
    if not tried:
        raise ConfigError("widths must not be empty")
    slopes = [Surrogate(shape, width) for width in tried]
    groups = split(samples_of(x), seed)
    found: dict[tuple[str, float | None], list[Array]] = {}
    true_sizes = []
    with task("one-sided kernels", len(networks) * len(slopes)) as bar:
        for network in networks:
            smooth = variant(
                network,
                None,
                T,
                prepare,
                smooth=True,
                refractory=0,
                detach_reset=False,
                surrogate=step,
            )
            spiking = variant(network, None, T, prepare, refractory=0)
            true = None
            for slope in slopes:
                true, one, two = _kernels(smooth, Mismatched(shape, slope.width, step), x, memory)
                hard = gram(with_surrogate(spiking, slope), x, memory=memory).values
                for name, kernel in ((TWO_SIDED, two), (ONE_SIDED, one), (SPIKING, hard)):
                    rows = found.setdefault((name, slope.width), [])
                    rows.append(_statistics(kernel, true, groups))
                bar.advance(detail=f"{slope.width:g}")
            assert true is not None
            last = gram(with_surrogate(spiking, _Flat("gaussian", 1.0)), x, memory=memory).values
            found.setdefault((LAST, None), []).append(_statistics(last, true, groups))
            true_sizes.append(_statistics(true, true, groups)[2])
    made = [
        Likeness(name, width, *_estimates(np.stack(values), confidence))
        for (name, width), values in found.items()
    ]
    order = (TWO_SIDED, ONE_SIDED, SPIKING, LAST)
    return OneSided(
        step,
        shape,
        T,
        samples_of(x),
        len(networks),
        exponential(combined(np.log(np.stack(true_sizes)), confidence)),
        tuple(sorted(made, key=lambda row: (order.index(row.kernel), row.width or 0.0))),
    )


def _estimates(values: Array, confidence: float) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Of [networks, 4, 1 + groups]; error and d_eff, which are positive, by their logarithms."""
    error, alignment, size, asymmetry = np.moveaxis(values, 1, 0)
    off = exponential(combined(np.log(np.maximum(error, _ROUNDING)), confidence))
    return (
        Estimate(0.0, 0.0, 0.0, off.n, method=off.method) if (error <= _ROUNDING).all() else off,
        combined(alignment, confidence).within(-1.0, 1.0),
        exponential(combined(np.log(size), confidence)),
        combined(asymmetry, confidence).within(0.0, 1.0),
    )


def _kernels(
    smooth: SpikingModel, slope: Surrogate, x: Tensor, memory: float | None
) -> tuple[Array, Array, Array]:
    """J_true·J_trueᵀ, J_true·J_sgᵀ and J_sg·J_sgᵀ of one forward pass, traced over outputs."""
    setup = setup_of(smooth, x, None, logits)
    sums = output_sums(setup, x, "trace")
    n, found, budget = setup.count(x), probe(setup, x), budget_of(memory)
    need = 2.0 * n * (found.saved + 2 * found.columns * found.itemsize)
    if need > budget:
        raise BudgetError(
            f"the gradients of {n:,} samples by two surrogates take {need / 2**30:.3g} GiB, over "
            f"the {budget / 2**30:.3g} GiB allowed; use fewer samples or a smaller network"
        )
    sides = [_Rows(replace(setup, model=with_surrogate(smooth, s)), x) for s in (None, slope)]
    out = np.zeros((3, n, n))
    for weights in sums:
        a, b = (dict(side.gradients(weights)) for side in sides)
        for name in a:
            for place, (left, right) in enumerate(((a, a), (a, b), (b, b))):
                out[place] += products(left[name][None], right[name][None], False).cpu().numpy()
    return out[0], out[1], out[2]


class _Rows:
    """Gradients [n, P] of every parameter, one sum of outputs at a time."""

    def __init__(self, setup: Setup, x: Tensor, batch: int = 16) -> None:
        parts = spans(setup.count(x), batch)
        self._captures: list[Capture] = [setup.capture(setup.batch(x, *part)) for part in parts]

    def gradients(self, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """By parameter."""
        with torch.no_grad():
            parts = [c.gradients(weights[None], last=False) for c in self._captures]
            for name in parts[0]:
                yield name, torch.cat([part[name].dense()[0] for part in parts])


def _statistics(kernel: Array, true: Array, groups: Sequence[Array]) -> Array:
    """Error, alignment, d_eff and asymmetry, [4, 1 + groups], with each group left out in turn."""
    everything = np.arange(len(true))
    rows = []
    for index in (everything, *(np.setdiff1d(everything, group) for group in groups)):
        k, t = (m[np.ix_(index, index)] for m in (kernel, true))
        with np.errstate(divide="ignore", invalid="ignore"):  # a silent network has none
            error = np.linalg.norm(k - t) / np.linalg.norm(t)
            asymmetry = np.linalg.norm(k - k.T) / (2 * np.linalg.norm(k))
            k = centered_gram(k)
            values = np.linalg.svd(k, compute_uv=False)
            dimension = values.sum() ** 2 / (values**2).sum()
            t = centered_gram(t)
            alignment = (k * t).sum() / (np.linalg.norm(k) * np.linalg.norm(t))
            rows.append((error, alignment, dimension, asymmetry))
    return np.array(rows).T
