"""Lipschitz constant of a network, estimated from its Jacobian over data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from spikedim.errors import ConfigError, ModelError
from spikedim.neurons import LIF
from spikedim.progress import task
from spikedim.results import Estimate, Result, Table

Twin = Literal["surrogate", "smooth"]

_SCOPE: dict[Twin, str] = {
    "surrogate": "slopes of spikes are those of the surrogate: the network itself jumps at "
    "thresholds, so its own constant is infinite and this describes how gradients see it",
    "smooth": "the smooth twin, every spike replaced by the primitive of its surrogate",
}


@dataclass(frozen=True)
class Lipschitz(Result):
    """An estimate from below of a Lipschitz constant.

    Attributes:
        constant: largest spectral norm of the Jacobian found. Its interval is open above: the
            supremum over the domain is at least this, and data say nothing about how much more.
        per_sample: spectral norm at each sample, float64 [n].
        twin: what was differentiated.
        iterations: most power iterations any batch took.
        notes: what limits the number.
    """

    constant: Estimate
    per_sample: Tensor
    twin: Twin
    iterations: int
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The estimate and its spread over the samples."""
        middle = float(self.per_sample.median())
        rows = [
            ("estimate (largest)", self.constant),
            ("median over samples", middle),
            ("samples", len(self.per_sample)),
            ("power iterations", self.iterations),
        ]
        return [Table("Lipschitz constant, estimated", ("quantity", "value"), rows, self.notes)]


def lipschitz(
    model: nn.Module,
    x: Tensor,
    T: int | None = None,
    twin: Twin = "smooth",
    *,
    iterations: int = 200,
    tolerance: float = 1e-5,
    batch: int = 32,
    seed: int = 0,
) -> Lipschitz:
    """Largest spectral norm of the Jacobian of ``model`` over samples, by power iteration.

    ``L ≈ max_i σ_max(J(x_i))`` with J [outputs, inputs] of one sample (Euclidean norms). Each
    iteration is v ← JᵀJv/‖JᵀJv‖ for a whole batch at once, samples being independent; ‖Jv‖
    never exceeds σ_max, so the result is a lower bound of the supremum, converged or not.

    Args:
        model: network in evaluation mode, samples along the first dimension of input and output.
        x: samples [n, ...], floating point.
        T: timesteps, passed on as ``model(x, T)``; ``None`` calls ``model(x)``.
        twin: ``"smooth"`` replaces every spike by the smooth step whose slope is its surrogate
            and differentiates that exactly; ``"surrogate"`` keeps the spikes and uses the
            surrogate's slope.
        iterations: at most this many.
        tolerance: relative change of every sample's norm at which a batch stops.
        batch: samples at once.
        seed: of the starting vectors.

    Raises:
        ConfigError: unknown twin, no samples, or samples that are not finite floating point.
        ModelError: the network is in training mode (batch statistics would couple samples).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2).double().eval()
        >>> found = lipschitz(layer, torch.zeros(1, 3, dtype=torch.float64))
        >>> bool(torch.isclose(found.per_sample[0], torch.linalg.matrix_norm(layer.weight, 2)))
        True
    """
    if twin not in get_args(Twin):
        raise ConfigError(f"twin={twin!r} is unknown; use 'smooth' or 'surrogate'")
    if len(x) == 0 or iterations < 1 or batch < 1:
        raise ConfigError(
            f"n={len(x)}, iterations={iterations}, batch={batch}: each must be 1 or more"
        )
    if not (x.is_floating_point() and bool(x.isfinite().all())):
        raise ConfigError(f"x of {x.dtype} must be floating point, and all of it finite")
    if any(module.training for module in model.modules()):
        raise ModelError("the network is in training mode, which couples samples; call .eval()")
    function = _smoothed(model) if twin == "smooth" else model

    def call(part: Tensor) -> Tensor:
        output: Tensor = function(part) if T is None else function(part, T)
        return output

    generator = torch.Generator(device=x.device).manual_seed(seed)
    norms, taken, settled = [], 0, True
    with task("Lipschitz constant", len(x)) as bar:
        for part in x.split(batch):
            start = torch.randn(part.shape, generator=generator, dtype=x.dtype, device=x.device)
            found, count, converged = _norms(call, part, start, iterations, tolerance)
            norms.append(found)
            taken, settled = max(taken, count), settled and converged
            bar.advance(len(part))
    values = torch.cat(norms).double()
    notes = [f"A lower bound of the supremum over the domain; {_SCOPE[twin]}."]
    if not settled:
        notes.append(f"{iterations} iterations did not settle every sample to {tolerance:g}.")
    top = float(values.max())
    method = f"power iteration on the Jacobian at {len(x)} samples, a lower bound"
    return Lipschitz(
        Estimate(top, top, None, len(x), method=method), values, twin, taken, tuple(notes)
    )


def _norms(
    call: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, int, bool]:
    """Spectral norms [n] of the per-sample Jacobians, iterations, and whether they settled."""
    with torch.no_grad():
        pull = vjp(call, x)[1]
        v, best = _unit(start), x.new_zeros(len(x))
        count, settled = 0, False
        while count < iterations and not settled:
            count += 1
            image = jvp(call, (x,), (v,))[1]
            norm = image.flatten(1).norm(dim=1)
            settled = bool((norm - best <= tolerance * norm).all())
            best = torch.maximum(best, norm)
            v = _unit(pull(image)[0])
    return best, count, settled


def _unit(v: Tensor) -> Tensor:
    """Every sample scaled to norm 1; zero stays zero."""
    norm = v.flatten(1).norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)
    return v / norm.view(-1, *[1] * (v.ndim - 1))


def _smoothed(model: nn.Module) -> nn.Module:
    """A copy whose LIF layers emit the smooth step, differentiated through the reset as well."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, LIF):
            module.params = replace(module.params, smooth=True, detach_reset=False)
    return twin
