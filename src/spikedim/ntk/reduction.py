"""The reduction factor R = d_eff(spiking)/d_eff(continuous), measured mechanism by mechanism.

Published as a product of closed forms in the membrane statistics (claims R-PRODUCT, R-REGIMES).
Here every mechanism is switched on alone, in pairs and together on the same weights and samples;
see :func:`~spikedim.ntk.variants.variant` for what a switch does. A participation ratio
does not change when a kernel is scaled, so nothing forces the factors to multiply.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from spikedim.errors import ConfigError
from spikedim.models.base import SpikingModel
from spikedim.neurons import LIFParams
from spikedim.ntk.ticks import readable_log
from spikedim.ntk.variants import (
    NEEDS,
    Array,
    Membrane,
    Prepare,
    as_networks,
    closure,
    combined,
    configured,
    estimators,
    exponential,
    kernel_logs,
    membrane,
    pooled,
    samples_of,
    split,
    variant,
)
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table, number
from spikedim.theory import reduction as closed

On = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """The network with some mechanisms on.

    Attributes:
        on: mechanisms; none is the continuous twin.
        dimension: d_eff by the chosen estimator.
        rate: spikes per neuron and step; mean activity of the twin.
        mean, deviation: μ_V and σ_V in units of the threshold, all neurons together.
    """

    on: On
    dimension: Estimate
    rate: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Factor:
    """Measured change of d_eff by a mechanism, beside the closed forms.

    Attributes:
        mechanism: what is switched on; ``"joint"`` is all of them against the continuous twin.
        base: mechanisms on before and after.
        measured: by estimator, the chosen one first; intervals cover other samples (and
            initialisations, where several were given).
        published, corrected: closed forms at the measured membrane statistics; ``None`` where the
            theory has none, NaN outside its domain.
    """

    mechanism: str
    base: On
    measured: dict[str, Estimate]
    published: float | None = None
    corrected: float | None = None

    @property
    def label(self) -> str:
        """Mechanism, and what it is added to if not to the twin or to what it needs."""
        extra = [name for name in self.base if name not in NEEDS.get(self.mechanism, ())]
        return f"{self.mechanism} ({' + '.join(extra)} on)" if extra else self.mechanism

    @property
    def value(self) -> Estimate:
        """By the chosen estimator."""
        return next(iter(self.measured.values()))

    def error(self, form: float | None) -> float | None:
        """Relative error of a closed form against the measured value."""
        return None if form is None else form / self.value.value - 1


@dataclass(frozen=True)
class Together:
    """Several mechanisms at once against the product of their factors.

    Attributes:
        on: the mechanisms.
        joint: measured d_eff over that of the continuous twin.
        product: of the measured factors of ``on``.
        gap: product over joint; 1 where the mechanisms multiply.
    """

    on: On
    joint: Estimate
    product: Estimate
    gap: Estimate


@dataclass(frozen=True)
class Reduction(Result):
    """Reduction factors of a network.

    Attributes:
        neuron: the neuron with everything on.
        T, samples, networks: timesteps, samples of the kernel, initialisations.
        estimator, centered: which dimension of which kernel (HKH where centred).
        settings: d_eff, rate and membrane of each combination.
        factors: of each mechanism, of the threshold in a membrane that leaks already, and of all
            of them (``"joint"``).
        products: for each combination of two or more whose product is not its joint R by
            construction; the whole neuron last.
        layers: membrane of each layer with threshold and leak on, first network.
        notes: what limits the numbers.
    """

    neuron: LIFParams
    T: int | None
    samples: int
    networks: int
    estimator: str
    centered: bool
    settings: tuple[Setting, ...]
    factors: tuple[Factor, ...]
    products: tuple[Together, ...]
    layers: tuple[Membrane, ...]
    notes: tuple[str, ...]

    @property
    def joint(self) -> Factor:
        """R of the whole neuron."""
        return self.factors[-1]

    def tables(self) -> list[Table]:
        """Factors with the closed forms, products, combinations, layers, other estimators."""
        about = "centred" if self.centered else "uncentred"
        some = f"{self.samples} samples, {self.networks} network{'s' * (self.networks > 1)}"
        title = f"Reduction of d_eff ({self.estimator} of the {about} trace kernel), {some}"
        rows = [
            (
                f.mechanism,
                _names(f.base),
                f.value,
                f.published,
                _percent(f.error(f.published)),
                f.corrected,
                _percent(f.error(f.corrected)),
            )
            for f in self.factors
        ]
        columns = ("mechanism", "added to", "factor", "published", "error", "corrected", "error")
        products = [(_names(p.on), p.joint, p.product, p.gap) for p in self.products]
        combined = [(_names(s.on), s.dimension, s.rate, s.mean, s.deviation) for s in self.settings]
        keys = list(self.joint.measured)
        every = [(f.label, *(f.measured[key] for key in keys)) for f in self.factors]
        membranes = [
            (m.layer, m.threshold, m.mean, m.deviation, m.rate, m.neurons) for m in self.layers
        ]
        units = ("layer", "v_th", "μ_V", "σ_V", "spikes/step", "neurons")
        return [
            Table(title, columns, rows, self.notes),
            Table(
                "Product of factors against joint",
                ("on", "joint R", "product", "product / joint"),
                products,
            ),
            Table("Combinations", ("on", "d_eff", "rate", "μ_V/v_th", "σ_V/v_th"), combined),
            Table("Factors by estimator", ("mechanism", *keys), every),
            Table("Membrane, threshold and leak on", units, membranes),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Measured factors with intervals, closed forms as marks; returns the matplotlib axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for place, factor in enumerate(self.factors):
            e = factor.value
            ends = [[reach] for reach in e.reach]
            label = "measured" if not place else None
            ax.errorbar([place], [e.value], ends, fmt="o", color="#1f5a93", capsize=3, label=label)
        for name, mark, colour in (("published", "x", "#b8321f"), ("corrected", "+", "#3d8b40")):
            known = [
                (i, value)
                for i, f in enumerate(self.factors)
                if (value := getattr(f, name)) is not None
            ]
            ax.plot(*zip(*known, strict=True), mark, color=colour, label=f"closed form, {name}")
        product = self.products[-1].product.value
        ax.plot(
            [len(self.factors) - 1], [product], "s", mfc="none", color="#1f5a93", label="product"
        )
        ax.axhline(1, color="0.6", lw=0.8)
        names = [f.label.replace(" (", "\n(") for f in self.factors]
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.set_ylabel("d_eff ratio")
        readable_log(ax.yaxis)
        ax.legend(fontsize=7, frameon=False)
        return ax


def reduction(
    models: SpikingModel | Sequence[SpikingModel],
    x: Tensor,
    *,
    T: int | None = None,
    estimator: str = "pr",
    center: bool = True,
    prepare: Prepare | None = None,
    method: str = "auto",
    memory: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Reduction:
    """Measure the reduction factor with each mechanism on alone, in pairs and together.

    A mechanism's factor is d_eff with it on over d_eff without it, everything else off but what
    it needs: threshold and leak are measured against the continuous twin, the reset on top of
    both (a membrane without memory has nothing to reset), the refractory period on top of the
    threshold. Closed forms take μ_V and σ_V of the network in which the factor starts to act,
    potentials in units of each layer's threshold. T_ISI counts the dead time: of the refractory
    period alone it is measured (published) or ``t_ref + 1/q`` from the rate q without one
    (corrected), in the joint forms ``t_ref + 1/Φ(-α)``.

    Args:
        models: a network in eval mode, at initialisation or trained, or several initialisations
            of one configuration; its neurons are everything on. ``set_neurons`` gives them a
            refractory period or a reset potential.
        x: samples [n, C, H, W], or events [T, n, C, H, W]; at least 8.
        T: timesteps of static inputs.
        estimator: which dimension leads; every other of a spectrum is measured with it.
        center: the kernel HKH; ``False`` for K itself, which one direction dominates.
        prepare: calibrates or trains each combination on its own, for example
            ``calibrated(x)``; by default all share weights and running statistics.
        method, memory: of :func:`spikedim.ntk.gram`.
        confidence: nominal coverage of the intervals.
        seed: of the groups of samples left out in turn.

    Raises:
        ConfigError: unknown estimator.
        DataError: fewer than 8 samples.
        ModelError: networks that differ, a continuous one, or one the kernel does not cover.

    Example:
        >>> from spikedim.models import create_model
        >>> from spikedim.ntk.reduction import reduction
        >>> net = create_model("spikformer_nano").set_neurons(refractory=1)
        >>> print(reduction(net, x, T=4, prepare=calibrated(x)))  # doctest: +SKIP
    """
    networks = as_networks(models)
    neuron: LIFParams = networks[0].config.neuron
    items = estimators(estimator)
    groups = split(samples_of(x), seed)
    present = configured(neuron)
    asked = [names for size in range(len(present) + 1) for names in combinations(present, size)]
    settings = sorted(dict.fromkeys(closure(names, present) for names in asked), key=len)
    logs: dict[On, list[Array]] = {on: [] for on in settings}
    potentials: dict[On, list[tuple[Membrane, ...]]] = {on: [] for on in settings}
    with task("reduction", len(networks) * len(settings)) as progress:
        for network in networks:
            for on in settings:
                other = variant(network, on, T, prepare)
                logs[on].append(kernel_logs(other, x, items, center, groups, method, memory))
                potentials[on].append(membrane(other, x))
                progress.advance(detail=_names(on))
    values = {on: np.stack(rows) for on, rows in logs.items()}  # [networks, 1 + groups, items]
    means = {on: _average([pooled(rows) for rows in found]) for on, found in potentials.items()}

    def estimate(difference: Array) -> Estimate:
        return exponential(combined(difference[..., 0], confidence))

    def factor(name: str) -> Array:
        on = closure((name,), present)
        return values[on] - values[_without(on, name)]

    def together(on: On) -> Together:
        joint, product = values[on] - values[()], sum(factor(name) for name in on)
        assert isinstance(product, np.ndarray)
        return Together(on, estimate(joint), estimate(product), estimate(product - joint))

    def described(name: str, before: On, after: On) -> Factor:
        measured = {
            item.key: exponential(combined((values[after] - values[before])[..., k], confidence))
            for k, item in enumerate(items)
        }
        return Factor(name, before, measured, *_closed_forms(name, neuron, means, before))

    leaky = ("threshold", "leak")
    factors = [
        *(described(n, _without(on := closure((n,), present), n), on) for n in present),
        described("threshold", ("leak",), leaky),
        described("joint", (), present),
    ]
    rows = tuple(
        Setting(on, estimate(values[on]), m.rate, m.mean, m.deviation) for on, m in means.items()
    )
    return Reduction(
        neuron,
        T,
        samples_of(x),
        len(networks),
        estimator,
        center,
        rows,
        tuple(factors),
        tuple(together(on) for on in settings if not _telescopes(on, present)),
        potentials[leaky][0],
        tuple(_notes(values, neuron)),
    )


def _telescopes(on: On, present: On) -> bool:
    """Whether the factors of ``on``, each on top of what it needs, multiply to R whatever they are.

    So they do for threshold and refractory period: R = d_t/d · d_tr/d_t.
    """
    terms: Counter[On] = Counter()
    for name in on:
        after = closure((name,), present)
        terms[after] += 1
        terms[_without(after, name)] -= 1
    terms[on] -= 1
    terms[()] += 1
    return not any(terms.values())


def _closed_forms(
    name: str, neuron: LIFParams, means: dict[On, Membrane], before: On
) -> tuple[float | None, float | None]:
    """Published and corrected form of a factor, potentials in units of the threshold."""
    v_reset = _reset_potential(neuron)
    dead = float(neuron.refractory)
    if name == "threshold":
        m = means[("threshold", *before)]
        arguments = (1.0, m.mean, m.deviation)
        return (
            _defined(closed.threshold_published, *arguments),
            _defined(closed.threshold_corrected, *arguments),
        )
    if name == "reset":
        return (_defined(closed.reset_published, v_reset, 1.0),) * 2
    if name == "refractory":
        alone, base = means[("threshold", "refractory")], means[("threshold",)]
        interval = 1 / alone.rate if alone.rate else math.inf
        return (
            _defined(closed.refractory_published, dead, interval),
            _defined(closed.refractory_renewal, dead, base.rate),
        )
    if name == "joint":
        m = means[("threshold", "leak")]
        everything = (1.0, m.mean, m.deviation, v_reset, dead)
        return (
            _defined(closed.reduction_published, *everything),
            _defined(closed.reduction_corrected, *everything),
        )
    return None, None


def _reset_potential(neuron: LIFParams) -> float:
    """V_reset/v_th of a hard reset; a soft one has no V_reset and counts as 0."""
    if neuron.reset != "hard":
        return 0.0
    threshold = neuron.threshold
    return neuron.v_reset / float(threshold.mean() if isinstance(threshold, Tensor) else threshold)


def _defined(form: Callable[..., float], *arguments: float) -> float:
    try:
        return form(*arguments)
    except (ConfigError, ZeroDivisionError):
        return math.nan


def _average(rows: Sequence[Membrane]) -> Membrane:
    """Mean over networks."""
    mean, deviation, rate = (
        float(np.mean([getattr(row, name) for row in rows]))
        for name in ("mean", "deviation", "rate")
    )
    return replace(rows[0], mean=mean, deviation=deviation, rate=rate)


def _notes(values: dict[On, Array], neuron: LIFParams) -> list[str]:
    notes = [
        f"{_names(on)}: {silent} of {len(found)} networks gave a kernel of zeros and are left out"
        for on, found in values.items()
        if (silent := int((~np.isfinite(found[:, 0, 0])).sum()))
    ]
    if not neuron.refractory:
        notes.append(
            "No refractory period: --neuron refractory=1 on the command line, "
            "set_neurons(refractory=1) in Python measures one."
        )
    if neuron.reset == "soft":
        notes.append("A soft reset has no V_reset: the closed forms take 0.")
    return notes


def _without(on: On, name: str) -> On:
    return tuple(other for other in on if other != name)


def _names(on: On) -> str:
    return " + ".join(on) if on else "continuous twin"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{number(100 * value, 3)} %"
