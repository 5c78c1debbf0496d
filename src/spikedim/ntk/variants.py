"""Variants of one network whose neurons differ: their kernels, dimensions and membranes.

What :mod:`~spikedim.ntk.reduction`, :mod:`~spikedim.ntk.effects` and :mod:`~spikedim.ntk.invert`
share: how a mechanism of the neuron is switched off, what is measured on a variant, and the
interval of a number that compares variants on the same samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from spikedim.dimension import list_estimators
from spikedim.dimension.estimators import Estimator, get_estimator
from spikedim.dimension.moments import centered_gram
from spikedim.dimension.spectrum import spectrum_of_gram
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import calibrate_batchnorm
from spikedim.models.base import SpikingModel, evaluating, foreign
from spikedim.neurons import LIF, PLIF, LIFParams, record
from spikedim.neurons.continuous import steady_potential, surrogate_activation
from spikedim.neurons.lif import lif_spikes
from spikedim.ntk.capture import parameters_of
from spikedim.ntk.kernel import gram
from spikedim.results import Estimate

Array = NDArray[np.float64]
Prepare = Callable[[SpikingModel], object]

#: What turns the continuous twin into the spiking neuron, in the order of the published product.
MECHANISMS = ("threshold", "leak", "reset", "refractory")
#: Mechanisms without which one does nothing: a membrane without memory has nothing to reset, and
#: a refractory period starts with a spike.
NEEDS: dict[str, tuple[str, ...]] = {
    "threshold": (),
    "leak": (),
    "reset": ("threshold", "leak"),
    "refractory": ("threshold",),
}
GROUPS = 20
#: Spikes per neuron and step below which a kernel rests on a few spikes.
QUIET = 0.005


def configured(neuron: LIFParams) -> tuple[str, ...]:
    """Mechanisms that these neurons have: threshold and leak, and what is not switched off."""
    absent = {"reset": neuron.reset == "none", "refractory": neuron.refractory == 0}
    return tuple(name for name in MECHANISMS if not absent.get(name))


def closure(names: Collection[str], present: Collection[str]) -> tuple[str, ...]:
    """The mechanisms ``names`` with those they need, as far as they are ``present``."""
    wanted = {*names, *(need for name in names for need in NEEDS[name])} & {*present}
    return tuple(name for name in MECHANISMS if name in wanted)


def variant(
    model: SpikingModel,
    on: Collection[str] | None = None,
    T: int | None = None,
    prepare: Prepare | None = None,
    **changes: Any,
) -> SpikingModel:
    """A copy of the network with other neurons, in eval mode; ``model`` is left as it is.

    - threshold: spikes Θ(u − v_th), surrogate backward; off: ``surrogate.primitive(u − v_th)``.
    - leak: u_t = β·u_{t−1} + g·x_t; off: u_t = g·x_t/(1 − β), the steady potential at once.
    - reset: as configured; off: ``reset="none"``.
    - refractory: as configured; off: 0 steps.

    Args:
        model: the network.
        on: mechanisms that stay on, with those they need; none is ``model.continuous()``, which
            needs a single step of a static input. ``None`` leaves all as they are.
        T: timesteps of static inputs, which become the default of the copy.
        prepare: calibrates or trains the copy, which then owns all its tensors. Without it the
            copy shares parameters and running statistics with ``model``.
        **changes: other neuron parameters, as for ``model.set_neurons``.

    Raises:
        ConfigError: unknown mechanism, one without those it needs, a value out of its domain, or
            another beta for neurons that have learned theirs.
    """
    if "beta" in changes and any(isinstance(module, PLIF) for module in model.modules()):
        raise ConfigError("the network learns its leak: beta (tau_m) cannot be set from outside")
    tensors = () if prepare else (*model.parameters(), *model.buffers())
    twin: SpikingModel = copy.deepcopy(model, {id(t): t for t in tensors})
    twin.default_timesteps = twin.default_timesteps if T is None else T
    if changes:
        twin.set_neurons(**changes)
    if on is not None:
        _switch(twin, on)
    if prepare is not None:
        prepare(twin)
    return twin.eval()


def instantaneous(x: Tensor, params: LIFParams) -> Tensor:
    """Neurons without membrane memory: the potential stands at its steady value at once."""
    plain = replace(params, beta=0.0, decay_input=False, reset="none")
    return lif_spikes(steady_potential(x, params), plain)


def _switch(model: SpikingModel, on: Collection[str]) -> None:
    """Switch every mechanism off that is not ``on``, in place."""
    for name in on:
        if name not in MECHANISMS:
            raise ConfigError(f"mechanism {name!r} is unknown; choose of {', '.join(MECHANISMS)}")
        if missing := [need for need in NEEDS[name] if need not in on]:
            raise ConfigError(f"mechanism {name!r} does nothing without {', '.join(missing)}")
    changes: dict[str, Any] = {}
    if "reset" not in on:
        changes["reset"] = "none"
    if "refractory" not in on:
        changes["refractory"] = 0
    if "threshold" not in on:
        changes["smooth"] = True
    if not on:
        model.default_timesteps = 1
    for layer in model.modules():
        if isinstance(layer, LIF):
            layer.params = replace(layer.params, **changes)
            if "leak" not in on:
                layer.activation = instantaneous if on else surrogate_activation


def calibrated(*batches: Tensor) -> Prepare:
    """A ``prepare`` that gives each variant batch-norm statistics of its own, from ``batches``.

    The right thing for networks at initialisation: with the statistics of another variant their
    layers see inputs that no training would leave them with.
    """
    return lambda model: calibrate_batchnorm(model, batches)


@dataclass(frozen=True)
class Membrane:
    """Potentials (before reset) and spikes of one neuron layer, or of all of them.

    Attributes:
        layer: path in the network.
        threshold: v_th.
        mean, deviation: μ_V and σ_V over steps, samples and neurons, in units of potential.
        rate: spikes per neuron and step (mean activity where neurons are smooth).
        neurons: number of neurons.
    """

    layer: str
    threshold: float
    mean: float
    deviation: float
    rate: float
    neurons: int


@torch.no_grad()
def membrane(model: SpikingModel, x: Tensor) -> tuple[Membrane, ...]:
    """Membrane statistics of every layer, in order of execution."""
    layers = dict(model.named_modules())
    with evaluating(model), record(model, ("spikes", "potential")) as recording:
        model(x)
    rows = []
    for name, trace in recording.items():
        module = layers[name.split("#")[0]]
        assert isinstance(module, LIF)
        assert trace.spikes is not None
        assert trace.potential is not None
        u = trace.potential.double()
        threshold = float(torch.as_tensor(module.dynamics().threshold).double().mean())
        deviation = float(u.std(correction=0))
        rate = float(trace.spikes.double().mean())
        neurons = u[0].numel() // samples_of(x)
        rows.append(Membrane(name, threshold, float(u.mean()), deviation, rate, neurons))
    return tuple(rows)


def firing_rate(model: SpikingModel, x: Tensor) -> float:
    """Spikes per neuron and step, all neurons together."""
    return mean_rate(firing_rates(model, x))


def mean_rate(rates: Sequence[tuple[float, int]]) -> float:
    """All neurons together, of what :func:`firing_rates` returns."""
    return sum(rate * size for rate, size in rates) / sum(size for _, size in rates)


@torch.no_grad()
def firing_rates(model: SpikingModel, x: Tensor) -> list[tuple[float, int]]:
    """Spikes per neuron and step of each layer, and how many neurons and steps these are."""
    with evaluating(model), record(model) as recording:
        model(x)
    return [(float(s.double().mean()), s.numel()) for s in recording.spikes.values()]


def pooled(rows: Sequence[Membrane]) -> Membrane:
    """All neurons of a network together, potentials in units of their own threshold."""
    total = sum(row.neurons for row in rows)
    share = np.array([row.neurons / total for row in rows])
    mean = np.array([row.mean / row.threshold for row in rows])
    square = mean**2 + np.array([row.deviation / row.threshold for row in rows]) ** 2
    middle = float(share @ mean)
    deviation = math.sqrt(max(float(share @ square) - middle**2, 0.0))
    rate = float(share @ np.array([row.rate for row in rows]))
    return Membrane("all", 1.0, middle, deviation, rate, total)


def estimators(chosen: str) -> tuple[Estimator, ...]:
    """``chosen`` and every other estimator that reads a spectrum; PCA counts real-valued.

    Raises:
        ConfigError: unknown, or one that needs the samples themselves.
    """
    first = get_estimator(chosen)
    if first.needs != "spectrum":
        raise ConfigError(f"estimator {chosen!r} reads samples; a kernel has only a spectrum")
    known = [get_estimator("pca95_real"), *list_estimators()[1:]]
    rest = [item for item in known if item.needs == "spectrum" and item.key != chosen]
    return (first, *rest)


def kernel_logs(
    model: SpikingModel,
    x: Tensor,
    items: Sequence[Estimator],
    center: bool,
    groups: Sequence[Array],
    method: str,
    memory: float | None,
) -> Array:
    """:func:`log_dimensions` of a network's trace kernel; of parameters without a rule too."""
    kernel = np.asarray(gram(model, x, method=method, fallback=True, memory=memory).values)
    return log_dimensions(kernel, items, center, parameters_of(model), groups)


