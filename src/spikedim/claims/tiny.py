"""A spiking perceptron small enough that its exact tangent kernel takes a blink.

Two hidden LIF layers, real digits as constant input, linear read-out averaged over time. The
Jacobian of every output with respect to every weight is exact (torch.func), the kernel is traced
over outputs and centred, and d_eff is its participation ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from spikedim.data import load_dataset
from spikedim.neurons import LIFParams, lif_potential
from spikedim.neurons import lif as spiking_layer

Weights = tuple[Tensor, ...]
#: One neuron for both layers, or one of each.
Neurons = LIFParams | tuple[LIFParams, LIFParams]

#: The published neuron: soft reset, unit gain.
NEURON = LIFParams(beta=0.5, reset="soft", decay_input=False)


@dataclass(frozen=True)
class Tiny:
    """Sizes of the network and of the sample its kernel is taken on."""

    width: int = 48
    outputs: int = 4
    T: int = 8
    samples: int = 64


SIZE = Tiny()
CLASSIFIER = Tiny(outputs=10)
#: Steps of a short training.
SHORT = 60
_STEPS, _RATE, _TEST = 150, 0.01, 360


@lru_cache
def digits(samples: int, seed: int = 0, split: str = "train") -> tuple[Tensor, Tensor]:
    """Standardised pixels [n, 64] and labels [n] of the built-in digits."""
    x, y = load_dataset("digits").tensors(split, samples, seed)
    return x.flatten(1), y


def weights(size: Tiny, seed: int) -> Weights:
    """Gaussian weights, variance 2/fan-in, of the two hidden layers and the read-out."""
    generator = torch.Generator().manual_seed(seed)
    widths = (64, size.width, size.width, size.outputs)
    return tuple(
        torch.randn(b, a, generator=generator) * (2 / a) ** 0.5 for a, b in pairwise(widths)
    )


def by_layer(neuron: Neurons) -> tuple[LIFParams, LIFParams]:
    """The neuron of each hidden layer."""
    return neuron if isinstance(neuron, tuple) else (neuron, neuron)


def forward(parameters: Weights, x: Tensor, neuron: Neurons, T: int) -> Tensor:
    """Outputs [..., outputs] of inputs [..., 64]."""
    first, second, readout = parameters
    lower, upper = by_layer(neuron)
    hidden = (x @ first.T).expand(T, *x.shape[:-1], len(first))
    hidden, _ = spiking_layer(hidden, lower)
    hidden, _ = spiking_layer(hidden @ second.T, upper)
    return hidden.mean(0) @ readout.T


@dataclass(frozen=True)
class Activity:
    """What the hidden layers do.

    Attributes:
        rates: spikes per neuron and step of each layer.
        answered: share of the samples for which the read-out gets a spike; the output of the
            others is zero.
        potential: before reset, both layers together.
    """

    rates: tuple[float, float]
    answered: float
    potential: Tensor


@torch.no_grad()
def activity(parameters: Weights, x: Tensor, neuron: Neurons, T: int) -> Activity:
    """Spikes and potentials of both hidden layers on x [n, 64]."""
    first, second, _ = parameters
    lower, upper = by_layer(neuron)
    spikes, below, _ = lif_potential((x @ first.T).expand(T, len(x), len(first)), lower)
    later, above, _ = lif_potential(spikes @ second.T, upper)
    return Activity(
        (float(spikes.mean()), float(later.mean())),
        float((later.sum((0, 2)) > 0).float().mean()),
        torch.cat([below.flatten(), above.flatten()]),
    )


def continuous(neuron: LIFParams = NEURON) -> LIFParams:
    """The continuous counterpart: the same leak and threshold, smooth step, no reset."""
    return replace(neuron, smooth=True, reset="none", v_reset=0.0, refractory=0)


def kernel(parameters: Weights, x: Tensor, neuron: Neurons, T: int) -> Tensor:
    """Trace kernel ``K(x, x') = Σ_o ⟨J_o(x), J_o(x')⟩``, float64 [n, n]."""

    def output(p: Weights, sample: Tensor) -> Tensor:
        return forward(p, sample, neuron, T)

    jacobian = torch.func.vmap(torch.func.jacrev(output), (None, 0))(parameters, x)
    gram = torch.zeros(len(x), len(x), dtype=torch.float64)
    for block in jacobian:
        flat = block.flatten(1).double()
        gram += flat @ flat.T
    return gram


def participation(gram: Tensor, centred: bool = True) -> float:
    """``(Σλ)²/Σλ²`` of a kernel, centred (HKH) or as it is; 0 for a kernel of zeros."""
    if centred:
        gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    square = float((gram**2).sum())
    return float(gram.trace()) ** 2 / square if square > 0 else 0.0


def d_eff(size: Tiny, neuron: Neurons, seed: int, centred: bool = True) -> float:
    """Participation ratio of the kernel of a fresh network on digits; NaN where nothing responds.

    A layer so silent that no surrogate slope is left has no kernel, hence no dimension.
    """
    x, _ = digits(size.samples)
    value = participation(kernel(weights(size, seed), x, neuron, size.T), centred)
    return value if value > 0 else float("nan")


def ratio(parameters: Weights, x: Tensor, neuron: Neurons, T: int) -> float:
    """R: centred participation ratio over that of the continuous counterpart.

    NaN where no spike reaches the read-out for most samples: what is left of the kernel is then
    surrogate slopes of a network that computes nothing.
    """
    if not activity(parameters, x, neuron, T).answered > 0.5:
        return float("nan")
    value = participation(kernel(parameters, x, neuron, T))
    lower, upper = by_layer(neuron)
    twin = participation(kernel(parameters, x, (continuous(lower), continuous(upper)), T))
    return value / twin or float("nan")


@lru_cache(maxsize=512)
def trained(
    n: int, seed: int, neuron: LIFParams = NEURON, shuffled: bool = False, steps: int = _STEPS
) -> Weights:
    """Weights of the classifier after full-batch Adam on n digits, from those of ``weights``.

    Args:
        n: training samples.
        seed: of samples, weights and shuffling.
        neuron: dynamics in which it is trained.
        shuffled: exchange the labels among the samples first.
        steps: of the optimiser.
    """
    x, y = _task(n, seed, shuffled)
    parameters = weights(CLASSIFIER, seed)
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser = torch.optim.Adam(parameters, _RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        logits = forward(parameters, x, neuron, CLASSIFIER.T)
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimiser.step()
    return tuple(parameter.detach() for parameter in parameters)


def trained_d_eff(neuron: LIFParams, seed: int, twin: LIFParams | None = None) -> float:
    """:func:`d_eff` after a short training on 256 digits, which learns nearly all of them.

    Args:
        neuron: dynamics of the training.
        seed: of everything.
        twin: dynamics in which the trained weights are measured; by default the same.
    """
    x, _ = digits(SIZE.samples)
    parameters = trained(256, seed, neuron, steps=SHORT)
    gram = kernel(parameters, x, neuron if twin is None else twin, CLASSIFIER.T)
    return participation(gram) or float("nan")


@torch.no_grad()
def error_rate(parameters: Weights, x: Tensor, y: Tensor, neuron: LIFParams = NEURON) -> float:
    """Share of wrong answers."""
    return float((forward(parameters, x, neuron, CLASSIFIER.T).argmax(1) != y).float().mean())


def gap(
    n: int, seed: int, shuffled: bool, neuron: LIFParams = NEURON, steps: int = _STEPS
) -> tuple[float, float]:
    """Train on n digits, with their labels or with shuffled ones, and compare with the test set.

    Returns:
        Test error minus training error, a fraction; and d_eff of the kernel at the start.
    """
    x, y = _task(n, seed, shuffled)
    dimension = participation(kernel(weights(CLASSIFIER, seed), x, neuron, CLASSIFIER.T))
    parameters = trained(n, seed, neuron, shuffled, steps)
    unseen = error_rate(parameters, *digits(_TEST, seed, "test"), neuron)
    return unseen - error_rate(parameters, x, y, neuron), dimension


def ridge_fit(n: int, seed: int, trials: int = 200) -> tuple[float, float]:
    """Kernel ridge regression of pure noise: what it fits, and d(λ) that bounds it.

    With labels of variance 1 the fit ``H·y``, ``H = K(K + μI)⁻¹``, has ``E‖H·y‖² = tr H² <=
    tr H = d(μ)`` (Zhang 2005); μ is 1 % of the largest eigenvalue of the kernel.

    Returns:
        Mean ‖H·y‖² over trials, and d(μ).
    """
    x, _ = digits(n, seed)
    gram = kernel(weights(SIZE, seed), x, NEURON, SIZE.T)
    penalty = 0.01 * float(torch.linalg.eigvalsh(gram)[-1])
    smoother = torch.linalg.solve(gram + penalty * torch.eye(n, dtype=gram.dtype), gram)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, trials, generator=generator, dtype=gram.dtype)
    return float(((smoother @ noise) ** 2).sum(0).mean()), float(smoother.trace())


def _task(n: int, seed: int, shuffled: bool) -> tuple[Tensor, Tensor]:
    x, y = digits(n, seed)
    if shuffled:
        y = y[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    return x, y