def log_dimensions(
    kernel: Array,
    items: Sequence[Estimator],
    center: bool,
    parameters: int,
    groups: Sequence[Array],
) -> Array:
    """Logarithms of the dimensions of a kernel and of it without each group of samples.

    Args:
        kernel: [n, n].
        items: the estimators.
        center: of HKH rather than K.
        parameters: P, which bounds the dimension.
        groups: indices of the samples of each group.

    Returns:
        [1 + groups, estimators]; NaN where a kernel is zero: a silent network has no dimension.
    """
    everything = np.arange(len(kernel))
    kept = [everything, *(np.setdiff1d(everything, group) for group in groups)]
    rows = []
    for index in kept:
        part = kernel[np.ix_(index, index)]
        spectrum = spectrum_of_gram(centered_gram(part) if center else part, parameters, center)
        rows.append([item.function(spectrum) for item in items])
    values = np.array(rows, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def split(n: int, seed: int) -> list[Array]:
    """Samples in at most 20 random groups, for the jackknife.

    Raises:
        DataError: fewer than 8 samples.
    """
    if n < 8:
        raise DataError(f"{n} samples; at least 8 are needed for an effective dimension")
    return np.array_split(np.random.default_rng(seed).permutation(n), min(GROUPS, n // 2))


def combined(values: Array, confidence: float = 0.95) -> Estimate:
    """Mean over networks with the interval for other samples and other initialisations.

    The variance of the mean over networks and the jackknife variance over groups of samples add
    up; Student's quantile with Satterthwaite's degrees of freedom.

    Args:
        values: [networks, 1 + groups]: of all samples, then without each group. Networks with
            NaN are left out.
        confidence: nominal coverage.
    """
    known = values[np.isfinite(values).all(axis=1)]
    count, groups = len(known), values.shape[1] - 1
    if not count:
        return Estimate(math.nan, n=0, confidence=confidence, method="silent")
    whole, left = float(known[:, 0].mean()), known[:, 1:].mean(axis=0)
    samples = (groups - 1) / groups * float(((left - left.mean()) ** 2).sum())
    networks = float(known[:, 0].var(ddof=1)) / count if count > 1 else 0.0
    method = f"jackknife over {groups} groups of samples, {count} network{'s' * (count > 1)}"
    variance = samples + networks
    if variance == 0:
        return Estimate(whole, whole, whole, count, "", confidence, method)
    spread = samples**2 / (groups - 1) + (networks**2 / (count - 1) if count > 1 else 0.0)
    reach = float(stats.t.ppf(0.5 + confidence / 2, variance**2 / spread)) * math.sqrt(variance)
    return Estimate(whole, whole - reach, whole + reach, count, "", confidence, method)


def over_networks(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Geometric mean over networks, with Student's interval of the mean logarithm.

    Args:
        values: of networks; those that are 0, of silent networks, are left out.
        confidence: nominal coverage.

    Returns:
        NaN where fewer than two are left.
    """
    logs = np.log([value for value in values if value > 0])
    count = len(logs)
    if count < 2:
        return Estimate(math.nan, n=count, confidence=confidence, method="silent networks")
    spread = float(logs.std(ddof=1)) / math.sqrt(count)
    reach = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * spread
    mean, method = float(logs.mean()), f"Student over {count} networks, of the logarithm"
    return exponential(Estimate(mean, mean - reach, mean + reach, count, "", confidence, method))


def exponential(estimate: Estimate) -> Estimate:
    """The estimate of a logarithm as one of the number itself."""
    low, high = (None if v is None else math.exp(v) for v in (estimate.low, estimate.high))
    return replace(estimate, value=math.exp(estimate.value), low=low, high=high)


def as_networks(models: SpikingModel | Sequence[SpikingModel]) -> tuple[SpikingModel, ...]:
    """One or several networks.

    Raises:
        ModelError: something else, or networks with different neurons.
    """
    networks = tuple(models) if isinstance(models, Sequence) else (models,)
    if not networks:
        raise ModelError("no network; give one or several initialisations of one")
    for network in networks:
        if not isinstance(network, SpikingModel):
            raise ModelError(foreign(network))
    if any(network.config != networks[0].config for network in networks):
        raise ModelError("the networks differ by more than their weights; give one configuration")
    if networks[0].kept:
        raise ModelError(
            f"neurons {', '.join(networks[0].kept)} are kept as they are and cannot be varied; "
            "register an equivalent with spikedim.adapters.register_neuron"
        )
    if networks[0].config.neuron is None:
        raise ModelError(f"{type(networks[0]).__name__} has no LIF neurons to vary")
    layers = [m for network in networks for m in network.modules() if isinstance(m, LIF)]
    if any(layer.activation is not None or layer.params.smooth for layer in layers):
        raise ModelError("the network is continuous already; give the spiking one")
    return networks


def samples_of(x: Tensor) -> int:
    """Number of samples, [n, C, H, W] or events [T, n, C, H, W]."""
    return x.shape[1] if x.ndim == 5 else len(x)
